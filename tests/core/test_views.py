"""What a stage sees: the signals it declares, made when they are asked for, and no others."""

import pytest
import torch

from foveate.contract import Attention, Cls, Keys, Text, TowerAttention
from foveate.core.views import Arriving, ImageView, LayerView, PatchView, View
from foveate.errors import SettingError

LAST, AFTER = Attention(rows="last"), Attention(rows="after")


def test_a_signal_that_is_not_declared_is_an_error_that_names_what_is():
    view = View(3, signals={LAST: torch.ones(3)})
    for read in (lambda: view[Keys()], lambda: view.keys):
        with pytest.raises(SettingError, match="last"):
            read()
    with pytest.raises(SettingError, match="nothing"):
        View(3).attention  # noqa: B018
    with pytest.raises(SettingError, match="hidden"):
        LayerView(torch.zeros(3, 2)).attention  # noqa: B018


def test_of_two_signals_of_a_kind_each_is_named():
    view = View(2, signals={LAST: torch.zeros(2), AFTER: torch.ones(2)})
    assert (view[LAST].tolist(), view[AFTER].tolist()) == ([0.0, 0.0], [1.0, 1.0])
    with pytest.raises(SettingError, match="attention"):
        view.attention  # noqa: B018


def test_what_is_made_on_demand_is_made_once():
    calls = []

    def make():
        calls.append(None)
        return torch.ones(3)

    view = LayerView(count=3, hidden=make, signals={LAST: make})
    assert calls == []
    assert view.hidden is view.hidden
    assert len(calls) == 1
    assert view[LAST] is view.attention is view[LAST]
    assert len(calls) == 2


def test_a_view_made_by_hand_answers_for_any_signal_of_a_kind():
    view = LayerView(attention=torch.ones(3), hidden_before=torch.zeros(3, 2))
    assert view[LAST] is view[AFTER] is view.attention
    assert torch.equal(view.hidden_before, torch.zeros(3, 2))


def test_a_signal_that_a_model_may_lack_can_be_asked_for():
    assert Cls() in ImageView(torch.zeros(4, 2), cls=torch.zeros(1, 2))
    assert Cls() not in ImageView(torch.zeros(4, 2))
    assert LAST in View(2, signals={LAST: torch.zeros(2)})
    assert AFTER not in View(2, signals={LAST: torch.zeros(2)})


def test_tokens_are_all_in_order_and_none_has_left_unless_it_is_said():
    view = View(3)
    assert (len(view), view.tokens.tolist()) == (3, [0, 1, 2])
    assert view.arriving == Arriving(3, 3, 3) == Arriving.all_of(3)
    known = View(2, tokens=torch.tensor([4, -1]), arriving=Arriving(2, 9, 5), notes={"key": torch.ones(2)})
    assert (known.tokens.tolist(), known.arriving.entered) == ([4, -1], 9)
    assert list(known.notes) == ["key"]


def test_notes_written_to_a_view_would_be_lost():
    with pytest.raises(TypeError, match="item"):
        View(2, notes={}).notes["key"] = torch.ones(2)


def test_a_layer_view_counts_its_tokens_by_any_tensor():
    assert len(LayerView(torch.zeros(5, 2))) == 5
    assert len(LayerView(attention=torch.zeros(4))) == 4
    assert len(LayerView(tokens=torch.arange(3))) == 3
    assert len(LayerView(text=torch.zeros(9, 2), keys=torch.zeros(4, 2))) == 4
    assert len(LayerView(signals={Text(): torch.zeros(9, 2), LAST: torch.zeros(2)})) == 2
    assert len(LayerView(signals={LAST: torch.zeros(2)})) == 2
    assert len(LayerView(count=1)) == 1
    assert LayerView(count=1).text_behind


def test_an_image_view_knows_its_grids():
    plain = ImageView(torch.zeros(6, 2), grid=(2, 3))
    assert (plain.grids, plain.arriving.grids) == (((2, 3),), ((2, 3),))
    frames = ImageView(torch.zeros(8, 2), grids=[(2, 2), (2, 2)], signals={TowerAttention(): torch.zeros(8)})
    assert (frames.grid, frames.grids) == (None, ((2, 2), (2, 2)))
    assert torch.equal(frames.attention, torch.zeros(8))
    assert ImageView(torch.zeros(4, 2)).grids == ()
    patches = PatchView(torch.zeros(6, 2), (2, 3))
    assert (len(patches), patches.grid, patches.patches.shape) == (6, (2, 3), (6, 2))


def test_frames_are_known_of_videos_and_a_picture_is_one():
    views = ((2, 2), (1, 3))
    assert Arriving(7, 7, 7, grids=views, video=True).frames == (4, 3)
    assert Arriving(7, 7, 7, grids=views, video=False).frames == (7,)
    assert Arriving(7, 7, 7, video=False).frames == (7,)
    assert Arriving(4, 4, 4, grids=((2, 2),)).frames == (4,)
    assert Arriving(7, 7, 7, grids=views).frames is None  # frames or tiles
    assert Arriving(7, 7, 7, video=True).frames is None
