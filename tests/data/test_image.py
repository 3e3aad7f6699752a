from __future__ import annotations

import io
import os
import struct
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from fcos.data import image as image_module
from fcos.data.annotations import Record
from fcos.data.batch import read_sample
from fcos.data.image import (
    PHOTOMETRIC,
    WHITE_IS_ZERO,
    read_header,
    read_image,
    read_reduced,
    reduction_for,
    to_pixels,
    upright,
)
from fcos.demo import body
from fcos.errors import DatasetError

ORIENTATION = 0x0112


@pytest.fixture
def gradient():
    """A gray image, 256 x 4, that grows brighter to the right."""
    return np.tile(np.arange(256, dtype=np.uint8), (4, 1))


def save(tmp_path, image, name="a.png", **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


def test_pixels_are_uint8_rgb_side_by_side_in_memory(tmp_path):
    path = save(tmp_path, Image.new("RGB", (5, 3), (10, 20, 30)))

    image = read_image(path)

    assert (image.dtype, tuple(image.shape), image.stride()) == (torch.uint8, (3, 3, 5), (1, 15, 3))
    assert image[:, 0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize("mode", ["L", "P", "LA", "RGBA", "1", "CMYK", "YCbCr"])
def test_every_mode_becomes_rgb_with_its_colors(tmp_path, mode):
    name = "a.jpg" if mode in ("CMYK", "YCbCr") else "a.png"
    path = save(tmp_path, Image.new("RGB", (8, 8), (255, 255, 255)).convert(mode), name)

    assert read_image(path).min() >= 253


def test_a_transparent_palette_is_read_without_a_warning(tmp_path):
    palette = Image.new("RGB", (4, 4), (200, 0, 0)).convert("P")
    path = save(tmp_path, palette, transparency=bytes([0] * 256))

    assert read_image(path)[:, 0, 0].tolist() == pytest.approx([200, 0, 0], abs=5)


def test_alpha_is_dropped_and_not_blended(tmp_path):
    path = save(tmp_path, Image.new("RGBA", (4, 4), (10, 200, 30, 0)))

    assert read_image(path)[:, 0, 0].tolist() == [10, 200, 30]


@pytest.mark.parametrize(
    ("name", "dtype"), [("a.png", "<u2"), ("a.tif", "<u2"), ("b.tif", ">u2"), ("a.tif", "<i4")]
)
def test_16_bit_is_scaled_and_not_clipped(tmp_path, gradient, name, dtype):
    path = save(tmp_path, Image.fromarray((gradient.astype(np.uint32) * 257).astype(dtype)), name)

    assert torch.equal(read_image(path)[0], torch.from_numpy(gradient))


@pytest.mark.parametrize("scale", [1.0, 1 / 255])
def test_float_pixels_are_fractions_or_8_bit(tmp_path, gradient, scale):
    path = save(tmp_path, Image.fromarray((gradient * scale).astype(np.float32)), "a.tif")

    assert torch.equal(read_image(path)[2], torch.from_numpy(gradient))


def test_the_first_frame_of_an_animation_is_read(tmp_path):
    frames = [Image.new("RGB", (4, 4), color) for color in ((250, 0, 0), (0, 250, 0))]
    path = save(tmp_path, frames[0], "a.gif", save_all=True, append_images=frames[1:])

    assert read_image(path)[:, 0, 0].tolist() == [250, 0, 0]


def test_an_eps_file_is_not_run_whatever_its_name(tmp_path, monkeypatch):
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", "EPS")

    with pytest.raises(DatasetError, match="EPS images are not supported: reading one runs a program"):
        read_image(tmp_path / "a.jpg")
    assert not (tmp_path / "ran").exists()


def test_the_content_and_not_the_suffix_tells_the_format(tmp_path):
    path = save(tmp_path, Image.new("RGB", (5, 3)), "a.jpg", format="PNG")

    assert read_header(path).size_hw == (3, 5)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_are_turned_as_pillow_turns_them_and_boxes_go_along(tmp_path, orientation):
    """A white box on black: after reading, the box is where the white is, however the camera was held."""
    raw = np.zeros((32, 48, 3), np.uint8)
    raw[8:16, 16:40] = 255  # as stored: x 16..40, y 8..16
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = save(tmp_path, Image.fromarray(raw), exif=exif)
    record = Record.make(path, [[16, 8, 40, 16]], [0], 1, size_hw=(32, 48))

    image, turned = read_image(path), upright(record, read_header(path))

    expected = Image.fromarray(raw)
    expected.getexif()[ORIENTATION] = orientation
    turn = image_module.TURN_UPRIGHT.get(orientation)
    expected = expected if turn is None else expected.transpose(turn)
    assert torch.equal(image, torch.from_numpy(np.array(expected)).permute(2, 0, 1))
    assert read_header(path).size_hw == tuple(image.shape[1:])
    if orientation >= 5:  # the stated size shows that the boxes are of the stored image
        rows, columns = torch.nonzero(image[0] > 128, as_tuple=True)
        found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert turned.boxes_xyxy.tolist() == [[int(side) for side in found]]
        assert turned.size_hw == tuple(image.shape[1:])
    else:
        assert turned.boxes_xyxy.tolist() == [[16, 8, 40, 16]]


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_once_though_pillow_turns_a_tiff_itself(tmp_path, orientation, name):
    """Three colored corners and a black one, 60 high and 100 wide when upright."""
    whole = np.zeros((60, 100, 3), np.uint8)
    whole[:20, :30], whole[:20, 70:], whole[40:, :30] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    # By the EXIF standard: which side of the image the first row of the file is, and which the first column.
    stored = {
        1: whole,
        2: whole[:, ::-1],
        3: whole[::-1, ::-1],
        4: whole[::-1],
        5: whole.swapaxes(0, 1),
        6: whole[:, ::-1].swapaxes(0, 1),
        7: whole[::-1, ::-1].swapaxes(0, 1),
        8: whole[::-1].swapaxes(0, 1),
    }[orientation]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = save(tmp_path, Image.fromarray(np.ascontiguousarray(stored)), name, exif=exif)
    expected = torch.from_numpy(whole).permute(2, 0, 1)

    header = read_header(path)

    assert header == (stored.shape[:2], orientation)
    assert read_header(path, decode=True) == header
    assert header.size_hw == (60, 100)
    assert read_reduced(path).size_hw == (60, 100)
    assert torch.equal(read_image(path), expected)
    assert torch.equal(body.decode_image(path.read_bytes()), expected)
    assert torch.equal(image_module.decode_image(path.read_bytes(), name), expected)
    with Image.open(path) as image:
        assert torch.equal(to_pixels(image), expected)
        assert torch.equal(to_pixels(image), expected)  # loaded by now
    with Image.open(path) as image:
        image.load()
        assert torch.equal(to_pixels(image), expected)


@pytest.mark.parametrize("size_hw", [None, (48, 32)])
def test_boxes_that_are_upright_already_stay(tmp_path, size_hw):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    path = save(tmp_path, Image.new("RGB", (48, 32)), exif=exif)
    record = Record.make(path, [[1, 2, 3, 4]], [0], 1, size_hw=size_hw)

    assert upright(record, read_header(path)).boxes_xyxy.tolist() == [[1, 2, 3, 4]]


def test_an_orientation_that_makes_no_sense_is_none(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 77
    path = save(tmp_path, Image.new("RGB", (5, 3)), "a.jpg", exif=exif)

    assert read_header(path).orientation == 1


def test_damaged_exif_does_not_cost_the_image(tmp_path):
    path = save(tmp_path, Image.new("RGB", (5, 3)), "a.jpg", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")

    assert read_header(path).size_hw == (3, 5)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif"])
def test_the_first_frame_is_read_and_all_are_counted(tmp_path, name):
    first, *others = [Image.new("RGB", (8, 6), (60 * number, 0, 0)) for number in range(4)]
    path = save(tmp_path, first, name, save_all=True, append_images=others)

    assert image_module.count_frames(path) == 4
    assert read_image(path).max() < 5
    assert image_module.count_frames(save(tmp_path, first, f"one_{name}")) == 1


def test_reduced_copies_in_a_tiff_and_what_a_phone_adds_to_a_jpeg_are_no_frames(tmp_path):
    """As in a file with overviews: an image, a smaller copy, the mask of each."""
    pages = [Image.new("L", size) for size in ((8, 6), (4, 3), (8, 6), (4, 3))]
    path = save(tmp_path, pages[0], "a.tif", save_all=True, append_images=pages[1:], tiffinfo={254: 0})
    parts = path.read_bytes().split(struct.pack("<HHII", 254, 4, 1, 0))  # the tag of each page: one LONG
    tags = [struct.pack("<HHII", 254, 4, 1, kind) for kind in (0, 1, 4, 5)]
    path.write_bytes(b"".join(part + tag for part, tag in zip(parts, [*tags, b""], strict=True)))
    with Image.open(path) as image:
        kinds = [image.seek(place) or image.tag_v2[254] for place in range(4)]
    assert kinds == [0, 1, 4, 5]

    assert image_module.count_frames(path) == 1
    pages = [Image.new("RGB", (8, 6)), Image.new("RGB", (4, 3))]
    path = save(tmp_path, pages[0], "a.mpo", save_all=True, append_images=pages[1:])
    assert image_module.count_frames(path) == 1


def test_frames_of_a_broken_file_are_not_counted(tmp_path):
    path = save(
        tmp_path, Image.new("L", (8, 6)), "a.tif", save_all=True, append_images=[Image.new("L", (8, 6))]
    )
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - 100])  # in the tags of the second page

    assert image_module.count_frames(path) == 1
    assert image_module.count_frames(tmp_path / "nowhere.tif") == 1


def test_a_missing_image_says_so(tmp_path):
    with pytest.raises(DatasetError, match=r"image not found\n  in: .*nowhere.jpg\n  fix: correct the name"):
        read_image(tmp_path / "nowhere.jpg")


@pytest.mark.parametrize("brand", [b"heic", b"mif1"])
def test_a_heic_file_is_named_with_what_to_do(tmp_path, brand):
    content = b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1heic"
    (tmp_path / "a.heic").write_bytes(content)

    words = r"HEIC \(HEIF\) format, which Pillow does not support: convert it to JPEG or PNG\n  in: .*a.heic"
    with pytest.raises(DatasetError, match=words):
        read_image(tmp_path / "a.heic")
    with pytest.raises(DatasetError, match=words):
        image_module.decode_image(content, "a.heic")
    (tmp_path / "a.heic").write_bytes(content.replace(brand, b"isom", 1))
    with pytest.raises(DatasetError, match="not an image, or in a format that Pillow does not support"):
        read_image(tmp_path / "a.heic")


def test_an_empty_file_says_so(tmp_path):
    (tmp_path / "a.jpg").touch()

    with pytest.raises(DatasetError, match="image file is empty"):
        read_header(tmp_path / "a.jpg")


def test_a_file_that_is_no_image_says_so(tmp_path):
    (tmp_path / "a.jpg").write_text("<html>not found</html>")

    with pytest.raises(DatasetError, match="cannot be decoded: not an image, or in a format"):
        read_header(tmp_path / "a.jpg")


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_a_truncated_image_is_found_by_decoding_but_not_by_its_header(tmp_path, format):
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, format)
    path = tmp_path / "a.jpg"
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])

    assert read_header(path).size_hw == (64, 64)
    with pytest.raises(DatasetError, match=r"cannot be decoded: .*truncated(.|\n)*a.jpg"):
        read_image(path)
    with pytest.raises(DatasetError, match="cannot be decoded"):
        read_header(path, decode=True)


def test_large_images_are_read_silently_and_absurd_ones_refused(tmp_path, monkeypatch):
    path = save(tmp_path, Image.new("RGB", (60, 60)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    assert read_header(path).size_hw == (60, 60)  # below twice the limit Pillow only warns

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DatasetError, match=r"too many pixels(.|\n)*fix: predict on tiles"):
        read_header(path)


def test_reading_leaves_warnings_as_they_were(tmp_path):
    path = save(tmp_path, Image.new("RGB", (5, 3)))
    before = list(warnings.filters)

    read_image(path)

    assert list(warnings.filters) == before


# -- reduced decoding


def half(size_hw):
    return -(-size_hw[0] // 2), -(-size_hw[1] // 2)


def smooth(width, height):
    """An image of broad waves, RGB."""
    y, x = np.mgrid[:height, :width]
    waves = [128 + 100 * np.sin(x / 17 + k) * np.cos(y / 23 - k) for k in range(3)]
    return Image.fromarray(np.stack(waves, axis=2).astype(np.uint8))


def test_reduction_worked_out_by_hand():
    assert reduction_for((3000, 4000), (320, 427)) == 8
    assert reduction_for((3000, 4000), (480, 640)) == 4  # an eighth would be 375 high
    assert reduction_for((3000, 4000), (1500, 2000)) == 2
    assert reduction_for((3000, 4000), (1501, 2000)) == 1
    assert reduction_for((480, 640), (800, 1067)) == 1
    assert reduction_for((100, 4000), (20, 300)) == 4  # both sides count


@pytest.mark.parametrize(("name", "reduction"), [("a.jpg", 2), ("a.png", 1), ("a.webp", 1)])
def test_a_jpeg_is_decoded_no_larger_than_enough(tmp_path, name, reduction):
    path = save(tmp_path, smooth(200, 120), name, quality=95)

    image = read_reduced(path, half)

    assert (image.size_hw, image.reduction) == ((120, 200), reduction)
    assert tuple(image.pixels.shape) == (3, 120 // reduction, 200 // reduction)
    whole = read_image(path).float()
    means = torch.nn.functional.avg_pool2d(whole, reduction)
    assert (image.pixels.float() - means).abs().mean() < 1


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_reduced_images_keep_the_colors_of_every_mode(tmp_path, mode):
    path = save(tmp_path, Image.new("RGB", (64, 64), (180, 180, 180)).convert(mode), "a.jpg", quality=95)

    image = read_reduced(path, half)

    assert image.pixels.shape == (3, 32, 32)
    assert (image.pixels.int() - read_image(path)[:, :32, :32].int()).abs().max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("width", "height"), [(96, 64), (93, 61)])  # the second leaves parts of blocks
def test_boxes_follow_reduced_images_however_the_camera_was_held(tmp_path, orientation, width, height):
    raw = np.zeros((height, width, 3), np.uint8)
    raw[16:32, 32:80] = 255
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = save(tmp_path, Image.fromarray(raw), "a.jpg", exif=exif, quality=100, subsampling=0)
    whole = read_image(path)
    rows, columns = torch.nonzero(whole[0] > 128, as_tuple=True)
    box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    record = Record.make(path, [[float(side) for side in box]], [0], 1)

    image, truth = read_sample(record, lambda size_hw: (size_hw[0] // 4, size_hw[1] // 4))

    assert image.reduction == 4
    assert image.size_hw == tuple(whole.shape[1:])
    x1, y1, x2, y2 = truth.boxes_xyxy[0].tolist()
    covered = torch.zeros_like(image.pixels[0], dtype=torch.float)
    covered[round(y1) : round(y2), round(x1) : round(x2)] = 255
    off = (image.pixels[0].float() - covered).abs()
    assert (off > 140).sum() == 0


def test_a_truncated_image_is_told_when_it_is_reduced_too(tmp_path):
    buffer = io.BytesIO()
    smooth(640, 480).save(buffer, "JPEG", quality=95)
    path = tmp_path / "a.jpg"
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])

    with pytest.raises(DatasetError, match=r"cannot be decoded: .*truncated(.|\n)*a.jpg"):
        read_reduced(path, half)


def test_large_images_have_the_pixels_of_pillow(tmp_path):
    saved = smooth(1500, 1001)
    path = save(tmp_path, saved)

    image = read_image(path)

    assert image.stride() == (1, 4500, 3)
    assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(saved))


# Depths of gray ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (np.array([[0, 40, 255]], np.int32), [0, 40, 255]),  # 8 bits in 32
        (np.array([[0, 512, 1023]], np.uint16), [0, 128, 255]),  # 10 bits in 16
        (np.array([[0, 2048, 4095]], np.uint16), [0, 128, 255]),  # 12 bits in 16
        (np.array([[0, 16384, 40000]], np.uint16), [0, 64, 156]),  # 16 bits, whether or not they are all used
        (np.array([[0, 32768, 65535]], np.int32), [0, 128, 255]),  # 16 bits in 32
        (
            np.array([[-5, 2**30, 2**31 - 1]], np.int32),
            [0, 128, 255],
        ),  # 31 bits; black is 0
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),
        (np.array([[0, 0.5, 128]], np.float32), [0, 0, 128]),
        (np.array([[0, 30000, 60000]], np.float32), [0, 117, 233]),
        (np.array([[np.nan, np.inf, 0.5]], np.float32), [0, 255, 128]),
        (np.array([[np.nan, np.nan, np.nan]], np.float32), [0, 0, 0]),
    ],
)
def test_white_is_the_end_of_the_bits_that_are_used(
    tmp_path: Path, values: NDArray[Any], wanted: list[int]
) -> None:
    Image.fromarray(values).save(tmp_path / "a.tif")

    pixels = read_image(tmp_path / "a.tif")

    assert pixels[:, 0].tolist() == [wanted] * 3


def test_tiff_may_say_that_zero_is_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 16384, 65535]], np.uint16)).save(
        tmp_path / "a.tif", tiffinfo={PHOTOMETRIC: WHITE_IS_ZERO}
    )
    assert read_image(tmp_path / "a.tif")[0, 0].tolist() == [255, 191, 0]


def test_lab_becomes_rgb(tmp_path: Path) -> None:
    Image.new("LAB", (2, 1), (137, 208, 195)).save(tmp_path / "a.tif")  # CIE's L 53.7, a 80, b 67: red
    red, green, blue = read_image(tmp_path / "a.tif")[:, 0, 0].tolist()
    assert red > 240
    assert green < 20
    assert blue < 20


# What is no image ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (6, 5), (7, 300), (300, 3)])
def test_a_jpeg_smaller_than_a_block_is_an_image(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "a.jpg"
    Image.new("RGB", size, (10, 200, 30)).save(path)

    assert read_header(path, decode=True).size_hw == size[::-1]
    assert tuple(read_image(path).shape) == (3, *size[::-1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (os.mkfifo, "this is a pipe, not a file"),
        (os.mkdir, "this is a folder, not a file"),
        (lambda path: os.symlink("nowhere", path), "this is a broken link"),
        (lambda path: os.symlink(path.name, path), "this is a broken link"),
        (lambda path: os.symlink("/dev/zero", path), "this is a device, not a file"),
    ],
)
@pytest.mark.parametrize("read", [read_image, read_header, partial(read_header, decode=True)])
def test_what_is_no_file_is_said_and_not_waited_for(
    tmp_path: Path, make: Callable[[Path], None], message: str, read: Callable[[Path], object]
) -> None:
    make(tmp_path / "a.jpg")
    with pytest.raises(DatasetError, match=message) as caught:
        read(tmp_path / "a.jpg")
    assert str(tmp_path / "a.jpg") in str(caught.value)


@pytest.mark.parametrize("name", ["x" * 300 + ".jpg", "a\0b.jpg"])
def test_a_name_that_no_file_can_have_is_no_traceback(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetError, match=r"File name too long|null byte"):
        read_image(tmp_path / name)
