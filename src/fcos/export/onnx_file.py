"""ONNX: one file, for onnxruntime; its card is in its `metadata_props`.

8-bit models use onnxruntime's static quantization, as QuantizeLinear and DequantizeLinear.
"""

from __future__ import annotations

import ast
import logging
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fcos.config import TrainConfig
from fcos.errors import WeightsError
from fcos.export import torch_program
from fcos.export.calibration import Calibration, in_float32
from fcos.export.card import GIVE, cannot_open, needs
from fcos.export.graph import INPUTS, OUTPUTS, DetectionGraph, OpenRun, Run
from fcos.export.torch_program import quiet
from fcos.files import first_line_of, read_bytes
from fcos.model.postprocess import INVALID
from fcos.weights.archive import UnsafeFileError

if TYPE_CHECKING:
    import onnxruntime

ENDING, ABOUT = ".onnx", "ONNX, run by onnxruntime"
OPSET = 18
MAX_BYTES = 2**31  # protobuf's limit
SCOPES = "pkg.torch.onnx.name_scopes"  # torch's metadata with the modules of a node, outermost first
INPUT_DIMS = {
    "images": ("batch", 3, "height", "width"),
    "sizes_hw": ("batch", 2),
    "original_sizes_hw": ("batch", 2),
}
OUTPUT_DIMS = {"boxes_xyxy": ("detections", 4), "scores": ("detections",), "labels": ("detections",)}
# Quantized operations by module: convolutions, their activations, and sums between them.
QUANTIZED = {
    "backbone": ("Conv", "Relu", "Clip", "Add", "MaxPool"),
    "pyramid": ("Conv", "Relu", "Add"),
    "head": ("Conv",),  # followed by group norm
}


def save(model: Any, metadata: Mapping[str, str], path: Path) -> None:
    """Write an `onnx.ModelProto`."""
    import onnx

    onnx.helper.set_model_props(model, dict(metadata))
    onnx.save(model, path)


def convert(graph: DetectionGraph, config: TrainConfig) -> Any:
    """Convert a graph (without torchvision's NMS) to an `onnx.ModelProto`."""
    with needs("onnx"):
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401  # fail now, not after the work
        import onnxscript  # noqa: F401  # torch needs it
    program = torch_program.convert(graph, config)
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with torch.no_grad(), quiet():
        converted = torch.onnx.export(
            program,
            (),
            input_names=list(INPUTS),
            output_names=list(OUTPUTS),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
            custom_translation_table={torch.ops.fcos.suppress.default: _suppress_in_onnx()},
        )
    assert converted is not None
    model = converted.model_proto
    _name_dims(model)
    _name_nodes(model)
    return model


def _suppress_in_onnx() -> Any:
    """`fcos.export.suppress` in ONNX's operators."""
    import onnxscript

    op: Any = onnxscript.opset18

    def suppress(boxes_xyxy: Any, scores: Any, iou: float, most: Any) -> Any:
        if isinstance(most, int):
            most = op.Constant(value_ints=[most])
        chosen = op.NonMaxSuppression(
            boxes_xyxy,
            op.Unsqueeze(scores, op.Constant(value_ints=[1])),
            op.Reshape(most, op.Constant(value_ints=[1])),
            op.Constant(value_floats=[iou]),
            op.Constant(value_floats=[INVALID / 2]),
        )
        return op.Gather(chosen, op.Constant(value_ints=[0, 2]), axis=1)  # without the class, which is 0

    return suppress


def _name_dims(model: Any) -> None:
    """Give dynamic dimensions readable names instead of the exporter's."""
    for value in [*model.graph.input, *model.graph.output]:
        names = INPUT_DIMS.get(value.name) or OUTPUT_DIMS.get(value.name, ("detections",))
        for dim, name in zip(value.type.tensor_type.shape.dim, names, strict=True):
            if isinstance(name, str):
                dim.dim_param = name
    del model.graph.value_info[:]  # sizes in the exporter's names


def _name_nodes(model: Any) -> None:
    """Name nodes after the module that they come from, and remove the exporter's metadata.

    It contains lines of source code with their paths on this machine.
    """
    taken = Counter[str]()
    for node in model.graph.node:
        notes = {entry.key: entry.value for entry in node.metadata_props}
        scopes = ast.literal_eval(notes.get(SCOPES, "[]"))
        module = next((scope for scope in reversed(scopes[:-1]) if scope), "detect")
        name = f"{module.removeprefix('network.')}/{node.op_type}"
        taken[name] += 1
        node.name = f"{name}_{taken[name]}" if taken[name] > 1 else name
        del node.metadata_props[:]
    for thing in [*model.graph.initializer, *model.graph.input, *model.graph.output, model.graph]:
        del thing.metadata_props[:]


def quantize(model: Any, calibration: Calibration, parts: frozenset[str]) -> Any:
    """Quantize a model to 8-bit integers except for some parts; weights have a scale per channel."""
    with needs("onnx"):
        import onnx
        from onnxruntime import quantization

    nodes = [
        node
        for node in model.graph.node
        if node.op_type in QUANTIZED.get(node.name.partition(".")[0].partition("/")[0], ())
    ]
    kept = in_float32([node.name for node in nodes if node.op_type == "Conv"], parts)
    if "sums" in parts:
        kept |= {node.name for node in nodes if node.op_type == "Add"}
    inputs = iter(calibration)
    copied = onnx.ModelProto()  # quantizing moves the weights of its input into a file
    copied.CopyFrom(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        logging.disable(logging.WARNING)  # advice about preprocessing that the exporter has already done
        try:
            quantization.quantize_static(
                copied,
                path,
                SimpleNamespace(get_next=lambda: next(inputs, None)),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=sorted({node.op_type for node in nodes}),
                nodes_to_quantize=[node.name for node in nodes if node.name not in kept],
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
            )
        finally:
            logging.disable(logging.NOTSET)
        return onnx.load(path)


def open_file(path: Path) -> tuple[dict[str, str], OpenRun]:
    """Metadata of a file, and functions that run it."""
    session = open_session(path, torch.get_num_threads())
    try:
        metadata = dict(session.get_modelmeta().custom_metadata_map)
    except UnicodeDecodeError as error:
        raise WeightsError(
            f"the metadata of {path.name} is not UTF-8 text", where=str(path), fix=GIVE
        ) from error

    def open_run(num_calls: int) -> Run:
        num_cores = max(1, torch.get_num_threads() // num_calls)
        own = session if num_calls == 1 else open_session(path, num_cores)

        def run(*inputs: Tensor) -> tuple[Tensor, ...]:
            feed = {name: tensor.contiguous().numpy() for name, tensor in zip(INPUTS, inputs, strict=True)}
            return tuple(torch.from_numpy(output) for output in own.run(list(OUTPUTS), feed))

        return run

    return metadata, open_run


def open_session(path: Path, num_cores: int) -> onnxruntime.InferenceSession:
    """Open a file in onnxruntime with this many threads; unsafe files are rejected."""
    with needs("onnx"):
        import onnx
        import onnxruntime
    content = read_bytes(path, WeightsError, max_bytes=MAX_BYTES)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_cores
    options.log_severity_level = 4  # errors are raised too
    try:
        # Rejected before onnxruntime opens the file: its tensors may refer to other files by any path
        # ("external data"; `/etc/passwd` would become weights), and not all versions check such paths.
        if _names_other_files(onnx.ModelProto.FromString(content)):
            raise UnsafeFileError("its weights are in other files (external data), which are not read")
        # Without its fallback, which prints a message and tries the same again.
        return onnxruntime.InferenceSession(
            content, options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
    except Exception as error:  # not every version of onnxruntime exports its error types
        raise cannot_open(path, "by onnxruntime", first_line_of(error)) from error


def _names_other_files(message: Any) -> bool:
    """Whether a tensor somewhere in a protobuf message of ONNX is in another file."""
    if message.DESCRIPTOR.name == "TensorProto":
        return len(message.external_data) > 0 or message.data_location != message.DEFAULT
    values = [value for field, value in message.ListFields() if field.message_type]  # a message or several
    parts = (part for value in values for part in ([value] if hasattr(value, "DESCRIPTOR") else value))
    return any(map(_names_other_files, parts))
