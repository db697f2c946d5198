"""`Loaded`: a model with its processor. `Card`: its description without weights. `quiet`: mute transformers."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from logging import ERROR
from typing import Any, NoReturn

import huggingface_hub.utils.logging
import torch
import transformers
from transformers import GenerationConfig, ProcessorMixin

from foveate._transformers import PreTrainedConfig, PreTrainedModel
from foveate.core.fields import check_call
from foveate.core.tapes import refuse_without_graphs
from foveate.core.turns import Turn
from foveate.errors import SessionError
from foveate.families.base import Family
from foveate.plain.upstream import Shared
from foveate.registry import family_kind, inside

_locks: "weakref.WeakKeyDictionary[torch.nn.Module, Turn]" = weakref.WeakKeyDictionary()


@dataclass(frozen=True, slots=True, eq=False)
class Card:
    """A model's description without its weights. Answers hold this, so the model can be freed.

    Attributes:
        name: The model's name in records.
        config: Its config.
        generation_config: Its default generation settings.
        device: Its device.
        dtype: The dtype of its weights.
        cuda_graphs: Whether the vision tower, prefill and decode steps run as CUDA graphs.
    """

    name: str
    config: PreTrainedConfig
    generation_config: GenerationConfig
    device: torch.device
    dtype: torch.dtype
    cuda_graphs: bool = False

    @property
    def family(self) -> type[Family]:
        """The family that supports the model."""
        return family_kind(self.config.model_type)

    @property
    def depth(self) -> int:
        """Number of decoder layers."""
        return int(self.config.get_text_config().num_hidden_layers)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that are needed to repeat a run."""
        values: dict[str, Any] = {
            "name": self.name,
            "model_type": self.config.model_type,
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "attention": self.config.get_text_config()._attn_implementation,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
        if self.cuda_graphs:
            values["cuda_graphs"] = True
        return values


class Loaded:
    """A model and its processor.

    Raises:
        SettingError: If `cuda_graphs` is set and the device has no CUDA graphs.
        UnsupportedError: If no family supports the model.

    Attributes:
        model: A vision-language model of transformers, in evaluation mode.
        processor: The model's processor.
        name: The model's name in records.
        cuda_graphs: Whether the vision tower, prefill and decode steps run as CUDA graphs; see `foveate.drop`.
        warned: Whether a note said that the embedded model knows only drawings.
        system: The `Look` of the text of `system=` that was prefilled last; see `foveate.ask.look.look_at_system`.
        system_checked: That text with the chat template, once `foveate.ask.prompt.refuse_behind` has let it pass.
        lock: Held while the model or its tokenizer runs: neither is thread-safe. All objects of one model share it.
            Threads get it in the order in which they ask.
    """

    @check_call("A model")
    def __init__(
        self, model: PreTrainedModel, processor: ProcessorMixin, name: str = "", cuda_graphs: bool = False
    ) -> None:
        family_kind(getattr(getattr(model, "config", None), "model_type", None), type(model).__name__)
        if cuda_graphs:
            refuse_without_graphs(model.device)
        self.model = model
        self.processor = processor
        self.name = name or type(model).__name__
        self.cuda_graphs = cuda_graphs
        self.warned = False
        self.system: Any = None
        self.system_checked: Any = None
        self.lock = _locks.setdefault(inside(model), Turn())

    def __getstate__(self) -> NoReturn:
        raise SessionError(f"{self.name} cannot be pickled. Load it in the other process, and send answers instead.")

    @property
    def tokenizer(self) -> transformers.PreTrainedTokenizerBase:
        """The processor's tokenizer."""
        return self.processor.tokenizer

    @property
    def card(self) -> Card:
        """The model's description without its weights."""
        model = self.model
        return Card(self.name, model.config, model.generation_config, model.device, model.dtype, self.cuda_graphs)

    @property
    def crops(self) -> bool:
        """Whether the processor crops an image to its centre square."""
        kind = family_kind(self.model.config.model_type)
        crops = getattr(getattr(self.processor, "image_processor", None), "do_center_crop", False)
        return bool(kind.fit == "crop" and crops)

    @property
    def pads(self) -> bool:
        """Whether the processor pads an image to a square before it crops."""
        return bool(getattr(getattr(self.processor, "image_processor", None), "do_pad", False))

    def misfit(self, why: str) -> str:
        """Return the error message for a processor that belongs to another model."""
        kinds = type(self.processor).__name__, type(self.model).__name__
        return (
            f"The processor of {self.name} ({kinds[0]}) does not fit its model ({kinds[1]}): {why} "
            "Load the processor and the weights from the same checkpoint."
        )


def _show_bars(shown: bool) -> None:
    if shown:
        transformers.logging.enable_progress_bar()
    else:
        transformers.logging.disable_progress_bar()


TRANSFORMERS, HUB = (
    Shared(log.get_verbosity, log.set_verbosity, ERROR) for log in (transformers.logging, huggingface_hub.utils.logging)
)
BARS = Shared(transformers.logging.is_progress_bar_enabled, _show_bars, False)


@contextmanager
def quiet(*, bars: bool = False) -> Iterator[None]:
    """Mute warnings and notices of transformers and huggingface_hub.

    Args:
        bars: Keep transformers' progress bars, as for a download.
    """
    with TRANSFORMERS, HUB, nullcontext() if bars else BARS:
        yield
