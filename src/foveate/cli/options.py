"""Flags shared by several commands. Nothing here may import torch, so that `--help` stays fast."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro

from foveate.cli.usage import UsageError
from foveate.errors import InputError
from foveate.plain.files import local_path
from foveate.plain.flags import Flag, flag_of, number_in, whole
from foveate.plain.table import ENDINGS

JSON = ".json"

PairCount = Annotated[int, whole(2)]
"""Timed rounds, at least the two that an interval needs."""
TOKENS = number_in(
    float,
    "TOKENS",
    lambda tokens: 0 < tokens < float("inf"),
    "a number above 0; for a share use --retention",
    spelled=str,
)
SHARE, SHARE_OF_TOKENS = (
    number_in(float, "SHARE", lambda share: 0 < share <= 1, f"a share in (0, 1], such as 0.33, 33% or 1/3{more}")
    for more in ("", "; for a token count use --budget")
)
Tokens = Annotated[float, TOKENS]
Share = Annotated[float, SHARE]
Retentions = Annotated[
    tyro.conf.UseAppendAction[tuple[Annotated[float, SHARE_OF_TOKENS], ...]], tyro.conf.arg(help_behavior_hint="")
]
MaybeTokens = Annotated[float | None, TOKENS, tyro.conf.arg(help_behavior_hint="")]
MaybeShare = Annotated[float | None, SHARE, tyro.conf.arg(help_behavior_hint="")]
Shares = Annotated[tyro.conf.UseAppendAction[tuple[Share, ...]], tyro.conf.arg(help_behavior_hint="")]


def _path_of(words: list[str]) -> Path:
    try:
        return local_path(words[0])
    except InputError as error:  # a ValueError, whose message tyro would not show
        raise UsageError(str(error)) from error


FILE = flag_of(Path, "FILE", _path_of)
"""A path or `file:` URL."""
File = Annotated[Path, FILE]
Images = Annotated[tuple[File, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[IMAGE…]", help_behavior_hint="")]
Files = Annotated[tuple[File, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[FILE…]", help_behavior_hint="")]
MaybeFile = Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]
Settings = Annotated[
    tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(name="set", metavar="KEY=VALUE", help_behavior_hint="")
]


@dataclass(frozen=True, kw_only=True)
class BudgetOptions:
    """How many vision tokens to keep."""

    budget: MaybeTokens = None
    """mean number of vision tokens per decoder layer"""
    retention: Annotated[float | None, SHARE_OF_TOKENS, tyro.conf.arg(help_behavior_hint="")] = None
    """the budget as a share in (0, 1] (default: 1/3 for a method without settings)"""
    settings: Settings = ()
    """a setting of the method; repeatable (list: foveate methods NAME)"""
    seed: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """seed of random dropping (default: 0)"""

    @property
    def flops(self) -> float | None:
        """The budget as a share of the full model's FLOPs, for commands that take one."""
        return None

    @property
    def has_budget(self) -> bool:
        """True if `--budget` or `--retention` is given."""
        return self.budget is not None or self.retention is not None


@dataclass(frozen=True, kw_only=True)
class FlopsOptions(BudgetOptions):
    """How many vision tokens to keep."""

    flops: MaybeShare = None
    """the budget as a share of the full model's FLOPs to the first token, so that all methods cost the same"""


@dataclass(frozen=True, kw_only=True)
class MethodsOptions:
    """The methods to run, and their budgets."""

    method: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="NAME[:KEY=VALUE;…]")] = ()
    """a method, preset, preset file or chain, with settings: "visiondrop+v2drop:metric=l1;keep=0.5,0.3,0"
    (default: v2drop, visiondrop and mustdrop; list: foveate methods)"""
    budget: Annotated[tyro.conf.UseAppendAction[tuple[Tokens, ...]], tyro.conf.arg(help_behavior_hint="")] = ()
    """mean number of vision tokens per decoder layer; repeatable"""
    retention: Retentions = ()
    """the budget as a share in (0, 1]; repeatable (default for methods without settings: 1/3)"""


def check_each_once(options: Any) -> None:
    """Refuse methods and budgets that are given twice, and budgets of more than one kind.

    Raises:
        UsageError: If there are any.
    """
    flags = ("budget", "retention", "flops")
    kinds = [f"--{flag}" for flag in flags if getattr(options, flag, ())]
    if len(kinds) > 1:
        raise UsageError(f"{' and '.join(kinds)} each set the budget; give one of them.")
    for flag in ("method", *flags):
        values = getattr(options, flag, ())
        if len(set(values)) < len(values):
            raise UsageError(f"--{flag}: the same value is given twice. Give it once.")


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Output format and files."""

    endings: ClassVar[tuple[str, ...]] = (JSON,)
    json: Flag = False
    """print only JSON to stdout"""
    out: MaybeFile = None
    """write the JSON to a file (.json)"""
    force: Flag = False
    """overwrite existing files"""


@dataclass(frozen=True, kw_only=True)
class TableOptions(OutputOptions):
    """Output format and files."""

    endings = (JSON, *ENDINGS)
    out: MaybeFile = None
    """write the JSON (.json) or the tables (.csv, .md) to a file"""
