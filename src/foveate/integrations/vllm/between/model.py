"""Between the layers: what a model class of vLLM adds so that stages work between its decoder's layers."""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor
from vllm.config import VllmConfig, get_layers_from_vllm_config
from vllm.logger import init_logger
from vllm.model_executor.layers.attention import Attention

from foveate.engine.program import Program
from foveate.families.base import Family
from foveate.integrations.vllm.between import guards
from foveate.integrations.vllm.between.dropping import Dropping
from foveate.integrations.vllm.setting import Rate, Setting

__all__ = ["BetweenLayers"]

logger = init_logger("vllm.foveate")  # below "vllm", whose level and handlers are those of the server's log


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
            self.dropping = Dropping(Program(stages.method, stages.late), decoder, self.whole_image)

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
