"""The annotation formats, one module each (`list`, `coco`, `voc`, `yolo`), and functions to read any of them.

A new format is one new module here with an object `FORMAT` (`fcos.data.registry.DataFormat`), which commands,
settings, detection, splits, conversion and the data check use. `list` is the simplest to follow. A module
with an underscore in its name belongs to the format before the underscore.
"""

from fcos.data.convert import Converted as Converted
from fcos.data.convert import convert as convert
from fcos.data.names import read_names as read_names
from fcos.data.registry import read_annotations as read_annotations
from fcos.data.registry import recognize as recognize
from fcos.data.splits import Split as Split
from fcos.data.splits import Splits as Splits
from fcos.data.splits import find_name_file as find_name_file
from fcos.data.splits import find_splits as find_splits
from fcos.data.splits import read_with_classes_of as read_with_classes_of
from fcos.data.splits import split_annotations as split_annotations
