"""Ask every method the embedded model's questions at equal true retention, and write the record and its picture.

    python benchmarks/quality/run.py [--questions N] [--seed N …] [--films] [--out FILE] [--cache FOLDER]

Answers are kept as they come: the same command again goes on where it stopped, and a larger N asks only what is new.
`--films` asks about films instead, whose frames the embedded model gets as pictures.
"""

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent

OURS = ("v2drop", "visiondrop", "mustdrop")
VARIANTS = (
    "v2drop:metric=l1", "v2drop:metric=cosine", "v2drop:layers=1,17,22;metric=cosine", "v2drop:reverse=true",
    "v2drop:layers=3",
)  # fmt: skip
BETWEEN = ("fastv", "sparsevlm", "sparsevlm_plus", "pyramiddrop", "dart", "priortr", "clse")
BEFORE = (
    "visionzip", "prumerge", "prumerge_plus", "tome", "hiprune", "vscan", "divprune", "vispruner",
    "vispruner:important_ratio=1", "scope", "holov", "vidcom2",
)  # fmt: skip
CHAINS = (
    "chain/llava-1.5-7b/64-vispruner-v2drop", "chain/llava-1.5-7b/64-divprune-v2drop",
    "chain/llava-1.5-7b/32-scope-v2drop-finalkv",
)  # fmt: skip
AT_ENTRY = "random:layers=0"
"""Random dropping of methods that work before the decoder: from the first layer on."""
BUDGETS = (192, 128, 64, 32)
FILMS = ("v2drop", "visiondrop", "fastv", "visionzip", "divprune")
FILM_SHARES = (0.5, 0.25, 0.125)
"""Of a film's vision tokens: 144 a frame."""


def rows() -> tuple[str, ...]:
    """What is asked about pictures, controls aside."""
    return (*OURS, *VARIANTS, *BETWEEN, *BEFORE, *CHAINS, AT_ENTRY)


def command(questions: int, seeds: list[int], out: Path, *, films: bool) -> list[str]:
    """The `foveate eval` that makes a record."""
    names = FILMS if films else rows()
    flags = ["--questions", str(questions), "--max-new-tokens", "24", "--out", str(out), "--force"]
    flags += ["--figure", str(out.with_suffix(".png"))]
    for seed in seeds:
        flags += ["--seed", str(seed)]
    for name in names:
        flags += ["--method", name]
    if films:
        flags += ["--model", "embedded-films"]
        for share in FILM_SHARES:
            flags += ["--retention", str(share)]
    else:
        for budget in BUDGETS:
            flags += ["--budget", str(budget)]
    return [str(Path(sys.executable).with_name("foveate")), "eval", *flags]


def main() -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--films", action="store_true")
    parser.add_argument("--out", type=Path)
    given, more = parser.parse_known_args()
    out = given.out or HERE / ("films.json" if given.films else "embedded.json")
    return subprocess.run([*command(given.questions, given.seed, out, films=given.films), *more]).returncode


if __name__ == "__main__":
    sys.exit(main())
