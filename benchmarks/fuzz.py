"""Damaged input of every kind through the real commands: each case ends with a result or one clear message.

    python benchmarks/fuzz.py --cases 20000 --keep fuzz_failures      # the long run of benchmarks/RESULTS.md
    python benchmarks/fuzz.py --cases 300 --seed 7 --only coco        # one kind

A case is a small, valid data set, image, config or model file with one to four mutations, given to the
command that a user would type (`fcos check`, `convert`, `info`, `predict`, `config`). Right is exit code 0 or
1, or an `FcosError` (2) with its three lines. Wrong is a traceback, more than 10 s, more than 2 GiB above
what the process had before, or a process that dies. Mutations depend on --seed and the number of the case
alone, so that a failure can be repeated with --first N --cases 1.

Cases run in forked processes, a group at a time; a group that takes too much memory ends with MemoryError,
which counts as a failure.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from frame import save_random, start

MAX_S = 10
MAX_BYTES = 2 * 2**30
GROUP = 50  # cases of one process

ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, "", "0", "-1", "1e999", "nan", "\x1b[2J", "a\x00b", "\ud800", "x" * 100_000),
    *(0, -1, 1, 2**31, 2**32, 2**53 + 1, 2**63, -(2**63) - 1, 10**400, 0.5, -0.0, 1e-300, 1e300),
    *(float("nan"), float("inf"), [], {}, [[]], [None], {"a": None}, [0, 0, 0, 0], list(range(1000))),
)
# fmt: off
ODD_WORDS = (
    b"nan", b"inf", b"-1", b"0", b"1e999", b"99999999999999999999", b"4294967296", b"9" * 5000, b"null",
    b"", b"\x00", b"\xff\xfe", b"\x1b]0;t\x07", b"../../../../etc/passwd", b"/dev/zero", b"%s%n", b"'\"<&>",
    b"\n", b"\r", b"\t", b" ", b",", b":", b"[", b"{", b"*a", b"&a", b"!!python/object:os.system",
    b"\xe2\x80\xa8",
)
# fmt: on


@dataclass(frozen=True)
class Kind:
    """One kind of input.

    Attributes:
        files: of the valid case, by name.
        targets: those that are mutated, one a case.
        commands: what is typed in the folder of the case.
        weight: how many of the cases are of this kind, relative to the others.
    """

    files: dict[str, bytes]
    targets: tuple[str, ...]
    commands: tuple[tuple[str, ...], ...]
    weight: int


@dataclass(frozen=True)
class Outcome:
    """How a case ended: "right", "refused", "traceback", "hang", "memory" or "died"."""

    number: int
    kind: str
    how: str
    text: str = ""
    seconds: float = 0.0
    peak_bytes: int = 0


# Valid input ------------------------------------------------------------------------------------------------


def make_kinds(folder: Path, only: list[str] | None = None) -> dict[str, Kind]:
    """The valid files of each kind (of those in `only`), written by the product itself."""
    images = _images()
    data = {f"images/{name}": content for name, content in images.items()}
    (folder / "images").mkdir(parents=True)
    for name, content in images.items():
        (folder / "images" / name).write_bytes(content)
    lines = ["a.jpg 3 4 20 30 1 5 6 40 41 2", "b.png 1 2 30 31 2", "c.jpg"]
    (folder / "list.txt").write_text("\n".join(lines) + "\n")
    (folder / "names.txt").write_text("background\ncat\ndog\n")

    from fcos.data.formats import convert, read_names

    names, _ = read_names(folder / "names.txt")
    for to, out in (("coco", "coco.json"), ("voc", "voc"), ("yolo", "yolo")):
        options = {} if to == "coco" else {"copy_images": True}
        convert(folder / "list.txt", to, folder / out, root=folder / "images", names=names, **options)  # type: ignore[arg-type]
    models = _models(folder, only)
    voc, yolo = _tree(folder / "voc"), _tree(folder / "yolo")
    config = {"list_train": "list.txt", "root_train": "images", "name_file": "names.txt", "epoches": 2}

    def in_a(*targets: str) -> tuple[str, ...]:
        return targets

    kinds = {
        "list": Kind(
            {**data, "list.txt": (folder / "list.txt").read_bytes(), "names.txt": b"background\ncat\ndog\n"},
            in_a("list.txt", "list.txt", "names.txt"),
            (
                ("check", "list.txt", "--root", "images", "--names", "names.txt"),
                ("convert", "list.txt", "--root", "images", "--to", "coco", "-o", "out.json"),
            ),
            20,
        ),
        "coco": Kind(
            {**data, "coco.json": _pretty(folder / "coco.json")},
            in_a("coco.json"),
            (
                ("check", "coco.json", "--root", "images"),
                ("convert", "coco.json", "--root", "images", "--to", "yolo", "-o", "out"),
            ),
            40,
        ),
        "voc": Kind(
            voc,
            tuple(name for name in voc if name.endswith((".xml", ".txt"))),
            (("check", "."), ("convert", ".", "--to", "list", "-o", "out.txt")),
            25,
        ),
        "yolo": Kind(
            yolo,
            tuple(name for name in yolo if name.endswith((".txt", ".yaml"))),
            (("check", "."), ("convert", ".", "--to", "voc", "-o", "out")),
            25,
        ),
        "darknet": Kind(
            {
                **{f"obj/{name}": content for name, content in images.items()},
                **{"obj/a.txt": b"0 0.5 0.5 0.2 0.3\n1 0.4 0.4 0.1 0.1\n", "obj/b.txt": b"1 0.5 0.5 1 1\n"},
                **{
                    "obj/c.txt": b"",
                    "obj.names": b"cat\ndog\n",
                    "train.txt": b"obj/a.jpg\nobj/b.png\nobj/c.jpg\n",
                },
                "obj.data": b"classes = 2\ntrain = train.txt\nnames = obj.names\n",
            },
            in_a("obj/a.txt", "obj.names", "train.txt", "obj.data"),
            (("check", "obj.data"),),
            10,
        ),
        "config": Kind(
            {
                **data,
                "list.txt": b"a.jpg 3 4 20 30 1\n",
                "names.txt": b"cat\n",
                "train.json": json.dumps(config, indent=1).encode(),
            },
            in_a("train.json"),
            (("check", "train.json"), ("config", "train.json")),
            15,
        ),
        "image": Kind(
            {**images, "model.safetensors": models["model.safetensors"]},
            tuple(images),
            (("predict", "model.safetensors", *images, "--out", "out", "--device", "cpu"),),
            25,
        ),
    }
    commands = {
        "model.safetensors": 15,
        "published.pth": 8,
        "old_pickle.pth": 4,
        "model.pt2": 4,
        "model.onnx": 6,
        "model_openvino": 4,
    }
    for name, weight in commands.items():
        files = {key: content for key, content in models.items() if key.split("/")[0] == name}
        shown = {} if not name.startswith("model.") else {"a.jpg": images["a.jpg"]}
        use = (("predict", name, "a.jpg", "--out", "out", "--device", "cpu"),) if shown else ()
        kinds[name] = Kind({**files, **shown}, tuple(files), (("info", name), *use), weight)
    return {name: kind for name, kind in kinds.items() if kind.targets}


def _images() -> dict[str, bytes]:
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    image, content = Image.fromarray(noise), {}
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    for name, version, options in (
        ("a.jpg", image, {"exif": exif}),
        ("b.png", image, {}),
        ("c.jpg", image.convert("CMYK"), {}),
        ("d.gif", image.convert("P"), {"save_all": True, "append_images": [image.convert("P")]}),
        ("e.tif", deep, {"compression": "tiff_lzw"}),
        ("f.webp", image, {}),
        ("g.bmp", image, {}),
    ):
        out = io.BytesIO()
        version.save(out, {"jpg": "jpeg", "tif": "tiff"}.get(name[2:], name[2:]), **options)
        content[name] = out.getvalue()
    return content


def _models(folder: Path, only: list[str] | None) -> dict[str, bytes]:
    """A small network as every kind of file that opens; folders as name/file."""
    import torch

    from fcos.export.formats import FORMATS, export_model
    from fcos.weights.load import load_model

    file = save_random(
        folder / "model.safetensors",
        {
            "short_side": 64,
            "view_size": 64,
            "backbone_channels": [8, 8, 8, 8, 8],
            "fpn_channels": 8,
            "head_channels": 8,
            "head_norm": "none",
        },
    )
    exported = [path for path in ("model.pt2", "model.onnx", "model_openvino") if not only or path in only]
    for path in exported:
        known = next(key for key, of in FORMATS.items() if of.ENDING == path.removeprefix("model"))
        export_model(load_model(file), known, folder / path)
    state = {f"backbone.{i}.weight": torch.zeros(4, 4, 3, 3) for i in range(4)}
    torch.save({"model": state, "meta": {"CLASSES": ("cat", "dog")}}, folder / "published.pth")
    torch.save(state, folder / "old_pickle.pth", _use_new_zipfile_serialization=False)
    names = ("model.safetensors", "published.pth", "old_pickle.pth", *exported)
    files = {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}
    of_folder = _tree(folder / "model_openvino")
    return files | {f"model_openvino/{name}": content for name, content in of_folder.items()}


def _tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _pretty(file: Path) -> bytes:
    return json.dumps(json.loads(file.read_text()), indent=1).encode()


# Mutations --------------------------------------------------------------------------------------------------


def mutate(content: bytes, draw: random.Random) -> bytes:
    """One to four changes of a file: of its bytes, its words or, where it holds JSON, its values."""
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        content = draw.choice(MUTATIONS)(content, draw)
    return content


def _flip(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 3, 20))):
        if changed:
            changed[_place(len(changed), draw)] = draw.randrange(256)
    return bytes(changed)


def _cut(content: bytes, draw: random.Random) -> bytes:
    begin = _place(len(content) + 1, draw)
    return (
        content[:begin]
        if draw.random() < 0.5
        else content[:begin] + content[begin + draw.choice((1, 8, 200)) :]
    )


def _repeat(content: bytes, draw: random.Random) -> bytes:
    begin = _place(len(content) + 1, draw)
    piece = content[begin : begin + draw.choice((1, 10, 100, 1000))]
    # A megabyte is a large data set, which takes its time; here it is about what makes no sense.
    times = min(draw.choice((2, 2, 50, 5000)), 100_000 // max(1, len(piece)))
    return content[:begin] + piece * times + content[begin:]


def _insert(content: bytes, draw: random.Random) -> bytes:
    begin = _place(len(content) + 1, draw)
    return content[:begin] + draw.choice(ODD_WORDS) + content[begin:]


def _word(content: bytes, draw: random.Random) -> bytes:
    """Another word in the place of one (a number, a name, a tag)."""
    words = list(re.finditer(rb"[\w.+-]+", content[:100_000]))
    if not words:
        return _insert(content, draw)
    word = draw.choice(words)
    other = draw.choice(ODD_WORDS) if draw.random() < 0.7 else draw.choice(words)[0]
    return content[: word.start()] + other + content[word.end() :]


def _json(content: bytes, draw: random.Random) -> bytes:
    """Another value, a key less, or a deep nest, in the first JSON object (of a file, or of its header)."""
    begin = content.find(b"{")
    try:
        value, end = json.JSONDecoder().raw_decode(content[begin:].decode("latin-1"))
    except (ValueError, RecursionError):
        return _word(content, draw)
    if begin == 8:  # safetensors: a header with its length, our card inside as text
        if draw.random() < 0.8:
            try:
                card = json.loads(value["__metadata__"]["fcos"])
                _change(card, draw)
                value["__metadata__"]["fcos"] = json.dumps(card)
            except (ValueError, KeyError, TypeError):  # changed by an earlier mutation
                _change(value, draw)
        else:
            _change(value, draw)
        header = json.dumps(value).encode("latin-1", "replace")
        return len(header).to_bytes(8, "little") + header + content[begin + end :]
    _change(value, draw)
    return content[:begin] + json.dumps(value, indent=1).encode("utf-8", "replace") + content[begin + end :]


def _change(value: Any, draw: random.Random) -> None:
    places = list(_places(value))
    if not places:
        return
    parent, key = draw.choice(places)
    what = draw.random()
    if what < 0.15:
        del parent[key]
    elif what < 0.2:
        deep: Any = 0
        for _ in range(draw.choice((50, 900, 5000))):
            deep = [deep]
        try:
            json.dumps(deep)
            parent[key] = deep
        except RecursionError:
            parent[key] = None
    else:
        parent[key] = draw.choice(ODD_VALUES)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    entries = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, item in list(entries):
        yield value, key
        yield from _places(item)


def _place(size: int, draw: random.Random) -> int:
    """Anywhere, half of the time near the begin, where files say what they are."""
    return draw.randrange(min(size, 200) if draw.random() < 0.5 else size)


MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *(_flip, _cut, _repeat, _insert, _word, _word, _json, _json, _json),
)


# Running ----------------------------------------------------------------------------------------------------


class Hang(BaseException):
    """The time of a case is over."""


def check_valid(kinds: dict[str, Kind]) -> None:
    """Without a mutation every case is right (but for files of weights that fit no detector)."""
    for name, kind in kinds.items():
        with _in_folder(kind.files):
            for words in kind.commands:
                how, text = _run(words)
                assert how == ("refused" if name.endswith(".pth") else "right"), (name, words, how, text)


@contextmanager
def _in_folder(files: dict[str, bytes]) -> Iterator[Path]:
    before, folder = os.getcwd(), Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        for path, content in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        os.chdir(folder)
        yield folder
    finally:
        os.chdir(before)
        shutil.rmtree(folder, ignore_errors=True)


def run_case(number: int, kinds: dict[str, Kind], seed: int, keep: Path | None) -> Outcome:
    """One case in this process."""
    draw = random.Random(f"{seed} {number}")
    name = draw.choices(list(kinds), [kind.weight for kind in kinds.values()])[0]
    kind = kinds[name]
    files = dict(kind.files)
    target = draw.choice(kind.targets)
    files[target] = mutate(files[target], draw)
    started_at, how, text = time.monotonic(), "right", ""
    with _in_folder(files) as folder:
        for words in kind.commands:
            ended, text = _run(words)
            how = ended if ended != "right" else how
            if how in ("traceback", "hang", "memory"):
                if keep is not None:
                    kept = keep / f"{number:06d}_{name}"
                    shutil.copytree(folder, kept, dirs_exist_ok=True)
                    (kept / "COMMAND.txt").write_text(f"fcos {' '.join(words)}\n{text}")
                break
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Outcome(number, name, how, text, time.monotonic() - started_at, peak)


def _run(words: tuple[str, ...]) -> tuple[str, str]:
    import click

    from fcos.cli import main

    said = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace")
    try:
        with _time_limit(), redirect_stdout(said), redirect_stderr(said), warnings.catch_warnings():
            main(list(words), standalone_mode=False)
    except SystemExit as ended:
        return "right" if ended.code in (0, 1, None) else "refused", ""
    except click.exceptions.Exit as ended:
        return "right" if ended.exit_code in (0, 1) else "refused", ""
    except click.ClickException as error:
        return "refused", error.format_message()
    except Hang:
        return "hang", traceback.format_exc()
    except MemoryError:
        return "memory", traceback.format_exc()
    except BaseException:
        return "traceback", traceback.format_exc()
    return "right", ""


@contextmanager
def _time_limit() -> Iterator[None]:
    def end(*_: object) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, end)
    signal.alarm(MAX_S)
    try:
        yield
    finally:
        signal.alarm(0)


def _run_group(numbers: range, kinds: dict[str, Kind], seed: int, keep: Path | None, out: Any) -> None:
    import torch

    torch.set_num_threads(1)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MAX_BYTES,) * 2)
    sys.stdin = open(os.devnull)
    for number in numbers:
        out.put(("begin", number))
        out.put(("end", run_case(number, kinds, seed, keep)))


def run(
    first: int, num_cases: int, kinds: dict[str, Kind], seed: int, keep: Path | None
) -> Iterator[Outcome]:
    """All cases, in forked processes; one that dies or does not end is the failure of its last case."""
    context = multiprocessing.get_context("fork")
    next_case, end = first, first + num_cases
    while next_case < end:
        queue = context.SimpleQueue()
        numbers = range(next_case, min(next_case + GROUP, end))
        process = context.Process(target=_run_group, args=(numbers, kinds, seed, keep, queue), daemon=False)
        process.start()
        running: int | None = None
        reader = queue._reader  # type: ignore[attr-defined]
        while process.is_alive() or reader.poll():
            if reader.poll(3 * MAX_S + 10 if running is not None else 1):
                what, content = queue.get()
                running = content if what == "begin" else None
                if what == "end":
                    next_case = content.number + 1
                    yield content
            elif running is not None and process.is_alive():
                process.kill()  # stuck where no signal is heard
                process.join()
                yield Outcome(running, "?", "hang", "killed: did not hear SIGALRM")
                next_case, running = running + 1, None
        process.join()
        if running is not None:
            yield Outcome(running, "?", "died", f"exit code {process.exitcode}")
            next_case = running + 1


def main(
    cases: int = 2000,
    first: int = 0,
    seed: int = 0,
    only: Annotated[list[str] | None, "kinds, such as coco or model.onnx"] = None,
    keep: Annotated[Path | None, "folder for the input of failures"] = None,
) -> None:
    """Run and print a table; exit code 1 if anything went wrong."""
    import fcos.detector
    import fcos.export.exported
    import fcos.predict.sources  # noqa: F401  (before the fork, so that no case pays for it)

    os.environ["FCOS_CACHE"] = tempfile.mkdtemp(prefix="fuzz-cache-")
    with tempfile.TemporaryDirectory() as folder:
        kinds = make_kinds(Path(folder), only)
    kinds = {name: kind for name, kind in kinds.items() if not only or name in only}
    check_valid(kinds)
    counts: dict[str, Counter[str]] = {}
    slowest, peak, started_at = 0.0, 0, time.monotonic()
    for outcome in run(first, cases, kinds, seed, keep):
        counts.setdefault(outcome.kind, Counter())[outcome.how] += 1
        slowest, peak = max(slowest, outcome.seconds), max(peak, outcome.peak_bytes)
        if outcome.how not in ("right", "refused"):
            last = outcome.text.strip().splitlines() or [""]
            print(f"case {outcome.number} ({outcome.kind}): {outcome.how}: {last[-1][:200]}", flush=True)
    columns = ("right", "refused", "traceback", "hang", "memory", "died")
    print(f"\n| kind | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for name, of_kind in sorted(counts.items()):
        print(f"| {name} | {' | '.join(str(of_kind[column]) for column in columns)} |")
    total = sum(counts.values(), Counter())
    print(f"| all | {' | '.join(str(total[column]) for column in columns)} |")
    print(f"slowest case {slowest:.1f} s, peak {peak / 2**20:.0f} MiB, {time.monotonic() - started_at:.0f} s")
    shutil.rmtree(os.environ["FCOS_CACHE"], ignore_errors=True)
    sys.exit(1 if any(total[how] for how in columns[2:]) else 0)


if __name__ == "__main__":
    start(main)
