"""What the methods that make grids smaller have in common: counts, and so cost, are known before the model runs."""

import pytest
import torch

import foveate as fv
from foveate.methods.averagepool import AveragePool
from foveate.methods.resize import Resize
from tests.models import DEPTH, FAMILIES, batch, tiny


def seen(trace):
    """Tokens and grids of each image of the first sample."""
    media = trace.latest.media[0]
    return [image.length for image in media], [image.layout().grids for image in media]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", [AveragePool, Resize])
def test_counts_are_as_the_grids_say(kind, family):
    turn = (FAMILIES.index(family) + (kind is Resize)) % 2
    model, method = tiny(family), kind(keep=(0.4, 0.15)[turn])
    for word in ("tit", "titit"):
        with fv.drop(model, method) as trace, torch.no_grad():
            model(**batch(family, [word]))
        sizes, grids = seen(trace)
        plan = method.plan(DEPTH, sizes, grids)
        newlines = [
            size - sum(height * width for height, width in mine) for size, mine in zip(sizes, grids, strict=True)
        ]
        if kind is Resize and max(newlines) > 1:
            # How tiles are unpadded, and so how many rows have newlines, depends on the picture.
            assert plan is None
            continue
        assert plan == tuple(trace.stages[0].after) * DEPTH
        if not fv.families()[family].decoders:
            continue  # its cost is not known
        pictures = [1] * len(sizes)
        told = fv.cost(model, text_tokens=7, vision_tokens=sizes, method=method, grids=grids, tower_images=pictures)
        assert told.retention == pytest.approx(trace.retention[0])
