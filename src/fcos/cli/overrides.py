"""The words KEY=VALUE behind a command, and what a shell may complete them to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
from click.shell_completion import CompletionItem


def overrides_argument(name: str = "overrides", metavar: str = "[KEY=VALUE]...") -> Callable[[Any], Any]:
    """Settings that are changed on the command line: the last words of a command."""
    return click.argument(name, nargs=-1, metavar=metavar, shell_complete=complete_setting)


def complete_setting(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """`key=` for the beginning of a key, `key=value` where a setting takes one of a few words."""
    from fcos.config import TrainConfig, choices

    key, equals, beginning = incomplete.partition("=")
    if not equals:
        fields = TrainConfig.model_fields.items()
        keys = [
            CompletionItem(f"{name}=", help=field.description)
            for name, field in fields
            if name.startswith(key)
        ]
        return keys or [CompletionItem(incomplete, type="file")]  # `fcos config` takes a train.json too
    if key not in TrainConfig.model_fields:
        return []
    words = [word.strip('"') for word in choices(key)]
    return [CompletionItem(f"{key}={word}") for word in words if word.startswith(beginning)]
