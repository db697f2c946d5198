"""Reducing tokens in or behind the vision tower: a decision that travels with the features to layer 0."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from foveate.core.asking import Asking, answers
from foveate.core.cut import Cut
from foveate.core.grid import Grid
from foveate.core.tower import TowerView
from foveate.engine.forms import EngineCut
from foveate.engine.items import Item
from foveate.engine.program import Program
from foveate.errors import UnsupportedError
from foveate.families.base import Family

__all__ = ["encode", "items_of"]


class _Reducer:
    """Lets stages see what a family shows of its tower."""

    def __init__(self, program: Program, prompt: Sequence[Sequence[int]] | None) -> None:
        self._program = program
        self._prompt = prompt
        self.early = program.merges_early

    def lengths(self, total: int) -> list[int]:
        told = [length for sample in self._prompt or () for length in sample]
        return told if sum(told) == total else [total]

    def merge_early(self, images: Sequence[Tensor], grid: Grid) -> list[Cut | None]:
        return answers(self._program.merge_early(image, grid) for image in images)

    def reduce(self, views: Iterable[TowerView]) -> list[Cut | None]:
        return answers(map(self._reduce, views))

    def _reduce(self, view: TowerView) -> Asking[Cut | None]:
        view.entered = view.entered or len(view)
        return self._program.reduce(view)

    def coarsen(self, grids: Sequence[Grid], entered: int, reserved: int) -> tuple[Grid, ...]:
        return self._program.coarsen(grids, entered, reserved)


def encode(
    family: Family,
    program: Program,
    modality: str,
    run: Callable[..., Any],
    given: dict[str, Any],
    prompt: Sequence[Sequence[int]] | None = None,
) -> Any:
    """Run a `get_*_features` call, and tag every image's features with where its tokens look and what was cut.

    `generate` encodes long before the decoder runs, and repeats features for beams: a tag on the tensor itself goes
    along. Features that come in other pieces than images are tagged together, sample by sample.

    Args:
        family: Knows the model.
        program: What drops.
        modality: "image" or "video".
        run: Calls the original, with the arguments given here in the place of its own.
        given: The call's arguments by name.
        prompt: Vision tokens of each image of each sample, for a `tiled` family; None where no prompt was seen.
    """
    cuts: Sequence[EngineCut | None] | None = None
    reducer = _Reducer(program, prompt)
    if program.encodes is not None:
        stages = {"pixels": family.encode_smaller, "tower": family.encode, "projector": family.encode_projected}
        try:
            output, made = stages[program.encodes](run, modality, given, reducer)
        except (NotImplementedError, RuntimeError) as error:
            if program.encodes != "pixels" or not any(weight.is_meta for weight in family.core.parameters()):
                raise
            raise UnsupportedError(
                "The vision tower's weights are offloaded, and transformers cannot fit its position embeddings to a "
                "smaller picture then. Keep the tower in memory in the device_map, or use AveragePool."
            ) from error
        cuts = [None if cut is None else _placed(cut) for cut in made]
    else:
        output = run()
    if not hasattr(output, "pooler_output"):  # a tuple, asked for by the user; the model itself never asks
        return output
    output._foveate_pieces = family.pieces(modality, given)
    features, light = _features(output), family.remembered(given)
    lengths = [len(one) for one in features]
    if family.tiled:
        lengths = reducer.lengths(sum(piece.shape[:-1].numel() for piece in features))
    places = [_Places(family, modality, light, lengths, index) for index in range(len(lengths))]
    if family.tiled:
        every = cuts or [None] * len(lengths)
        video = modality == "video"
        items = [Item(*known, video=video) for known in zip(lengths, places, every, strict=True)]
        counts = [len(sample) for sample in prompt or ()]
        output._foveate_samples = _parts(items, counts if sum(counts) == len(items) else [len(items)])
        return output
    if cuts is not None:
        output._foveate_cuts = cuts
    output._foveate_places, output._foveate_known = places, features  # for features that are one tensor
    for index, one in enumerate(features):
        one._foveate_boxes = places[index]  # type: ignore[attr-defined]
        if cuts is not None:
            one._foveate_cut = cuts[index]  # type: ignore[attr-defined]
    return output


def _placed(cut: Cut) -> EngineCut:
    """A cut whose rows are in the features now: their count is left of them, since features and trace hold it."""
    if cut.stays_whole:
        device = next(iter(cut.notes.values())).device
        return EngineCut(torch.arange(cut.arriving, device=device), (cut.arriving,), notes=cut.notes)
    rows = None if cut.rows is None else cut.rows.new_empty(len(cut.rows), 0)
    return EngineCut(cut.source, (len(cut.source),), rows, cut.parent, cut.notes)


def _parts(items: Sequence[Item], counts: Sequence[int]) -> list[list[Item]]:
    """So many of them at a time."""
    left = iter(items)
    return [list(itertools.islice(left, count)) for count in counts]


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


def items_of(
    output: Any, family: Family, program: Program, modality: str, prompt: Sequence[Sequence[int]] | None = None
) -> list[Item]:
    """The images and videos whose features these are, with their tags.

    Args:
        output: What a `get_*_features` call answered, maybe repeated for beams since.
        family: Knows the model.
        program: What drops.
        modality: "image" or "video".
        prompt: Vision tokens of each image of each sample, for a `tiled` family.

    Raises:
        UnsupportedError: If the method reduces in the tower and these features did not come through it here.
    """
    if prompt is not None:
        return _items_of_samples(output, program, prompt)
    features = _features(output)
    whole = getattr(output, "_foveate_cuts", None)
    items = []
    places = getattr(output, "_foveate_places", [])
    for one, index in zip(features, _which(features, getattr(output, "_foveate_known", [])), strict=True):
        boxes = getattr(one, "_foveate_boxes", _nowhere if index is None else places[index])
        fixed = family.always_kept(family.model.config, len(one))
        item = Item(len(one), boxes, fixed=fixed, video=modality == "video")
        if program.encodes is not None:
            if hasattr(one, "_foveate_cut"):
                item.cut = one._foveate_cut
            elif whole is not None and index is not None:
                item.cut = whole[index]
            else:
                raise _not_from_here(program)
        items.append(item)
    return items


def _which(features: Sequence[Tensor], known: Sequence[Tensor]) -> list[int | None]:
    """Which of the features that were encoded each of these is: one tensor, repeated for beams, has lost its tags."""
    if len(features) == len(known):
        return list(range(len(known)))
    pairs = [(one, at) for one in range(len(features)) for at in range(len(known)) if _alike(features[one], known[at])]
    if not pairs:
        return [None] * len(features)
    same = torch.stack([(features[one] == known[at]).all() for one, at in pairs]).tolist()  # waiting once
    found = {one: at for (one, at), equal in reversed(list(zip(pairs, same, strict=True))) if equal}
    return [found.get(one) for one in range(len(features))]


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.device == other.device


def _items_of_samples(output: Any, program: Program, prompt: Sequence[Sequence[int]]) -> list[Item]:
    """Each sample's images, from tags that a sample's beams share."""
    known = getattr(output, "_foveate_samples", [])
    beams = len(prompt) // max(1, len(known))
    tagged = [items for items in known for _ in range(beams)]
    if [[item.length for item in items] for items in tagged] == [list(sample) for sample in prompt]:
        return [item for items in tagged for item in items]
    if program.encodes is not None:
        raise _not_from_here(program)
    return [Item(length, _nowhere) for sample in prompt for length in sample]


def _nowhere() -> None:
    """Where tokens look is not known."""


def _not_from_here(program: Program) -> UnsupportedError:
    return UnsupportedError(
        f"{type(program.method).__name__} reduces tokens in the vision tower, but these image features were made "
        "outside the context or without their prompt, or cut by chunked prefill. Give pictures and prompt to the model "
        "inside the context, and leave prefill_chunk_size unset."
    )


def _features(output: Any) -> list[Tensor]:
    """The features of each image or video in what a `get_*_features` call answered."""
    parts = list(getattr(output, "pooler_output", output))
    pieces = getattr(output, "_foveate_pieces", 1)
    return parts if pieces == 1 else [torch.cat(parts[at : at + pieces]) for at in range(0, len(parts), pieces)]
