"""The errors that users see: what happened, where, and how to fix it.

Every error meant for a user is one of these; the command line prints it without a traceback. They are
``ValueError`` so that ``except ValueError`` in a user's script works too.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from fcos.terminal import printable, shortened


class FcosError(ValueError):
    """Something that the user can fix.

    Args:
        what: what happened, one sentence.
        where: file, line, annotation or setting.
        fix: what to type or change.
    """

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        lines = [what]
        if where:
            lines.append(f"  in: {where}")
        if fix:
            lines.append(f"  fix: {fix}")
        super().__init__(shortened(printable("\n".join(lines))))


class ConfigError(FcosError):
    """A setting that does not exist or has an impossible value."""


class DatasetError(FcosError):
    """Annotations or images that cannot be used."""


class WeightsError(FcosError):
    """A model or weight file that is missing or does not fit."""


class CheckpointError(WeightsError):
    """A checkpoint from which a run cannot resume."""


class OutputError(FcosError):
    """A file or folder that cannot be written."""


class DeviceError(FcosError):
    """A device that is not available."""


class TrainingError(FcosError):
    """Training that cannot continue (for example because the loss is not finite)."""


@contextmanager
def needs_extra(what: str, extra: str) -> Iterator[None]:
    """Turn an ImportError in the block into an error that says which extra of this package to install."""
    try:
        yield
    except ImportError as error:
        raise FcosError(f"{what} needs {error.name}", fix=f"pip install 'fcos-torch[{extra}]'") from error
