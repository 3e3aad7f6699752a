import errno
import os
import subprocess
import sys
import tarfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from fcos.errors import ConfigError, DatasetError, OutputError
from fcos.files import check_writable, files_below, read_text, unpack, write_bytes, write_text, written


def test_text_is_utf8_whatever_the_locale(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes("\ufeffKäse\r\nWurst\rBrot".encode())
    code = "import sys, pathlib, fcos.files as f; print(ascii(f.read_text(pathlib.Path(sys.argv[1]))))"
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    out = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.txt")],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout.strip() == ascii("Käse\nWurst\nBrot")


def test_text_in_another_code_page_is_refused(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes("Käse".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"not a UTF-8 text file\n  in: .*a.txt\n  fix: save it as UTF-8"):
        read_text(tmp_path / "a.txt", ConfigError)


def test_a_file_that_is_not_there_is_one_message(tmp_path: Path):
    with pytest.raises(DatasetError, match="cannot be read: No such file"):
        read_text(tmp_path / "a.txt")
    with pytest.raises(DatasetError, match="cannot be read: "):
        read_text(Path("a\0b"))
    with pytest.raises(DatasetError, match="cannot be read: File name too long"):
        read_text(tmp_path / ("a" * 100_000))


def test_pipes_devices_folders_and_dangling_links_are_refused_at_once(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    with pytest.raises(DatasetError, match="this is a pipe, not a file"):
        read_text(tmp_path / "pipe")
    with pytest.raises(DatasetError, match="this is a device, not a file"):
        read_text(Path("/dev/zero"))
    with pytest.raises(DatasetError, match="this is a folder, not a file"):
        read_text(tmp_path)
    with pytest.raises(DatasetError, match="this is a broken link"):
        read_text(tmp_path / "link")


def test_a_file_above_the_limit_is_refused(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(bytes(2**21))
    with pytest.raises(DatasetError, match="the file has 2 MB; the limit is 1"):
        read_text(tmp_path / "a.txt", max_bytes=2**20)


def test_hidden_files_and_those_of_the_system_are_not_listed(tmp_path: Path):
    for name in ("b.JPG", "a/1.jpg", ".ipynb_checkpoints/1.jpg", "__MACOSX/1.jpg", "._b.jpg", "c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "z.jpg").symlink_to("nothing")
    names = [file.relative_to(tmp_path).as_posix() for file in files_below(tmp_path, ".jpg")]
    assert names == ["b.JPG", "z.jpg", "a/1.jpg"]
    assert len(list(files_below(tmp_path))) == 4
    assert [f.name for f in files_below(tmp_path / ".ipynb_checkpoints")] == ["1.jpg"]  # asked for by name


def test_linked_folders_are_listed_once_and_never_in_circles(tmp_path: Path):
    data, disk = tmp_path / "data", tmp_path / "disk"
    for file in (data / "a/1.jpg", disk / "2.jpg"):
        file.parent.mkdir(parents=True)
        file.touch()
    (data / "again").symlink_to(disk)
    (data / "b").symlink_to("a")
    (data / "up").symlink_to(tmp_path)
    (disk / "circle").symlink_to(disk)
    (data / "from_elsewhere").symlink_to(disk)
    assert [str(file.relative_to(data)) for file in files_below(data)] == ["a/1.jpg", "again/2.jpg"]
    (tmp_path / "link").symlink_to(data)
    assert [file.name for file in files_below(tmp_path / "link")] == ["1.jpg", "2.jpg"]


def test_a_folder_that_may_not_be_read_is_not_overlooked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def scan(path: str):
        if os.fspath(path).endswith("closed"):  # tests may run as root, who reads everything
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    with pytest.raises(DatasetError, match=r"the folder cannot be read: Permission denied\n  in: .*closed"):
        list(files_below(tmp_path))
    assert list(files_below(tmp_path / "nowhere")) == []


def test_what_is_written_is_there_whole_or_as_before(tmp_path: Path):
    file = tmp_path / "new" / "a.txt"
    write_text(file, "old")
    with suppress(KeyError), written(file) as partial:
        partial.write_text("ne")
        raise KeyError
    assert file.read_text() == "old"
    write_bytes(file, b"new")
    assert file.read_text() == "new"
    assert list(file.parent.iterdir()) == [file]


def test_a_reader_keeps_what_it_has_opened(tmp_path: Path):
    """The new file takes the name of the old one, whose content is not touched."""
    write_text(tmp_path / "a.txt", "old")
    with (tmp_path / "a.txt").open() as reader:
        write_text(tmp_path / "a.txt", "new")
        assert reader.read() == "old"
    assert (tmp_path / "a.txt").read_text() == "new"


def test_a_folder_takes_the_place_of_another(tmp_path: Path):
    folder = tmp_path / "data"
    for content in ("old", "new"):
        with written(folder) as partial:
            partial.mkdir()
            (partial / content).touch()
    assert [file.name for file in folder.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [folder]


def test_a_file_does_not_take_the_place_of_a_folder(tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "precious").touch()
    with pytest.raises(OutputError, match="cannot be written: Is a directory"):
        write_text(tmp_path / "data", "new")
    assert (tmp_path / "data" / "precious").exists()


def test_a_killed_writer_leaves_nothing_at_the_path(tmp_path: Path):
    code = (
        "import os, sys; from pathlib import Path; from fcos.files import written\n"
        "with written(Path(sys.argv[1])) as partial:\n"
        "    partial.write_text('half'); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.txt")]).returncode == -9
    assert not (tmp_path / "a.txt").exists()
    assert list(files_below(tmp_path)) == []


def test_through_a_link_its_target_is_written(tmp_path: Path):
    (tmp_path / "target.txt").touch()
    (tmp_path / "link.txt").symlink_to("target.txt")
    write_text(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "target.txt").read_text() == "new"


def test_devices_are_written_to_and_not_replaced():
    write_text(Path("/dev/null"), "new")
    assert not Path("/dev/null").is_file()


def test_a_full_disk_is_one_message_and_leaves_what_was_there(tmp_path: Path):
    write_text(tmp_path / "a.txt", "old")
    for error in (OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed writing")):
        with pytest.raises(
            OutputError, match=r"cannot be written: .*\n  in: .*a.txt\n  fix: free some disk space"
        ):
            with written(tmp_path / "a.txt"):
                raise error
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_part_that_cannot_be_written_names_the_whole(tmp_path: Path):
    with (
        pytest.raises(OutputError, match="No space left") as caught,
        written(tmp_path / "model.onnx") as partial,
    ):
        with written(partial):
            raise OSError(errno.ENOSPC, "No space left on device")
    assert f"in: {tmp_path / 'model.onnx'}" in str(caught.value)
    assert ".partial" not in str(caught.value)


def test_a_place_that_cannot_be_written_is_said_before_the_work(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot be written: .*\n  in: .*x.json\n  fix: "):
        check_writable(tmp_path / "file" / "x.json")
    with pytest.raises(OutputError, match="cannot be written"):
        check_writable(Path("/proc/x.json"))
    check_writable(tmp_path / "new" / "folder" / "x.json")
    check_writable(Path("/dev/null"))
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("can_check", [True, False])
def test_archives_are_unpacked_by_older_pythons_too(
    can_check: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("a")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "a.txt", "a.txt")
    given = list[dict[str, Any]]()
    monkeypatch.setattr(tarfile.TarFile, "extractall", lambda self, folder, **options: given.append(options))
    if not can_check:
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
    elif not hasattr(tarfile, "data_filter"):
        pytest.skip("this Python has no filter")
    unpack(tmp_path / "a.tar", tmp_path / "out")
    assert given == [{"filter": "data"} if can_check else {}]
