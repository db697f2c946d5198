"""What a second look can promise: from answers with their confidences to the least confidence that is trusted.

A sample i is answered twice: with few tokens (confidence c_i) and in full. Trusting what is at λ and above loses

    L_i(λ) = 1 where c_i ≥ λ and the two answers differ, else 0

which falls as λ rises. λ̂ is the least observed confidence such that at it and at all higher ones U(Σ L_i, n) ≤ ε.
Then the probability that more than ε of new answers differ is at most δ, over calibrations: Bates et al.,
"Distribution-Free, Risk-Controlling Prediction Sets", arXiv:2101.02703; for a loss that falls it is the fixed-sequence
test of Angelopoulos et al., "Learn then Test", arXiv:2110.01052. Losses are 0 or 1, so U is Clopper and Pearson's, and
exact. Of m settings that are tried, each has δ/m.
"""

import math
import random
from collections.abc import Hashable, Sequence
from itertools import groupby

from foveate.errors import SettingError
from foveate.plain.stats import RISK, bound

Pair = tuple[float, bool]
"""A sample: the confidence of its answer with few tokens, and whether that is the full model's."""


def fewest(agreement: float, settings: int = 1) -> int:
    """The fewest samples with which so many settings can be promised to agree: n ≥ ln(δ/m) / ln(1 − ε).

    Raises:
        SettingError: If the agreement is not between 0 and 1.
    """
    if not 0 < agreement < 1:
        raise SettingError(f"agreement is a share between 0 and 1, such as 0.98; got {agreement}.")
    return math.ceil(math.log(RISK / settings) / math.log(agreement))


def threshold(samples: Sequence[Pair], agreement: float, settings: int = 1) -> float | None:
    """λ̂, the least confidence that is trusted; None where none can be: then every answer is the full model's.

    Samples of one confidence are trusted together or not at all. What is no number is never trusted.

    Args:
        samples: All of the calibration, those that will be asked again among them.
        agreement: 1 − ε.
        settings: m, how many are calibrated on these samples.
    """
    trusted, wrong = None, 0
    ordered = sorted((pair for pair in samples if not math.isnan(pair[0])), reverse=True)
    for confidence, equals in groupby(ordered, key=lambda pair: pair[0]):
        wrong += sum(not agrees for _, agrees in equals)
        if bound(wrong, len(samples), RISK / settings) > 1 - agreement:
            break
        trusted = confidence
    return trusted


def auroc(samples: Sequence[Pair]) -> float:
    """How often an answer that agrees is surer than one that does not, ties counted half; NaN without both kinds."""
    sure = [confidence for confidence, agrees in samples if agrees]
    unsure = [confidence for confidence, agrees in samples if not agrees]
    if not sure or not unsure:
        return math.nan
    ahead = sum((right > wrong) + (right == wrong) / 2 for right in sure for wrong in unsure)
    return ahead / (len(sure) * len(unsure))


def one_each(pictures: Sequence[Hashable], seed: int = 0) -> list[int]:
    """The places of one question about each picture, drawn by seed: questions about one are not independent."""
    places: dict[Hashable, list[int]] = {}
    for place, picture in enumerate(pictures):
        places.setdefault(picture, []).append(place)
    drawn = random.Random(seed)
    return sorted(drawn.choice(group) for group in places.values())
