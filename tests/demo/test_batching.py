"""Which images share a forward pass."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from fcos import Detector
from fcos.demo.batching import Batches
from fcos.model.postprocess import ImageDetections
from fcos.predict.pipeline import Prepared


class Recorded(Detector):
    """A detector that notes the widths of each pass, and waits for `go` in the first."""

    went: list[list[int]]
    go: threading.Event
    error: Exception | None = None

    def detect(self, images: Sequence[Prepared]) -> list[ImageDetections]:
        self.went.append([image.original_size_hw[1] for image in images])
        self.go.wait(30)
        if self.error:
            raise self.error
        return super().detect(images)


def recorder(model_file: Path) -> Recorded:
    detector = Recorded.load(model_file, device="cpu")
    assert isinstance(detector, Recorded)
    detector.went, detector.go = list[list[int]](), threading.Event()
    return detector


def prepared(width: int) -> Prepared:
    """An image 64 pixels high; what is up to 32 wide has one padded size, and what is up to 64."""
    return Prepared(torch.zeros((3, 64, width), dtype=torch.uint8), (64, width))


def run(
    recorded: Recorded, widths: list[int], batch_size: int | None, cancel: int | None = None
) -> list[object]:
    """All asked for while the first is in the network."""

    async def ask() -> list[object]:
        batches = Batches(recorded, batch_size, lambda num_images, seconds: None)
        tasks = [asyncio.ensure_future(batches.detect(prepared(width))) for width in widths]
        await asyncio.sleep(0.1)
        if cancel is not None:
            tasks[cancel].cancel()
        recorded.go.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    return asyncio.run(ask())


def test_images_of_one_padded_size_join_the_oldest(small_model: Path) -> None:
    recorded = recorder(small_model)

    answers = run(recorded, [10, 11, 40, 12, 41, 13, 14], batch_size=3)

    assert recorded.went == [[10], [11, 12, 13], [40, 41], [14]]
    for answer in answers:
        assert isinstance(answer, tuple)
        assert isinstance(answer[0], ImageDetections)
        assert answer[1] > 0


def test_large_images_join_only_if_the_batch_size_is_given(small_model: Path) -> None:
    wide = 64 * 100  # 64 x 6400 pixels are more than 480 x 640
    by_default, given = recorder(small_model), recorder(small_model)

    run(by_default, [wide] * 3, batch_size=None)
    run(given, [wide] * 3, batch_size=2)

    assert by_default.went == [[wide]] * 3
    assert given.went == [[wide], [wide] * 2]


def test_an_image_whose_client_has_gone_is_left_out(small_model: Path) -> None:
    recorded = recorder(small_model)

    answers = run(recorded, [10, 11, 12], batch_size=4, cancel=1)

    assert recorded.went == [[10], [12]]
    assert isinstance(answers[1], asyncio.CancelledError)


def test_an_error_goes_to_every_image_of_its_pass(small_model: Path) -> None:
    recorded = recorder(small_model)
    recorded.error = MemoryError("full")

    answers = run(recorded, [10, 11, 12], batch_size=4)

    assert recorded.went == [[10], [11, 12]]
    assert [str(answer) for answer in answers] == ["full"] * 3
    with pytest.raises(MemoryError):
        raise answers[2]  # type: ignore[misc]


def test_a_model_with_tiles_predicts_on_tiles_as_elsewhere(small_model: Path) -> None:
    detector = Detector.load(small_model, device="cpu", tile=64)
    image = torch.randint(0, 256, (3, 90, 150), dtype=torch.uint8)

    async def ask() -> ImageDetections:
        batches = Batches(detector, None, lambda num_images, seconds: None)
        found = [asyncio.ensure_future(batches.detect(detector.prepare(image))) for _ in range(2)]
        return (await asyncio.gather(*found))[1][0]

    found, wanted = asyncio.run(ask()), detector.predict(image, 0.0)
    assert torch.equal(found.boxes_xyxy, wanted.boxes_xyxy)
    assert len(found.scores) != len(Detector.load(small_model, device="cpu").predict(image, 0.0))
