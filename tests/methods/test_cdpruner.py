import pytest
import torch
from hypothesis import given, strategies as st

import foveate as fv
from foveate.contract import ImageView, LayerView, Resource, Shape
from foveate.errors import SettingError, UnsupportedError
from foveate.methods.cdpruner import CDPruner
from foveate.testing import tiny_model
from tests.methods import cosine, stays
from tests.models import batch, is_vision, tiny

EXAMPLES = [CDPruner(keep=0.4), CDPruner(tokens=3, positions="keep", scope="frame")]
SMALLEST = CDPruner(keep=0.001)
FEATURES, TEXT = Resource("clip"), Resource("clip", of="text")
WITH_CLIP = Shape(depth=32, cls=True, resources=frozenset(["clip"]))


def kept(rows, words, count):
    """What stays of rows that enter the decoder, in images of these sizes."""
    rate, pick = CDPruner(tokens=count).stages(Shape(depth=32))
    notes = rate.cut(LayerView(rows, text=words)).notes
    return stays(pick, LayerView(rows, notes=notes))


def kept_with_clip(rows, patches, text, count):
    encode, rate, pick = CDPruner(tokens=count).stages(WITH_CLIP)
    notes = encode.cut(ImageView(rows, signals={FEATURES: patches})).notes
    notes = rate.cut(LayerView(count=len(rows), notes=notes, signals={TEXT: text})).notes
    return pick.cut(LayerView(rows, notes=notes)).source.tolist()


def by_hand(rows, words, count):
    """The definition in double precision: whoever makes the determinant of the picked ones' kernel largest is next."""

    rows, words = rows.tolist(), words.tolist()
    scores = [sum(cosine(row, word) for word in words) / len(words) for row in rows]
    low, high = min(scores), max(scores)
    weights = [(score - low + 1e-6) / (high - low) for score in scores]
    kernel = torch.tensor(
        [
            [w * cosine(a, b) * v for b, v in zip(rows, weights, strict=True)]
            for a, w in zip(rows, weights, strict=True)
        ],
        dtype=torch.float64,
    )
    return largest(kernel, range(len(rows)), count)


def largest(kernel, tokens, count):
    """Of these tokens those that make the determinant largest, one after the other."""
    picked = []
    for _ in range(count):
        left = [token for token in tokens if token not in picked]
        volumes = {token: float(torch.linalg.det(kernel[[*picked, token]][:, [*picked, token]])) for token in left}
        picked.append(max(left, key=volumes.__getitem__))
    return sorted(picked)


@given(seed=st.integers(0, 99), times=st.sampled_from([1, 3]))
def test_rounding_decides_nothing_between_tokens_that_tie(seed, times):
    """Without text all are equally relevant, so the first is picked first; of those that are the same the first is."""
    rows = torch.randn(24, 16, generator=torch.Generator().manual_seed(seed))
    assert kept(rows, rows[:0], 1) == [0]
    words = torch.randn(5 * (times - 1), 16, generator=torch.Generator().manual_seed(seed + 100))
    assert max(kept(rows.repeat(times, 1), words, 8)) < 24


ROWS = torch.tensor([[2.0, 0.0], [1.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
EAST = torch.tensor([[5.0, 0.0]])


def test_in_clips_space_what_is_least_like_the_text_comes_first():
    """The same rows and text: s = −1, −1, −0.6, 0, so r is about 0, 0, 0.4 and 1. Beside the fourth 0.16 · 0.36 is left
    of the third."""
    assert kept_with_clip(ROWS, ROWS, EAST[0], 1) == [3]
    assert kept_with_clip(ROWS, ROWS, EAST[0], 2) == [2, 3]


@given(tokens=st.integers(3, 8), words=st.integers(1, 4), seed=st.integers(0, 2**16), data=st.data())
def test_picks_are_those_that_make_the_determinant_largest(tokens, words, seed, data):
    rng = torch.Generator().manual_seed(seed)
    rows, text = torch.randn(tokens, 12, generator=rng).double(), torch.randn(words, 12, generator=rng).double()
    # The least relevant has a variance of 1e-12, which is left to rounding here.
    count = data.draw(st.integers(1, tokens - 2))
    assert kept(rows.float(), text.float(), count) == by_hand(rows.float().double(), text.float().double(), count)


def test_without_text_and_with_equal_relevance_diversity_decides():
    rows = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.1, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert kept(rows, torch.zeros(0, 3), 3) == [0, 2, 3]
    assert kept(rows[[0, 0, 2, 3]], torch.zeros(1, 3), 3) == [0, 2, 3]
    assert kept(torch.ones(6, 3), torch.ones(2, 3), 3) == [0, 1, 2]


# -- on models ------------------------------------------------------------------------------------------------------


class Encoder:
    """Projects patches and counts words in some way; notes what it was given."""

    def __init__(self, width=16, size=5):
        rng = torch.Generator().manual_seed(3)
        self.matrix, self.table = torch.randn(width, size, generator=rng), torch.randn(96, size, generator=rng)
        self.texts = []

    def features(self, features):
        return features @ self.matrix

    def text(self, ids):
        self.texts.append(ids.tolist())
        return self.table[ids].sum(dim=0)


def test_relevance_goes_over_all_images_of_a_sample_and_no_other():
    """By hand, from what enters the decoder: two images with one question behind them, ranked one by one."""
    model, inputs = tiny("llava"), batch("llava", ["titit"])
    columns = is_vision(inputs["input_ids"][0]).nonzero()[:, 0]
    entered = {}
    hook = model.get_decoder().layers[0].register_forward_pre_hook(lambda _, args: entered.update(rows=args[0][0]))
    with fv.drop(model, CDPruner(tokens=4, positions="keep")) as trace, torch.no_grad():
        model(**inputs)
    hook.remove()
    rows = torch.nn.functional.normalize(entered["rows"].double(), dim=-1)
    words = rows[columns[-1] + 1 :]
    scores = (rows[columns] @ words.T).mean(dim=1)
    weights = (scores - scores.min() + 1e-6) / (scores.max() - scores.min())
    kernel = weights[:, None] * (rows[columns] @ rows[columns].T) * weights
    half = len(columns) // 2
    (stage,) = trace.stages
    assert stage.kept[0].tolist() == [*largest(kernel, range(half), 4), *largest(kernel, range(half, 2 * half), 4)]


@pytest.mark.parametrize("method", ["cdpruner", "mfpruner"])
def test_an_encoder_that_is_handed_in_gets_patches_and_the_question(method):
    clip = tiny_model()
    words = ("tit", "titt", "titit", "ttt")
    encoder = Encoder()
    inputs = clip.inputs(*words)
    with fv.drop(clip.model, method, tokens=6, resources={"clip": encoder}) as together:
        clip.model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert sorted(map(len, encoder.texts)) == [3, 3, 6, 6]  # of titit 6 words are behind its first image
    for index, word in enumerate(words):
        with fv.drop(clip.model, method, tokens=6, resources={"clip": Encoder()}) as alone:
            clip.model.generate(**clip.inputs(word), max_new_tokens=3, do_sample=False)
        assert [stage.kept[index].tolist() for stage in together.stages] == (
            [stage.kept[0].tolist() for stage in alone.stages] or [[]]
        )
    with fv.drop(clip.model, method, tokens=6) as without:
        clip.model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert without.stages[0].kept[0].tolist() != together.stages[0].kept[0].tolist()


def test_what_is_handed_in_must_be_what_is_read():
    model = tiny("llava")
    with pytest.raises(SettingError, match="text"):
        fv.apply(model, "cdpruner", tokens=4, resources={"text": Encoder()})
    with pytest.raises(SettingError, match="clip"):
        fv.apply(model, "v2drop", resources={"clip": Encoder()})


def test_a_prompt_of_embeddings_has_no_ids_to_encode():
    clip = tiny_model()
    inputs = clip.inputs("tit")
    core = clip.model.model
    embeds = core.get_input_embeddings()(inputs["input_ids"])
    outputs = core.get_image_features(inputs["pixel_values"], return_dict=True)
    assert outputs is not None
    with (
        fv.drop(clip.model, "cdpruner", tokens=4, resources={"clip": Encoder()}),
        pytest.raises(UnsupportedError, match="Pass input_ids"),
    ):
        clip.model(inputs_embeds=embeds, pixel_values=inputs["pixel_values"])
