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
from typing import Any, TextIO
from unittest import mock

from hypothesis import strategies as st
from PIL import Image

from foveate import cli
from foveate.ask.loading import load
from tests.cli.conftest import save_tiny_llava
from tests.films import film
from tests.fuzz.judging import MOST_LINES, Case, Refused, Wrong
from tests.fuzz.mutating import NUMBERS, TEXTS

COMMANDS = ("generate", "compare", "bench", "eval", "tune", "methods", "models", "presets")
PATIENCE = 4.0  # seconds of the processor after which a command is interrupted, as by Ctrl-C
INTERRUPTED = 130
PROGRESS = ("Drawing pictures", "Answering: ", "warning: the machine is noisy", "the machine is noisy")
"""How notes begin that are no part of an error."""

SMALL = {
    "generate": ("--max-new-tokens", "2", "--pairs", "2"),
    "compare": ("--max-new-tokens", "2", "--pairs", "2"),
    "bench": ("--new-tokens", "1", "--pairs", "2", "--model", "cpu-tiny"),
    "eval": ("--questions", "1", "--workers", "1", "--draws", "1", "--max-new-tokens", "2", "--cache", "cache"),
    "tune": ("--prompt", "What is this ?", "--retention", "0.9"),
}
"""Flags that let a command end soon."""
SOUND = ("generate good.png --prompt What --figure new.png", "eval", "bench")
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
WITH_WORK = (
    "--pairs", "--questions", "--draws", "--workers", "--new-tokens", "--max-new-tokens", "--batch", "--images",
)  # fmt: skip
"""Numbers that say how much is done: a large one is no mistake, and takes its time."""
MOSTLY, SELDOM = st.integers(0, 9).map((8).__gt__), st.integers(0, 9).map((5).__eq__)
SOUND_VALUES = st.sampled_from(("1", "2", "0.5"))


def cases() -> list[st.SearchStrategy[Case]]:
    """Command lines, after sound ones: what these import and load, the others find there."""
    for command in COMMANDS:
        flags(command)
    with tempfile.TemporaryDirectory() as place:
        _furnish(folder := Path(place))
        for command, *words in map(str.split, SOUND):
            with _inside(folder), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                assert cli.main([command, *words, *SMALL.get(command, ())]) == 0
    return [_cases(command) for command in (*COMMANDS, "")]


@st.composite
def _cases(draw: st.DrawFn, command: str) -> Case:
    """A command line in a folder of odd files, with stdout open, full, closed or without a reader."""
    words = [word.replace("\0", "") for word in _words(draw, command)]  # no command line can have one
    stdout = draw(st.sampled_from(("open",) * 12 + ("full", "gone", "closed")))
    told = f"foveate {' '.join(map(ascii, words))}, stdout {stdout}"
    return Case(told, lambda folder: _run(words, folder, stdout), _furnish)


def _words(draw: st.DrawFn, command: str) -> list[str]:
    """The command line."""
    if not command:
        return [draw(st.sampled_from(("", "gen", "--version", "--help", "\udcff"))), *draw(st.lists(TEXTS, max_size=2))]
    words, files = [command], st.just("good.png") | st.sampled_from(FILES)
    if command in ("generate", "compare") and draw(MOSTLY):
        words += [*draw(st.lists(files, min_size=1, max_size=2)), "--prompt", "What is this ?"]
    if command in ("methods", "models", "presets") and draw(MOSTLY):
        words.append(draw(st.sampled_from(("v2drop", "llava", "llava-1.5-7b")) | TEXTS))
    if command == "tune" and draw(MOSTLY):
        words.append(draw(files))
    words += SMALL.get(command, ())
    for _ in range(draw(st.sampled_from((1, 1, 2, 3)))):
        words += _flag(draw, *draw(st.sampled_from(sorted(flags(command).items()))))
    if draw(SELDOM):
        words.insert(draw(st.integers(1, len(words))), draw(TEXTS))
    return words


def _flag(draw: st.DrawFn, flag: str, takes_value: bool) -> list[str]:
    """A flag, mostly as it should be: with a value, or without; at times twice."""
    if draw(SELDOM):
        flag = draw(st.sampled_from((flag[:-1], flag + "x", flag.upper(), "-" + flag[2:], "--no-" + flag[2:])))
    if takes_value == draw(SELDOM):
        return [flag]
    value = draw(_value(flag))
    written = [flag, value] if draw(MOSTLY) else [f"{flag}={value}"]
    return written * 2 if draw(SELDOM) else written


def _value(flag: str) -> st.SearchStrategy[str]:
    numbers = NUMBERS.map(lambda number: min(number, 2) if flag in WITH_WORK and isinstance(number, int) else number)
    odd = numbers.map(_written) | TEXTS
    usual = st.sampled_from(VALUES[flag]) if flag in VALUES else SOUND_VALUES
    return usual | usual | odd


def _written(number: Any) -> str:
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
        mock.patch("foveate.cli.setup.load_model", _load),
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
        raise Wrong("Python cannot flush stdout at its end", error) from error
    return out.buffer.getvalue().decode() if kind == "open" else ""  # type: ignore[attr-defined]


def _look(code: Any, said: str, err: str) -> None:
    """Refuse another exit code, a traceback, or an error that is none or too long."""
    if code not in (0, 1, 2, INTERRUPTED):
        raise Wrong(f"exit code {code} {_place(err)}", err)
    if "Traceback" in err + said:
        raise Wrong("a traceback", err + said)
    lines = [line for line in err.splitlines() if not line.removeprefix("foveate: ").startswith(PROGRESS)]
    if code in (1, 2) and not lines:
        raise Wrong(f"exit code {code} without a word", said)
    ours = [line for line in lines if not line.startswith(("╭", "│", "╰"))]  # tyro draws a box around wrong flags
    if code in (1, 2) and len(ours) > MOST_LINES:
        raise Wrong("a long error", f"{len(lines)} lines: {err}")


def _place(err: str) -> str:
    """Where a bug that is told with a traceback has its place, and of which type it is."""
    types, places = re.findall(r"^(\w[\w.]*)(?::|$)", err, re.M), re.findall(r'/(\w+\.py)", line \d+, in (\w+)', err)
    return f"{types[-1:]} {places[-1:]}"


def _contents(folder: Path) -> dict[str, bytes]:
    """The regular files of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and not path.is_symlink()}


def _look_around(folder: Path, before: dict[str, bytes], *, forced: bool) -> None:
    """Refuse half a file, and a file that was overwritten unasked."""
    after = _contents(folder)
    if parts := [name for name in after if name.startswith(".foveate-")]:
        raise Wrong("half a file is left", parts)
    changed = [name for name, data in before.items() if after.get(name) != data]
    if changed and not forced:
        raise Wrong("files were changed", changed)
