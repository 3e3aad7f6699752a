"""This machine's processor cores and package versions."""

from __future__ import annotations

import importlib.metadata
import os


def num_cores() -> int:
    """Processor cores that this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def package_versions(*names: str) -> dict[str, str]:
    """Versions of packages; this one may also run from source, without being installed."""
    return {name: _version(name) for name in names}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown (not installed)"
