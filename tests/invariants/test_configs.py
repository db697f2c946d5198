"""The first four invariants on models of other configs than those everything else is tested on."""

import pytest
import torch

import foveate as fv
from foveate.methods.averagepool import AveragePool
from foveate.methods.mustdrop import MustDrop
from foveate.methods.resize import Resize
from foveate.methods.visiondrop import VisionDrop
from tests import models, oracle
from tests.invariants.alone import check_alone
from tests.invariants.references import check_recomputed
from tests.invariants.settings import EVERYTHING
from tests.invariants.test_oracle import DEEPSTACK
from tests.models import OTHERS, batch, generate, mixed, with_video

CLOSE = {"atol": 1e-4, "rtol": 1e-4}
NAMES = ("v2drop", "random", "visiondrop", "mustdrop", "budget", "averagepool", "resize")
PLACED = [(name, family, at + index) for at, name in enumerate(NAMES) for index, family in enumerate(OTHERS)]
RECOMPUTED, BATCHED = ([place[:2] for place in PLACED if EVERYTHING or place[2] % 2 == half] for half in (0, 1))
RECOMPUTED = [
    (name, family, with_video(family) if OTHERS[family].videos else "titit")
    for name, family in RECOMPUTED
    if name != "resize" or family not in DEEPSTACK  # whose features are the smaller picture's too
]


pytestmark = pytest.mark.usefixtures("other_models")


class Halving(MustDrop):
    """Half of what is left stays at each cut, whatever the budget: it fits images of one token."""

    def solve(self, depth, entered, started):
        return tuple(max(1, started // 2**cut) for cut, _ in enumerate(self.cuts(depth), start=1))


def method_for(name, family):
    """A setting that fits the decoder's depth, and reads attention where there is some."""
    depth, recurrent = models.tiny(family).config.get_text_config().num_hidden_layers, OTHERS[family].recurrent
    spread = tuple(dict.fromkeys((1, (depth + 1) // 2, depth - 1)))
    reading = [layer for layer in range(depth) if layer not in recurrent]
    cuts = tuple(dict.fromkeys(layer for layer in (reading[len(reading) // 2], reading[-1]) if layer))
    watched = tuple(dict.fromkeys(layer for layer in (reading[0], reading[-2]) if layer < depth - 1))
    return {
        "v2drop": lambda: fv.V2Drop(layers=spread, keep=(0.6, 0.5, 0.3)[: len(spread)], scope="image"),
        "random": lambda: fv.Random(layers=(0, depth - 1), keep=(0.5, 0.0), min_keep=0),
        "visiondrop": lambda: VisionDrop(
            dominant=14, contextual=3, layer_list=cuts, image_token_list=((9, 2), (3, 1))[: len(cuts)], reference=25
        ),
        "mustdrop": lambda: MustDrop(
            pruning_layers=watched, global_thr=0.2, individual_thr=0.2, merge_threshold=0.3, merge_window=2
        ),
        "budget": lambda: Halving(pruning_layers=watched, retention=0.5, positions="keep"),
        "averagepool": lambda: AveragePool(keep=0.4),
        "resize": lambda: Resize(keep=0.4),
    }[name]()


@pytest.mark.parametrize("family", OTHERS)
def test_keeping_everything_is_the_untouched_model(family):
    model, inputs = models.tiny(family), batch(family, mixed(family))
    plain = generate(model, inputs, new_tokens=3)
    with fv.drop(model, fv.V2Drop(layers=(1,), keep=(1.0,))) as trace:
        kept = generate(model, inputs, new_tokens=3)
    assert all(torch.equal(a, b) for a, b in zip(kept.logits, plain.logits, strict=True))
    assert trace.retention == [1.0] * len(mixed(family))


@pytest.mark.parametrize(("name", "family", "word"), RECOMPUTED)
def test_cached_generation_is_the_recompute(name, family, word):
    model, inputs, method = models.tiny(family), batch(family, [word]), method_for(name, family)
    told = {"sees": OTHERS[family].sees}
    if name == "v2drop":
        told["cuts"] = {
            layer: oracle.least_changed_leave(ratio) for layer, ratio in zip(method.layers, method.keep, strict=True)
        }
    trace, _ = check_recomputed(model, family, method, inputs, new_tokens=3, **told)
    assert min(trace.latest.per_layer)[0] < trace.vision_tokens[0]


@pytest.mark.parametrize(("name", "family"), BATCHED)
def test_a_batch_is_its_samples_run_alone(name, family):
    check_alone(models.tiny(family), family, method_for(name, family), mixed(family), new_tokens=2)
