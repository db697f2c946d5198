"""InternVL3: up to a dozen square tiles a picture and a view of the whole, 2 x 2 patches a token, 1-D RoPE."""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from foveate.families.tiles import Tiled, run_lengths
from foveate.families.vision import IMAGENET, blocks


class InternVL(Tiled):
    """Where things are inside `InternVLForConditionalGeneration`.

    A run of placeholders is an image with its tiles, or a frame of a video.
    """

    model_type: ClassVar[str] = "internvl"
    title: ClassVar[str] = "InternVL3"
    videos: ClassVar[bool] = True
    has_cls: ClassVar[bool] = True
    tower_blocks: ClassVar[str] = "encoder.layer"
    tower_attention: ClassVar[str] = "attention"
    pixel_mean, pixel_std = IMAGENET

    @classmethod
    def side(cls, config: Any) -> int:
        vision = config.vision_config
        patches = vision.image_size[0] // vision.patch_size[0]
        return int(patches // cls.block(config))

    @classmethod
    def block(cls, config: Any) -> int:
        return int(1 / config.downsample_ratio)

    @classmethod
    def widths(cls, config: Any) -> tuple[int, ...]:
        width = config.text_config.hidden_size
        patches = cls.block(config) ** 2
        return config.vision_config.hidden_size * patches, width, width

    def image_lengths(self, mask: Tensor, ids: Tensor | None, pieces: Sequence[int] = ()) -> list[list[int]]:
        return run_lengths(mask)

    def project(self, pixels: Tensor) -> tuple[Any, Tensor]:
        """The tower interpolates its position embeddings."""
        config, core = self.model.config, self.core
        chosen = config.vision_feature_layer
        output = core.vision_tower(pixel_values=pixels.to(core.dtype), output_hidden_states=chosen != -1)
        if chosen == -1:
            states = output.last_hidden_state
        else:
            states = output.hidden_states[chosen]
        tall, wide = config.vision_config.patch_size
        rows, columns = pixels.shape[-2] // tall, pixels.shape[-1] // wide
        patches = states[:, 1:].reshape(len(pixels), rows, columns, -1)  # without the CLS
        tokens = blocks(patches, self.block(config))
        return output, core.multi_modal_projector(tokens)


FAMILIES = (InternVL,)
