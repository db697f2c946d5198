"""A stage sees one sample: in a batch it runs once for each, which must cost few operators, and nothing elsewhere."""

import json
from pathlib import Path

import pytest

from tests.bench.counts import versions
from tests.bench.operators import METHODS, counts

RECORD = json.loads(Path(__file__).with_name("operators.json").read_text())
MOST = {"v2drop": 1.12, "fastv": 1.15, "pyramiddrop": 1.25, "divprune": 1.9, "scope": 2.7}
"""Times the operators of 93823709, which ran stages on all samples at once."""


@pytest.fixture(scope="module")
def now():
    if RECORD["versions"] != versions():
        pytest.skip(f"operators.json was counted with other versions than {versions()}")
    return counts()


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_of_eight_runs_few_operators_more(now, name):
    assert now["eight"][name] <= MOST[name] * RECORD["counts"]["eight"][name]


@pytest.mark.parametrize(
    ("case", "name"), [(case, name) for case in ("one", "film") for name in RECORD["counts"][case]]
)
def test_a_picture_and_a_film_run_no_operator_more(now, case, name):
    assert now[case][name] <= RECORD["counts"][case][name]
