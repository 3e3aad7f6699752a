"""A fork of the server behaves as a Python of its own."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from . import processes
from .processes import Fork, Fresh, run


@pytest.mark.parametrize(
    ("code", "ended"),
    [
        ("pass", 0),
        ("import sys; sys.exit(3)", 3),
        ("1 / 0", 1),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9),
    ],
)
@pytest.mark.parametrize("kind", [Fork, Fresh])
def test_exit_codes_are_those_of_python(
    kind: type[Fork] | type[Fresh], code: str, ended: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "Process", kind)
    done = run("-c", code)
    assert done.returncode == ended
    assert ("ZeroDivisionError: division by zero" in done.stderr) == (ended == 1)


def test_arguments_environment_and_folder_are_its_own_and_the_package_is_there(tmp_path: Path) -> None:
    code = (
        "import atexit, json, os, sys, torch; atexit.register(print, 'end'); "
        "print(json.dumps([sys.argv, dict(os.environ), os.getcwd(), torch.get_num_threads(), "
        "'fcos.train.run' in sys.modules]))"
    )
    (tmp_path / "it.py").write_text(code)
    for words, argv in (
        (("-c", code, "a b"), ["-c", "a b"]),
        ((tmp_path / "it.py", "ü"), [str(tmp_path / "it.py"), "ü"]),
        (("-m", "it"), [str(tmp_path / "it.py")]),
    ):
        line, end = run(*words, env={"ONE": "1"}, cwd=tmp_path, check=True).stdout.splitlines()
        assert json.loads(line) == [argv, {"ONE": "1", "OMP_NUM_THREADS": "1"}, str(tmp_path), 1, True]
        assert end == "end"


@pytest.mark.parametrize("kind", [Fork, Fresh])
def test_processes_share_nothing_and_are_killed_one_by_one(kind: type[Fork] | type[Fresh]) -> None:
    code = "import sys, torch; torch.mark = getattr(torch, 'mark', 0) + 1; print(torch.mark, flush=True)"
    first, second = kind("-c", code + "; import time; time.sleep(99)"), kind("-c", code)
    assert second.communicate(60)[0] == first.stdout.readline() == "1\n"
    assert second.returncode == 0
    assert os.getpgid(first.pid) == first.pid
    first.kill()
    assert first.wait(60) == -9
    first.close()
