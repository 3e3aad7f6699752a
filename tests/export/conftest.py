"""A small detector and its exported files, written once for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from fcos.build import load_model
from fcos.export.formats import FORMATS, FormatName
from fcos.export.make import export_model


@pytest.fixture(scope="session")
def exported(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[FormatName, Path]:
    """The model file in every format."""
    folder = tmp_path_factory.mktemp("exported")
    paths = {name: folder / f"best{FORMATS[name].ending}" for name in FORMATS}
    for name, path in paths.items():
        export_model(load_model(model_file), name, path)
    return paths
