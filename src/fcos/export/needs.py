"""Optional packages of export."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fcos.errors import FcosError


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """An import inside of it that fails says what to install."""
    try:
        yield
    except ImportError as error:
        raise FcosError(
            f"the format {extra} needs {error.name}", fix=f"pip install 'fcos-torch[{extra}]'"
        ) from error
