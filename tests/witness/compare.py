"""What two results have in common, and what not."""

from typing import Any

import torch
from torch import Tensor

__all__ = ["MENDED", "compared", "differences"]

MORE = 0.01
"""So many operators more, as a share, are told and do not fail; a wait more does."""
MENDED = "mended columns"
"""Where the new tree's logits are right and the old one's were not: the last column of an image with text behind it, if
its token was dropped. tests/invariants/test_columns.py compares them with an independent recompute."""


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal, tensors bit for bit with their types and shapes."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and _equal(one, other)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(same(*pair) for pair in zip(one, other, strict=True))
    return type(one) is type(other) and bool(one == other)


def _equal(one: Tensor, other: Tensor) -> bool:
    if not one.is_floating_point():
        return torch.equal(one, other)
    return torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)  # rows of padding may see nothing


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The names of facts that differ; for logits, how far."""
    mended, found = new.get(MENDED), []
    for name in {**old, **new}:
        if name == MENDED or (name == "prefill logits" and only_there(old, new, mended)):
            continue
        if name not in old or name not in new:
            found.append(f"{name} ({old.get(name, 'none')} -> {new.get(name, 'none')})" if "refusal" in name else name)
        elif not same(old[name], new[name]):
            found.append(name + _distance(old[name], new[name]))
    return found


def only_there(old: dict[str, Any], new: dict[str, Any], mended: Tensor | None) -> bool:
    """Whether the prefill's logits are equal but for the mended columns."""
    name = "prefill logits"
    if mended is None or name not in old or name not in new or old[name].shape != new[name].shape:
        return False
    return _equal(old[name][~mended], new[name][~mended])


def _distance(one: Any, other: Any) -> str:
    """How far two tensors are apart, in words; nothing where that says nothing."""
    if isinstance(one, str):
        return f" ({one} -> {other})"
    if not isinstance(one, Tensor) or one.shape != other.shape:
        return ""
    return f" (by {(one.float() - other.float()).abs().max():.1e})"


def compared(old: dict[str, Any], new: dict[str, Any], counted: tuple[dict[str, Any], ...]) -> tuple[str, str]:
    """A verdict ("equal", "fewer", "more" or "DIFFERS") and what there is to say, of one prompt.

    Args:
        old: Facts of the old tree.
        new: Facts of the new tree.
        counted: Counts of the old and the new tree, or nothing.
    """
    if crashes := [facts["crash"] for facts in (old, new, *counted) if "crash" in facts]:
        return "DIFFERS", f"crashed: {crashes[0]}"
    apart = differences(old, new)
    said = [f"differs in {', '.join(apart)}"] if apart else []
    if not apart and "refusal" in old:
        said.append(f"refused by both: {old['refusal']}")
    elif not apart and "refusal of generate" in old:
        said.append(f"generate refused by both: {old['refusal of generate']}")
    verdicts = ["DIFFERS" if apart else "equal"]
    if counted:
        verdict, words = _counts(*counted)
        verdicts.append(verdict)
        said.append(words)
    verdict = next(word for word in ("DIFFERS", "more", "fewer", "equal") if word in verdicts)
    return verdict, "; ".join(word for word in said if word)


def _counts(old: dict[str, Any], new: dict[str, Any]) -> tuple[str, str]:
    if "refusal" in old or "refusal" in new:
        ends = [counts.get("refusal", "counted") for counts in (old, new)]
        return ("equal", "") if ends[0] == ends[1] else ("DIFFERS", f"counting {ends[0]} -> {ends[1]}")
    pairs = [(old[call][which], new[call][which]) for which in (0, 1) for call in ("prefill", "decode")]
    words = [f"{before} -> {after}" for before, after in pairs]
    told = f"operators {words[0]} and {words[1]} a step, waits {words[2]} and {words[3]} a step"
    if any(after > (1 + MORE) * before for before, after in pairs[:2]) or any(
        after > before for before, after in pairs[2:]
    ):
        return "DIFFERS", f"more {told}"
    if any(after > before for before, after in pairs):
        return "more", told
    return ("equal" if all(after == before for before, after in pairs) else "fewer"), told
