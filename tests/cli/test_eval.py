import json
import re

import pytest
from PIL import Image

SMALL = ("--tasks", "colour,read text", "--workers", 1, "--max-new-tokens", 12, "--questions")


def test_a_table_json_and_a_picture_and_nothing_asked_twice(run, tmp_path):
    out, drawn, cache = tmp_path / "quality.json", tmp_path / "pareto.png", tmp_path / "cache"
    asked = (*SMALL, 4, "--method", "v2drop", "--method", "v2drop:reverse=true", "--budget", 64, "--budget", 32)
    code, said, err = run("eval", *asked, "--draws", 2, "--cache", cache, "--out", out, "--figure", drawn)
    assert code == 0, err
    assert "known already" not in err
    names = ("full model", "v2drop:reverse=true", "random", "uniform", "averagepool", "resize")
    assert [word for word in (*names, "infeasible", "≥ 54.9") if word not in said] == []
    assert re.search(r"^v2drop: (better than|worse than|not told apart from) random at \d+ tokens", said, re.MULTILINE)
    few = r"^Only \d+ pictures: with fewer than 30, intervals and verdicts are worth little"
    assert re.search(few, said, re.MULTILINE)
    progress = r"^foveate: Answering: \d+ to do\n(foveate: Answering: .*\n)*foveate: Answering: \d+ done in "
    assert re.search(progress, err, re.MULTILINE)
    record = json.loads(out.read_text())
    full = record["rows"][0]
    assert (full["name"], full["questions"]) == ("full model", 4)
    assert {"weights", "dtype"} <= set(record["model"])
    assert set(record["versions"]) == {"foveate", "torch", "transformers"}
    cells = {(row["name"], row["budget"]): row for row in record["rows"] if row["budget"] and not row["task"]}
    assert [name for (name, _), row in cells.items() if "infeasible" in row] == ["v2drop", "v2drop:reverse=true"]
    assert {("v2drop", 64), ("random", 32)} <= {key for key, row in cells.items() if "infeasible" not in row}
    assert len(cells["random", 64]["draws"]) == len(cells["random", 64]["settings"]) == 2
    ours = cells["v2drop", 64]
    assert ours["tokens"] == pytest.approx(64, abs=1)
    assert "v2drop at 64 tokens: v2drop is not the best choice for so few tokens" in said
    assert None not in (ours["minus_random"], ours["minus_resize"])
    Image.open(drawn).verify()
    code, said, err = run("eval", *asked, "--draws", 2, "--cache", cache, "--json")
    again = json.loads(said)
    assert "known already" in err
    assert again["rows"] == record["rows"]
