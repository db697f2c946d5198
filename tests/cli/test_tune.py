import json

import pytest
from PIL import Image

from foveate.cli.tune import Tune

WHOLE = ("--set", "merge_windows=False")  # a random tower finds everything alike
QUESTION = "What is this ?"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "answers"))


@pytest.fixture
def pictures(tmp_path):
    for number, colour in enumerate(("red", "teal", "gold")):
        image = Image.effect_mandelbrot((60, 60), (-2 + number / 3, -1.5, 1, 1.5), 40).convert("RGB")
        image.paste(colour, (5, 5, 25, 40))
        image.save(tmp_path / f"{number}.png")
    return [tmp_path / f"{number}.png" for number in range(3)]


def test_thresholds_are_found_written_and_run(run, shallow_llava, pictures, tmp_path):
    out = tmp_path / "preset.json"
    shared = ("--method", "mustdrop", *WHOLE, "--retention", 0.5, "--task", "squares", "--model", shallow_llava)
    shared = (*shared, "--out", out)
    code, said, err = run("tune", *pictures, "--prompt", QUESTION, *shared)
    assert (code, "are few" in err) == (0, True)
    assert "global_thr" in said
    preset = json.loads(out.read_text())
    assert (preset["questions"], preset["task"], preset["method"]["method"]) == (3, "squares", "mustdrop")
    assert preset["cost"] <= 0.5
    code, _, err = run("tune", *pictures, "--prompt", QUESTION, *shared)
    assert (code, "exists already" in err) == (1, True)
    asked = ("generate", pictures[0], "--prompt", QUESTION, "--method", out)
    code, said, _ = run(*asked, "--model", shallow_llava, "--json")
    assert code == 0
    assert json.loads(said)["setting"] == preset["method"]
    code, _, err = run(*asked, "--budget", 9)
    assert (code, "has its own budget" in err) == (2, True)


def test_samples_may_come_from_a_file_with_a_question_each(run, shallow_llava, pictures, tmp_path):
    lines = [json.dumps({"image": path.name, "prompt": f"What is w{at} ?"}) for at, path in enumerate(pictures)]
    (listed := tmp_path / "asked.jsonl").write_text("\n".join(lines))
    assert Tune(samples=listed)._samples() == [(str(path), f"What is w{at} ?", "") for at, path in enumerate(pictures)]
    listed.write_text(lines[0] + "\n{}")
    code, _, err = run("tune", "--samples", listed, "--model", shallow_llava, "--budget", 20)
    assert (code, "row 1 (from 0)" in err) == (1, True)
    listed.write_bytes(b"\x89PNG")
    code, _, err = run("tune", "--samples", listed, "--budget", 20)
    assert (code, "is not valid JSON" in err) == (1, True)
    (listed := tmp_path / "asked.csv").write_text("image,prompt,label\n" + f"{pictures[0]},What,7\n" * 2)
    assert Tune(samples=listed)._samples() == [(str(pictures[0]), "What", "")] * 2


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"image": "0.png", "prompt": null}', "row 1 (from 0): The row has nothing under question or prompt"),
        ('{"image": ["0.png", "0.png"], "prompt": "x"}', "row 1 (from 0) has 2 images; tune takes one"),
        ("[" * 5000, "row 1 (from 0): The line is not valid JSON"),
    ],
)
def test_a_sample_that_cannot_be_one_is_named_by_its_row(run, pictures, tmp_path, line, says):
    (listed := tmp_path / "asked.jsonl").write_text('{"image": "0.png", "prompt": "x"}\n' + line)
    code, out, err = run("tune", "--samples", listed, "--budget", 20)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert says in err


def test_a_question_may_hold_what_other_programs_take_for_the_end_of_a_line(pictures, tmp_path):
    (listed := tmp_path / "asked.jsonl").write_text('{"image": "0.png", "prompt": "a\u2028b\u0085c"}\r\n')
    assert Tune(samples=listed)._samples() == [(str(tmp_path / "0.png"), "a\u2028b\u0085c", "")]


def test_a_schedule_is_tuned_in_two_processes(run, shallow_llava, pictures, tmp_path):
    shown = ("--prompt", QUESTION, "--model", shallow_llava, "--max-new-tokens", 3)
    asked = ("tune", tmp_path, *shown, "--cache", tmp_path / "cache", "--workers", 2)
    method = ("--method", "v2drop:metric=cosine;over=net")
    code, said, err = run(*asked, *method, "--retention", "60%", "--out", tmp_path / "mine.json")
    assert (code, said.count("Held-out comparison"), "are few" in err) == (0, 1, True)
    preset = json.loads((tmp_path / "mine.json").read_text())
    assert (preset["pictures"], preset["method"]["metric"]) == ([1, 2], "cosine")
    code, said, err = run(*asked, *method, "--retention", 0.6, "--json")
    assert (code, "known already" in err, json.loads(said)["runs"]) == (0, True, 0)
    code, said, _ = run("generate", pictures[0], *shown, "--method", tmp_path / "mine.json", "--json")
    assert (code, json.loads(said)["setting"]) == (0, preset["method"])


@pytest.mark.parametrize("more", [(), ("--budget", 9, "--budget", 8), ("--budget", 9, "--method", "finalkv")])
def test_one_preset_is_tuned_at_a_time(run, pictures, more):
    code, _, err = run("tune", *pictures, "--prompt", QUESTION, "--method", "v2drop", *more)
    assert (code, "One preset" in err) == (2, True)
