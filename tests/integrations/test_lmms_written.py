"""What lmms-eval's own command line writes: a folder a setting; its files say method, budget, retention and tokens."""

import json
import subprocess
import sys

import pytest

from foveate.eval.lmms.setting import Setting
from foveate.eval.lmms.tracking import Label
from tests.integrations.conftest import QUESTIONS

TASK = "foveate_gqa"


def command(tasks, out, environment, model_args):
    """A run of `python -m lmms_eval` on one task."""
    words = ["-m", "lmms_eval", "--model", "foveate", "--tasks", TASK, "--include_path", str(tasks)]
    words += ["--model_args", model_args, "--output_path", str(out), "--log_samples", "--batch_size", "4"]
    return subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, timeout=300)


def test_results_samples_and_table_say_what_was_asked_and_spent(tasks, offline, tmp_path):
    done = command(tasks, tmp_path, offline, "pretrained=embedded,method=v2drop:metric=cosine,budget=192")
    (folder,) = tmp_path.iterdir()
    assert folder.name == "embedded__v2drop-metric=cosine__192-tokens"
    (file,) = folder.glob("*_results.json")
    results = json.loads(file.read_text())
    ours, figures = results["foveate"], results["results"][TASK]
    assert results["model_name"] == "embedded"
    assert (ours["method"], ours["budget"], ours["asked_retention"]) == ("v2drop:metric=cosine", 192, None)
    assert ours["tokens"] == pytest.approx(192, abs=1)
    assert ours["retention"] == pytest.approx(1 / 3, abs=0.01)
    assert (figures["tokens,none"], figures["retention,none"]) == (ours["tokens"], ours["retention"])
    (file,) = folder.glob(f"*_samples_{TASK}.jsonl")
    rows = [json.loads(line)["foveate"] for line in file.read_text().splitlines()]
    assert len(rows) == QUESTIONS
    for row in rows:
        assert (row["method"], row["budget"]) == ("v2drop:metric=cosine", 192)
        assert row["tokens"] == pytest.approx(192, abs=1)
        assert row["retention"] == pytest.approx(row["tokens"] / 576)
    table = [line.replace(" ", "") for line in done.stdout.splitlines() if line.startswith("|")]
    assert any("|retention|" in line and "|0.33" in line for line in table)
    assert any("|tokens|" in line and "|19" in line for line in table)


def test_a_budget_that_no_sample_can_meet_ends_the_run_in_one_line(tasks, offline, tmp_path):
    done = command(tasks, tmp_path, offline, "method=v2drop,budget=2")
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("foveate: ")]
    assert "floor" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("setting", "about", "folder"),
    [
        (Setting(), {"model": "llava-hf/llava-1.5-7b-hf"}, "llava-hf__llava-1.5-7b-hf__full"),
        (Setting(name="v2drop", budget=192), {"model": "embedded"}, "embedded__v2drop__192-tokens"),
        (Setting(name="random", retention=1 / 3, seed=2), {}, "m__random__retention-0.3333__seed-2"),
        (Setting(name="v2drop"), {"protocol": "llava"}, "m__v2drop__retention-0.3333__llava"),
        (Setting(name="v2drop/llava-1.5-7b/192"), {"most_frames": 8}, "m__v2drop-llava-1.5-7b-192__8-frames"),
        (
            Setting(name="visiondrop+v2drop", budget=64, settings={"layers": [3]}),
            {},
            "m__visiondrop+v2drop__layers=3__64-tokens",
        ),
    ],
)
def test_a_folder_speaks(setting, about, folder):
    import transformers

    config = transformers.LlavaConfig()
    label = Label(**{"model": "m", **about}, asked=setting.choice(config).asked)
    assert label.folder == folder


def test_long_names_stay_short_and_apart():
    from foveate.eval.lmms.setting import Asked

    names = [Label(model="m", asked=Asked(method=f"v2drop:layers={'3,' * 100}{last}")).folder for last in (1, 2)]
    assert len(set(names)) == 2
    assert max(map(len, names)) < 100
