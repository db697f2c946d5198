"""What `make demo` runs, on the model that ships."""

import json

from PIL import Image

from foveate import embedded


def test_the_full_embedded_model_reads_the_bundled_picture_and_dropping_costs_two_thirds_less(run, tmp_path):
    figure = tmp_path / "demo.png"
    code, out, err = run("generate", "--full", "--pairs", 2, "--figure", figure, "--json")
    assert code == 0
    assert err.startswith("foveate: no budget is given: --retention 1/3\n")
    result = json.loads(out)
    assert result["prompt"] == embedded.QUESTION
    assert result["full"]["answer"] == embedded.ANSWER
    assert result["answer"]
    assert abs(result["retention"] - 1 / 3) < 0.005
    assert [stage["layer"] for stage in result["trace"]["stages"]] == [3, 17, 22]
    assert result["saved"]["prefill_flops"] > 0.5
    assert result["saved"]["kv_bytes"] > 0.5
    assert result["time"]["ratio_to_full"]["v2drop"]["median"] > 0
    with Image.open(figure) as drawn:
        assert drawn.width > 3 * drawn.height / 1.2  # the picture and three stages, side by side
