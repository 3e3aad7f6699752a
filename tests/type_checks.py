"""Types and shapes of the package's signatures, checked while the tests run."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Any, get_args, get_type_hints

import jaxtyping
from beartype import beartype

WITH_AXES = jaxtyping.jaxtyped


def check_types_of(package: str) -> None:
    """Check every call of a package's functions; to be called before anything of it is imported."""
    jaxtyping.jaxtyped = _checked  # what the hook writes above each function
    jaxtyping.install_import_hook(package, "beartype.beartype")


def _checked(*, typechecker: Any) -> Callable[[Any], Any]:
    """jaxtyping's decorator binds the arguments of each call and checks them twice, to compare the sizes of
    axes. A training of the tests spends a quarter of its time there, so functions without axes go without."""

    def decorate(target: Any) -> Any:
        if isinstance(target, classmethod | staticmethod):
            return type(target)(decorate(target.__func__))
        if isinstance(target, types.FunctionType):
            target.__annotations__ = {
                name: _resolved(hint, target) for name, hint in target.__annotations__.items()
            }
            if not any(map(_has_axes, target.__annotations__.values())):
                return beartype(target)
        return WITH_AXES(target, typechecker=typechecker)

    return decorate


def _resolved(hint: Any, function: types.FunctionType) -> Any:
    """As jaxtyping does: what is imported for type checkers only may be anything."""

    def one() -> None: ...

    one.__annotations__ = {"value": hint}
    try:
        return get_type_hints(one, function.__globals__, include_extras=True)["value"]
    except Exception:
        return Any


def _has_axes(hint: Any) -> bool:
    if inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(map(_has_axes, get_args(hint)))
