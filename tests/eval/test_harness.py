"""Figures that papers print and the harness does not, by the harness's own functions on made-up answers."""

import subprocess
import sys
from argparse import Namespace

import numpy as np
import pytest

from foveate.eval.lmms import figures
from foveate.eval.lmms.benchmarks import MME_TOTAL


def metric_of(name, rows, aggregate, group):
    documents = sorted(rows)
    inputs = tuple(rows[at] for at in documents)
    return figures._metric(name, float(aggregate(inputs)), True, documents, inputs, group, aggregate)


def test_mme_is_perception_and_cognition_together():
    from lmms_eval.tasks.mme.utils import mme_aggregate_results, mme_process_results

    rng = np.random.default_rng(0)
    group = {at: at // 2 for at in range(40)}
    rows = {"mme_perception_score": {}, "mme_cognition_score": {}}
    for at in range(40):
        category = ("existence", "color", "code_reasoning")[at // 2 % 3]
        doc = {"question_id": f"{at // 2}.png", "category": category, "answer": "Yes" if at % 2 else "No"}
        answer = "yes" if rng.random() < 0.5 else "no"
        for name, row in mme_process_results(doc, [answer]).items():
            rows[name][at] = row
    metrics = {name: metric_of(name, found, mme_aggregate_results, group) for name, found in rows.items()}
    total = figures._added(metrics, group)[MME_TOTAL]
    assert total.value == sum(metric.value for metric in metrics.values())
    assert total.documents == tuple(range(40))
    assert total.over([1] * 20) == pytest.approx(total.value)
    drawn = [2, 0, 1] * 6 + [1, 1]
    parts = [[count for pair, count in enumerate(drawn) if (pair % 3 == 2) is thinks] for thinks in (False, True)]
    expected = sum(metric.over(counts) for metric, counts in zip(metrics.values(), parts, strict=True))
    assert total.over(drawn) == pytest.approx(expected)


def test_video_mme_is_given_for_each_length_of_video_too():
    from lmms_eval.tasks.videomme.utils import videomme_aggregate_results, videomme_process_results

    lengths = ["short"] * 6 + ["medium"] * 3 + ["long"] * 3
    rows = {}
    for at, length in enumerate(lengths):
        doc = {"question_id": str(at), "duration": length, "videoID": str(at // 3), "domain": "Knowledge"}
        doc |= {"sub_category": "Astronomy", "task_type": "Counting Problem", "answer": "A"}
        rows[at] = videomme_process_results(doc, ["A" if at % 3 else "B"])["videomme_perception_score"]
    group = {at: at // 3 for at in rows}
    name = "videomme_perception_score"
    added = figures._added({name: metric_of(name, rows, videomme_aggregate_results, group)}, group)
    assert {key: len(metric.documents) for key, metric in added.items()} == {
        f"{name}/short": 6,
        f"{name}/medium": 3,
        f"{name}/long": 3,
    }
    assert added[f"{name}/short"].value == pytest.approx(100 * 4 / 6)
    assert added[f"{name}/short"].groups == (0, 0, 0, 1, 1, 1)
    assert added[f"{name}/long"].factor == pytest.approx(100)


@pytest.mark.parametrize("split", ["en_dev_static", "en_dev"])
def test_mmbench_is_a_mean_of_questions_right_however_their_choices_are_turned(split):
    from lmms_eval.tasks.mmbench import en_utils

    aggregate = {
        "en_dev_static": en_utils.mmbench_aggregate_dev_results_static,
        "en_dev": en_utils.mmbench_aggregate_dev_results_eval,
    }[split]
    rows, expected = {}, []
    for question in range(6):
        right = [question % 3 != 0, question % 2 == 0]
        expected.append(all(right))
        for turn, hit in enumerate(right):
            doc = {"index": question + 1_000_000 * turn, "question": "?", "answer": "A", "hint": "", "source": "s"}
            doc |= {"split": "dev", "category": "c", "L2-category": "l", "A": "one", "B": "two"}
            rows[2 * question + turn] = en_utils.mmbench_process_results(doc, ["A" if hit else "B"])["gpt_eval_score"]
    group = {at: at // 4 for at in rows}
    called = figures._with(aggregate, Namespace(output_path=None))
    found = figures._hits(metric_of("gpt_eval_score", rows, called, group), group)
    assert found.value == pytest.approx(100 * np.mean(expected))
    assert found.documents == tuple(range(0, 12, 2))
    assert found.scores.tolist() == [float(hit) for hit in expected]
    assert found.factor == pytest.approx(100)
    assert found.groups == (0, 0, 1, 1, 2, 2)


def test_functions_that_write_files_get_a_folder(tmp_path, monkeypatch, capsys):
    from lmms_eval.tasks.textvqa.utils import textvqa_aggregate_submissions

    monkeypatch.chdir(tmp_path)
    called = figures._with(textvqa_aggregate_submissions, Namespace(output_path=str(tmp_path / "gone")))
    assert called([{"question_id": 1, "answer": "a"}]) is None
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_a_torchvision_of_another_torch_is_named(tmp_path):
    """One that cannot be imported stops transformers; the message says what to do."""
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    info = tmp_path / "torchvision-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.1\n")
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from foveate.cli import main; sys.exit(main(['generate']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip uninstall torchvision" in done.stderr
    assert "Traceback" not in done.stderr
