"""Completion in bash, where "=" ends a word: click's own script would put a space after `key=`."""

from __future__ import annotations

import os
from typing import Any

from click.shell_completion import BashComplete, CompletionItem, add_completion_class, split_arg_string

# Bash replaces what stands behind the last "=", so a reply must be that part alone.
_SOURCE = """\
%(complete_func)s() {
    local IFS=$'\\n' line type value
    local before="${COMP_LINE:0:COMP_POINT}"
    COMPREPLY=()
    for line in $(env COMP_LINE="$before" %(complete_var)s=bash_complete "$1"); do
        IFS=',' read -r type value <<< "$line"
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            *)
                [[ $value == *= ]] && compopt -o nospace
                [[ $COMP_WORDBREAKS == *=* && $value == *=?* ]] && value=${value#*=}
                COMPREPLY+=("$value")
                ;;
        esac
    done
}

%(complete_func)s_setup() {
    complete -o nosort -F %(complete_func)s %(prog_name)s
}

%(complete_func)s_setup;
"""


class Bash(BashComplete):
    """Splits the line as a shell does, not as bash's completion does."""

    source_template = _SOURCE

    def get_completion_args(self) -> tuple[list[str], str]:
        """The whole words behind the program's name, and the one that is being typed."""
        line = os.environ["COMP_LINE"]
        words = split_arg_string(line)
        if line[-1:].isspace():
            words.append("")
        return words[1:-1], words[-1]

    def format_completion(self, item: CompletionItem[Any]) -> str:
        """As the script reads it."""
        return f"{item.type},{item.value}"


add_completion_class(Bash)
