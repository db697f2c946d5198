"""Flags that the README of MustDrop's authors names and no code reads."""

import pytest


@pytest.mark.parametrize(
    ("flag", "setting"),
    [("--sparse", "--method mustdrop"), ("--scale=13.5", "global_thr"), ("--bias", "individual_thr")],
)
@pytest.mark.parametrize("command", ["generate", "compare"])
def test_they_are_explained_in_one_line(run, command, flag, setting):
    code, out, err = run(command, "cat.jpg", flag, "--prompt", "What is this ?")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "MustDrop's authors" in err
    assert setting in err


def test_other_commands_and_other_words_are_left_alone(run):
    code, _, err = run("presets", "--scale")
    assert code == 2
    assert "MustDrop's authors" not in err
    assert "MustDrop's authors" not in run("generate", "scale.jpg", "--prompt", "bias")[2]


def test_a_schedule_and_a_budget_contradict_each_other(run, tiny_llava, picture):
    arguments = ("--prompt", "What is this ?", "--model", tiny_llava, "--budget", 12)
    for method, setting in (("mustdrop", "counts=9,8,7,6"), ("visiondrop", "layer_list=3,4"), ("v2drop", "keep=0.5,")):
        code, _, err = run("generate", picture, *arguments, "--method", method, "--set", setting)
        assert (code, f"--set {setting.partition('=')[0]}=… is a schedule already" in err) == (2, True)
