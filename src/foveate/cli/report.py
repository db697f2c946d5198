"""Comparison of an answer with the full model's, for `generate` and `compare`."""

from collections.abc import Mapping
from itertools import takewhile
from typing import Any

from foveate.ask.answer import Answer
from foveate.bench.paired import AGAIN
from foveate.bench.timing import Ratio, interval_words
from foveate.plain.table import Number


def agreement(answer: Answer, full: Answer) -> dict[str, Any]:
    """Count the leading tokens that an answer shares with the full model's."""
    pairs = zip(answer.tokens, full.tokens, strict=False)
    same = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
    return {"identical": answer.tokens == full.tokens, "same_leading_tokens": same, "full_tokens": len(full.tokens)}


def full_values(full: Answer) -> dict[str, Any]:
    """Return the full model's answer as plain values."""
    return {"answer": full.text, "token_ids": list(full.tokens), "kv_bytes": full.kv_bytes}


def agreement_words(same: Mapping[str, Any]) -> str:
    """Return an agreement in words."""
    if same["identical"]:
        return "the same"
    return f"first {same['same_leading_tokens']} of {same['full_tokens']} tokens"


def race_values(race: Mapping[str, Ratio], new_tokens: int) -> dict[str, Any]:
    """Return time ratios, measured with answers of `new_tokens` tokens, as plain values."""
    control = race[AGAIN]
    return {
        "noisy": not control.holds_one,
        "ratio_to_full": {name: ratio.to_dict() for name, ratio in race.items() if name != AGAIN},
        "control": control.to_dict(),
        "new_tokens": new_tokens,
    }


def race_note(race: Mapping[str, Ratio], new_tokens: int) -> str:
    """Describe in words what was timed and how often."""
    rounds = race[AGAIN].rounds
    return (
        f"{rounds} interleaved pairs, vision encoder, prefill and {new_tokens} tokens, "
        f"median and {interval_words(rounds)}"
    )


def interval(ratio: Ratio, between: str = " ") -> str:
    """Format a ratio and its interval: `0.71 [0.69–0.74]`."""
    text = f"{ratio.median:.2f}{between}[{ratio.low:.2f}–{ratio.high:.2f}]"
    return Number(text, {"": ratio.median, "low": ratio.low, "high": ratio.high})
