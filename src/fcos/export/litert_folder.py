"""LiteRT (TensorFlow Lite), for phones and small boards: a folder with `model.tflite`; see `undecoded.py`.

`litert-torch` converts the network. Its input is `(1, side, side, 3)`, a square that fits every image, since
TensorFlow Lite can only upsample feature maps to constant sizes. ai-edge-quantizer quantizes to 8 bits.
"""

from __future__ import annotations

import io
import os
import pickle
import re
import threading
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fcos.config import TrainConfig
from fcos.data.loader import PADDING_MULTIPLE
from fcos.data.transforms import padded_size
from fcos.errors import WeightsError
from fcos.export.calibration import Calibration
from fcos.export.card import cannot_open, needs
from fcos.export.graph import DetectionGraph, OpenRun
from fcos.export.torch_program import quiet
from fcos.export.undecoded import Compute, Undecoded, on_mean, open_folder, save_folder
from fcos.files import first_line_of, read_bytes
from fcos.weights.load import LITERT_GRAPH

ENDING, ABOUT = "_litert", "LiteRT (TensorFlow Lite), run on the CPU"
SIGNATURE, INPUT = "serving_default", "args_0"
OUTPUTS = "Conv2d_(logits|distances|quality)"  # operations, as litert-torch names them after modules
SCOPES = {"outputs": OUTPUTS, "pyramid": "_pyramid", "head": f"_tower|{OUTPUTS}"}
CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D")
BETWEEN = ("ADD", "PAD", "MAX_POOL_2D")  # convolutions of backbone and pyramid; in the head it is group norm


class Network(NamedTuple):
    """A `.tflite` file, and the value that pads its input."""

    content: bytes
    pixel_mean: list[float]


def input_hw(longest_side: int) -> tuple[int, int]:
    """The input of a network for images up to this size."""
    return padded_size([(longest_side, longest_side)], PADDING_MULTIPLE)


def convert(graph: DetectionGraph, config: TrainConfig) -> Network:
    """The network of a graph as a `.tflite` file."""
    with needs("litert"):
        import ai_edge_litert  # noqa: F401  # fail now, not after the work
    network = pickle.dumps(Undecoded(graph).eval())
    # In a separate process: litert-torch imports jax, with which later forks (a loader's) may deadlock.
    with needs("litert"), ProcessPoolExecutor(1, get_context("spawn")) as pool:
        content = pool.submit(_converted, network, input_hw(config.view_size)).result()
    return Network(content, graph.network.pixel_mean.flatten().tolist())


def _converted(network: bytes, size_hw: tuple[int, int]) -> bytes:
    for stream in (1, 2):  # its log
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    with quiet():
        import litert_torch

        module = litert_torch.to_channel_last_io(pickle.loads(network), args=[0])
        return bytes(litert_torch.convert(module, (torch.zeros(1, *size_hw, 3),)).model_content())


def quantize(model: Network, calibration: Calibration, parts: frozenset[str]) -> Network:
    """Quantize a model to 8-bit integers except for some parts; its input and output stay float32."""
    with needs("litert"), quiet():
        from ai_edge_quantizer import quantizer

    kept = [SCOPES[part] for part in parts if part in SCOPES]
    if "stem" in parts:  # its filters are those with three channels
        tensors = _interpreter(model.content, 1).get_tensor_details()
        filters = (each for each in tensors if len(each["shape"]) == 4 and each["shape"][0] > 1)
        kept += [re.escape(each["name"].split(";")[0]) for each in filters if each["shape"][3] == 3]
    work = quantizer.Quantizer(model.content)
    for name in CONVOLUTIONS:
        work.add_static_config(".*", name, 8, 8)
    for name in BETWEEN[1:] if "sums" in parts else BETWEEN:
        work.add_static_config("_(backbone|pyramid)", name, 8, 8)
    for scope, name in product(kept, CONVOLUTIONS):
        work.update_quantization_recipe(scope, name, algorithm_key="no_quantize")
    ranges: dict[str, Any] = {}
    with quiet(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # its progress bars
        for inputs in calibration:
            [(height, width)], size_hw = inputs["sizes_hw"].tolist(), input_hw(calibration.config.view_size)
            pixels = on_mean(inputs["images"][0], (height, width), size_hw, model.pixel_mean)
            feed = {SIGNATURE: [{INPUT: pixels.transpose(1, 2, 0)[None]}]}
            ranges = _widened(ranges, work.calibrate(feed, None, torch.get_num_threads()))
        return model._replace(content=bytes(work.quantize(ranges).quantized_model))


def _widened(ranges: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The union of ranges of tensors: the quantizer's moving average is narrower, and costs 1 AP."""
    wider = {**ranges, **other}
    for name, new in other.items():
        old = ranges.get(name, new)
        wider[name] |= {"min": np.minimum(old["min"], new["min"]), "max": np.maximum(old["max"], new["max"])}
    return wider


def save(model: Network, metadata: Mapping[str, str], path: Path) -> None:
    """Write a `.tflite` file, with metadata and decoder."""
    save_folder({LITERT_GRAPH: model.content}, metadata, path)


def _interpreter(model: bytes, num_threads: int) -> Any:
    with needs("litert"):
        from ai_edge_litert.interpreter import Interpreter
    interpreter = Interpreter(model_content=model, num_threads=num_threads)
    interpreter.allocate_tensors()
    return interpreter


def open_file(path: Path) -> tuple[dict[str, str], OpenRun]:
    """Metadata of a folder, and functions that run it."""
    content = read_bytes(path / LITERT_GRAPH, WeightsError, max_bytes=2**31)
    try:
        [pixels] = _interpreter(content, 1).get_input_details()
    except ValueError as error:
        raise cannot_open(path / LITERT_GRAPH, "by LiteRT", first_line_of(error)) from error

    def open_interpreters(num_calls: int) -> Compute:
        num_threads = max(1, torch.get_num_threads() // num_calls)
        of_thread = threading.local()  # an interpreter supports one call at a time

        def compute(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
            if not hasattr(of_thread, "run"):
                of_thread.run = _interpreter(content, num_threads).get_signature_runner(SIGNATURE)
            [output] = of_thread.run(**{INPUT: pixels.transpose(1, 2, 0)[None]}).values()
            return np.array(output[0])

        return compute

    return open_folder(path, open_interpreters, tuple(pixels["shape"][1:3].tolist()))
