"""lmms-eval's printed table: the packages that `constraints.txt` pins for it work together."""

import re


def test_the_table_has_its_header():
    from lmms_eval.utils import make_table

    results = {"pope": {"alias": "pope", "pope_accuracy,none": 0.5, "pope_accuracy_stderr,none": "N/A"}}
    better = {"pope": {"pope_accuracy": True}}
    table = make_table({"results": results, "n-shot": {"pope": 0}, "higher_is_better": better})
    header, _, row = (re.split(r" *\| *", line.strip("| ")) for line in table.strip().splitlines())
    assert [name for name in header if name] == ["Tasks", "Filter", "n-shot", "Metric", "Value", "Stderr"]
    assert row[:4] == ["pope", "none", "0", "pope_accuracy"]
