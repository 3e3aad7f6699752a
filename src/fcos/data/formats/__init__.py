"""The annotation formats, one module each (`list`, `coco`, `voc`, `yolo`), and the door to all of them.

A new format is one new module here with an object `FORMAT` (`fcos.data.registry.Format`): commands, settings,
recognition, splits, conversion and the data check take it from there. `list` is the simplest to follow. A
module with an underscore in its name belongs to the format that it begins with.
"""

from fcos.data.convert import Converted, convert
from fcos.data.names import read_names
from fcos.data.recognise import read_annotations, recognise
from fcos.data.splits import Split, Splits, find_splits, split_annotations

__all__ = [
    "Converted",
    "Split",
    "Splits",
    "convert",
    "find_splits",
    "read_annotations",
    "read_names",
    "recognise",
    "split_annotations",
]
