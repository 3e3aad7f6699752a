"""Folders import each other in one direction only, lazy imports included."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fcos

SOURCE = Path(fcos.__file__).parent

# Lower ones first; folders of one row do not know each other.
LAYERS = (
    ("errors", "terminal", "files", "machine"),  # errors quote foreign text as `terminal` does
    ("format_names",),
    ("config",),
    ("data", "model"),
    ("weights", "cpu", "metrics"),
    ("predict",),
    ("train", "export"),
    ("report",),
    ("detector",),
    ("demo",),
    ("cli",),
)
LEVELS = {name: level for level, names in enumerate(LAYERS) for name in names}


def imports_of(file: Path) -> Iterator[str]:
    """Modules of ours that a file imports, wherever in it, but for those that only the type checker sees."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    only_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in only_types:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "fcos":
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "fcos")


def test_folders_import_only_lower_ones() -> None:
    wrong, seen = [], set()
    for file in SOURCE.rglob("*.py"):
        path = file.relative_to(SOURCE)
        if path.name in ("__init__.py", "__main__.py") and len(path.parts) == 1:
            continue
        mine = path.parts[0].removesuffix(".py")
        seen.add(mine)
        for module in imports_of(file):
            other = module.split(".")[1]
            if other != mine and other in LEVELS and LEVELS[other] >= LEVELS[mine] > 0:
                wrong.append(f"{path} imports {module}")
    assert not wrong
    assert seen == set(LEVELS)


def test_predicting_imports_neither_fabric_nor_training_nor_export() -> None:
    code = "import fcos, sys; fcos.Detector; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "fcos.predict.predictor" in loaded
    unwanted = ("lightning_fabric", "fcos.train", "fcos.export", "fcos.report", "fcos.cli")
    assert not [name for name in loaded if name.startswith(unwanted)]
