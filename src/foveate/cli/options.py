"""Flags that several commands share. Nothing here may import torch: `--help` must be quick."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from foveate.cli.usage import UsageError
from foveate.errors import InputError
from foveate.plain.files import local_path
from foveate.plain.flags import Flag, number_in, whole

Pairs = Annotated[int, whole(2)]
"""Rounds of timing: an interval needs two."""
TOKENS = number_in(
    float, "TOKENS", lambda tokens: 0 < tokens < float("inf"), "a number above 0; a share is --retention", spelled=str
)
SHARE = number_in(
    float,
    "SHARE",
    lambda share: 0 < share <= 1,
    "a share in (0, 1], such as 0.33, 33% or 1/3; a token count is --budget",
)
Tokens = Annotated[float, TOKENS]
Share = Annotated[float, SHARE]
MaybeTokens = Annotated[float | None, TOKENS, tyro.conf.arg(help_behavior_hint="")]
MaybeShare = Annotated[float | None, SHARE, tyro.conf.arg(help_behavior_hint="")]
Shares = Annotated[tyro.conf.UseAppendAction[tuple[Share, ...]], tyro.conf.arg(help_behavior_hint="")]


def _path_of(words: list[str]) -> Path:
    try:
        return local_path(words[0])
    except InputError as error:  # a ValueError, which tyro would put into a frame without its words
        raise UsageError(str(error)) from error


FILE = PrimitiveConstructorSpec[Path](
    nargs=1,
    metavar="FILE",
    instance_from_str=_path_of,
    is_instance=lambda value: isinstance(value, Path),
    str_from_instance=lambda value: [str(value)],
)
"""A path or `file:` URL."""
File = Annotated[Path, FILE]
Images = Annotated[tuple[File, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE…", help_behavior_hint="")]
Files = Annotated[tuple[File, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE…", help_behavior_hint="")]
MaybeFile = Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]
Settings = Annotated[
    tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(name="set", metavar="KEY=VALUE", help_behavior_hint="")
]


@dataclass(frozen=True, kw_only=True)
class BudgetOptions:
    """How many vision tokens to keep."""

    budget: MaybeTokens = None
    """mean vision tokens per decoder layer, for this input"""
    retention: MaybeShare = None
    """the same as a share in (0, 1] (default: 1/3, of a name alone)"""
    settings: Settings = ()
    """a setting of the method, repeatable; the settings of a method: foveate methods NAME"""
    seed: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """the seed of random dropping (default: 0)"""

    @property
    def flops(self) -> float | None:
        """A share of the full model's FLOPs instead, for commands that take one."""
        return None

    @property
    def has_budget(self) -> bool:
        """Whether somebody gave a budget."""
        return self.budget is not None or self.retention is not None


@dataclass(frozen=True, kw_only=True)
class FlopsOptions(BudgetOptions):
    """How many vision tokens to keep."""

    flops: MaybeShare = None
    """instead: FLOPs to the first token, as a share of the full model's, so that all methods cost as much"""


@dataclass(frozen=True, kw_only=True)
class MethodsOptions:
    """Which methods run, and at which budgets."""

    method: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="NAME[:KEY=VALUE;…]")] = ()
    """a method, preset, preset file or chain, with settings: "visiondrop+v2drop:metric=l1;keep=0.5,0.3,0"
    (default: v2drop, visiondrop and mustdrop; list: foveate methods)"""
    budget: Annotated[tyro.conf.UseAppendAction[tuple[Tokens, ...]], tyro.conf.arg(help_behavior_hint="")] = ()
    """mean vision tokens per decoder layer"""
    retention: Annotated[tyro.conf.UseAppendAction[tuple[Share, ...]], tyro.conf.arg(help_behavior_hint="")] = ()
    """the same as a share in (0, 1] (default: of names alone 1/3; eval also 2/9 and 1/9)"""


def check_each_once(options: Any) -> None:
    """Refuse methods and budgets of a command that are given twice, or budgets in several ways.

    Raises:
        UsageError: If that is so.
    """
    flags = ("budget", "retention", "flops")
    kinds = [f"--{flag}" for flag in flags if getattr(options, flag, ())]
    if len(kinds) > 1:
        raise UsageError(f"{' and '.join(kinds)} say the same thing; give one of them.")
    for flag in ("method", *flags):
        values = getattr(options, flag, ())
        if len(set(values)) < len(values):
            raise UsageError(f"--{flag}: the same one is given twice.")


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """What is written, and where."""

    json: Flag = False
    """print only JSON to stdout"""
    out: MaybeFile = None
    """write the same JSON to a file"""
    force: Flag = False
    """overwrite files that exist"""


@dataclass(frozen=True, kw_only=True)
class TableOptions(OutputOptions):
    """What is written, and where."""

    out: MaybeFile = None
    """write the same JSON to a file (.json), or the tables (.csv, .md, .tex)"""
