"""Measure what PixelPrune drops from five drawn pictures, and what that saves. Writes benchmarks/pixels/record.json.

    python benchmarks/pixels/run.py

Shares are exact: they come from the processor's pixels and need no model. Times are seconds on one core, from pixels to
the first token, in float32, for a Qwen2.5-VL-3B with half the width, an eighth of the depth and random weights, on a
smaller screenshot: untouched, untouched again, with PixelPrune, and with as many tokens dropped at random behind the
tower. The change of the kept rows in the tower is measured on towers of 8 blocks with random weights of two scales.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import torch
from pictures import PICTURES
from PIL import Image
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

import foveate as fv
from foveate.bench.timing import ratio, rounds
from foveate.contract import Cut, PatchStage, Shape, Stage
from foveate.contract.method import Method
from foveate.plain.table import between
from foveate.registry import families
from foveate.runs.versions import commit, versions

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs/methods/pixelprune.md"
SIZE = (1024, 768)
TIMED = (768, 576)
TAUS = (0.0, 2 / 255, 8 / 255, 0.05, 0.1)
IMAGE, START, END, TEXT = 90, 91, 92, 40
ROUNDS = 7


def processed(image: Image.Image, family: str) -> dict[str, torch.Tensor]:
    """The processor's patches of a picture: 14 x 14 pixels for Qwen2.5-VL, 16 x 16 for Qwen3-VL."""
    kind = families()[family]
    processor = Qwen2VLImageProcessorPil(
        patch_size=16 if family == "qwen3_vl" else 14, min_pixels=1, max_pixels=2**24,
        image_mean=list(kind.pixel_mean), image_std=list(kind.pixel_std),
    )  # fmt: skip
    return dict(processor(images=image, return_tensors="pt"))


def decided(model: Any, inputs: dict[str, torch.Tensor], method: fv.PixelPrune) -> torch.Tensor:
    """A bool mask of the tokens that PixelPrune keeps."""
    (view,) = fv.registry.family_for(model).pixel_views(inputs["pixel_values"], inputs["image_grid_thw"])
    (stage,) = method.stages(Shape(1))
    cut = stage.cut(view)
    assert cut is not None
    assert cut.stays is not None
    return cut.stays


def config_of(family: str, blocks: int = 4, layers: int = 5, std: float = 0.02) -> Any:
    """The config of a Qwen2.5-VL-3B or Qwen3-VL with half the width and this many blocks and layers."""
    text = {
        "hidden_size": 1024, "intermediate_size": 5504, "num_hidden_layers": layers, "num_attention_heads": 8,
        "num_key_value_heads": 1, "vocab_size": 128, "max_position_embeddings": 8192, "initializer_range": std,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    }  # fmt: skip
    tower = {
        "depth": blocks, "hidden_size": 640, "out_hidden_size": 1024, "num_heads": 8, "intermediate_size": 1710,
        "initializer_range": std,
    }  # fmt: skip
    tokens = {"image_token_id": IMAGE, "vision_start_token_id": START, "vision_end_token_id": END}
    if family == "qwen3_vl":
        tower |= {"patch_size": 16, "deepstack_visual_indexes": [], "num_position_embeddings": 2304}
        return Qwen3VLConfig(text_config=text, vision_config=tower, **tokens)
    tower |= {"fullatt_block_indexes": [blocks - 1], "window_size": 112}
    return Qwen2_5_VLConfig(text_config=text, vision_config=tower, **tokens)


def model_of(family: str, **sizes: Any) -> Any:
    """A model with random weights, equal in every run."""
    torch.manual_seed(0)
    kind = Qwen3VLForConditionalGeneration if family == "qwen3_vl" else Qwen2_5_VLForConditionalGeneration
    return kind(config_of(family, **sizes)).eval()


# -- shares dropped ------------------------------------------------------------------------------------------------


def shares() -> list[dict[str, Any]]:
    """Percent of the tokens dropped, by picture, family and tau."""
    rows = []
    small = {family: model_of(family, blocks=1, layers=1) for family in ("qwen2_5_vl", "qwen3_vl")}
    for name, draw in PICTURES.items():
        for family, model in small.items():
            inputs = processed(draw(SIZE), family)
            left = [decided(model, inputs, fv.PixelPrune(tau=tau)).float().mean().item() for tau in TAUS]
            leave = {f"{tau:.4f}": round(100 * (1 - share), 1) for tau, share in zip(TAUS, left, strict=True)}
            rows.append({"picture": name, "family": family, "leave %": leave})
    return rows


# -- changes in the tower ------------------------------------------------------------------------------------------


class Fixed(Method):
    """Keep a fixed set of tokens."""

    name = "fixed"
    stays: tuple[int, ...] = ()

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        return (PatchStage(choose=lambda view, count: Cut.take(torch.tensor(self.stays), len(view))),)


@torch.no_grad()
def changes() -> list[dict[str, Any]]:
    """Change of the kept tokens' features through dropping the others in the tower, in percent of their norm."""
    rows = []
    for family in ("qwen2_5_vl", "qwen3_vl"):
        inputs = processed(PICTURES["screenshot"](SIZE), family)
        for std in (0.02, 0.1):
            model = model_of(family, blocks=8, layers=1, std=std)
            (whole,) = model.model.get_image_features(**inputs).pooler_output
            stays = decided(model, inputs, fv.PixelPrune())
            other = torch.randperm(len(stays), generator=torch.Generator().manual_seed(0))[: int(stays.sum())]
            row = {"family": family, "std": std, "stay": int(stays.sum()), "of": len(stays)}
            for name, kept in (("PixelPrune", stays.nonzero()[:, 0]), ("at random", other.sort().values)):
                with fv.drop(model, Fixed(stays=tuple(kept.tolist()))):
                    (rest,) = model.model.get_image_features(**inputs).pooler_output
                change = (rest[: len(kept)] - whole[kept]).norm(dim=-1) / whole[kept].norm(dim=-1)
                row[f"{name}, change %"] = round(100 * change.mean().item(), 1)
            rows.append(row)
    return rows


# -- time ----------------------------------------------------------------------------------------------------------


def first_token(model: Any, inputs: dict[str, torch.Tensor], method: Method | None) -> float:
    """Processor seconds from pixels to the first token."""
    start = process_time()
    if method is None:
        model(**inputs, logits_to_keep=1)
    else:
        with fv.drop(model, method):
            model(**inputs, logits_to_keep=1)
    return process_time() - start


@torch.no_grad()
def times() -> dict[str, Any]:
    """Processor seconds in interleaved rounds, and ratios to the untouched model in the same round."""
    model = model_of("qwen2_5_vl")
    inputs = prompt(PICTURES["screenshot"](TIMED))
    ids = inputs["input_ids"]
    tokens = int((ids == IMAGE).sum())
    with fv.drop(model, fv.PixelPrune()) as trace:
        model(**inputs, logits_to_keep=1)
    left = trace.latest.per_layer[0][0]
    behind = fv.Random(layers=(0,), keep=((left + 0.5) / tokens,))
    with fv.drop(model, behind) as control:
        model(**inputs, logits_to_keep=1)
    assert control.latest.per_layer == trace.latest.per_layer
    known = {"text_tokens": ids.shape[1] - tokens, "vision_tokens": tokens, "grids": [prompt_grids(inputs)]}
    counts = {"tokens": [left] * 5, "tower_tokens": trace.latest.tower_tokens[0]}
    costs = {
        "untouched": fv.cost(model, **known),
        "pixelprune": fv.cost(model, method=fv.PixelPrune(), **known, **counts),
        "after the tower": fv.cost(model, method=behind, **known),
    }
    runs: dict[str, Callable[[], float]] = {
        "untouched": partial(first_token, model, inputs, None),
        "untouched again": partial(first_token, model, inputs, None),
        "pixelprune": partial(first_token, model, inputs, fv.PixelPrune()),
        "after the tower": partial(first_token, model, inputs, behind),
    }
    measured = list(rounds(runs, ROUNDS))
    series = {name: [each[name] for each in measured] for name in runs}
    (view,) = fv.registry.family_for(model).pixel_views(inputs["pixel_values"], inputs["image_grid_thw"])
    decisions = {}
    for tau in (0.0, 0.05):
        (stage,) = fv.PixelPrune(tau=tau).stages(Shape(1))
        decisions[str(tau)] = round(1000 * median(clocked(partial(stage.cut, view)) for _ in range(9)), 1)
    return {
        "tokens": tokens,
        "left": left,
        "seconds": {name: round(median(each), 2) for name, each in series.items()},
        "÷ untouched": {
            name: ratio(series[name], series["untouched"]).to_dict() for name in runs if name != "untouched"
        },
        "FLOPs ÷ untouched": {
            name: round(cost.total_flops / costs["untouched"].total_flops, 3) for name, cost in costs.items()
        },
        "decision, milliseconds by tau": decisions,
    }


def prompt(image: Image.Image) -> dict[str, torch.Tensor]:
    """A prompt of random words around a picture."""
    inputs = processed(image, "qwen2_5_vl")
    tokens = int(inputs["image_grid_thw"].prod()) // 4
    text = torch.randint(0, 80, (1, TEXT), generator=torch.Generator().manual_seed(0))
    ids = torch.cat((text[:, :4], torch.tensor([[START] + [IMAGE] * tokens + [END]]), text[:, 4:]), dim=1)
    return {**inputs, "input_ids": ids, "mm_token_type_ids": (ids == IMAGE).long()}


def prompt_grids(inputs: dict[str, torch.Tensor]) -> list[tuple[int, int]]:
    """Rows and columns of the picture's tokens."""
    ((_, height, width),) = inputs["image_grid_thw"].tolist()
    return [(height // 2, width // 2)]


def clocked(call: Callable[[], object]) -> float:
    """Processor seconds of a call."""
    start = process_time()
    call()
    return process_time() - start


# -- the page ------------------------------------------------------------------------------------------------------

TITLES = {"qwen2_5_vl": "Qwen2.5-VL", "qwen3_vl": "Qwen3-VL"}


def tables(record: dict[str, Any]) -> dict[str, list[str]]:
    """The lines of each table of docs/methods/pixelprune.md."""
    of_shares = ["| picture | tau 0 | 2/255 | 8/255 | 0.05 | 0.1 |", "|---|---|---|---|---|---|"]
    for name in PICTURES:
        patches = [row["leave %"].values() for row in record["shares"] if row["picture"] == name]
        cells = [f"{first:g} / {second:g}" for first, second in zip(*patches, strict=True)]
        of_shares.append(f"| {' | '.join((name, *cells))} |")
    of_changes = ["| tower like | weights | PixelPrune | at random |", "|---|---|---|---|"]
    for row in record["changes"]:
        cells = [f"{row[f'{name}, change %']:g} %" for name in ("PixelPrune", "at random")]
        of_changes.append(f"| {' | '.join((TITLES[row['family']], str(row['std']), *cells))} |")
    return {"shares": of_shares, "changes": of_changes, "times": table_of_times(record["times"])}


def table_of_times(times: dict[str, Any]) -> list[str]:
    """Seconds, and the speed-up over the untouched model with its interval over rounds."""
    what = f"from pixels to the first token, {times['left']} of {times['tokens']} tokens left"
    lines = [f"| {what} | seconds on one core | times faster | by FLOPs |", "|---|---|---|---|"]
    for name, seconds in times["seconds"].items():
        over = times["÷ untouched"].get(name)
        faster = "1" if over is None else f"{1 / over['median']:.2f} [{1 / over['high']:.2f}, {1 / over['low']:.2f}]"
        flops = times["FLOPs ÷ untouched"].get(name)
        lines.append(f"| {name} | {seconds:g} | {faster} | {'' if flops is None else f'{1 / flops:.2f}'} |")
    return lines


def filled(page: str, record: dict[str, Any]) -> str:
    """The page with the tables of a record."""
    for name, lines in tables(record).items():
        page = between(page, name, "".join(f"{line}\n" for line in lines))
    return page


def main() -> None:
    """Measure everything and fill in the page."""
    torch.set_num_threads(1)  # processor time is then that of one core, even on a busy machine
    source = {"command": "python benchmarks/pixels/run.py", "commit": commit(), "versions": versions()}
    threads = {"threads": torch.get_num_threads(), "picture": list(SIZE)}
    record = {**source, **threads, "shares": shares(), "changes": changes(), "times": times()}
    (HERE / "record.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), record), encoding="utf-8")


if __name__ == "__main__":
    main()
