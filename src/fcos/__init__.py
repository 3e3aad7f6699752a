"""FCOS in PyTorch: train, evaluate and use an object detector.

The public names load on first use, so that `import fcos` (and with it `fcos --help`) does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fcos.errors import CheckpointError as CheckpointError
from fcos.errors import ConfigError as ConfigError
from fcos.errors import DatasetError as DatasetError
from fcos.errors import DeviceError as DeviceError
from fcos.errors import FcosError as FcosError
from fcos.errors import OutputError as OutputError
from fcos.errors import TrainingError as TrainingError
from fcos.errors import WeightsError as WeightsError

if TYPE_CHECKING:
    from fcos.config import TrainConfig as TrainConfig
    from fcos.config import load_config as load_config
    from fcos.detector import Detector as Detector
    from fcos.predict.detections import Detections as Detections
    from fcos.train.callbacks import Callback as Callback
    from fcos.train.callbacks import TrainEvent as TrainEvent

    __version__: str

_LAZY = {
    "Callback": "fcos.train.callbacks",
    "TrainEvent": "fcos.train.callbacks",
    "Detector": "fcos.detector",
    "Detections": "fcos.predict.detections",
    "TrainConfig": "fcos.config",
    "load_config": "fcos.config",
}

__all__ = ["__version__", *_LAZY, *(name for name in globals() if name.endswith("Error"))]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from fcos.machine import package_versions

        return package_versions("fcos-torch")["fcos-torch"]
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'fcos' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
