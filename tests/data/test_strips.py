"""Reading a large image strip by strip; `LARGE` is set to 0, so that small ones count as large."""

from __future__ import annotations

import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from torch import Tensor

from fcos.data import strips
from fcos.data.image import read_image
from fcos.data.strips import LargeImage, open_image, read_large_header
from fcos.errors import DatasetError, FcosError

SIZE = (91, 300)  # width, height: more than two pieces of 128 rows


@pytest.fixture(autouse=True)
def _all_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strips, "LARGE", 0)


def image_of(mode: str, size: tuple[int, int] = SIZE) -> Image.Image:
    """Smooth colors with noise, so that PNG's encoder chooses each of its filters somewhere."""
    random = np.random.default_rng(0)
    width, height = size
    y, x = np.mgrid[:height, :width]
    channels = [x * 2 + y, 255 - y // 2, x * y // 50, 128 + x // 2]
    pixels = np.stack(channels, axis=2) + random.integers(0, 1 + y[..., None] % 40)
    return Image.fromarray((pixels % 256).astype(np.uint8), "RGBA").convert(mode)


def in_strips(path: Path, tops: list[int], num_rows: int) -> list[Tensor]:
    image = open_image(path)
    assert isinstance(image, LargeImage)
    assert image.size_hw == (SIZE[1], SIZE[0])
    return list(image.strips(tops, num_rows))


def assert_read_in_strips(path: Path) -> None:
    """Strips of any height, with and without overlap, are the rows that the whole image has there."""
    whole = read_image(path)
    for tops, num_rows in (
        ([0, 70, 140, 210, 250], 50 + 40),
        ([0, 100, 200], 100),
        ([0], 300),
        ([0, 17], 40),
    ):
        kept = [top for top in tops if top + num_rows <= SIZE[1]]
        for top, strip in zip(kept, in_strips(path, kept, num_rows), strict=True):
            assert torch.equal(strip, whole[:, top : top + num_rows])


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA"])
def test_a_png_in_strips_has_the_pixels_of_the_whole(mode: str, tmp_path: Path) -> None:
    image_of(mode).save(tmp_path / "a.png")
    assert_read_in_strips(tmp_path / "a.png")


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_every_filter_of_png_is_undone(mode: str, tmp_path: Path) -> None:
    """Rows are stored with filters 0, 1, 2, 3, 4, 0, ...: the first one of a piece with each of them once."""
    pixels = np.asarray(image_of(mode)).reshape(SIZE[1], SIZE[0], -1).astype(int)
    above, left, corner = (np.zeros_like(pixels) for _ in range(3))
    above[1:], left[:, 1:], corner[1:, 1:] = pixels[:-1], pixels[:, :-1], pixels[:-1, :-1]
    estimate = left + above - corner
    distances = np.stack([abs(estimate - near) for near in (left, above, corner)])
    paeth = np.choose(distances.argmin(axis=0), [left, above, corner])
    guesses = [0 * pixels, left, above, (left + above) // 2, paeth]
    rows = b""
    for row in range(SIZE[1]):
        kind = row % 5
        rows += bytes([kind]) + ((pixels - guesses[kind])[row] % 256).astype(np.uint8).tobytes()
    color = {"L": 0, "RGB": 2, "RGBA": 6}[mode]
    (tmp_path / "a.png").write_bytes(png(*SIZE, color, zlib.compress(rows)))
    with Image.open(tmp_path / "a.png") as image:
        assert np.array_equal(np.asarray(image), np.asarray(image_of(mode)))
    assert_read_in_strips(tmp_path / "a.png")


def png(width: int, height: int, color: int, compressed: bytes) -> bytes:
    """A PNG file."""
    header = struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, 0)
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, data in ((b"IHDR", header), (b"IDAT", compressed), (b"IEND", b"")):
        parts += [struct.pack(">I", len(data)), kind, data, struct.pack(">I", zlib.crc32(kind + data))]
    return b"".join(parts)


def test_a_palette_with_a_transparent_color_is_read(tmp_path: Path) -> None:
    image_of("P").save(tmp_path / "a.png", transparency=3)
    assert_read_in_strips(tmp_path / "a.png")


def write_tiff(path: Path, tile: tuple[int, int] | None, compression: int, rows_per_strip: int = 16) -> None:
    """A TIFF of deflated or raw tiles (width, height) or strips, written by hand: Pillow writes no tiles."""
    pixels = np.asarray(image_of("RGB"))
    width, height = tile or (SIZE[0], rows_per_strip)
    parts = []
    for top in range(0, SIZE[1], height):
        for left in range(0, SIZE[0], width):
            part = pixels[top : top + height, left : left + width]
            if tile:  # those at the right and the bottom are filled up
                part = np.pad(part, ((0, height - part.shape[0]), (0, width - part.shape[1]), (0, 0)))
            parts.append(zlib.compress(part.tobytes()) if compression == 8 else part.tobytes())
    tags: dict[int, Any] = {256: SIZE[0], 257: SIZE[1], 258: [8, 8, 8], 259: compression, 262: 2, 277: 3}
    tags |= {322: width, 323: height} if tile else {278: height}
    offsets, num_bytes = (324, 325) if tile else (273, 279)
    tags[num_bytes] = sizes = [len(part) for part in parts]
    data, begin = b"".join(parts), 8  # the pixels come first, then the tags
    tags[offsets] = [begin + sum(sizes[:place]) for place in range(len(parts))]
    directory, values = struct.pack("<H", len(tags)), b""
    begin_of_values = begin + len(data) + 2 + 12 * len(tags) + 4
    for tag, value in sorted(tags.items()):
        numbers = np.atleast_1d(value).astype("<u4").tobytes()
        directory += struct.pack("<HHI", tag, 4, len(numbers) // 4)
        if len(numbers) == 4:
            directory += numbers
        else:
            directory += struct.pack("<I", begin_of_values + len(values))
            values += numbers
    path.write_bytes(b"II*\0" + struct.pack("<I", begin + len(data)) + data + directory + bytes(4) + values)


@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize("tile", [(32, 48), (96, 16), None])
def test_a_tiff_of_tiles_or_strips_has_the_pixels_of_the_whole(
    tile: tuple[int, int] | None, compression: int, tmp_path: Path
) -> None:
    write_tiff(tmp_path / "a.tif", tile, compression)
    assert torch.equal(
        read_image(tmp_path / "a.tif"), torch.from_numpy(np.array(image_of("RGB"))).permute(2, 0, 1)
    )
    assert_read_in_strips(tmp_path / "a.tif")


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_the_strips_that_pillow_writes_are_read(mode: str, compression: str, tmp_path: Path) -> None:
    image_of(mode).save(tmp_path / "a.tif", compression=compression, strip_size=4096)
    assert_read_in_strips(tmp_path / "a.tif")


def test_strips_of_jpeg_and_the_predictor_of_deflate_are_read(tmp_path: Path) -> None:
    image_of("RGB").save(tmp_path / "a.tif", compression="jpeg", strip_size=8192, quality=90)
    assert_read_in_strips(tmp_path / "a.tif")
    image_of("RGB").save(tmp_path / "b.tif", compression="tiff_lzw", strip_size=8192, tiffinfo={317: 2})
    assert_read_in_strips(tmp_path / "b.tif")


def test_a_tiff_of_one_strip_or_of_a_plane_for_each_color_is_read(tmp_path: Path) -> None:
    image_of("RGB").save(tmp_path / "a.tif", compression="tiff_lzw", strip_size=10**6)
    assert_read_in_strips(tmp_path / "a.tif")
    planes = np.moveaxis(np.asarray(image_of("RGB")), 2, 0)
    options = {"driver": "GTiff", "width": SIZE[0], "height": SIZE[1], "count": 3, "dtype": "uint8"}
    transform = rasterio.Affine(0.5, 0, 400_000, 0, -0.5, 5_800_000)
    with rasterio.open(tmp_path / "b.tif", "w", **options, interleave="band", transform=transform) as file:
        file.write(planes)
    whole = torch.from_numpy(planes.copy())
    assert torch.equal(torch.cat(in_strips(tmp_path / "b.tif", [0, 100, 200], 100), dim=1), whole)


def test_without_rasterio_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image_of("RGB").save(tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(FcosError, match=r"strip by strip needs rasterio(.|\n)*fcos-torch\[large\]"):
        in_strips(tmp_path / "a.png", [0], 300)


def test_other_threads_do_not_change_which_warnings_are_ignored_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GDAL warns of every image without map coordinates, which is an error where warnings are."""
    path = tmp_path / "a.png"
    image_of("RGB").save(path)
    as_usual, others = rasterio.open, []

    def with_another_thread(*args: Any, **options: Any) -> Any:
        other = threading.Thread(target=read_image, args=(path,))
        other.start()
        other.join(0.2)
        others.append((other, other.is_alive()))
        return as_usual(*args, **options)

    monkeypatch.setattr(rasterio, "open", with_another_thread)
    assert read_large_header(path, decode=True).size_hw == (SIZE[1], SIZE[0])
    [(other, waited)] = others
    other.join()
    assert waited


def test_what_cannot_be_read_in_strips_is_read_as_a_whole(tmp_path: Path) -> None:
    image_of("RGB").save(tmp_path / "a.jpg")
    Image.fromarray(np.arange(27300, dtype=np.uint16).reshape(300, 91)).save(tmp_path / "deep.png")
    image_of("1").save(tmp_path / "bits.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    image_of("RGB").save(tmp_path / "turned.tif", exif=turned)
    for path in tmp_path.iterdir():
        image = open_image(path)
        assert isinstance(image, Tensor), path.name
        assert torch.equal(image, read_image(path))


def test_small_images_are_read_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image_of("RGB").save(tmp_path / "a.png")
    monkeypatch.setattr(strips, "LARGE", SIZE[0] * SIZE[1] + 1)
    assert isinstance(open_image(tmp_path / "a.png"), Tensor)
    monkeypatch.setattr(strips, "LARGE", SIZE[0] * SIZE[1])
    assert isinstance(open_image(tmp_path / "a.png"), LargeImage)


@pytest.mark.parametrize("share", [0.3, 0.7, 0.98])
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_a_file_that_was_cut_off_is_an_error_with_its_path(name: str, share: float, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "a.png":
        image_of("RGB").save(path)
    else:  # its tags come first, as other programs write them
        image_of("RGB").save(tmp_path / "b.tif", compression="tiff_adobe_deflate", strip_size=4096)
        with Image.open(tmp_path / "b.tif") as image:
            image.save(path, compression="tiff_adobe_deflate", strip_size=4096)
    content = path.read_bytes()
    image = open_image(path)
    assert isinstance(image, LargeImage)
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DatasetError, match=name):
        list(image.strips(list(range(0, 300, 30)), 30))


def test_a_file_that_is_missing_or_no_image_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="image not found"):
        open_image(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(DatasetError, match="not an image"):
        open_image(tmp_path / "b.png")


def test_an_image_that_pillow_calls_a_bomb_is_read_in_strips_and_only_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_of("RGB").save(tmp_path / "a.png")
    image_of("RGB").save(tmp_path / "a.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 130 * SIZE[0] // 2 + 1)  # a piece is allowed
    assert len(in_strips(tmp_path / "a.png", [0, 150], 150)) == 2
    assert Image.MAX_IMAGE_PIXELS == 130 * SIZE[0] // 2 + 1
    with pytest.raises(DatasetError, match=r"too many pixels(.|\n)*--tile 640"):
        open_image(tmp_path / "a.jpg")


def test_a_png_of_one_color_does_not_fill_the_memory(tmp_path: Path) -> None:
    """A few kilobytes stand for 180 MB here, of which less than half is in memory at once."""
    code = """
import resource, sys, zlib
from pathlib import Path
import torch
from fcos.data.strips import open_image, LargeImage
image = open_image(Path(sys.argv[1]))
assert isinstance(image, LargeImage)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
sums = [int(strip.sum()) for strip in image.strips(range(0, 6000, 500), 500)]
assert sums == [500 * 10000 * 7 * 3] * 12
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    path = tmp_path / "flat.png"
    squeeze, compressed = zlib.compressobj(), b""
    for _ in range(6000):
        compressed += squeeze.compress(b"\0" + bytes([7]) * 30_000)
    path.write_bytes(png(10_000, 6_000, 2, compressed + squeeze.flush()))
    assert path.stat().st_size < 250_000
    result = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert int(result.stdout) < 90


def test_the_header_of_a_large_file_is_read_without_its_pixels_or_with_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_of("RGB").save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 130 * SIZE[0] // 2 + 1)  # a piece is allowed
    for decode in (False, True):
        assert read_large_header(tmp_path / "a.png", decode=decode).size_hw == (SIZE[1], SIZE[0])
    assert read_large_header(tmp_path / "cut.png").size_hw == (SIZE[1], SIZE[0])
    with pytest.raises(DatasetError, match=r"cut\.png"):
        read_large_header(tmp_path / "cut.png", decode=True)


def test_other_headers_are_read_as_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcos.data.strips.LARGE", 10**9)
    turned = Image.new("RGB", (40, 30))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert read_large_header(tmp_path / "turned.jpg", decode=True) == ((30, 40), 6)
