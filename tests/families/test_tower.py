"""LLaVA-1.5's class with other towers than CLIP, or with a CLS among its vision tokens."""

import functools
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
import transformers

import foveate as fv
from foveate.contract import ImageStage, Method, Once, Part, PatchView, TowerAttention, TowerKeys, TowerStage
from foveate.families.support import reach
from foveate.methods.averagepool import AveragePool
from foveate.methods.mustdrop import MustDrop
from foveate.methods.resize import Resize
from foveate.registry import family_for
from tests.models import FAMILIES, TINY, batch, generate, made_of, tiny
from tests.tiny import CLIP, IMAGE, TEXT

SIGLIP = {key: value for key, value in CLIP.items() if key not in ("projection_dim", "initializer_range")}
TOWERS = {
    "clip": lambda: transformers.CLIPVisionConfig(**CLIP),
    "siglip": lambda: transformers.SiglipVisionConfig(**SIGLIP),
    "pixtral": lambda: transformers.PixtralVisionConfig(**{**SIGLIP, "image_size": 140}),
}
METHODS = {"tower": fv.VisionDrop(dominant=9, layer_list=(), image_token_list=()), "resize": Resize(keep=0.4)}
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


def config_of(tower, strategy, layer=-1):
    return transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**TEXT), vision_config=TOWERS[tower](), image_token_index=IMAGE,
        vision_feature_layer=layer, vision_feature_select_strategy=strategy,
    )  # fmt: skip


@functools.cache
def llava(tower, strategy):
    return made_of("llava", config_of(tower, strategy))


def prompt(pixels, count, **more):
    return {"input_ids": torch.tensor([[1, 5, *[IMAGE] * count, 6, 7]]), "pixel_values": pixels, **more}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize(
    ("tower", "strategy", "count", "why"),
    [
        ("clip", "full", 26, "uses the tower's CLS as a vision token"),
        ("siglip", "default", 24, "drops a patch as if it were a CLS"),
        ("pixtral", "full", 25, "has no encoder.layers"),
    ],
)
def test_tokens_that_are_no_grid_are_not_reduced_in_the_tower(tower, strategy, count, why, method):
    model, inputs = llava(tower, strategy), prompt(torch.randn(1, 3, 70, 70), count)
    if tower == "pixtral":
        inputs["image_sizes"] = torch.tensor([[70, 70]])
    with fv.drop(model, method), torch.no_grad(), pytest.raises(fv.UnsupportedError, match=why):
        model(**inputs)
    with fv.drop(model, fv.V2Drop(layers=(1,), keep=(0.5,))) as trace, torch.no_grad():
        model(**inputs)
    assert trace.stages[0].after == (count // 2,)


def test_pictures_of_any_shape_are_pooled_as_they_are():
    model, sizes = llava("pixtral", "full"), torch.tensor([[42, 98], [70, 28]])
    pixels, ids = torch.randn(2, 3, 70, 98), [1, 5, *[IMAGE] * 21, 6, *[IMAGE] * 10, 7]
    with fv.drop(model, AveragePool(keep=0.3)) as trace, torch.no_grad():
        output = model.model.get_image_features(pixel_values=pixels, image_sizes=sizes)
        model(input_ids=torch.tensor([ids]), pixel_values=pixels, image_sizes=sizes)
    assert [boxes[-1].tolist() for boxes in trace.latest.boxes[0]] == [
        pytest.approx([6 / 7, 2 / 3, 1, 1]), pytest.approx([1 / 2, 4 / 5, 1, 1])
    ]  # fmt: skip
    assert [len(one._foveate.cut.source) for one in output.pooler_output] == [6, 3]
    assert trace.stages[0].after == (9,)


@pytest.mark.parametrize(
    ("tower", "strategy", "count"),
    [("clip", "default", 25), ("clip", "full", 26), ("siglip", "full", 25), ("siglip", "default", 24)],
)
def test_a_budget_counts_the_towers_tokens_whatever_image_seq_length_says(tower, strategy, count):
    model = llava(tower, strategy)
    assert model.config.image_seq_length == 576
    assert family_for(model).fixed_count(model.config) == count
    pixels = torch.randn(1, 3, 70, 70)
    with fv.drop(model, fv.Uniform.for_budget(model, tokens=count / 2, layers=(0,))) as trace, torch.no_grad():
        model(**prompt(pixels, count))
    assert trace.stages[0].after == (count // 2,)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fixed_count_is_that_of_every_picture(family):
    kind, config = fv.families()[family], tiny(family).config
    count = kind.fixed_count(config)
    assert (count is None) == (family not in ("llava", "vipllava", "paligemma"))
    if count is not None:
        assert int((batch(family, ["i"])["input_ids"] == IMAGE).sum()) == count
    assert fv.families()["llava"].fixed_count(llava("pixtral", "full").config) is None


def test_what_one_picture_cannot_spend_is_refused_as_dropping_begins():
    model = llava("clip", "default")
    deep = fv.V2Drop.for_budget(model, tokens=3, layers=(3,))
    with pytest.raises(fv.BudgetError, match="3 of 25"), fv.drop(model, deep):
        pass
    with fv.drop(model, fv.V2Drop(tokens=40, layers=(3,))):  # of two pictures
        pass


def test_merging_early_reaches_a_projector_that_reads_the_first_layer():
    """Whether or not transformers has installed by then what captures hidden states, behind which nothing merges."""
    config = tiny("llava").config.__class__(**{**tiny("llava").config.to_dict(), "vision_feature_layer": [1, -1]})
    inputs, signals = batch("llava", ["titit"]), []
    method = MustDrop(pruning_layers=(1,), merge_threshold=-1.0, merge_window=2)
    for warm in (False, True):
        model = made_of("llava", config)
        if warm:
            generate(model, inputs, new_tokens=1)
        with fv.drop(model, method) as trace:
            signals.append(torch.cat(generate(model, inputs, new_tokens=2).logits))
        assert trace.stages[0].after == (2 * (25 - 3 * 4),)
    torch.testing.assert_close(*signals, **CLOSE)


class Noting(MustDrop):
    """Notes what it is shown of each picture."""

    merges: ClassVar[list[Any]] = []
    seen: ClassVar[list[Any]] = []

    def stages(self, shape):
        by = "cls" if shape.cls else "patches"
        reads = (TowerAttention(by, layer=0), TowerAttention(by, layer=1), TowerKeys())

        def look(view):
            self.seen.append((len(view), *(view[signal] for signal in reads)))
            return {}

        return (*super().stages(shape), ImageStage(reads=reads, look=look))

    def _merge(self, view, count):
        self.merges.append(super()._merge(view, count))
        return self.merges[-1]


@pytest.mark.parametrize(("tower", "strategy"), [("clip", "default"), ("siglip", "full")])
@pytest.mark.parametrize("depth", [1, 2])
def test_where_the_first_layer_scores_and_merges_scores_and_keys_are_means(tower, strategy, depth):
    config = config_of(tower, strategy, layer=1)
    config.vision_config.num_hidden_layers, config.vision_config._attn_implementation = depth, "eager"
    model, cls = made_of("llava", config), int(strategy == "default")
    pixels = torch.randn(2, 3, 70, 70, generator=torch.Generator().manual_seed(0))
    Noting.merges.clear()
    Noting.seen.clear()
    with fv.drop(model, Noting(pruning_layers=(1,), merge_threshold=-1.0, merge_window=2)) as trace, torch.no_grad():
        model(**prompt(pixels, 50))
    with torch.no_grad():
        paid = model.model.vision_tower(pixels, output_attentions=True).attentions[0]  # (images, heads, rows, columns)
    own = paid[:, :, 0, 1:].sum(dim=1) if cls else paid.mean(dim=1).mean(dim=1)
    assert trace.stages[0].after == (2 * 13,)
    for image, merge, (count, scores, later, keys) in zip(own, Noting.merges, Noting.seen, strict=True):
        assert count == int(merge.count) == 13
        means = [image[merge.parent == row].mean() for row in range(13)]
        torch.testing.assert_close(scores, torch.stack(means), **CLOSE)
        assert later.shape == (13,)
        assert torch.equal(later, scores) == (depth == 1)
        assert len(keys) == 13


@pytest.mark.parametrize("threshold", [-1.0, 2.0])
def test_a_tower_without_a_cls_merges_behind_its_first_layer_or_not_at_all(threshold):
    """Pictures with nothing to merge there go through as they are, all at once."""
    model, method = llava("siglip", "full"), MustDrop(merge_threshold=threshold, merge_window=2, filter=False)
    pixels = torch.randn(2, 3, 70, 70, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = model.model.get_image_features(pixels).pooler_output
        with fv.drop(model, method) as trace:
            mine = model.model.get_image_features(pixels).pooler_output
            model(**prompt(pixels, 50))
    assert trace.stages == [] if threshold > 1 else trace.stages[0].after == (26,)
    assert all(torch.equal(*pair) for pair in zip(whole, mine, strict=True)) == (threshold > 1)


@pytest.mark.parametrize("cls", [True, False])
def test_pictures_that_merge_differently_come_out_as_each_alone(cls):
    model = llava("clip", "default") if cls else llava("siglip", "full")
    pixels = torch.randn(5, 3, 70, 70, generator=torch.Generator().manual_seed(2))
    pixels[1, :, :42, :42], pixels[3] = 0.5, -0.5  # of four windows some are flat, or all
    method = MustDrop(merge_threshold=0.4, merge_window=2, filter=False)
    with fv.drop(model, method), torch.no_grad():
        together = model.model.get_image_features(pixels).pooler_output
        alone = [model.model.get_image_features(one[None]).pooler_output[0] for one in pixels]
    counts = [len(one._foveate.cut.source) for one in alone]
    assert [len(one._foveate.cut.source) for one in together] == counts
    assert len(set(counts)) > 2
    for one, other, count in zip(together, alone, counts, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)
        if count < 25:
            assert torch.equal(one._foveate.cut.parent, other._foveate.cut.parent)
        assert not one[count:].any()


def longest(view):
    return (view.patches if isinstance(view, PatchView) else view.features).float().norm(dim=-1)


class Strong(Once):
    """Keeps the patches with the largest states in the tower, or behind it."""

    name = "strong"
    keep: Part | None = None
    inside: bool = True

    def steps(self, shape):
        place = {"count": self.rows, "score": longest}
        return (TowerStage(1, **place) if self.inside else ImageStage(side="behind", **place),)


class Frames(Method):
    """Keeps a share of each picture, and of a video as many tokens as it has frames."""

    name = "frames"
    inside: bool = True

    def stages(self, shape):
        place = {"count": lambda arriving: len(arriving.frames or (0, 0)), "score": longest}
        return (TowerStage(1, **place) if self.inside else ImageStage(side="behind", **place),)


class Halves(Frames):
    """Keeps half."""

    name = "halves"

    def stages(self, shape):
        place = {"keep": 0.5, "score": longest}
        return (TowerStage(1, **place) if self.inside else ImageStage(side="behind", **place),)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", [Strong(keep=0.4), Strong(keep=0.3), Strong(tokens=5), Frames(), Halves()], ids=str)
def test_a_stage_in_the_tower_that_only_selects_keeps_as_many_as_one_behind_it(family, method):
    model, behind = tiny(family), replace(method, inside=False)
    if isinstance(refused := reach(method, fv.families()[family], model.config), str):
        with pytest.raises(fv.UnsupportedError, match=method.name), fv.drop(model, method):
            pass
        assert "foveate cannot do" in refused
        return
    for words in ["tit"], ["titit"], ["tit", "titit"], ["tvt"] if TINY[family].videos else ["ti"]:
        left = []
        for at in method, behind:
            with fv.drop(model, at) as trace, torch.no_grad():
                model(**batch(family, words))
            left.append([(stage.before, stage.after) for stage in trace.stages])
        assert left[0] == left[1]
        assert left[0]


class Middle(Method):
    """Keeps the longest patches before a block of the tower."""

    name = "middle"
    block: int = 2

    def stages(self, shape):
        return (TowerStage(self.block, keep=0.4, score=longest),)


def by_hand(model, pixels, block):
    """Features of pictures whose longest patches alone pass this block of the tower and the later ones."""
    tower = model.model.vision_tower

    def cut(module, args, output):
        patches = output[:, 1:]
        count = int(0.4 * patches.shape[1])
        order = patches.norm(dim=-1).sort(dim=1, descending=True, stable=True).indices[:, :count].sort(dim=1).values
        return torch.cat((output[:, :1], patches.take_along_dim(order[..., None], dim=1)), dim=1)

    handle = tower.encoder.layers[block - 1].register_forward_hook(cut)
    try:
        return model.model.get_image_features(pixels).pooler_output
    finally:
        handle.remove()


@functools.cache
def deep():
    """A tower of fourteen blocks, of which the last but one gives the features."""
    config = config_of("clip", "default", -2)
    config.vision_config.num_hidden_layers = 14
    return made_of("llava", config)


@pytest.mark.parametrize("block", [1, 5, 12])
def test_a_stage_in_the_middle_of_a_tower_lets_later_blocks_run_on_what_is_left(block):
    model, inputs = deep(), batch("llava", ["titit", "tit"])
    pixels = inputs["pixel_values"]
    with torch.no_grad():
        expected = by_hand(model, pixels, block)
        with fv.drop(model, Middle(block=block)) as trace:
            reduced = model.model.get_image_features(pixels).pooler_output
            model(**inputs)
    (stage,) = trace.stages
    assert (stage.where, stage.before, stage.after) == ("tower", (50, 25), (20, 10))
    for one, other in zip(reduced, expected, strict=True):
        torch.testing.assert_close(one[: len(other)], other, **CLOSE)
        assert not one[len(other) :].any()


def test_a_stage_behind_the_features_is_refused():
    with fv.drop(tiny("llava"), Middle(block=9)), pytest.raises(fv.UnsupportedError, match="Cut before block"):
        tiny("llava")(**batch("llava", ["tit"]))
