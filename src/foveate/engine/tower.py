"""Reducing tokens in or behind the vision tower: a decision that travels with the features to layer 0."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from foveate.core.grid import Grid
from foveate.core.merge import Merge
from foveate.engine.prompt import Item
from foveate.errors import UnsupportedError
from foveate.families.base import Family
from foveate.methods.base import Cut, Method, TowerView

__all__ = ["encode", "items_of"]


class _Reducer:
    """Lets a method see what a family shows of its tower."""

    def __init__(self, method: Method, reindex: bool) -> None:
        self._method = method
        self._reindex = reindex
        self.early = method.merges_early

    def merge_early(self, rows: Tensor, grid: tuple[int, int]) -> Merge | None:
        return self._method.merge_early(rows, grid)

    def reduce(self, view: TowerView) -> Cut | None:
        view.reindex, view.entered = self._reindex, view.entered or len(view)
        return self._method.reduce(view)

    def coarsen(self, grids: Sequence[Grid], entered: int, reserved: int) -> tuple[Grid, ...]:
        return self._method.coarsen(grids, entered, reserved)

    def replace(self, rows: Tensor, merge: Merge) -> Cut:
        merge = merge.to(rows.device)
        return Cut(merge.origin, (len(rows),), rows, merge.assign)


def encode(
    family: Family, method: Method, modality: str, run: Callable[..., Any], given: dict[str, Any], reindex: bool
) -> Any:
    """Run a `get_*_features` call, and tag every image's features with where its tokens look and what was cut.

    `generate` encodes long before the decoder runs, and repeats features for beams: a tag on the tensor itself goes
    along.
    """
    cuts: Sequence[Cut | None] | None = None
    if method.reduces_tower:
        stages = {"pixels": family.encode_smaller, "tower": family.encode, "projector": family.encode_projected}
        try:
            output, cuts = stages[method.stage](run, modality, given, _Reducer(method, reindex))
        except (NotImplementedError, RuntimeError) as error:
            if method.stage != "pixels" or not any(weight.is_meta for weight in family.core.parameters()):
                raise
            raise UnsupportedError(
                "The vision tower's weights are offloaded, and transformers cannot fit its position embeddings to a "
                "smaller picture then. Keep the tower in memory in the device_map, or use AveragePool."
            ) from error
    else:
        output = run()
    if not hasattr(output, "pooler_output"):  # a tuple, asked for by the user; the model itself never asks
        return output
    output._foveate_pieces = family.pieces(modality, given)
    features = _features(output)
    light = {name: value for name, value in given.items() if not name.startswith("pixel_values")}
    lengths = [len(one) for one in features]
    if cuts is not None:
        output._foveate_cuts = cuts
    places = [_Places(family, modality, light, lengths, index) for index in range(len(features))]
    output._foveate_places = places  # for features that are one tensor, a video's
    for index, one in enumerate(features):
        one._foveate_boxes = places[index]  # type: ignore[attr-defined]
        if cuts is not None:
            one._foveate_cut = cuts[index]  # type: ignore[attr-defined]
    return output


class _Places:
    """Where an image's tokens look, asked for late.

    A copy of the features carries this very object and not a copy of the model: assisted decoding copies what
    `generate` has encoded.
    """

    def __init__(self, family: Family, modality: str, given: dict[str, Any], lengths: list[int], index: int) -> None:
        self._known = family, modality, given, lengths, index

    def __call__(self) -> Tensor | None:
        family, modality, given, lengths, index = self._known
        return family.boxes(modality, given, lengths)[index]

    def __deepcopy__(self, memo: Any) -> "_Places":
        return self


def items_of(output: Any, family: Family, method: Method, modality: str) -> list[Item]:
    """The images and videos whose features these are, with their tags.

    Raises:
        UnsupportedError: If the method reduces in the tower and these features did not come through it here.
    """
    features = _features(output)
    whole = getattr(output, "_foveate_cuts", None)
    items = []
    places = getattr(output, "_foveate_places", [lambda: None] * len(features))
    for index, one in enumerate(features):
        boxes = getattr(one, "_foveate_boxes", places[index] if index < len(places) else lambda: None)
        fixed = family.always_kept(family.model.config, len(one))
        item = Item(len(one), boxes, fixed=fixed, video=modality == "video")
        if method.reduces_tower:
            if hasattr(one, "_foveate_cut"):
                item.cut = one._foveate_cut
            elif whole is not None and len(whole) == len(features):
                item.cut = whole[index]
            else:
                raise UnsupportedError(
                    f"{type(method).__name__} reduces tokens in the vision tower, but these image features were made "
                    "outside the context, cut by chunked prefill, or are a video's repeated for beams. Encode inside "
                    "the context, leave prefill_chunk_size unset, and give videos to one beam."
                )
        items.append(item)
    return items


def _features(output: Any) -> list[Tensor]:
    """The features of each image or video in what a `get_*_features` call answered."""
    parts = list(getattr(output, "pooler_output", output))
    pieces = getattr(output, "_foveate_pieces", 1)
    return parts if pieces == 1 else [torch.cat(parts[at : at + pieces]) for at in range(0, len(parts), pieces)]
