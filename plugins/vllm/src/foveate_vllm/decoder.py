"""Between the layers: runs one model's stages, step after step, and stores what is known of each request."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.logger import init_logger

from foveate.core.patching import Patcher
from foveate.engine.program import Program
from foveate.hosts import Host
from foveate_vllm import guards
from foveate_vllm.host import Attention, ForwardContext, get_forward_context, get_layers_from_vllm_config
from foveate_vllm.layout import Batch, Images, Layout, as_before, built_of, recording
from foveate_vllm.lost import Lost
from foveate_vllm.passing import Passing
from foveate_vllm.runners import model_state
from foveate_vllm.setting import Rate, Setting

__all__ = ["BetweenLayers", "Dropping", "warn_of_untested"]


class Dropping:
    """Drops vision tokens between the layers of one decoder.

    Args:
        stages: The method's stages between layers.
        decoder: vLLM's decoder. It has `layers`, whose attention is `self_attn.attn`, and `norm`.
        image: Tokens of every image before any are dropped; None: as many as enter the decoder.
        untested: Whether untested attention backends are allowed.

    Attributes:
        lost: Tokens that running requests lost at each cut.
    """

    def __init__(self, stages: Program, decoder: Any, image: int | None = None, untested: bool = False) -> None:
        self._stages = stages
        self._cuts = sorted(self._stages.cuts)
        self._decoder = decoder
        self._image = image
        self._names = []
        for layer in decoder.layers:
            attention = guards.refuse_layer(layer, untested)
            attention.attn_backend = recording(attention.attn_backend)
            self._names.append(attention.layer_name)
        self.lost = Lost()
        # The rows and losses of the previous step, and the layouts computed from them.
        self._last: tuple[tuple[Any, ...], list[Layout]] | None = None
        self._images: Images | None = None
        self._passing: Passing | None = None

    def see(self, places: Tensor | None, embeddings: Sequence[Tensor] | None) -> None:
        """Note where the images of the coming step are.

        Args:
            places: (rows,) bool; None if there are none.
            embeddings: (tokens, width) of each image.
        """
        self._images = None
        if places is not None and embeddings:
            self._images = Images.of(places, embeddings, self._image)

    @contextmanager
    def step(self, device: torch.device) -> Iterator[None]:
        """Wrap the decoder's run on the rows of one step."""
        images, self._images = self._images, None
        context = get_forward_context()
        metadata = context.attn_metadata
        if not metadata or (images is None and not self.lost):  # a trial run, or no request has lost tokens
            yield
            return
        assert isinstance(metadata, dict)  # guards refuse microbatches
        stock = metadata[self._names[0]]
        built = built_of(stock)
        batch = Batch.of(built.common)
        lost = self.lost.of(batch, built.common, built.builder.kv_cache_spec.block_size)
        if images is None and not any(lost):
            yield
            return
        context.attn_metadata = dict(metadata)
        context.slot_mapping = dict(context.slot_mapping)
        if images is None:
            self._continue(context, stock, batch, lost, device)
            yield
            return
        context.skip_compiled = True  # the number of rows changes between layers
        self._passing = Passing(
            self._stages,
            batch,
            images,
            lost,
            self._decoder.norm,
            lambda cut, layout: self._put(context, stock, cut, layout),
            device,
        )
        try:
            with Patcher() as patches:
                for index, layer in enumerate(self._decoder.layers):
                    patches.wrap(layer, "forward", partial(self._run, index, layer))
                yield
            self._stages.refuse_doubts()
            self.lost.keep(self._passing.dropped)
        finally:
            self._passing = None
            self._last = None

    def _run(
        self,
        index: int,
        layer: Any,
        original: Callable[..., Any],
        positions: Tensor,
        hidden_states: Tensor,
        residual: Tensor | None,
        **others: Any,
    ) -> Any:
        """Replaces a layer's forward: run it through the step's stages."""
        assert self._passing is not None
        return self._passing.run(index, layer, original, positions, hidden_states, residual, **others)

    def _continue(
        self,
        context: ForwardContext,
        stock: Any,
        batch: Batch,
        lost: tuple[tuple[int, ...], ...],
        device: torch.device,
    ) -> None:
        """Set the metadata of the layers behind each cut in a step that drops no rows."""
        same = batch.starts, lost
        if self._last is None or self._last[0] != same:
            none = (0,) * len(self._cuts)
            layouts = [as_before(batch, own, device) for own in zip(*(own or none for own in lost), strict=True)]
            self._last = same, layouts
        for cut, layout in enumerate(self._last[1]):
            self._put(context, stock, cut, layout)

    def _put(self, context: ForwardContext, stock: Any, cut: int, layout: Layout) -> None:
        """Set the metadata of the layers from one cut to the next."""
        if not layout.drops:
            return
        metadata, slots = layout.metadata(built_of(stock), stock)
        last = self._cuts[cut + 1] if cut + 1 < len(self._cuts) else len(self._names)
        for name in self._names[self._cuts[cut] : last]:
            context.attn_metadata[name] = metadata
            context.slot_mapping[name] = slots


logger = init_logger("vllm.foveate")  # below "vllm", whose level and handlers are those of the server's log


def warn_of_untested(architecture: str, compared: Sequence[str]) -> None:
    """Warn once if the model's answers were never compared with those of transformers."""
    stock = architecture.removeprefix("Foveate")
    if stock not in compared:
        logger.warning_once("foveate was not compared with transformers on %s: check answers that you know.", stock)


class BetweenLayers:
    """Base class placed before a multimodal model class of vLLM.

    Attributes:
        host: What vLLM shows of the model.
        foveate: The server's setting.
        dropping: Drops between layers; None if the method has no stage there.
    """

    host: ClassVar[Host] = guards.TOWER
    foveate: Setting
    dropping: Dropping | None = None

    @classmethod
    def setting_of(cls, config: Any) -> Setting:
        """Build the setting of a server of this architecture.

        Raises:
            FoveateError: If the setting cannot work.
        """
        return Setting.of(config, cls.host)

    @property
    def whole_image(self) -> int | None:
        """Tokens of every image before any are dropped; None if images differ in size."""
        return None

    def drop_between(self, setting: Setting) -> None:
        """Start dropping by the server's setting. Call it when the model's modules exist."""
        stages = setting.stages(Rate())
        self.dropping = None
        if stages.late:
            if self.whole_image is None and stages.early:
                guards.refuse_counting_what_entered(stages.late)
            decoder = self.get_language_model().model  # type: ignore[attr-defined]
            program = Program(stages.method, stages.late)
            self.dropping = Dropping(program, decoder, self.whole_image, setting.untested)

    @classmethod
    def get_model_state_cls(cls) -> type:
        """Called by runner V2."""
        return model_state(getattr(cls, "is_hybrid", False))

    def log_start(self, vllm_config: VllmConfig) -> None:
        """Log once, in the first process, the method, the rate, the runner and the attention backends."""
        rate = Rate.of(vllm_config.model_config.multimodal_config.mm_processor_kwargs or {})
        layers = get_layers_from_vllm_config(vllm_config, Attention).values()
        logger.info_once(
            "foveate is on: method %s, rate %s, runner %s, attention backend %s",
            self.foveate.spelled,
            rate if rate.said else self.foveate.rate,
            "V2" if vllm_config.use_v2_model_runner else "V1",
            ", ".join(sorted({layer.attn_backend.get_name() for layer in layers})),
            scope="global",
        )

    def embed_input_ids(
        self, input_ids: Tensor, multimodal_embeddings: Sequence[Tensor] | None = None, *, is_multimodal: Any = None
    ) -> Tensor:
        """Embed a step's tokens, and note which belong to images. The runner knows that from the requests' media."""
        if self.dropping is not None:
            self.dropping.see(is_multimodal, multimodal_embeddings)
        embedded: Tensor = super().embed_input_ids(  # type: ignore[misc]
            input_ids, multimodal_embeddings, is_multimodal=is_multimodal
        )
        return embedded

    def forward(self, input_ids: Tensor | None, positions: Tensor, *others: Any, **named: Any) -> Any:
        """Run the decoder with dropping. Returns all rows; dropped ones are not read."""
        if self.dropping is None:
            return super().forward(input_ids, positions, *others, **named)  # type: ignore[misc]
        with self.dropping.step(positions.device):
            return super().forward(input_ids, positions, *others, **named)  # type: ignore[misc]
