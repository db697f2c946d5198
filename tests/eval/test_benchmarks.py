import pytest
import yaml

from foveate.errors import UnknownNameError, UnsupportedError
from foveate.eval.lmms import benchmarks, harness
from foveate.eval.lmms.benchmarks import BENCHMARKS, primary, resolve


def test_every_name_stands_for_something_the_harness_has():
    known = set(harness.harness_tasks())
    assert set(BENCHMARKS.values()) <= known


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_task_is_answered_greedily_and_its_functions_load(name):
    manager = harness._manager(())
    todo = [BENCHMARKS[name]]
    while todo:
        task = todo.pop()
        config = manager._get_config(task)
        if manager._name_is_task(task):
            assert config.get("output_type", "generate_until") == "generate_until"
            decoding = config.get("generation_kwargs", {})
            assert not decoding.get("do_sample")
            assert not decoding.get("temperature")
            assert decoding.get("num_beams", 1) == 1
        else:
            todo += [one for one in config.get("task") or manager._get_tasklist(task) if isinstance(one, str)]


def test_our_names_come_first_and_the_harness_own_go_as_they_are():
    assert resolve(["pope", "textvqa"]) == {"pope": "pope_full", "textvqa": "textvqa_val"}
    assert resolve(["pope_adv", "refcoco"], ["pope_adv", "refcoco"]) == {
        "pope_adv": "pope_adv",
        "refcoco": "refcoco_bbox_rec",
    }


def test_an_unknown_name_fails_with_the_list_and_what_is_near():
    with pytest.raises(UnknownNameError, match=r"No benchmark 'popes'. There are: gqa, .*ocrbench.* Did you mean pope"):
        resolve(["popes"], ["pope", "gqa"])


def test_the_figure_that_papers_print_is_known():
    assert primary(["pope_accuracy", "pope_f1_score"]) == "pope_f1_score"
    assert primary(["exact_match", "submission"]) == "exact_match"


def test_without_the_extra_the_install_command_is_named(monkeypatch):
    monkeypatch.setattr(benchmarks, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match=r"pip install -e '\.\[eval\]' in a checkout of foveate, with -c"):
        harness.check_names(["mmmu_val"])
    assert harness.check_names(["gqa"]) == {"gqa": "gqa"}


def test_the_own_tasks_are_valid_yaml_without_a_suffix(root):
    files = sorted((root / "benchmarks/tasks").glob("*/*.yaml"))
    assert len(files) == 4
    for file in files:
        text = file.read_text().replace("!function ", "")
        task = yaml.safe_load(text)
        assert task["task"] == file.stem
        assert task["lmms_eval_specific_kwargs"]["default"]["post_prompt"] == ""


def test_the_guide_lists_every_name(root):
    page = (root / "docs/guides/benchmarks.md").read_text()
    for name, task in BENCHMARKS.items():
        assert f"| `{name}` | `{task}` | " in page
