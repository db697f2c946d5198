"""Flags that several commands share. Nothing here may import torch: `--help` must be quick."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from foveate.cli.usage import UsageError
from foveate.errors import InputError
from foveate.plain.files import local_path
from foveate.plain.spelling import fractions

EMBEDDED = "embedded"


def limited(
    kind: type, metavar: str, fits: Callable[[Any], bool], says: str, spelled: Callable[[str], str] = fractions
) -> PrimitiveConstructorSpec[Any]:
    """A number in a range, or None, as the type of a flag: tyro refuses others, with `says`."""

    def read(words: list[str]) -> Any:
        try:
            number = kind(spelled(words[0]))
        except ValueError:
            number = float("nan")
        if not fits(number):
            raise ValueError(f"{words[0]} is not {says}.")
        return number

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=read,
        is_instance=lambda value: value is None or isinstance(value, kind),
        str_from_instance=lambda value: [str(value)],
    )


def whole(least: int, most: int = 1_000_000) -> PrimitiveConstructorSpec[Any]:
    """A whole number in a range."""
    return limited(int, "N", lambda number: least <= number <= most, f"from {least} to {most:,}")


Count = Annotated[int, whole(1)]
MaybeCount = Annotated[int | None, whole(1), tyro.conf.arg(help_behavior_hint="")]
Rate = Annotated[
    float | None,
    limited(float, "RATE", lambda rate: 0 < rate < float("inf"), "above 0"),
    tyro.conf.arg(help_behavior_hint=""),
]
Pairs = Annotated[int, whole(2)]
"""Rounds of timing: an interval needs two."""
TOKENS = limited(
    float, "TOKENS", lambda tokens: 0 < tokens < float("inf"), "a number above 0; a share is --retention", spelled=str
)
SHARE = limited(
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
Flag = Annotated[bool, tyro.conf.arg(help_behavior_hint="")]


def _file(words: list[str]) -> Path:
    try:
        return local_path(words[0])
    except InputError as error:  # a ValueError, which tyro would put into a frame without its words
        raise UsageError(str(error)) from error


FILE = PrimitiveConstructorSpec[Path](
    nargs=1,
    metavar="FILE",
    instance_from_str=_file,
    is_instance=lambda value: isinstance(value, Path),
    str_from_instance=lambda value: [str(value)],
)
"""A path or `file:` URL."""
File = Annotated[Path, FILE]
Images = Annotated[tuple[File, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE…", help_behavior_hint="")]
Files = Annotated[tuple[File, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE…", help_behavior_hint="")]
Settings = Annotated[
    tyro.conf.UseAppendAction[tuple[str, ...]],
    tyro.conf.arg(name="set", metavar="KEY=VALUE", help_behavior_hint=""),
]


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The model and how it runs."""

    model: Annotated[str, tyro.conf.arg(metavar="ID|FOLDER")] = EMBEDDED
    """hub id or local folder (of a model or a PEFT adapter); only safetensors are read, and remote code is never run"""
    device: Annotated[str, tyro.conf.arg(metavar="NAME")] = "auto"
    """cpu, cuda, cuda:1, mps; auto takes the first accelerator, else the CPU"""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """number format; auto is the checkpoint's own, and float32 on a CPU"""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"] = "auto"
    """attention kernel; auto is the model's default"""
    max_new_tokens: Count = 64
    """most tokens of an answer"""

    @property
    def cuda_graphs(self) -> bool:
        """Whether it runs as CUDA graphs, for commands that ask often enough."""
        return False


@dataclass(frozen=True, kw_only=True)
class GraphOptions(ModelOptions):
    """The model and how it runs."""

    cuda_graphs: Flag = False
    """replay the vision tower, prompts and steps as CUDA graphs, each from its third run on (experimental)"""


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

    def check_each_once(self) -> None:
        """Refuse methods and budgets that are given twice, or budgets in both ways.

        Raises:
            UsageError: If that is so.
        """
        budgets = {"budget": self.budget, "retention": self.retention, "flops": getattr(self, "flops", ())}
        kinds = [f"--{flag}" for flag, values in budgets.items() if values]
        if len(kinds) > 1:
            raise UsageError(f"{' and '.join(kinds)} say the same thing; give one of them.")
        for flag, values in {"method": self.method, **budgets}.items():
            if len(set(values)) < len(values):
                raise UsageError(f"--{flag}: the same one is given twice.")


@dataclass(frozen=True, kw_only=True)
class MediaOptions:
    """How pictures and videos are shown to the model; videos are read with PyAV, pip install -e '.[vision]'."""

    frames: MaybeCount = None
    """most frames of a video, evenly spread (default: 32; 8 for embedded-films; 3 for a model of pictures alone)"""
    fps: Rate = None
    """frames per second; --frames then sets the maximum"""
    fit: Literal["own", "pad"] = "own"
    """pad shows a picture whole, on a square, where the model's processor would cut its sides off"""


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """What is written, and where."""

    json: Flag = False
    """print only JSON to stdout"""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """write the same JSON to a file"""
    force: Flag = False
    """overwrite files that exist"""

    @property
    def figure(self) -> Path | None:
        """Where a picture goes, for commands that draw one."""
        return None


@dataclass(frozen=True, kw_only=True)
class TableOptions(OutputOptions):
    """What is written, and where."""

    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """write the same JSON to a file (.json), or the tables (.csv, .md, .tex)"""


@dataclass(frozen=True, kw_only=True)
class FigureOptions(OutputOptions):
    """What is written, and where."""

    figure: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """draw the kept patches on the picture, one panel per stage; for a video, one sheet per stage
    (png, jpg, webp, pdf)"""
