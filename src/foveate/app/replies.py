"""Check a question, ask it, and show the answers: as cards while they arrive, and as a program that repeats them."""

import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any
from weakref import WeakSet

from foveate import embedded
from foveate.app.subjects import HALF, MODULES, Subject
from foveate.ask.answer import AS_NOTES, Answer
from foveate.ask.second_look import SecondLook
from foveate.ask.stream import Stream
from foveate.ask.vlm import VLM
from foveate.errors import BudgetError, FoveateError, SettingError, UnknownNameError
from foveate.naming import refuse_files
from foveate.plain.spelling import FOR_ALL
from foveate.runs.samples import as_said

FULL = "full model"
MOST = 5
"""Most methods that can be compared at a time."""
TERMS = """<p class='fv-note'>Bars compare with the full model. <b>FLOPs</b>: calculations before the answer. <b>KV
cache</b>: memory for the keys and values of all tokens, which each new token reads. <b>Time</b>: of one run.</p>"""
"""Explains the measures of the cards."""
UNDER_WAY: WeakSet[Stream] = WeakSet()
"""Streams that are still open. Gradio does not close them when the server ends; see `foveate.app.server.serve`."""


@dataclass(frozen=True, slots=True)
class Said:
    """The reply of one method so far.

    Attributes:
        name: The method as the visitor wrote it, or "full model".
        text: The text so far.
        answer: The finished answer; None until then.
        first: Seconds to the first piece of text, the vision tower included.
        seconds: Seconds to the end of the answer.
        error: Why there is no answer; None if there is one.
    """

    name: str
    text: str = ""
    answer: Answer | None = None
    first: float = 0.0
    seconds: float = 0.0
    error: str | None = None

    @property
    def dropping(self) -> Answer | None:
        """The answer for which tokens were dropped (the first one of a second look); None if none were."""
        if self.answer is None:
            return None
        answer = self.answer.unsure or self.answer
        if answer.method is None:
            return None
        return answer


def check_names(question: str, names: Sequence[str], offered: Collection[str] = ()) -> list[str]:
    """The methods to ask with, without repetitions.

    Args:
        question: The question.
        names: Methods as the visitor wrote them.
        offered: Names of the page's second looks.

    Raises:
        SettingError: If there is no question, there are too many methods, or a method names a file: a page must not
            read files of its machine.
    """
    names = list(dict.fromkeys(names))
    if not question:
        raise SettingError("There is no question. Write one, or pick a suggested one.")
    if len(names) > MOST:
        raise SettingError(f"At most {MOST} methods can be compared at a time; got {len(names)}. Remove some.")
    for name in names:
        if name not in offered:
            refuse_files(name)
    return names


def least_percent(vlm: VLM, names: Sequence[str], subject: Subject) -> int:
    """The smallest percentage of vision tokens, rounded up and at least 1, that every method can meet.

    Raises:
        FoveateError: If a method cannot run, or the model does not take such input.
    """
    tokens = vlm.prepare(subject.medium, "?").vision_tokens
    floors = [0.01]
    for name in names:
        try:
            vlm.method_for(name, tokens, retention=1e-6)
        except BudgetError as error:
            floors.append(error.floor or 0)
    return math.ceil(100 * max(floors) - 1e-9)


def ask(vlm: VLM, subject: Subject, question: str, name: str, asking: Mapping[str, Any]) -> Iterator[Said]:
    """Ask, and yield the reply whenever there is more text; the last one has the finished answer.

    Args:
        vlm: The model.
        subject: The picture or video.
        question: The question.
        name: The name of the reply: a method, a second look, or "full model".
        asking: Keywords of `VLM.ask`. With a second look or choices the answer arrives in one piece.
    """
    text, first = "", 0.0
    begun = time.perf_counter()
    try:
        medium = subject.halved() if name == HALF else subject.medium
        with AS_NOTES:
            stream = None
            if asking.keys() & {"sure", "choices"} or isinstance(asking.get("method"), SecondLook):
                answer = vlm.ask(medium, question, **asking)
            else:
                stream = vlm.ask(medium, question, stream=True, **asking)
        if stream is not None:
            UNDER_WAY.add(stream)
            with stream:
                for piece in stream:
                    first = first or time.perf_counter() - begun
                    text += piece
                    yield Said(name, text)
                answer = stream.answer
        seconds = time.perf_counter() - begun
        yield Said(name, answer.text, answer, first or seconds, seconds)
    except FoveateError as error:
        yield Said(name, text, error=error_words(error))


def error_words(error: FoveateError) -> str:
    """The text of an error for a visitor, who has the list of methods and perhaps no terminal."""
    if isinstance(error, UnknownNameError):
        return f"{str(error).partition(FOR_ALL)[0]} The list of methods has all that take a budget."
    return str(error)


def cards(replies: Sequence[Said], right: str | None = None) -> str:
    """One card for each reply: the answer, whether it is right, and its cost beside the full model's.

    Args:
        replies: The full model's first; replies that have not begun have no text.
        right: The right answer, if it is known.
    """
    shown = "".join(_card(reply, replies[0], right) for reply in replies)
    line = TERMS if replies[0].answer is not None else ""
    if right:
        line += f"<p class='fv-right'>The right answer is <b>{escape(right)}</b>. Only this answer counts.</p>"
    return f"<div class='fv-grid'>{shown}</div>{line}"


def _card(reply: Said, full: Said, right: str | None) -> str:
    name = escape(reply.name).replace("+", "+<wbr>").replace(":", ":<wbr>")
    state = ""
    if reply.error is not None:
        body = f"<p class='fv-error' role='alert'>{escape(reply.error)}</p>"
    elif reply.answer is None:
        state = " fv-waiting"
        body = f"<p class='fv-text'>{escape(reply.text) or '…'}</p>"
    else:
        rows, marks = "", ""
        for label, value, share in _measures(reply, reply.answer, full):
            bar = ""
            if share is not None:  # of the full model's
                bar = f" ({share:.0%})<i class='fv-bar'><i style='width:{100 * min(share, 1):.1f}%'></i></i>"
            rows += f"<div><dt>{label}</dt><dd>{value}{bar}</dd></div>"
        if reply.answer.confidence is not None:  # of a first look, after which the full model may be asked again
            sure = f"{reply.answer.confidence:.2f}".removeprefix("0")
            marks = f"<p class='fv-note'>{f'unsure {sure}: asked again' if reply.answer.again else f'sure {sure}'}</p>"
        if right:  # compared as `foveate eval` does
            mark, words = ("right", "✓ right") if as_said(reply.text) == as_said(right) else ("wrong", "✗ wrong")
            marks = f"<p class='fv-note fv-{mark}-answer'>{words}</p>{marks}"
        body = f"<p class='fv-text'>{escape(reply.text) or '<i>no words</i>'}</p>{marks}<dl>{rows}</dl>"
    return f"<article class='fv-card{state}'><h3>{name}</h3>{body}</article>"


def _measures(reply: Said, answer: Answer, full: Said) -> Iterator[tuple[str, str, float | None]]:
    """The lines of a card: label, value, and the share of the full model's if there is one."""
    best = max(answer.choices.values(), default=0.0)
    total = sum(math.exp(value - best) for value in answer.choices.values())
    for choice, value in answer.choices.items():
        yield f"“{escape(choice)}” among the choices", f"log-probability {value:z.2f}", math.exp(value - best) / total
    beside = answer
    if full.answer and full.answer.vision_tokens != answer.vision_tokens:  # half the frames have half the tokens
        beside = full.answer
    share, held = answer.spent / max(1, beside.vision_tokens), beside.kv_bytes_whole
    yield "Vision tokens, mean of all layers", f"{answer.spent:.0f} of {beside.vision_tokens}", share
    whole = full.answer and full.answer.flops
    if answer.flops and whole:
        yield "FLOPs to the first token", f"{answer.flops / 1e9:,.1f} G", answer.flops / whole
    elif whole:
        yield "FLOPs to the first token", "not counted", None
    if held:
        yield "KV cache", f"{answer.kv_bytes / 2**20:,.1f} MiB", answer.kv_bytes / held
    share_of_time = reply.seconds / full.seconds if full.seconds else None
    yield "Time", f"{reply.first:.2f} s to the first word, {reply.seconds:.2f} s in total", share_of_time
    if answer.missed is not None:
        yield "Budget not met", escape(answer.missed), None


def program(subject: Subject, question: str, names: Sequence[str], model: str, asking: Mapping[str, Any]) -> str:
    """A Python program that asks the question again and prints every answer, the untouched model's first.

    Args:
        subject: The picture or video. An upload is read from the folder where the program runs, by its name.
        question: The question.
        names: The methods.
        model: The model, as `foveate.load` takes it.
        asking: `retention` and `max_new_tokens`; `sure` if the full model may be asked again; `choices` if there are.
    """
    said = {name: value if name == "choices" else format(value, "g") for name, value in asking.items()}
    keywords = ", ".join(f"{name}={value}" for name, value in said.items())
    of_full = ", ".join(f"{name}={said[name]}" for name in ("max_new_tokens", "choices") if name in said)
    lines = ["import foveate as fv"]
    function, called, _ = subject.source.partition("(")
    if called:
        lines.append(f"from {MODULES[function]} import {function}")
    lines += [
        "",
        "vlm = fv.load()" if model == embedded.NAME else f"vlm = fv.load({model!r})",
        f"{subject.noun} = {subject.source}",
        f"question = {question!r}",
        f"full = vlm.ask({subject.noun}, question, {of_full})",
        'print("full model:", full.text)',
        f"for method in {list(names)!r}:",
        "    answer = vlm.ask(",
        f"        {subject.noun}, question, method=method, {keywords}",
        "    )",
        '    print(f"{method}: {answer.text} ({answer.retention:.1%} of {answer.vision_tokens} vision tokens)")',
        '    # answer.show().save("kept.png") draws what was kept',
    ]
    return "\n".join(lines) + "\n"
