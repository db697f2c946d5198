"""Quality against cost: a line a method, the Pareto front, and what the full model reaches."""

from collections.abc import Callable, Iterable, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from foveate.eval.outcome import Outcome
from foveate.eval.summary import Summary
from foveate.viz import stack

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw", "draw_all"]

Cost = Callable[[Outcome], float]

CONTROLS = {"random": "#8a8a8a", "uniform": "#b59f6b", "averagepool": "#9fb0c9", "resize": "#c99fb0"}
MARKS = "osD^vP*Xh"


def draw(summary: Summary, title: str = "") -> Image.Image:
    """Accuracy over the tokens truly spent and, where the cost is known, over FLOPs: an RGB picture."""
    panels = [("Vision tokens a decoder layer processes, mean", _tokens)]
    if summary.outcomes and all(outcome.flops is not None for outcome in summary.outcomes):
        panels.append(("FLOPs from the pixels to the first token, share of the full model's", _flops))
    names = len({outcome.cell.name for outcome in summary.outcomes})
    height = max(5.2, 0.2 * (names + 4))  # inches: the names stand one below the other
    figure = Figure(figsize=(6.6 * len(panels) + 2.2, height), dpi=150, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (label, cost) in zip(axes, panels, strict=True):
        _panel(axis, summary, cost)
        axis.set_xlabel(label)
    axes[0].set_ylabel(f"{summary.figure}, 95 % interval")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9)
    figure.suptitle(title or summary.title, fontsize=11)
    canvas.draw()
    return Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba(), "raw", "RGBA", 0, 1).convert("RGB")


def draw_all(summaries: Iterable[Summary]) -> Image.Image:
    """A picture for each of several tasks, one below the other."""
    pictures = [draw(summary) for summary in summaries]
    if len(pictures) == 1:
        return pictures[0]
    return stack([("", picture) for picture in pictures])


def _panel(axis: "Axes", summary: Summary, cost: Cost) -> None:
    curves: dict[str, list[Outcome]] = {}
    for outcome in sorted(summary.outcomes, key=cost):
        curves.setdefault(outcome.cell.name, []).append(outcome)
    names = list(dict.fromkeys(outcome.cell.name for outcome in summary.outcomes))
    own = [name for name in names if name not in CONTROLS]
    palette = matplotlib.colormaps["tab10"]
    colours = {**CONTROLS, **{name: palette(number % palette.N) for number, name in enumerate(own)}}
    for name, mark in zip(names, cycle(MARKS), strict=False):
        accuracies = [outcome.accuracy for outcome in curves[name]]
        below = [accuracy.value - accuracy.low for accuracy in accuracies]
        above = [accuracy.high - accuracy.value for accuracy in accuracies]
        axis.errorbar(
            [cost(outcome) for outcome in curves[name]],
            [accuracy.value for accuracy in accuracies],
            yerr=[below, above],
            label=name,
            color=colours[name],
            linestyle="--" if name in CONTROLS else "-",
            marker=mark,
            markersize=5,
            linewidth=1.4,
            elinewidth=0.8,
            capsize=2,
        )
    front = _front(summary.outcomes, cost)
    axis.step(
        [cost(outcome) for outcome in front],
        [outcome.accuracy.value for outcome in front],
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


def _tokens(outcome: Outcome) -> float:
    return outcome.tokens


def _flops(outcome: Outcome) -> float:
    return outcome.flops or 0.0


def _front(outcomes: Sequence[Outcome], cost: Cost) -> list[Outcome]:
    """What nothing cheaper or equally cheap beats, from cheap to expensive."""
    front: list[Outcome] = []
    for outcome in sorted(outcomes, key=lambda outcome: (cost(outcome), -outcome.accuracy.value)):
        if not front or outcome.accuracy.value > front[-1].accuracy.value:
            front.append(outcome)
    return front
