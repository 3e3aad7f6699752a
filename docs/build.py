"""Build the documentation: `python docs/build.py`; the site is in build/site, for a browser, offline.

Two pages are generated from the code and kept beside the others, so that they can be read without a site:
`settings.md` from the config model, `commands.md` from each `--help`. All pages are then copied to
build/docs. (`docs/figures.py` redraws the figures.) A warning (a link that leads nowhere, a name of the API
that does not exist) ends the build.
"""

from __future__ import annotations

import html
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click

from fcos.cli import COMMANDS, main
from fcos.cli.config import show
from fcos.config import ALIASES, GROUPS, TrainConfig, expects, unit
from fcos.config.presets import ALL_PRESETS

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "docs"
BUILD = ROOT / "build"
OF_ELSEWHERE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/RESULTS.md": "results.md",
}
SETTINGS_INTRODUCTION = """\
One flat JSON object; every key has a default. Relative paths of data and weights are resolved against the
folder of the file, then the working directory; `run_folder` always against the working directory. `key=value`
on the command line overrides the file, the file overrides the preset (`model`), and the preset overrides the
default. `fcos config train.json` prints the values that training would use and where each comes from. An
unknown key is rejected with a suggestion of the closest match.
"""
LINK = re.compile(r"(?<=\]\()(?!https?://|#|mailto:)([^)\s#]+)")


def build(site: Path = BUILD / "site", pages: Path = BUILD / "docs") -> None:
    """Make all pages and the site of them.

    Raises:
        SystemExit: with what is wrong.
    """
    shutil.rmtree(pages, ignore_errors=True)
    shutil.rmtree(site, ignore_errors=True)
    write_pages(pages)
    check_navigation(pages)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    result = subprocess.run(command, cwd=ROOT, env={**os.environ, "NO_COLOR": "1"}, check=False)
    if result.returncode:
        raise SystemExit("the documentation has errors, see above")
    print(f"documentation: {site / 'index.html'}; with search: python -m http.server -d {site}")


def write_pages(pages: Path) -> None:
    """Sources with their links turned to the site, and what is generated."""
    write_generated()
    pages.mkdir(parents=True)
    for file in SOURCE.glob("*.md"):
        (pages / file.name).write_text(for_site(file), encoding="utf-8")
    for name, page in OF_ELSEWHERE.items():
        (pages / page).write_text(for_site(ROOT / name), encoding="utf-8")
    for picture in (*SOURCE.glob("*.jpg"), *SOURCE.glob("*.css")):
        shutil.copy(picture, pages)
    shutil.copytree(SOURCE / "figures", pages / "figures")


def write_generated() -> None:
    """Pages of the repository that the code writes."""
    (SOURCE / "settings.md").write_text(settings_page(), encoding="utf-8")
    (SOURCE / "commands.md").write_text(commands_page(), encoding="utf-8")


def for_site(file: Path) -> str:
    """A page of the repository, whose links lead to files, as a page of the site, where all lie side by side.

    Raises:
        SystemExit: a link to something that the site does not hold.
    """

    def turned(match: re.Match[str]) -> str:
        path = os.path.relpath(file.parent / match[1], ROOT)
        if path in OF_ELSEWHERE:
            return OF_ELSEWHERE[path]
        if path.startswith("docs/"):
            return path.removeprefix("docs/")
        raise SystemExit(f"{file.relative_to(ROOT)}: the link to {match[1]} leads out of the documentation")

    return LINK.sub(turned, file.read_text(encoding="utf-8"))


def check_navigation(pages: Path) -> None:
    """Every page is in the navigation, every entry is a page, and every picture is there."""
    listed = set(re.findall(r"[\w-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    there = {file.name for file in pages.glob("*.md")}
    wrong = [f"{name} is in the navigation of mkdocs.yml and not a page" for name in sorted(listed - there)]
    wrong += [f"{name} is a page and not in the navigation of mkdocs.yml" for name in sorted(there - listed)]
    for file in sorted(pages.glob("*.md")):
        for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", file.read_text(encoding="utf-8")):
            if not (pages / picture).is_file():
                wrong.append(f"{file.name} shows {picture}, which does not exist")
    if wrong:
        raise SystemExit("\n".join(wrong))


def settings_page() -> str:
    """The reference of train.json, from the config model."""
    aliases = (f"`{other}` is another spelling of `{key}`." for other, key in ALIASES.items())
    lines = ["# Settings: train.json", "", SETTINGS_INTRODUCTION, *aliases]
    for key, field in TrainConfig.model_fields.items():
        if key in GROUPS:
            lines += ["", f"## {GROUPS[key]}", "", "| key | default | takes | meaning |", "|---|---|---|---|"]
        takes = expects(key) + (f", {unit(key)}" if unit(key) else "")
        meaning = html.escape(field.description or "", quote=False)
        lines.append(f"| `{key}` | `{show(field.default)}` | {takes} | {meaning} |")
    lines += ["", "## Presets", "", "What `model` changes, and why. Your own values take precedence."]
    for name, preset in ALL_PRESETS.items():
        lines += ["", f"### {name}", "", preset.summary, ""]
        if preset.changes:
            lines += ["| key | value | reason |", "|---|---|---|"]
        lines += [
            f"| `{key}` | `{show(change.value)}` | {change.reason} |"
            for key, change in preset.changes.items()
        ]
    return "\n".join(lines) + "\n"


def commands_page() -> str:
    """Every command's `--help`."""
    lines = [
        "# Commands",
        "",
        "The output of `fcos COMMAND --help`. See also [In the terminal](terminal.md).",
    ]
    parent = main.context_class(main, info_name="fcos", terminal_width=82, **main.context_settings)
    for name in COMMANDS:
        command = main.get_command(parent, name)
        assert command is not None
        context = command.context_class(command, info_name=name, parent=parent)
        text = click.unstyle(command.get_help(context))
        lines += ["", f"## {name}", "", "```text", text, "```"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    build()
