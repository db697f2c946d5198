"""The plug-in inside Ray Data LLM."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from foveate.embedded.scenes import scene
from tests.engines import PROMPT, answers, engine, request

EXAMPLE = Path(__file__).parents[3] / "examples" / "clusters" / "on_ray_llm.py"


@pytest.mark.long
def test_ray_data_llm_answers_as_the_engine_does(embedded_folder, tmp_path):
    import pyarrow
    import pyarrow.parquet

    pictures = [Image.fromarray(scene("held-out", number).image) for number in range(4)]
    paths = [str(tmp_path / f"{number}.png") for number in range(4)]
    for picture, path in zip(pictures, paths, strict=True):
        picture.save(path)
    rows = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"id": [*range(4)], "image": paths}), rows)
    with engine(embedded_folder, {"method": "visionzip", "retention": 1 / 3}) as llm:
        expected = answers(llm, [request([picture], PROMPT) for picture in pictures], tokens=16)
        texts = [llm.get_tokenizer().decode(tokens, skip_special_tokens=True) for tokens in expected]
    options = '{"dtype": "float32", "enforce_eager": true, "max_model_len": 1024}'
    words = [rows, tmp_path / "answers", "What does the text say?", embedded_folder, "--engine", options]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "RAY_USAGE_STATS_ENABLED": "0"}
    environment["RAY_worker_niceness"] = "0"
    subprocess.run([sys.executable, EXAMPLE, *map(str, words)], env=environment, check=True, timeout=500)
    (part,) = (tmp_path / "answers").glob("*.parquet")
    told = sorted(pyarrow.parquet.read_table(part).to_pylist(), key=lambda row: row["id"])
    assert [row["answer"] for row in told] == texts
    assert {row["prompt_tokens"] for row in told} == {203}
