import json
from pathlib import Path

import pytest

from fcos.config import TrainConfig, load_config
from fcos.config.presets import ALL_PRESETS, PRESETS

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.json"))


@pytest.mark.parametrize("name", PRESETS)
def test_preset_loads_and_gives_its_values(name: str) -> None:
    config = load_config({"model": name})
    assert {key: getattr(config, key) for key in PRESETS[name]} == PRESETS[name]
    assert config.model == name


@pytest.mark.parametrize("name", ALL_PRESETS)
def test_preset_changes_only_what_differs_from_the_default_and_says_why(name: str) -> None:
    for key, change in ALL_PRESETS[name].changes.items():
        assert change.value != TrainConfig.model_fields[key].default, key
        assert change.reason, key


def test_default_preset_changes_nothing() -> None:
    assert load_config({"model": "fcos_r50"}) == load_config()
    assert PRESETS["fcos_r50"] == {}


def test_defaults_are_the_improved_recipe_of_the_papers() -> None:
    config = load_config()
    assert (config.quality, config.quality_tower, config.box_loss) == ("centerness", "box", "giou")
    assert config.center_sampling
    assert config.normalize_targets
    assert (config.short_side, config.view_size) == (800, 1333)


def test_seeds_preset_has_no_quality_branch_and_the_seeds_size() -> None:
    config = load_config({"model": "fcos_seed"})
    assert (config.quality, config.view_size, config.short_side) == ("none", 1025, None)


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_config_of_the_repository_loads(file: Path) -> None:
    config = load_config(file)
    given = json.loads(file.read_text())
    assert config.model == given["model"]
    assert config.epochs == given["epochs"]
    assert config.run_folder.endswith(f"runs/{file.stem}")


def test_repository_has_configs() -> None:
    assert {"coco_r50_1x", "coco_seed_1x", "voc_seed", "bccd_mobilenetv2", "raccoon_mobilenetv2"} <= {
        f.stem for f in CONFIGS
    }
