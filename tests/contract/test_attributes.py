"""Class attributes that the guides name: each is read, so two values of it behave differently."""

import itertools
import re
from inspect import get_annotations
from pathlib import Path
from typing import ClassVar, get_origin

import pytest
import torch

import foveate as fv
from foveate.contract import (
    Count,
    Cuts,
    Frames,
    Hidden,
    Layers,
    LayerView,
    Once,
    Part,
    Positions,
    Shape,
    Shares,
    Unit,
    follow,
)
from foveate.tuning.candidates import grid

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "new-method.md"


class Own(Cuts):
    name = "own"
    reads = (Hidden(),)

    layers: Layers | None = None
    keep: Shares | None = None
    min_keep: Count = 1
    scope: Unit = "sample"
    positions: Positions = "keep"

    def score(self, view, layer):
        return view.hidden[:, 0]


class OneUnit(Cuts):
    name = "one_unit"


class Single(Own):
    layers_setting = "layer"
    layer: int = 3


class Entering(Once):
    name = "entering"
    keep: Part | None = None
    scope: Unit = "image"
    positions: Positions = "keep"


class Film(Frames):
    name = "film"
    keep: Part | None = None

    def select(self, features, count):
        return torch.arange(count)


def own(base=Own, **attributes):
    """The class with these class attributes."""
    return type(base.__name__, (base,), attributes)


def cuts(kind, depth=32, **settings):
    return follow.cut_layers(kind(**settings).stages(Shape(depth)))


def left(kind, tokens=100, depth=32, grids=None, videos=None, **settings):
    """The tokens of the last layer."""
    return kind(**settings).plan(depth, (tokens,), grids, videos)[-1]


def unit_and_positions(kind, **settings):
    (stage, *_) = kind(**settings).stages(Shape(32))
    return stage.unit, stage.positions


def picked(kind):
    """Which of four tokens the first cut keeps of a half."""
    (stage, *_) = kind(layers=(4,), keep=(0.5,)).stages(Shape(32))
    return stage.cut(LayerView(torch.arange(8.0).view(4, 2))).source.tolist()


def score_up(self, view, layer):
    return view.hidden[:, 0]


def score_down(self, view, layer):
    return -view.hidden[:, 0]


def pick_first(self, view, count):
    return torch.arange(count)


def pick_last(self, view, count):
    return torch.arange(count) + len(view) - count


def refuse(self):
    raise fv.SettingError("These settings contradict each other.")


def taken(kind, **settings):
    """Whether the settings are taken."""
    try:
        return bool(kind(**settings))
    except fv.SettingError:
        return False


FILM = {"tokens": 96, "grids": [[(4, 4)] * 6], "videos": [True]}
READ = {
    "usual_layers": (
        lambda at: cuts(own(usual_layers=at, usual_keep=(0.5, 0.2))),
        [(8, 20), (2, 4)],
        [(8, 20), (2, 4)],
    ),
    "usual_layers of one": (lambda at: cuts(own(usual_layers=at, usual_keep=(0.5,))), [(8,), (20,)], [(8,), (20,)]),
    "usual_keep": (lambda keep: left(own(usual_keep=keep)), [(0.5, 0.5, 0.4), (0.9, 0.5, 1.0)], [10, 45]),
    "first_layer": (lambda at: cuts(own(first_layer=at), 12), [0, 2], [(1, 7, 9), (2, 7, 9)]),
    "behind": (lambda by: cuts(own(behind=by)), [0, 1], [(3, 17, 22), (4, 18, 23)]),
    "layers_setting": (
        lambda name: cuts(own(Single, layers_setting=name), keep=None),
        ["layer", "layers"],
        [(3,), (3, 17, 22)],
    ),
    "unit": (lambda unit: unit_and_positions(own(OneUnit, unit=unit))[0], ["image", "frame"], ["image", "frame"]),
    "layers": (lambda at: cuts(Own, layers=at, keep=(0.5,)), [(4,), (9,)], [(4,), (9,)]),
    "keep": (lambda keep: left(Own, layers=(4,), keep=keep), [(0.5,), (0.25,)], [50, 25]),
    "min_keep": (lambda least: left(Own, layers=(4,), keep=(0.0,), min_keep=least), [1, 7], [1, 7]),
    "min_keep of a geometric budget": (
        lambda least: left(own(falls="geometric"), layers=(1, 2), retention=0.1, min_keep=least),
        [1, 7],
        [6, 7],
    ),
    "min_keep of a proportional budget": (
        lambda least: left(
            own(falls="proportional", usual_keep=(0.5, 0.1)), layers=(1, 2), retention=0.1, min_keep=least
        ),
        [1, 7],
        [6, 7],
    ),
    "scope": (lambda unit: unit_and_positions(Own, scope=unit)[0], ["sample", "image"], ["sample", "image"]),
    "positions": (lambda word: unit_and_positions(Own, positions=word)[1], ["keep", "reindex"], ["keep", "reindex"]),
    "Once.usual": (lambda share: left(own(Entering, usual=share)), [0.5, 0.25], [50, 25]),
    "Once.keep": (lambda share: left(Entering, keep=share), [0.5, 0.25], [50, 25]),
    "Once.halves_up": (lambda up: left(own(Entering, halves_up=up), keep=0.025), [False, True], [2, 3]),
    "Once.scope": (lambda unit: unit_and_positions(Entering, scope=unit)[0], ["image", "sample"], ["image", "sample"]),
    "Once.positions": (
        lambda word: unit_and_positions(Entering, positions=word)[1],
        ["keep", "reindex"],
        ["keep", "reindex"],
    ),
    "Frames.usual": (lambda share: left(own(Film, usual=share), **FILM), [0.5, 0.25], [48, 24]),
    "Frames.keep": (lambda share: left(Film, **FILM, keep=share), [0.5, 0.25], [48, 24]),
    "Frames.positions": (
        lambda word: unit_and_positions(Film, positions=word)[1],
        ["keep", "reindex"],
        ["keep", "reindex"],
    ),
    "Frames.only_videos": (
        lambda only: left(own(Film, only_videos=only), 16, grids=[[(4, 4)]], videos=[False], retention=0.5),
        [False, True],
        [8, 16],
    ),
    "a default without a type": (lambda keep: left(own(layers=(4,), keep=keep)), [(0.5,), (0.25,)], [50, 25]),
    "searched": (
        lambda values: len(grid(own(searched={"min_keep": values})(), 32)),
        [(1,), (1, 2)],
        [3, 6],
    ),
    "name": (lambda name: str(own(name=name)()), ["mine", "yours"], ["mine", "yours"]),
    "reads": (
        lambda reads: own(reads=reads)().stages(Shape(32))[0].reads,
        [(Hidden(),), (Hidden(back=1),)],
        [(Hidden(),), (Hidden(back=1),)],
    ),
    "score": (lambda score: picked(own(score=score)), [score_up, score_down], [[2, 3], [0, 1]]),
    "pick": (lambda pick: picked(own(pick=pick)), [pick_first, pick_last], [[0, 1], [2, 3]]),
    "steps": (lambda steps: len(own(steps=steps)().stages(Shape(32))), [lambda *_: (), Own.steps], [0, 3]),
    "stages": (lambda stages: len(own(stages=stages)().placed(Shape(32))), [lambda *_: (), Own.stages], [0, 3]),
    "check_settings": (lambda check: taken(own(check_settings=check)), [lambda self: None, refuse], [True, False]),
    "schedule": (
        lambda names: own(schedule=names)(keep=(0.5, 0.3, 0.1)).open,
        [("keep",), ("other",)],
        [False, True],
    ),
    "only_one": (
        lambda only: taken(own(schedule=("keep", "layers"), only_one=only), layers=(4,), keep=(0.5,)),
        [False, True],
        [True, False],
    ),
    "falls": (
        lambda how: own(falls=how)(layers=(1, 2), retention=0.3).plan(4, (100,)),
        ["geometric", "v2drop"],
        [(100, 15, 2, 2), (100, 18, 1, 1)],
    ),
    "whole_at": (
        lambda at: len(own(whole_at=at)(min_keep=5).stages(Shape(32))),
        [("min_keep", 4), ("min_keep", 5)],
        [3, 0],
    ),
}
"""What shows the attribute, two values of it, and what each must show."""


@pytest.mark.parametrize("name", READ)
def test_two_values_of_a_class_attribute_behave_differently(name):
    show, values, shown = READ[name]
    assert [show(value) for value in values] == shown


def test_every_class_attribute_is_driven_here():
    """All that the guide names, and all class variables of the bases that it tells authors to derive from."""
    named = set(re.findall(r"`(\w+)(?: = [^`]*)?`", GUIDE.read_text())) & set(dir(Cuts)) - {"count", "rows", "tokens"}
    seen = set()
    for prefix, base in {"": Cuts, "Once.": Once, "Frames.": Frames}.items():
        own = {
            name
            for kind in base.__mro__
            for name, hint in get_annotations(kind).items()
            if get_origin(hint) is ClassVar
        }
        named |= {f"{prefix}{name}" for name in own - seen if name[0] != "_"}
        seen |= own
    assert named - {"usual"} <= {name.partition(" ")[0] for name in READ}


@pytest.mark.parametrize("usual", [(0,), (2,), (20,), (8, 20), (1, 2), (3, 17, 22), (30, 31), (2, 9, 14, 20, 31)])
def test_usual_layers_keep_their_place_at_every_depth(usual):
    kinds = [own(usual_layers=usual, usual_keep=(0.5,) * len(usual), first_layer=first) for first in range(4)]
    for (first, kind), depth in itertools.product(enumerate(kinds), (*range(4, 41), 64)):
        if depth < first + len(usual):
            with pytest.raises(fv.SettingError, match=rf"Own .*{first + len(usual)} layers or more; got {depth}"):
                cuts(kind, depth)
            continue
        at = cuts(kind, depth)
        assert len(at) == len(usual)  # each layer once
        assert first <= at[0] < at[-1] + 1 <= depth
        off = [abs(layer - written * depth / 32) for layer, written in zip(at, usual, strict=True)]
        assert usual == Cuts.usual_layers or max(off) <= len(usual) + first
        assert kind().plan(depth, (100,)) != kind(retention=0.99).plan(depth, (100,))


@pytest.mark.parametrize("usual", [(20, 8), (8, 8), (3, 40), (-1, 4)])
def test_usual_layers_that_no_32_layers_have_are_refused(usual):
    with pytest.raises(fv.SettingError, match="Own: usual_layers"):
        cuts(own(usual_layers=usual, usual_keep=(0.5, 0.2)))


def test_a_layer_that_reads_too_far_back_is_not_a_usual_one():
    assert cuts(own(reads=(Hidden(back=3),)), 8)[0] == 3


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (own(first_layer=2), {"layers": (1, 4), "keep": (0.5, 0.5)}),
        (own(reads=(Hidden(back=2),)), {"layers": (1, 4), "keep": (0.5, 0.5)}),
        (own(Single, first_layer=4), {}),
        (own(first_layer=2, check_settings=lambda self: None), {"layers": (1,), "keep": (0.5,)}),
        (own(Single, layers_setting="layer", layer=3, usual_keep=(0.5, 0.2)), {}),
        (own(usual_keep=0.5), {}),
    ],
)
def test_what_an_attribute_forbids_is_refused_by_the_methods_name(kind, settings):
    with pytest.raises(fv.SettingError, match=f"{kind.__name__}: layer"):
        kind(**settings).plan(32, (100,))


def test_the_cut_after_the_first_layer_is_allowed_where_the_setting_names_the_layer_before():
    assert cuts(own(first_layer=2, behind=1), layers=(1,), keep=(0.5,)) == (2,)
