"""What `foveate bench` is asked for: its flags, and which of them go together."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from foveate.cli.options import EMBEDDED, Flag, OutputOptions
from foveate.cli.usage import UsageError, check_budgets

__all__ = ["BenchOptions"]

Attention = Literal["auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"]


@dataclass(frozen=True, kw_only=True)
class BenchOutputs(OutputOptions):
    """What is written, and where."""

    figure: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """draw times and their intervals against FLOPs (png, jpg, webp, pdf)"""


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Flags of `foveate bench`."""

    model: Annotated[str, tyro.conf.arg(metavar="SHAPE|ID|FOLDER")] = EMBEDDED
    """a shape with random weights (list: --shapes), a hub id or a local folder"""
    method: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="NAME[:KEY=VALUE;…]")] = ()
    """a method, preset, tuned record or chain, with settings: "visiondrop+v2drop:metric=l1;keep=0.5,0.3,0"
    (default: v2drop, visiondrop and mustdrop; list: foveate methods)"""
    budget: Annotated[
        tyro.conf.UseAppendAction[tuple[float, ...]], tyro.conf.arg(metavar="TOKENS", help_behavior_hint="")
    ] = ()
    """mean vision tokens a decoder layer"""
    retention: Annotated[
        tyro.conf.UseAppendAction[tuple[float, ...]], tyro.conf.arg(metavar="SHARE", help_behavior_hint="")
    ] = ()
    """the same as a share in (0, 1] (default: 1/3)"""
    batch: Annotated[int, tyro.conf.arg(metavar="N")] = 1
    """samples a run"""
    text_tokens: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """tokens of text in the prompt (default: 40; a checkpoint's template may need more)"""
    new_tokens: Annotated[int, tyro.conf.arg(metavar="N")] = 16
    """length of every answer"""
    images: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """pictures in the prompt (default: 1)"""
    frames: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """frames of a video in the place of pictures, for shapes that know videos"""
    pairs: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """timed rounds, after one of warm-up (default: 30 on an accelerator, 10 on a CPU)"""
    seed: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """of weights, noise, order and lots"""
    device: Annotated[str, tyro.conf.arg(metavar="NAME")] = "auto"
    """cpu, cuda, cuda:1; auto takes the first accelerator there is"""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """number format; auto is float32 on a CPU, elsewhere the checkpoint's own or bfloat16"""
    attention: Annotated[tyro.conf.UseAppendAction[tuple[Attention, ...]], tyro.conf.arg(help_behavior_hint="")] = ()
    """attention kernel, one for all rows (default: the model's)"""
    with_eager: Flag = False
    """one more row, under eager attention: what a method that needs attention matrices pays at the first schedule"""
    bare: Flag = True
    """leave out the rows of the bare layers: the model's own on as many tokens, the least time a schedule can take"""
    clock: Literal["wall", "cpu"] = "wall"
    """time on the wall, or of the processor: for a busy machine, on a CPU alone"""
    predict: Flag = False
    """arithmetic alone: what FLOPs and the cache promise; nothing runs, no weights are needed"""
    profile: Flag = False
    """also print where the time goes, by part, of the untouched model and of each method"""
    shapes: Flag = False
    """list the shapes and do nothing else"""
    outputs: Annotated[BenchOutputs, tyro.conf.arg(name="output")] = field(default_factory=BenchOutputs)

    @property
    def kernel(self) -> str:
        """The one attention kernel."""
        return self.attention[0] if self.attention else "auto"

    def check(self) -> None:
        """Refuse flags that contradict each other, and numbers out of range."""
        if len(self.attention) > 1:
            raise UsageError(
                "--attention is given twice: times under different kernels say nothing of dropping. Run the command "
                "twice; for what attention matrices cost, add --with-eager."
            )
        if self.with_eager and self.kernel == "eager":
            raise UsageError("--with-eager beside --attention eager: every row has attention matrices already.")
        check_budgets(self.method, self.budget, self.retention)
        for flag, value, least in (
            ("--batch", self.batch, 1),
            ("--new-tokens", self.new_tokens, 1),
            ("--pairs", 2 if self.pairs is None else self.pairs, 2),
            ("--text-tokens", 1 if self.text_tokens is None else self.text_tokens, 1),
            ("--images", 1 if self.images is None else self.images, 1),
            ("--frames", 1 if self.frames is None else self.frames, 1),
        ):
            if value < least:
                raise UsageError(f"{flag} {value}: {least} or more.")
        if self.images is not None and self.frames is not None:
            raise UsageError("--images and --frames exclude each other; give one of them.")
        if self.predict and (self.profile or self.outputs.figure is not None):
            raise UsageError("--predict runs nothing, so there is nothing to profile or to draw. Leave it out.")
