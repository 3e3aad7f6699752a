"""The names of the annotation formats: the modules of `data/formats`, listed without importing them.

Settings, `--help` and completion need only the names, and must not wait for numpy. A module with an
underscore in its name belongs to the format before the underscore.
"""

import os
from pkgutil import iter_modules

_FOLDER = os.path.join(os.path.dirname(__file__), "data", "formats")
FORMAT_NAMES = tuple(module.name for module in iter_modules([_FOLDER]) if "_" not in module.name)
