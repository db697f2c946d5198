"""Parse the command line, run the command and turn its errors into exit codes."""

import contextlib
import sys
import traceback
from inspect import cleandoc
from typing import Any

import tyro
from rich.text import Text

from foveate.cli.batch import Batch
from foveate.cli.bench import Bench
from foveate.cli.check import Check
from foveate.cli.compare import Compare
from foveate.cli.count import Count
from foveate.cli.demo import Demo
from foveate.cli.eval import Eval
from foveate.cli.generate import Generate
from foveate.cli.lists import Methods, Models, Presets
from foveate.cli.screen import discard, guard_stdout, note, show
from foveate.cli.tune import Tune
from foveate.cli.usage import BUG, DONE, FAILED, WRONG_USAGE, UsageError
from foveate.errors import FoveateError, MethodError, SettingError, UnknownNameError
from foveate.plain.own_files import fault, files_run
from foveate.plain.spelling import unknown
from foveate.plain.upstream import first_line, is_out_of_memory

KINDS = (Generate, Compare, Count, Batch, Bench, Eval, Tune, Check, Demo, Methods, Models, Presets)
COMMANDS: dict[str, type[Any]] = {kind.__name__.lower(): kind for kind in KINDS}
STYLE = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)

OVERVIEW = """foveate: training-free vision-token dropping for large vision-language models.
Without --model, commands run offline on a small embedded model, which knows only drawings of shapes and short texts.

Commands:
{commands}

Examples:
  foveate generate                                    ask the embedded model about its example image
  foveate generate cat.jpg --prompt "What is this?" --model llava-hf/llava-1.5-7b-hf
  foveate demo                                        open a web page to try it
  foveate compare --help                              show the flags of one command
  foveate --version

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 some rows or files were left out, 70 a bug in foveate,
130 interrupted, 143 terminated."""


def run(words: list[str]) -> int:
    """Run the command named by the first word and return the exit code."""
    try:
        if not words or words[0] in ("-h", "--help"):
            lines = [f"  {name:10}{(kind.__doc__ or '').splitlines()[0]}" for name, kind in COMMANDS.items()]
            show(Text(OVERVIEW.format(commands="\n".join(lines))))
            return DONE
        ended = parse_command(words).run()
        sys.stdout.flush()
        return ended or DONE
    except FoveateError as error:
        note(str(error))
        usage = isinstance(error, UsageError | UnknownNameError | SettingError) and not isinstance(error, MethodError)
        if usage:  # the command line is wrong
            return WRONG_USAGE
        return FAILED
    except SystemExit as end:  # from tyro: 0 after --help, 2 after unknown flags
        return int(end.code or DONE)
    except BrokenPipeError:  # the reader, such as `head`, closed the pipe: discard the rest
        discard()
    except Exception as error:
        if cause := _cause_in_words(error) or fault(error):
            note(cause)
            return FAILED
        name = f"{type(error).__name__}: {error}".partition("\n")[0].rstrip(":. ")
        own = "".join(f" or in {file}" for file in files_run())
        note(f"this is a bug in foveate{own}: {name}. Please report it, with the command and the traceback below.")
        with contextlib.suppress(OSError):
            traceback.print_exception(error, file=sys.stderr)
        return BUG
    return DONE


def parse_command(words: list[str]) -> Any:
    """Return the command named by the first word, with its flags parsed.

    Raises:
        UnknownNameError: If there is no such command.
        SystemExit: With code 0 after `--help`, and 2 after flags that tyro rejects.
    """
    name, *flags = words
    if name not in COMMANDS:
        raise unknown("command", name, COMMANDS, "foveate --help")
    kind = COMMANDS[name]
    with guard_stdout():
        return tyro.cli(
            kind, prog=f"foveate {name}", description=cleandoc(kind.__doc__ or ""), args=flags, config=STYLE
        )


def _cause_in_words(error: Exception) -> str | None:
    """Describe an error that is not a bug in one line; None if it may be one.

    Covers running out of memory, and kernels that torch cannot compile, such as flex_attention with some masks on a
    CPU.
    """
    compiler = sys.modules.get("torch._dynamo.exc")
    if compiler is not None and isinstance(error, compiler.TorchDynamoException):
        return (
            f"torch cannot compile an attention kernel here: {str(error).partition(chr(10))[0]}. "
            "Use one that needs no compilation: --attention sdpa."
        )
    if is_out_of_memory(error):
        return f"out of memory: {first_line(error)} Use a smaller model or image, fewer frames, or another --device."
    return None
