"""Several questions of one command about the same pictures: these are looked at once, where the method allows it."""

from collections.abc import Sequence
from typing import Any

from foveate.ask.answer import Answer
from foveate.ask.generation import Generation
from foveate.cli import report
from foveate.cli.asking import Setup
from foveate.cli.screen import busy, note
from foveate.errors import UnsupportedError

__all__ = ["answer_all", "lines_of", "values_of"]


def answer_all(setup: Setup, questions: Sequence[str], name: str, generation: Generation) -> list[Answer]:
    """An answer to each question; afresh, and said so, where the model or the method must read the question first."""
    method = setup.methods[name]
    try:
        with busy(f"Looking with {name}"):
            prefix = setup.vlm.look_at(setup.prompt, method)
    except UnsupportedError as error:
        note(f"{error} Each question is asked afresh.")
        return _afresh(setup, questions, name, generation)
    with busy(f"Answering with {name}"):
        return list(prefix.ask_many(questions, max_new_tokens=generation.max_new_tokens))


def _afresh(setup: Setup, questions: Sequence[str], name: str, generation: Generation) -> list[Answer]:
    """An answer to each question, the pictures and all."""
    said = setup.prompt.conversation.without_last_text()
    answers = []
    for question in questions:
        prompt = setup.vlm.prepare_conversation(said.with_text(question))
        with busy(f"Answering with {name}"):
            answers.append(setup.vlm.answer(prompt, setup.methods[name], generation=generation))
    return answers


def values_of(setup: Setup, name: str, answers: Sequence[Answer]) -> dict[str, Any]:
    """All answers as plain values."""
    entries = [{"prompt": answer.prompt.text, **answer.to_dict()} for answer in answers]
    return setup.to_dict() | {"name": name, "answers": entries}


def lines_of(answers: Sequence[Answer]) -> list[tuple[str, str]]:
    """What is shown: every question with its answer, then what holds for all."""
    rows = []
    for answer in answers:
        rows += [("Question", answer.prompt.text), ("Answer", answer.text)]
    first = answers[0]
    rows.append(("Retention", report.budget_line(first)))
    if first.missed is not None:
        rows.append(("Budget", f"not met: {first.missed}"))
    rows.append(("Stages", report.stages_line(first.trace)))
    if first.looked:
        rows.append(("Looked", f"once: {first.looked} tokens of each prompt ran a single time"))
    return rows
