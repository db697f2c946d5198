"""What ThinTower costs in quality: the page has the records, and FLOPs that are called equal are."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from foveate.plain.table import between

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks/tower"
RUN = SimpleNamespace(**runpy.run_path(str(FOLDER / "run.py")))


@pytest.fixture(scope="module", params=sorted(RUN.MODELS))
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def record(kind):
    return json.loads((FOLDER / f"{kind}.json").read_text(encoding="utf-8"))


def test_the_page_has_the_records_table(kind, record):
    page = (ROOT / "docs/methods/thintower.md").read_text(encoding="utf-8")
    assert between(page, kind, f"{RUN.table(record, kind)}\n") == page


def test_every_cell_was_asked_of_all_questions(record):
    rows = {row["name"]: row for row in record["rows"] if row["task"] is None}
    assert len(record["seeds"]) == 3
    for cell in record["cells"]:
        if cell["share"] is not None:
            row = rows[cell["setting"]]
            assert row["questions"] == rows[RUN.FULL]["questions"]
            assert row["retention"] == pytest.approx(cell["share"], rel=0.15)  # a smaller grid comes in steps


def test_flops_that_are_called_equal_are(record):
    """Within three hundredths, as a smaller picture's grid comes in steps; a whole tower costs half of all alone."""
    groups = {cell["group"]: [] for cell in record["cells"]}
    for cell in record["cells"]:
        groups[cell["group"]].append(cell)
    equal = {group: cells for group, cells in groups.items() if group.endswith("fewer")}
    assert len(equal) == len(RUN.TARGETS)
    for cells in equal.values():
        flops = [cell["flops"] for cell in cells if cell["share"] is not None]
        assert max(flops) / min(flops) < 1.03
        assert all(cell["name"] in RUN.BEHIND for cell in cells if cell["share"] is None)


def test_a_share_at_equal_flops_is_the_largest_that_is_not_too_dear():
    most = RUN.flops("vidcom2", RUN.THIRD)
    share = RUN.equal(RUN.CHAINS[0], most)
    assert RUN.flops(RUN.CHAINS[0], share) <= RUN.ALIKE * most < RUN.flops(RUN.CHAINS[0], share + 2 / 999)
    assert RUN.equal("vidcom2", 0.4) is None
