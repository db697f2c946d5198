"""Positions are a stage's: one that numbers rows anew does so from its place on; later stages keep its numbers."""

from dataclasses import replace

import pytest
import torch

import foveate as fv
from foveate._transformers import cache_in, with_cache
from foveate.contract import Hidden, ImageStage, LayerStage
from foveate.core.rank import spread
from foveate.engine import runner
from tests.golden import positions_seen
from tests.invariants.alone import check_alone
from tests.models import MIXED, batch, generate, is_vision, tiny


class Renumbering(fv.Method):
    """Keeps the half with the longest rows before layer 2, and numbers what is left anew."""

    name = "renumbering"

    def stages(self, shape):
        return (LayerStage(2, keep=0.5, reads=(Hidden(),), score=length, positions="reindex"),)


def length(view):
    return view.hidden.float().norm(dim=-1)


class Pooled(fv.AveragePool):
    """Eight tokens, numbered anew."""

    name = "pooled"

    def __init__(self):
        super().__init__(tokens=8)

    def stages(self, shape):
        return tuple(replace(stage, positions="reindex") for stage in super().stages(shape))


BEFORE = fv.Uniform(layers=(1,), keep=(0.6,))
BEHIND = fv.Random(layers=(4,), keep=(0.5,))


def columns_left(ids, trace):
    """The columns of the prompt that each cut left, ascending."""
    vision = is_vision(ids)
    text, places = (~vision).nonzero()[:, 0], vision.nonzero()[:, 0]
    return [torch.cat((text, places[stage.kept[0]])).sort().values for stage in trace.stages]


def test_a_stage_numbers_from_its_place_on_and_later_ones_keep_its_numbers():
    model, inputs = tiny("llava"), batch("llava", ["titt"])
    with fv.drop(model, BEHIND + Renumbering() + BEFORE) as trace, positions_seen(model) as seen:
        generate(model, inputs, new_tokens=3)
    first, second, third = columns_left(inputs["input_ids"][0], trace)
    span = inputs["input_ids"].shape[1]
    numbers = torch.isin(second, third).nonzero()[:, 0].tolist()
    prefill = [calls[0] for calls in seen]
    assert prefill[:2] == [list(range(span)), first.tolist()]
    assert prefill[2:4] == [list(range(len(second)))] * 2
    assert prefill[4:] == [numbers] * 2
    for step in (1, 2):
        assert [calls[step] for calls in seen] == [[span + step - 1]] * 2 + [[len(second) + step - 1]] * 4


@pytest.mark.parametrize("first", [fv.VisionZip(tokens=8), Pooled()], ids=str)
def test_later_stages_keep_the_numbers_of_merged_rows(first):
    """Merged rows are stored in other columns than those of the tokens that they stand for."""
    model, inputs = tiny("llava"), batch("llava", ["titt"])
    with fv.drop(model, first + fv.Uniform(layers=(1,), keep=(0.5,))), positions_seen(model) as seen, torch.no_grad():
        model(**inputs)
    before = int(is_vision(inputs["input_ids"][0]).nonzero()[0])
    rows = len(seen[0][0])
    vision = spread(8, 4) + before
    numbers = [*range(before), *vision.tolist(), *range(before + 8, rows)]
    assert [calls[0] for calls in seen] == [list(range(rows))] + [numbers] * (len(seen) - 1)


def test_a_ragged_batch_of_such_a_chain_answers_as_its_samples_alone():
    check_alone(tiny("llava"), "llava", BEHIND + Renumbering() + BEFORE, MIXED)


def test_a_second_turn_counts_on_from_what_each_layer_holds():
    model, first = tiny("llava"), batch("llava", ["titt"])
    text = torch.tensor([[7, 8, 9]])
    with fv.drop(model, Renumbering() + BEHIND) as trace, positions_seen(model) as seen, torch.no_grad():
        cache = cache_in(model(**first, use_cache=True))
        renumbered, _ = columns_left(first["input_ids"][0], trace)
        model(input_ids=text, **with_cache(cache), use_cache=True)
    span = first["input_ids"].shape[1]
    for layer, calls in enumerate(seen):
        start = span if layer < 2 else len(renumbered)
        assert calls[1] == list(range(start, start + 3)), layer


class Behind(fv.Method):
    """Looks in the tower, or drops there and keeps position ids; then drops half of it behind the projector."""

    name = "behind"
    drops: bool = False

    def stages(self, shape):
        tower = ImageStage(look=lambda view: {"seen": torch.ones_like(view.features[:, 0])})
        if self.drops:
            tower = ImageStage(keep=0.8, score=lambda view: view.features.norm(dim=-1))
        longest = ImageStage(
            side="behind", keep=0.5, score=lambda view: view.features.norm(dim=-1), positions="reindex"
        )
        return (tower, longest)


@pytest.mark.parametrize("drops", [False, True])
def test_a_stage_behind_the_projector_numbers_anew_also_where_one_in_the_tower_sends_it_before_layer_0(drops):
    model, inputs = tiny("llava"), batch("llava", ["titt"])
    with fv.drop(model, Behind(drops=drops)) as trace, positions_seen(model) as seen:
        generate(model, inputs, new_tokens=2)
    assert trace.stages[-1].layer == 0
    left = len(columns_left(inputs["input_ids"][0], trace)[-1])
    assert left < inputs["input_ids"].shape[1] - 12
    for calls in seen:
        assert calls == [list(range(left)), [left]]


def test_steps_behind_renumbered_rows_get_tables_alone(monkeypatch):
    """Their layers run as the model calls them, but for the tables: nothing else is made for a layer."""
    model, inputs = tiny("llava"), batch("llava", ["titt"])
    made = []

    def arguments(*given):
        made.append(given)
        return own_arguments(*given)

    own_arguments = runner.own_arguments
    monkeypatch.setattr(runner, "own_arguments", arguments)
    with fv.drop(model, Renumbering()), torch.no_grad():
        output = model(**inputs, use_cache=True)
        in_prefill = len(made)
        with positions_seen(model) as seen:
            model(input_ids=inputs["input_ids"][:, -1:], **with_cache(cache_in(output)))
    assert in_prefill > 0
    assert len(made) == in_prefill
    first, *_, last = seen
    assert first[0] != last[0]
