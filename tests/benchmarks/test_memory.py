"""The committed record of peak memory: what it says, and the page made from it."""

import json
from pathlib import Path

from tests.memory import page

FOLDER = Path(__file__).parents[2] / "benchmarks" / "memory"
RECORD = json.loads((FOLDER / "linear.json").read_text(encoding="utf-8"))


def test_memory_is_linear_up_to_sixteen_thousand_tokens():
    small, _, large = RECORD["vision_tokens"]
    assert large == 16_384
    for name, peaks in RECORD["rows"].items():
        assert peaks[-1] <= 1.01 * peaks[0] * large / small, name
        assert name == "untouched" or peaks[-1] < RECORD["rows"]["untouched"][-1]


def test_the_page_is_that_of_the_record():
    assert (FOLDER / "README.md").read_text(encoding="utf-8") == page(RECORD)
