"""Options for the model and its media: flags of the commands, also stored with each row of a batch job."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt

from foveate.plain.spelling import fractions

try:
    import tyro
    from tyro.constructors import PrimitiveConstructorSpec
except ImportError:  # a worker without commands: the options are settings of the library
    tyro = None  # type: ignore[assignment]

EMBEDDED = "embedded"


def shown(**hints: Any) -> Any:
    """Return `tyro.conf.arg`, which says how a flag is shown; None without tyro."""
    return tyro and tyro.conf.arg(**hints)


def flag_of(kind: type, metavar: str, read: Callable[[list[str]], Any]) -> Any:
    """Return the type of a flag with one word, from which `read` makes a value. The flag may also be None.

    None without tyro.
    """
    return tyro and PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=read,
        is_instance=lambda value: value is None or isinstance(value, kind),
        str_from_instance=lambda value: [str(value)],
    )


def number_in(
    kind: type, metavar: str, fits: Callable[[Any], bool], says: str, spelled: Callable[[str], str] = fractions
) -> Any:
    """Return the flag type of a number in a range, or None. tyro rejects other values with the message `says`."""

    def read(words: list[str]) -> Any:
        try:
            number = kind(spelled(words[0]))
        except ValueError:
            number = float("nan")
        if not fits(number):
            raise ValueError(f"{words[0]} is not {says}.")
        return number

    return flag_of(kind, metavar, read)


def whole(least: int, most: int = 1_000_000) -> Any:
    """Return the flag type of an integer in [least, most]."""
    return number_in(int, "N", lambda number: least <= number <= most, f"from {least} to {most:,}")


Count = Annotated[int, whole(1), Ge(1)]
MaybeCount = Annotated[Annotated[int, Ge(1)] | None, whole(1), shown(help_behavior_hint="")]
Rate = Annotated[
    Annotated[float, Gt(0)] | None,
    number_in(float, "RATE", lambda rate: 0 < rate < float("inf"), "above 0"),
    shown(help_behavior_hint=""),
]
Flag = Annotated[bool, shown(help_behavior_hint="")]


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """The model to load, and how to run it."""

    model: Annotated[str, shown(metavar="ID|FOLDER")] = EMBEDDED
    """hub id or local folder of a model or a PEFT adapter; only safetensors are read, and remote code is never run"""
    device: Annotated[str, shown(metavar="NAME")] = "auto"
    """cpu, cuda, cuda:1 or mps; auto uses the first accelerator, else the CPU"""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """number format; auto uses the checkpoint's own, but float32 on a CPU"""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"] = "auto"
    """attention kernel; auto uses the model's default"""

    @property
    def loading(self) -> dict[str, Any]:
        """The keywords for `foveate.load`."""
        names = ("device", "dtype", "attention", "cuda_graphs")
        return {name: getattr(self, name) for name in names if hasattr(self, name)}


@dataclass(frozen=True, kw_only=True)
class ModelOptions(LoadOptions):
    """The model to load, and how to run it."""

    max_new_tokens: Count = 64
    """maximum number of tokens in an answer"""


@dataclass(frozen=True, kw_only=True)
class GraphOptions(ModelOptions):
    """The model to load, and how to run it."""

    cuda_graphs: Flag = False
    """replay the vision tower, prefills and decode steps as CUDA graphs, each from its third run on (experimental)"""


@dataclass(frozen=True, kw_only=True)
class MediaOptions:
    """How images and videos are prepared for the model. Reading videos needs PyAV: pip install av."""

    frames: MaybeCount = None
    """maximum frames per video, evenly spaced (default: 32; 8 for embedded-films; 3 for an image-only model)"""
    fps: Rate = None
    """sample a video at this many frames per second; --frames is then the maximum"""
    fit: Literal["own", "pad"] = "own"
    """own uses the model's processor unchanged; pad first pads an image to a square if that processor would crop it"""

    @property
    def showing(self) -> dict[str, Any]:
        """The keywords for `VLM.prepare`."""
        return {name: getattr(self, name) for name in ("frames", "fps", "fit")}


@dataclass(frozen=True, kw_only=True)
class PromptRequest:
    """The size of a synthetic prompt. The samples of a batch have different images, except for a checkpoint."""

    batch: Count = 1
    """samples per run"""
    text_tokens: MaybeCount = None
    """text tokens in the prompt (default: 40; a checkpoint's chat template may need more)"""
    images: MaybeCount = None
    """images in the prompt (default: 1)"""
    frames: MaybeCount = None
    """video frames in the prompt instead of images, for shapes that take videos"""
    seed: Annotated[int, whole(0, 2**63 - 1)] = 0
    """seed of the weights, the noise, the run order and random dropping"""
