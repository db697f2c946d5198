"""Measured prefill time against what FLOPs alone would give, a mark a row, with its interval."""

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from foveate.bench.rows import Row
from foveate.bench.summary import Summary
from foveate.bench.timing import interval_words

__all__ = ["draw"]

PANELS = {"prefill": "Prefill", "ttft": "To the first token", "whole": "Whole call"}
GREY, CONTROL, METHOD, WARN = "#8a8a8a", "#b59f6b", "#1f77b4", "#c44e52"


def draw(summary: Summary, title: str) -> Image.Image:
    """Ratios of time to the untouched model's with their intervals, and a line at the FLOP ratio: an RGB picture."""
    rows = [row for row in summary.rows if not row.is_untouched]
    panels = [part for part in PANELS if part in rows[0].ratios]
    size = (3.6 * len(panels) + 2.4, 0.42 * len(rows) + 1.9)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, part in zip(axes, panels, strict=True):
        axis.axvline(1, color="black", linewidth=1, linestyle=":")
        for place, row in enumerate(rows):
            if part not in row.ratios:
                continue
            ratio = row.ratios[part]
            errors = [[ratio.median - ratio.low], [ratio.high - ratio.median]]
            style = {"color": _colour(row), "markerfacecolor": "white" if row.is_bare else _colour(row)}
            axis.errorbar(ratio.median, place, xerr=errors, fmt="o", markersize=5, capsize=3, linewidth=1.4, **style)
            axis.plot([row.flops[part]] * 2, [place - 0.32, place + 0.32], color="black", linewidth=1.6)
        axis.set_xlabel(f"{PANELS[part]}: time, untouched model = 1")
        axis.set_xlim(left=0)
        axis.grid(axis="x", alpha=0.25)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    axes[0].set_yticks(range(len(rows)), [row.name for row in rows])
    axes[0].invert_yaxis()
    figure.suptitle(title, fontsize=11)
    legend = f"point: median of paired rounds, {interval_words(summary.rounds)}; black bar: ratio of FLOPs"
    if any(row.is_bare for row in rows):
        legend += "; hollow: the layers alone"
    figure.supxlabel(legend, fontsize=8)
    canvas.draw()
    return Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba(), "raw", "RGBA", 0, 1).convert("RGB")


def _colour(row: Row) -> str:
    if row.is_check:
        return GREY
    if row.is_eager:
        return WARN
    if row.candidate.control:
        return METHOD
    return CONTROL
