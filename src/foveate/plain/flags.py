"""Which model is asked, and what it is shown: options that commands take as flags, and that go with a job's rows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from foveate.plain.spelling import fractions

EMBEDDED = "embedded"


def number_in(
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
    return number_in(int, "N", lambda number: least <= number <= most, f"from {least} to {most:,}")


Count = Annotated[int, whole(1)]
MaybeCount = Annotated[int | None, whole(1), tyro.conf.arg(help_behavior_hint="")]
Rate = Annotated[
    float | None,
    number_in(float, "RATE", lambda rate: 0 < rate < float("inf"), "above 0"),
    tyro.conf.arg(help_behavior_hint=""),
]
Flag = Annotated[bool, tyro.conf.arg(help_behavior_hint="")]


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """The model and how it runs."""

    model: Annotated[str, tyro.conf.arg(metavar="ID|FOLDER")] = EMBEDDED
    """hub id or local folder (of a model or a PEFT adapter); only safetensors are read, and remote code is never run"""
    device: Annotated[str, tyro.conf.arg(metavar="NAME")] = "auto"
    """cpu, cuda, cuda:1, mps; auto takes the first accelerator, else the CPU"""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """number format; auto is the checkpoint's own, and float32 on a CPU"""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"] = "auto"
    """attention kernel; auto is the model's default"""

    @property
    def loading(self) -> dict[str, Any]:
        """How it is loaded, as the keywords of `foveate.load`."""
        names = ("device", "dtype", "attention", "cuda_graphs")
        return {name: getattr(self, name) for name in names if hasattr(self, name)}


@dataclass(frozen=True, kw_only=True)
class ModelOptions(LoadOptions):
    """The model and how it runs."""

    max_new_tokens: Count = 64
    """most tokens of an answer"""


@dataclass(frozen=True, kw_only=True)
class GraphOptions(ModelOptions):
    """The model and how it runs."""

    cuda_graphs: Flag = False
    """replay the vision tower, prompts and steps as CUDA graphs, each from its third run on (experimental)"""


@dataclass(frozen=True, kw_only=True)
class MediaOptions:
    """How pictures and videos are shown to the model; videos are read with PyAV, pip install -e '.[vision]'."""

    frames: MaybeCount = None
    """most frames of a video, evenly spread (default: 32; 8 for embedded-films; 3 for a model of pictures alone)"""
    fps: Rate = None
    """frames per second; --frames then sets the maximum"""
    fit: Literal["own", "pad"] = "own"
    """pad shows a picture whole, on a square, where the model's processor would cut its sides off"""

    @property
    def showing(self) -> dict[str, Any]:
        """How it is shown, as the keywords of `VLM.prepare`."""
        return {name: getattr(self, name) for name in ("frames", "fps", "fit")}


@dataclass(frozen=True, kw_only=True)
class PromptRequest:
    """How large a prompt of noise is; each sample of a batch has pictures of its own, except of a checkpoint."""

    batch: Count = 1
    """samples a run"""
    text_tokens: MaybeCount = None
    """tokens of text in the prompt (default: 40; a checkpoint's template may need more)"""
    images: MaybeCount = None
    """pictures in the prompt (default: 1)"""
    frames: MaybeCount = None
    """frames of a video instead of pictures, for shapes that take videos"""
    seed: Annotated[int, whole(0, 2**63 - 1)] = 0
    """of weights, noise, order and random dropping"""
