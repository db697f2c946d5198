"""What `fv.drop(model, "v2drop", retention=1/3)` with one prefill runs through: constructions, solves, calls, files.

    python benchmarks/path.py

`path.json` has what came of it at a50230a and now. Counted by Python's profiler on the embedded model (32 layers), the
second time: what is done once a process is done by then.
"""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch

import foveate as fv
from foveate import embedded
from foveate.contract import method

ROOT = Path(fv.__file__).parent


def calls(run: Any) -> Counter[tuple[str, str]]:
    """How often each of foveate's functions is called, by (file, name)."""
    seen: Counter[tuple[str, str]] = Counter()

    def note(frame: Any, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(f"{ROOT}/") and code.co_name[0] != "<":
            seen[str(Path(code.co_filename).relative_to(ROOT)), code.co_name] += 1

    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    return seen


def main() -> None:
    """Count, and print it."""
    vlm = fv.load()
    model, inputs = vlm.model, dict(vlm.prepare(embedded.picture(), embedded.QUESTION).inputs)

    def dropped(prefill: bool) -> None:
        with fv.drop(model, "v2drop", retention=1 / 3), torch.inference_mode():
            if prefill:
                model(**inputs)

    dropped(True)
    for memo in (value for value in vars(method).values() if hasattr(value, "cache_clear")):
        memo.cache_clear()  # an image of another size
    opening, whole = calls(lambda: dropped(False)), calls(lambda: dropped(True))
    figures = {
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        ).stdout.strip(),
        "constructions": sum(
            times for (file, name), times in opening.items() if file.endswith("/method.py") and name == "__post_init__"
        ),
        "solves": sum(
            times for (file, name), times in whole.items() if file.endswith("/budget.py") and name == "solve"
        ),
        "calls": {"drop": opening.total(), "drop and prefill": whole.total()},
        "files": {"drop": len({file for file, _ in opening}), "drop and prefill": len({file for file, _ in whole})},
    }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
