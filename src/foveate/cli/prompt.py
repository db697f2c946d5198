"""A question about pictures and clips as a model wants it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from PIL import Image
from torch import Tensor

from foveate._greedy import generate
from foveate.cli.loading import Loaded
from foveate.errors import FoveateError, InputError, SettingError, UnsupportedError
from foveate.eval.answering import placeholders
from foveate.eval.prompts import Conversation, encoder
from foveate.video import Clip

__all__ = ["fitting", "prepare", "reads_videos", "vision_sizes"]


def reads_videos(processor: Any) -> bool:
    """Whether a processor takes videos as such; else their frames may go in as pictures."""
    return getattr(processor, "video_processor", None) is not None


def prepare(loaded: Loaded, media: Sequence[Image.Image | Clip], prompt: str) -> Any:
    """The model's inputs for one sample: pictures and clips first, then the text, on the model's device in its dtype.

    Without a chat template the images' placeholders go before the text as it is. Where the model reads no videos, a
    clip's frames go in as pictures.

    Raises:
        InputError: If the processor refuses the pictures, they grow too large, or the model lacks tokens of it.
    """
    videos = reads_videos(loaded.processor)
    parts: list[tuple[str, Any]] = []
    for one in media:
        if isinstance(one, Clip):
            parts += [("video", one)] if videos else [("image", frame) for frame in one.images()]
        else:
            parts.append(("image", one))
    conversation = Conversation((("user", (*parts, ("text", prompt))),))
    try:
        inputs = encoder("own")(loaded, conversation)
    except (ValueError, ZeroDivisionError, MemoryError) as error:
        raise InputError(_refusal(loaded.name, media, error)) from error
    known = loaded.model.get_input_embeddings().num_embeddings
    most = max({*inputs["input_ids"].flatten().tolist()} - placeholders(loaded.model.config), default=0)
    if most >= known:
        raise InputError(_misfit(loaded, f"token {most} is not among its {known:,}."))
    return inputs.to(loaded.model.device, dtype=loaded.model.dtype)


@contextmanager
def fitting(loaded: Loaded, inputs: Any) -> Iterator[None]:
    """Where something fails and the untouched model refuses these inputs too, say that its processor is another's.

    Raises:
        InputError: If that is so; else what was raised within.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, FoveateError) and not isinstance(error, SettingError):
            raise
        try:
            generate(loaded.model, inputs, 1)
        except (ValueError, TypeError, LookupError, RuntimeError) as refusal:
            if isinstance(refusal, RuntimeError) and type(refusal) is not RuntimeError:
                raise error from None  # out of memory, or a kernel that cannot be compiled
            raise InputError(_misfit(loaded, str(refusal).partition("\n")[0])) from error
        raise


def _misfit(loaded: Loaded, why: str) -> str:
    kinds = type(loaded.processor).__name__, type(loaded.model).__name__
    return (
        f"The processor of {loaded.name} ({kinds[0]}) does not fit its model ({kinds[1]}): {why} "
        "Take the processor's files and the weights from the same place."
    )


def _refusal(name: str, media: Sequence[Image.Image | Clip], error: Exception) -> str:
    """Why a processor takes no such media; a batch of videos, as LLaVA-OneVision's, has so many frames of each."""
    sizes = ", ".join(
        f"{len(one)} frame{'s' * (len(one) > 1)} of {one.frames.shape[2]} x {one.frames.shape[1]}"
        if isinstance(one, Clip)
        else f"{one.width} x {one.height}"
        for one in media
    )
    why = str(error).partition("\n")[0] or "out of memory"  # a strip one pixel high grows to millions of columns
    lengths = {len(one) for one in media if isinstance(one, Clip)}
    hint = ""
    if len(lengths) > 1:
        hint = f" Take as many frames of each video: --frames {min(lengths)}."
    elif lengths == {1}:
        hint = " Of one frame, give the model a picture."
    return f"The processor of {name} refuses {sizes} pixels: {why}{'' if why.endswith('.') else '.'}{hint}"


def vision_sizes(config: Any, input_ids: Tensor, images: int) -> tuple[int, ...]:
    """Vision tokens of each image or video of a prompt: (1, tokens) ids -> `images` counts, or one for all together.

    Those of a kind are told apart by what stands between them; where a template puts nothing there, or something
    between the frames of a video, only their sum is known.

    Raises:
        UnsupportedError: If there is none, so that nothing could be dropped.
    """
    vision = placeholders(config)
    sizes: list[int] = []
    before = None
    for token in input_ids[0].tolist():
        if token in vision:
            sizes = [*sizes[:-1], sizes[-1] + 1] if token == before else [*sizes, 1]
        before = token
    if not sizes:
        raise UnsupportedError("The processor made a prompt without any vision token; is it the model's own?")
    return tuple(sizes) if len(sizes) == images else (sum(sizes),)
