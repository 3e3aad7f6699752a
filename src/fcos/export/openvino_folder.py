"""OpenVINO: a folder with `model.xml` and `model.bin`; its card is in its `rt_info`.

8-bit models use NNCF's post-training quantization.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import tempfile
import threading
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fcos.config import TrainConfig
from fcos.errors import WeightsError
from fcos.export import onnx_file
from fcos.export.calibration import MAX_IMAGES, Calibration, in_float32
from fcos.export.calibration import OUTPUTS as HEAD_OUTPUTS
from fcos.export.card import cannot_open, needs
from fcos.export.graph import INPUTS, OUTPUTS, DetectionGraph, OpenRun, Run
from fcos.files import check_regular, read_bytes
from fcos.weights.load import OPENVINO_GRAPH

ENDING, ABOUT = "_openvino", "OpenVINO, run on the CPU"
SECTION = "fcos"  # of rt_info
MAX_XML_BYTES = 256 * 2**20
MAX_BIN_BYTES = 4 * 2**30
CONVOLUTIONS = ("Convolution", "GroupConvolution")
BARE = "/WithoutBiases"  # added to the name of a convolution whose bias OpenVINO separates


@cache
def core() -> Any:
    """OpenVINO's library, opened once in a process and never closed.

    Its CPU plugin installs a signal stack and frees it on closing, even if it is still in use: the next exit
    of a loader worker then killed the whole process.

    Its Python bindings build a table of dtypes on first use, and release the interpreter lock meanwhile: two
    threads that do this at the same time deadlock. So it is built here.
    """
    with needs("openvino"):
        import openvino
    openvino.Type.f32.to_dtype()
    return openvino.Core()


def convert(graph: DetectionGraph, config: TrainConfig) -> Any:
    """Convert a graph (without torchvision's NMS) to an `openvino.Model`, through ONNX."""
    with needs("onnx"):
        import onnx
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        onnx.save(onnx_file.convert(graph, config), file)
        model = core().read_model(file)
        # It reads the weights lazily: copy them before the file is deleted.
        return model.clone()


def save(model: Any, metadata: Mapping[str, str], path: Path) -> None:
    """Write an `openvino.Model` with float32 weights (OpenVINO's default rounds them to 16 bits)."""
    import openvino

    for key, value in metadata.items():
        model.set_rt_info(value, [SECTION, key])
    path.mkdir(parents=True, exist_ok=True)
    openvino.save_model(model, path / OPENVINO_GRAPH, compress_to_fp16=False)


def quantize(model: Any, calibration: Calibration, parts: frozenset[str]) -> Any:
    """Quantize a model to 8-bit integers except for some parts and all operations outside the network."""
    with needs("openvino"):
        import nncf

    nncf.set_log_level(logging.ERROR)
    with contextlib.redirect_stdout(sys.stderr):  # its progress bars
        return nncf.quantize(
            model,
            nncf.Dataset(calibration),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=MAX_IMAGES if calibration.config.tile else calibration.num_images,
            ignored_scope=nncf.IgnoredScope(names=sorted(_ignored(model, parts)), validate=False),
        )


def _ignored(model: Any, parts: frozenset[str]) -> set[str]:
    """Names of the operations that stay in float32."""
    operations = model.get_ordered_ops()
    convolutions = {
        op.get_friendly_name().removesuffix(BARE): op
        for op in operations
        if op.get_type_name() in CONVOLUTIONS
    }
    first = next(iter(convolutions.values()))
    before = _sources([first])
    ends = [op for name, op in convolutions.items() if name.startswith(HEAD_OUTPUTS)]
    network = {*_sources(ends), *(op.get_friendly_name() for op in ends)} - before
    ignored = {op.get_friendly_name() for op in operations} - network
    kept = in_float32(list(convolutions), parts)
    if "sums" in parts:
        ignored |= {op.get_friendly_name() for op in operations if op.get_type_name() == "Add"}
    return ignored | {op.get_friendly_name() for name, op in convolutions.items() if name in kept}


def _sources(operations: list[Any]) -> set[str]:
    """Names of all operations that these depend on."""
    found, left = set[str](), list(operations)
    while left:
        for value in left.pop().input_values():
            op = value.get_node()
            if op.get_friendly_name() not in found:
                found.add(op.get_friendly_name())
                left.append(op)
    return found


def open_file(path: Path) -> tuple[dict[str, str], OpenRun]:
    """Metadata of a folder, or of its .xml file, and functions that run it."""
    file = path / OPENVINO_GRAPH if path.is_dir() else path
    text, weights = _read_pair(file)
    try:
        # From memory: without a path, OpenVINO cannot open other files.
        model = core().read_model(text, weights)
    except Exception as error:  # RuntimeError, and errors of its Python bindings
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
        raise cannot_open(file, "by OpenVINO", reason) from error
    metadata = {}
    entries = model.get_rt_info(SECTION).value if model.has_rt_info(SECTION) else {}
    if isinstance(entries, Mapping):
        metadata = {key: str(value) for key, value in entries.items()}

    def open_run(num_calls: int) -> Run:
        of_thread = threading.local()
        # On first use, since a folder of images needs other options than a single image.
        compiled = cache(lambda: core().compile_model(model, "CPU", settings(num_calls)))
        if num_calls > 1:
            compiled()  # now, since otherwise each thread would compile it

        def run(*inputs: Tensor) -> tuple[Tensor, ...]:
            if not hasattr(of_thread, "request"):
                of_thread.request = compiled().create_infer_request()
            feed = {name: tensor.contiguous().numpy() for name, tensor in zip(INPUTS, inputs, strict=True)}
            found = of_thread.request.infer(feed, share_inputs=True)
            return tuple(torch.from_numpy(found[name].copy()) for name in OUTPUTS)

        return run

    return metadata, open_run


def _read_pair(file: Path) -> tuple[bytes, bytes]:
    """The `.xml` file and its weights.

    Raises:
        WeightsError: one of them is missing, or is a link to a file outside the folder.
    """
    text = _read_part(file, MAX_XML_BYTES)
    if not text.lstrip().startswith(
        b"<"
    ):  # OpenVINO also reads other formats, some of which refer to other files
        raise cannot_open(file, "by OpenVINO", "it is not XML")
    return text, _read_part(file.with_suffix(".bin"), MAX_BIN_BYTES)


def _read_part(part: Path, max_bytes: int) -> bytes:
    check_regular(part, WeightsError)
    if part.resolve().parent != part.parent.resolve():
        raise WeightsError(
            f"{part.name} is a link to a file outside its folder", where=str(part), fix="copy the file here"
        )
    return read_bytes(part, WeightsError, max_bytes=max_bytes)


def settings(num_calls: int) -> dict[str, Any]:
    """Options for compiling a model.

    They require float32: OpenVINO uses bfloat16 on processors that support it, which moves boxes by pixels.
    """
    hint: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"} if num_calls == 1 else {"NUM_STREAMS": num_calls}
    return hint | {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
