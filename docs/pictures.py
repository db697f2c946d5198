"""Draw what each method keeps: docs/images/methods/NAME.webp, which the method's page shows.

    python docs/pictures.py [NAME …]     # "places" is the picture of docs/guides/dropping.md, "demo" README's

The embedded model answers a question about its demo picture with a mean of a ninth of the vision tokens a decoder
layer, or about a film with a third where the method is for films; with the method's own defaults where it takes no
budget. PixelPrune sees pixels alone, and gets a screenshot that benchmarks/pixels draws.
"""

import runpy
import sys
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from transformers import LlavaConfig

import foveate as fv
from foveate import embedded
from foveate.contract import Method, PixelView, Shape
from foveate.contract.stages import PatchStage
from foveate.engine.trace import PrefillRecord
from foveate.eval.held_out import picture_or_clip
from foveate.viz.canvas import LEGEND, PLAIN_LEGEND, Page, fit
from foveate.viz.dim import Pixels, dim
from foveate.viz.mosaic import plain_panel, stage_panels
from foveate.viz.showing import Media, frames_shown

FOLDER = Path(__file__).parent / "images/methods"
PLACES = Path(__file__).parent / "images/places.svg"
DEMO = Path(__file__).parent / "images/demo.png"
SCREENSHOT = Path(__file__).parent.parent / "benchmarks/pixels/pictures.py"
SPELLED = {"coordinates": "fastv+coordinates", "finalkv": "v2drop+finalkv", "ivcprune": "ivcprune:keep=0.5"}
"""Members of chains that drop nothing by themselves, and what cuts too late for a ninth."""
FOR_FILMS = ("dtd", "dycoke", "evs", "fastvid", "flashvid", "holitom")
RETENTION, OF_FILMS = 1 / 9, 1 / 3
SIDE, BIG, GAP, SIZE = 144, 336, 12, 6.5
"""Pixels of a panel, 6 a vision token, of a large one, and between panels; points of the letters."""
FILM, FRAMES = 4, 6
UNIT = 28
"""Pixels of a side of Qwen2-VL's vision tokens."""
QUALITY = 50

Panels = list[tuple[Pixels, str]]


def main(names: list[str]) -> int:
    """Draw the named methods, or all; the exit code."""
    known = [PLACES.stem, DEMO.stem, *fv.methods()]
    if unknown := sorted(set(names) - set(known)):
        print(f"pictures.py: no method {unknown[0]!r}. There are: {', '.join(known)}.", file=sys.stderr)
        return 2
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in names or known:
        if name == PLACES.stem:
            draw_places()
        elif name == DEMO.stem:
            draw_demo()
        elif page := drawn(name):
            path = FOLDER / f"{name}.webp"
            page.save(path, quality=QUALITY, method=6)
            print(f"{name}: {path.stat().st_size / 1024:.0f} KiB")
        else:
            print(f"{name}: drops nothing, not drawn")
    return 0


def drawn(name: str) -> Image.Image | None:
    """The picture of one method; None where it drops nothing."""
    method = fv.methods()[name]()
    if any(isinstance(stage, PatchStage) for stage in method.stages(Shape(depth=32, cls=True))):
        return page(of_pixels(method), merges=False)
    if name in FOR_FILMS:
        film = picture_or_clip(FILM, is_film=True).thinned(FRAMES)
        return of_prefill(asked(fv.load(embedded.FILMS), film, name, OF_FILMS), film)
    picture = Image.open(embedded.picture())
    spelling = SPELLED.get(name, name)
    return of_prefill(asked(fv.load(), picture, spelling, RETENTION), picture)


def asked(vlm: fv.VLM, media: Media, name: str, retention: float) -> PrefillRecord:
    """What a method did to a prompt, with the budget, or with its own settings if it takes none."""
    try:
        answer = vlm.ask(media, embedded.QUESTION, method=name, retention=retention, max_new_tokens=1)
    except (fv.SettingError, fv.BudgetError):
        answer = vlm.ask(media, embedded.QUESTION, method=name, max_new_tokens=1)
    return answer.trace.latest


def of_prefill(prefill: PrefillRecord, media: Media) -> Image.Image | None:
    """What was there, and a panel for each stage that dropped something."""
    stages = [stage for stage in stage_panels(prefill, media, side=SIDE) if stage.dropped]
    frames, _ = frames_shown(prefill, media, 0)
    whole = plain_panel([frame.picture for frame in frames], SIDE)
    panels = [(whole, f"{prefill.vision_tokens[0]} tokens")]
    panels += [(stage.pixels, f"{stage.place}: {stage.after}") for stage in stages]
    return page(panels, any(stage.merges for stage in stages)) if stages else None


def of_pixels(method: Method) -> Panels:
    """A screenshot, and what a method that sees pixels alone keeps of it."""
    picture = runpy.run_path(str(SCREENSHOT))["screenshot"]((27 * UNIT, 20 * UNIT))
    rows, columns = picture.height // UNIT, picture.width // UNIT
    cells = torch.from_numpy(np.asarray(picture).copy()).float().view(rows, UNIT, columns, UNIT, 3)
    units = cells.transpose(1, 2).reshape(1, rows, columns, -1) / 255  # a token's numbers behind one another
    none = torch.zeros(units.shape[-1])
    kept = method.stages(Shape(depth=32))[0].cut(PixelView(units, none, none + 1)).stays.nonzero().flatten().numpy()
    steps = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1).reshape(-1, 2)
    boxes = np.concatenate([steps, steps + 1], axis=1) / [columns, rows, columns, rows]
    pixels = fit(picture, 14 / UNIT)
    dimmed = dim(pixels, boxes, kept)
    return [(pixels, f"{rows * columns} tokens"), (dimmed, f"before the tower: {len(kept)}")]


def draw_demo() -> None:
    """The embedded model's picture, what a method and a random choice of as many tokens keep, and what is answered."""
    vlm, picture = fv.load(), Image.open(embedded.picture())
    names = {"vidcom2": "VidCom2", "random:layers=0": "at random"}
    full = vlm.ask(picture, embedded.QUESTION)
    panels: Panels = [(plain_panel([picture], BIG), f"all {full.vision_tokens} tokens: “{full}”")]
    for name, words in names.items():
        answer = vlm.ask(picture, embedded.QUESTION, method=name, retention=OF_FILMS)
        (stage,) = stage_panels(answer.trace.latest, picture, side=BIG)
        panels.append((stage.pixels, f"{stage.after} tokens, {words}: “{answer}”"))
    page(panels, merges=False, size=9).save(DEMO)


def draw_places() -> None:
    """How many vision tokens each part of LLaVA-1.5-7B processes, with two methods at the same mean."""
    config, count, depth, tower = LlavaConfig(), 576, 32, 10  # the tower's width is drawn, not counted
    plans = {"untouched": (count,) * depth}
    for method in (fv.DivPrune(tokens=192), fv.V2Drop.for_budget(config, tokens=192)):
        plans[f"{type(method).__name__}, 192 tokens"] = method.plan(depth, (count,))
    colours = ("#98a2b3", "#d97706", "#2563eb")
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "places", "font.size": 9}):
        figure = Figure(figsize=(8.6, 3.4), facecolor="white", layout="constrained")
        axes = figure.subplots()
        for (name, plan), colour in zip(plans.items(), colours, strict=True):
            steps = [count, *plan, plan[-1]]
            axes.step([-tower, *range(depth + 1)], steps, where="post", label=name, color=colour, linewidth=2)
            axes.fill_between(range(depth + 1), steps[1:], step="post", alpha=0.1, color=colour)
        axes.axvspan(-tower, 0, color="#eef2f6", zorder=0)
        for x, words in ((-tower / 2, "vision tower,\nprojector"), (depth / 2, "decoder layers, and their KV caches")):
            axes.text(x, count * 1.05, words, ha="center", va="bottom", color="#475467")
        axes.set(xlim=(-tower, depth), ylim=(0, count * 1.25), ylabel="vision tokens", xlabel="decoder layer")
        axes.set_xticks(range(0, depth + 1, 4))
        axes.set_yticks([0, 192, 384, 576])
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="center right", bbox_to_anchor=(1, 0.62))
        figure.savefig(PLACES, metadata={"Date": None})


def page(panels: Panels, merges: bool, size: float = SIZE) -> Image.Image:
    """Panels side by side, with what their colours mean."""
    cell = max(pixels.shape[1] for pixels, _ in panels)
    sheet = Page(GAP + max(3, len(panels)) * (cell + GAP))
    top = sheet.row(panels, GAP, GAP, cell=cell, gap=GAP, size=size)
    legend = LEGEND if merges else PLAIN_LEGEND
    top = sheet.write(legend, GAP, top + GAP / 2, size, room=sheet.width - 2 * GAP, kind="faint")
    return sheet.to_image(top + GAP / 2)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
