"""Which rows of a tower feed which token, told from the model: it shows what the hand-written families show."""

import gc
import inspect
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from foveate._transformers import older
from foveate.contract import TowerAttention, TowerKeys
from foveate.core.patching import Patcher
from foveate.errors import UnsupportedError
from foveate.families import feeding as feeds
from foveate.families.derived import Derived
from foveate.families.feeding import encode_fed, feeding, has_cls
from foveate.families.tap import tap
from foveate.families.vision import PictureLayout
from foveate.registry import family_for
from tests import tiny_derived
from tests.families.shown import KEYS, PAID, Shown
from tests.models import FAMILIES, batch, features, given, tiny, with_video

# -- as the hand-written families ----------------------------------------------------------------------------------

SIGNALS = (
    PAID, KEYS, TowerAttention("patches", layer=1), TowerAttention("patches", block=8, of=24),
    TowerAttention("patches", heads="joined"), TowerKeys(heads="joined"),
)  # fmt: skip
CLS = (TowerAttention("cls"), TowerAttention("cls", heads="joined"))
FILMS = ["gemma4", "glm46v", "glm4v", "glm4v_moe", "qwen2_vl", "qwen3_5", "qwen3_5_moe", "qwen3_vl", "qwen3_vl_moe"]
"""Qwen2.5-VL's windows hold all of a tiny frame, so that its tower does not look through windows there."""
PICTURES = [*FILMS, "gemma3", "idefics3", "internvl", "llava", "mistral3", "paligemma", "qwen2_5_vl", "smolvlm"]
PICTURES += ["video_llava", "vipllava"]


def encoded(family: str, modality: str, how: Any, reads: Any) -> list[Any]:
    """What a reducer is shown of each picture."""
    model = tiny(family)
    known = family_for(model)
    inputs = batch(family, ["titit" if modality == "image" else with_video(family)])
    lengths = [len(one) for one in features(model, inputs, modality)] if known.tiled else ()
    inputs = given(model, inputs, modality)
    call, reducer = getattr(model.model, f"get_{modality}_features"), Shown(lengths, reads)
    with torch.no_grad():
        how(known, lambda **other: call(**{**inputs, **other}), modality, inputs, reducer)
    return reducer.views


@pytest.mark.parametrize(
    ("family", "modality"),
    [(family, "image") for family in PICTURES if family in FAMILIES]
    + [(family, "video") for family in FILMS if family in FAMILIES],
)
def test_shows_what_the_hand_written_family_shows(family, modality):
    known = family_for(tiny(family))
    reads = SIGNALS + CLS * known.tower_cls
    assert has_cls(known.core) == known.tower_cls
    own = encoded(family, modality, encode_fed, reads)
    views = encoded(family, modality, type(known).encode, reads)
    assert len(own) == len(views) > 0
    for mine, theirs in zip(own, views, strict=True):
        assert len(mine) == len(theirs)
        for signal in reads:
            torch.testing.assert_close(mine.read(signal), theirs.read(signal), atol=1e-6, rtol=1e-4)


# -- types without a family ----------------------------------------------------------------------------------------


class Told(Derived):
    """What is known of a model from its structure, and what its tower shows of all images, one behind the other."""

    def reduce_features(self, output: Any, modality: str, inputs: Any, reducer: Any, stats: Any = None) -> Any:
        self.stats = stats
        return []


class Whole(Shown):
    """All tokens of a call as one image."""

    def lengths(self, total: int, pieces: Any = ()) -> list[int]:
        return [total]


class Call:
    """A `get_*_features` call of a tiny model of a type."""

    def __init__(self, name: str, modality: str = "image", attention: str | None = None, dtype: Any = torch.float32):
        if not tiny_derived.known(name):
            pytest.skip(f"this transformers has no {name}")
        model, case = tiny_derived.make(name, attention)
        if dtype != torch.float32:
            model = model.to(dtype)
        self.family, rng = Told(model), torch.Generator().manual_seed(0)
        make = case.image if modality == "image" else case.video
        pictures = [make(at, rng)[0] for at in range(1 if case.one else 2)]
        joined = {
            key: case.join.get(key, tiny_derived._joined)([one[key] for one in pictures if key in one])
            for key in pictures[0]
        }
        call = getattr(self.family.core, f"get_{modality}_features")
        takes = inspect.signature(call).parameters
        self.inputs = {
            key: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
            for key, value in joined.items()
            if key in takes
        }
        self.modality, self.runs = modality, 0
        self._call = call

    def run(self, **other: Any) -> Any:
        self.runs += 1
        return self._call(**{**self.inputs, **other}, return_dict=True)

    def feeding(self, anew: bool = False) -> feeds.Feeding:
        with torch.no_grad():
            return feeding(self.family, self.run, self.inputs, anew)

    def read(self, signal: Any) -> Tensor:
        """A signal of all tokens."""
        with torch.no_grad():
            encode_fed(self.family, self.run, self.modality, self.inputs, Whole(reads=(signal,)))
            (values,) = self.family.stats(signal)
        return values


def owners(known: feeds.Feeding) -> list[list[int]]:
    """Which token each row feeds, a list for each group."""
    return [group.tokens.tolist() for group in known.groups]


MAPS = [
    ("cohere_compass", "video", 4), ("deepseek_vl", "image", 1), ("exaone4_5", "image", 4), ("glm_ocr", "video", 4),
    ("kimi_k25", "image", 4), ("lfm2_vl", "image", 4), ("lfm3_vl", "image", 4), ("lighton_ocr", "image", 4),
    ("llama4", "image", 4), ("minicpmv4_6", "image", 4), ("molmo2", "image", 4), ("ovis2", "image", 1),
    ("qianfan_ocr", "image", 4), ("qwen2_5_omni_thinker", "image", 4), ("qwen3_omni_moe_thinker", "video", 4),
    ("video_llama_3", "image", 1), ("video_llama_3", "video", 4),
]  # fmt: skip
"""Rows a token: every kind of tower there is among the types."""


@pytest.mark.parametrize(("name", "modality", "rows"), MAPS)
def test_so_many_rows_feed_each_token(name, modality, rows):
    call = Call(name, modality)
    known = call.feeding()
    counts = torch.bincount(torch.cat([group.tokens for group in known.groups]))
    assert counts.tolist() == [rows] * known.tokens
    assert feeds.blocks_of(call.family.core, call.family.layers)
    # Before 5.23 this tower's attention makes RoPE of one number a row, so its keys are refused.
    keys = () if name.startswith("qwen2_5_omni") and older(transformers.__version__, "5.23") else (KEYS,)
    for signal in (PAID, *keys, *CLS * all(group.cls for group in known.groups)):
        values = call.read(signal)
        assert values.isfinite().all()
        assert (values.std(dim=0) > 0).all()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("aria", "a row of it feeds several tokens"),
        ("step3p7", "a row of it feeds several tokens"),
        ("idefics2", "computed from what follows its blocks"),
        ("granite4_vision", "computed from what follows its blocks"),
        ("nemotron_h_omni", "2 rows beside a picture's patches feed no token"),
        ("got_ocr2", "no block of its vision tower attends by transformers' attention functions"),
    ],
)
def test_refuses_what_it_cannot_tell(name, why):
    with pytest.raises(UnsupportedError, match=why):
        Call(name).feeding()


def test_refuses_to_rank_tokens_that_are_made_of_no_row():
    call = Call("hunyuan_vl")
    assert (
        int((~call.feeding().is_fed).sum()) == 9
    )  # two newlines of one picture, three of the other, and the ends of both
    with pytest.raises(UnsupportedError, match="9 of 21"):
        call.read(PAID)


def test_newlines_are_left_out_where_the_family_tells_them(monkeypatch):
    call = Call("hunyuan_vl")
    beside = (~call.feeding().is_fed).nonzero()[:, 0].tolist()
    monkeypatch.setattr(Told, "pictures", lambda *_: [PictureLayout(((1, 12),), beside)])
    assert len(call.read(PAID)) == 12
    assert (call.read(PAID) > 0).all()


def test_a_resampler_behind_the_tower_is_no_tower():
    assert not feeds.blocks_of(nn.Linear(1, 1), nn.Linear(1, 1))
    call = Call("idefics2")
    lists = feeds.blocks_of(call.family.core, call.family.layers)
    assert [len(blocks) for blocks in lists] == [2, 1]


def test_blocks_with_windows_are_no_source_of_signals():
    call = Call("qwen2_5_omni_thinker")
    assert call.feeding().seeing == (1,)
    with pytest.raises(UnsupportedError, match="attends only within windows"):
        call.read(TowerAttention("patches", block=0))


def test_blocks_before_rows_merge_are_no_source_of_signals():
    assert Call("minicpmv4_6").feeding().seeing == (2,)
    assert Call("minicpm_ocr").feeding().seeing == (0, 1, 2)


def test_a_cls_may_be_the_last_row():
    call, seen = Call("llama4"), []
    blocks = feeds.blocks_of(call.family.core, call.family.layers)[0]
    with Patcher() as patches, torch.no_grad():
        tap(patches, blocks[-1][1][0], lambda *heads: seen.append(heads))
        call.run()
    ((queries, keys, scaling, _),) = seen
    paid = (queries[:, :, -1:] @ keys.mT * scaling).softmax(-1)[:, :, 0, :-1].sum(dim=1)
    (means,) = torch.nn.functional.avg_pool2d(paid.view(1, -1, 4, 4), 2)  # 2 x 2 patches a token
    torch.testing.assert_close(call.read(CLS[0])[:, 0], means.flatten())


def test_padding_does_not_vote():
    call = Call("lfm2_vl")
    values = [call.read(signal) for signal in (PAID, KEYS)]
    for name in ("pixel_values", "pixel_attention_mask"):
        more = call.inputs[name]
        call.inputs[name] = torch.cat((more, torch.zeros_like(more[:, :5])), dim=1)
    torch.testing.assert_close([call.read(signal) for signal in (PAID, KEYS)], values)


def test_heads_side_by_side_where_queries_share_keys():
    call = Call("exaone4_5")
    values = call.read(TowerAttention("patches", heads="joined"))
    assert (values > 0).all()
    assert not torch.allclose(values, call.read(PAID))


@pytest.mark.parametrize("trained", [True, False])
def test_models_without_gradients(trained):
    call = Call("lighton_ocr")
    known = call.feeding()
    frozen = Call("lighton_ocr")
    frozen.family.core.requires_grad_(trained)
    with torch.inference_mode():
        frozen.inputs["pixel_values"] = frozen.inputs["pixel_values"] * 1
        assert owners(feeding(frozen.family, frozen.run, frozen.inputs)) == owners(known)
    # What was told there is good for a run outside.
    torch.testing.assert_close(frozen.read(PAID), call.read(PAID))
    assert all(weight.grad is None for weight in call.family.core.parameters())


@pytest.mark.parametrize(("name", "last"), [("llava", -2), ("vipllava", -2), ("internvl", -1)])
def test_the_last_block_is_the_one_that_the_projector_reads(name, last):
    model = tiny(name)
    inputs = given(model, batch(name, ["tit"]))
    known = feeding(family_for(model), lambda **other: model.model.get_image_features(**{**inputs, **other}), inputs)
    assert known.last == len(known.attentions) + last
    assert known.attention_of(PAID) is known.attentions[known.last]
    assert known.attention_of(TowerAttention("patches", layer=1)) is known.attentions[-1]


def test_nothing_is_told_where_nothing_is_read():
    call = Call("aria")  # no reader of its tower could be served
    encode_fed(call.family, call.run, "image", call.inputs, Whole(reads=()))
    assert call.runs == 1
    assert call.family.stats is None


def test_what_is_remembered_goes_with_the_model():
    call = Call("deepseek_vl")
    call.feeding()
    before = len(feeds._FEEDINGS)
    del call
    gc.collect()
    assert len(feeds._FEEDINGS) < before


def test_a_model_is_left_as_it_was():
    call = Call("qianfan_ocr")
    call.run()  # transformers installs hooks of its own
    hooks = [len(part._forward_hooks) for part in call.family.core.modules()]
    configs = [id(getattr(part, "config", None)) for part in call.family.core.modules()]
    call.read(KEYS)
    with pytest.raises(UnsupportedError):
        call.read(TowerAttention("patches", block=7))
    assert [len(part._forward_hooks) for part in call.family.core.modules()] == hooks
    assert [id(getattr(part, "config", None)) for part in call.family.core.modules()] == configs


@pytest.mark.parametrize(
    ("keys", "mask", "options"),
    [
        (3, None, {}),
        (4, torch.full((1, 1, 4, 4), 0.5), {}),  # a bias
        (4, torch.zeros(1, 2, 4, 4), {}),  # a mask for each head
        (4, "a kernel's own", {}),
        (4, None, {"softcap": 50.0}),
        (4, None, {"s_aux": torch.zeros(2)}),
        (4, None, {"cu_seq_lens_q": torch.tensor([0, 2, 4])}),
        (4, None, {"position_ids": torch.tensor([[0, 1, 0, 1]])}),
    ],
)
def test_attention_that_queries_and_keys_do_not_tell_is_not_read(keys, mask, options):
    trace, attention = feeds._Trace(), nn.Linear(1, 1)
    queries, keys = torch.zeros(1, 2, 4, 8), torch.zeros(1, 2, keys, 8)
    trace._note(attention, queries, queries, None, {})
    assert trace.looks[attention]
    trace._note(attention, queries, keys, mask, options)
    assert trace.looks[attention] is None


class OneWay(torch.autograd.Function):
    """A kernel of quantised weights that has no backward."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return rows.clone()


def test_refuses_a_projector_without_a_backward():
    call = Call("deepseek_vl")
    call.family.core.aligner.register_forward_pre_hook(lambda module, args: OneWay.apply(args[0]))
    with pytest.raises(UnsupportedError, match="gradient"):
        call.feeding()
