"""What all tests share. Shapes and types of the whole package are checked while the tests run."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock
from PIL import Image

from .type_checks import check_types_of

if "PYTEST_XDIST_WORKER" in os.environ:  # with -n: busy threads of one would wait for those of the others
    os.environ.setdefault("OMP_NUM_THREADS", "1")

check_types_of("fcos")  # before anything of the package is imported

from fcos.files import unpack  # noqa: E402  (after the hook)

from .rectangles import rectangles, tiny, tiny_of_module  # noqa: E402, F401

if TYPE_CHECKING:
    from fcos.weights.load import ExportFormat

MakeImage = Callable[..., Path]

# The longest files, longest first. `--dist=loadfile` gives out whole files: begun last, one of these would
# keep one worker busy while the others have nothing to do.
LONGEST = (
    "docs/test_tutorial.py",
    "export/test_exported.py",
    "train/test_every_convention.py",
    "cli/test_export.py",
    "train/test_resume.py",
    "train/test_end.py",
    "train/test_launch.py",
    "train/test_loop.py",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With several workers, the longest files first; the rest stay in order."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        ranks = {Path(__file__).parent / name: rank for rank, name in enumerate(LONGEST)}
        items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


@pytest.fixture(autouse=True)
def _threads_stay() -> Iterator[None]:
    """Threads that a test left to those behind it would wait for each other: a small network takes ten times
    as long with two threads on a busy core."""
    import torch

    before = torch.get_num_threads()
    yield
    if torch.get_num_threads() != before:
        torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data sets beside the repository; a test that asks for them is skipped where they are absent."""
    folder = Path(__file__).parent.parent.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("no real data sets beside the repository")
    return folder


@pytest.fixture(scope="session")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Finds a file or folder of what other code bases computed; see `tests/vectors/README.md`."""
    unpacked = tmp_path_factory.mktemp("vectors")
    unpack(Path(__file__).parent / "vectors" / "vectors.tar.xz", unpacked)
    beside = Path(__file__).parent.parent.parent / "shared" / "vectors"

    def find(name: str) -> Path:
        for folder in (unpacked, beside):
            if (folder / name).exists():
                return folder / name
        pytest.skip(f"{name} is not shipped, and not beside the repository")

    return find


@pytest.fixture
def make_image(tmp_path: Path) -> MakeImage:
    """Writes a plain image below `tmp_path`: ``make_image("a/b.jpg", width=40, height=30)``."""

    def make(name: str, width: int = 40, height: int = 30, color: int = 128) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (width, height), (color, color, color)).save(path)
        return path

    return make


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file of a small network with random weights that finds cat, dog and bird everywhere."""
    import torch

    from fcos.config import load_config
    from fcos.model.build import build_model
    from fcos.weights.load import MODEL_SETTINGS
    from fcos.weights.model_file import ModelCard, save_model

    config = load_config(
        {
            **{"model": "fcos_lite0", "short_side": 96, "view_size": 128, "list_train": "none"},
            "backbone": "test_efficientnet",  # of the same layers, but few
        }
    )
    class_names = ("cat", "dog", "bird")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(config, len(class_names))
        torch.nn.init.normal_(model.head.logits.weight, std=0.1)  # as trained: scores from low to high
        torch.nn.init.constant_(model.head.logits.bias, -2.0)
    settings = {key: value for key, value in config.model_dump(mode="json").items() if key in MODEL_SETTINGS}
    path = tmp_path_factory.mktemp("model") / "best.safetensors"
    save_model(path, model.state_dict(), ModelCard(settings, class_names, (1, 2, 3), threshold=0.5))
    return path


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file of few layers with random weights that finds cat, dog and bird everywhere."""
    import torch

    from fcos.config import load_config
    from fcos.model.build import build_model
    from fcos.weights.load import model_settings
    from fcos.weights.model_file import ModelCard, save_model

    config = load_config(
        {
            **{"model": "fcos_r18", "short_side": 96, "view_size": 128, "list_train": "none"},
            **{"backbone_channels": [8, 8, 16, 16, 32], "strides": [8, 16, 32], "regress_ranges": [64, 128]},
            **{"fpn_channels": 16, "head_channels": 16, "head_convs": 1},
        }
    )
    class_names = ("cat", "dog", "bird")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(config, len(class_names))
        torch.nn.init.normal_(model.head.logits.weight, std=0.3)  # as trained: scores from low to high
        torch.nn.init.constant_(model.head.logits.bias, -2.0)
        torch.nn.init.normal_(model.head.distances.weight, std=0.3)
    path = tmp_path_factory.mktemp("small") / "best.safetensors"
    save_model(path, model.state_dict(), ModelCard(model_settings(config), class_names, (1, 2, 3), 0.5))
    return path


class Exported(dict[str, Path]):
    """Files of a model by format, each written when it is first asked for."""

    def __init__(self, source: Path, folder: Path) -> None:
        super().__init__()
        self.source, self.folder = source, folder

    def __missing__(self, name: ExportFormat) -> Path:
        from fcos.export.formats import FORMATS, export_model
        from fcos.weights.load import load_model

        for package in {"ncnn": ["ncnn", "pnnx"], "litert": ["ai_edge_litert", "litert_torch"]}.get(name, []):
            if importlib.util.find_spec(package) is None:
                pytest.skip(f"the extra {name} is not installed")
        path = self.folder / f"best{FORMATS[name].ENDING}"
        with FileLock(self.folder / f"{name}.lock"):  # several workers of xdist share the folder
            if not path.exists():
                with pytest.MonkeyPatch.context() as patch:
                    if name == "openvino":  # which begins with the ONNX model: it takes seconds to make
                        import onnx

                        model = onnx.load(self["onnx"])
                        patch.setattr("fcos.export.onnx_file.convert", lambda *args: model)
                    export_model(load_model(self.source), name, path)
        self[name] = path
        return path


@pytest.fixture(scope="session")
def exported(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """That model as `fcos export` writes it, by format."""
    from fcos.export import torch_program

    root = tmp_path_factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "exported"
    folder.mkdir(exist_ok=True)
    opened, open_file = cache(torch_program.open_file), torch_program.open_file
    with pytest.MonkeyPatch.context() as patch:  # of these, read a program once: it takes seconds
        patch.setattr(
            torch_program, "open_file", lambda path: (opened if path.parent == folder else open_file)(path)
        )
        yield Exported(small_model, folder)
