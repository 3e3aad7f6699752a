"""`fcos export --format web`: a folder for any static host, with a page that runs the model in the browser.

The page is the demo's, in which `web.js` replaces the requests to a server. The ONNX file runs in the npm
package onnxruntime-web (MIT, 11 MB), which is copied from a folder or downloaded with `npm pack`.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

from fcos.config.conventions import CONVENTIONS
from fcos.data.loader import PADDING_MULTIPLE
from fcos.demo.server import about_model
from fcos.detector import Detector
from fcos.errors import FcosError
from fcos.files import first_line_of, unpack

MODEL = "model.onnx"
PACKAGE = "onnxruntime-web"
VERSION = "1.22.0"
RUNTIME = ("dist/ort.wasm.min.js", "dist/ort-wasm-simd-threaded.mjs", "dist/ort-wasm-simd-threaded.wasm")
FILES = (*RUNTIME, "package.json", "README.md")  # the last two name version, author and license
RESIZE = ("antialiased", "pillow")  # identical up to rounding; `web.js` implements it
SCRIPT = '<script src="page.js" defer></script>'
MORE_SCRIPTS = '\n<script src="ort/ort.wasm.min.js" defer></script>\n<script src="web.js" defer></script>'
FOOTER = """<footer>
  <p>Images do not leave this browser. Page and model were loaded from <span id="address"></span>.</p>
</footer>"""


def check_web(detector: Detector) -> None:
    """Reject a model with tiles or another code base's resizing, which the page does not support."""
    if detector.has_views:
        raise FcosError(
            "the page predicts whole images, but this model predicts on tiles",
            where=str(detector.path),
            fix="use `fcos serve` or `fcos demo`, which support tiles",
        )
    conventions = CONVENTIONS[detector.config.rules]
    if conventions.resize not in RESIZE or conventions.size != "round":
        raise FcosError(
            f'the page does not support the resizing of this model ("rules": "{detector.config.rules}")',
            where=str(detector.path),
            fix="use --format onnx, and implement the preprocessing described in docs/export.md",
        )


@contextmanager
def runtime(given: Path | None) -> Iterator[Path]:
    """The folder of the npm package onnxruntime-web: the given one, or a temporary download."""
    with tempfile.TemporaryDirectory() as folder:
        package = given or _fetched(Path(folder))
        if missing := [name for name in FILES if not (package / name).is_file()]:
            raise FcosError(
                f"the folder is not the npm package {PACKAGE}: {missing[0]} is missing",
                where=str(package),
                fix=f"npm install {PACKAGE}@{VERSION}, then give --ort node_modules/{PACKAGE}",
            )
        yield package


def _fetched(folder: Path) -> Path:
    command = ["npm", "pack", "--silent", f"{PACKAGE}@{VERSION}"]
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", "") or first_line_of(error)
        raise FcosError(
            f"the page needs the npm package {PACKAGE}, and `{' '.join(command)}` failed: {reason.strip()}",
            fix=f"npm install {PACKAGE}@{VERSION} where npm works, then give --ort node_modules/{PACKAGE}",
        ) from error
    unpack(next(folder.glob("*.tgz")), folder)
    return folder / "package"


def add_page(folder: Path, detector: Detector, package: Path) -> None:
    """Write the page into the folder with `MODEL`; `package` is the npm package."""
    (folder / "ort").mkdir()
    for name in FILES:
        shutil.copy(package / name, folder / "ort")
    sources = files("fcos.demo")
    for name in ("page.css", "page.js", "web.js"):
        (folder / name).write_bytes(sources.joinpath(name).read_bytes())
    page = sources.joinpath("page.html").read_text(encoding="utf-8")
    page = page.replace(SCRIPT, SCRIPT + MORE_SCRIPTS)
    page = re.sub(r"<footer>.*</footer>", FOOTER, page, flags=re.DOTALL)
    (folder / "index.html").write_text(page, encoding="utf-8")
    config = detector.config
    resizing = {"short_side": config.short_side, "longest_side": config.view_size}
    about = about_model(detector, 0).model_dump() | resizing | {"multiple": PADDING_MULTIPLE}
    (folder / "about").write_text(json.dumps(about), encoding="utf-8")
