"""Evaluate every method on the embedded model's questions at equal true retention. Writes the record and its figure.

    python benchmarks/quality/run.py [--questions N] [--seed N …] [--films | --films-few] [--out FILE] [--cache FOLDER]

Answers are cached: the command resumes where it stopped, and a larger N asks only the new questions. `--films` asks
about films instead, with eight frames of 144 vision tokens each, and `--films-few` with fewer tokens than that.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import foveate as fv

HERE = Path(__file__).resolve().parent

OURS = ("v2drop", "visiondrop", "mustdrop")
VARIANTS = (
    "v2drop:metric=l1", "v2drop:metric=cosine", "v2drop:layers=1,17,22;metric=cosine", "v2drop:reverse=true",
    "v2drop:layers=3",
)  # fmt: skip
BETWEEN = ("fastv", "sparsevlm", "sparsevlm_plus", "pyramiddrop", "dart", "priortr", "clse")
BEFORE = (
    "visionzip", "prumerge", "prumerge_plus", "tome", "hiprune", "vscan", "divprune", "vispruner",
    "vispruner:important_ratio=1", "scope", "holov", "vidcom2", "cdpruner", "mmtok",
)  # fmt: skip
CHAINS = tuple(name for name in fv.presets() if name.startswith("chain/"))
AT_ENTRY = "random:layers=0"
"""Random dropping before the decoder: the control of methods that work there."""
BUDGETS = (192, 128, 64, 32)
DRAWN = ("v2drop", "v2drop:metric=cosine", "visiondrop", "mustdrop", "fastv", "dart", "visionzip", "divprune", "scope")
"""Rows in the figure. With all rows it would be illegible."""
FILMS = (
    "v2drop", "visiondrop", "mustdrop", "fastv", "visionzip", "divprune",
    "dycoke", "evs", "vidcom2", "fastvid", "holitom", "flashvid", "dtd", AT_ENTRY,
)  # fmt: skip
"""Methods evaluated on films."""
FILM_SHARES = (0.5, 0.25, 0.125)
"""Budgets for films, as shares of the vision tokens (144 per frame)."""
FEW_SHARES = (1 / 12, 1 / 24)
"""The smallest budgets for films: 12 and 6 tokens per frame."""


def rows() -> tuple[str, ...]:
    """Methods evaluated on pictures, without the controls."""
    return (*OURS, *VARIANTS, *BETWEEN, *BEFORE, *CHAINS, AT_ENTRY)


def command(questions: int, seeds: list[int], out: Path, films: Iterable[float] = ()) -> list[str]:
    """The `foveate eval` command of a record: about pictures, or about films at these shares of their tokens."""
    to = ["--out", str(out), "--force"]
    if not films:
        return [*_asking(rows(), questions, seeds), *_each("--budget", BUDGETS), *to]
    return [*_asking(FILMS, questions, seeds), "--model", "embedded-films", *_each("--retention", films), *to]


def picture(questions: int, seeds: list[int], out: Path) -> list[str]:
    """The `foveate eval` command that draws some rows of a record, from cached answers."""
    to = ["--figure", str(out.with_suffix(".png")), "--force"]
    return [*_asking(DRAWN, questions, seeds), *_each("--budget", BUDGETS), *to]


def _asking(names: Iterable[str], questions: int, seeds: list[int]) -> list[str]:
    """The part that both commands share."""
    program = str(Path(sys.executable).with_name("foveate"))
    asked = ["--questions", str(questions), "--max-new-tokens", "24", *_each("--seed", seeds)]
    return [program, "eval", *asked, *_each("--method", names)]


def _each(flag: str, values: Iterable[object]) -> list[str]:
    """Repeat a flag with each of these values."""
    return [word for value in values for word in (flag, str(value))]


def main() -> int:
    """Run the commands and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2])
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--films", dest="films", action="store_const", const=FILM_SHARES, default=())
    kinds.add_argument("--films-few", dest="films", action="store_const", const=FEW_SHARES)
    parser.add_argument("--out", type=Path)
    options, more = parser.parse_known_args()
    records = {(): "embedded.json", FILM_SHARES: "films.json", FEW_SHARES: "films-few.json"}
    out = options.out or HERE / records[options.films]
    code = subprocess.run([*command(options.questions, options.seed, out, options.films), *more]).returncode
    if code or options.films:
        return code
    return subprocess.run([*picture(options.questions, options.seed, out), *more]).returncode


if __name__ == "__main__":
    sys.exit(main())
