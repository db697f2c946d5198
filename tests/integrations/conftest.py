import gc
import importlib
import importlib.util
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
QUESTIONS = 4


@pytest.fixture(scope="session")
def offline(tmp_path_factory):
    """The environment of a machine without a network, and with a data cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
            patch.setenv(name, "1")
        patch.setenv("LMMS_EVAL_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield {**os.environ}


@pytest.fixture(scope="session")
def tasks(offline, tmp_path_factory):
    """A folder of drawn benchmarks, `QUESTIONS` each."""
    spec = importlib.util.spec_from_file_location("build", ROOT / "benchmarks/tasks/build.py")
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    folder = tmp_path_factory.mktemp("tasks")
    build.main([str(folder), "--questions", str(QUESTIONS), "--seed", "7"])
    importlib.import_module("lmms_eval.evaluator")
    gc.collect()
    gc.freeze()  # lmms-eval collects garbage twice a run: half of its time where what it imports is looked at
    with pytest.MonkeyPatch.context() as patch:
        # Its own 1,900 tasks take seconds to read.
        patch.setattr(importlib.import_module("lmms_eval.tasks"), "__file__", str(folder / "own" / "__init__.py"))
        yield folder
