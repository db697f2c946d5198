"""Test on benchmarks if an answer's confidence predicts that it equals the full model's, as a second look needs.

    python -m lmms_eval --model foveate --model_args pretrained=MODEL,log=kept --tasks pope_full
    python -m lmms_eval --model foveate --model_args pretrained=MODEL,log=kept,method=divprune --tasks pope_full
    python benchmarks/real/sure.py kept --out sure.json

Writes a row for each benchmark and setting: the agreement with the full model, the AUROC of the confidence, the share
that must be asked again for 98 % agreement (by the best threshold in hindsight, and by a calibrated one), and the
number of decode steps.
"""

import argparse
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from foveate.eval.records import FULL
from foveate.runs.versions import commit, versions
from foveate.tuning.promise import Pair, threshold

AGREEMENT = 0.98
Row = Mapping[str, Any]


def auroc(samples: Sequence[Pair]) -> float:
    """Return the probability that an answer that agrees has a higher confidence than one that differs.

    Ties count half. NaN if one of the two kinds is missing.
    """
    sure = [confidence for confidence, agrees in samples if agrees]
    unsure = [confidence for confidence, agrees in samples if not agrees]
    if not sure or not unsure:
        return math.nan
    ahead = sum((right > wrong) + (right == wrong) / 2 for right in sure for wrong in unsure)
    return ahead / (len(sure) * len(unsure))


def rows_of(records: Iterable[Row]) -> list[dict[str, Any]]:
    """A row for each benchmark and method in the records of a store."""
    full: dict[str, Row] = {}
    others: dict[tuple[str, str], list[Row]] = {}
    for record in records:
        if record["method"] == FULL:
            full[record["question"]] = record
        else:
            others.setdefault((record["question"].partition("/")[0], record["method"]), []).append(record)
    rows = []
    for (task, _), answers in sorted(others.items()):
        known = [one for one in answers if one["question"] in full and one["confidence"] is not None]
        if known:
            rows.append(_row(task, known, full))
    return rows


def _row(task: str, answers: Sequence[Row], full: Mapping[str, Row]) -> dict[str, Any]:
    pairs: list[Pair] = [(one["confidence"], one["answer"] == full[one["question"]]["answer"]) for one in answers]
    return {
        "task": task,
        "setting": answers[0]["setting"],
        "questions": len(pairs),
        "tokens": fmean(one["spent"] for one in answers),
        "of": fmean(one["vision_tokens"] for one in answers),
        "agreement": fmean(agrees for _, agrees in pairs),
        "auroc": None if math.isnan(known := auroc(pairs)) else known,
        "again_in_hindsight": _again(pairs, _least(pairs)),
        "again_promised": _again(pairs, threshold(pairs, AGREEMENT)),
        "steps": fmean(len(one["tokens"]) + 1 for one in answers),
    }


def _least(pairs: Sequence[Pair]) -> float | None:
    """The lowest threshold that keeps the agreement on these answers, chosen in hindsight. None if there is none."""
    trusted, wrong = None, 0
    for confidence in sorted({one for one, _ in pairs}, reverse=True):
        wrong += sum(not agrees for one, agrees in pairs if one == confidence)
        if wrong > (1 - AGREEMENT) * len(pairs):
            break
        trusted = confidence
    return trusted


def _again(pairs: Sequence[Pair], trusted: float | None) -> float:
    return fmean(not confidence >= (math.inf if trusted is None else trusted) for confidence, _ in pairs)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the answers and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kept", type=Path, help="the folder given as log= in the runs of one model")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    records = [
        json.loads(line)
        for part in sorted(options.kept.glob("*/part-*.jsonl"))
        for line in part.read_text(encoding="utf-8").splitlines()
    ]
    manifests = [json.loads(path.read_text(encoding="utf-8")) for path in options.kept.glob("*/manifest.json")]
    weights = next((manifest["conditions"]["weights"] for manifest in manifests), None)
    about = {"weights": weights, "versions": versions(), "commit": commit()}
    options.out.write_text(json.dumps({**about, "rows": rows_of(records)}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
