"""What all tests share. Shapes and types of the whole package are checked while the tests run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from jaxtyping import install_import_hook
from PIL import Image

# Before anything of the package is imported; jaxtyping annotations become assertions.
install_import_hook("fcos", "beartype.beartype")

MakePicture = Callable[..., Path]


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data sets beside the repository; a test that asks for them is skipped where they are absent."""
    folder = Path(__file__).parent.parent.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("no real data sets beside the repository")
    return folder


@pytest.fixture
def make_picture(tmp_path: Path) -> MakePicture:
    """Writes a plain picture below `tmp_path`: ``make_picture("a/b.jpg", width=40, height=30)``."""

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

    from fcos.build import MODEL_SETTINGS, build_model
    from fcos.config import load_config
    from fcos.model.weights import ModelCard, save_model

    config = load_config({"model": "fcos_lite0", "short_side": 96, "view_size": 128, "list_train": "none"})
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
