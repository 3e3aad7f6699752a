"""Read a train.json and the command line as a `TrainConfig`, reporting all mistakes in one error.

Values come from four sources, of which later ones win: the default, the preset (`model`), the file, the
command line.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fcos.config.checks import DATA_PATHS, NAMED_WEIGHTS, broken_rules, missing_paths, raise_all
from fcos.config.file import COMMAND_LINE, Given, read_file, read_override
from fcos.config.other_tools import is_weight_file, nearest, settings_for, why_none
from fcos.config.presets import PRESETS
from fcos.config.schema import ALIASES, TrainConfig, expects
from fcos.errors import ConfigError
from fcos.files import without_part, write_text

# Common mistakes, and the correct values.
WORDS_ELSEWHERE = {
    "gpu": '"cuda"',
    **dict.fromkeys(("true", "yes", "on"), "true"),
    **dict.fromkeys(("false", "no", "off"), "false"),
    **dict.fromkeys(("null", "none"), "null"),
}


def load_config(
    source: str | Path | Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    *,
    origin: str = "dict",
) -> TrainConfig:
    """Settings from a train.json (or a dict, or only defaults), with `key=value` overrides.

    Relative paths of data and weights are resolved next to the config file, then in the working directory;
    paths in a dict or on the command line, and `run_folder`, in the working directory.

    Args:
        source: a config file or a dict; None: defaults.
        overrides: `key=value` arguments of the command line.
        origin: the name of a dict in messages.

    Raises:
        ConfigError: lists everything that is wrong, each with file, line and fix.
    """
    if source is None or isinstance(source, Mapping):
        folder = Path.cwd()
        entries = [Given(key, _plain(value), origin) for key, value in (source or {}).items()]
    else:
        source = Path(source).expanduser()
        folder, entries = source.parent.absolute(), read_file(source)

    problems: list[ConfigError] = []
    given = _settings(entries, folder, problems) | _overrides(overrides, problems)
    if "nbatch_train" in given and given["nbatch_train"].value == "auto":  # which sets the forward pass
        given = {"micro_batch": given.pop("nbatch_train")} | given
    preset = _preset(given.get("model"), problems)
    values = PRESETS[preset] | {key: entry.value for key, entry in given.items()}
    values.setdefault("model", preset)
    scaled = _scale_rate(values, given)
    config, wrong = _values(values, given, problems)
    for broken in broken_rules(config):
        if wrong.isdisjoint(broken.keys):
            places = [given[key].where for key in broken.keys if key in given]
            where = "; ".join(places) or ", ".join(broken.keys)
            problems.append(ConfigError(broken.what, where=where, fix=broken.fix))
    if not config.run_folder:
        name = source.stem if isinstance(source, Path) else config.model
        config = config.model_copy(update={"run_folder": os.path.abspath(f"runs/{name}")})
    config._origins.update({key: f"preset {preset}" for key in PRESETS[preset]})
    config._origins.update({key: entry.where for key, entry in given.items()})
    config._origins.update(scaled)
    in_command = given.get("run_folder") and given["run_folder"].where.startswith(COMMAND_LINE)
    if isinstance(source, Path) and not in_command and _lies_in_run(source, config.run_folder):
        config = config.model_copy(update={"run_folder": str(folder)})  # moved or not
        config._origins["run_folder"] = f"file {source}, which lies in the run folder"
    if problems:  # missing paths alone are reported by training: settings may be read where the data is not
        problems += missing_paths(config)
    raise_all(problems)
    return config


def check_overrides(overrides: Sequence[str]) -> None:
    """Reject invalid overrides before a command writes the train.json.

    Raises:
        ConfigError: lists every invalid key, value and path.
    """
    problems: list[ConfigError] = []
    given = _overrides(overrides, problems)
    _preset(given.get("model"), problems)
    config = _values({key: entry.value for key, entry in given.items()}, given, problems)[0]
    config._origins.update({key: entry.where for key, entry in given.items()})
    raise_all([*problems, *missing_paths(config)])


def dump_config(config: TrainConfig, path: Path) -> None:
    """Write every setting, resolved; training from that file repeats the run."""
    write_text(path, settings_text(config.model_dump()))


def settings_text(settings: Mapping[str, Any]) -> str:
    """The text of a train.json: one setting per line."""
    lines = [
        f"    {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in settings.items()
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _settings(entries: Iterable[Given], folder: Path, problems: list[ConfigError]) -> dict[str, Given]:
    """Entries of one source by setting; unknown and duplicate ones become problems."""
    settings: dict[str, Given] = {}
    for entry in entries:
        key = ALIASES.get(entry.key, entry.key)
        if key not in TrainConfig.model_fields:
            problems += map(_unknown, _flattened(entry))
        elif (first := settings.get(key)) and entry.key == first.key:
            problems.append(_twice(f'"{entry.key}" is given twice', first, entry))
        elif first and entry.value != first.value:
            problems.append(_twice(f'"{first.key}" and "{entry.key}" are the same setting', first, entry))
        else:
            settings[key] = entry._replace(value=_read_value(key, entry.value, folder))
    return settings


def _twice(what: str, first: Given, second: Given) -> ConfigError:
    return ConfigError(what, where=f"{first.where}; {second.where}", fix="keep one of them")


def _overrides(words: Sequence[str], problems: list[ConfigError]) -> dict[str, Given]:
    text_keys = {key for key, field in TrainConfig.model_fields.items() if field.annotation is str}
    return _settings([read_override(word, text_keys) for word in words], Path.cwd(), problems)


def _lies_in_run(source: Path, run_folder: str) -> bool:
    """Whether a config file belongs to a run: it is in its run folder."""
    folder = source.parent
    return os.path.realpath(folder) == os.path.realpath(run_folder) or any(
        (folder / name).is_file() for name in ("last.ckpt", "metrics.jsonl")
    )


def _flattened(entry: Given) -> Iterator[Given]:
    """Flatten nested keys of other tools: {"SOLVER": {"BASE_LR": 0.01}} to "SOLVER.BASE_LR"."""
    if not isinstance(entry.value, Mapping) or not entry.value:
        yield entry
        return
    for key, value in entry.value.items():
        yield from _flattened(entry._replace(key=f"{entry.key}.{key}", value=value))


def _unknown(entry: Given) -> ConfigError:
    """The error for an unknown key: our name for another tool's setting, or else the closest match."""
    what = f'"{entry.key}" is not a setting'
    if ours := settings_for(entry.key):
        words = " and ".join(f'"{key}" ({_meaning(key)})' for key in ours)
        return ConfigError(what, where=entry.where, fix=f"use {words}")
    if why := why_none(entry.key):
        return ConfigError(what, where=entry.where, fix=f"remove it; {why}")
    similar = nearest(entry.key, [*TrainConfig.model_fields, *ALIASES])
    fix = (
        f'did you mean "{ALIASES.get(similar, similar)}"?'
        if similar
        else "remove it; `fcos config` lists the settings"
    )
    return ConfigError(what, where=entry.where, fix=fix)


def _meaning(key: str) -> str:
    """A setting's description without parentheses, since the message puts it in parentheses."""
    return re.sub(r" \([^()]*\)", "", TrainConfig.model_fields[key].description or "")


def _preset(entry: Given | None, problems: list[ConfigError]) -> str:
    """The name of the preset; an unknown one becomes a problem and is replaced by the default."""
    default = str(TrainConfig.model_fields["model"].default)
    name = entry.value if entry else default
    if name in PRESETS:
        return str(name)
    assert entry is not None, "the default preset exists"
    similar = difflib.get_close_matches(str(name), PRESETS, n=1)
    hint = f'did you mean "{similar[0]}"? ' if similar else ""
    if is_weight_file(str(name)):
        hint = 'to start from FCOS weights, set "pretrain" (weights of other detectors do not fit). '
    problems.append(
        ConfigError(
            f'"model": {json.dumps(name)} is not a preset',
            where=entry.where,
            fix=f'{hint}Presets: {", ".join(PRESETS)}; to use a timm network, set "backbone"',
        )
    )
    return default


def preset_default(preset: str, key: str) -> Any:
    """The default of a setting in a preset."""
    return PRESETS[preset].get(key, TrainConfig.model_fields[key].default)


def _scale_rate(values: dict[str, Any], given: Mapping[str, Given]) -> dict[str, str]:
    """Scale the default learning rate with the batch size (arXiv 1706.02677); return its origin."""
    batch = values.get("nbatch_train")
    if "lr_base" in given or "nbatch_train" not in given or type(batch) is not int or batch < 1:
        return {}
    rate, usual_batch = (preset_default(values["model"], key) for key in ("lr_base", "nbatch_train"))
    if batch == usual_batch:
        return {}
    values["lr_base"] = rate * batch / usual_batch
    return {"lr_base": f"in proportion to nbatch_train: {rate:g} for {usual_batch}"}


def _values(
    values: dict[str, Any], given: Mapping[str, Given], problems: list[ConfigError]
) -> tuple[TrainConfig, set[str]]:
    """Check each value separately; return the config without the invalid ones, and their keys."""
    try:
        return TrainConfig.model_validate(values), set()
    except ValidationError as error:
        wrong = {str(detail["loc"][0]) for detail in error.errors()}
    problems += [_wrong_value(given[key]._replace(key=key)) for key in given if key in wrong]
    right = {key: value for key, value in values.items() if key not in wrong}
    return TrainConfig.model_validate(right), wrong


def _wrong_value(entry: Given) -> ConfigError:
    """The error for an invalid value: what the setting accepts, and the closest choice."""
    taken, meaning = expects(entry.key), TrainConfig.model_fields[entry.key].description
    written = str(entry.value).lower()
    words = re.findall(r'"\w+"|\b(?:true|false|null)\b', taken)
    similar = difflib.get_close_matches(WORDS_ELSEWHERE.get(written, f'"{written}"'), words, n=1)
    hint = f"did you mean {similar[0]}? It takes" if similar and isinstance(entry.value, str) else "use"
    return ConfigError(
        f'"{entry.key}": {json.dumps(entry.value)} is not a valid value',
        where=entry.where,
        fix=f"{hint} {taken} ({meaning})",
    )


def _plain(value: Any) -> Any:
    """Convert Python values to JSON types."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return list(value) if isinstance(value, tuple) else value


def _read_value(key: str, value: Any, folder: Path) -> Any:
    """Normalize a value: absolute paths; lists for a single GPU number or logger."""
    if key == "device":
        return _read_device(value)
    if not isinstance(value, str) or not value:
        return value
    if key == "loggers":
        return value.split(",")
    if key in DATA_PATHS or (key == "pretrain" and value not in NAMED_WEIGHTS):
        return _absolute(value, folder)
    # As in other tools, runs are in the working directory, not next to a config file that may be shared.
    return _absolute(value, Path.cwd()) if key == "run_folder" else value


def _read_device(value: Any) -> Any:
    """GPU numbers as a list; also accepts 0, "0", "0,1" and "cuda:1", as in other tools."""
    if type(value) is int:
        return [value]
    numbers = (
        re.fullmatch(r"(?:cuda:)?(\d+(?:,\d+)*)", value.replace(" ", "")) if isinstance(value, str) else None
    )
    return [int(number) for number in numbers[1].split(",")] if numbers else value


def _absolute(path: str, folder: Path) -> str:
    """The path next to the config file, or in the working directory if it exists only there."""
    beside, here = (str(base / Path(path).expanduser()) for base in (folder, Path.cwd()))
    only_here = os.path.exists(without_part(here)) and not os.path.exists(without_part(beside))
    return os.path.abspath(here if only_here else beside)
