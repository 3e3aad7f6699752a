"""`fcos predict` as a user types it."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

import fcos
from fcos import Detector
from fcos.cli import main
from fcos.cli.predict import class_list, split_arguments
from fcos.cli.processes import can_fork, usual_processes
from fcos.data import strips
from fcos.data.formats import read_annotations
from fcos.predict.images import WRITTEN_FILE, crop_path, plan, predict_images
from fcos.predict.labels import save_labels
from fcos.predict.sources import find_sources
from fcos.predict.stream import predict_each

SOURCE = Path(fcos.__file__).parent


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """photos/a.jpg, photos/sub/ünï 图.png, photos/sub/deep/c.GIF, photos/notes.txt; the working directory."""
    coarse = np.random.default_rng(0).integers(0, 255, (6, 9, 3), dtype=np.uint8)
    image = Image.fromarray(coarse.repeat(10, axis=0).repeat(10, axis=1))
    for name in ("a.jpg", "sub/ünï 图.png", "sub/deep/c.GIF"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def predict(model_file: Path, *words: str) -> Result:
    return CliRunner().invoke(main, ["predict", str(model_file), *words, "--device", "cpu"])


def written(out: str = "predictions") -> dict[str, Any]:
    content = json.loads((Path(out) / "detections.json").read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def drawn_below(out: str) -> list[str]:
    return sorted(
        path.relative_to(out).as_posix()
        for path in Path(out).rglob("*.*")
        if path.suffix != ".json" and path.name != WRITTEN_FILE
    )


def test_a_folder_is_searched_with_its_subfolders_and_names_are_kept(model_file: Path, images: Path) -> None:
    result = predict(model_file, "photos")

    assert result.exit_code == 0, result.output
    assert drawn_below("predictions") == ["a.jpg", "sub/deep/c.GIF.png", "sub/ünï 图.png"]
    content = written()
    assert [Path(image["path"]).as_posix() for image in content["images"]] == [
        "photos/a.jpg",
        "photos/sub/deep/c.GIF",
        "photos/sub/ünï 图.png",
    ]
    assert content["failed"] == []
    assert content["class_names"] == ["cat", "dog", "bird"]
    assert content["score_threshold"] == 0.5


def test_without_a_model_everyday_objects_are_found(images: Path) -> None:
    result = CliRunner().invoke(main, ["predict", "photos/a.jpg", "photos/sub", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert "everyday detector, which knows 20 classes" in result.stderr
    assert "dog" in result.stderr
    assert "fcos train FOLDER" in result.stderr
    assert len(written()["images"]) == 3
    assert Path(written()["model"]).name == "everyday.safetensors"


@pytest.mark.parametrize("words", [["runs/birds"], ["best.safetensors"], ["everyday"]])
def test_a_model_alone_is_no_source(words: list[str], images: Path) -> None:
    (images / "runs" / "birds").mkdir(parents=True)
    (images / "runs" / "birds" / "config.json").write_text('{"list_train": "a.json"}')
    result = CliRunner().invoke(main, ["predict", *words])
    assert result.exit_code == 2
    assert f"nothing to predict on: give images after the model {words[0]!r}" in result.stderr


@pytest.mark.parametrize(
    ("words", "model"),
    [
        (["a.jpg"], "everyday"),
        (["photos", "more.png"], "everyday"),
        (["https://example.org/a", "b.jpg"], "everyday"),
        (["0"], "everyday"),
        (["photos/*.jpg"], "everyday"),
        (["somewhere"], "everyday"),
        (["runs/train", "a.jpg"], "runs/train"),
        (["best.safetensors", "a.jpg"], "best.safetensors"),
        (["coco.pth", "photos"], "coco.pth"),
    ],
)
def test_the_first_word_is_the_model_unless_it_is_a_source(
    words: list[str], model: str, images: Path
) -> None:
    found, sources = split_arguments(words)
    assert str(found) == model
    assert list(sources) == (words if model == "everyday" else words[1:])


def test_the_json_holds_what_the_detector_finds(model_file: Path, images: Path) -> None:
    result = predict(model_file, "photos/a.jpg", "--score-threshold", "0.55")

    found = Detector.load(model_file, "cpu").predict("photos/a.jpg", 0.55)
    [image] = written()["images"]
    assert result.exit_code == 0, result.output
    assert 0 < len(found) == len(image["detections"])
    assert (image["width"], image["height"]) == (90, 60)
    first = image["detections"][0]
    assert first["box_xyxy"] == pytest.approx(found.boxes_xyxy[0].tolist(), abs=0.005)
    assert first["score"] == pytest.approx(float(found.scores[0]), abs=5e-5)
    assert first["class_name"] == found.class_name(0) == found.class_names[first["label"]]
    assert written()["score_threshold"] == 0.55


def test_the_image_is_drawn_on_and_the_source_is_left_alone(model_file: Path, images: Path) -> None:
    source = Path("photos/sub/ünï 图.png")
    before = source.read_bytes()

    predict(model_file, str(source), "--out", "found")

    with Image.open(source) as original, Image.open("found/ünï 图.png") as drawn:
        assert drawn.size == original.size
        assert not np.array_equal(np.asarray(drawn), np.asarray(original))
    assert source.read_bytes() == before


def test_the_summary_says_how_much_how_fast_and_where(model_file: Path, images: Path) -> None:
    result = predict(model_file, "photos", "--out", "found")

    count = sum(len(image["detections"]) for image in written("found")["images"])
    assert f"3 images, {count} detections with a score of at least 0.50, " in result.output
    assert "images/s; saved to found, all boxes in found/detections.json" in result.output


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("photos/*.jpg", ["a.jpg"]),
        ("photos/**/*.png", ["sub/ünï 图.png"]),
        ("photos/*/*", ["sub/ünï 图.png"]),
        ("photos/**", ["a.jpg", "sub/deep/c.GIF.png", "sub/ünï 图.png"]),
    ],
)
def test_a_quoted_pattern_is_expanded(
    model_file: Path, images: Path, pattern: str, expected: list[str]
) -> None:
    result = predict(model_file, pattern)

    assert result.exit_code == 0, result.output
    assert drawn_below("predictions") == expected


def test_a_name_with_brackets_is_a_name_where_there_is_such_a_file(model_file: Path, images: Path) -> None:
    Path("photos/a.jpg").rename("photos/a[1].jpg")

    assert predict(model_file, "photos/a[1].jpg").exit_code == 0
    assert drawn_below("predictions") == ["a[1].jpg"]


def test_an_image_given_twice_is_searched_once(model_file: Path, images: Path) -> None:
    predict(model_file, "photos", "photos/a.jpg", "photos/*.jpg")

    assert len(written()["images"]) == 3


def test_different_images_of_one_name_are_numbered(model_file: Path, images: Path) -> None:
    Path("more").mkdir()
    Path("more/a.jpg").write_bytes(Path("photos/a.jpg").read_bytes())

    predict(model_file, "photos/a.jpg", "more/a.jpg")

    assert drawn_below("predictions") == ["a.jpg", "a_2.jpg"]
    assert [Path(image["drawn"]).name for image in written()["images"]] == ["a.jpg", "a_2.jpg"]


def test_broken_images_are_reported_and_the_rest_is_done(model_file: Path, images: Path) -> None:
    Path("photos/broken.jpg").write_bytes(b"no image")
    Path("photos/cut.jpg").write_bytes(Path("photos/a.jpg").read_bytes()[:700])
    Path("photos/empty.png").write_bytes(b"")

    result = predict(model_file, "photos")

    assert result.exit_code == 1
    assert drawn_below("predictions") == ["a.jpg", "sub/deep/c.GIF.png", "sub/ünï 图.png"]
    failed = {Path(entry["path"]).name: entry["error"] for entry in written()["failed"]}
    assert sorted(failed) == ["broken.jpg", "cut.jpg", "empty.png"]
    assert failed["empty.png"] == "image file is empty (0 bytes)"
    assert "skipped: photos/broken.jpg: image cannot be decoded" in result.output
    assert (
        "3 of 6 images could not be read: photos/broken.jpg, photos/cut.jpg, photos/empty.png\n"
        in result.output
    )


def test_an_animation_says_that_only_its_first_frame_is_predicted(model_file: Path, images: Path) -> None:
    first, *others = [Image.new("RGB", (64, 48), (60 * number, 0, 0)) for number in range(4)]
    first.save("photos/film.gif", save_all=True, append_images=others)

    result = predict(model_file, "photos", "--json", "--no-draw")

    assert result.exit_code == 0
    assert result.stderr.count("only the first of") == 1
    assert "only the first of 4 frames: photos/film.gif\n" in result.stderr


def test_one_line_names_the_other_images_and_videos_of_a_folder(model_file: Path, images: Path) -> None:
    for name in "abcd":
        Path(f"photos/{name}.dng").touch()

    result = predict(model_file, "photos", "photos/*.dng", "photos", "--json", "--no-draw")
    assert "no images or videos match the pattern 'photos/*.dng'" in result.stderr

    result = predict(model_file, "photos", "photos", "--json", "--no-draw")
    assert result.exit_code == 0
    ignored = (
        "ignored: 4 images and videos in unsupported formats: photos/a.dng, photos/b.dng, photos/c.dng "
        "and 1 more\n"
    )
    assert result.stderr.count(ignored) == 1
    assert "ignored" not in result.stdout
    for name in "bcd":
        Path(f"photos/{name}.dng").unlink()
    assert (
        "ignored: 1 image or video in unsupported formats: photos/a.dng\n"
        in predict(model_file, "photos").stderr
    )
    Path("photos/a.dng").unlink()
    assert "ignored" not in predict(model_file, "photos").output


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nowhere", "'nowhere' does not exist"),
        ("photos/*.tif", "no images or videos match the pattern 'photos/*.tif'"),
        ("empty", "the folder contains no images or videos"),
    ],
)
def test_a_source_without_images_says_what_was_looked_for(
    model_file: Path, images: Path, source: str, words: str
) -> None:
    Path("empty").mkdir()

    result = predict(model_file, "photos/a.jpg", source)

    assert result.exit_code == 2
    assert words in result.output
    assert source == "nowhere" or ".jpeg, .jpg," in result.output
    assert not Path("predictions").exists()


@pytest.mark.parametrize(
    ("sources", "out"), [(["photos"], "photos"), (["photos/a.jpg"], "photos"), (["photos/*.jpg"], "photos/.")]
)
def test_a_source_is_never_overwritten(model_file: Path, images: Path, sources: list[str], out: str) -> None:
    before = Path("photos/a.jpg").read_bytes()

    result = predict(model_file, *sources, "--out", out)

    assert result.exit_code == 2
    assert "an image would be overwritten by the drawn copy" in result.output
    assert "fix: choose another folder with --out" in result.output
    assert Path("photos/a.jpg").read_bytes() == before


def test_an_image_that_another_program_left_in_the_output_folder_is_not_overwritten(
    model_file: Path, images: Path
) -> None:
    Path("backup").mkdir()
    Path("backup/a.jpg").write_bytes(b"the only copy")

    assert predict(model_file, "photos", "--out", "backup").exit_code == 2
    assert Path("backup/a.jpg").read_bytes() == b"the only copy"


@pytest.mark.parametrize("name", ["a.jpg", "detections.json"])
def test_a_file_of_the_user_among_our_own_is_not_overwritten(
    model_file: Path, images: Path, name: str
) -> None:
    assert predict(model_file, "photos/sub").exit_code == 0
    Path("predictions", name).write_bytes(b"the only copy")

    result = predict(model_file, "photos")

    if name == "a.jpg":  # not one of ours
        assert result.exit_code == 2
        assert "an image would be overwritten by the drawn copy" in result.output
        assert Path("predictions/a.jpg").read_bytes() == b"the only copy"
    else:  # results are ours, whatever their size
        assert result.exit_code == 0
        assert len(written()["images"]) == 3


def test_a_drawn_copy_that_was_changed_since_is_not_overwritten(model_file: Path, images: Path) -> None:
    assert predict(model_file, "photos").exit_code == 0
    Path("predictions/a.jpg").write_bytes(b"with notes")

    result = predict(model_file, "photos")

    assert result.exit_code == 2
    assert (
        "in: predictions/a.jpg\n  fix: choose another folder with --out, or move this file" in result.output
    )
    assert Path("predictions/a.jpg").read_bytes() == b"with notes"


def test_detections_of_another_program_are_not_overwritten(model_file: Path, images: Path) -> None:
    Path("predictions").mkdir()
    Path("predictions/detections.json").write_bytes(b"{}")

    result = predict(model_file, "photos", "--no-draw")

    assert result.exit_code == 2
    assert "a file of another program would be overwritten by the detections" in result.output
    assert Path("predictions/detections.json").read_bytes() == b"{}"


def test_a_line_that_a_killed_process_left_unfinished_is_ignored(model_file: Path, images: Path) -> None:
    assert predict(model_file, "photos").exit_code == 0
    with Path("predictions/.fcos-predict").open("a") as file:
        file.write('\n["sub/un')

    assert predict(model_file, "photos").exit_code == 0
    assert predict(model_file, "photos").exit_code == 0  # lines behind it count


def test_without_drawing_an_image_in_the_output_folder_is_no_reason_to_stop(
    model_file: Path, images: Path
) -> None:
    before = Path("photos/a.jpg").read_bytes()

    result = predict(model_file, "photos/a.jpg", "--out", "photos", "--no-draw")

    assert result.exit_code == 0, result.output
    assert len(written("photos")["images"]) == 1
    assert Path("photos/a.jpg").read_bytes() == before


def test_a_second_call_replaces_its_own_images_and_does_not_search_them(
    model_file: Path, images: Path
) -> None:
    first = predict(model_file, "photos", "--out", "photos/found")
    second = predict(model_file, "photos", "--out", "photos/found")

    assert (first.exit_code, second.exit_code) == (0, 0), second.output
    assert len(written("photos/found")["images"]) == 3


def test_a_photograph_is_drawn_upright(model_file: Path, images: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open("photos/a.jpg") as image:
        image.save("photos/turned.jpg", exif=exif)

    predict(model_file, "photos/turned.jpg")

    with Image.open("predictions/turned.jpg") as drawn:
        assert drawn.size == (60, 90)
        assert drawn.getexif().get(0x0112, 1) == 1


def test_a_wrong_model_or_device_is_an_error_without_traceback(model_file: Path, images: Path) -> None:
    missing = CliRunner().invoke(main, ["predict", "missing.safetensors", "photos"])
    device = CliRunner().invoke(main, ["predict", str(model_file), "photos", "--device", "gpu"])

    assert missing.exit_code == device.exit_code == 2
    assert "there is no model file missing.safetensors" in missing.output
    assert "'gpu' is neither one of auto, cpu, cuda, mps nor GPU numbers" in device.output


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_many_images_are_shared_by_processes_and_the_files_are_the_same(
    model_file: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (images / "photos" / "broken.png").write_text("no image")
    seen: list[int] = []

    def counted(*args: Any, num_processes: int = 1, **options: Any) -> Any:
        seen.append(num_processes)
        return predict_each(*args, num_processes=num_processes, **options)

    monkeypatch.setattr("fcos.predict.images.predict_each", counted)
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    monkeypatch.setattr("torch.set_num_threads", lambda number: None)  # nor are there two in truth
    outputs = []
    for out, number in (("few", 100), ("many", 4), ("told", 100)):
        monkeypatch.setattr("fcos.cli.processes.MANY_IMAGES", number)
        words = ("--num-processes", "3") if out == "told" else ()
        result = predict(model_file, "photos", "--out", out, "--score-threshold", "0", *words)
        assert result.exit_code == 1, result.output
        assert result.output.count("skipped: ") == 1
        content = (images / out / "detections.json").read_text().replace(f"{out}/", "out/")
        outputs.append([content, *((images / out / name).read_bytes() for name in drawn_below(out))])

    assert seen == [1, 2, 3]
    assert outputs[0] == outputs[1] == outputs[2]
    assert len(outputs[0]) == 4


def test_forks_only_where_they_can_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    assert can_fork(Path("best.safetensors"), "cpu") == (sys.platform == "linux")
    monkeypatch.setattr("sys.platform", "linux")
    assert can_fork(Path("best.safetensors"), "cpu")
    assert not can_fork(Path("model.onnx"), "cpu")
    monkeypatch.setattr("sys.platform", "darwin")
    assert not can_fork(Path("best.safetensors"), "cpu")
    assert usual_processes(99) == 1
    monkeypatch.setattr("torch.get_num_threads", lambda: 64)
    assert usual_processes(100) == 8


def test_one_process_loads_neither_fabric_nor_training_nor_export(model_file: Path, images: Path) -> None:
    code = f"""import sys
from fcos.cli import main
main(["predict", {str(model_file)!r}, "photos/a.jpg", "--device", "cpu"], standalone_mode=False)
print(*sys.modules)"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    loaded = said.splitlines()[-1].split()
    assert {"fcos.cli.predict", "fcos.predict.predictor", "fcos.predict.draw"} <= set(loaded)
    unwanted = ("lightning_fabric", "fcos.train", "fcos.export", "fcos.report")
    assert not [name for name in loaded if name.startswith(unwanted)]
    assert len(written()["images"]) == 1


def test_an_image_goes_through_twelve_files(model_file: Path, images: Path) -> None:
    """From the list of sources to the drawn copy, once the model is loaded and ready.

    What makes the network fast (`cpu`) gives the same, and what writes files and messages explains itself.
    """
    detector = Detector.load(model_file, "cpu").side_by_side()
    files: set[str] = set()

    def note(frame: FrameType, event: str, argument: object) -> None:
        path = Path(frame.f_code.co_filename)
        if SOURCE in path.parents:
            files.add(path.relative_to(SOURCE).as_posix())

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        sources = plan(find_sources(["photos/a.jpg"], Path("out")), Path("out"))
        [outcome] = predict_images(detector, sources, Path("out"), 0.5)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)

    assert outcome["detections"]
    path = {file for file in files if not file.startswith(("cpu/", "files.py", "terminal.py"))}
    assert len(path) <= 12, sorted(path)
    assert {"predict/images.py", "model/fcos.py", "predict/draw.py"} <= path


def test_batches_of_mixed_sizes_give_what_each_image_gives_alone(model_file: Path, images: Path) -> None:
    rng = np.random.default_rng(1)
    for number, (height, width) in enumerate([(60, 90), (90, 60), (30, 90), (60, 90), (64, 64), (20, 100)]):
        coarse = rng.integers(0, 255, (height // 10 + 1, width // 10 + 1, 3), dtype=np.uint8)
        pixels = coarse.repeat(10, axis=0).repeat(10, axis=1)[:height, :width]
        Image.fromarray(pixels).save(images / "photos" / f"{number}.png")

    contents = []
    for batch_size in ("1", "8"):
        arguments = ["photos", "--score-threshold", "0.1", "--batch-size", batch_size, "--no-draw"]
        assert predict(model_file, *arguments).exit_code == 0
        contents.append(written()["images"])

    alone, together = contents
    assert [len(entry["detections"]) > 0 for entry in alone] == [True] * 9
    assert together == alone  # to the last printed digit


def test_what_is_broken_does_not_stop_the_rest(model_file: Path, images: Path) -> None:
    os.mkfifo("photos/pipe.jpg")
    os.symlink("nowhere", "photos/dead.jpg")
    name = "photos/\x1b]0;title\x07\n.jpg"
    Path(name).write_bytes(Path("photos/a.jpg").read_bytes())

    result = predict(model_file, "photos", "http://[", "http://127.0.0.1:9/a.jpg")

    assert result.exit_code == 1
    assert "skipped: photos/pipe.jpg: this is a pipe, not a file\n" in result.stderr
    assert "skipped: photos/dead.jpg: this is a broken link\n" in result.stderr
    assert "skipped: http://[: cannot be downloaded: Invalid IPv6 URL\n" in result.stderr
    assert result.stderr.endswith(" and 1 more\n")
    assert "4 of 8 images could not be read: photos/" in result.stderr
    assert "\x1b" not in result.output
    content = written()
    assert name in [entry["path"] for entry in content["images"]]
    assert len(content["images"]) == len(content["failed"]) == 4


def test_escape_codes_in_names_do_not_reach_the_terminal(model_file: Path, images: Path) -> None:
    Path("photos/\x1b[2J.jpg").write_text("no image")
    result = predict(model_file, "photos/\x1b[2J.jpg")
    assert result.exit_code == 1
    assert r"skipped: photos/\x1b[2J.jpg: " in result.stderr


@pytest.mark.parametrize("draw", ["--draw", "--no-draw"])
def test_a_folder_that_cannot_be_written_is_said_before_the_work(
    model_file: Path, images: Path, draw: str
) -> None:
    (images / "file").write_text("")
    with mock.patch("fcos.detector.Detector.load", side_effect=AssertionError("no work yet")):
        result = predict(model_file, "photos", "--out", "file/found", draw)
    assert result.exit_code == 2
    assert "cannot be written: " in result.output
    assert "in: file/found" in result.output


def test_a_drawn_copy_that_cannot_be_written_is_one_message(model_file: Path, images: Path) -> None:
    with mock.patch("PIL.Image.Image.save", side_effect=OSError(28, "No space left on device")):
        result = predict(model_file, "photos")
    assert result.exit_code == 2
    assert "cannot be written: No space left on device\n  in: predictions/" in result.output


def test_agnostic_nms_leaves_one_class_in_a_place(model_file: Path, images: Path) -> None:
    counts = []
    for options in ([], ["--agnostic-nms"]):
        assert predict(model_file, "photos/a.jpg", "--score-threshold", "0.05", *options).exit_code == 0
        counts.append(len(written()["images"][0]["detections"]))
    assert 0 < counts[1] < counts[0]


def test_without_a_readable_image_no_speed_is_printed(
    model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.jpg").write_bytes(b"no image")

    result = predict(model_file, "a.jpg", "--out", "found")

    assert result.exit_code == 1
    assert "no images were read" in result.output
    assert "images/s" not in result.output


# Labels, classes, crops -------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["coco", "list", "voc", "yolo"])
def test_saved_labels_are_a_data_set_with_the_detections_as_boxes(
    model_file: Path, images: Path, format: str
) -> None:
    Path("photos/broken.png").write_bytes(b"no image")
    result = predict(model_file, "photos", "--save-labels", format, "--score-threshold", "0.55")

    assert result.exit_code == 1  # of the image that cannot be read
    content = written()
    labels = content["labels"]
    assert f"labels saved to {labels['path']}" in result.output
    source, root = Path(labels["path"]), labels["root"] and Path(labels["root"])
    annotations = read_annotations(source, root=root)
    assert annotations.format == labels["format"] == format
    named = {"bird", "cat", "dog"}
    assert set(annotations.class_names) <= named if format == "voc" else set(annotations.class_names) == named
    boxes_of = {about["path"]: about["detections"] for about in content["images"]}
    assert sum(map(len, boxes_of.values())) > 0
    found = {os.path.realpath(record.path): record for record in annotations}
    assert set(found) == {os.path.realpath(path) for path in boxes_of}
    for path, expected in boxes_of.items():
        record = found[os.path.realpath(path)]
        boxes = [entry["box_xyxy"] for entry in expected]
        np.testing.assert_allclose(record.boxes_xyxy, np.reshape(boxes, (-1, 4)), atol=1e-6)
        names = [annotations.class_names[label] for label in record.labels]
        assert names == [entry["class_name"] for entry in expected]
    words = ["check", labels["path"], *(["--root", labels["root"]] if root else [])]
    checked = CliRunner().invoke(main, words)
    assert checked.exit_code == 0, checked.output


def test_an_image_without_detections_is_an_image_without_boxes(model_file: Path, images: Path) -> None:
    predict(model_file, "photos/a.jpg", "--save-labels", "yolo", "--score-threshold", "1")

    assert Path("predictions/labels_yolo/labels/train/a.txt").read_text() == ""
    assert Path("predictions/labels_yolo/images/train/a.jpg").resolve() == Path("photos/a.jpg").resolve()


def test_labels_leave_out_outputs_that_stand_for_no_class(images: Path) -> None:
    entry = {"box_xyxy": [10.0, 20.0, 40.0, 50.0], "label": 2}
    about = {"path": "photos/a.jpg", "width": 90, "height": 60, "detections": [entry]}

    save_labels(("cat", "(no class 2)", "dog"), (1, 2, 3), [about], "coco", Path("out"))

    coco = json.loads(Path("out/labels_coco.json").read_text())
    assert coco["categories"] == [{"id": 1, "name": "cat"}, {"id": 3, "name": "dog"}]
    [box] = coco["annotations"]
    assert (box["category_id"], box["bbox"], box["area"]) == (3, [10, 20, 30, 30], 900)
    assert coco["images"][0] == {"id": 1, "file_name": "a.jpg", "height": 60, "width": 90}


def test_labels_of_an_earlier_call_may_have_been_corrected_and_are_not_replaced(
    model_file: Path, images: Path
) -> None:
    assert predict(model_file, "photos", "--save-labels", "coco").exit_code == 0
    before = Path("predictions/labels_coco.json").read_bytes()
    again = predict(model_file, "photos", "--save-labels", "coco", "--score-threshold", "0")

    assert again.exit_code == 2
    assert "the output already exists\n  in: predictions/labels_coco.json" in again.output
    assert Path("predictions/labels_coco.json").read_bytes() == before


def test_labels_need_files_with_names_that_the_format_can_hold(model_file: Path, images: Path) -> None:
    Path("photos/a.png").write_bytes(Path("photos/a.jpg").read_bytes())
    with mock.patch("fcos.detector.Detector.load", side_effect=AssertionError("no work yet")):
        same = predict(model_file, "photos", "--save-labels", "yolo")
        address = predict(model_file, "http://127.0.0.1:9/a.jpg", "--save-labels", "coco")

    assert same.exit_code == address.exit_code == 2
    assert "would share its annotation file with" in same.output
    assert "labels can only be saved for image files\n  in: http://127.0.0.1:9/a.jpg" in address.output


def test_classes_leaves_out_the_others(model_file: Path, images: Path) -> None:
    predict(model_file, "photos/a.jpg", "--score-threshold", "0.05")
    [every] = written()["images"]
    result = predict(model_file, "photos/a.jpg", "--score-threshold", "0.05", "--classes", "cat, bird")
    [some] = written()["images"]

    assert result.exit_code == 0
    names = {entry["class_name"] for entry in every["detections"]}
    assert names == {"cat", "dog", "bird"}
    assert some["detections"] == [entry for entry in every["detections"] if entry["class_name"] != "dog"]
    assert written()["class_names"] == ["cat", "dog", "bird"]


def test_an_unknown_class_is_an_error_that_lists_the_classes(model_file: Path, images: Path) -> None:
    result = predict(model_file, "photos/a.jpg", "--classes", "cat,cow")

    assert result.exit_code == 2
    assert "the model has no class 'cow'\n  fix: choose from its classes: cat, dog, bird" in result.output


def test_a_class_with_a_comma_is_given_alone() -> None:
    classes = ("cat", "dog", "cup, glass")

    assert class_list(["cat, dog"], classes) == ["cat", "dog"]
    assert class_list(["cup, glass", "cat"], classes) == ["cup, glass", "cat"]


def test_classes_can_be_repeated(model_file: Path, images: Path) -> None:
    result = predict(
        model_file, "photos/a.jpg", "--score-threshold", "0.05", "--classes", "cat", "--classes", "bird"
    )

    assert result.exit_code == 0
    [about] = written()["images"]
    assert {entry["class_name"] for entry in about["detections"]} == {"cat", "bird"}


def test_crops_are_the_pixels_of_the_boxes(model_file: Path, images: Path) -> None:
    result = predict(model_file, "photos", "--save-crops", "--score-threshold", "0.55")

    assert result.exit_code == 0, result.output
    about = next(about for about in written()["images"] if about["path"].endswith("图.png"))
    boxes = Detector.load(model_file, "cpu").predict(about["path"], 0.55).boxes_xyxy
    assert len(about["detections"]) == len(boxes) > 0
    whole = np.asarray(Image.open(about["path"]))
    for number, (entry, box) in enumerate(zip(about["detections"], boxes.tolist(), strict=True), start=1):
        crop = Path(entry["crop"])
        assert crop == Path(f"predictions/crops/{entry['class_name']}/sub/ünï 图_{number}.png")
        left, top = map(math.floor, box[:2])
        right, bottom = map(math.ceil, box[2:])
        with Image.open(crop) as image:
            assert np.array_equal(np.asarray(image), whole[top:bottom, left:right])


def test_crops_of_an_earlier_call_are_not_mixed_with_new_ones(model_file: Path, images: Path) -> None:
    assert predict(model_file, "photos", "--save-crops").exit_code == 0
    again = predict(model_file, "photos", "--save-crops")

    assert again.exit_code == 2
    assert "the folder for crops already exists\n  in: predictions/crops" in again.output


def test_no_class_name_leaves_the_folder_of_crops_or_is_too_long_for_one() -> None:
    short = [("traffic light", "traffic_light"), ("../..", "_"), ("", "_"), ("a/b", "a_b")]
    for name, folder in [*short, ("犬" * 90, "犬" * 60)]:
        assert crop_path(Path("out"), Path("sub/x.jpg"), name, 3) == Path(f"out/crops/{folder}/sub/x_3.jpg")


# -- tiles and large files


def test_tiles_and_augmentation_are_those_of_the_detector(model_file: Path, images: Path) -> None:
    detector = Detector.load(model_file, "cpu")
    for words, options in (
        (["--tile", "40", "--overlap", "0.5"], {"tile": 40, "overlap": 0.5}),
        (["--tta"], {"tta": True}),
    ):
        result = predict(model_file, "photos/a.jpg", *words)
        found = detector.predict("photos/a.jpg", **options)  # type: ignore[call-overload]
        assert result.exit_code == 0, result.output
        [image] = written()["images"]
        boxes = [entry["box_xyxy"] for entry in image["detections"]]
        assert len(boxes) > 0
        np.testing.assert_allclose(boxes, found.boxes_xyxy.tolist(), atol=0.01)


@pytest.mark.parametrize("words", [["--overlap", "0.3"], ["--tile", "16"]])
def test_tiles_that_make_no_sense_are_an_error(model_file: Path, images: Path, words: list[str]) -> None:
    result = predict(model_file, "photos/a.jpg", *words)
    assert result.exit_code != 0
    assert "tiles" in str(result.exception) + result.output


def test_a_file_that_is_read_in_strips_is_not_drawn(
    model_file: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strips, "LARGE", 0)
    Path("photos/a.jpg").unlink()
    result = predict(model_file, "photos/sub", "--tile", "40")
    assert result.exit_code == 0, result.output
    assert "not drawn: photos/sub/ünï 图.png: too large" in result.output
    gif, png = written()["images"]
    assert (png["width"], png["height"]) == (90, 60)
    assert len(png["detections"]) > 0
    assert "drawn" not in png
    assert "drawn" in gif  # a format that is always read as a whole
