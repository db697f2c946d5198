"""Quality against cost: a line a method, the Pareto front, and what the full model reaches."""

from typing import TYPE_CHECKING

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from foveate.eval.summary import Outcome, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw"]

CONTROLS = {"random": "#8a8a8a", "uniform": "#b59f6b", "averagepool": "#9fb0c9", "resize": "#c99fb0"}
MARKS = "osD^vP*Xh"


def draw(summary: Summary, title: str) -> Image.Image:
    """Accuracy over the tokens truly spent and, where the cost is known, over FLOPs: an RGB picture."""
    panels = [("Vision tokens a decoder layer processes, mean", False)]
    if summary.outcomes and all(outcome.flops is not None for outcome in summary.outcomes):
        panels.append(("FLOPs from the pixels to the first token, share of the full model's", True))
    figure = Figure(figsize=(6.6 * len(panels) + 2.2, 5.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (label, by_flops) in zip(axes, panels, strict=True):
        _panel(axis, summary, by_flops)
        axis.set_xlabel(label)
    axes[0].set_ylabel("Accuracy, 95 % interval")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=11)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba(), "raw", "RGBA", 0, 1).convert("RGB")


def _panel(axis: "Axes", summary: Summary, by_flops: bool) -> None:
    names = list(dict.fromkeys(outcome.cell.name for outcome in summary.outcomes))
    colours = matplotlib.colormaps["tab10"]
    own = [name for name in names if name not in CONTROLS]
    for number, name in enumerate(names):
        mine = sorted((o for o in summary.outcomes if o.cell.name == name), key=lambda o: _cost(o, by_flops))
        values = [o.accuracy for o in mine]
        axis.errorbar(
            [_cost(o, by_flops) for o in mine],
            [v.value for v in values],
            yerr=[[v.value - v.low for v in values], [v.high - v.value for v in values]],
            label=name,
            color=CONTROLS.get(name) or colours(own.index(name) % 10),
            linestyle="--" if name in CONTROLS else "-",
            marker=MARKS[number % len(MARKS)],
            markersize=5,
            linewidth=1.4,
            elinewidth=0.8,
            capsize=2,
        )
    front = _front(summary.outcomes, by_flops)
    axis.step(
        [_cost(o, by_flops) for o in front],
        [o.accuracy.value for o in front],
        where="post",
        color="black",
        alpha=0.15,
        linewidth=6,
        zorder=0,
        label="Pareto front",
    )
    axis.axhline(summary.accuracy.value, color="black", linewidth=1, linestyle=":", label="full model")
    axis.axhspan(summary.accuracy.low, summary.accuracy.high, color="black", alpha=0.06, linewidth=0)
    axis.grid(alpha=0.25)
    axis.set_xlim(left=0)
    axis.set_ylim(bottom=0)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _cost(outcome: Outcome, by_flops: bool) -> float:
    return (outcome.flops or 0.0) if by_flops else outcome.tokens


def _front(outcomes: tuple[Outcome, ...], by_flops: bool) -> list[Outcome]:
    """What nothing cheaper or equally cheap beats, from cheap to dear."""
    front: list[Outcome] = []
    for outcome in sorted(outcomes, key=lambda o: (_cost(o, by_flops), -o.accuracy.value)):
        if not front or outcome.accuracy.value > front[-1].accuracy.value:
            front.append(outcome)
    return front
