"""8-bit integers in ONNX: onnxruntime's static quantisation, as QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

from fcos.export.calibration import Calibration, in_float32
from fcos.export.needs import needs

# What is quantised, by the module that it is in: convolutions, their activations, and sums between them.
QUANTISED = {
    "backbone": ("Conv", "Relu", "Clip", "Add", "MaxPool"),
    "pyramid": ("Conv", "Relu", "Add"),
    "head": ("Conv",),  # what follows is group norm
}


def quantise(model: Any, calibration: Calibration, parts: frozenset[str]) -> Any:
    """A model in 8-bit integers, but for some parts; weights with a scale for each channel."""
    with needs("onnx"):
        import onnx
        from onnxruntime import quantization

    nodes = [
        node
        for node in model.graph.node
        if node.op_type in QUANTISED.get(node.name.partition(".")[0].partition("/")[0], ())
    ]
    kept = in_float32([node.name for node in nodes if node.op_type == "Conv"], parts)
    if "sums" in parts:
        kept |= {node.name for node in nodes if node.op_type == "Add"}
    copied = onnx.ModelProto()  # quantising moves the weights of its input into a file
    copied.CopyFrom(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        logging.disable(logging.WARNING)  # advice about a preparation that the exporter has done
        try:
            quantization.quantize_static(
                copied,
                path,
                _reader(calibration),
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


def _reader(calibration: Calibration) -> Any:
    """The pictures as onnxruntime wants them."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        def __init__(self) -> None:
            self.rewind()

        def rewind(self) -> None:
            self.inputs = iter(calibration)

        def get_next(self) -> Any:
            return next(self.inputs, None)

    return Reader()
