"""Does an answer with few tokens know that it is the full model's? On benchmarks, for a second look.

    python benchmarks/real/sure.py --model llava-hf/llava-1.5-7b-hf --task pope gqa textvqa --out sure.json

A row a benchmark, method and budget: how often the answer is the full model's, the AUROC of its confidence, the share
that is asked again for 98 %, by the best threshold in hindsight and by one that is promised, and steps of decoding.
Answers are kept in --cache, with those of `foveate eval`.
"""

import argparse
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import foveate as fv
from foveate.eval.lmms.benchmarking import evaluate_benchmarks
from foveate.eval.lmms.requests import Conduct
from foveate.eval.plan import Plan
from foveate.eval.records import FULL
from foveate.plain.spelling import fractions
from foveate.runs.versions import commit, versions
from foveate.tuning.promise import Pair, auroc, threshold

METHODS = ("vidcom2", "divprune")
AGREEMENT = 0.98
Row = Mapping[str, Any]


def rows_of(records: Iterable[Row]) -> list[dict[str, Any]]:
    """A row for each benchmark and method of a store's records."""
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
    """The least confidence that loses no more than is asked of these very answers."""
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
    """Ask what is not known, and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--task", nargs="+", required=True)
    parser.add_argument("--method", nargs="+", default=METHODS)
    parser.add_argument("--retention", nargs="+", default=[1 / 9, 2 / 9], type=lambda text: float(fractions(text)))
    parser.add_argument("--limit", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--include", type=Path, action="append", default=[])
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    vlm = fv.load(options.model)
    plan = Plan(methods=tuple(options.method), retention=tuple(options.retention), baselines=False, cache=options.cache)
    conduct = Conduct(batch_size=options.batch_size, limit=options.limit, include=tuple(options.include))
    evaluate_benchmarks(vlm, options.task, plan, conduct=conduct)
    with plan.store(conduct.conditions(vlm)) as store:
        rows = rows_of(store)
    about = {"model": vlm.card.to_dict(), "versions": versions(), "commit": commit(), "limit": options.limit}
    options.out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
