"""Command lines with odd values, run in this process on a tiny model."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, TextIO
from unittest import mock

from PIL import Image

from foveate import cli
from foveate.ask.loading import load
from tests.cli.conftest import save_tiny_llava
from tests.films import film
from tests.fuzz.judging import MOST_LINES, Case, Refused, Wrong
from tests.fuzz.mutating import odd_number, odd_text

COMMANDS = ("generate", "compare", "bench", "eval", "tune", "methods", "models", "presets")
PATIENCE = 4.0  # seconds of the processor after which a command is interrupted, as by Ctrl-C
INTERRUPTED = 130
PROGRESS = ("Drawing pictures", "Answering: ", "warning: the machine is noisy", "the machine is noisy")
"""How notes begin that are no part of an error."""

SMALL = {
    "generate": ("--max-new-tokens", "2", "--pairs", "2"),
    "compare": ("--max-new-tokens", "2", "--pairs", "2"),
    "bench": ("--new-tokens", "1", "--pairs", "2", "--model", "cpu-tiny"),
    "eval": ("--questions", "1", "--jobs", "1", "--draws", "1", "--max-new-tokens", "2", "--cache", "cache"),
    "tune": ("--prompt", "What is this ?", "--retention", "0.9"),
}
"""Flags that let a command end soon."""
FILES = (
    "good.png", "good.png", "good.png", "good.gif", "film.mp4", "empty.png", "text.png", "folder", "loop.png",
    "dangling.png", "pipe.png", "missing.png", "no\nline.png", "[red].png", "\udcff.png", "missing/good.png",
    "good.png/x", "n" * 300, "~nouser/x.png", "", ".", "..", "/", "/dev/null", "/dev/full", "./-", "--",
)  # fmt: skip
TARGETS = (*FILES, "new.png", "new.json", "new.jpg", "new.pdf", "new.webp", "link.png", "link.json", "folder/new.png")
METHODS = (
    "v2drop", "visiondrop", "mustdrop", "random", "uniform", "finalkv", "averagepool", "resize", "chain",
    "v2drop/llava-1.5-7b/192", "v2drop:metric=l1", "v2drop:layers=3.7,4,5", "v2drop:layers=1e999", "v2drop+finalkv",
    "visiondrop+v2drop:keep=0.5", "method.json", "missing.json", "folder", "text.json", "link.json", "pipe.json",
    '{"method": "v2drop"}', '{"method"', "random:seed=-1", "v2drop::", "+", "v2drop+", ":x=1",
)  # fmt: skip
MODELS = (
    "embedded", "embedded", "embedded", "cpu-tiny", "folder", "missing", "./missing", "~nouser/m",
    "a/b", "a/b/c", "/", "..", "text.png", "loop.png", "pipe.png", "\udcff/m", "m" * 5000,
)  # fmt: skip
VALUES = {
    "--method": METHODS,
    "--model": MODELS,
    "--out": TARGETS,
    "--figure": TARGETS,
    "--cache": ("cache", "text.png", "loop.png", "pipe.png", "missing/deep", "\udcff", "/dev/null", "n" * 300),
    "--samples": ("samples.jsonl", "text.png", "pipe.png", "folder", "missing.jsonl", "empty.png", "loop.png"),
    "--tasks": ("colour", "count,colour", ",", "", "colour,colour", " count "),
    "--device": ("cpu", "auto", "cuda", "cuda:99", "meta", "cpu:1", "gpu", ""),
    "--set": ("layers=1,2", "keep=0.5,0.5", "seed=3", "x", "=", "metric=l9", "layers=3.7,4", "keep=nan", "seed=1e999"),
    "--include": ("folder", "missing", "text.png"),
    "--prompt": ("What is this ?", "", "\udcff", "<image>", "<image><image>", "a\nb", "x " * 300),
    "--task": ("receipts", "\udcff", ""),
}
WITH_WORK = ("--pairs", "--questions", "--draws", "--jobs", "--new-tokens", "--max-new-tokens", "--batch", "--images")
"""Numbers that say how much is done: a large one is no mistake, and takes its time."""


def case(rng: Random, folder: Path) -> Case:
    """A command line in a folder of odd files, with stdout open, full, closed or without a reader."""
    words = _words(rng)
    _furnish(folder)
    stdout = rng.choice(("open",) * 12 + ("full", "gone", "closed"))
    return Case(f"foveate {' '.join(map(ascii, words))}, stdout {stdout}", lambda: _run(words, folder, stdout))


def _words(rng: Random) -> list[str]:
    """The command line."""
    command = rng.choice((*COMMANDS, *COMMANDS, *COMMANDS, rng.choice(("", "gen", "--version", "--help", "\udcff"))))
    if command not in COMMANDS:
        return [command, *(odd_text(rng) for _ in range(rng.choice((0, 1, 2))))]
    words = [command]
    if command in ("generate", "compare") and rng.random() < 0.8:
        words += [rng.choice(FILES) for _ in range(rng.choice((1, 1, 2)))]
        words += ["--prompt", "What is this ?"]
    if command in ("methods", "models", "presets") and rng.random() < 0.6:
        words.append(rng.choice(("v2drop", "llava", "llava-1.5-7b", odd_text(rng))))
    if command == "tune" and rng.random() < 0.8:
        words.append(rng.choice(FILES))
    words += SMALL.get(command, ())
    for _ in range(rng.choice((1, 1, 2, 3))):
        flag, takes_value = rng.choice(sorted(flags(command).items()))
        words += _flag(rng, flag, takes_value)
    if rng.random() < 0.05:
        words.append(odd_text(rng))
    if rng.random() < 0.05:
        words.insert(rng.randrange(1, len(words) + 1), odd_text(rng))
    return [word.replace("\0", "") for word in words]  # no command line can have one


def _flag(rng: Random, flag: str, takes_value: bool) -> list[str]:
    """A flag, mostly as it should be: with a value, or without."""
    how = rng.random()
    if takes_value == (how < 0.05):
        return [flag]
    if how < 0.08:
        return [rng.choice((flag[:-1], flag + "x", flag.upper(), "-" + flag[2:], "--no-" + flag[2:]))]
    value = _value(rng, flag)
    return [f"{flag}={value}"] if rng.random() < 0.1 else [flag, value]


def _value(rng: Random, flag: str) -> str:
    if flag in VALUES and rng.random() < 0.8:
        return str(rng.choice(VALUES[flag]))
    if rng.random() < 0.3:
        return odd_text(rng)
    number = odd_number(rng)
    if flag in WITH_WORK and isinstance(number, int) and number > 3:
        number = 2
    try:
        return str(number)
    except ValueError:  # Python writes no integer of so many digits
        return "9" * 400


@cache
def flags(command: str) -> dict[str, bool]:
    """The flags that the command's help names, and whether each takes a value."""
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        cli.main([command, "--help"])
    found = re.findall(r"^\W*(--[a-z][a-z-]+)( [A-Z{])?", text.getvalue(), re.MULTILINE)
    return {flag: bool(value) for flag, value in found}


# -- what is there --------------------------------------------------------------------------------------------


@cache
def sound() -> Path:
    """The files that every case finds, and a tiny model in the place of the embedded one."""
    folder = Path(tempfile.mkdtemp(prefix="foveate-fuzz-"))
    save_tiny_llava(folder / "model")
    picture = Image.effect_mandelbrot((60, 60), (-2, -1.5, 1, 1.5), 40).convert("RGB")
    picture.save(folder / "good.png")
    picture.save(folder / "good.gif", save_all=True, append_images=[picture.rotate(90)])
    film(folder / "film.mp4", 6, size=(64, 64), gop=3)
    return folder


def _furnish(folder: Path) -> None:
    """Put odd files into a case's folder."""
    for name in ("good.png", "good.gif", "film.mp4"):
        shutil.copy(sound() / name, folder / name)
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("not a picture\n")
    (folder / "text.json").write_text("{]")
    (folder / "method.json").write_text('{"method": "v2drop", "layers": [3, 17, 22], "keep": [0.5, 0.3, 0.0]}')
    (folder / "samples.jsonl").write_text('{"image": "good.png", "prompt": "What is this ?"}\n')
    (folder / "folder").mkdir()
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "dangling.png").symlink_to("nowhere/x.png")
    (folder / "link.png").symlink_to("target.png")
    (folder / "link.json").symlink_to("text.json")
    os.mkfifo(folder / "pipe.png")
    os.mkfifo(folder / "pipe.json")
    shutil.copy(sound() / "good.png", folder / "[red].png")
    shutil.copy(sound() / "good.png", folder / "no\nline.png")
    shutil.copy(sound() / "good.png", folder / "\udcff.png")


@cache
def _loaded(name: str, options: str) -> Any:
    return load(name, **json.loads(options))


def _load(name: str, *, device: Any, dtype: str, attention: str) -> Any:
    """Like `load`, but once for each model."""
    return _loaded(str(name), json.dumps({"device": str(device), "dtype": dtype, "attention": attention}))


# -- running it -----------------------------------------------------------------------------------------------


def _run(words: list[str], folder: Path, stdout: str) -> None:
    """Run a command line, and look at how it ended.

    Raises:
        Refused: If it was refused as it should be.
        Wrong: If it ended in another way.
    """
    before = _contents(folder)
    err = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace")
    with _stdout(stdout) as out:
        with _inside(folder), mock.patch("sys.stdout", out), mock.patch("sys.stderr", err):
            code = _code(words)
        said = _flushed(out, stdout)
    err.flush()
    _look(code, said, err.buffer.getvalue().decode())  # type: ignore[attr-defined]
    _look_around(folder, before, forced="--force" in " ".join(words))
    if code:
        raise Refused(f"exit code {code}")


def _code(words: list[str]) -> Any:
    """The exit code. What takes its time is interrupted, as by Ctrl-C."""
    before = signal.signal(signal.SIGPROF, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_PROF, PATIENCE)
    try:
        return cli.main(words)
    except SystemExit as end:
        return end.code or 0
    except KeyboardInterrupt as error:
        raise Wrong("Ctrl-C came through") from error
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """In this folder, with its own cache, and with a tiny model that is loaded once."""
    with (
        contextlib.chdir(folder),
        mock.patch.dict(os.environ, XDG_CACHE_HOME=str(folder / "cache"), COLUMNS="100"),
        mock.patch("foveate.embedded.path", return_value=sound() / "model"),
        mock.patch("foveate.cli.asking.load_model", _load),
    ):
        yield


@contextlib.contextmanager
def _stdout(kind: str) -> Iterator[TextIO | None]:
    """What a command writes to: a file, a full disk, a pipe whose reader is gone, or nothing at all."""
    if kind == "closed":
        yield None
        return
    if kind == "open":
        yield io.TextIOWrapper(io.BytesIO(), "utf-8")
        return
    if kind == "full":
        stream = open("/dev/full", "w", encoding="utf-8")  # noqa: SIM115 - closing it is an error
    else:
        reading, writing = os.pipe()
        os.close(reading)
        stream = open(writing, "w", encoding="utf-8")  # noqa: SIM115
    yield stream
    with contextlib.suppress(OSError):
        stream.close()


def _flushed(out: TextIO | None, kind: str) -> str:
    """What was written; Python flushes at its end, and what fails then is told to everybody."""
    if out is None:
        return ""
    try:
        out.flush()
    except OSError as error:
        raise Wrong(f"Python cannot flush stdout at its end: {error}") from error
    return out.buffer.getvalue().decode() if kind == "open" else ""  # type: ignore[attr-defined]


def _look(code: Any, said: str, err: str) -> None:
    """Refuse another exit code, a traceback, or an error that is none or too long."""
    if code not in (0, 1, 2, INTERRUPTED):
        raise Wrong(f"exit code {code}: {_bug(err)}\n{err}")
    if "Traceback" in err + said:
        raise Wrong(f"a traceback\n{err}{said}")
    lines = [line for line in err.splitlines() if not line.removeprefix("foveate: ").startswith(PROGRESS)]
    if code in (1, 2) and not lines:
        raise Wrong(f"exit code {code} without a word\n{said}")
    ours = [line for line in lines if not line.startswith(("╭", "│", "╰"))]  # tyro draws a box around wrong flags
    if code in (1, 2) and len(ours) > MOST_LINES:
        raise Wrong(f"an error of {len(lines)} lines: {lines[0]}\n{err}")


def _bug(err: str) -> str:
    """What a report of a bug says it is."""
    found = re.search(r"this is a bug in foveate: (.*?)\. Please", err, re.DOTALL)
    place = re.findall(r'/foveate/([\w/]+\.py)", line \d+, in (\w+)', err)
    return f"{found[1] if found else ''} {place[-1] if place else ''}"


def _contents(folder: Path) -> dict[str, bytes]:
    """The regular files of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and not path.is_symlink()}


def _look_around(folder: Path, before: dict[str, bytes], *, forced: bool) -> None:
    """Refuse half a file, and a file that was overwritten unasked."""
    after = _contents(folder)
    if parts := [name for name in after if name.startswith(".foveate-")]:
        raise Wrong(f"half a file is left: {parts}")
    changed = [name for name, data in before.items() if after.get(name) != data]
    if changed and not forced:
        raise Wrong(f"files were changed: {changed}")
