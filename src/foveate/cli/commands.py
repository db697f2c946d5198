"""Which subcommand, and how it ends."""

import contextlib
import functools
import operator
import sys
import traceback
from inspect import cleandoc
from typing import Annotated, Any

import tyro

from foveate._upstream import first_line, is_out_of_memory
from foveate.cli.batch import Batch
from foveate.cli.bench import Bench
from foveate.cli.compare import Compare
from foveate.cli.demo import Demo
from foveate.cli.eval import Eval
from foveate.cli.generate import Generate
from foveate.cli.lists import Methods, Models, Presets
from foveate.cli.parsing import parse
from foveate.cli.screen import discard, note
from foveate.cli.tune import Tune
from foveate.cli.usage import BUG, DONE, FAILED, exit_code
from foveate.errors import FoveateError

__all__ = ["COMMANDS", "run"]

ABOUT = """Training-free vision-token dropping for large vision-language models.
Everything runs offline on a small embedded model unless --model names another.

Examples:
  foveate generate                                    the embedded model and its picture
  foveate generate cat.jpg --prompt "What is this?" --model llava-hf/llava-1.5-7b-hf
  foveate demo                                        a web page to try it on
  foveate compare --help
  foveate --version

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 rows without an answer, 70 a bug in foveate, 130 interrupted,
143 terminated."""

Command = Generate | Compare | Batch | Bench | Eval | Tune | Demo | Methods | Models | Presets
COMMANDS: dict[str, type[Command]] = {
    "generate": Generate,
    "compare": Compare,
    "batch": Batch,
    "bench": Bench,
    "eval": Eval,
    "tune": Tune,
    "demo": Demo,
    "methods": Methods,
    "models": Models,
    "presets": Presets,
}


def run(arguments: list[str]) -> int:
    """Run the subcommand that these arguments name; the exit code.

    Raises:
        SystemExit: With 0 after `--help`.
    """
    try:
        ended = _parse(arguments).run()
        sys.stdout.flush()
        return ended or DONE
    except FoveateError as error:
        note(str(error))
        return exit_code(error)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough; what is left must go nowhere
        discard()
    except Exception as error:
        if said := _uncompiled(error) or _out_of_memory(error):
            note(said)
            return FAILED
        _report(error)
        return BUG
    return DONE


def _uncompiled(error: Exception) -> str | None:
    """One line on a kernel that torch's compiler cannot make, such as flex_attention's for some masks on a CPU."""
    compiler = sys.modules.get("torch._dynamo.exc")
    if compiler is None or not isinstance(error, compiler.TorchDynamoException):
        return None
    return (
        f"torch cannot compile an attention kernel here: {str(error).partition(chr(10))[0]}. "
        "Take one that needs no compiling: --attention sdpa."
    )


def _out_of_memory(error: Exception) -> str | None:
    """One line on a lack of memory, which is no bug."""
    if not is_out_of_memory(error):
        return None
    return f"out of memory: {first_line(error)} Take a smaller model or picture, fewer frames, or another --device."


def _report(error: Exception) -> None:
    """Say that this is a bug, and show what a report of it needs."""
    words = f"{type(error).__name__}: {error}".partition("\n")[0].rstrip(":. ")
    note(f"this is a bug in foveate: {words}. Please report it with the command and the lines below.")
    with contextlib.suppress(OSError):
        traceback.print_exception(error, file=sys.stderr)


def _parse(arguments: list[str]) -> Any:
    """The subcommand with its flags. A known one is parsed by itself: its help then shows its docstring whole."""
    if arguments and (kind := COMMANDS.get(arguments[0])) is not None:
        about = cleandoc(kind.__doc__ or "")
        return parse(kind, f"foveate {arguments[0]}", description=about, args=arguments[1:])
    short = {name: (kind.__doc__ or "").split("\n")[0] for name, kind in COMMANDS.items()}
    listed = [Annotated[kind, tyro.conf.subcommand(name, description=short[name])] for name, kind in COMMANDS.items()]
    anything: Any = functools.reduce(operator.or_, listed)
    return parse(anything, "foveate", description=ABOUT, args=arguments)
