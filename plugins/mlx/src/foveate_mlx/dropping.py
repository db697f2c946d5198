"""Encode: the images of a prompt as the stages see them, and the columns of the prompt that are left."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import mlx.core as mx
import numpy as np
import torch

from foveate import naming
from foveate.contract.method import Method
from foveate.errors import UnsupportedError
from foveate.hosts import Host, PictureLayout, Reducer, images_of
from foveate_mlx import host

MLX = Host("mlx-vlm", "Use it on transformers.", prompts=True)
PIXELS = ("pixel_values_videos", "cached_image_features")
SIZES = ("image_grid_thw", "video_grid_thw", "image_sizes")
"""What processors of mlx-vlm say of images."""


class Dropper:
    """A method on a model.

    Args:
        model: The model.
        method: The method, or its name.
        tokens, retention: The budget of an image.
        trace: The trace to write to.

    Attributes:
        model, trace: See `Args`.
        decoder: The model's decoder.
        ids: Ids of the tokens that stand for pixels, by medium.

    Raises:
        FoveateError: If the method cannot work on this model.
    """

    def __init__(self, model: Any, method: Method | str, tokens: Any, retention: Any, trace: Any) -> None:
        self.model, self.decoder, self.trace, config = model, model.language_model, trace, model.config
        self.ids: dict[str, list[Any]] = {}
        for medium in ("image", "video"):
            names = (f"{medium}_token_index", f"{medium}_token_id")
            self.ids[medium] = [getattr(config, name) for name in names if isinstance(getattr(config, name, None), int)]
        method = naming.method_of(method, tokens, retention)
        members = naming.members_of(method)
        layers = self.decoder.layers if hasattr(self.decoder, "layers") else self.decoder.model.layers
        self._stages = Reducer(method, len(layers), config, MLX)
        self._fixed = any(getattr(member, "tokens", None) is not None for member in members)
        if self._stages.late:
            raise UnsupportedError(f"{method.name} drops behind decoder layer 0. Use divprune; random takes layers=0.")
        keeps = any(getattr(member, "positions", "") == "keep" for member in members)
        if keeps and not hasattr(self.decoder, "get_rope_index"):
            raise UnsupportedError(f"{method.name} keeps positions, which mlx-vlm cannot here. Set positions=reindex.")

    def is_vision(self, ids: host.Array) -> host.Array:
        """Mark the ids that stand for pixels."""
        return np.isin(ids, [*self.ids["image"], *self.ids["video"]])

    def shorten(self, embed: Any, input_ids: Any = None, pixel_values: Any = None, *rest: Any, **inputs: Any) -> Any:
        """Call the model's `get_input_embeddings`, and return what it makes at the columns that are left.

        Raises:
            UnsupportedError: If it cannot be shortened.
        """
        hidden = getattr(self.decoder, "_position_ids", None)
        features = embed(input_ids, pixel_values, *rest, **inputs)
        ids = np.zeros((0, 0)) if input_ids is None else np.array(input_ids)
        vision = self.is_vision(ids)
        if not vision.any():
            if any(value is not None for value in (pixel_values, *map(inputs.get, PIXELS))):
                raise UnsupportedError("This prompt has pictures, but no token of it is known to stand for one.")
            return features
        host.refuse_hidden(self.decoder, hidden, features, inputs)
        if features.inputs_embeds.shape[1] != ids.shape[1]:
            raise UnsupportedError("This model's pictures have another number of rows than of tokens in the prompt.")
        present = [medium for medium, own in self.ids.items() if np.isin(ids, own).any()]
        if len(present) > 1 and any(stage.unit == "sample" for stage in self._stages.early):
            raise UnsupportedError(f"{self._stages.method.name} ranks pictures and videos together. Pass one kind.")
        stays = ~vision
        for medium in present:
            self._reduce(medium, ids, features, inputs, stays)
        columns = [np.flatnonzero(of_sample) for of_sample in stays]
        if len(set(map(len, columns))) > 1:
            raise UnsupportedError("The prompts of this batch keep different numbers of tokens. Pass them one by one.")
        return host.shortened(features, vision, np.stack(columns))

    def _reduce(self, medium: str, ids: host.Array, features: Any, inputs: Any, stays: host.Array) -> None:
        """Mark in `stays`, (samples, columns), the tokens that are left of a medium. Merged rows go into `features`."""
        images = self._images(medium, ids, inputs)
        pictures = self._pictures(medium, list(map(len, images)), inputs)
        is_word, embeds = ~self.is_vision(ids), features.inputs_embeds
        for sample in np.unique([image[0, 0] for image in images]).tolist():
            own = [index for index, image in enumerate(images) if image[0, 0] == sample]
            columns, layouts = [images[index][:, 1] for index in own], [pictures[index] for index in own]
            rows = torch.from_numpy(np.array(embeds[sample].astype(mx.float32)))  # NumPy knows no bfloat16
            ends = [*(later[0] for later in columns[1:]), len(rows)]
            behind = [np.arange(image[-1] + 1, end) for image, end in zip(columns, ends, strict=True)]
            text = [rows[places[is_word[sample, places]]] for places in behind]
            entered = self._stages.reduce([rows[image] for image in columns], layouts, medium == "video", text)
            for image, left in zip(columns, entered, strict=True):
                source = left.source.numpy()
                if (source < 0).any():
                    raise UnsupportedError(f"{self._stages.method.name} makes rows that stand for no token.")
                stays[sample, image[source]] = True
                if not torch.equal(left.rows, rows[image[source]]):  # merged
                    embeds[sample, mx.array(image[source])] = mx.array(left.rows.numpy()).astype(embeds.dtype)
            self.trace.add(entered)

    def _images(self, medium: str, ids: host.Array, inputs: Any) -> list[host.Array]:
        """Return sample and column of each token of each image, (tokens, 2), in the order of the prompts.

        A picture or video with text between its rows or frames is as many tokens as its grid or size says. Without
        either, it is a run of tokens.
        """
        marks, lengths = np.isin(ids, self.ids[medium]), None
        config, vision, grids = self.model.config, self.model.config.vision_config, inputs.get(f"{medium}_grid_thw")
        side = getattr(vision, "spatial_merge_size", 1)
        if config.model_type in ("mistral3", "pixtral"):  # text parts the rows of a picture
            grids, side = inputs.get("image_sizes"), vision.patch_size * getattr(config, "spatial_merge_size", 1)
        if grids is not None:
            tokens = np.array(grids).prod(axis=1) // side**2
            lengths = tokens if tokens.sum() == marks.sum() else None
        images = images_of(marks, lengths)
        if (
            lengths is None
            and self._fixed
            and self._stages.family.tiled
            and len(images) > len({run[0, 0] for run in images})
        ):
            raise UnsupportedError(f"{len(images)} runs of tokens may be tiles. Set retention=, not tokens=.")
        return images

    def _pictures(self, medium: str, lengths: Sequence[int], inputs: Any) -> list[PictureLayout]:
        """Return the grids of images; unknown where the family does not know them, or knows other counts."""
        sizes = {name: torch.from_numpy(np.array(inputs[name])) for name in SIZES if inputs.get(name) is not None}
        with suppress(AttributeError, TypeError):  # mlx-vlm's configs lack some names that transformers' have
            pictures = self._stages.family.pictures(self.model.config, medium, sizes, lengths)
            if [len(picture.in_grids) for picture in pictures] == lengths:
                return pictures
        return [PictureLayout()] * len(lengths)
