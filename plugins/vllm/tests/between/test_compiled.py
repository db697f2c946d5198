"""A compiled decoder beside stages: steps with images run layer by layer, and all others what was compiled."""

import os
import subprocess
import sys

import pytest

from tests.between.models import METHODS, NEAR

pytest.importorskip("vllm")


@pytest.mark.parametrize("method", [METHODS[0], METHODS[2]])
def test_a_compiled_decoder_answers_as_on_transformers(llava_folder, method):
    environment = {name: value for name, value in os.environ.items() if name != "TORCHDYNAMO_DISABLE"}
    environment["VLLM_CPU_CI_ENV"] = "1"  # compiled in this process, and not ahead of time
    command = [sys.executable, "-m", "tests.between.compiled", str(llava_folder), method]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    far, graphs, eager = done.stdout.splitlines()[-1].split()
    assert float(far) < NEAR
    assert int(graphs) > 0
    assert int(eager) == 3  # the steps in which pictures fill the two slots
