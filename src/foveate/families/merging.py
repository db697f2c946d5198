"""Families whose projector makes one token of several patches: what the tower shows of a token is a mean over them."""

import functools
from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor

from foveate.core.signals import TowerSignal
from foveate.families.base import Family
from foveate.families.placing import lengths_of
from foveate.families.tower import Encoded, Inputs, Reducer, Run, Taps


class Merging(Family):
    """A family whose tokens are reduced behind the projector, by what the tower shows of their patches."""

    needs_all_rows: ClassVar[str | None] = None

    def encode(self, run: Run, modality: str, inputs: Inputs, reducer: Reducer) -> Encoded:
        """Behind the projector: a token's score and key are the means of its patches'."""
        taps = self.tower_parts(modality, run, inputs).taps(reducer.reads)
        output = taps.run(run)

        @functools.cache
        def stats(signal: TowerSignal) -> tuple[Tensor, ...]:
            means = self.token_means(taps, signal, modality, inputs)
            if not isinstance(means, Tensor):
                means = torch.cat([*means])
            if self.tiled:
                sizes = reducer.lengths(len(means))
            else:
                sizes = lengths_of(output.pooler_output)
            return torch.split(means, list(sizes))

        return output, self.reduce_features(output, modality, inputs, reducer, stats)

    def token_means(self, taps: Taps, signal: TowerSignal, modality: str, inputs: Inputs) -> Iterable[Tensor] | Tensor:
        """Means of what a signal is of the patches of each token, (tokens, numbers) float32, in the order of the
        features; all together, or of one picture after the other.

        Args:
            taps: What the tower attended with.
            signal: What is read.
            modality: "image" or "video".
            inputs: The arguments of the `get_*_features` call.
        """
        raise NotImplementedError
