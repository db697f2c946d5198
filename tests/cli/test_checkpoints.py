"""The commands on a family with sliding windows; Qwen3.5, whose processor needs torchvision: tests/with_torchvision."""

import pytest

from tests.cli.checkpoints import check_bytes, save_gemma3


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory):
    return save_gemma3(tmp_path_factory.mktemp("gemma3"))


def test_gemma3_saves_what_dropping_saves_and_not_what_its_windows_do(run, gemma3, picture):
    layers = check_bytes(run, gemma3, picture)
    # Four of six layers see 20 tokens back and hold 19; the prompt has more.
    assert layers[0] == layers[2] < layers[1] == layers[4]


def test_gemma3_answers_as_the_untouched_model_where_everything_is_kept(run, gemma3, picture):
    import json

    asked = (picture, "--prompt", "What is this ?", "--model", gemma3, "--retention", 1, "--full", "--pairs", 2)
    code, out, _ = run("generate", *asked, "--json")
    told = json.loads(out)
    assert (code, told["agreement"]["identical"], told["vision_tokens"]) == (0, True, [25])
    assert told["kv_bytes"] == told["full"]["kv_bytes"] == told["kv_bytes_whole"]
