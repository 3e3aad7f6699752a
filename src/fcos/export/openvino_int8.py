"""8-bit integers in OpenVINO: NNCF's post-training quantisation."""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import Any

from fcos.export.calibration import OUTPUTS, Calibration, in_float32
from fcos.export.needs import needs

CONVOLUTIONS = ("Convolution", "GroupConvolution")
BARE = "/WithoutBiases"  # what OpenVINO adds to the name of a convolution whose bias it moves out


def quantise(model: Any, calibration: Calibration, parts: frozenset[str]) -> Any:
    """A model in 8-bit integers, but for some parts; what is not the network stays as it is."""
    with needs("openvino"):
        import nncf

    nncf.set_log_level(logging.ERROR)
    with contextlib.redirect_stdout(sys.stderr):  # its progress bars
        return nncf.quantize(
            model,
            nncf.Dataset(calibration),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(calibration),
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
    ends = [op for name, op in convolutions.items() if name.startswith(OUTPUTS)]
    network = {*_sources(ends), *(op.get_friendly_name() for op in ends)} - before
    ignored = {op.get_friendly_name() for op in operations} - network
    kept = in_float32(list(convolutions), parts)
    if "sums" in parts:
        ignored |= {op.get_friendly_name() for op in operations if op.get_type_name() == "Add"}
    return ignored | {op.get_friendly_name() for name, op in convolutions.items() if name in kept}


def _sources(operations: list[Any]) -> set[str]:
    """Names of all that some operations are computed from."""
    found, left = set[str](), list(operations)
    while left:
        for value in left.pop().input_values():
            op = value.get_node()
            if op.get_friendly_name() not in found:
                found.add(op.get_friendly_name())
                left.append(op)
    return found
