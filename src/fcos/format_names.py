"""The names of the annotation formats: each is a module of `data/formats`, listed here without importing it.

Settings, `--help` and completion need the names alone; reading them here keeps numpy out of these, and a new
format out of the settings. A module with an underscore in its name belongs to the format that it begins with.
"""

from pathlib import Path
from pkgutil import iter_modules

FORMAT_NAMES = tuple(
    module.name
    for module in iter_modules([str(Path(__file__).parent / "data" / "formats")])
    if "_" not in module.name
)
