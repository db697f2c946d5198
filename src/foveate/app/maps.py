"""Heat maps and overlaps as HTML, which reads in light and in dark."""

import base64
import io
from html import escape

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image

from foveate.app.heat import HeatMaps

__all__ = ["heat_html"]

COLOURS = "inferno"
SCALE = 5
"""Pixels of a map's cell along each side."""
STRONG = 0.55
"""From which overlap on letters are white on their colour."""


def heat_html(maps: HeatMaps, total: int) -> str:
    """A map a method, with one scale for all, and a table of how far they agree.

    Args:
        maps: What was seen so far.
        total: How many pictures there will be.
    """
    if not maps.names:
        return _failures(maps) or "<p class='fv-note'>Choose a method.</p>"
    means = {name: maps.map_of(name) for name in maps.names}
    most = max(max(float(mean.max()) for mean in means.values()), 0.01)
    done = f"{maps.pictures} of {total} pictures" if maps.pictures < total else f"{total} pictures"
    figures = "".join(_figure(name, mean, most) for name, mean in means.items())
    scale = (
        f"<div class='fv-scale'><span>0%</span><img alt='colour scale' src='{_png(_ramp())}'>"
        f"<span>{most:.0%} of the layers</span></div>"
    )
    note = (
        f"<p class='fv-note'>Mean over {done}: in which share of the decoder's layers the tokens of a place are "
        "processed. What was merged away counts as gone.</p>"
    )
    return f"<div class='fv-grid fv-maps'>{figures}</div>{scale}{note}{_matrix(maps)}{_failures(maps)}"


def _figure(name: str, mean: NDArray[np.float64], most: float) -> str:
    url = _png(np.kron(_coloured(mean / most), np.ones((SCALE, SCALE, 1), dtype=np.uint8)))
    words = f"<b>{escape(name)}</b> mean {mean.mean():.0%}"
    return (
        f"<figure class='fv-panel'><img src='{url}' alt='heat map of {escape(name, quote=True)}'>"
        f"<figcaption>{words}</figcaption></figure>"
    )


def _matrix(maps: HeatMaps) -> str:
    """The overlaps, a row and a column a method."""
    if len(maps.names) < 2:
        return ""
    heads = "".join(f"<th scope='col'>{escape(name)}</th>" for name in maps.names)
    rows = "".join(_matrix_row(maps, name) for name in maps.names)
    note = (
        "Jaccard overlap: of all pairs of a token and a layer that either method processes, the share that both do. "
        "Two methods that choose at random share some too: a control such as random shows how much."
    )
    table = f"<table class='fv-overlap'><thead><tr><th></th>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    return f"<h3>Overlap</h3><div class='fv-scroll'>{table}</div><p class='fv-note'>{note}</p>"


def _matrix_row(maps: HeatMaps, name: str) -> str:
    cells = []
    for other in maps.names:
        value = maps.overlap_of(name, other)
        letters = " class='fv-strong'" if value >= STRONG else ""
        cells.append(f"<td{letters} style='--share:{value:.3f}'>{value:.2f}</td>")
    return f"<tr><th scope='row'>{escape(name)}</th>{''.join(cells)}</tr>"


def _failures(maps: HeatMaps) -> str:
    lines = [f"<p class='fv-error'>{escape(name)}: {escape(why)}</p>" for name, why in maps.failed.items()]
    return "".join(lines)


def _ramp() -> NDArray[np.uint8]:
    """All colours from left to right."""
    return _coloured(np.tile(np.linspace(0, 1, 120), (10, 1)))


def _coloured(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """(height, width) in [0, 1] -> (height, width, 3)."""
    colours: NDArray[np.uint8] = (colormaps[COLOURS](values)[:, :, :3] * 255).round().astype(np.uint8)
    return colours


def _png(pixels: NDArray[np.uint8]) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
