"""`evaluate_samples`: what dropping costs on somebody's own pictures and questions, with true answers or without."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from foveate._files import is_video, sha256_of
from foveate.ask.vlm import VLM
from foveate.contract.budget import known_count
from foveate.errors import InputError
from foveate.eval.embedded.evaluation import compare
from foveate.eval.plan import Plan
from foveate.eval.provenance import joined
from foveate.eval.summary import Summary
from foveate.runs.listener import Listener
from foveate.runs.samples import Bad, Sample, Samples

__all__ = ["evaluate_samples"]

WHAT = "foveate eval --samples"
LABELS = ("label", "answer")
"""Columns with the true answer; the first that is there counts."""


@dataclass(frozen=True, slots=True)
class SampleQuestion:
    """A sample of somebody's own, as an evaluation asks it.

    Attributes:
        sample: What is asked.
        picture: SHA-256 of the files.
        label: The true answer; None where it is not known.
    """

    sample: Sample
    picture: str
    label: str | None

    @property
    def key(self) -> str:
        """A name that no other question has: of the pictures' contents and the text."""
        return f"{self.picture}/{self.sample.question}"

    @property
    def task(self) -> str:
        """The sample's own word for what kind of question it is."""
        return str(self.sample.record.get("task", "samples"))

    @property
    def text(self) -> str:
        """What is asked."""
        return self.sample.question

    def shown(self) -> list[str]:
        """The files."""
        return list(self.sample.media)

    def is_right(self, answer: str) -> bool:
        """Whether an answer is the label, but for case, a full stop and space around it."""
        return _plain(answer) == _plain(self.label or "")


def evaluate_samples(
    vlm: VLM,
    samples: Samples,
    plan: Plan | None = None,
    *,
    max_new_tokens: int = 64,
    workers: int = 1,
    listener: Listener | None = None,
) -> Summary:
    """Ask the full model and every method at every budget the same questions about somebody's own pictures.

    With a true answer in every sample ("label" or "answer") the figure is accuracy, without any it is the share of
    answers that are the full model's, word for word.

    Args:
        vlm: The model.
        samples: From `foveate.runs.samples.samples_in`.
        plan: What is compared; by default three methods and four baselines at three budgets.
        max_new_tokens: The longest answer.
        workers: Processes; 0 takes as many as pay off.
        listener: Hears how it goes.

    Raises:
        InputError: If a sample cannot be read, some have a label and some have none, or answers cannot be kept.
        SettingError: If budgets are of tokens, and pictures differ in theirs.
    """
    listener = listener or Listener()
    with listener.stage("Reading samples", None):
        found = list(_questions(samples))
    questions = list({question.key: question for question in found}.values())
    if len(questions) < len(found):
        listener.note(f"{len(found) - len(questions)} samples ask what another one asks, and are left out")
    questions.sort(key=lambda question: question.picture)
    labelled = [question for question in questions if question.label is not None]
    if labelled and len(labelled) < len(questions):
        raise InputError(f"{len(labelled)} of {len(questions)} samples have a label. Label all of them, or none.")
    return compare(
        vlm,
        questions,
        plan or Plan(),
        known_count(vlm.model) if all(map(_is_one_picture, questions)) else None,
        max_new_tokens=max_new_tokens,
        workers=workers,
        listener=listener,
        origin={"what": WHAT, "samples": samples.source.digest()},
        labelled=bool(labelled),
    )


def _questions(samples: Samples) -> Iterable[SampleQuestion]:
    for sample in samples.settled().read():
        if isinstance(sample, Bad):
            raise InputError(f"{samples.source.path}, row {sample.number} (from 0): {sample.reason}")
        label = next((sample.record[name] for name in LABELS if sample.record.get(name) is not None), None)
        picture = joined([sha256_of(Path(path)) for path in sample.media])
        yield SampleQuestion(sample, picture, None if label is None else str(label))


def _is_one_picture(question: SampleQuestion) -> bool:
    return len(question.sample.media) == 1 and not is_video(Path(question.sample.media[0]))


def _plain(text: str) -> str:
    return text.strip().removesuffix(".").casefold()
