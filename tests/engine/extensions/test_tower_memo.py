"""A tower looks once at what it was shown before, and again where anything that its output depends on differs."""

import copy
from collections import deque
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves
from transformers.modeling_outputs import BaseModelOutput

import foveate as fv
from foveate.core.patching import Patcher
from foveate.engine.doors import drop_or_not
from foveate.engine.extensions.tower_memo import KEPT, TowerMemo, tower_state
from foveate.registry import family_for
from tests import models
from tests.derived.test_derived import SERVED, one_in_seven, tiny
from tests.invariants.settings import examples
from tests.recorder import Sides

TYPES = [*models.FAMILIES, *SERVED]
EXAMPLES = examples()[0]
FAMILIES = {*models.FAMILIES}
WITHOUT_TOWER = ["fuyu"]
"""Types whose pixels go through one linear layer."""


class Tower:
    """Counts the pictures of each look."""

    def __init__(self):
        self.looks = []

    def __call__(self, pixels, *sizes, **options):
        self.looks.append(len(pixels))
        return BaseModelOutput(last_hidden_state=2 * pixels.flatten(1), hidden_states=(pixels.flatten(1), None))


def pictures(*values):
    return torch.stack([torch.full((3, 4, 4), float(value)) for value in values])


def test_rows_that_are_alike_are_looked_at_once_and_come_back_in_their_places():
    tower, memo = Tower(), TowerMemo()
    shown = memo(tower, pictures(5, 1, 5, 5, 1))
    assert tower.looks == [2]
    assert shown.last_hidden_state[:, 0].tolist() == [10, 2, 10, 10, 2]
    assert shown.hidden_states[0][:, 0].tolist() == [5, 1, 5, 5, 1]
    assert shown.hidden_states[1] is None
    again = memo(tower, pictures(1, 5))
    assert tower.looks == [2]
    assert again.last_hidden_state[:, 0].tolist() == [2, 10]


def test_other_pictures_and_other_options_are_looked_at():
    tower, memo = Tower(), TowerMemo()
    memo(tower, pictures(1), output_hidden_states=True)
    memo(tower, pictures(2), output_hidden_states=True)
    memo(tower, pictures(1), output_hidden_states=False)
    memo(tower, pictures(1).double(), output_hidden_states=True)
    memo(tower, pictures(1), output_hidden_states=True, use_cache=False)  # which towers do not have
    assert tower.looks == [1, 1, 1, 1]


def test_a_tower_that_is_given_sizes_looks_again_at_any_other_call():
    tower, memo = Tower(), TowerMemo()
    sizes = torch.tensor([[4, 4], [4, 2]])
    for call in ([pictures(1, 1), sizes], [pictures(1, 1), sizes.flip(0)], [pictures(1, 2), sizes]) * 2:
        memo(tower, call[0], image_sizes=call[1].clone())
    assert tower.looks == [2, 2, 2]


@pytest.mark.parametrize("options", [{}, {"grid_thw": torch.tensor([[1, 2, 2]])}])
def test_what_is_written_into_pictures_or_outputs_reaches_no_later_look(options):
    tower, memo, shown = Tower(), TowerMemo(), pictures(1)
    for _ in range(3):
        output = memo(tower, shown, **options)
        assert tree_leaves(output)[0].unique().tolist() == [2]
        output.last_hidden_state += 1
        output.last_hidden_state = output.last_hidden_state.split(1)  # as models do with `pooler_output`
    assert tower.looks == [1]
    shown += 1
    assert memo(tower, shown, **options).last_hidden_state.unique().tolist() == [4]
    assert memo(tower, pictures(1), **options).hidden_states[0].unique().tolist() == [1]
    assert tower.looks == [1, 1]


def test_only_the_last_calls_are_kept():
    tower, memo = Tower(), TowerMemo()
    for value in range(KEPT + 1):
        memo(tower, pictures(value))
    assert len(memo.calls) == KEPT
    memo(tower, pictures(KEPT))
    assert len(tower.looks) == KEPT + 1
    memo(tower, pictures(0))
    assert len(tower.looks) == KEPT + 2


def test_rows_that_differ_in_one_number_are_not_alike():
    tower, memo = Tower(), TowerMemo()
    first = torch.zeros(1, 3, 64, 64)
    other = first.clone()
    other[0, 1, 1, 1] = 1
    memo(tower, first)
    assert memo(tower, other).last_hidden_state.sum() == 2


# -- what else an output depends on --------------------------------------------------------------------------------


CHANGES = {
    "a weight is written": lambda tower: nn.init.ones_(tower.fc.weight),
    "a weight is written through .data": lambda tower: tower.fc.weight.data.mul_(2),
    "a weight is written as an array": lambda tower: tower.fc.weight.detach().numpy().fill(1),
    "a weight is replaced": lambda tower: setattr(tower.fc, "weight", nn.Parameter(tower.fc.weight.detach().clone())),
    "it is halved": lambda tower: tower.half(),
    "it is offloaded": lambda tower: tower.to("meta"),
    "another kernel": lambda tower: setattr(tower.config, "_attn_implementation", "eager"),
    "another adapter": lambda tower: tower.fc._active_adapter.append("other"),
    "an adapter is merged": lambda tower: tower.fc.merged_adapters.append("default"),
    "a module is replaced": lambda tower: setattr(tower, "fc", copy.deepcopy(tower.fc)),
    "a hook": lambda tower: tower.fc.register_forward_hook(print),
    "a wrapper": lambda tower: setattr(tower.fc, "forward", print),
    "autocast": lambda tower: torch.set_autocast_enabled("cpu", True),
}


class Module(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.config = nn.Linear(4, 4), SimpleNamespace(_attn_implementation="sdpa")
        self.fc._active_adapter, self.fc.merged_adapters = ["default"], []


@pytest.mark.parametrize("change", CHANGES)
def test_a_tower_that_is_changed_looks_again(change):
    module, tower, memo = Module().eval(), Tower(), TowerMemo()
    for number in (1, 2):
        with torch.no_grad():
            memo(tower, pictures(1), state=lambda: tower_state(module))
            memo(tower, pictures(1), state=lambda: tower_state(module))
            assert len(tower.looks) == number
            CHANGES[change](module)
    torch.set_autocast_enabled("cpu", False)


def test_a_tower_that_learns_or_drops_out_always_looks():
    module, tower, memo = Module().eval(), Tower(), TowerMemo()
    for _ in range(2):
        memo(tower, pictures(1), state=lambda: tower_state(module))
    module.fc.train()
    with torch.no_grad():
        for _ in range(2):
            memo(tower, pictures(1), state=lambda: tower_state(module))
    assert len(tower.looks) == 4


# -- every type ----------------------------------------------------------------------------------------------------


def model_of(name, words):
    if name in FAMILIES:
        return models.tiny(name), models.batch(name, words)
    model, case = tiny(name)
    return model, case.batch(model, words)


@contextmanager
def counting(towers):
    """How often each of these ran itself, whatever is around it."""
    runs = [0] * len(towers)
    with Patcher() as patches:
        for at, tower in enumerate(towers):

            def count(original, *args, at=at, **kwargs):
                runs[at] += 1
                return original(*args, **kwargs)

            patches.wrap(tower, "forward", count)
        yield runs


def logits(model, inputs, method, memo=None, cuda_graphs=False):
    sides = Sides() if cuda_graphs else nullcontext()
    remembering = nullcontext() if memo is None else memo.around(model)
    with sides, torch.no_grad(), remembering, drop_or_not(model, method, cuda_graphs) as trace:
        return model(**inputs).logits, trace


@pytest.mark.parametrize("name", one_in_seven(TYPES))
def test_two_methods_and_a_second_look_at_a_picture_run_its_towers_once(name):
    looks = [fv.V2Drop(layers=(1,), keep=(0.5,)), fv.Random(layers=(1,), keep=(0.5,)), None]
    for words, rounding in (["tit"], 0), (["tit", "tit"], 1e-4):  # fewer rows are rounded in another way
        model, inputs = model_of(name, words)
        memo, towers = TowerMemo(), family_for(model).towers
        assert bool(towers) == (name not in WITHOUT_TOWER)
        with counting(towers) as runs:
            plain = [logits(model, inputs, method)[0] for method in looks]
            without = [run / len(looks) for run in runs]
            runs[:] = [0] * len(runs)
            for method, expected in zip(looks, plain, strict=True):
                shown, _ = logits(model, inputs, method, memo)
                torch.testing.assert_close(shown, expected, rtol=0, atol=rounding * float(expected.abs().max()))
            # Where equal rows turn out not to come back as rows, the whole call runs too.
            assert all(run <= len(words) * once for run, once in zip(runs, without, strict=True))
            assert any(runs) == bool(towers)


# -- in its order: memo, graph, stages, tower ----------------------------------------------------------------------

INSIDE = ("visionzip-0", "thintower-0", "pixelprune-0", "prumerge-0")
"""Methods that tap the tower, run its blocks on fewer rows, leave out pixels, and merge inside it."""
AROUND = ("v2drop-0", "divprune-0", "resize-0", None)
"""Methods that leave it alone, or give it a smaller picture; and the untouched model."""


@pytest.mark.parametrize("cuda_graphs", [False, True])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "idefics3"])
@pytest.mark.filterwarnings("ignore:cuda_graphs")  # of forwards that cannot be recorded
def test_a_memo_graphs_and_stages_in_the_tower_answer_as_each_does_alone(family, cuda_graphs, graphs_on_cpu):
    model, methods = models.tiny.__wrapped__(family), {**EXAMPLES, None: None}
    shown, memo = [models.batch(family, ["itt"], seed) for seed in range(2)], TowerMemo(deque(maxlen=8))
    plain = {name: [logits(model, inputs, methods[name])[0] for inputs in shown] for name in (*INSIDE, *AROUND)}
    with counting(family_for(model).towers) as runs:
        for names in (*INSIDE, *AROUND), (*AROUND, *INSIDE):
            for name in names:
                before, calls = runs[0], [*memo.calls]
                for inputs, expected in zip(shown, plain[name], strict=True):
                    seen, _ = logits(model, inputs, methods[name], memo, cuda_graphs)
                    torch.testing.assert_close(seen, expected, rtol=0, atol=1e-4 if cuda_graphs else 0)
                remembered = name in AROUND and (names[0] in AROUND or name not in ("v2drop-0", "resize-0"))
                assert (runs[0] == before) == remembered
                assert name in AROUND or [*memo.calls] == calls


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "smolvlm"])
def test_a_tower_behind_a_memo_is_recorded_and_replayed_with_the_right_picture(family, graphs_on_cpu):
    model, memo = models.tiny.__wrapped__(family), TowerMemo()
    counts = []
    for seed in (0, 1, 2, 2, 3):
        inputs = models.batch(family, ["itt"], seed)
        expected, _ = logits(model, inputs, None)
        seen, trace = logits(model, inputs, None, memo, cuda_graphs=True)
        torch.testing.assert_close(seen, expected, rtol=0, atol=1e-4)
        counts.append((trace.graphs.tower.recorded, trace.graphs.tower.replayed))
    assert counts == [(0, 0), (1, 0), (0, 1), (0, 0), (0, 1)]
