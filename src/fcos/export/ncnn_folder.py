"""ncnn, for phones and small boards: a folder with `model.ncnn.param` and `.bin`; see `undecoded.py`.

`pnnx` converts the network. It takes images of any size whose sides are multiples of 32.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fcos.config import TrainConfig
from fcos.errors import FcosError, WeightsError
from fcos.export.card import cannot_open, needs
from fcos.export.graph import DetectionGraph, OpenRun
from fcos.export.torch_program import quiet
from fcos.export.undecoded import Compute, Undecoded, open_folder, save_folder
from fcos.files import check_regular
from fcos.weights.load import NCNN_GRAPH

ENDING, ABOUT = "_ncnn", "ncnn, run on the CPU"
save = save_folder
quantize = None  # pnnx does not quantize
NCNN_WEIGHTS = "model.ncnn.bin"
# Sizes that differ between the two examples become dynamic. In these, no level has the same number of points.
EXAMPLE_SIZES_HW = ((352, 480), (160, 96))


def convert(graph: DetectionGraph, config: TrainConfig) -> dict[str, bytes]:
    """The network of a graph as the files of ncnn, by name."""
    del config  # the input is float32, of any size
    with needs("ncnn"):
        import ncnn  # noqa: F401  # fail now, not after the work
        import pnnx
    network = Undecoded(graph).eval()
    examples = [torch.zeros(1, 3, *size_hw) for size_hw in EXAMPLE_SIZES_HW]
    with tempfile.TemporaryDirectory() as folder:
        with torch.no_grad(), quiet():
            traced = torch.jit.trace(network, examples[0])  # type: ignore[no-untyped-call]
            traced.save(str(Path(folder) / "model.pt"))
        shapes = [f"[{','.join(map(str, example.shape))}]" for example in examples]
        command = [
            pnnx.EXEC_PATH,
            "model.pt",
            f"inputshape={shapes[0]}",
            f"inputshape2={shapes[1]}",
            "fp16=0",
        ]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
        if done.returncode != 0 or not (Path(folder) / NCNN_GRAPH).is_file():
            raise FcosError(f"pnnx failed: {done.stderr.strip()[-500:]}", fix="use another --format")
        return {name: (Path(folder) / name).read_bytes() for name in (NCNN_GRAPH, NCNN_WEIGHTS)}


def open_file(path: Path) -> tuple[dict[str, str], OpenRun]:
    """Metadata of a folder, and functions that run it."""
    with needs("ncnn"):
        import ncnn

    def open_net(num_calls: int) -> Compute:
        net = ncnn.Net()
        net.opt.use_vulkan_compute = False
        net.opt.num_threads = max(1, torch.get_num_threads() // num_calls)
        for name in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage", "bf16_packed"):
            setattr(net.opt, f"use_{name}", False)  # 16 bits move boxes by pixels
        for name, load in ((NCNN_GRAPH, net.load_param), (NCNN_WEIGHTS, net.load_model)):
            check_regular(path / name, WeightsError)
            if load(str(path / name)) != 0:
                raise cannot_open(path / name, "by ncnn", "it is damaged")

        def compute(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
            extractor = net.create_extractor()
            extractor.input("in0", ncnn.Mat(pixels))
            code, output = extractor.extract("out0")
            if code != 0:
                raise RuntimeError(f"ncnn returned {code}")
            return np.array(output)

        return compute

    return open_folder(path, open_net)
