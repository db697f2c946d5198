import pytest
import torch

from foveate.contract import Arriving, LayerView, Shape
from foveate.methods.sparsevlm import SparseVLM
from foveate.methods.sparsevlm_plus import SparseVLMPlus
from tests.methods import stage_of, stays

(RATED,) = SparseVLM.reads
EXAMPLES = [
    SparseVLM(pruning_layers=(1, 3), targets=(12, 5), reference=25),
    SparseVLM(pruning_layers=(2,), targets=(9,), reference=25, recycle=False, positions="keep"),
    SparseVLM(pruning_layers=(1, 2, 3), retention=0.6),
]
SMALLEST = SparseVLM(pruning_layers=(1, 2), targets=(2, 0), reference=25, recycle=False)


def cut_of(method, scores, hidden, index=0, **view):
    stage = method.stages(Shape(depth=32))[index]
    arriving = Arriving.all_of(len(scores))
    signals = {RATED: torch.tensor(scores)}
    return stage.cut(LayerView(torch.tensor(hidden), count=len(scores), arriving=arriving, signals=signals, **view))


def test_clusters_stand_behind_what_stays_and_are_means():
    """Of 100 tokens 40 stay, 19 of the others come back as two clusters: two heaps far apart."""
    scores = [1.0 if token < 40 else 0.5 - 0.001 * token for token in range(100)]
    heap = {token: token % 2 for token in range(40, 59)}
    hidden = [[100.0 * heap.get(token, 9) + 0.01 * token, 0.0] for token in range(100)]
    cut = cut_of(SparseVLM(pruning_layers=(2,), targets=(40,), reference=100), scores, hidden)
    assert cut.count == 42
    assert cut.source[:40].tolist() == list(range(40))
    assert torch.equal(cut.rows[:40], torch.tensor(hidden)[:40])
    for row in (40, 41):
        members = [token for token in range(100) if cut.parent[token] == row]
        assert int(cut.source[row]) in members
        assert members == [token for token in heap if heap[token] == heap[members[0]]]
        torch.testing.assert_close(cut.rows[row], torch.tensor([hidden[token] for token in members]).mean(0))
    assert (cut.parent[59:] == -1).all()


@pytest.mark.parametrize(
    ("tokens", "target", "rows"),
    [
        (576, 300, 309),
        (309, 200, 204),
        (204, 110, 113),
        (2, 1, 2),  # one is dropped, and comes back as a cluster of its own
        (3, 1, 2),
        (5, 5, 5),
        (5, 9, 5),
        (1, 0, 1),
    ],
)
def test_counts_of_the_spec(tokens, target, rows):
    method = SparseVLM(pruning_layers=(0,), targets=(target,), reference=tokens)
    assert method.plan(2, (tokens,)) == (tokens, rows)


def test_targets_are_scaled_for_images_of_another_size():
    method = SparseVLM(pruning_layers=(0,), targets=(300,), recycle=False)
    assert SparseVLMPlus(pruning_layers=(0,), targets=(300,)).plan(2, (1152, 576)) == (1728, 900)
    assert method.plan(2, (1152,)) == (1152, 600)
    assert method.plan(2, (7,)) == (7, 4)
    assert method.plan(2, (1,)) == (1, 1)
    assert SparseVLM(pruning_layers=(0,), targets=(0,), recycle=False).plan(2, (576, 7)) == (583, 0)


NINE = {"pruning_layers": (2,), "reference": 9}


def test_without_text_behind_tokens_at_even_steps_stay():
    for method in (SparseVLM(**NINE, targets=(2,)), SparseVLMPlus(**NINE, targets=(3,))):
        stage = stage_of(method)
        view = LayerView(torch.zeros(9, 1), signals={stage.reads[0]: torch.zeros(9)}, text_behind=False)
        assert stays(stage, view) == [1, 4, 7]
