"""What may be asked; answers as they come, as cards beside each other (HTML), and as a program that gives the same."""

import math
import shlex
import time
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from weakref import WeakSet

from foveate import embedded
from foveate.app.subjects import MODULES, Subject
from foveate.ask.answer import Answer
from foveate.ask.running import Asking
from foveate.ask.second_look import SecondLook
from foveate.ask.stream import Stream
from foveate.ask.vlm import VLM
from foveate.errors import BudgetError, FoveateError, SettingError, UnknownNameError
from foveate.naming import refuse_files
from foveate.plain.spelling import FOR_ALL
from foveate.runs.samples import as_said
from foveate.video import Clip

FULL = "full model"
MOST = 5
"""Methods that are compared at a time."""
UNDER_WAY: WeakSet[Stream] = WeakSet()
"""Answers that are being made. Gradio leaves them alone when the server ends; see `foveate.app.server.serve`."""


@dataclass(frozen=True, slots=True)
class Said:
    """What one method has said so far.

    Attributes:
        name: The method as it was written, or "full model".
        text: Its answer as far as it has come.
        answer: The whole answer; None until it is there.
        first: Seconds to the first piece of text, and `seconds` to the end, the look at the picture counted in.
        seconds: See there.
        error: Why there is no answer; None where there is one.
    """

    name: str
    text: str = ""
    answer: Answer | None = None
    first: float = 0.0
    seconds: float = 0.0
    error: str | None = None

    @property
    def dropping(self) -> Answer | None:
        """The answer for which tokens were dropped, of a second look the first's; None where none were."""
        if self.answer is None:
            return None
        answer = self.answer.unsure or self.answer
        if answer.method is None:
            return None
        return answer


def check_names(question: str, names: Sequence[str], offered: Collection[str] = ()) -> list[str]:
    """Methods to ask with, each once.

    Args:
        question: What is asked.
        names: As a visitor wrote them.
        offered: Names of second looks, which came with the page.

    Raises:
        SettingError: If there is no question, there are too many methods, or one of them names a file: a page must not
            read the files of its machine.
    """
    names = list(dict.fromkeys(names))
    if not question:
        raise SettingError("What is the question? Write one, or take one that fits.")
    if len(names) > MOST:
        raise SettingError(f"At most {MOST} methods are compared at a time; got {len(names)}. Take some out.")
    for name in names:
        if name not in offered:
            refuse_files(name)
    return names


def least_percent(vlm: VLM, names: Sequence[str], subject: Subject) -> int:
    """The smallest whole percent of a picture's vision tokens that every method can spend, at least 1.

    Raises:
        FoveateError: If a method cannot run, or the model cannot be shown this.
    """
    tokens = vlm.prepare(subject.medium, "?").vision_tokens
    floors = [0.01]
    for name in names:
        try:
            vlm.method_for(name, tokens, retention=1e-6)
        except BudgetError as error:
            floors.append(error.floor or 0)
    return math.ceil(100 * max(floors) - 1e-9)


def ask(vlm: VLM, subject: Subject, question: str, name: str, asking: Asking) -> Iterator[Said]:
    """Ask, and give the answer as far as it has come whenever there is more; the last one is whole.

    Args:
        vlm: The model.
        subject: What is asked about.
        question: In any words.
        name: What the reply is called: the method, the second look, or "full model".
        asking: How. Where the full model may be asked again, the answer comes whole.
    """
    text, first = "", 0.0
    begun = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the answer's notes say the same
            stream = None
            if "sure" in asking or isinstance(asking.get("method"), SecondLook):
                answer = vlm.ask(subject.medium, question, **asking)
            else:
                stream = vlm.ask(subject.medium, question, stream=True, **asking)
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
        yield Said(name, text, error=words_of(error))


def words_of(error: FoveateError) -> str:
    """An error as a visitor reads it, who has a box of methods and perhaps no terminal."""
    if isinstance(error, UnknownNameError):
        return f"{str(error).partition(FOR_ALL)[0]} The box of methods lists all that take a budget."
    return str(error)


def cards(replies: Sequence[Said], right: str | None = None) -> str:
    """A card a reply: the answer, whether it is right, and what it took beside the full model.

    Args:
        replies: The full model's first; those to come have no text yet.
        right: The right answer, where it is known.
    """
    made = "".join(_card(reply, replies[0].answer, right) for reply in replies)
    line = ""
    if right:
        line = f"<p class='fv-right'>The right answer is <b>{escape(right)}</b>; no other words count.</p>"
    return f"<div class='fv-grid'>{made}</div>{line}"


def _card(reply: Said, full: Answer | None, right: str | None) -> str:
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
            words = "✓ right" if as_said(reply.text) == as_said(right) else "✗ wrong"
            marks = f"<p class='fv-note'>{words}</p>{marks}"
        body = f"<p class='fv-text'>{escape(reply.text) or '<i>no words</i>'}</p>{marks}<dl>{rows}</dl>"
    return f"<article class='fv-card{state}'><h3>{name}</h3>{body}</article>"


def _measures(reply: Said, answer: Answer, full: Answer | None) -> Iterator[tuple[str, str, float | None]]:
    """Retention, FLOPs, bytes of the KV cache, and times: what is shown, and the share of the full model's."""
    spent = f"{answer.spent:.0f} of {answer.vision_tokens}"
    yield "Vision tokens", spent, answer.retention
    if answer.flops and full is not None and full.flops:
        yield "FLOPs to the first token", f"{answer.flops / 1e9:,.1f} G", answer.flops / full.flops
    elif full is not None and full.flops:
        yield "FLOPs to the first token", "not counted", None
    if answer.kv_bytes_whole:
        yield "KV cache", f"{answer.kv_bytes / 2**20:,.1f} MiB", answer.kv_bytes / answer.kv_bytes_whole
    yield "Time", f"{reply.first:.2f} s to the first words, {reply.seconds:.2f} s in all", None
    if answer.missed is not None:
        yield "Budget not met", escape(answer.missed), None


def program(subject: Subject, question: str, names: Sequence[str], model: str, asking: Mapping[str, float]) -> str:
    """A program that asks the same and prints every answer, the untouched model's first.

    Args:
        subject: What was asked about; an upload is a file of that name in the folder where the program runs.
        question: The question.
        names: The methods.
        model: As `foveate.load` takes it.
        asking: `retention` and `max_new_tokens`; `sure`, where the full model may be asked again.
    """
    keywords = ", ".join(f"{name}={value:g}" for name, value in asking.items())
    lines = ["import foveate as fv"]
    function, called, _ = subject.source.partition("(")
    if called:
        lines.append(f"from {MODULES[function]} import {function}")
    lines += [
        "",
        "vlm = fv.load()" if model == embedded.NAME else f"vlm = fv.load({model!r})",
        f"{subject.noun} = {subject.source}",
        f"question = {question!r}",
        f"full = vlm.ask({subject.noun}, question, max_new_tokens={asking['max_new_tokens']})",
        'print("full model:", full.text)',
        f"for method in {list(names)!r}:",
        "    answer = vlm.ask(",
        f"        {subject.noun}, question, method=method, {keywords}",
        "    )",
        '    print(f"{method}: {answer.text} ({answer.retention:.1%} of {answer.vision_tokens} vision tokens)")',
        '    # answer.show().save("kept.png") draws what was kept',
    ]
    return "\n".join(lines) + "\n"


def command(subject: Subject, question: str, names: Sequence[str], model: str, asking: Mapping[str, float]) -> str:
    """A line for a terminal that asks the same; arguments as for `program`.

    Empty where no file is what was asked about: of an example, and of a picture that was scaled down.
    """
    medium = subject.medium
    as_it_lies = isinstance(medium, Clip) or (medium.path and subject.source == repr(medium.path.name))
    if not names or subject.questions or not as_it_lies:
        return ""
    words = ["foveate", "compare", str(medium.path), "--prompt", question]
    for name in names:
        words += ["--method", name]
    words += ["--retention", f"{asking['retention']:g}", "--max-new-tokens", str(asking["max_new_tokens"])]
    if isinstance(medium, Clip):
        words += ["--frames", str(len(medium))]
    if model != embedded.NAME:
        words += ["--model", model]
    return shlex.join(words)
