"""Answers as cards, side by side: HTML, all text escaped."""

from collections.abc import Sequence
from html import escape

from foveate.app.answers import FULL, Reply
from foveate.ask.answer import Answer

__all__ = ["cards"]


def cards(replies: Sequence[Reply], right: str | None = None) -> str:
    """A card a reply: the answer, and what it took beside the full model.

    Args:
        replies: In order; those to come have no text yet.
        right: The right answer, where it is known.
    """
    full = next((reply.answer for reply in replies if reply.name == FULL), None)
    made = "".join(_card(reply, full) for reply in replies)
    line = f"<p class='fv-right'>The right answer is <b>{escape(right)}</b>.</p>" if right else ""
    return f"<div class='fv-grid'>{made}</div>{line}"


def _card(reply: Reply, full: Answer | None) -> str:
    badge = "<span class='fv-badge'>picture seen before</span>" if reply.reused else ""
    name = escape(reply.name).replace("+", "+<wbr>").replace(":", ":<wbr>")
    head = f"<h3>{name}{badge}</h3>"
    if reply.error is not None:
        return f"<article class='fv-card'>{head}<p class='fv-error' role='alert'>{escape(reply.error)}</p></article>"
    if reply.answer is None:
        words = escape(reply.text) or "…"
        return f"<article class='fv-card fv-waiting'>{head}<p class='fv-text'>{words}</p></article>"
    words = escape(reply.text) or "<i>no words</i>"
    rows = "".join(_row(*row) for row in _measures(reply, reply.answer, full))
    return f"<article class='fv-card'>{head}<p class='fv-text'>{words}</p><dl>{rows}</dl></article>"


def _row(label: str, value: str, share: float | None) -> str:
    """A measure; with a bar where it is a share of the full model's."""
    bar = ""
    if share is not None:
        bar = f"<i class='fv-bar'><i style='width:{100 * min(max(share, 0), 1):.1f}%'></i></i>"
    return f"<div><dt>{label}</dt><dd>{value}{bar}</dd></div>"


def _measures(reply: Reply, answer: Answer, full: Answer | None) -> list[tuple[str, str, float | None]]:
    """Retention, FLOPs, bytes of the KV cache, and times: what is shown, and the share of the full model's."""
    rows: list[tuple[str, str, float | None]] = [
        ("Vision tokens", f"{answer.spent:.0f} of {answer.vision_tokens} ({answer.retention:.0%})", answer.retention)
    ]
    flops = answer.flops
    if flops is not None:
        whole = full.flops if full is not None and full.flops else flops
        rows.append(("FLOPs to the first token", f"{_amount(flops)} ({flops / whole:.0%})", flops / whole))
    if answer.kv_bytes:
        share = answer.kv_bytes / (answer.kv_bytes_whole or answer.kv_bytes)
        rows.append(("KV cache", f"{_size(answer.kv_bytes)} ({share:.0%})", share))
    if reply.first is not None and reply.seconds is not None:
        rows.append(("Time", f"{reply.first:.2f} s to the first words, {reply.seconds:.2f} s in all", None))
    if answer.missed is not None:
        rows.append(("Budget not met", escape(answer.missed), None))
    return rows


def _amount(flops: float) -> str:
    """12.3 G, 4.56 T."""
    for power, letter in ((12, "T"), (9, "G"), (6, "M")):
        if flops >= 10**power:
            return f"{flops / 10**power:.3g} {letter}"
    return f"{flops:.0f}"


def _size(count: float) -> str:
    """3.2 MiB."""
    for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if count >= 2**power:
            return f"{count / 2**power:.3g} {unit}"
    return f"{count:.0f} B"
