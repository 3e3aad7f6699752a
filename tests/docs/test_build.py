"""The site: what is generated, and that mistakes end the build."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import build
import pytest

from fcos.cli import COMMANDS
from fcos.config import TrainConfig


def test_links_between_files_become_links_between_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    readme, page = tmp_path / "README.md", tmp_path / "docs" / "data.md"
    readme.write_text("[data](docs/data.md#yolo) ![x](docs/x.jpg) [paper](https://arxiv.org/abs/1904.01355)")
    page.write_text("[results](../benchmarks/RESULTS.md) [below](#yolo) [home](../README.md)")

    assert (
        build.for_site(readme) == "[data](data.md#yolo) ![x](x.jpg) [paper](https://arxiv.org/abs/1904.01355)"
    )
    assert build.for_site(page) == "[results](results.md) [below](#yolo) [home](index.md)"
    page.write_text("[source](../src/fcos/detector.py)")
    with pytest.raises(SystemExit, match=r"docs/data.md: the link to ../src/fcos/detector.py leads out"):
        build.for_site(page)


def test_settings_page_has_every_setting_with_its_default() -> None:
    page = build.settings_page()
    for key, field in TrainConfig.model_fields.items():
        assert f"| `{key}` | `{build.show(field.default)}` |" in page
    assert "| `lr_base` | `0.001` | for AdamW with batch size 8 |" in page
    assert "runs/&lt;name of the config file&gt;" in page


@pytest.mark.parametrize("page", ["settings", "commands"])
def test_generated_pages_in_the_repository_are_up_to_date(docs: Path, page: str) -> None:
    generated = getattr(build, f"{page}_page")()
    words = [set(re.findall(r"[\w=-]+", text)) for text in (generated, (docs / f"{page}.md").read_text())]
    assert words[0] == words[1], "run python docs/build.py"  # click's versions break lines differently


def test_commands_page_has_every_command_with_its_examples() -> None:
    page = build.commands_page()
    assert page.count("  Examples:\n") == len(COMMANDS)
    assert "\x1b" not in page
    assert "\n## train\n\n```text\nUsage: fcos train [OPTIONS] TRAIN_JSON|FOLDER" in page


def test_a_page_outside_of_the_navigation_and_a_missing_image_end_the_build(tmp_path: Path) -> None:
    (tmp_path / "new.md").write_text("![x](figures/none.webp)")
    with pytest.raises(SystemExit) as stopped:
        build.check_navigation(tmp_path)
    lines = str(stopped.value).splitlines()
    assert "tutorial.md is in the navigation of mkdocs.yml and not a page" in lines
    assert "new.md is a page and not in the navigation of mkdocs.yml" in lines
    assert "new.md shows figures/none.webp, which does not exist" in lines


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[nowhere](nowhere.md)", "page does not exist"),
        ("[data](data.md#nowhere)", "anchor does not exist"),
        ("::: fcos.Detecter", "fcos.Detecter"),
        ("[data](data.md#yolo)", None),
    ],
)
def test_what_leads_nowhere_ends_the_build(
    tmp_path: Path, docs: Path, text: str, complaint: str | None
) -> None:
    shutil.copy(build.ROOT / "mkdocs.yml", tmp_path)
    (tmp_path / "src").symlink_to(build.ROOT / "src")
    pages = tmp_path / "build" / "docs"
    pages.mkdir(parents=True)
    shutil.copy(docs / "data.md", pages)
    (pages / "index.md").write_text(f"# Home\n\n{text}\n")

    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert (result.returncode == 0) == (complaint is None), result.stderr
    assert complaint is None or complaint in result.stderr
