"""Names of a random sample of the mutants that `mutmut` (3.8, not in the extra `dev`) makes of some files.

    pip install mutmut
    mutmut run $(python benchmarks/mutants.py --per-file 15 src/fcos/model/*.py)   # a sample of each file
    mutmut results                                                                 # the survivors
    mutmut show fcos.model.points.x_make_grid__mutmut_1                            # what one of them changes

A mutant is one function with one small change (`<` for `<=`, 2 for 1, None for an argument). The tests that
call the function run against it; a change that no test notices survives. All mutants take hours, hence the
sample: the same for the same --seed and source.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from mutmut.mutation.file_mutation import mutate_file_contents

SOURCE = Path("src")


def mutants_of(file: Path) -> list[str]:
    """Names of all mutants of a file, as `mutmut run` takes them."""
    module = ".".join(file.relative_to(SOURCE).with_suffix("").parts)
    mutated = mutate_file_contents(str(file), file.read_text(encoding="utf-8"))
    return [f"{module}.{name}" for name in mutated.mutant_names]


def main() -> None:
    parser = argparse.ArgumentParser(description="Names of a random sample of mutants, of each file.")
    parser.add_argument("files", type=Path, nargs="+", metavar="src/fcos/FILE.py")
    parser.add_argument("--per-file", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for file in sorted(arguments.files):
        names = mutants_of(file)
        chosen = random.Random(f"{arguments.seed} {file}").sample(names, min(len(names), arguments.per_file))
        print("\n".join(chosen))


if __name__ == "__main__":
    main()
