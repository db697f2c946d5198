"""Where methods look: by hand, against the retention, and in the right places."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from foveate.app.heat import GRID, HeatMaps, heat_html, look, overlap, stay, stay_map
from foveate.app.subjects import generated
from foveate.errors import InputError

QUESTION = "What is this ?"


def record(*stages, tokens=4, depth=10, boxes=None):
    """A prefill whose stages are (where, layer, kept)."""
    cuts = [
        SimpleNamespace(where=where, layer=layer, kept=[torch.tensor(kept, dtype=torch.int64)])
        for where, layer, kept in stages
    ]
    return SimpleNamespace(vision_tokens=(tokens,), stages=cuts, depth=depth, boxes=[[boxes]])


def test_layers_are_counted_by_hand():
    cut = record(("projector", None, [0, 1, 2]), ("layer", 2, [0, 1]), ("layer", 5, [1]), ("kv", None, []))
    assert stay(cut).tolist() == [0.5, 1.0, 0.2, 0.0]
    assert stay(record()).tolist() == [1.0] * 4


@pytest.mark.parametrize("method", ["v2drop", "random", "divprune", "fastv", "pyramiddrop"])
def test_its_mean_is_the_retention(vlm, subject, method):
    answer = vlm.ask(subject.medium, QUESTION, method=method, retention=0.4, max_new_tokens=1)
    assert stay(answer.trace.latest).mean() == pytest.approx(answer.retention)


def test_a_map_has_each_token_in_its_place():
    quarters = torch.tensor([[0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5], [0, 0.5, 0.5, 1], [0.5, 0.5, 1, 1]])
    cut = record(("layer", 5, [1]), boxes=quarters)
    drawn = stay_map(cut, stay(cut))
    assert drawn.shape == (GRID, GRID)
    assert np.unique(drawn[: GRID // 2, GRID // 2 :]).tolist() == [1.0]
    assert np.unique(drawn[GRID // 2 :, :]).tolist() == [0.5]
    with pytest.raises(InputError, match="not known"):
        stay_map(record(), np.ones(4))


def test_the_overlap_is_jaccards_of_pairs_of_token_and_layer():
    one, other = np.array([1.0, 0.5, 0.0]), np.array([0.5, 0.5, 0.5])
    pairs = [{(token, layer) for token in range(3) for layer in range(int(10 * m[token]))} for m in (one, other)]
    assert overlap(one, other) == pytest.approx(len(pairs[0] & pairs[1]) / len(pairs[0] | pairs[1]))
    assert overlap(one, one) == 1
    assert overlap(np.array([1.0, 0]), np.array([0, 1.0])) == 0
    assert overlap(np.zeros(3), np.zeros(3)) == 1


def test_maps_fill_picture_by_picture_and_what_cannot_run_is_left_out(vlm):
    names = ["v2drop", "nosuch", "random"]
    counts = []
    for maps in look(vlm, generated(3), QUESTION, names, 0.4):
        counts.append(maps.pictures)
    assert counts == [1, 2, 3]
    assert maps.names == ["v2drop", "random"]
    assert set(maps.failed) == {names[1]}
    assert maps.sums["v2drop"].mean() / 3 == pytest.approx(0.4, abs=0.05)
    assert maps.overlap_of("random", "v2drop") == maps.overlap_of("v2drop", "random")
    assert 0 < maps.overlap_of("v2drop", "random") < 1
    page = heat_html(maps, 3)
    assert page.count("<figure") == 2
    assert page.count("<td") == 4
    assert "3 pictures" in page
    assert "nosuch" in page


def test_names_are_escaped_and_nothing_to_show_is_said():
    maps = HeatMaps([], failed={"<script>": "no <b>"})
    assert heat_html(maps, 2) == "<p class='fv-error'>&lt;script&gt;: no &lt;b&gt;</p>"
    one = HeatMaps(["<img>"], 1, {"<img>": np.ones((GRID, GRID))})
    assert "<b>&lt;img&gt;</b>" in heat_html(one, 1)
    assert "Overlap" not in heat_html(one, 1)
