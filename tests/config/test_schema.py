import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fcos.config import ALIASES, GROUPS, TrainConfig, dump_config, expects, load_config, unit
from fcos.config.checks import check_classes, check_paths, split_batch
from fcos.config.file import key_lines
from fcos.config.other_tools import NONE, SAME, plain_key
from fcos.errors import ConfigError

# The seed's file as its document prints it, word for word.
SEED_FILE = """{
    "root_train": "/home1/xyt/dataset/coco17/images",
    "root_eval": "/home1/xyt/dataset/coco17/images",
    "list_train": "data/coco_train2017.txt",
    "list_eval": "data/coco_val2017.txt",
    "name_file": "data/coco_name.txt",

    "load": false,
    "save": true,
    "pretrain": true,
    "freeze_bn": true,
    "freeze_stages": 1,
    "epoches": 12,

    "nbatch_train": 16,
    "nbatch_eval": 16,
    "device": [1,2,3,5,6,7,8,9],
    "num_workers": 16,
    
    "lr_base": 0.01,
    "lr_gamma": 0.1,
    "lr_schedule": [60000, 80000],
    "momentum": 0.9,
    "weight_decay": 0.0001,

    "boxarea_th": 32,
    "grad_clip": 3,
    
    "img_scale_min": 0.8,
    "augmentation": false
}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, text: str, name: str = "train.json") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def message(source: object, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(source, overrides)  # type: ignore[arg-type]
    return str(caught.value)


def test_seeds_file_loads_word_for_word_with_its_meanings(folder: Path) -> None:
    config = load_config(write(folder, SEED_FILE))
    expected = {
        "root_train": "/home1/xyt/dataset/coco17/images",
        "root_eval": "/home1/xyt/dataset/coco17/images",
        "list_train": f"{folder}/data/coco_train2017.txt",
        "list_eval": f"{folder}/data/coco_val2017.txt",
        "name_file": f"{folder}/data/coco_name.txt",
        "load": False,
        "save": True,
        "pretrain": True,
        "freeze_bn": True,
        "freeze_stages": 1,
        "epochs": 12,
        "nbatch_train": 16,
        "nbatch_eval": 16,
        "device": [1, 2, 3, 5, 6, 7, 8, 9],
        "num_workers": 16,
        "lr_base": 0.01,
        "lr_gamma": 0.1,
        "lr_schedule": [60000, 80000],
        "momentum": 0.9,
        "weight_decay": 0.0001,
        "boxarea_th": 32,
        "grad_clip": 3,
        "img_scale_min": 0.8,
        "augmentation": False,
    }
    assert {key: getattr(config, key) for key in expected} == expected
    assert set(json.loads(SEED_FILE)) - {"epoches"} == set(expected) - {"epochs"}


def test_seeds_document_still_prints_that_file(shared: Path) -> None:
    assert f"```json\n{SEED_FILE}```" in (shared / "seed.md").read_text()


def test_epochs_may_be_spelled_both_ways() -> None:
    assert load_config({"epochs": 7}).epochs == load_config({"epoches": 7}).epochs == 7
    assert load_config({"epochs": 7}, ["epoches=9"]).epochs == 9
    assert load_config({"epochs": 7, "epoches": 7, "eval_epoches": 2}).eval_epochs == 2
    assert TrainConfig(epoches=5).epochs == 5
    with pytest.raises(ValidationError):
        TrainConfig(epoches=5, epochs=6)


def test_later_sources_win_over_earlier_ones(folder: Path) -> None:
    file = write(folder, '{"model": "fcos_lite0",\n "head_convs": 3,\n "epochs": 5}')
    config = load_config(file, ["epochs=6"])
    assert (config.nbatch_train, config.head_convs, config.epochs) == (8, 3, 6)
    assert config.origin("seed") == "default"
    assert config.origin("nbatch_train") == "preset fcos_lite0"
    assert config.origin("head_convs") == f"file {file}, line 2"
    assert config.origin("epochs") == "command line, epochs=6"


def test_preset_on_the_command_line_replaces_the_files_preset(folder: Path) -> None:
    file = write(folder, '{"model": "fcos_lite0"}')
    assert load_config(file, ["model=fcos_r18"]).backbone == "resnet18"


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("epochs=24", "epochs", 24),
        ("lr_base=2e-2", "lr_base", 0.02),
        ("save=false", "save", False),
        ("short_side=null", "short_side", None),
        ("device=cpu", "device", "cpu"),
        ("device=[0,1]", "device", [0, 1]),
        ("device=0,1", "device", [0, 1]),
        ("device=3", "device", [3]),
        ("lr_schedule=0.5,0.75", "lr_schedule", [0.5, 0.75]),
        ("augmentation=strong", "augmentation", "strong"),
        ("augmentation=true", "augmentation", True),
    ],
)
def test_override_is_read_as_json_or_else_as_text(word: str, key: str, value: object) -> None:
    assert getattr(load_config(None, [word]), key) == value


def test_text_setting_takes_a_number_as_text(folder: Path) -> None:
    assert load_config(None, ["run_folder=2024"]).run_folder == str(folder / "2024")


def test_relative_path_is_beside_the_config_file_or_else_in_the_working_directory(folder: Path) -> None:
    (folder / "configs").mkdir()
    (folder / "lists").mkdir()
    (folder / "configs" / "both.txt").touch()
    for name in ("both.txt", "here.txt"):
        (folder / name).touch()
    text = '{"list_train": "both.txt", "list_eval": "here.txt", "name_file": "nowhere.txt"}'
    config = load_config(write(folder / "configs", text))
    assert config.list_train == str(folder / "configs" / "both.txt")
    assert config.list_eval == str(folder / "here.txt")
    assert config.name_file == str(folder / "configs" / "nowhere.txt")


def test_path_on_the_command_line_is_in_the_working_directory(folder: Path) -> None:
    (folder / "configs").mkdir()
    (folder / "configs" / "a.txt").touch()
    config = load_config(write(folder / "configs", "{}"), ["list_train=a.txt", "pretrain=weights.pth"])
    assert config.list_train == str(folder / "a.txt")
    assert config.pretrain == str(folder / "weights.pth")


def test_run_folder_takes_its_name_from_the_config_file(folder: Path) -> None:
    assert load_config(write(folder, "{}", "bccd.json")).run_folder == str(folder / "runs" / "bccd")
    assert load_config({"model": "fcos_r18"}).run_folder == str(folder / "runs" / "fcos_r18")
    assert load_config({"run_folder": "mine"}).run_folder == str(folder / "mine")


def test_dumped_config_loads_the_same_from_anywhere(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(write(folder, SEED_FILE), ["model=fcos_seed", "name_file=Namen für Köpfe.txt"])
    dump_config(config, folder / "config.json")
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert load_config(folder / "config.json") == config
    assert set(json.loads((folder / "config.json").read_text())) == set(TrainConfig.model_fields)


def test_python_values_are_taken_too(folder: Path) -> None:
    config = load_config({"list_train": folder / "a.txt", "device": (0, 1)})
    assert (config.list_train, config.device) == (str(folder / "a.txt"), [0, 1])


def test_loading_a_config_imports_no_torch() -> None:
    code = "import sys, fcos; fcos.load_config({'model': 'fcos_r18'}); print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"


# Messages


def test_unknown_key_is_refused_with_line_and_nearest_key(folder: Path) -> None:
    file = write(folder, '{\n  "nbatch_train": 8,\n  "epochs_": 12\n}')
    assert message(file) == (
        f'"epochs_" is not a setting\n  in: file {file}, line 3\n  fix: did you mean "epochs"?'
    )


@pytest.mark.parametrize(
    ("key", "ours"),
    [
        ("imgsz", '"view_size" (longest side after resizing) and "short_side" ('),
        ("batch", '"nbatch_train" (batch size: images per optimizer step, over all devices)'),
        ("batch-size", '"nbatch_train" ('),
        ("--lr0", '"lr_base" ('),
        ("max_epochs", '"epochs" (passes over the training data)'),
        ("SOLVER.IMS_PER_BATCH", '"nbatch_train" ('),
        ("weights", '"pretrain" ('),
        ("data", '"list_train" ('),
        ("conf", '"score_threshold" ('),
        ("early_stopping", '"patience" ('),
        ("oversample_thr", '"repeat_threshold" ('),
        ("time", '"time_limit" (maximum time for training'),
        ("optim_wrapper.optimizer.lr", '"lr_base" ('),
    ],
)
def test_key_of_another_tool_is_answered_with_ours(key: str, ours: str) -> None:
    for text in (message({key: 8}), message(None, f"{key}=8")):
        assert f'"{key}" is not a setting' in text
        assert f"fix: use {ours}" in text


def test_key_without_an_equivalent_says_so() -> None:
    for key, why in (("cache", "images are not cached"), ("cutmix", "mix images")):
        assert "fix: remove it; " in message({key: 8})
        assert why in message(None, f"{key}=8")


def test_keys_within_keys_are_answered_one_by_one() -> None:
    text = message({"SOLVER": {"BASE_LR": 0.1, "STEPS": [3]}})
    assert '"SOLVER.BASE_LR" is not a setting' in text
    assert 'fix: use "lr_schedule"' in text
    assert 'did you mean "momentum"?' in message({"SOLVER": {"MOMENTUM": 0.9}})
    assert 'did you mean "device"?' in message({"MODEL.DEVICE": 8})


def test_what_other_tools_say_leads_to_settings_that_exist() -> None:
    for ours in SAME:
        assert set(ours.split(", ")) <= set(TrainConfig.model_fields)
    words = [word for group in (*SAME.values(), *NONE) for word in group.split()]
    assert len(words) == len(set(words))
    assert not set(words) & {*TrainConfig.model_fields, *ALIASES}
    assert all(word == plain_key(word) for word in words)


def test_weight_file_as_model_is_told_from_a_preset() -> None:
    text = message(None, "model=yolov8n.pt")
    assert '"model": "yolov8n.pt" is not a preset' in text
    assert 'to start from FCOS weights, set "pretrain"' in text
    assert "Presets: fcos_r50" in text


@pytest.mark.parametrize(
    ("word", "device"), [("0", [0]), ("0,1", [0, 1]), ('"0"', [0]), ("cuda:1", [1]), ("cpu", "cpu")]
)
def test_devices_as_other_tools_have_them(word: str, device: object) -> None:
    assert load_config(None, [f"device={word}", "nbatch_train=4"]).device == device


def test_unknown_key_like_none_points_to_the_list() -> None:
    assert message({"qqqqq": 8}) == (
        '"qqqqq" is not a setting\n  in: dict\n  fix: remove it; `fcos config` lists the settings'
    )


def test_wrong_override_is_said_to_be_on_the_command_line(folder: Path) -> None:
    assert message(write(folder, "{}"), "epochs=0") == (
        '"epochs": 0 is not a valid value\n'
        "  in: command line, epochs=0\n"
        "  fix: use an integer, at least 1 (passes over the training data)"
    )


def test_every_wrong_value_is_reported_at_once(folder: Path) -> None:
    file = write(
        folder,
        '{"epochs_": 1,\n"save": "yes",\n"lr_base": -1,\n"model": "fcos_r5",\n"optimizer": "sdg",\n'
        '"view_size": 100,\n"short_side": 200}',
    )
    text = message(file, "seed=x")
    assert text.startswith("7 settings are wrong\n")
    for line, what in [
        (1, '"epochs_" is not a setting'),
        (2, '"save": "yes" is not a valid value'),
        (3, '"lr_base": -1 is not a valid value'),
        (4, '"model": "fcos_r5" is not a preset'),
        (5, '"optimizer": "sdg" is not a valid value'),
    ]:
        assert f"{what}\n  in: file {file}, line {line}\n  fix: " in text
    assert '"seed": "x" is not a valid value\n  in: command line, seed=x\n' in text
    assert (
        "short_side 200 is more than view_size 100, the longest side\n"
        f"  in: file {file}, line 7; file {file}, line 6\n"
        "  fix: set view_size to at least 200, or short_side to null"
    ) in text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"save": "True"}, "did you mean true? It takes true or false (write checkpoints)"),
        ({"short_side": "None"}, "did you mean null? It takes an integer, at least 32, or null"),
        ({"device": "gpu"}, 'did you mean "cuda"? It takes a list of integers or "auto" or "cpu"'),
        ({"optimizer": "adam"}, 'did you mean "adamw"? It takes "sgd" or "adamw"'),
        ({"epochs": 12.5}, "use an integer, at least 1"),
        ({"epochs": True}, "use an integer, at least 1"),
        ({"momentum": 1}, "use a number, at least 0, less than 1"),
        ({"lr_schedule": ["a"]}, "use a list of numbers"),
        ({"strides": {"p3": 8}}, "use a list of integers"),
        ({"lr_base": float("nan")}, "use a number, more than 0"),
        ({"model": "fcos_lite"}, 'did you mean "fcos_lite0"? Presets: fcos_r50, fcos_r18, fcos_r101'),
        ({"model": "resnet50"}, 'to use a timm network, set "backbone"'),
    ],
)
def test_wrong_value_is_answered_with_what_is_possible(settings: dict[str, object], words: str) -> None:
    assert words in message(settings).splitlines()[2]


@pytest.mark.parametrize(
    ("settings", "what", "fix"),
    [
        (
            {"strides": [16, 32, 64, 128, 256]},
            "must start with 4 or 8",
            "give for example [8, 16, 32, 64, 128]",
        ),
        (
            {"strides": [4, 8, 16], "regress_ranges": [64, 128]},
            "up to 32 or more",
            "give for example [8, 16, 32, 64, 128]",
        ),
        ({"strides": [8, 16, 32, 64, 100]}, "double from level to level", "give for example"),
        (
            {"strides": [8, 16, 32]},
            "regress_ranges has 4 entries for 3 strides",
            "give 2: one per level except",
        ),
        ({"regress_ranges": [64, 32, 256, 512]}, "must be positive and increasing", "sort them"),
        ({"pixel_mean": [1.0, 2.0]}, "pixel_mean [1.0, 2.0] is not 3 numbers", "give 3, or null"),
        ({"pixel_std": [1, 0, 1]}, "pixel_std [1.0, 0.0, 1.0] is not 3 numbers above 0", "give 3, or null"),
        ({"backbone_channels": [64, 64]}, "backbone_channels [64, 64] is not 5 numbers", "give 5, or null"),
        (
            {"lr_schedule": [80000, 60000]},
            "lr_schedule [80000.0, 60000.0] must be positive and increasing",
            "sort it",
        ),
        (
            {"lr_schedule": [0.5, 60000]},
            "mixes fractions of training (below 1) with iterations",
            "give only",
        ),
        (
            {"device": [0, 0]},
            "device [0, 0] must be a list of distinct GPU numbers",
            "give for example [0, 1]",
        ),
        (
            {"quality": "none", "quality_tower": "classification"},
            '"quality_tower" has no effect while "quality" is "none"',
            'remove "quality_tower", or set "quality" to "centerness" or "iou"',
        ),
        (
            {"model": "fcos_lite0", "lr_schedule": [10, 20]},
            '"lr_schedule" has no effect while "lr_policy" is "cosine"',
            'remove "lr_schedule", or set "lr_policy" to "step"',
        ),
        (
            {"mix_until": 0.5},
            '"mix_until" has no effect while "mosaic" is 0.0',
            'or set "mosaic" to more than 0',
        ),
        ({"static_start": 0.1}, '"static_start" has no effect while "assigner" is "static"', '"tal"'),
        (
            {"assigner": "tal", "class_target": "iou"},
            '"class_target" has no effect while "assigner" is "tal"',
            'or set "assigner" to "static" or "atss"',
        ),
        (
            {"assigner": "atss", "center_radius": 2.5},
            '"center_radius" has no effect while "assigner" is "atss"',
            'or set "assigner" to "static"',
        ),
        (
            {"class_loss": "qfl", "focal_alpha": 0.5},
            '"focal_alpha" has no effect while "class_loss" is "qfl"',
            'or set "class_loss" to "focal" or "vfl"',
        ),
        (
            {"num_processes": 2},
            '"num_processes" has no effect while "device" is "auto"',
            'set "device" to "cpu"',
        ),
        (
            {"nbatch_train": 10, "device": [0, 1, 2, 3]},
            "nbatch_train 10 cannot be split evenly over 4 devices",
            "give nbatch_train 8 or 12",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    settings: dict[str, object], what: str, fix: str
) -> None:
    text = message(settings)
    assert what in text.splitlines()[0]
    assert fix in text.splitlines()[2]


def test_wrong_value_is_not_reported_again_by_a_rule_about_it() -> None:
    assert message({"short_side": "big", "view_size": 500}).count("short_side") == 1


@pytest.mark.parametrize(
    ("text", "line", "column", "fix"),
    [
        ('{"epochs": 1,\n}', 2, 1, "remove the comma before the closing bracket"),
        ('{"device": [0, 1,]}', 1, 18, "remove the comma before the closing bracket"),
        ('{"epochs": 1 // twelve\n}', 1, 14, "remove the comment: JSON does not allow comments"),
        ('{"epochs": 1,\n# twelve\n"seed": 1}', 2, 1, "remove the comment: JSON does not allow comments"),
        ('{"save": True}', 1, 10, "write true instead of True"),
        ('{"short_side": None}', 1, 16, "write null instead of None"),
        ('{"epochs": 1\n "seed": 2}', 2, 2, "add the missing comma before this position"),
        ("{'epochs': 1}", 1, 2, 'use double quotes: "..."'),
        ('{"epochs": 1', 1, 13, "add the missing closing brace"),
        ('{"epochs": }', 1, 12, "correct the JSON at this position"),
        ("", 1, 1, 'write the settings as {"list_train": "...", "epochs": 12}'),
    ],
)
def test_invalid_json_is_explained_with_line_and_column(
    folder: Path, text: str, line: int, column: int, fix: str
) -> None:
    file = write(folder, text)
    what, where, remedy = message(file).splitlines()
    assert what.startswith("the config file is not valid JSON (")
    if "comma before the closing" not in fix:  # Python 3.13 points to the comma, older ones behind it
        assert where == f"  in: file {file}, line {line}, column {column}"
    assert remedy == f"  fix: {fix}"


def test_file_that_is_no_object_is_explained(folder: Path) -> None:
    assert "the config file must be a single JSON object" in message(write(folder, "[1]"))


def test_file_that_cannot_be_read_is_explained(folder: Path) -> None:
    (folder / "photo.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    assert message(folder / "photo.jpg") == (
        f"not a UTF-8 text file\n  in: {folder}/photo.jpg\n  fix: save it as UTF-8"
    )
    assert "the config file does not exist" in message(folder / "no.json")
    assert "write one for a folder of images: `fcos init FOLDER`" in message(folder / "no.json")
    assert "this is a folder, not a config file" in message(folder)


def test_file_with_a_byte_order_mark_loads(folder: Path) -> None:
    (folder / "train.json").write_bytes(b'\xef\xbb\xbf{"epochs": 3}')
    assert load_config(folder / "train.json").epochs == 3


def test_key_given_twice_is_refused_with_both_lines(folder: Path) -> None:
    file = write(folder, '{"seed": 1,\n"epochs": 2,\n"seed": 3}')
    assert message(file) == (
        f'"seed" is given twice\n  in: file {file}, line 1; file {file}, line 3\n  fix: keep one of them'
    )


def test_two_spellings_of_one_key_are_refused(folder: Path) -> None:
    file = write(folder, '{"epochs": 1,\n"epoches": 2}')
    assert message(file) == (
        f'"epochs" and "epoches" are the same setting\n  in: file {file}, line 1; file {file}, line 2\n'
        "  fix: keep one of them"
    )


def test_override_without_equals_sign_is_explained() -> None:
    assert message(None, "epochs", "24") == (
        "'epochs' is not of the form key=value\n  in: command line\n"
        "  fix: write key=value without spaces, for example epochs=24"
    )


# Lines of keys


def test_colon_inside_of_a_value_does_not_make_a_key() -> None:
    text = '{"root_train": "C:\\\\images",\n"name_file": "a\\": b",\n\n"load" : true}'
    assert key_lines(text) == [("root_train", 1), ("name_file", 2), ("load", 4)]


@given(st.dictionaries(st.text(), st.one_of(st.text(), st.booleans(), st.lists(st.text())), max_size=8))
def test_keys_are_found_on_their_lines_in_any_flat_json(values: dict[str, object]) -> None:
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in values.items()]
    found = key_lines("{\n" + ",\n".join(lines) + "\n}")
    assert found == [(key, number) for number, key in enumerate(values, start=2)]


# Division of a batch


def test_micro_batch_takes_auto() -> None:
    assert load_config({"micro_batch": "auto"}).micro_batch == "auto"
    assert load_config({"micro_batch": 4}).micro_batch == 4
    with pytest.raises(
        ConfigError, match=r'"micro_batch": 0 is not a valid value[\s\S]*at least 1, or "auto"'
    ):
        load_config({"micro_batch": 0})


def test_an_automatic_batch_size_is_the_presets_in_automatic_micro_batches() -> None:
    config = load_config({"model": "fcos_mobilenetv2", "nbatch_train": "auto"})
    assert (config.nbatch_train, config.micro_batch) == (8, "auto")
    assert load_config({"nbatch_train": "auto", "micro_batch": 2}).micro_batch == 2
    assert load_config({"nbatch_train": 8}, ["nbatch_train=auto"]).nbatch_train == 16


@pytest.mark.parametrize(
    ("batch_size", "num_devices", "micro_batch", "split"),
    [
        (16, 1, None, (16, 1)),
        (16, 8, None, (2, 1)),
        (16, 2, 2, (2, 4)),
        (8, 1, 1, (1, 8)),
        (6, 3, 2, (2, 1)),
        (16, 2, "auto", (8, 1)),
    ],
)
def test_batch_is_divided_exactly(
    batch_size: int, num_devices: int, micro_batch: int | Literal["auto"] | None, split: tuple[int, int]
) -> None:
    assert split_batch(batch_size, num_devices, micro_batch) == split
    assert split[0] * split[1] * num_devices == batch_size


@pytest.mark.parametrize(
    ("batch_size", "num_devices", "micro_batch", "what", "fix"),
    [
        (10, 4, 2, "nbatch_train 10 cannot be split evenly over 4 devices in micro-batches of 2", "8 or 16"),
        (10, 3, None, "nbatch_train 10 cannot be split evenly over 3 devices", "9 or 12"),
        (2, 8, None, "nbatch_train 2 cannot be split evenly over 8 devices", "8"),
        (16, 1, 32, "nbatch_train 16 cannot be split evenly over 1 device in micro-batches of 32", "32"),
    ],
)
def test_batch_that_cannot_be_divided_is_answered_with_the_nearest_sizes(
    batch_size: int, num_devices: int, micro_batch: int | None, what: str, fix: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        split_batch(batch_size, num_devices, micro_batch)
    assert caught.value.what == what
    assert caught.value.fix == f"give nbatch_train {fix}"


# Checks that look at the world


def test_all_missing_paths_are_named_at_once(folder: Path) -> None:
    (folder / "data").mkdir()
    file = write(folder, '{"list_train": "data/a.txt",\n"root_train": "data",\n"pretrain": "w.pth"}')
    with pytest.raises(ConfigError) as caught:
        check_paths(load_config(file))
    assert str(caught.value) == (
        "2 settings are wrong\n"
        f'"list_train": {folder}/data/a.txt does not exist\n'
        f"  in: file {file}, line 1\n"
        f"  fix: correct the path; its existing part is {folder}/data\n"
        f'"pretrain": {folder}/w.pth does not exist\n'
        f"  in: file {file}, line 3\n"
        f"  fix: correct the path; its existing part is {folder}"
    )


def test_missing_paths_are_named_beside_wrong_values(folder: Path) -> None:
    text = message(write(folder, '{"epochs": 0,\n"list_train": "a.txt"}'))
    assert text.startswith("2 settings are wrong\n")
    assert f'"list_train": {folder}/a.txt does not exist' in text


def test_training_without_data_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"there is no training data\n  in: setting \"list_train\"\n  fix: set"
    ):
        check_paths(load_config())


def test_paths_that_exist_pass(folder: Path) -> None:
    file = write(folder, '{"list_train": "train.json"}')
    config = load_config(file)
    check_paths(config)
    assert os.path.exists(config.list_train)


def test_number_of_classes_is_checked_against_the_names() -> None:
    names = ("cat", "dog")
    check_classes(load_config(), names)
    check_classes(load_config({"classes": 2}), names)
    with pytest.raises(ConfigError) as caught:
        check_classes(load_config({"classes": 3, "name_file": "names.txt"}), names)
    assert caught.value.what == '"classes" is 3, but the data has 2 class names (background is not counted)'
    assert caught.value.fix.startswith('give "classes": 2, or correct the names in ')
    assert caught.value.fix.endswith("names.txt")


# The table of settings


def test_every_setting_says_what_it_means_and_takes() -> None:
    for key, field in TrainConfig.model_fields.items():
        assert field.description, key
        assert expects(key), key
    assert expects("classes") == "an integer, at least 1, or null"
    assert expects("micro_batch") == 'an integer, at least 1, or "auto", or null'
    assert unit("view_size") == "pixels"
    assert unit("seed") == ""


def test_every_group_starts_with_a_setting_in_the_order_of_the_file() -> None:
    keys = list(TrainConfig.model_fields)
    places = [keys.index(first) for first in GROUPS]
    assert places == sorted(places)
    assert places[0] == 0


def test_named_policies_are_those_that_exist() -> None:
    from fcos.data.augmentation import POLICIES

    words = expects("augmentation")
    assert words == "true or false or " + " or ".join(f'"{name}"' for name in POLICIES)


@pytest.mark.parametrize(
    ("settings", "rate", "origin"),
    [
        ({}, 0.01, "default"),
        ({"nbatch_train": 16}, 0.01, "default"),
        ({"nbatch_train": 4}, 0.0025, "in proportion to nbatch_train: 0.01 for 16"),
        ({"model": "fcos_lite0", "nbatch_train": 4}, 0.0005, "in proportion to nbatch_train: 0.001 for 8"),
        ({"nbatch_train": 4, "lr_base": 0.01}, 0.01, "dict"),
    ],
)
def test_rate_that_nobody_chose_is_in_proportion_to_the_batch(
    settings: dict[str, Any], rate: float, origin: str
) -> None:
    config = load_config(settings)

    assert config.lr_base == pytest.approx(rate)
    assert config.origin("lr_base") == origin


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 100_000])
def test_a_value_that_python_does_not_read_is_one_message(folder: Path, value: str) -> None:
    file = write(folder, '{"lr_base": ' + value + "]" * (value.count("[")) + "}")
    with pytest.raises(ConfigError, match="contains a number that is too long, or is nested too deeply"):
        load_config(file)
    with pytest.raises(ConfigError, match=r'"lr_base": .* is not') as caught:
        load_config({}, [f"lr_base={value}"])
    assert len(str(caught.value)) < 5000


def test_weights_of_classes_must_be_positive() -> None:
    assert load_config(None, ['class_weights={"cat": 2, "dog": 0.5}']).class_weights == {"cat": 2, "dog": 0.5}
    assert "use names with numbers above 0 or null" in message({"class_weights": {"cat": 0, "dog": 1}})
    assert "use names with numbers above 0 or null" in message({"class_weights": [1, 2]})
