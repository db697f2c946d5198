"""Held-out questions with their true answers, and what settings come to on them."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foveate._versions import versions
from foveate.contract.method import Method
from foveate.embedded import TASKS
from foveate.embedded.questions import TEXT_TASKS
from foveate.eval.embedded.pictures import PictureQuestion, questions
from foveate.eval.stats import Resampled, estimate
from foveate.tune.forcing import targets
from foveate.tune.race import Journal, Race
from foveate.tune.samples import grouped


def pictures_of(seed: int, count: int, most: int = 99, tasks: Sequence[str] = TASKS) -> list[PictureQuestion]:
    """The questions about the first `count` pictures of a seed, at most so many of each."""
    chosen: list[PictureQuestion] = []
    drawn = questions(tasks, 12 * count, (seed,))
    by_picture = [list(about) for _, about in groupby(drawn, key=lambda question: question.picture)]
    for about in by_picture[:count]:
        chosen += sorted(about, key=lambda question: question.question.task not in TEXT_TASKS)[:most]
    return chosen


def asked(vlm: Any, chosen: Sequence[PictureQuestion]) -> list[Any]:
    """Questions as prompts; a picture is drawn once."""
    prompts = []
    for _, about in groupby(chosen, key=lambda question: question.picture):
        listed = list(about)
        shown = listed[0].shown()
        prompts += [vlm.prepare(shown, question.question.question) for question in listed]
    return prompts


class Judge:
    """The held-out questions with their true answers, and what settings come to on them."""

    def __init__(self, vlm: Any, chosen: Sequence[PictureQuestion], journal: Path) -> None:
        self.vlm = vlm
        self.chosen = chosen
        self.pictures = grouped(vlm, asked(vlm, chosen))
        ends = iter(chosen)
        wanted = {}
        self.right: list[bool] = []
        for about in self.pictures:
            ids = [self._ids(next(ends).question.answer) for _ in about.samples]
            wanted[about.key] = targets(vlm.model, about, ids)
            self.right += [self._hit(target.ids, target.likeliest) for target in wanted[about.key]]
        self.race = Race(vlm.model, wanted, Journal(journal, f"held-out {versions()}"))
        self.resampled = Resampled([question.picture for question in chosen], [question.seed for question in chosen])

    def _ids(self, answer: str) -> tuple[int, ...]:
        tokenizer = self.vlm.tokenizer
        return (*tokenizer(answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id)

    @staticmethod
    def _hit(ids: tuple[int, ...], likeliest: torch.Tensor) -> bool:
        return bool((likeliest[:, 0] == torch.tensor(ids)).all())

    def full(self) -> dict[str, Any]:
        """The full model's accuracy."""
        return self.resampled.proportion(np.array(self.right, dtype=float)).to_dict()

    def marks(self, method: Method) -> Any:
        """(questions,) 1 where the answer is right."""
        return self.race.column(method, self.pictures, lambda outcome: float(outcome.agrees))

    def row(self, name: str, methods: Sequence[Method], tokens: float, against: Any = None) -> dict[str, Any]:
        """A setting's accuracy, and how far it is ahead of `against`, (questions,) marks."""
        marks = np.mean([self.marks(method) for method in methods], axis=0)
        of_text = np.array([question.question.task in TEXT_TASKS for question in self.chosen])
        sketched = np.array([question.picture % 2 == 1 for question in self.chosen])
        row = {
            "name": name,
            "method": methods[0].to_dict(),
            "tokens": round(tokens, 3),
            "accuracy": self.resampled.proportion(marks).to_dict(),
            "text": round(float(marks[of_text].mean()), 4),
            "other": round(float(marks[~of_text].mean()), 4),
            "scenes": round(float(marks[~sketched].mean()), 4),
            "sketches": round(float(marks[sketched].mean()), 4),
        }
        if against is not None:
            row["ahead"] = estimate(self.resampled.means(marks - against)).to_dict()
        return row
