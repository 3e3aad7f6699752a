import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import fcos
from fcos.cli import COMMANDS, main
from fcos.errors import DatasetError


def run(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "fcos", *words], capture_output=True, text=True, check=False)


@pytest.fixture
def broken_command(monkeypatch: pytest.MonkeyPatch) -> "list[BaseException]":
    """`fcos check` raises what is put into the list."""
    errors: list[BaseException] = []

    @click.command()
    def command() -> None:
        raise errors[0]

    monkeypatch.setattr("fcos.cli.LazyGroup.get_command", lambda *_: command)
    return errors


def test_help_lists_every_command_with_an_example() -> None:
    answer = CliRunner().invoke(main, ["--help"])
    assert answer.exit_code == 0
    for name, description in COMMANDS.items():
        assert f"  {name} " in answer.output
        assert description.split(" ")[0] in answer.output
    assert "fcos train train.json epochs=24" in answer.output


def test_help_imports_no_torch_and_no_pydantic() -> None:
    code = (
        "import sys\n"
        "from fcos.cli import main\n"
        "main(['--help'], standalone_mode=False)\n"
        "print([name for name in ('torch', 'numpy', 'pydantic', 'rich') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("option", "answer"),
    [
        ("--imgsz", "Settings are given without dashes: view_size=VALUE or short_side=VALUE."),
        ("--epoches", "Settings are given without dashes: epochs=VALUE."),
        ("--cache", "There is no such setting either; images are not cached."),
        ("--xyz", "Settings are given without dashes: KEY=VALUE."),
    ],
)
def test_setting_typed_as_an_option_is_answered_with_the_setting(option: str, answer: str) -> None:
    result = CliRunner().invoke(main, ["train", "train.json", option, "3"])
    assert result.exit_code == 2
    assert f"No such option '{option}'. {answer}\n" in result.stderr
    assert "dashes" not in CliRunner().invoke(main, ["eval", "run", option, "3"]).stderr


def test_help_answers_at_once() -> None:
    seconds = []
    for _ in range(3):  # the best of three: another program may be busy
        started_at = time.perf_counter()
        assert run("--help").returncode == 0
        seconds.append(time.perf_counter() - started_at)
    assert min(seconds) < 0.4


def test_every_command_has_a_file_and_every_file_a_line() -> None:
    files = (Path(fcos.__file__).parent / "cli").glob("[!_]*.py")
    assert {file.stem.rstrip("_") for file in files if "\ndef command(" in file.read_text()} == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_command_explains_itself(name: str) -> None:
    answer = CliRunner().invoke(main, [name, "--help"])
    assert answer.exit_code == 0
    assert "Usage:" in answer.output


@pytest.mark.parametrize("name", COMMANDS)
def test_command_has_examples_that_it_understands(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()  # an option that wants a folder which is there
    command = main.get_command(click.Context(main), name)
    assert command is not None
    lines = [line.strip() for line in (command.epilog or "").splitlines()]
    examples = [re.split(r"\s{3,}", line)[0] for line in lines if line.startswith(f"fcos {name} ")]
    assert examples or f"fcos {name}" in lines
    for example in examples:
        command.make_context(name, shlex.split(example)[2:])  # a wrong option or number of words raises


def test_output_is_colored_in_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    command = click.Command("check", callback=lambda: click.secho("done", fg="green"))
    monkeypatch.setattr("fcos.cli.LazyGroup.get_command", lambda *_: command)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as if there were a terminal
    assert CliRunner().invoke(main, ["check"], color=True).output == "\x1b[32mdone\x1b[0m\n"
    assert CliRunner().invoke(main, ["check"]).output == "done\n"
    monkeypatch.setenv("NO_COLOR", "1")
    assert CliRunner().invoke(main, ["check"], color=True).output == "done\n"


def test_a_command_fits_into_a_line() -> None:
    answer = CliRunner().invoke(main, ["--help"], terminal_width=80)
    for name, description in COMMANDS.items():
        assert f"  {name:<10}  {description}\n" in answer.output


def test_mistyped_command_is_answered_with_the_nearest() -> None:
    answer = CliRunner().invoke(main, ["tarin", "x.json"])
    assert answer.exit_code == 2
    assert "There is no command 'tarin'. Did you mean 'train'?" in answer.output


def test_unknown_command_is_answered_with_all_of_them() -> None:
    answer = CliRunner().invoke(main, ["qqq"])
    assert answer.exit_code == 2
    assert "There is no command 'qqq'. Commands: quickstart, init, train" in answer.output


def test_version_is_shown() -> None:
    answer = CliRunner().invoke(main, ["--version"])
    assert answer.exit_code == 0
    assert answer.output == f"fcos {fcos.__version__}\n"


def test_users_error_is_shown_without_traceback(broken_command: "list[BaseException]") -> None:
    broken_command.append(DatasetError("box with zero width", where="a.json, line 3", fix="correct it"))
    answer = CliRunner().invoke(main, ["check"])
    assert answer.exit_code == 2
    assert answer.stderr == "DatasetError: box with zero width\n  in: a.json, line 3\n  fix: correct it\n"


def test_users_error_is_red_on_a_terminal(
    broken_command: "list[BaseException]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as if there were a terminal
    broken_command.append(DatasetError("box with zero width"))
    answer = CliRunner().invoke(main, ["check"], color=True)
    assert answer.stderr.startswith("\x1b[31m\x1b[1mDatasetError: \x1b[0m")


def test_ctrl_c_ends_in_one_line(broken_command: "list[BaseException]") -> None:
    broken_command.append(KeyboardInterrupt())
    answer = CliRunner().invoke(main, ["check"])
    assert answer.exit_code == 130
    assert answer.stderr == "\nstopped by Ctrl-C\n"


def test_our_own_mistake_keeps_its_traceback(broken_command: "list[BaseException]") -> None:
    broken_command.append(RuntimeError("a bug"))
    answer = CliRunner().invoke(main, ["check"])
    assert isinstance(answer.exception, RuntimeError)


def test_module_runs_as_the_command() -> None:
    answer = run("config", "epochs=0")
    assert answer.returncode == 2
    assert answer.stderr.startswith('ConfigError: "epochs": 0 is not a valid value')
    assert "Traceback" not in answer.stderr


def test_public_names_load_on_first_use() -> None:
    assert fcos.load_config({"epochs": 3}).epochs == 3
    public = {name for name in dir(fcos) if not name.startswith("_")}
    assert public == set(fcos.__all__) - {"__version__"}
    assert {"Detector", "Detections", "load_config", "ConfigError"} <= public
    assert not hasattr(fcos, "Detecter")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("words", [["config"], ["config", "--json"]])
def test_output_that_cannot_be_written_is_one_message(words: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "fcos", *words],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr == "OutputError: the output cannot be written: No space left on device\n"


def test_reader_that_stops_reading_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m fcos config --json | head -1",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("{\n", "")


def test_commands_end_without_a_search_for_garbage() -> None:
    code = (
        "import atexit, gc\n"
        "from fcos.cli import main\n"
        "atexit.register(lambda: print(gc.get_freeze_count() > 1000))\n"  # called last
        "main(['config', '--json'], standalone_mode=False)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines()[-1] == "True"


@pytest.mark.parametrize("command", ["serve", "demo", "compare", "report"])
def test_commands_on_one_device_take_no_more(command: str) -> None:
    answer = CliRunner().invoke(main, [command, "run", "--device", "0,1"])
    assert answer.exit_code == 2
    assert "this command runs on one device: give one GPU number" in answer.output
