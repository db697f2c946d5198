import math

import torch
from hypothesis import given, strategies as st

import foveate as fv
from foveate.contract import LayerView, Shape
from foveate.methods.mmtok import MMTok
from tests.methods import cosine, covering, stays
from tests.models import batch, is_vision, tiny

EXAMPLES = [MMTok(keep=0.4), MMTok(tokens=6, alpha=1.0, tau_text=0.1, positions="keep")]
SMALLEST = MMTok(keep=0.001)


def kept(words, rows, features, **settings):
    _, pick = MMTok(**settings).stages(Shape(depth=32))
    return stays(pick, LayerView(rows, text=words, notes={"features": features}))


def by_hand(words, tokens, features, count, alpha=0.5, tau_text=0.02, tau_vision=0.2):
    """The spec in plain Python, in double precision."""

    def shares(target, candidates, tau):
        powers = [math.exp((cosine(target, candidate) - 1) / tau) for candidate in candidates]
        return [power / sum(powers) for power in powers]

    words, tokens, features = words.tolist(), tokens.tolist(), features.tolist()
    targets = [[share / len(words) for share in shares(word, tokens, tau_text)] for word in words]
    targets += [[alpha * share / len(tokens) for share in shares(one, features, tau_vision)] for one in features]
    return covering(targets, count)


@given(
    tokens=st.integers(2, 14),
    words=st.integers(1, 5),
    alpha=st.sampled_from((0.5, 2.0)),
    tau=st.sampled_from((0.02, 0.3)),
    seed=st.integers(0, 2**16),
    data=st.data(),
)
def test_picks_are_those_of_the_spec(tokens, words, alpha, tau, seed, data):
    rng = torch.Generator().manual_seed(seed)
    text, rows = torch.randn(words, 6, generator=rng), torch.randn(tokens, 6, generator=rng)
    features, count = torch.randn(tokens, 9, generator=rng), data.draw(st.integers(1, tokens))
    wanted = by_hand(text, rows, features, count, alpha, tau)
    assert kept(text, rows, features, tokens=count, alpha=alpha, tau_text=tau) == wanted


def test_without_text_vision_tokens_alone_are_covered():
    rng = torch.Generator().manual_seed(0)
    rows, features, text = (torch.randn(9, 6, generator=rng) for _ in range(3))
    assert kept(text[:0], rows, features, tokens=4) == kept(text[:0], rows * 0, features, tokens=4)
    same = torch.ones(9, 6)  # words say nothing about tokens that are all alike
    assert kept(text[:0], rows, features, tokens=1) == by_hand(text, same, features, 1)


def test_on_a_model_it_is_the_towers_features_and_the_text_behind_each_image():
    model, inputs = tiny("llava"), batch("llava", ["titit"])
    columns = is_vision(inputs["input_ids"][0]).nonzero()[:, 0].view(2, -1)
    seen = {}
    hooks = [
        model.get_decoder().layers[0].register_forward_pre_hook(lambda _, args: seen.update(rows=args[0][0])),
        model.model.multi_modal_projector.register_forward_pre_hook(lambda _, args: seen.update(tower=args[0])),
    ]
    with fv.drop(model, MMTok(tokens=5)) as trace, torch.no_grad():
        model(**inputs)
    for hook in hooks:
        hook.remove()
    text = torch.ones(len(seen["rows"]), dtype=torch.bool)
    text[columns.flatten()] = False
    found = []
    for image, (own, features) in enumerate(zip(columns, seen["tower"], strict=True)):
        behind = text & (torch.arange(len(text)) > own[-1])
        picked = by_hand(seen["rows"][behind], seen["rows"][own], features, 5)
        found += [image * columns.shape[1] + token for token in picked]
    (stage,) = trace.stages
    assert stage.kept[0].tolist() == found
