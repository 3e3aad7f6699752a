"""Resolve the arguments of `fcos predict`: images, folders, patterns, videos, cameras, URLs, lists."""

from __future__ import annotations

import codecs
import glob
import io
import mimetypes
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Literal
from urllib.parse import unquote, urlsplit

from PIL import Image
from torch import Tensor

from fcos.data.image import decode_image, read_image
from fcos.data.image_files import ARCHIVE_SUFFIXES, DOCUMENT_SUFFIXES, IMAGE_SUFFIXES, is_image, slashed
from fcos.errors import DatasetError
from fcos.files import check_regular, data_below, is_hidden, read_bytes
from fcos.predict.download import download, without_secrets

VIDEO_SUFFIXES = frozenset(".mp4 .m4v .mov .mkv .webm .avi .mpg .mpeg .wmv .flv .3gp .ogv .mts .m2ts".split())
# Unsupported images and videos, skipped in folders: these, and all others in Python's table of MIME types.
OTHER_SUFFIXES = frozenset(
    ".dng .cr2 .cr3 .nef .arw .orf .raf .rw2 .psd .xcf .jxl .exr .hdr .vob .m2v .mxf .asf .f4v .rm".split()
)
_TYPES = mimetypes.MimeTypes()  # a new object, without this machine's own types
STREAM_SUFFIXES = frozenset({".m3u8", ".mjpg", ".mjpeg", ".sdp"})  # of addresses
LIST_SUFFIXES = frozenset({".txt", ".lst", ".list"})
STANDARD_INPUT = "-"
MAX_NAME = 200  # characters of a name from an address
NUM_BYTES_TO_KNOW = 4096  # read to detect the type of a file without a known suffix


@dataclass(frozen=True)
class Source:
    """One image, video, live stream or camera.

    Attributes:
        kind: "other" is an unsupported image or video in a folder, which `find_sources` skips.
        where: path, address (`without_secrets`), or number of the camera.
        name: of its drawn copy, relative to the output folder.
        content: the bytes of the image file, if it came through standard input.
        address: the full address, including secrets, if it is one.
    """

    kind: Literal["image", "video", "stream", "camera", "other"]
    where: str
    name: Path
    content: bytes | None = None
    address: str = field(default="", repr=False)

    @property
    def path(self) -> Path | None:
        """The file, if it is one."""
        no_file = self.kind in ("camera", "stream") or self.content or is_address(self.where)
        return None if no_file else Path(self.where)


def read_source(source: Source) -> Tensor:
    """RGB uint8 pixels `(3, height, width)`, upright.

    Raises:
        DatasetError: it cannot be downloaded or decoded.
    """
    if source.content is not None:
        return decode_image(source.content, source.where)
    if is_address(source.where):
        return decode_image(download(source.address or source.where), source.where)
    return read_image(Path(source.where))


def is_address(word: str) -> bool:
    """Whether a word is a URL."""
    return word.lower().startswith(("http://", "https://"))


def is_source(word: str) -> bool:
    """Whether a word looks like a source: an address, camera, folder, pattern, or image or video name."""
    known = word == STANDARD_INPUT or is_address(word) or word.isdecimal() or glob.has_magic(word)
    return known or os.path.isdir(word) or is_image(word) or _is_video(Path(word))


def find_sources(
    words: Iterable[str],
    out: Path,
    *,
    streams: bool = False,
    on_other: Callable[[str], None] = lambda path: None,
) -> list[Source]:
    """The sources that the arguments refer to, without duplicates.

    Args:
        out: the output folder: images that an earlier call drew there are not sources.
        streams: every address is a live stream.
        on_other: called with the path of each image or video in a folder that has an unsupported suffix.

    Raises:
        DatasetError: an argument matches nothing.
    """
    found: dict[tuple[str, str], Source] = {}
    for word in words:
        for source in _expand(word, real_path(out)):
            if source.kind == "other":
                on_other(source.where)
                continue
            if streams and source.address:
                source = replace(source, kind="stream")
            found.setdefault((source.kind, source.address or source.where), source)
    return list(found.values())


def find_images(words: Iterable[str], out: Path) -> list[Path]:
    """`find_sources`, but only image files.

    Raises:
        DatasetError: an argument matches nothing, or something other than image files.
    """
    sources = find_sources(words, out)
    paths = [source.path for source in sources if source.kind == "image" and source.path is not None]
    if len(paths) < len(sources):
        other = next(source for source in sources if source.kind != "image" or source.path is None)
        raise DatasetError(f"only image files can be used here, but {other.where!r} is not one")
    return paths


def _expand(word: str, out: Path) -> Iterator[Source]:
    path = Path(os.path.expanduser(word))
    if word == STANDARD_INPUT:
        yield from _from_standard_input(sys.stdin.buffer.read(), out)
    elif is_address(word):
        yield _at_address(word)
    elif os.path.isfile(path):
        yield from _of_file(path, out)
    elif os.path.isdir(path):
        yield from _found(path, path, sorted(data_below(path)), out)
    elif os.path.lexists(path):
        check_regular(path)
    elif re.match(r"(rtsps?|rtmps?)://", word, re.IGNORECASE):
        yield replace(_at_address(word), kind="stream")
    elif re.match(r"[a-z][a-z0-9+.-]+://", word, re.IGNORECASE):
        raise DatasetError(
            f"{word.partition(':')[0]} URLs are not supported, only http, https, rtsp and rtmp",
            where=without_secrets(word),
            fix="download it yourself and give the file",
        )
    elif word.isdecimal():
        yield Source("camera", str(int(word)), Path(f"camera_{int(word)}"))
    else:
        folder = _fixed_folder(path)
        pattern = Path(glob.escape(str(folder))) / path.relative_to(folder)
        matches = (Path(match) for match in sorted(glob.glob(str(pattern), recursive=True)))
        yield from _found(path, folder, matches, out)


def _found(word: Path, folder: Path, candidates: Iterable[Path], out: Path) -> Iterator[Source]:
    """Images and videos of a folder or pattern, by their suffixes, named by their path below `folder`."""
    # Images drawn by an earlier call into a folder inside the source are not sources.
    drawn = out if real_path(folder) in out.parents else None
    nothing = True
    for path in candidates:
        name = path.relative_to(folder)
        is_read = _is_video(path) or is_image(path)
        if not (is_read or _is_other(path)) or any(map(is_hidden, name.parts)) or path.is_dir():
            continue
        if drawn and drawn in real_path(path).parents:
            continue
        # A pipe or a broken link is a source too: reading it reports what is wrong.
        yield _by_suffix(path, name) if is_read else Source("other", str(path), name)
        nothing = nothing and not is_read
    if nothing:
        raise _nothing_found(word)


def _of_file(path: Path, out: Path) -> Iterator[Source]:
    """A file that was named explicitly, with any suffix."""
    suffix = path.suffix.lower()
    if suffix in VIDEO_SUFFIXES | IMAGE_SUFFIXES:
        yield _by_suffix(path, Path(path.name))
    elif suffix in ARCHIVE_SUFFIXES:
        raise DatasetError("this is an archive", where=str(path), fix="unpack it, and give the folder")
    elif suffix in DOCUMENT_SUFFIXES:
        raise DatasetError(
            "this is a document, not an image, a video or a list of paths",
            where=str(path),
            fix=f"export its pages as images ({', '.join(sorted(IMAGE_SUFFIXES))})",
        )
    elif suffix in LIST_SUFFIXES:
        yield from _of_list(read_bytes(path), str(path), path.parent, out)
    else:
        with path.open("rb") as file:
            head = file.read(NUM_BYTES_TO_KNOW)
        if _image_format(path) or not head:
            yield Source("image", str(path), Path(path.name))
        elif _is_text(head):
            yield from _of_list(read_bytes(path), str(path), path.parent, out)
        else:
            yield Source("video", str(path), Path(path.name))


def _from_standard_input(content: bytes, out: Path) -> Iterator[Source]:
    """An image file, or else a list of paths."""
    if not content:
        raise DatasetError(
            "standard input is empty",
            fix="pipe an image into the command, or a list of paths: find photos -name '*.jpg' | fcos "
            "predict MODEL -",
        )
    if kind := _image_format(io.BytesIO(content)):
        suffix = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif"}.get(kind, f".{kind.lower()}")
        yield Source("image", "standard input", Path(f"standard_input{suffix}"), content)
    elif _is_text(content[:NUM_BYTES_TO_KNOW]):
        yield from _of_list(content, "standard input", Path(), out)
    else:
        raise DatasetError(
            "standard input is neither an image nor a list of paths",
            fix="to predict on a video, give its path: videos cannot be piped",
        )


def _of_list(content: bytes, where: str, folder: Path, out: Path) -> Iterator[Source]:
    """One path or URL per line; paths are relative to the working directory, or else to the list's folder.

    In a VOC list, a line is the name of an image without its suffix. A missing file counts as an image that
    cannot be read: the others are processed.
    """
    of_voc = _voc_images(folder)
    lines = [line.strip() for line in _decoded(content, where).split("\n")]
    lines = [line for line in lines if line and not (line.startswith("#") and not _exists(folder / line))]
    found = []
    for line in lines:
        path = of_voc.get(line) or Path(os.path.expanduser(line))
        as_on_windows = slashed(line)
        others = folder / path, Path(as_on_windows), folder / as_on_windows
        path = path if _exists(path) else next(filter(_exists, others), path)
        if is_address(line):
            found.append(_at_address(line))
        elif os.path.isdir(path):
            found += _expand(str(path), out)
        else:
            found.append(_by_suffix(path, Path(path.name)))
    not_there = [source for source in found if source.path is not None and not _exists(source.path)]
    # Names that are not Unicode contain lone surrogates.
    if any(re.search("[\ud800-\udfff]", source.where) for source in not_there):
        raise DatasetError("not a UTF-8 text file", where=where, fix="save it as UTF-8")
    if len(not_there) == len(found):
        raise DatasetError(
            f"none of the {len(found)} files in the list exist" if found else "the list is empty",
            where=where + (f", first line {lines[0]!r}" if lines else ""),
            fix="write one path or URL per line; paths are relative to the working directory, or else to the "
            "folder of the list",
        )
    yield from found


def _voc_images(folder: Path) -> dict[str, Path]:
    """The images of `JPEGImages` by name without suffix, as in lists in this folder (`ImageSets/Main`)."""
    sets = folder.absolute().parent
    images = sets.parent / "JPEGImages"
    if sets.name != "ImageSets" or not images.is_dir():
        return {}
    return {path.stem: path for path in images.iterdir() if is_image(path)}


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


def _is_other(path: Path) -> bool:
    """Whether the suffix belongs to an image or video, although `is_image` and `_is_video` are false."""
    kind, encoding = _TYPES.guess_type(path.name)
    is_media = not encoding and (kind or "").startswith(("image/", "video/"))
    return is_media or path.suffix.lower() in OTHER_SUFFIXES


def _by_suffix(path: Path, name: Path) -> Source:
    return Source("video" if _is_video(path) else "image", str(path), name)


def _at_address(address: str) -> Source:
    """The image or video at a URL, named after the end of its path."""
    try:
        name = PurePosixPath(unquote(urlsplit(address).path)).name
    except ValueError:  # malformed, which the download reports
        name = ""
    name = re.sub(r"[\\\x00-\x1f\x7f]", "_", name)[-MAX_NAME:]
    if name in ("", ".", ".."):
        name = "image"
    source = _by_suffix(Path(name), Path(name))
    kind = "stream" if Path(name).suffix.lower() in STREAM_SUFFIXES else source.kind
    return replace(source, kind=kind, where=without_secrets(address), address=address)


def _decoded(content: bytes, where: str) -> str:
    """The text of a list: UTF-8, or UTF-16 as PowerShell writes it; undecodable bytes of names are kept."""
    try:
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return content.decode("utf-16")
        return content.decode("utf-8-sig", "surrogateescape")
    except UnicodeDecodeError as error:
        raise DatasetError("not a UTF-8 text file", where=where, fix="save it as UTF-8") from error


def real_path(path: Path) -> Path:
    """The target of links, as far as they resolve; unlike `Path.resolve`, works for any name."""
    try:
        return Path(os.path.realpath(path))
    except ValueError:  # a zero byte
        return path


def _exists(path: Path) -> bool:
    """Whether anything exists at this path, which may be an invalid file name."""
    try:
        return os.path.lexists(path)
    except ValueError:
        return False


def _image_format(file: Path | io.BytesIO) -> str:
    """Pillow's name for the format of an image file, by its first bytes; "" if it is not an image."""
    try:
        with Image.open(file) as image:
            return image.format or ""
    except Exception:  # Pillow's readers raise nearly any kind of error
        return ""


def _is_text(head: bytes) -> bool:
    """Whether the beginning of a file is text; names that are not Unicode count as text."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return True
    return not any(byte < 32 and byte not in b"\t\n\r\f" for byte in head)


def _fixed_folder(pattern: Path) -> Path:
    """The part of a pattern before its first wildcard: "photos/**/*.png" -> "photos".

    A folder that exists literally is not a wildcard: "scan [1]/*.png" -> "scan [1]".
    """
    folder = Path()
    for part in pattern.parts[:-1]:
        if glob.has_magic(part) and not _exists(folder / part):
            break
        folder /= part
    return folder


def _nothing_found(path: Path) -> DatasetError:
    suffixes = ", ".join(sorted(IMAGE_SUFFIXES | VIDEO_SUFFIXES))
    if os.path.isdir(path):
        return DatasetError(
            "the folder contains no images or videos",
            where=str(path.absolute()),
            fix=f"give another folder, or a file (subfolders are included; supported: {suffixes}; files that "
            "fcos wrote are ignored)",
        )
    if glob.has_magic(str(path)):
        return DatasetError(
            f"no images or videos match the pattern {str(path)!r}",
            where=str(_fixed_folder(path).absolute()),
            fix="correct the pattern: * matches any name, ** any folders, [12] the character 1 or 2, and [[] "
            f"a bracket (supported: {suffixes})",
        )
    return DatasetError(
        f"{str(path)!r} does not exist",
        where=str(path.absolute()),
        fix="give an image, a video, a folder, a pattern, a list of paths, a URL, a camera "
        "number, or - for standard input",
    )
