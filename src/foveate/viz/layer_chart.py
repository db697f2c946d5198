"""A chart of the vision tokens that each decoder layer processes and keeps."""

from typing import Any

from matplotlib.ticker import MaxNLocator
from PIL import Image

from foveate.cost import Cost
from foveate.viz.canvas import FAINT, INK, Page

WIDTH, HEIGHT = 1200, 620
LEFT, TOP, RIGHT, BELOW = 110, 120, 40, 95
"""Margins around the chart, in pixels, for its title and labels."""
BLUE, ORANGE = "#4f7cac", "#c2571a"


def draw_plan(cost: Cost, title: str = "Vision tokens in each decoder layer") -> Image.Image:
    """Draw the vision tokens of each decoder layer as steps, and the number that the tower makes as a line.

        draw_plan(fv.cost(config, text_tokens=40, vision_tokens=576, method=fv.V2Drop()))

    Args:
        cost: The cost of a prompt with a method.
        title: The title of the chart.
    """
    entering, tokens, cached = sum(cost.vision_tokens), cost.tokens, cost.cached
    page = Page(WIDTH)
    words = f"{sum(tokens) / len(tokens):.4g} of {entering} vision tokens in a decoder layer, on average"
    below = page.write(title, LEFT, 24, 13, room=WIDTH - LEFT - RIGHT, lines=1, kind="bold")
    page.write(words, LEFT, below, 10, room=WIDTH - LEFT - RIGHT, lines=1, kind="faint")

    def chart(axes: Any) -> None:
        edges = range(len(tokens) + 1)
        axes.axhline(entering, color=FAINT, linestyle=":", label="made by the vision tower")
        axes.stairs(tokens, edges, fill=True, color=BLUE, alpha=0.35)
        axes.stairs(tokens, edges, color=BLUE, linewidth=2, label="processed by the layer")
        if cached != tokens:
            axes.stairs(cached, edges, color=ORANGE, linewidth=2, linestyle="--", label="kept in its cache")
        axes.set(xlim=(0, len(tokens)), ylim=(0, 1.08 * entering), xlabel="Decoder layer", ylabel="Vision tokens")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(colors=INK)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="upper right", bbox_to_anchor=(1, 0.9), frameon=False)

    page.chart(LEFT, TOP, WIDTH - LEFT - RIGHT, HEIGHT - TOP - BELOW, chart)
    return page.to_image(HEIGHT)
