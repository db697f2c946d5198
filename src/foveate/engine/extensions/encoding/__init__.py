"""Encode: stages that act before the decoder, where the model encodes its pictures.

reducer     lets a method's stages reduce each image's tokens in the tower, or behind it
entering    drops from the table of rows what the tower has dropped
"""

from typing import Any

from torch import Tensor

from foveate._transformers import FeatureCall
from foveate.core.cut import Cut
from foveate.engine.extension import Context, Extension
from foveate.engine.extensions.encoding.entering import take_tower_cuts
from foveate.engine.extensions.encoding.reducer import encode_media
from foveate.engine.forward import Forward
from foveate.engine.media_tokens import PromptLengths


class Encoding(Extension):
    """Reduces images before the decoder."""

    def attach(self, context: Context) -> None:
        """See `Extension`."""
        self._family, self._program = context.family, context.program

    def encode(self, call: FeatureCall, prompt: PromptLengths) -> tuple[Any, list[Cut | None], list[Cut]]:
        """See `Extension`."""
        return encode_media(self._family, self._program, call, prompt)

    def enter(self, forward: Forward, hidden: Tensor) -> Tensor:
        """See `Extension`."""
        return take_tower_cuts(forward, hidden)


EXTENSION = Encoding
