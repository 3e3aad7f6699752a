"""An ONNX file that keeps to itself.

Its tensors may lie in other files ("external data"), by any path: `/etc/passwd` or `../../key` would become
weights. onnxruntime looks at such paths in some versions, and not in all. We write one file, so a file that
names others is refused, before onnxruntime sees it. Only the outline of the protobuf is read here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fcos.errors import WeightsError
from fcos.files import read_bytes
from fcos.weights.archive import UnsafeFileError

MAX_BYTES = 2**31  # protobuf's limit
MAX_DEPTH = 30

# Numbers of fields, by message, that lead to tensors: onnx.proto3 of ONNX 1.18.
TENSOR = "TensorProto"
FIELDS: dict[str, dict[int, str]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "GraphProto": {1: "NodeProto", 5: TENSOR, 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        **{5: TENSOR, 6: "GraphProto", 10: TENSOR, 11: "GraphProto"},
        **{22: "SparseTensorProto", 23: "SparseTensorProto"},
    },
    "SparseTensorProto": {1: TENSOR, 2: TENSOR},
}
EXTERNAL_DATA, DATA_LOCATION = 13, 14
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def read_onnx(path: Path) -> bytes:
    """The content of a file whose tensors are all in it.

    Raises:
        UnsafeFileError: it names other files, or is damaged.
        WeightsError: it cannot be read.
    """
    content = read_bytes(path, WeightsError, max_bytes=MAX_BYTES)
    _check(memoryview(content), "ModelProto", 0)
    return content


def _check(content: memoryview, message: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise UnsafeFileError("graphs are nested too deeply")
    inner = FIELDS.get(message, {})
    for number, value in _fields(content):
        if message == TENSOR and (number == EXTERNAL_DATA or (number == DATA_LOCATION and value != 0)):
            raise UnsafeFileError("its weights are in other files (external data), which are not read")
        if number in inner:
            if not isinstance(value, memoryview):
                raise UnsafeFileError("the protobuf is damaged")
            _check(value, inner[number], depth + 1)


def _fields(content: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field of a message; of bytes and messages a view, without a copy."""
    position, end = 0, len(content)
    while position < end:
        tag, position = _varint(content, position)
        kind = tag & 7
        value: int | memoryview = 0
        if kind == VARINT:
            value, position = _varint(content, position)
        elif kind == BYTES:
            length, start = _varint(content, position)
            position = start + length
            value = content[start:position]
        elif kind in (FIXED64, FIXED32):
            position += 8 if kind == FIXED64 else 4
        else:
            raise UnsafeFileError("the protobuf is damaged")
        if position > end:
            raise UnsafeFileError("the file is cut off")
        yield tag >> 3, value


def _varint(content: memoryview, position: int) -> tuple[int, int]:
    """A number of 7 bits a byte, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(content):
            raise UnsafeFileError("the file is cut off")
        byte = content[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise UnsafeFileError("the protobuf is damaged")
