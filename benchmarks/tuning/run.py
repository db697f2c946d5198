"""Tune methods on the embedded model. Each record is the resulting preset file with its held-out comparison.

    python benchmarks/tuning/run.py v2drop-64       # three minutes on one core; resumes where it stopped

Without arguments it tunes all of `CELLS`, which takes half an hour on one core.
"""

import sys
from itertools import groupby, islice
from pathlib import Path

import torch

import foveate as fv
from foveate.embedded import TASKS
from foveate.eval.asked import Asked, prompts_of
from foveate.eval.held_out import questions

HERE = Path(__file__).parent
METHODS = ("v2drop", "visiondrop", "fastv", "divprune:tokens={entering}+v2drop")
ENTERING = {32: 55, 64: 110, 128: 220}
"""Tokens that DivPrune passes to V2Drop at each budget, as in the preset chain/llava-1.5-7b/64-divprune-v2drop."""
CELLS = {
    f"{text.partition(':')[0]}-{budget}": (text.format(entering=left), budget)
    for budget, left in ENTERING.items()
    for text in METHODS
}
SEED, PICTURES, MOST = 1301, 40, 3
"""Seed and number of the pictures, and the largest number of questions about each."""


def drawn() -> list[Asked]:
    """The questions for tuning. About each picture, those on text come first."""
    of_pictures = groupby(questions(TASKS, 12 * PICTURES, (SEED,)), key=lambda question: question.picture)
    chosen: list[Asked] = []
    for _, about in islice(of_pictures, PICTURES):
        chosen += sorted(about, key=lambda question: question.task not in ("read text", "character", "text quadrant"))[
            :MOST
        ]
    return chosen


def main() -> None:
    """Tune the cells named on the command line, or all."""
    torch.set_num_threads(1)
    vlm = fv.load()
    prompts = prompts_of(vlm, drawn())
    for cell in sys.argv[1:] or CELLS:
        method, tokens = CELLS[cell]
        tuned = fv.tune(vlm, prompts, method=method, tokens=tokens, cache="tuning-work")
        print(tuned.table(), flush=True)
        tuned.save(HERE / f"{cell}.json", force=True)


if __name__ == "__main__":
    main()
