"""What the words of the command line mean."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from fcos.data.image import read_image
from fcos.data.registry import recognize
from fcos.errors import DatasetError
from fcos.files import WRITTEN_FILE
from fcos.predict.images import plan
from fcos.predict.sources import Source, find_images, find_sources, is_address, read_source
from fcos.predict.video_reader import VideoReader


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """photos/a.jpg, photos/sub/b.png, photos/clip.MP4 (empty), photos/notes.txt; the working directory."""
    for name in ("a.jpg", "sub/b.png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), (10, 200, 30)).save(path)
    (tmp_path / "photos/clip.MP4").touch()
    (tmp_path / "photos/notes.txt").write_text("a.jpg\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def found(*words: str) -> list[tuple[str, str, str]]:
    return [
        (source.kind, source.where, str(source.name)) for source in find_sources(words, Path("predictions"))
    ]


def pipe(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))


def test_a_folder_holds_images_and_videos() -> None:
    assert found("photos") == [
        ("image", "photos/a.jpg", "a.jpg"),
        ("video", "photos/clip.MP4", "clip.MP4"),
        ("image", "photos/sub/b.png", "sub/b.png"),
    ]


def test_what_fcos_wrote_into_a_folder_is_not_a_source(here: Path) -> None:
    before = found("photos")
    drawn, run = here / "photos/earlier", here / "photos/runs/cats"
    for folder in (drawn, run):
        folder.mkdir(parents=True)
    shutil.copy(here / "photos/a.jpg", drawn)
    (drawn / WRITTEN_FILE).write_text(json.dumps(["a.jpg", (drawn / "a.jpg").stat().st_size]) + "\n")
    shutil.copy(here / "photos/sub/b.png", run / "curves.png")
    (run / "config.json").write_text('{"list_train": "cats.json"}')
    assert found("photos") == before
    with pytest.raises(DatasetError, match="files that fcos wrote are ignored"):
        found("photos/earlier")
    assert found("photos/earlier/a.jpg") == [("image", "photos/earlier/a.jpg", "a.jpg")]


@pytest.mark.parametrize("suffix", ["mpo", "tga", "dib", "j2k", "jp2", "apng"])
def test_a_folder_holds_images_of_rare_formats(suffix: str) -> None:
    written_as = {"mpo": "JPEG", "apng": "PNG"}.get(suffix)
    Image.new("RGB", (8, 6), (10, 200, 30)).save(f"photos/sub/c.{suffix}", format=written_as)

    assert ("image", f"photos/sub/c.{suffix}", f"sub/c.{suffix}") in found("photos")
    [image] = find_images([f"photos/*/*.{suffix}"], Path("predictions"))
    assert read_image(image)[:, 0, 0].tolist() == pytest.approx([10, 200, 30], abs=2)


@pytest.mark.parametrize("word", ["photos", "photos/**", "list.txt"])
def test_other_images_and_videos_of_a_folder_are_named_and_other_files_are_not(here: Path, word: str) -> None:
    others = ["photos/c.DNG", "photos/d.psd", "photos/sub/e.qt", "photos/sub/f.ico"]
    for name in [*others, "photos/g.json", "photos/.h.dng", "photos/i.tif.gz", "photos/j"]:
        (here / name).touch()
    (here / "photos/k.dng").mkdir()
    (here / "list.txt").write_text("photos\n")
    named: list[str] = []

    sources = find_sources([word], Path("predictions"), on_other=named.append)

    assert sorted(named) == others
    assert [source.where for source in sources] == ["photos/a.jpg", "photos/clip.MP4", "photos/sub/b.png"]


def test_a_folder_of_other_images_alone_is_an_error(here: Path) -> None:
    (here / "raw").mkdir()
    (here / "raw/a.dng").touch()

    with pytest.raises(DatasetError, match="the folder contains no images or videos"):
        find_sources(["raw"], Path("predictions"))


def test_a_folder_with_brackets_in_its_name_may_begin_a_pattern(here: Path) -> None:
    for name in ("scan [1]/a [2].jpg", "scan [1]/b2.jpg", "scan [1]/sub/c.jpg", "scan 1/d.jpg"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).touch()

    both = [("image", "scan [1]/a [2].jpg", "a [2].jpg"), ("image", "scan [1]/b2.jpg", "b2.jpg")]
    assert found("scan [1]/*.jpg") == both
    assert found(f"{here}/scan [1]/b[12].jpg") == [("image", f"{here}/scan [1]/b2.jpg", "b2.jpg")]
    assert found("scan [1]/**/c.jpg") == [("image", "scan [1]/sub/c.jpg", "sub/c.jpg")]
    assert found("scan [12]/*.jpg") == [("image", "scan 1/d.jpg", "scan 1/d.jpg")]
    assert found("scan [[]1]/b*") == [("image", "scan [1]/b2.jpg", "scan [1]/b2.jpg")]


def test_a_pattern_that_matches_nothing_says_what_brackets_mean() -> None:
    with pytest.raises(DatasetError, match=r"\[12\] the character 1 or 2, and \[\[\] a bracket \(supported"):
        find_sources(["photos [1]/*.jpg"], Path("predictions"))


def test_a_pattern_may_be_of_videos() -> None:
    assert found("photos/*.MP4") == [("video", "photos/clip.MP4", "clip.MP4")]


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ("image", "image"),
        (b"", "image"),  # reported as an empty image
        (bytes(range(256)), "video"),
    ],
)
def test_a_file_without_a_known_suffix_is_what_it_holds(here: Path, content: bytes | str, kind: str) -> None:
    data = (here / "photos/a.jpg").read_bytes() if isinstance(content, str) else content
    (here / "thing").write_bytes(data)

    assert found("thing") == [(kind, "thing", "thing")]


def test_a_text_file_lists_images_from_here_or_from_its_folder(here: Path) -> None:
    lines = [
        "# a comment",
        "",
        "photos/a.jpg",
        "sub/b.png",
        "https://example.org/c.jpg",
        "photos/missing.jpg",
    ]
    (here / "photos/list").write_text("\n".join(lines))

    assert found("photos/list") == [
        ("image", "photos/a.jpg", "a.jpg"),
        ("image", "photos/sub/b.png", "b.png"),
        ("image", "https://example.org/c.jpg", "c.jpg"),
        ("image", "photos/missing.jpg", "missing.jpg"),
    ]
    assert found("photos/notes.txt") == [("image", "photos/a.jpg", "a.jpg")]


def test_a_list_of_voc_names_images_without_their_suffix(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, lists = here / "voc/JPEGImages", here / "voc/ImageSets/Main"
    images.mkdir(parents=True)
    lists.mkdir(parents=True)
    (here / "photos/a.jpg").rename(images / "000012.jpg")
    (here / "photos/sub/b.png").rename(images / "x.y.png")
    (lists / "test.txt").write_text("x.y\n000012\n000013\n")
    expected = [
        ("image", str(images / "x.y.png"), "x.y.png"),
        ("image", str(images / "000012.jpg"), "000012.jpg"),
        ("image", "000013", "000013"),
    ]

    assert found("voc/ImageSets/Main/test.txt") == expected
    monkeypatch.chdir(lists)
    assert found("test.txt") == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "milk\neggs\n",
            r"none of the 2 files in the list exist\n  in: todo\.txt, first line 'milk'",
        ),
        ("\n# nothing\n", r"the list is empty\n  in: todo\.txt"),
    ],
)
def test_a_text_that_is_no_list_is_refused(here: Path, content: str, message: str) -> None:
    (here / "todo.txt").write_text(content)

    with pytest.raises(DatasetError, match=message):
        found("todo.txt")


def test_standard_input_may_be_an_image(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe(monkeypatch, (here / "photos/a.jpg").read_bytes())

    [source] = find_sources(["-"], Path("predictions"))
    assert (source.kind, source.where, source.name) == (
        "image",
        "standard input",
        Path("standard_input.jpg"),
    )
    assert source.path is None
    assert read_source(source).shape == (3, 6, 8)


def test_standard_input_may_be_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe(monkeypatch, b"photos/a.jpg\nphotos/sub\n")

    assert [where for _, where, _ in found("-")] == ["photos/a.jpg", "photos/sub/b.png"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "standard input is empty\n  fix: pipe an image"),
        (
            b"\0\1\2\3",
            "standard input is neither an image nor a list of paths\n  fix: to predict on a video, give",
        ),
        (b"milk", "none of the 1 files in the list exist\n  in: standard input"),
    ],
)
def test_other_things_from_standard_input_are_refused(
    monkeypatch: pytest.MonkeyPatch, content: bytes, message: str
) -> None:
    pipe(monkeypatch, content)

    with pytest.raises(DatasetError, match=message):
        found("-")


def test_a_number_is_a_camera_unless_there_is_such_a_file(here: Path) -> None:
    assert found("0") == [("camera", "0", "camera_0")]
    (here / "0").write_bytes((here / "photos/a.jpg").read_bytes())
    assert found("0") == [("image", "0", "0")]


@pytest.mark.parametrize(
    ("address", "kind", "name"),
    [
        ("https://example.org/a/street%20view.jpg?size=2#x", "image", "street view.jpg"),
        ("http://example.org", "image", "image"),
        ("http://example.org/..", "image", "image"),
        ("http://example.org/..%2F..%2Fetc%2Fpasswd", "image", "passwd"),
        ("http://example.org/..%5C..%5Cboot", "image", ".._.._boot"),
        ("HTTPS://example.org/clip.mp4", "video", "clip.mp4"),
    ],
)
def test_a_drawn_download_is_named_by_its_address_and_stays_below_the_output_folder(
    address: str, kind: str, name: str
) -> None:
    assert is_address(address)
    assert found(address) == [(kind, address.replace("2#x", "..."), name)]


def test_what_was_piped_is_refused_with_its_source_when_it_is_broken(here: Path) -> None:
    half = (here / "photos/a.jpg").read_bytes()[:300]

    with pytest.raises(DatasetError, match=r"image cannot be decoded.*\n  in: standard input"):
        read_source(Source("image", "standard input", Path("x.jpg"), half))


def test_pixels_of_a_piped_image_are_those_of_its_file(here: Path) -> None:
    path = here / "photos/a.jpg"
    piped = read_source(Source("image", "standard input", Path("x.jpg"), path.read_bytes()))

    assert np.array_equal(piped.numpy(), read_source(Source("image", str(path), Path("a.jpg"))).numpy())


def test_where_files_are_needed_nothing_else_is_taken(here: Path) -> None:
    assert find_images(["photos/*.jpg"], Path("out")) == [Path("photos/a.jpg")]
    with pytest.raises(DatasetError, match=r"only image files .*, but 'photos/clip\.MP4' is not one"):
        find_images(["photos"], Path("out"))


# What lies about in folders ------------------------------------------------------------------------------


def test_hidden_files_and_folders_are_no_sources(here: Path) -> None:
    for name in (".ipynb_checkpoints/a.jpg", "__MACOSX/a.jpg", "sub/.b.png"):
        path = here / "photos" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes((here / "photos/a.jpg").read_bytes())

    assert [where for _, where, _ in found("photos")] == [
        "photos/a.jpg",
        "photos/clip.MP4",
        "photos/sub/b.png",
    ]
    assert [where for _, where, _ in found("photos/**/*.jpg")] == ["photos/a.jpg"]
    assert [where for _, where, _ in found("photos/.ipynb_checkpoints")] == [
        "photos/.ipynb_checkpoints/a.jpg"
    ]


def test_what_is_no_file_is_a_source_that_cannot_be_read(here: Path) -> None:
    os.mkfifo(here / "photos/pipe.jpg")
    os.symlink("nowhere", here / "photos/dead.jpg")
    os.symlink("loop.jpg", here / "photos/loop.jpg")
    sources = {source.name.name: source for source in find_sources(["photos"], Path("out"))}

    assert len(plan(list(sources.values()), Path("out"))) == 6
    for name, message in (("pipe", "this is a pipe"), ("dead", "broken link"), ("loop", "broken link")):
        with pytest.raises(DatasetError, match=message):
            read_source(sources[f"{name}.jpg"])
    with pytest.raises(DatasetError, match="this is a pipe"):
        find_sources(["photos/pipe.jpg"], Path("out"))
    with pytest.raises(DatasetError, match="broken link"):
        find_sources(["photos/dead.jpg"], Path("out"))


def test_a_video_that_is_a_pipe_is_not_waited_for(here: Path) -> None:
    os.mkfifo(here / "clip.mp4")
    with pytest.raises(DatasetError, match="this is a pipe, not a file"):
        VideoReader("clip.mp4")


def test_a_list_may_be_utf_16_and_in_another_code_page_it_is_refused(here: Path) -> None:
    name = "photos/ünï.jpg"
    (here / name).write_bytes((here / "photos/a.jpg").read_bytes())
    (here / "list.txt").write_bytes(f"{name}\r\nphotos/a.jpg\r\n".encode("utf-16"))
    assert [where for _, where, _ in found("list.txt")] == [name, "photos/a.jpg"]

    (here / "list.txt").write_bytes(f"{name}\nphotos/a.jpg\n".encode("latin-1"))
    with pytest.raises(
        DatasetError, match=r"not a UTF-8 text file\n  in: list\.txt\n  fix: save it as UTF-8"
    ):
        found("list.txt")


def test_names_that_no_file_can_have_are_left_to_who_reads_them(here: Path) -> None:
    lines = ["photos/a.jpg", "~nobody-of-this-name/x.jpg", "a\0b.jpg", "x" * 5000]
    (here / "list.txt").write_text("\n".join(lines))
    sources = plan(find_sources(["list.txt"], Path("out")), Path("out"))
    assert [source.where for source in sources] == lines
    for source in sources[1:]:
        with pytest.raises(DatasetError):
            read_source(source)
    with pytest.raises(DatasetError, match="does not exist"):
        find_sources(["x" * 5000], Path("out"))


@pytest.mark.parametrize("address", ["http://[", "https://[::1/a.jpg", "http://h/" + "x" * 1000 + ".jpg"])
def test_an_address_is_a_source_whether_or_not_it_makes_sense(here: Path, address: str) -> None:
    [source] = find_sources([address], Path("out"))
    assert source.where == address
    assert len(source.name.name) <= 200


@pytest.mark.parametrize(
    "word", ["ftp://h/a.jpg", "s3://bucket/a.jpg", "srt://me:secret@h/live", "file:///a.jpg"]
)
def test_addresses_of_other_kinds_are_refused_by_name(word: str) -> None:
    with pytest.raises(DatasetError, match=f"{word.partition(':')[0]} URLs are not supported") as error:
        find_sources([word], Path("out"))
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("name", ["images.zip", "IMAGES.ZIP", "images.tar.gz", "images.7z"])
def test_an_archive_is_to_be_unpacked(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PK\x05\x06" + bytes(18))
    with pytest.raises(DatasetError, match=r"this is an archive(.|\n)*fix: unpack it"):
        find_sources([str(tmp_path / name)], Path("out"))
    with pytest.raises(DatasetError, match=r"this is an archive(.|\n)*fix: unpack it"):
        recognize(tmp_path / name)


@pytest.mark.parametrize("name", ["a.pdf", "a.svg", "a.docx"])
def test_a_document_is_no_list_and_no_video(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"%PDF-1.7\nno image\n")
    with pytest.raises(DatasetError, match="this is a document, not an image, a video or a list"):
        find_sources([str(tmp_path / name)], tmp_path / "out")


def test_a_list_may_have_folders_of_windows_and_names_that_begin_like_comments(here: Path) -> None:
    (here / "photos").mkdir(exist_ok=True)
    for name in ("photos/p.png", "#1.png"):
        Image.new("RGB", (8, 8)).save(here / name)
    (here / "list.txt").write_text("# a comment\nphotos\\p.png\n#1.png\n")
    assert [source.path for source in find_sources(["list.txt"], Path("out"))] == [
        Path("photos/p.png"),
        Path("#1.png"),
    ]
