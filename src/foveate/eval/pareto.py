"""Plot quality against cost: one line per method, the Pareto front, and the full model."""

from itertools import cycle
from textwrap import fill
from typing import TYPE_CHECKING

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from foveate.eval.pairing import Row, read_estimate
from foveate.eval.plan import BASELINES
from foveate.eval.quality import AGREEMENT, Quality

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKS = "osD^vP*Xh"


def draw(quality: Quality) -> Image.Image:
    """Plot accuracy and agreement over the spent tokens and, if known, over FLOPs. Return an RGB image."""
    panels = [("Mean vision tokens per decoder layer", "tokens")]
    settings = quality.settings
    if any(row["flops"] is not None for row in settings):
        panels.append(("FLOPs from the pixels to the first token, share of the full model's", "flops"))
    measures = [(quality.figure, "accuracy")]
    if quality.figure != AGREEMENT:
        measures.append((AGREEMENT, "agreement"))
    names = len({row["name"] for row in settings})
    width = 6.6 * len(panels) + 2.2
    height = max(1.2 + 4 * len(measures), 0.2 * (names + 5))  # inches; the legend lists one name per line
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(len(measures), len(panels), sharex="col", sharey="row", squeeze=False)
    for row, (name, measure) in zip(axes, measures, strict=True):
        row[0].set_ylabel(f"{name}, 95 % interval")
        for axis, (_, cost) in zip(row, panels, strict=True):
            _panel(axis, quality, cost, measure)
    for axis, (label, cost) in zip(axes[-1], panels, strict=True):
        missing = dict.fromkeys(row["name"] for row in settings if row[cost] is None)
        axis.set_xlabel(f"{label}\nnot counted: {', '.join(missing)}" if missing else label)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9)
    figure.suptitle(quality.title, fontsize=11)
    figure.supxlabel("\n".join(fill(note, int(12 * width)) for note in quality.caveats()), fontsize=9)
    canvas.draw()
    return Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba(), "raw", "RGBA", 0, 1).convert("RGB")


def _panel(axis: "Axes", quality: Quality, cost: str, measure: str) -> None:
    """Plot one measure (accuracy or agreement) over one cost."""
    names = list(dict.fromkeys(row["name"] for row in quality.settings))
    counted = [row for row in quality.settings if row[cost] is not None]
    for name, mark in zip(names, cycle(MARKS), strict=False):
        rows = sorted((row for row in counted if row["name"] == name), key=lambda row: row[cost])
        estimates = [read_estimate(row, measure) for row in rows]
        below = [abs(one.value - one.low) for one in estimates]
        above = [abs(one.high - one.value) for one in estimates]
        axis.errorbar(
            [row[cost] for row in rows],
            [row[measure] for row in rows],
            yerr=[below, above],
            label=name,
            linestyle="--" if name in BASELINES else "-",
            marker=mark,
            markersize=5,
            linewidth=1.4,
            elinewidth=0.8,
            capsize=2,
        )
    sign = 1 if measure == "agreement" or quality.higher_is_better else -1
    front: list[Row] = []  # settings that no cheaper or equally cheap one beats, by ascending cost
    for row in sorted(counted, key=lambda row: (row[cost], -sign * row[measure])):
        if not front or sign * row[measure] > sign * front[-1][measure]:
            front.append(row)
    axis.step(
        [row[cost] for row in front],
        [row[measure] for row in front],
        where="post",
        color="black",
        alpha=0.15,
        linewidth=6,
        zorder=0,
        label="Pareto front",
    )
    full = quality.full
    axis.axhline(
        full["accuracy"] if measure == "accuracy" else 1, color="black", linewidth=1, linestyle=":", label="full model"
    )
    if measure == "accuracy":
        interval = read_estimate(full, "accuracy")
        axis.axhspan(interval.low, interval.high, color="black", alpha=0.06, linewidth=0)
    axis.grid(alpha=0.25)
    axis.set_xlim(0, 1.05 * max((row[cost] for row in counted), default=1))
    axis.set_ylim(bottom=0)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
