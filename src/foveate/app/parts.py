"""Parts that both tabs have: boxes, sliders, messages, and how events run."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from foveate.app.answers import Shelf
from foveate.app.folder import Folder
from foveate.app.limits import LIMITS, Limits, opened
from foveate.app.subject import Subject
from foveate.ask.vlm import VLM
from foveate.contract.catalogue import methods, takes_budget
from foveate.errors import InputError, SettingError

__all__ = ["AT_ONCE", "HIDDEN", "MODEL", "Desk", "alert", "hint", "methods_box", "notice", "percent_slider"]

PERCENT = 33
MODEL: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model", "show_progress": "hidden"}
"""Of an event that asks the model, which serves one question at a time: others wait in line."""
AT_ONCE: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
"""Of an event that only shows something else."""
HIDDEN: dict[str, Any] = {"api_visibility": "private"}
"""Of every event: no other program finds it."""


@dataclass(frozen=True, slots=True)
class Desk:
    """What both tabs work with.

    Attributes:
        vlm: The model.
        folder: Where results are written, which Gradio serves.
        limits: How much the page takes.
        max_new_tokens: The longest answer.
        shelf: What the model has kept of pictures.
    """

    vlm: VLM
    folder: Folder
    limits: Limits = LIMITS
    max_new_tokens: int = 64
    shelf: Shelf = field(default_factory=Shelf)

    def check(self, question: str, names: Sequence[str]) -> None:
        """Refuse a question that cannot be asked.

        Raises:
            SettingError: If it is empty or too long, or too many methods are chosen.
        """
        if not question:
            raise SettingError("What is the question? Write one, or take one that fits.")
        if len(question) > self.limits.question:
            raise SettingError(f"A question has {self.limits.question} letters at most; this one has {len(question)}.")
        if len(names) > self.limits.methods:
            raise SettingError(f"At most {self.limits.methods} methods are compared at a time; got {len(names)}.")

    def opened(self, path: str | None) -> Subject:
        """An uploaded picture or film.

        Raises:
            InputError: If it is no upload, too large, damaged, or neither picture nor film.
        """
        if path is None or not self.folder.owns(path):
            raise InputError("Only files that were uploaded here can be shown.")
        return opened(Path(path), self.limits)


def methods_box(desk: Desk, chosen: Sequence[str]) -> gr.Dropdown:
    """Methods that take a budget, to choose from, or to write."""
    names = [name for name, kind in methods().items() if takes_budget(kind)]
    return gr.Dropdown(
        names,
        value=list(chosen),
        multiselect=True,
        allow_custom_value=True,
        max_choices=desk.limits.methods,
        label="Methods",
        info="Choose, or write a chain with settings: visionzip+v2drop:metric=l1",
        elem_classes="fv-methods",
    )


def percent_slider() -> gr.Slider:
    """The budget."""
    return gr.Slider(
        5,
        100,
        PERCENT,
        step=1,
        label="Budget: % of vision tokens",
        info="Mean over the decoder's layers",
        elem_classes="fv-budget",
    )


def notice(notes: Sequence[str]) -> Any:
    """Notes, each once; nothing where there are none."""
    lines = "".join(hint(_sentence(note)) for note in dict.fromkeys(notes))
    return gr.HTML(lines, visible=bool(lines))


def _sentence(note: str) -> str:
    """A note with a capital, unless it begins with the name of a file."""
    if note.partition(" ")[0].isalpha():
        return note[:1].upper() + note[1:]
    return note


def hint(text: str) -> str:
    """A sentence to read."""
    return f"<p class='fv-hint'>{escape(text)}</p>"


def alert(text: str) -> str:
    """Something that went wrong."""
    return f"<p class='fv-error' role='alert'>{escape(text)}</p>"
