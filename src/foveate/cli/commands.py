"""Which command, and how it ends."""

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
from foveate.errors import FoveateError, SettingError, UnknownNameError
from foveate.plain.own_files import fault, files_run
from foveate.plain.spelling import unknown
from foveate.plain.upstream import first_line, is_out_of_memory

KINDS = (Generate, Compare, Count, Batch, Bench, Eval, Tune, Check, Demo, Methods, Models, Presets)
COMMANDS: dict[str, type[Any]] = {kind.__name__.lower(): kind for kind in KINDS}
STYLE = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)

OVERVIEW = """foveate: training-free vision-token dropping for large vision-language models.
Everything runs offline on a small embedded model unless --model names another.

Commands:
{commands}

Examples:
  foveate generate                                    the embedded model and its picture
  foveate generate cat.jpg --prompt "What is this?" --model llava-hf/llava-1.5-7b-hf
  foveate demo                                        a web page to try it on
  foveate compare --help                              the flags of one command
  foveate --version

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 rows without an answer, 70 a bug in foveate, 130 interrupted,
143 terminated."""


def run(words: list[str]) -> int:
    """Run the command that these words name; the exit code."""
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
        if isinstance(error, UsageError | UnknownNameError | SettingError):  # the command line itself is wrong
            return WRONG_USAGE
        return FAILED
    except SystemExit as end:  # of tyro: 0 after the help, 2 after flags that it does not take
        return int(end.code or DONE)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough; what is left must go nowhere
        discard()
    except Exception as error:
        if cause := _cause_in_words(error) or fault(error):
            note(cause)
            return FAILED
        name = f"{type(error).__name__}: {error}".partition("\n")[0].rstrip(":. ")
        own = "".join(f" or in {file}" for file in files_run())
        note(f"this is a bug in foveate{own}: {name}. Please report it with the command and the lines below.")
        with contextlib.suppress(OSError):
            traceback.print_exception(error, file=sys.stderr)
        return BUG
    return DONE


def parse_command(words: list[str]) -> Any:
    """The command that these words name, with its flags.

    Raises:
        UnknownNameError: If there is no such command.
        SystemExit: With 0 after `--help`, with 2 after flags that tyro does not take.
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
    """One line on what is no bug: a kernel that torch's compiler cannot make, such as flex_attention's for some masks
    on a CPU, or a lack of memory."""
    compiler = sys.modules.get("torch._dynamo.exc")
    if compiler is not None and isinstance(error, compiler.TorchDynamoException):
        return (
            f"torch cannot compile an attention kernel here: {str(error).partition(chr(10))[0]}. "
            "Take one that needs no compiling: --attention sdpa."
        )
    if is_out_of_memory(error):
        return f"out of memory: {first_line(error)} Take a smaller model or picture, fewer frames, or another --device."
    return None
