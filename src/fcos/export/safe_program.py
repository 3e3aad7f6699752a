"""Read a `.pt2` file of torch.export without running code from it.

`torch.export.load` unpickles example inputs and constants, evaluates sizes as Python expressions, calls any
torch function named in the graph, inserts names of the graph into Python code, and runs shared libraries in
the file. So its parts are inspected first, and the program is rebuilt from those that contain only numbers,
names and pure operators. Everything not known to be harmless is rejected.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from fcos.weights.archive import UnsafeFileError, check_archive, parse_json

EXTRA_FILE = "metadata.json"
MAX_PROGRAM_BYTES = 64 * 2**20  # of a graph as JSON; that of ResNet-101 has 4 MB
MAX_SIZE_TEXT = 20_000
MAX_SPEC_BYTES = 100_000

GRAPH = "models/model.json"
EXAMPLES = "data/sample_inputs/model.pt"
EXTRA = f"extra/{EXTRA_FILE}"
CONFIGS = {
    "data/weights/model_weights_config.json": re.compile(r"weight_\d+"),
    "data/constants/model_constants_config.json": re.compile(r"tensor_\d+"),
}
# In torch 2.8: each is a dict of tensors written by torch.save.
PICKLED = ("data/weights/model.pt", "data/constants/model.pt")
PAYLOADS = re.compile(r"data/weights/weight_\d+|data/constants/tensor_\d+")
MARKS = re.compile(
    r"archive_format|archive_version|byteorder|version|\.data/\w+|\.format_version|\.storage_alignment"
)

# Functions that a graph may call, on tensors and numbers. Names with a leading underscore are internal and
# check less; `from_file` opens files.
OPERATORS = re.compile(
    r"torch\.ops\.aten\.(?!from_file|set_|warn|manual_seed|_)\w+\.\w+"
    r"|torch\.ops\.aten\._(assert_scalar|assert_tensor_metadata|to_copy|adaptive_avg_pool2d)\.\w+"
    r"|torch\.ops\.aten\.__(and|or|xor)__\.\w+"
    r"|torch\.ops\.torchvision\.nms\.default|torch\.ops\.higher_order\.wrap_with_autocast"
    r"|torch\.sym_(min|max|int|float|not|ite|sum)"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|neg|pos|abs|le|lt|ge|gt|eq|ne|and_|or_|not_|getitem)"
    r"|math\.(ceil|floor|trunc)",
    re.ASCII,
)
# Sizes such as "Mul(Integer(32), Symbol('s30', positive=True, integer=True))".
WORDS_OF_SIZES = frozenset(
    {"Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Min", "Max", "Mod", "PythonMod", "FloorDiv"}
    | {"CleanDiv", "CeilDiv", "CeilToInt", "FloorToInt", "TruncToInt", "TruncToFloat", "ToFloat", "Where"}
    | {"IntTrueDiv", "FloatTrueDiv", "Piecewise", "ExprCondPair", "Eq", "Ne", "Le", "Lt", "Ge", "Gt"}
    | {"Equality", "Unequality", "LessThan", "StrictLessThan", "GreaterThan", "StrictGreaterThan"}
    | {"And", "Or", "Not", "BooleanTrue", "BooleanFalse", "true", "false", "True", "False", "positive"}
    | {"integer", "nonnegative", "real", "precision"}
)
SIZE = re.compile(
    r"(?:'[A-Za-z]\w*'|[A-Za-z]\w*|\d{1,19}(?:\.\d{1,19})?|[(),=<>]|[*+/-](?!\*)|\s)*", re.ASCII
)
SYMBOL = re.compile(r"[suz]\w*", re.ASCII)
PLAIN = re.compile(r"[\w.]{0,500}", re.ASCII)  # names end up in the Python code of a graph
PLAIN_SIZE = re.compile(r"[\w.*+/(), -]{0,2000}", re.ASCII)
TREES = frozenset({"builtins.tuple", "builtins.list", "builtins.dict", None})


def read_program(path: Path) -> tuple[Any, dict[str, str]]:
    """A program (`torch.export.ExportedProgram`) and its metadata.

    Raises:
        UnsafeFileError: the file has parts that might run code, or is damaged.
    """
    parts = _read_parts(path)
    metadata = parse_json(parts.pop(EXTRA, b"{}"))
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise UnsafeFileError("its metadata is not a mapping of strings")
    rebuilt = io.BytesIO()
    with zipfile.ZipFile(rebuilt, "w") as archive:
        for name, content in parts.items():
            archive.writestr(f"model/{name}", content)
    rebuilt.seek(0)
    return torch.export.load(rebuilt), metadata


def _read_parts(path: Path) -> dict[str, bytes]:
    """The parts of the program, checked."""
    parts = dict[str, bytes]()
    with zipfile.ZipFile(path) as archive:
        for full_name in check_archive(path):
            name = full_name.partition("/")[2]  # the first folder has the original name of the file
            if name == EXAMPLES:
                parts[name] = b""  # pickled inputs, which nothing needs
                continue
            content = archive.read(full_name)
            if name == GRAPH:
                graph = parse_json(content, MAX_PROGRAM_BYTES)
                if not isinstance(graph, dict):
                    raise UnsafeFileError(f"{GRAPH} is not a graph")
                content = json.dumps(_checked(graph, "")).encode()
            elif name in CONFIGS:
                _check_payloads(parse_json(content, MAX_PROGRAM_BYTES), CONFIGS[name])
            elif name in PICKLED:
                _check_tensors(content, name)
            elif name != EXTRA and not PAYLOADS.fullmatch(name) and not MARKS.fullmatch(name):
                raise UnsafeFileError(f'its part "{name[:100]}" might contain code')
            parts[name] = content
    if GRAPH not in parts:
        raise UnsafeFileError(f"it has no {GRAPH}")
    return parts


def _check_tensors(content: bytes, name: str) -> None:
    """Reject pickles with more than tensors: torch.export.load falls back to unrestricted unpickling."""
    try:
        torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch, zipfile and pickle each raise their own errors
        raise UnsafeFileError(f'its part "{name}" contains more than tensors') from error


def _check_payloads(config: Any, file_name: re.Pattern[str]) -> None:
    """Reject tensors that are not in files of raw numbers."""
    if not isinstance(config, dict) or not isinstance(config.get("config"), dict):
        raise UnsafeFileError("its list of tensors is damaged")
    for name, payload in config["config"].items():
        if not isinstance(payload, dict) or payload.get("use_pickle") is not False:
            raise UnsafeFileError(f'its tensor "{name[:100]}" is pickled')
        if not file_name.fullmatch(str(payload.get("path_name"))):
            raise UnsafeFileError(f'its tensor "{name[:100]}" is not a file of numbers')
        _checked(payload, "")


def _checked(value: Any, key: str) -> Any:
    """A checked part of a graph (or of a list of tensors), without metadata about its origin."""
    if isinstance(value, dict):
        names = PLAIN_SIZE if key == "range_constraints" else PLAIN
        for name in value:
            _match(names, name)
        return {
            name: type(part)() if name in ("metadata", "guards_code") else _checked(part, name)
            for name, part in value.items()
        }
    if isinstance(value, list):
        return [_checked(part, key) for part in value]
    if isinstance(value, str):
        _check_text(value, key)
    return value


def _check_text(text: str, key: str) -> None:
    if key in ("target", "as_operator"):
        _match(OPERATORS, text)
    elif key == "expr_str":
        _match(SIZE, text)
        words = re.findall(r"[A-Za-z_]\w*", text)
        if len(text) > MAX_SIZE_TEXT or any(
            word not in WORDS_OF_SIZES and not SYMBOL.fullmatch(word) for word in words
        ):
            raise UnsafeFileError(f'it computes a size by "{text[:100]}"')
    elif key in ("in_spec", "out_spec"):
        _check_tree(parse_json(text, MAX_SPEC_BYTES))
    elif key == "torch_version":
        _match(re.compile(r"[\w.+]*", re.ASCII), text)
    elif key != "as_string":  # an argument, which is quoted: "floor", or the words of an assertion
        _match(PLAIN, text)


def _check_tree(spec: Any) -> None:
    """Reject inputs and outputs in containers other than plain ones, which would import a module."""
    if isinstance(spec, list):
        for part in spec:
            _check_tree(part)
    elif isinstance(spec, dict):
        if spec.get("type") not in TREES:
            raise UnsafeFileError(f"it has inputs of type {str(spec.get('type'))[:100]}")
        _check_tree(spec.get("children_spec"))


def _match(pattern: re.Pattern[str], text: str) -> None:
    if not pattern.fullmatch(text):
        raise UnsafeFileError(f'it contains "{text[:100]}", which is not known to be harmless')
