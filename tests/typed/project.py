"""A user's own project under mypy's strict rules: a method of their own, and a table of what it costs."""

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

import foveate as fv
from foveate.contract import Hidden, LayerStage, LayerView, Method, Shape, Share, Stage


class Loudest(Method):
    """Keeps the tokens of the largest norm."""

    name = "loudest"

    keep: Share = 0.5

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        return (LayerStage(shape.depth // 2, reads=(Hidden(),), keep=self.keep, score=self.score),)

    @staticmethod
    def score(view: LayerView) -> Tensor:
        return view.hidden.float().square().sum(dim=-1)


@dataclass
class Row:
    """One line of the table."""

    picture: Path
    text: str
    saved: float

    @classmethod
    def of(cls, picture: Path, answer: fv.Answer) -> "Row":
        return cls(picture, answer.text, answer.saved.kv_bytes)


def rows(vlm: fv.VLM, pictures: Iterable[Path], method: fv.Method | str) -> Iterator[Row]:
    for picture in pictures:
        yield Row.of(picture, vlm.ask(picture, "What is it?", method=method, max_new_tokens=8))


def main(folder: Path, out: Path) -> None:
    vlm = fv.load()
    method = Loudest(keep=0.25)
    spent = fv.cost(vlm.model.config, text_tokens=20, vision_tokens=576, method=method)
    with out.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["picture", "text", "cache saved", f"of {spent.prefill_flops:.3g} FLOPs"])
        for row in rows(vlm, sorted(folder.glob("*.png")), method):
            table.writerow([row.picture.name, row.text, f"{row.saved:.0%}"])
