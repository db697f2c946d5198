"""Plot quality against cost: one line per method, the Pareto front, and the full model."""

from dataclasses import astuple
from itertools import cycle
from math import isnan
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from foveate.eval.plan import BASELINES
from foveate.eval.quality import AGREEMENT, Quality
from foveate.plain.stats import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKS = "osD^vP*Xh"


def draw(quality: Quality) -> Image.Image:
    """Plot accuracy and agreement over the spent tokens and, if known, over FLOPs. Return an RGB image."""
    settings, full = quality.settings, quality.full
    names, flops = [row.name for row in settings], [row.flops for row in settings]
    panels = {"Mean vision tokens per decoder layer": [row.tokens for row in settings]}
    if not all(map(isnan, flops)):
        panels["FLOPs from the pixels to the first token, share of the full model's"] = flops
    measures = [(quality.figure, [row.accuracy for row in settings], full.accuracy, quality.higher_is_better)]
    if quality.figure != AGREEMENT:
        measures.append((AGREEMENT, [row.agreement for row in settings], Estimate(1, 1, 1), True))
    width = 6.6 * len(panels) + 2.2
    height = max(1.2 + 4 * len(measures), 0.2 * (len(set(names)) + 5))  # inches; the legend lists one name per line
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(len(measures), len(panels), sharex="col", sharey="row", squeeze=False)
    for row, (measure, estimates, of_full, higher_is_better) in zip(axes, measures, strict=True):
        row[0].set_ylabel(f"{measure}, 95 % interval")
        for axis, costs in zip(row, panels.values(), strict=True):
            _panel(axis, list(zip(names, costs, estimates, strict=True)), of_full, higher_is_better)
    for axis, (label, costs) in zip(axes[-1], panels.items(), strict=True):
        missing = dict.fromkeys(name for name, cost in zip(names, costs, strict=True) if isnan(cost))
        axis.set_xlabel(f"{label}\nnot counted: {', '.join(missing)}" if missing else label)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9)
    figure.suptitle(quality.title, fontsize=11)
    figure.supxlabel("\n".join(fill(note, int(12 * width)) for note in quality.caveats()), fontsize=9)
    canvas.draw()
    return Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba(), "raw", "RGBA", 0, 1).convert("RGB")


def _panel(axis: "Axes", points: list[tuple[str, float, Estimate]], full: Estimate, higher_is_better: bool) -> None:
    """Plot one measure (accuracy or agreement) over one cost, with a line for each name, and the full model's."""
    counted = [(cost, estimate, name) for name, cost, estimate in points if not isnan(cost)]
    for name, mark in zip(dict.fromkeys(name for name, *_ in points), cycle(MARKS), strict=False):
        line = sorted((cost, *astuple(estimate)) for cost, estimate, other in counted if other == name)
        costs, values, lows, highs = np.array(line).reshape(-1, 4).T
        axis.errorbar(
            costs,
            values,
            yerr=[abs(values - lows), abs(highs - values)],
            label=name,
            linestyle="--" if name in BASELINES else "-",
            marker=mark,
            markersize=5,
            linewidth=1.4,
            elinewidth=0.8,
            capsize=2,
        )
    sign = 1 if higher_is_better else -1
    front: list[tuple[float, float]] = []  # settings that no cheaper or equally cheap one beats, by ascending cost
    for cost, loss in sorted((cost, -sign * estimate.value) for cost, estimate, _ in counted):
        if not front or loss < front[-1][1]:
            front.append((cost, loss))
    axis.step(
        [cost for cost, _ in front],
        [-sign * loss for _, loss in front],
        where="post",
        color="black",
        alpha=0.15,
        linewidth=6,
        zorder=0,
        label="Pareto front",
    )
    axis.axhline(full.value, color="black", linewidth=1, linestyle=":", label="full model")
    axis.axhspan(full.low, full.high, color="black", alpha=0.06, linewidth=0)
    axis.grid(alpha=0.25)
    axis.set_xlim(0, 1.05 * max((cost for cost, *_ in counted), default=1))
    axis.set_ylim(bottom=0)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
