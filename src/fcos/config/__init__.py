"""`train.json`: its settings, how it is read, and the rules between settings.

Read `schema` first (every setting: default, unit, meaning), then `load` (combines defaults, preset, file and
command line), `file` (parses a file or the command line), `checks` (rules between settings), `presets`,
`conventions` (differences between code bases) and `other_tools` (keys of other tools, for error messages).
"""

from fcos.config.load import check_overrides as check_overrides
from fcos.config.load import dump_config as dump_config
from fcos.config.load import load_config as load_config
from fcos.config.schema import ALIASES as ALIASES
from fcos.config.schema import GROUPS as GROUPS
from fcos.config.schema import TrainConfig as TrainConfig
from fcos.config.schema import expects as expects
from fcos.config.schema import unit as unit
