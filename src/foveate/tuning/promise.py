"""Find the threshold of a second look: the lowest confidence at which answers are trusted, with a guarantee.

Each sample i is answered twice: with few tokens (confidence c_i) and in full. If answers at λ and above are trusted,
sample i has the loss

    L_i(λ) = 1 if c_i ≥ λ and the two answers differ, else 0

which falls as λ rises. U(k, n) is an upper confidence bound for a rate, after k losses in n samples. λ̂ is the lowest
observed confidence such that U(Σ L_i, n) ≤ ε there and at all higher ones. Then the probability (over calibrations)
that more than ε of new answers differ is at most δ: Bates et al., "Distribution-Free, Risk-Controlling Prediction
Sets", arXiv:2101.02703. For a falling loss this is the fixed-sequence test of Angelopoulos et al., "Learn then Test",
arXiv:2110.01052. Losses are 0 or 1, so U is the exact bound of Clopper and Pearson. With m settings, each gets δ/m.
"""

import math
import random
from collections.abc import Hashable, Sequence
from itertools import groupby

from foveate.core.tensors import alike
from foveate.errors import SettingError
from foveate.plain.stats import RISK, bound

Pair = tuple[float, bool]
"""A sample: the confidence of its answer with few tokens, and whether that answer equals the full model's."""


def fewest(agreement: float, settings: int = 1) -> int:
    """Return the fewest samples that can support an agreement: n ≥ ln(δ/m) / ln(1 − ε).

    Args:
        agreement: 1 − ε.
        settings: m, the number of settings.

    Raises:
        SettingError: If the agreement is not between 0 and 1.
    """
    if not 0 < agreement < 1:
        raise SettingError(f"agreement must be a share between 0 and 1, such as 0.98; got {agreement}.")
    return math.ceil(math.log(RISK / settings) / math.log(agreement))


def threshold(samples: Sequence[Pair], agreement: float, settings: int = 1) -> float | None:
    """Return λ̂, the lowest trusted confidence. None if no answer can be trusted.

    Samples of equal confidence are trusted together or not at all. NaN is never trusted.

    Args:
        samples: All samples of the calibration, including those that will be asked again.
        agreement: 1 − ε.
        settings: m, the number of settings calibrated on these samples.
    """
    trusted, wrong = None, 0
    ordered = sorted((pair for pair in samples if not math.isnan(pair[0])), reverse=True)
    for confidence, equals in groupby(ordered, key=lambda pair: pair[0]):
        wrong += sum(not agrees for _, agrees in equals)
        if bound(wrong, len(samples), RISK / settings) > 1 - agreement:
            break
        trusted = confidence
    return trusted


def one_each(pictures: Sequence[Hashable], seed: int = 0) -> list[int]:
    """Return the indices of one question per picture, drawn with a seed.

    Questions about one picture are not independent, so only one counts for the bound.
    """
    drawn = random.Random(seed)
    return sorted(drawn.choice(places) for places in alike(pictures))
