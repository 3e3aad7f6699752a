from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fcos.config import load_config
from fcos.data.annotations import Annotations, Record
from fcos.data.formats import read_annotations
from fcos.errors import DatasetError
from fcos.files import write_text
from fcos.train.input_size import Budget, image_sizes
from fcos.train.propose import Hardware, budget_of, find_hardware, propose, propose_data
from fcos.weights.start import adopt_settings, find_start

CPU = Hardware(num_cores=2)
GPU = Hardware(num_cores=16, num_gpus=1, gpu_memory_gb=80.0, bf16_is_faster=True)


def make(
    num_images: int = 100,
    size_hw: tuple[int, int] | None = (480, 640),
    box_side: float = 100.0,
    class_names: tuple[str, ...] = ("cat", "dog"),
) -> Annotations:
    """Images (without files) of one size with one square box each."""
    records = [
        Record.make(
            Path(f"{index}.jpg"),
            [[0.0, 0.0, float(box_side), float(box_side)]],
            [0],
            index + 1,
            size_hw=size_hw,
        )
        for index in range(num_images)
    ]
    return Annotations.from_records(records, class_names, source=Path("x"), format="list")


def values(train: Annotations, hardware: Hardware) -> dict[str, Any]:
    return {key: value for key, value, _ in propose(train, hardware)}


def reasons(train: Annotations, hardware: Hardware) -> dict[str, str]:
    return {key: reason for key, _, reason in propose(train, hardware)}


@pytest.mark.parametrize("hardware", [CPU, GPU, Hardware(8, 3, 11.0)])
@pytest.mark.parametrize("num_images", [1, 30, 300, 5000])
def test_every_proposal_loads_and_has_a_reason(num_images: int, hardware: Hardware) -> None:
    proposals = propose(make(num_images), hardware)
    config = load_config({key: value for key, value, _ in proposals})
    assert config.model == proposals[0].value
    assert all(reason for _, _, reason in proposals)
    assert len({key for key, _, _ in proposals}) == len(proposals)


def test_machine_decides_the_preset() -> None:
    assert values(make(), CPU)["model"] == "fcos_mobilenetv2"
    assert values(make(), GPU)["model"] == "fcos_r50"
    assert reasons(make(), CPU)["model"].startswith("no GPU, 2 CPU cores: ")
    assert reasons(make(), GPU)["model"].startswith("1 GPU with 80 GB, 16 CPU cores: ")


def test_training_on_a_cpu_starts_from_the_detector_in_the_package() -> None:
    proposed = values(make(), CPU)
    assert (proposed["pretrain"], proposed["lr_backbone"]) == ("everyday", 0.3)
    assert "pretrain" not in values(make(), GPU)
    proposed = load_config({**values(make(), CPU), "list_train": "none"})
    start = find_start(proposed)
    assert start is not None
    _, changes = adopt_settings(proposed, start)
    assert changes == ['quality "none"'], "all other settings of its network are the preset's"


def test_large_boxes_keep_the_presets_size() -> None:
    proposed = values(make(box_side=100.0), CPU)
    assert (proposed["short_side"], proposed["view_size"]) == (320, 532)
    assert reasons(make(box_side=100.0), CPU)["short_side"] == (
        "images are 640 x 480; 90 % of boxes are then larger than 67 pixels"
    )


def test_small_boxes_are_shown_larger() -> None:
    # 18 of 480 pixels: 12 at short side 320, 14.4 at 384, 16.8 at 448
    assert values(make(box_side=18.0), CPU)["short_side"] == 448
    assert reasons(make(box_side=18.0), CPU)["short_side"] == (
        "images are 640 x 480; 90 % of boxes are then larger than 17 pixels; 2.0 x the training time of 320"
    )


def test_tiny_boxes_are_shown_as_large_as_is_affordable() -> None:
    assert values(make(box_side=4.0), CPU)["short_side"] == 640
    assert "strides" not in values(make(box_side=4.0), CPU)
    assert reasons(make(box_side=4.0), CPU)["short_side"].endswith("larger takes too long")


def test_objects_too_small_in_images_that_show_no_more_get_a_finer_level() -> None:
    # 3 of 200 pixels: 6 at 400, twice the pixels of the image
    proposed = values(make(size_hw=(200, 240), box_side=3.0), CPU)
    assert (proposed["short_side"], proposed["strides"][0]) == (400, 4)
    load_config(proposed)
    assert reasons(make(size_hw=(200, 240), box_side=3.0), CPU)["short_side"].endswith("show no more detail")
    assert "strides" not in values(make(size_hw=(200, 240), box_side=5.0), CPU)


def with_budget(train: Annotations, minutes: int) -> tuple[dict[str, Any], dict[str, str]]:
    """Values and reasons where 320 x 532 pixels take a tenth of a second: 540 images a minute."""
    budget = Budget(float(minutes), 10.0 * 320 * 532, 6000)
    proposals = propose(train, CPU, budget)
    return {key: value for key, value, _ in proposals}, {key: reason for key, _, reason in proposals}


def test_a_time_that_is_enough_keeps_the_size_and_trains_longer() -> None:
    proposed, why = with_budget(make(150, box_side=18.0), 60)
    # 448 x 745 pixels take 0.196 s: 32,400 s of images hold 16,532 = 110 epochs of 150
    assert (proposed["short_side"], proposed["epochs"]) == (448, 110)
    assert why["epochs"] == "150 images, 16,500 samples in about 60 minutes"
    assert with_budget(make(150), 600)[0]["epochs"] == 120, "three times the usual 40"


def test_a_short_time_keeps_small_images_and_says_what_is_missed() -> None:
    proposed, why = with_budget(make(150, box_side=18.0), 12)
    # 12 minutes hold 6,480 images of 320 x 532, fewer than 6,000 of any larger size
    assert (proposed["short_side"], proposed["epochs"]) == (320, 43)
    assert why["short_side"].endswith("384 would be better, but takes 1.4 x the time")


def test_where_too_little_fits_the_reason_says_so() -> None:
    proposed, why = with_budget(make(150), 3)
    assert (proposed["short_side"], proposed["epochs"]) == (320, 10)
    assert why["epochs"] == "150 images, 1,500 samples in about 3 minutes; more would help, but does not fit"
    assert with_budget(make(1000), 1)[0]["epochs"] == 1


def test_the_speed_of_this_machine_is_measured() -> None:
    budget = budget_of(10.0, 300, CPU)
    assert (budget.minutes, budget.samples) == (10, 300 * 20)
    assert 0.2 < budget.pixels_per_s / (320 * 532) < 2000, "images per second"


def test_small_images_are_not_blown_up() -> None:
    assert values(make(size_hw=(100, 120)), GPU)["short_side"] == 200


def test_wide_images_get_room() -> None:
    assert values(make(size_hw=(400, 800)), CPU)["view_size"] == 640
    assert values(make(size_hw=(400, 4000)), CPU)["view_size"] == 800


def test_few_images_are_seen_more_often() -> None:
    epochs = [values(make(count), CPU)["epochs"] for count in (10, 150, 300, 5000)]
    assert epochs == [200, 40, 20, 12]
    assert values(make(300), GPU)["epochs"] == 200
    assert values(make(10), CPU)["eval_epochs"] == 8
    assert "eval_epochs" not in values(make(300), CPU)


def test_few_images_are_augmented() -> None:
    assert values(make(100), CPU)["augmentation"] is True
    assert values(make(3000), CPU)["augmentation"] is False


def with_rare_dog(num_dogs: int) -> Annotations:
    """200 images, each with a cat; some with a dog too."""
    records = [
        Record.make(
            Path(f"{index}.jpg"),
            [[0, 0, 90, 90]] * (1 + (index < num_dogs)),
            [0, 1][: 1 + (index < num_dogs)],
            index + 1,
            size_hw=(480, 640),
        )
        for index in range(200)
    ]
    return Annotations.from_records(records, ["cat", "dog"], source=Path("x"), format="list")


def test_images_of_a_rare_class_are_repeated() -> None:
    # The median of 200 and 10 is 105: more than ten times 10. Of 200 and 11 it is 105.5.
    assert values(with_rare_dog(10), CPU)["repeat_threshold"] == 0.53
    assert reasons(with_rare_dog(10), CPU)["repeat_threshold"] == (
        'class "dog" is in 10 images, the median class in 105: repeat images of classes below the median'
    )
    assert "repeat_threshold" not in values(with_rare_dog(11), CPU)
    assert "repeat_threshold" not in values(with_rare_dog(0), CPU)  # nothing to repeat


@pytest.mark.parametrize(
    "class_names",
    [
        ("0", "1"),
        ("cat", "A"),
        ("turn_left", "go"),
        ("digit",),
        ("text line",),
        ("Letters",),
        ("12",),
        ("right-arrow",),
    ],
)
def test_what_reads_differently_in_a_mirror_is_not_flipped(class_names: tuple[str, ...]) -> None:
    assert values(make(class_names=class_names), CPU)["horizontal_flip"] is False
    assert "when flipped" in reasons(make(class_names=class_names), CPU)["horizontal_flip"]


@pytest.mark.parametrize(
    "class_names", [("RBC", "WBC"), ("raccoon",), ("stop sign", "copyright"), ("class_1",)]
)
def test_other_classes_are_flipped(class_names: tuple[str, ...]) -> None:
    assert values(make(class_names=class_names), CPU)["horizontal_flip"] is True


def test_batch_is_shared_by_all_gpus_and_fits_their_memory() -> None:
    proposed = values(make(5000), Hardware(16, 2, 8.0))
    assert (proposed["nbatch_train"], proposed["micro_batch"]) == (16, 2)
    assert "micro_batch" not in values(make(5000), GPU)
    assert values(make(5000), Hardware(16, 3, 80.0))["nbatch_train"] == 15


def test_few_images_get_half_the_batch_and_with_it_half_the_rate() -> None:
    proposed = values(make(50), CPU)
    usual = load_config({"model": "fcos_mobilenetv2"})
    assert proposed["nbatch_train"] == usual.nbatch_train // 2
    assert load_config(proposed).lr_base == usual.lr_base / 2


def test_bf16_is_used_where_it_is() -> None:
    assert values(make(), GPU)["precision"] == "bf16"
    assert "precision" not in values(make(), CPU)


def test_sizes_are_read_from_the_images_where_the_annotations_do_not_tell(tmp_path: Path) -> None:
    Image.new("RGB", (60, 40)).save(tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    records = [
        Record.make(tmp_path / "a.png", [[0.0, 0.0, 10.0, 10.0]], [0], 1),
        Record.make(tmp_path / "broken.png", [[0.0, 0.0, 30.0, 10.0]], [0], 2),
    ]
    annotations = Annotations.from_records(records, ("cat",), source=tmp_path, format="list")
    sizes, box_sides = image_sizes(annotations)
    assert sizes.tolist() == [[40, 60]]
    assert box_sides.tolist() == [0.25]


def test_unreadable_images_keep_the_presets_size(tmp_path: Path) -> None:
    train = make(size_hw=None)
    assert values(train, CPU)["short_side"] == 320
    assert reasons(train, CPU)["short_side"] == "the preset's; no images could be read"


def test_this_machine_has_a_core() -> None:
    hardware = find_hardware()
    assert hardware.num_cores >= 1
    assert "CPU core" in str(hardware)


# The data of a folder


def write_list(folder: Path, name: str, num_images: int, boxes: str = " 1 2 11 22 1") -> None:
    folder.mkdir(exist_ok=True)
    lines = []
    for index in range(num_images):
        Image.new("RGB", (40, 30)).save(folder / f"{name}{index}.jpg")
        lines.append(f"{name}{index}.jpg{boxes}")
    (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")


def test_split_of_the_folder_is_used(tmp_path: Path) -> None:
    write_list(tmp_path / "birds", "train", 4)
    write_list(tmp_path / "birds", "val", 2)
    data = propose_data(tmp_path / "birds", tmp_path / "split")
    proposed = {key: value for key, value, _ in data.proposals}
    assert proposed["list_train"] == tmp_path / "birds" / "train.txt"
    assert proposed["list_eval"] == tmp_path / "birds" / "val.txt"
    assert proposed["run_folder"] == "runs/birds"
    assert len(data.train) == 4
    assert data.files == {}


def test_split_is_made_by_image_where_the_folder_brings_none(tmp_path: Path) -> None:
    write_list(tmp_path / "birds", "all", 10)
    data = propose_data(tmp_path / "birds", tmp_path / "split")
    for file, text in data.files.items():
        write_text(file, text)
    proposed = {proposal.key: proposal for proposal in data.proposals}
    assert "the folder has no splits, so it was split: 8 images" in proposed["list_train"].reason
    assert "2 images chosen at random (seed 0)" in proposed["list_eval"].reason
    parts = [
        read_annotations(proposed[f"list_{part}"].value, root=proposed[f"root_{part}"].value)
        for part in ("train", "eval")
    ]
    paths = [{record.path for record in part} for part in parts]
    assert (len(paths[0]), len(paths[1])) == (8, 2)
    assert not paths[0] & paths[1]
    assert all(path.is_file() for path in paths[0] | paths[1])
    assert np.array_equal(parts[0][0].boxes_xyxy, [[2, 1, 22, 11]])


def test_made_split_is_the_same_every_time(tmp_path: Path) -> None:
    write_list(tmp_path / "birds", "all", 10)
    paths = [
        [record.path for record in propose_data(tmp_path / "birds", tmp_path / "split").train]
        for _ in range(2)
    ]
    assert paths[0] == paths[1]


def test_folder_without_a_box_is_refused(tmp_path: Path) -> None:
    (tmp_path / "birds").mkdir()
    write_list(tmp_path / "birds" / "images", "a", 3)
    (tmp_path / "birds" / "data.yaml").write_text("train: images\nnames: [cat]\n")
    with pytest.raises(DatasetError) as caught:
        propose_data(tmp_path / "birds", tmp_path / "split")
    assert str(caught.value) == (
        "3 images, but no boxes (read as format yolo)\n"
        f"  in: {tmp_path}/birds/data.yaml:train\n"
        "  fix: put the annotations where the format expects them, or set list_train in a train.json"
    )


def test_folder_with_impossible_classes_cannot_be_split(tmp_path: Path) -> None:
    write_list(tmp_path / "birds", "all", 3, boxes=" 1 2 11 22 0")
    with pytest.raises(DatasetError, match="boxes without a known class or finite coordinates") as caught:
        propose_data(tmp_path / "birds", tmp_path / "split")
    assert "`fcos check " in caught.value.fix
