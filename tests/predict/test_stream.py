"""Images are searched beside each other, in order."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fcos import Detections, Detector
from fcos.errors import DatasetError, FcosError
from fcos.predict import stream
from fcos.predict.pipeline import TorchBackend
from fcos.predict.stream import predict_each


@pytest.fixture(autouse=True)
def _two_cores() -> None:
    torch.set_num_threads(2)


@pytest.fixture(scope="module")
def detector(model_file: Path) -> Detector:
    return Detector.load(model_file, device="cpu")


@pytest.fixture(scope="module")
def images() -> list[Any]:
    random = np.random.default_rng(0)
    sizes = [(60, 90), (40, 60), (60, 30), (50, 90)] * 3
    return [random.integers(0, 255, (*size, 3), dtype=np.uint8) for size in sizes]


def alone(detector: Detector, image: Any) -> Detections:
    """What a single call finds, on one core: two threads take many times as long where cores are busy."""
    torch.set_num_threads(1)
    try:
        return detector.predict(image, 0.55)
    finally:
        torch.set_num_threads(2)


def assert_same(first: Detections, second: Detections) -> None:
    torch.testing.assert_close(first.boxes_xyxy, second.boxes_xyxy, rtol=0, atol=1e-3)
    torch.testing.assert_close(first.scores, second.scores, rtol=0, atol=1e-4)
    assert first.labels.tolist() == second.labels.tolist()


@pytest.mark.parametrize("batch_size", [None, 1])
def test_a_stream_gives_what_predict_gives_in_its_order(
    detector: Detector, images: list[Any], batch_size: int | None
) -> None:
    streamed = list(detector.stream(iter(images), 0.55, batch_size=batch_size))

    assert len(streamed) == len(images)
    for found, image in zip(streamed, images, strict=True):
        assert_same(found, alone(detector, image))
        assert found.image is not None
        assert np.array_equal(np.asarray(found.image), image)
    assert sum(map(len, streamed)) > 0


def test_a_batch_of_one_size_gives_the_same(detector: Detector, images: list[Any]) -> None:
    alike = images[::4]

    for found, image in zip(detector.stream(alike, 0.55, batch_size=2), alike, strict=True):
        assert_same(found, alone(detector, image))


def test_nothing_gives_nothing(detector: Detector) -> None:
    assert list(detector.stream([])) == []
    assert in_processes(detector, [], lambda image, found: found) == []


def test_only_a_few_images_are_taken_ahead(detector: Detector, images: list[Any]) -> None:
    taken = 0

    def endless() -> Iterator[Any]:
        nonlocal taken
        while True:
            taken += 1
            yield images[taken % len(images)]

    stream = detector.stream(endless())
    for given in range(1, 8):
        next(stream)
        assert given <= taken <= given + 9
    stream.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("predict")]


def test_two_images_are_searched_at_once_each_on_one_core(
    detector: Detector, images: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2, timeout=60)  # breaks unless two wait at the same time
    cores: list[int] = []

    def predict(images: Any, *args: Any, **kwargs: Any) -> Any:
        cores.append(torch.get_num_threads())
        both.wait()
        return Detector.predict_group(detector, images, *args, **kwargs)

    monkeypatch.setattr(detector, "predict_group", predict)
    assert len(list(detector.stream(images[:8]))) == 8  # four pairs, all taken at once

    assert set(cores) == {1}
    assert torch.get_num_threads() == 2


def test_where_networks_may_not_run_side_by_side_the_rest_does(
    detector: Detector, images: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On other devices: one forward pass at a time, on all cores, while the next image is read."""
    monkeypatch.setattr(TorchBackend, "calls_at_once", 1)
    running, at_once, cores, read_meanwhile = 0, [], [], []

    def predict(images: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal running
        running += 1
        at_once.append(running)
        cores.append(torch.get_num_threads())
        time.sleep(0.02)
        found = Detector.predict_group(detector, images, *args, **kwargs)
        running -= 1
        return found

    def read(image: Any) -> torch.Tensor:
        read_meanwhile.append(running)
        return of_image(image)

    monkeypatch.setattr(detector, "predict_group", predict)
    found = list(predict_each(detector, images, read, lambda image, detections: detections))

    assert len(found) == len(images)
    assert set(at_once) == {1}
    assert set(cores) == {2}
    assert 1 in read_meanwhile


def test_an_image_that_cannot_be_read_is_an_error_at_its_place(
    detector: Detector, images: list[Any], tmp_path: Path
) -> None:
    stream = detector.stream([images[0], tmp_path / "missing.jpg", images[1]])

    assert_same(next(stream), detector.predict(images[0]))
    with pytest.raises(DatasetError, match=r"image not found\n  in: .*missing\.jpg"):
        next(stream)
    assert torch.get_num_threads() == 2


def test_others_of_its_batch_are_searched(detector: Detector, images: list[Any]) -> None:
    def read(number: int) -> torch.Tensor:
        if number % 3 == 1:
            raise DatasetError("broken")
        return of_image(images[4 * (number % 2)])

    results = list(predict_each(detector, range(6), read, lambda number, found: number, batch_size=4))

    assert [result if isinstance(result, int) else result.what for result in results] == [
        0,
        "broken",
        2,
        3,
        "broken",
        5,
    ]


def of_image(image: Any) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)


def test_large_images_of_a_group_are_not_all_in_memory(
    detector: Detector, images: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "MOST_PIXELS", 60 * 90 + 1)  # two of the largest
    sizes: list[int] = []

    def predict(images: Any, *args: Any, **kwargs: Any) -> Any:
        sizes.append(len(images))
        return Detector.predict_group(detector, images, *args, **kwargs)

    monkeypatch.setattr(detector, "predict_group", predict)
    found = list(predict_each(detector, [images[0]] * 6, of_image, lambda image, detections: detections))

    assert sorted(sizes) == [2, 2, 2]  # of groups of four and two
    assert len(found) == 6


def in_processes(detector: Detector, images: list[Any], then: Any, read: Any = of_image) -> list[Any]:
    return list(predict_each(detector, images, read, then, score_threshold=0.55, num_processes=2))


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_processes_find_the_same_in_the_same_order(detector: Detector, images: list[Any]) -> None:
    def describe(image: Any, found: Detections) -> tuple[int, int, Any, Any, Any]:
        return os.getpid(), torch.get_num_threads(), found.boxes_xyxy, found.scores, found.labels

    many = images * 3
    results = in_processes(detector, many, describe)

    assert len(results) == len(many)
    assert len({pid for pid, *_ in results} - {os.getpid()}) == 2
    assert {threads for _, threads, *_ in results} == {1}
    for (*_, boxes, scores, labels), image in zip(results, many, strict=True):
        wanted = alone(detector, image)
        assert_same(Detections(boxes, scores, labels, wanted.class_names), wanted)


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_errors_in_processes_are_those_in_threads(detector: Detector, images: list[Any]) -> None:
    def read(number: int) -> torch.Tensor:
        if number == 5:
            raise DatasetError("broken", where="image 5", fix="remove it")
        return of_image(images[number])

    def full(number: int, found: Detections) -> int:
        if number == 9:
            raise OSError(28, "No space left on device")
        return number

    results = predict_each(detector, range(12), read, full, num_processes=2)
    first = [next(results) for _ in range(8)]
    assert [result for result in first if isinstance(result, int)] == [0, 1, 2, 3, 4, 6, 7]
    assert isinstance(first[5], DatasetError)
    assert (first[5].what, first[5].where, first[5].fix) == ("broken", "image 5", "remove it")
    with pytest.raises(OSError, match="No space left") as caught:
        list(results)
    assert caught.value.errno == 28
    assert not active_children()  # those that are left would keep this process from ending


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_a_killed_process_is_said_and_nothing_hangs(detector: Detector, images: list[Any]) -> None:
    def die(image: Any, found: Detections) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(
        FcosError, match=r"was killed, probably because it ran out of memory.*\n  fix: .* --num-processes 1$"
    ):
        in_processes(detector, images, die)


def test_an_error_of_the_caller_comes_out_at_once(detector: Detector, images: list[Any]) -> None:
    def full(image: Any, found: Detections) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        list(predict_each(detector, images, of_image, full))
