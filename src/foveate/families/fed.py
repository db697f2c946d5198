"""Reading the tower of a model that nobody has written a family for: a token has the means of the rows that feed it."""

import functools
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from foveate.core.patching import Patcher
from foveate.core.signals import TowerAttention, TowerSignal
from foveate.errors import UnsupportedError
from foveate.families.feeding import Feeding, blocks_of, feeding
from foveate.families.placing import images_of
from foveate.families.tap import unturned
from foveate.families.tower import Encoded, Inputs, Reducer, Run, Taps, Tower, TowerLayout


def encode_fed(family: Any, run: Run, modality: str, inputs: Inputs, reducer: Reducer) -> Encoded:
    """`Family.encode` behind the projector: a token's attention and key are the means of the rows that feed it.

    Raises:
        UnsupportedError: If a method reads the tower, and it is not known which rows feed which token.
    """
    if not reducer.reads:
        output = run()
        return output, family.reduce_features(output, modality, inputs, reducer)
    fed = feeding(family, run, inputs)
    taps = _Taps({signal: fed.attention_of(signal) for signal in reducer.reads})
    output = taps.run(run)
    if taps.lengths != fed.lengths:  # they depend on more than shapes: pictures that are black throughout, for example
        fed = feeding(family, run, inputs, anew=True)
        taps = _Taps({signal: fed.attention_of(signal) for signal in reducer.reads})
        output = taps.run(run)
    sizes = [len(image) for image in images_of(output, reducer.lengths if family.tiled else None)]
    ranked = _ranked(family, modality, inputs, fed, sizes)

    @functools.cache
    def stats(signal: TowerSignal) -> tuple[Tensor, ...]:
        images = torch.split(fed.token_means(signal, taps.samples(signal)), sizes)
        return tuple(image[own] for image, own in zip(images, ranked, strict=True))

    return output, family.reduce_features(output, modality, inputs, reducer, stats)


def thinned_by_feeding(family: Any, run: Run, inputs: Inputs) -> Tower:
    """A tower whose blocks may run on some rows, by what its blocks attended to in a run; every block is read.

    Raises:
        UnsupportedError: If a block looks through windows or cannot be read, or rows that feed no token are no CLS in
            front of a picture's.
    """
    fed = feeding(family, run, inputs)
    lists = blocks_of(family.core, family.layers)
    blocks = next((one for one in lists if [part for _, parts in one for part in parts] == list(fed.attentions)), ())
    cls = {int(group.cls) for group in fed.groups}
    sizes = [len(group.tokens) for group in fed.groups]
    whole = [size + int(group.cls) for size, group in zip(sizes, fed.groups, strict=True)] == list(fed.lengths)
    whole &= all(isinstance(group.rows, slice) or bool((group.rows.diff() == 1).all()) for group in fed.groups)
    if not blocks or len(fed.seeing) < len(blocks) or len(cls) > 1 or not whole:
        raise UnsupportedError(
            f"Rows cannot leave inside the vision tower of {type(family.model).__name__}: of some blocks or rows it is "
            "not known who looks at whom. Use a method without thintower."
        )
    layout = TowerLayout(fed.lengths, [None] * len(sizes), cls=cls.pop())
    modules = [block for block, _ in blocks]
    return Tower(family.core, modules, list(fed.attentions), range(len(modules)), layout)


def _ranked(family: Any, modality: str, inputs: Inputs, fed: Feeding, sizes: Sequence[int]) -> list[Tensor | slice]:
    """Which tokens of each image are no newlines.

    Raises:
        UnsupportedError: If a token is made of no row, and the family says neither that it is a newline nor that it
            always stays.
    """
    if bool(fed.is_fed.all()):
        return [slice(None)] * len(sizes)
    config, ranked = family.model.config, list[Tensor | slice]()
    places = family.boxes(config, modality, family.remembered(inputs), sizes)
    for is_fed, boxes in zip(torch.split(fed.is_fed.cpu(), list(sizes)), places, strict=True):
        if boxes is None:
            is_newline = torch.zeros_like(is_fed)
        else:
            is_newline = boxes.isnan().any(dim=-1).cpu()
        is_known = is_fed | is_newline
        is_known[[*family.always_kept(config, len(is_fed))]] = True
        if not is_known.all():
            raise UnsupportedError(
                f"{int((~is_fed).sum())} of {len(is_fed)} vision tokens of a picture are made of no row of the tower "
                "(newlines, or separators), and which are is not known. Use a method that drops between layers."
            )
        ranked.append(~is_newline)
    return ranked


class _Taps(Taps):
    """Taps of a tower whose parts have no known names: keys before RoPE are made by a second run of the attention."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """Rows of each sample."""
        (some, *_) = self._samples.values()
        return tuple(heads.keys.shape[1] for heads in some)

    def _is_plain(self, signal: TowerSignal) -> bool:
        return not isinstance(signal, TowerAttention)

    def _attach_plain(self, patches: Patcher, place: tuple[Any, bool]) -> None:
        patches.wrap(place[0], "forward", partial(unturned, place[0], partial(self._note, place)))
