"""Files that were made to run code, to read other files, or to fill the memory: each is refused unread."""

from __future__ import annotations

import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fcos.errors import WeightsError
from fcos.export.exported import open_exported
from fcos.export.torch_program import read_program

Change = Callable[[str, bytes], bytes]
ROOT = "model"
GRAPH = "models/model.json"


class Evil:
    """Writes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def pickled(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """What is there if code of a file was run."""
    return tmp_path / "PWNED"


def changed(source: Path, out: Path, change: Change, **more: bytes) -> Path:
    """A `.pt2` file with changed parts, and more of them."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            inner = name.partition("/")[2]
            new.writestr(f"{ROOT}/{inner}", change(inner, old.read(name)))
        for name, content in more.items():
            new.writestr(f"{ROOT}/{name}", content)
    return out


def with_graph(change: Callable[[Any], None]) -> Change:
    def apply(name: str, content: bytes) -> bytes:
        if name != GRAPH:
            return content
        graph = json.loads(content)
        change(graph)
        return json.dumps(graph).encode()

    return apply


def test_the_pickled_example_inputs_of_a_program_are_never_read(
    exported: dict[str, Path], tmp_path: Path, mark: Path
) -> None:
    path = changed(
        exported["torch"],
        tmp_path / "evil.pt2",
        lambda name, content: pickled({"x": Evil(mark)}) if "sample_inputs" in name else content,
    )
    assert open_exported(path).card.class_names == ("cat", "dog", "bird")
    assert not mark.exists()


def pickled_tensor(folder: str) -> Change:
    def apply(name: str, content: bytes) -> bytes:
        if name != f"data/{folder}/model_{folder}_config.json":
            return content
        config = json.loads(content)
        payload = {"path_name": "tensor_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
        return json.dumps({"config": {**config["config"], "evil": payload}}).encode()

    return apply


def test_pickles_in_a_program_are_refused(exported: dict[str, Path], tmp_path: Path, mark: Path) -> None:
    evil, out = pickled({"x": Evil(mark)}), tmp_path / "evil.pt2"

    def unchanged(name: str, content: bytes) -> bytes:
        return content

    cases: list[tuple[Change, dict[str, bytes], str]] = [
        (pickled_tensor("weights"), {"data/weights/tensor_0": evil}, "is pickled"),
        (pickled_tensor("constants"), {"data/constants/tensor_0": evil}, "is pickled"),
        (unchanged, {"data/weights/model.pt": evil}, "contains more than tensors"),
        (unchanged, {"data/constants/model.pt": evil}, "contains more than tensors"),
        (unchanged, {"data/constants/custom_obj_0": evil}, "might contain code"),
        (unchanged, {"data/constants/opaque_obj_0": evil}, "might contain code"),
        (unchanged, {"data/aotinductor/model/model.so": b"ELF"}, "might contain code"),
        (unchanged, {"models/other.json": b"{}"}, "might contain code"),
    ]
    for change, more, words in cases:
        path = changed(exported["torch"], out, change, **more)
        with pytest.raises(WeightsError, match=r"cannot be opened as a torch\.export program") as caught:
            open_exported(path)
        assert words in caught.value.what
        assert not mark.exists()


def test_a_program_of_the_former_layout_is_refused(tmp_path: Path, mark: Path) -> None:
    with zipfile.ZipFile(tmp_path / "old.pt2", "w") as archive:
        archive.writestr("version", "8.9")
        for part in ("exported_program.json", "state_dict.pt", "constants.pt", "example_inputs.pt"):
            archive.writestr(f"serialized_{part}", pickled({"x": Evil(mark)}))
    with pytest.raises(WeightsError, match="might contain code"):
        open_exported(tmp_path / "old.pt2")
    assert not mark.exists()


def test_a_program_calls_nothing_but_operators_of_tensors_and_numbers(
    exported: dict[str, Path], tmp_path: Path, mark: Path
) -> None:
    out = tmp_path / "evil.pt2"

    def size(graph: Any) -> None:
        sizes = graph["graph_module"]["graph"]["sym_int_values"]
        next(v for v in sizes.values() if "as_expr" in v)["as_expr"]["expr_str"] = (
            f"__import__('os').mkdir('{mark}')"
        )

    def power(graph: Any) -> None:
        sizes = graph["graph_module"]["graph"]["sym_int_values"]
        next(v for v in sizes.values() if "as_expr" in v)["as_expr"]["expr_str"] = "9**9**9**9"

    def function(name: str) -> Callable[[Any], None]:
        def apply(graph: Any) -> None:
            graph["graph_module"]["graph"]["nodes"][0]["target"] = name

        return apply

    def placeholder(graph: Any) -> None:
        text = json.dumps(graph).replace('"images"', json.dumps(f"images=__import__('os').mkdir('{mark}')"))
        graph.clear()
        graph.update(json.loads(text))

    def tree(graph: Any) -> None:
        call = graph["graph_module"]["module_call_graph"][0]["signature"]
        call["in_spec"] = call["in_spec"].replace("builtins.dict", "collections.defaultdict")

    def inner_function(graph: Any) -> None:
        node = graph["graph_module"]["graph"]["nodes"][0]
        node["target"] = "torch.ops.higher_order.wrap_with_autocast"
        node["inputs"][0]["arg"] = {"as_operator": "torch.os.mkdir"}

    changes = [
        size,
        power,
        placeholder,
        tree,
        inner_function,
        *map(function, ("torch.hub.load", "torch.os.mkdir")),
    ]
    changes += map(function, ("torch.ops.aten.from_file.default", "_operator.methodcaller", "#ext:x"))
    for change in changes:
        path = changed(exported["torch"], out, with_graph(change))
        with pytest.raises(WeightsError, match=r"cannot be opened as a torch\.export program"):
            open_exported(path)
        assert not mark.exists()


def test_archives_that_unpack_to_more_than_they_hold_are_refused(
    exported: dict[str, Path], tmp_path: Path
) -> None:
    bomb = tmp_path / "bomb.pt2"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{ROOT}/{GRAPH}", bytes(10**7))
    with pytest.raises(WeightsError, match="the archive is compressed"):
        open_exported(bomb)
    deep = changed(exported["torch"], tmp_path / "deep.pt2", lambda n, c: b"[" * 10**6 if n == GRAPH else c)
    with pytest.raises(WeightsError, match="nested too deeply"):
        open_exported(deep)


def test_a_program_in_memory_is_the_one_in_the_file(exported: dict[str, Path]) -> None:
    program, metadata = read_program(exported["torch"])
    assert json.loads(metadata["class_names"]) == ["cat", "dog", "bird"]
    whole = torch.export.load(exported["torch"])
    assert program.graph_signature == whole.graph_signature
    for name, tensor in whole.state_dict.items():
        assert torch.equal(program.state_dict[name], tensor)


def test_an_onnx_file_that_names_other_files_is_refused(exported: dict[str, Path], tmp_path: Path) -> None:
    import onnx

    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(10**6))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link.bin").symlink_to(secret)
    (folder / "inside.bin").write_bytes(secret.read_bytes())
    for location in (str(secret), "../secret.bin", "link.bin", "inside.bin"):
        model = onnx.load(exported["onnx"])
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
        (folder / "evil.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(WeightsError, match=r"evil\.onnx cannot .* in other files \(external data\)"):
            open_exported(folder / "evil.onnx")


def test_external_data_is_found_in_the_attributes_of_inner_graphs(tmp_path: Path) -> None:
    import onnx
    from onnx import helper

    tensor = onnx.TensorProto(name="x", dims=[1], data_type=1, data_location=onnx.TensorProto.EXTERNAL)
    constant = helper.make_node("Constant", [], ["x"], value=tensor)
    inner = helper.make_graph([constant], "inner", [], [])
    outer = helper.make_graph([helper.make_node("If", ["c"], ["y"], then_branch=inner)], "outer", [], [])
    function = onnx.FunctionProto(name="f", domain="d", node=[constant])
    for model in (helper.make_model(outer), onnx.ModelProto(functions=[function])):
        (tmp_path / "evil.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(WeightsError, match="external data"):
            open_exported(tmp_path / "evil.onnx")


@pytest.mark.parametrize("cut", [1, 10, 1000, -1])
def test_a_truncated_onnx_file_is_refused(exported: dict[str, Path], tmp_path: Path, cut: int) -> None:
    (tmp_path / "cut.onnx").write_bytes(exported["onnx"].read_bytes()[:cut])
    with pytest.raises(WeightsError, match=r"cut\.onnx cannot be opened by onnxruntime"):
        open_exported(tmp_path / "cut.onnx")


def test_the_weights_of_openvino_are_those_in_the_folder(exported: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "evil_openvino"
    shutil.copytree(exported["openvino"], folder)
    weights = folder / "model.bin"
    secret = weights.rename(tmp_path / "secret.bin")
    with pytest.raises(WeightsError, match="cannot be read"):
        open_exported(folder)
    weights.symlink_to(secret)
    with pytest.raises(WeightsError, match=r"model\.bin is a link to a file outside its folder"):
        open_exported(folder)
    weights.unlink()
    shutil.copy(secret, weights)
    (folder / "model.xml").write_bytes(exported["onnx"].read_bytes())
    with pytest.raises(WeightsError, match=r"model\.xml cannot be opened by OpenVINO: it is not XML"):
        open_exported(folder)


@pytest.mark.parametrize("name", ["m.onnx", "m.pt2", "m.xml"])
def test_a_pipe_is_no_exported_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    os.mkfifo(path)
    with pytest.raises(WeightsError, match="this is a pipe, not a file"):
        open_exported(path)
