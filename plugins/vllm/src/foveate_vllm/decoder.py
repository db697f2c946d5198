"""Between the layers: one model's stages at work, step after step, and what is remembered of each request."""

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
from foveate.families.base import Family
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
        stages: Of the method, those between layers.
        decoder: vLLM's decoder: has `layers`, whose attention is `self_attn.attn`, and `norm`.
        image: Tokens of every image before any of them leave; None: as many as enter the decoder.
        untested: Whether attention backends that were not tried are allowed.

    Attributes:
        lost: Tokens that running requests have lost behind each cut.
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
        # Rows and losses of the step before, and the layouts that follow from them.
        self._last: tuple[tuple[Any, ...], list[Layout]] | None = None
        self._images: Images | None = None
        self._passing: Passing | None = None

    def see(self, places: Tensor | None, embeddings: Sequence[Tensor] | None) -> None:
        """Hear where the images of the coming step are.

        Args:
            places: (rows,) bool; None where there are none.
            embeddings: (tokens, width) of each image.
        """
        self._images = None
        if places is not None and embeddings:
            self._images = Images.of(places, embeddings, self._image)

    @contextmanager
    def step(self, device: torch.device) -> Iterator[None]:
        """While the decoder runs on the rows of one step."""
        images, self._images = self._images, None
        context = get_forward_context()
        metadata = context.attn_metadata
        if not metadata or (images is None and not self.lost):  # a trial run, or nobody has lost anything
            yield
            return
        assert isinstance(metadata, dict)  # microbatches are refused by guards
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
        context.skip_compiled = True  # rows leave on the way
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
        """In the place of a layer's forward: through the step's stages."""
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
        """Give the layers behind each cut their metadata in a step in which no row leaves."""
        same = batch.starts, lost
        if self._last is None or self._last[0] != same:
            none = (0,) * len(self._cuts)
            layouts = [as_before(batch, own, device) for own in zip(*(own or none for own in lost), strict=True)]
            self._last = same, layouts
        for cut, layout in enumerate(self._last[1]):
            self._put(context, stock, cut, layout)

    def _put(self, context: ForwardContext, stock: Any, cut: int, layout: Layout) -> None:
        """Let the layers from a cut to the next have the metadata of their rows."""
        if not layout.drops:
            return
        metadata, slots = layout.metadata(built_of(stock), stock)
        last = self._cuts[cut + 1] if cut + 1 < len(self._cuts) else len(self._names)
        for name in self._names[self._cuts[cut] : last]:
            context.attn_metadata[name] = metadata
            context.slot_mapping[name] = slots


logger = init_logger("vllm.foveate")  # below "vllm", whose level and handlers are those of the server's log


def warn_of_untested(architecture: str, compared: Sequence[str]) -> None:
    """Say once that nobody has compared a model's answers with those on transformers."""
    stock = architecture.removeprefix("Foveate")
    if stock not in compared:
        logger.warning_once("foveate was not compared with transformers on %s: ask what you know the answer to.", stock)


class BetweenLayers:
    """Stands in front of a multimodal model class of vLLM.

    Attributes:
        family: Of the model on transformers.
        foveate: The server's setting.
        dropping: None where the method has no stage there.
    """

    family: ClassVar[type[Family]]
    foveate: Setting
    dropping: Dropping | None = None

    @classmethod
    def setting_of(cls, config: Any) -> Setting:
        """The setting of a server of this architecture.

        Raises:
            FoveateError: If it cannot work.
        """
        return Setting.of(config, cls.family)

    @property
    def whole_image(self) -> int | None:
        """Tokens of every image before any of them leave; None where images differ."""
        return None

    def drop_between(self, setting: Setting) -> None:
        """Begin with the setting of the server; to be called when the model's modules are there."""
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
        """Asked by runner V2."""
        return model_state(getattr(cls, "is_hybrid", False))

    def log_start(self, vllm_config: VllmConfig) -> None:
        """Say once, in the first process, what drops at which rate, and what runs it."""
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
        """Embed a step's tokens, and note which are an image's. The runner knows it from the media of the requests."""
        if self.dropping is not None:
            self.dropping.see(is_multimodal, multimodal_embeddings)
        embedded: Tensor = super().embed_input_ids(  # type: ignore[misc]
            input_ids, multimodal_embeddings, is_multimodal=is_multimodal
        )
        return embedded

    def forward(self, input_ids: Tensor | None, positions: Tensor, *others: Any, **named: Any) -> Any:
        """Run the decoder, dropping as it goes. Returns all rows; of a dropped one nothing is read."""
        if self.dropping is None:
            return super().forward(input_ids, positions, *others, **named)  # type: ignore[misc]
        with self.dropping.step(positions.device):
            return super().forward(input_ids, positions, *others, **named)  # type: ignore[misc]
