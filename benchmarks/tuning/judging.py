"""Held-out questions with their true answers, and what settings come to on them."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np

from foveate.contract.method import Method
from foveate.embedded import TASKS
from foveate.embedded.questions import TEXT_TASKS
from foveate.eval.asked import Asked
from foveate.eval.held_out import questions
from foveate.plain.stats import Resampled, estimate
from foveate.tuning.forcing import Target, targets
from foveate.tuning.parts import About
from foveate.tuning.trials import Trials


def pictures_of(seed: int, count: int, most: int = 99) -> list[Asked]:
    """The questions about the first `count` pictures of a seed, at most so many of each."""
    chosen: list[Asked] = []
    drawn = questions(TASKS, 12 * count, (seed,))
    by_picture = [list(about) for _, about in groupby(drawn, key=lambda question: question.picture)]
    for about in by_picture[:count]:
        chosen += sorted(about, key=lambda question: question.task not in TEXT_TASKS)[:most]
    return chosen


def asked(vlm: Any, chosen: Sequence[Asked]) -> list[Any]:
    """Questions as prompts; a picture is drawn once."""
    prompts = []
    for _, about in groupby(chosen, key=lambda question: question.picture):
        listed = list(about)
        shown = listed[0].media()
        prompts += [vlm.prepare(shown, question.text) for question in listed]
    return prompts


class Judge:
    """What settings come to on held-out questions: an answer is right if every token of the true one is the likeliest.

    Args:
        vlm: The model.
        chosen: The questions.
        pictures: The same as prompts, grouped.
        trials: On the pictures of these questions; its targets become the true answers.
    """

    def __init__(self, vlm: Any, chosen: Sequence[Asked], pictures: Sequence[About], trials: Trials) -> None:
        self.trials = trials
        self.pictures = pictures
        self.resampled = Resampled([question.picture for question in chosen], [question.seed for question in chosen])
        self.right: list[bool] = []
        answers = iter(chosen)
        for about in self.pictures:
            ids = [ids_of(vlm, next(answers).labels[0]) for _ in about.samples]
            trials.targets[about.key] = wanted = targets(vlm.model, about, ids)
            self.right += map(likeliest, wanted)

    def full(self) -> dict[str, Any]:
        """The full model's accuracy."""
        return self.accuracy(np.array(self.right, dtype=float))

    def marks(self, method: Method) -> Any:
        """(questions,) 1 where a setting answers right, else 0."""
        return self.trials.column(method, self.pictures, lambda fidelity: float(fidelity.agrees))

    def accuracy(self, marks: Any) -> dict[str, float]:
        """The share of right answers."""
        return self.resampled.proportion(marks).to_dict()

    def ahead(self, marks: Any, others: Any) -> dict[str, float]:
        """By how much marks are ahead of others, paired."""
        return estimate(self.resampled.means(marks - others)).to_dict()


def ids_of(vlm: Any, answer: str) -> tuple[int, ...]:
    """An answer's tokens with its end."""
    return (*vlm.tokenizer(answer, add_special_tokens=False).input_ids, vlm.tokenizer.eos_token_id)


def likeliest(target: Target) -> bool:
    """Whether the full model gives this answer."""
    return all(first.ids[0] == token for first, token in zip(target.likeliest, target.ids, strict=True))
