"""What enters a decoder that foveate does not run: the same rows as enter foveate's own, images alike together."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import CLIPVisionConfig

import foveate as fv
from foveate.contract import Attention, LayerStage, TowerAttention
from foveate.core.views import TowerView
from foveate.errors import UnsupportedError
from foveate.families.vision import PictureLayout
from foveate.hosts import Host, Reducer
from foveate.naming import parse
from tests.models import batch, config_of, is_vision, tiny

TOKENS = 36


HOST = Host("the test", "Use transformers.", tower=True)


def early(method, host=HOST, kind="llava"):
    return Reducer(method, 6, SimpleNamespace(model_type=kind, vision_config=CLIPVisionConfig()), host)


def shown(seed):
    rng = torch.Generator().manual_seed(seed)
    features, keys = torch.randn(TOKENS, 8, generator=rng), torch.randn(TOKENS, 4, generator=rng)
    scores, cls = torch.rand(TOKENS, 1, generator=rng), torch.randn(1, 8, generator=rng)

    def signal_of(signal):
        return scores if isinstance(signal, TowerAttention) else keys

    return TowerView(features, (6, 6), cls, signal_of, entered=TOKENS, grids=((6, 6),))


def doubled(images):
    return [torch.cat((rows, 2 * rows), dim=-1) for rows in images]


METHODS = ("visionzip", "divprune", "averagepool", "holov", "visionzip:retention=0.5+divprune", "tome")


def test_of_a_video_as_many_rows_enter_as_were_counted():
    stages = early(parse("dycoke").with_budget(retention=0.5))
    views = [replace(shown(seed), grid=None, grids=((3, 3),) * 4) for seed in (0, 1)]
    count = stages.count(TOKENS, views[0].grids, video=True)
    assert count == TOKENS // 2
    assert [len(rows) for rows in stages.enter(views, doubled, video=True)] == [count, count]
    assert stages.count(TOKENS, views[0].grids) == TOKENS  # a picture in four views stays whole


@pytest.mark.parametrize("name", METHODS)
def test_as_many_rows_enter_as_were_counted_and_images_alike_get_together_what_they_get_alone(name):
    stages = early(parse(name).with_budget(tokens=9))
    assert stages.late == ()
    together = stages.enter([shown(0), shown(1), shown(2)], doubled)
    assert [len(rows) for rows in together] == [stages.count(TOKENS, [(6, 6)])] * 3
    for seed, image in enumerate(together):
        (alone,) = stages.enter([shown(seed)], doubled)
        torch.testing.assert_close(image.rows, alone.rows, atol=1e-6, rtol=0)


def test_rows_are_dropped_before_they_are_projected():
    seen = []

    def project(images):
        seen.extend(len(rows) for rows in images)
        return doubled(images)

    view = shown(0)
    (image,) = early(fv.VisPruner(tokens=5)).enter([view], project)
    assert seen == [5]
    # Every row is one of the image's own.
    assert all((view.features == row[:8]).all(dim=1).any() for row in image.rows)


def test_a_stage_before_layer_0_sees_what_the_projector_makes():
    view = shown(0)
    (image,) = early(fv.DivPrune(tokens=4)).enter([view], doubled)
    features = doubled([view.features])[0]
    unit = features / features.norm(dim=1, keepdim=True)
    similar = unit @ unit.T
    kept = [int((features == row).all(dim=1).nonzero()[0, 0]) for row in image.rows]
    # Max-min diversity, by its definition: each token picked later is the farthest from those picked before.
    distance = 1 - similar
    left = [token for token in range(TOKENS) if token not in kept]
    nearest = [distance[token, kept].min() for token in left]
    among = min(distance[one, other] for one in kept for other in kept if one != other)
    assert max(nearest) <= among + 1e-6


def test_stages_between_layers_are_late():
    stages = early(fv.VisionZip(tokens=9) + fv.V2Drop(layers=(2, 4), keep=(0.5, 0.5)))
    assert [stage.layer for stage in stages.late] == [2, 4]
    assert stages.count(TOKENS, [(6, 6)]) == 9


def test_attention_before_layer_0_is_refused():
    class Asking(fv.Random):
        name = "asking"

        def stages(self, shape):
            signal = Attention(rows="last", layer="next")
            return (LayerStage(0, keep=0.5, reads=(signal,), score=lambda view: view[signal]),)

    with pytest.raises(UnsupportedError, match="foveate"):
        early(Asking(), ROWS)


ROWS = Host("the test", "Use transformers.", prompts=True)
UNKNOWN = PictureLayout()


def rows_entering(family, word):
    """What enters a tiny model's decoder: the rows of each image and those behind it, and the images' columns."""
    model, inputs = tiny(family), batch(family, [word])
    entered = {}

    def note(_, args, kwargs):
        entered["rows"] = (args or [kwargs["hidden_states"]])[0][0]

    hook = model.get_decoder().layers[0].register_forward_pre_hook(note, with_kwargs=True)
    with torch.no_grad():
        model(**inputs)
    hook.remove()
    vision = is_vision(inputs["input_ids"][0]).long()
    edges = vision.diff(prepend=vision.new_zeros(1)).nonzero()[:, 0].tolist()  # where images and texts begin in turn
    ends = [*edges[1:], len(vision)]
    parts = [entered["rows"][start:end] for start, end in zip(edges, ends, strict=True)]
    return inputs, parts[::2], parts[1::2]


READING = ("cdpruner", "mmtok", "random:layers=0", "uniform:layers=0", "cdpruner:retention=0.7+divprune")


@pytest.mark.parametrize("family", ["qwen2_vl", "gemma3"])
@pytest.mark.parametrize("name", READING)
@pytest.mark.parametrize("word", ["tit", "titit"])
def test_images_of_a_prompt_lose_with_its_text_what_they_lose_on_transformers(family, name, word):
    model, method = tiny(family), parse(name).with_budget(retention=0.4)
    inputs, images, text = rows_entering(family, word)
    entered = Reducer(method, 6, config_of(family), ROWS).reduce(images, [UNKNOWN] * len(images), text=text)
    with fv.drop(model, method) as trace, torch.no_grad():
        model(**inputs)
    starts = [sum(map(len, images[:index])) for index in range(len(images))]
    kept = [start + image.source for start, image in zip(starts, entered, strict=True)]
    assert torch.cat(kept).tolist() == trace.stages[-1].kept[0].tolist()
    for image, own in zip(images, entered, strict=True):
        assert torch.equal(own.rows, image[own.source])


def test_frames_of_a_video_are_ranked_one_by_one_before_layer_0():
    film = torch.randn(36, 8, generator=torch.Generator().manual_seed(0))
    stages = early(parse("cdpruner:scope=frame").with_budget(retention=1 / 3), ROWS)
    layout = PictureLayout(((3, 3),) * 4)
    (entered,) = stages.reduce([film], [layout], True, [film[:2]])
    assert torch.bincount(entered.source // 9).tolist() == [3, 3, 3, 3]


@pytest.mark.parametrize("name", ["visionzip", "resize", "tome", "mmtok", "mfpruner", "hawk", "fastvid", "pixelprune"])
def test_a_host_that_shows_rows_alone_refuses_what_reads_more(name):
    with pytest.raises(UnsupportedError, match=r"tower|layer 0"):
        early(parse(name), ROWS)


@pytest.mark.parametrize("name", ["cdpruner", "random:layers=0"])
def test_a_host_that_does_not_know_the_prompt_refuses_what_reads_it(name):
    with pytest.raises(UnsupportedError, match=r"prompt|question"):
        early(parse(name), replace(ROWS, prompts=False))


def test_of_a_model_without_a_family_the_rows_are_enough():
    (kept,) = early(fv.DivPrune(tokens=4), ROWS, "of_nobody").reduce([torch.eye(9)], [UNKNOWN])
    assert len(kept) == 4
    with pytest.raises(UnsupportedError, match="tower"):
        early(fv.MMTok(tokens=4), ROWS, "of_nobody")
