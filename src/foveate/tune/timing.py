"""How long prefills take on this machine by the tokens that layers process, for budgets that are a speed-up."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from foveate.bench.race import Race, race
from foveate.methods.base import Method
from foveate.methods.uniform import Uniform
from foveate.tune.samples import Sample

__all__ = ["Timings", "measured"]

SHARES = (0.0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 0.75)
ROUNDS = 8


@dataclass(frozen=True, slots=True)
class Timings:
    """Time to the first token where every layer processes so many vision tokens, over that of the full model.

    Attributes:
        counts: Vision tokens, ascending; the last are all.
        shares: The time for each, over that of all.
    """

    counts: tuple[int, ...]
    shares: tuple[float, ...]

    @classmethod
    def on(cls, model: Any, sample: Sample) -> Self:
        """Measure a model on one sample, evenly thinned before its first layer, interleaved with the full model."""
        entered = sample.vision_tokens
        counts = sorted({max(1, round(share * entered)) for share in SHARES} - {entered})
        thinned = {str(count): Uniform(layers=(0,), keep=((count + 0.5) / entered,)) for count in counts}
        found = race(model, sample.inputs, thinned, 1, ROUNDS)
        shares = [found.ratios[str(count)].median for count in counts]
        return cls((*counts, entered), (*shares, 1.0))

    def share(self, plan: Sequence[int], entered: int) -> float:
        """Time of a plan over that of the full model: a layer's time depends on its own tokens alone.

        Args:
            plan: Vision tokens that each layer processes.
            entered: Vision tokens of the image: another size than the measured one is taken in proportion.
        """
        scale = self.counts[-1] / entered
        return float(np.interp([scale * count for count in plan], self.counts, self.shares).mean())


def measured(model: Any, sample: Sample, method: Method) -> Race:
    """Times to the first token of a method and the full model, interleaved; the method's own work counts too."""
    return race(model, sample.inputs, {"tuned": method}, 1, 2 * ROUNDS)
