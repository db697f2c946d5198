"""`foveate.testing.check`: models that drop right pass, and each fault planted in foveate or in the model fails."""

import copy
import json

import pytest
import torch
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import foveate as fv
from foveate.core import tapes
from foveate.engine import arguments, masks
from foveate.engine.ancestry import StageRecord
from foveate.engine.cache import PrunedLayer
from foveate.engine.extensions import odd_layers
from foveate.engine.masks import Remap
from foveate.engine.rows import Rows
from foveate.engine.runner import LayerRunner
from foveate.engine.session import Session
from foveate.engine.streams import gather_rows
from foveate.engine.trace import PrefillRecord
from foveate.families import base
from foveate.registry import family_for
from foveate.testing import check
from foveate.testing.checking import REPLAYED, Checking
from foveate.testing.hiding import Oracle
from tests.models import FAMILIES, batch, tiny
from tests.recorder import Recorder

HALF_TELLS = ("llava", "qwen3_5")
"""Families whose tiny models read enough of a picture that half precision can tell."""


def checked(family, attention="sdpa", dtype=torch.float32, word="tit"):
    inputs = batch(family, [word])
    if dtype == torch.float32:
        return check(tiny(family, attention), inputs)
    model = tiny(family, attention).to(dtype)
    try:
        return check(model, {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()})
    finally:
        tiny.cache_clear()  # others want float32


def verdicts(found, verdict):
    return [row.name for row in found.rows if row.verdict == verdict]


# -- what drops right ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_passes(family):
    done = []
    checking = Checking(tiny(family), batch(family, ["tit"]))
    report = checking.run(lambda: done.append(1))
    assert len(done) == len(report.rows) == checking.comparisons
    assert report.passed, report
    left_out = ["cache = no cache"] * (family == "paligemma")
    assert verdicts(report, "not served") == [*left_out, REPLAYED]  # a CPU has no graphs
    compared = [row for row in report.rows if row.difference is not None]
    assert len(compared) >= 9
    assert max(row.difference for row in compared) < 1e-5
    assert all(row.wrong > 100 * row.tolerance for row in compared)  # so that small faults show


def replayed(tape, monkeypatch):
    """The row about graphs, of a check on a device whose tapes are such."""
    monkeypatch.setitem(tapes.TAPES, "cpu", lambda device, pool: tape())
    return next(row for row in checked("llava").rows if row.name == REPLAYED)


class Strays(Recorder):
    """Its replays but the first leave other numbers."""

    replays = 0

    def replay(self):
        super().replay()
        self.replays += 1
        if self.replays > 1:
            self._outputs[0].add_(1)


@pytest.mark.usefixtures("graphs_on_cpu")
@pytest.mark.parametrize(("tape", "verdict"), [(Recorder, "passed"), (Strays, "failed")])
def test_a_replay_is_compared_with_the_plain_run(tape, verdict, monkeypatch):
    assert replayed(tape, monkeypatch).verdict == verdict


@pytest.mark.usefixtures("graphs_on_cpu")
def test_what_cannot_be_recorded_is_not_served_and_says_why(monkeypatch):
    monkeypatch.setattr(Strays, "replays", 1)
    with pytest.warns(UserWarning, match="without a graph"):
        row = replayed(Strays, monkeypatch)
    assert row.verdict == "not served"
    assert "other numbers" in row.reason


@pytest.mark.parametrize(("family", "word"), [("qwen2_vl", "titit"), ("video_llava", "tvt"), ("qwen3_vl", "tvt")])
def test_a_video_and_two_pictures_pass(family, word):
    if family not in FAMILIES:
        pytest.skip(f"{family} needs a newer transformers")
    assert checked(family, word=word).passed


@pytest.mark.parametrize("family", HALF_TELLS)
def test_half_precision_takes_its_tolerance_from_the_run(family):
    report = checked(family, dtype=torch.bfloat16)
    assert report.passed, report
    assert 1e-3 < report.noise < 5e-2
    assert all(
        row.tolerance == pytest.approx(min(max(4 * report.noise, 4e-3), 0.1)) for row in report.rows if row.tolerance
    )
    assert "Check float32 too" in str(report)


def test_noise_that_hides_wrong_columns_is_no_proof():
    """Six tokens of a picture change less than bfloat16's own noise does."""
    report = checked("glm4v", dtype=torch.bfloat16)
    assert not report.passed
    assert all(row.reason.startswith("cannot tell") for row in report.rows if row.verdict == "failed")


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler, about torch
def test_a_kernel_without_dense_masks_is_compared_with_another():
    """Flex attention has masks that no column can be hidden in: there the reference attends eagerly."""
    stance = torch.compiler.set_stance("force_eager")
    try:
        report = checked("qwen2_vl", "flex_attention")
    finally:
        stance.__exit__(None, None, None)
    assert report.passed, report
    assert report.about["attention"] == "flex_attention"


# -- what drops wrong ---------------------------------------------------------------------------------------------


def mask_columns_shifted(original):
    return lambda *known: (original(*known) - 1).clamp(min=-1)


def rows_of_the_mask_shifted(original):
    return lambda self, queries, *known: original(self, (queries - 1).clamp(min=0), *known)


def positions_of_the_next_row(original):
    def tables(forward, call, rows):
        pair = original(forward, call, rows)
        return pair if rows is None else tuple(table.roll(1, -2) for table in pair)

    return tables


def positions_plus_one(original):
    """Decoded rows keep their own: between prompt rows every distance is right."""

    def tables(forward, call, rows):
        if rows is None:
            return original(forward, call, rows)
        places = (rows.source + 1).clamp(0, call.hidden.shape[1] - 1)
        return tuple(gather_rows(table, places, rows.owners) for table in call.kwargs["position_embeddings"])

    return tables


def position_of_one_row(original):
    def tables(forward, call, rows):
        pair = original(forward, call, rows)
        if rows is None:
            return pair
        pair = tuple(table.clone() for table in pair)
        for table in pair:
            table[..., 3, :] = table[..., 4, :]
        return pair

    return tables


def forgets(rows):
    """A cache layer that loses one row: of the prompt (a slice of several), or each decoded one."""

    def fault(original):
        def update(self, keys, *others, **known):
            answer = original(self, keys, *others, **known)
            if (keys.shape[-2] == 1) == (rows is None):
                place = -1 if rows is None else rows
                self.values = self.values.clone()
                self.values[..., place, :] = 0
            return answer

        return update

    return fault


def one_wrong_row_gathered(original):
    def gather(self, full):
        columns = self.read.clone()
        columns[:, 5] = columns[:, 4]
        return gather_rows(full, columns, self.owners)

    return gather


def rows_of_the_first_sample(original):
    return lambda self, full: gather_rows(full, self.read, 0 * self.owners if self.owners is not None else None)


def one_row_not_put_back(original):
    def scatter(self, full, rows):
        whole = original(self, full, rows).clone()
        whole[0, self.read[0, 1]] = full[0, self.read[0, 1]]
        return whole

    return scatter


def without_layer(index):
    def fault(original):
        def run(self, layer, module, *states, **known):
            return module(*states, **known) if layer == index else original(self, layer, module, *states, **known)

        return run

    return fault


def pads_seen_while_decoding(original):
    def mask(forward, call, *known):
        return None if call.span == 1 else original(forward, call, *known)

    return mask


def other_tokens_in_caches(original):
    return lambda self, wanted, counts: original(self, wanted.roll(1, 1), counts)


def nothing_done(original):
    return lambda *_: None


def nothing_moved(original):
    return lambda pieces, *_: pieces


def another_trace(original):
    return property(lambda stage: [(kept.cpu() + 1) % stage.before[0] for kept in stage.origin])


def touched_where_nothing_drops(original):
    def around(self, *known, **others):
        answer = original(self, *known, **others)
        return answer + 1e-6 if isinstance(answer, torch.Tensor) else answer

    return around


def marks_moved(original):
    return property(lambda record: original.func(record).roll(1, dims=1))


def marks_everywhere(original):
    return property(lambda record: torch.ones_like(original.func(record)))


def leaves_something(original):
    def detach(self):
        original(self)
        self._core.left_behind = True

    return detach


FAULTS = [
    ("llava", masks, "_columns_of", mask_columns_shifted, "batch"),
    ("gemma3", masks, "_columns_of", mask_columns_shifted, "two cuts"),
    ("qwen2_vl", Remap, "__init__", rows_of_the_mask_shifted, "batch"),
    ("gemma3", Remap, "__init__", rows_of_the_mask_shifted, "two cuts"),
    ("llava", arguments, "tables_of", positions_of_the_next_row, "two cuts"),
    ("llava", arguments, "tables_of", positions_plus_one, "two cuts"),
    ("qwen2_vl", arguments, "tables_of", positions_plus_one, "two cuts"),
    ("qwen3_5", arguments, "tables_of", position_of_one_row, "two cuts"),
    ("llava", PrunedLayer, "update", forgets(None), "two cuts"),
    ("gemma3", PrunedLayer, "update", forgets(4), "two cuts"),
    ("qwen3_5", PrunedLayer, "update", forgets(4), "two cuts"),
    ("qwen2_vl", Rows, "gather", one_wrong_row_gathered, "two cuts"),
    ("llava", Rows, "gather", rows_of_the_first_sample, "batch"),
    ("llava", Rows, "scatter", one_row_not_put_back, "two cuts"),
    *(("llava", LayerRunner, "run", without_layer(index), "two cuts") for index in range(1, 6)),
    ("llava", arguments, "_mask", pads_seen_while_decoding, "batch"),
    ("gemma3", arguments, "_mask", pads_seen_while_decoding, "two cuts"),
    ("qwen3_5", odd_layers, "_padding", nothing_done, "batch"),
    ("llava", PrunedLayer, "keep", other_tokens_in_caches, "caches"),
    ("gemma3", PrunedLayer, "keep", nothing_done, "caches"),
    ("llava", StageRecord, "kept", another_trace, "two cuts"),
    ("qwen3_vl", base, "move_additions", nothing_moved, "behind the projector"),
    ("llava", LayerRunner, "run", touched_where_nothing_drops, "keeping everything"),
    ("llava", PrefillRecord, "pooling_mask", marks_moved, "the pooling mask"),
    ("qwen3_5", PrefillRecord, "pooling_mask", marks_everywhere, "the pooling mask"),
    ("llava", Session, "detach", leaves_something, "the model is restored"),
]


@pytest.mark.parametrize(("family", "owner", "name", "fault", "where"), FAULTS)
def test_a_fault_of_foveate_fails(family, owner, name, fault, where, monkeypatch, request):
    if family not in FAMILIES:
        pytest.skip(f"{family} needs a newer transformers")
    if fault is leaves_something:
        request.addfinalizer(tiny.cache_clear)
    monkeypatch.setattr(owner, name, fault(vars(owner)[name]))
    report = checked(family)
    assert not report.passed, report
    assert any(name.startswith(where) for name in verdicts(report, "failed")), report


def test_a_layer_that_nothing_stands_around_anywhere_fails(monkeypatch):
    monkeypatch.setattr(LayerRunner, "run", lambda self, index, original, *args, **kwargs: original(*args, **kwargs))
    assert len(verdicts(checked("llava"), "failed")) == 10


def test_a_cache_of_the_model_that_forgets_fails(monkeypatch):
    monkeypatch.setattr(DynamicLayer, "update", forgets(None)(DynamicLayer.update))
    report = checked("llava")
    assert report.rows[0].verdict == "failed"
    assert "the unmodified model differs from itself" in report.rows[0].reason


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_an_attention_that_ignores_masks_fails(family, monkeypatch):
    def blind(module, query, key, value, attention_mask=None, **known):
        return sdpa_attention_forward(module, query, key, value, None, **known)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", blind)
    failed = set(verdicts(checked(family), "failed"))
    assert {"untouched: cache = no cache, padded in a batch = alone", "batch = alone"} <= failed


def test_whatever_is_raised_is_a_row(monkeypatch):
    def broken(*_):
        raise IndexError("no such row")

    monkeypatch.setattr(Rows, "gather", broken)
    report = checked("llava")
    reasons = {row.reason for row in report.rows if row.verdict == "failed"}
    assert "IndexError: no such row." in reasons
    assert any("did not finish" in reason for reason in reasons)


def test_logits_that_are_no_numbers_fail():
    model = copy.deepcopy(tiny("llava"))
    with torch.no_grad():
        model.lm_head.weight[0] = float("nan")
    report = check(model, batch("llava", ["tit"]))
    assert not report.passed
    assert report.to_dict()["noise"] is None
    json.dumps(report.to_dict(), allow_nan=False)


# -- the oracle, and what goes in and comes out -------------------------------------------------------------------


def test_hiding_columns_is_leaving_them_out():
    """Of a plain decoder, at the positions that the rows had."""
    model, inputs = tiny("llava"), batch("llava", ["titt"])
    answer = torch.tensor([7, 11])
    oracle = Oracle(family_for(model), inputs, answer)
    with torch.no_grad():
        whole = model(input_ids=torch.cat((inputs["input_ids"], answer[None]), 1), pixel_values=inputs["pixel_values"])
        torch.testing.assert_close(oracle.logits(oracle.nothing()), whole.logits[0, -3:], atol=1e-5, rtol=1e-5)
        assert oracle.vision.tolist() == (inputs["input_ids"][0] == 91).nonzero()[:, 0].tolist()
        features = model.model.get_image_features(inputs["pixel_values"]).pooler_output[0]
        left = torch.ones(inputs["input_ids"].shape[1] + 2, dtype=torch.bool)
        left[oracle.vision[3:20]] = False
        embeds = model.get_input_embeddings()(torch.cat((inputs["input_ids"], answer[None]), 1))
        embeds[0, oracle.vision] = features
        places = left.nonzero()[:, 0]
        mask = torch.ones(1, len(places), dtype=torch.long)  # without it gaps in positions part packed samples
        shorter = model.model.language_model(
            inputs_embeds=embeds[:, left], position_ids=places[None], attention_mask=mask, use_cache=False
        )
        expected = model.lm_head(shorter.last_hidden_state)[0, -3:]
    hidden = oracle.nothing()
    hidden[:, 0, oracle.vision[3:20]] = True
    torch.testing.assert_close(oracle.logits(hidden), expected, atol=1e-5, rtol=1e-5)


def test_a_model_inside_a_context_is_refused():
    model = tiny("llava")
    with fv.drop(model, "random"), pytest.raises(fv.SessionError):
        check(model, batch("llava", ["tit"]))
