"""The tab in which pictures are asked about: answers side by side, and what stays at each place in the model."""

from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr

from foveate.app.answers import FULL, Reply, answer
from foveate.app.cards import cards
from foveate.app.code import code_of
from foveate.app.examples import examples
from foveate.app.parts import AT_ONCE, HIDDEN, MODEL, Desk, alert, hint, methods_box, notice, percent_slider
from foveate.app.places import panels, places_of, stop_words
from foveate.app.subject import Subject
from foveate.errors import FoveateError, InputError
from foveate.viz import draw_comparison

__all__ = ["AskTab"]

METHODS = ("v2drop", "visionzip", "random")
REMEMBERED = 3600
"""Seconds that a visitor's picture and answers stay behind the last visit."""
BEGIN = hint("Press Ask: the full model answers first, then every method.")

Changes = dict[Any, Any]


class AskTab:
    """Its parts, and what happens when they are used."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        first = examples()[0]
        self.subject = gr.State(first, time_to_live=REMEMBERED)
        self.places = gr.State(places_of(first), time_to_live=REMEMBERED)
        with gr.Row():
            with gr.Column(scale=4, min_width=300):
                self._lay_out_question(first)
            with gr.Column(scale=7, min_width=300):
                self._lay_out_answers()
        self._connect()

    def _lay_out_question(self, first: Subject) -> None:
        self.gallery = gr.Gallery(
            [one.pictures[0] for one in examples()],
            label="Take an example",
            columns=4,
            height="auto",
            object_fit="cover",
            allow_preview=False,
            interactive=False,
            buttons=[],
            selected_index=0,
            elem_id="examples",
        )
        self.file = gr.File(
            label="Or drop a picture or a film", file_types=["image", "video"], height=130, elem_id="file"
        )
        self.notice = gr.HTML(visible=False, elem_id="notice")
        self.question = gr.Textbox(
            first.questions[0][0], label="Question", max_length=self.desk.limits.question, elem_id="question"
        )
        self.proposed = gr.Dataset(
            components=[self.question], samples=_samples(first), label="Questions that fit", type="values"
        )
        self.methods = methods_box(self.desk, METHODS)
        self.percent = percent_slider()
        with gr.Row():
            self.ask = gr.Button("Ask", variant="primary", elem_id="ask", min_width=100)
            self.stop = gr.Button("Stop", elem_id="stop", min_width=100)

    def _lay_out_answers(self) -> None:
        self.answers = gr.HTML(BEGIN, elem_id="answers")
        self.words = gr.HTML(stop_words(self.places.value, 0), elem_id="stop-words")
        self.slider = gr.Slider(
            0, 1, 0, step=1, label="Where in the model", visible=False, elem_id="stages", buttons=[]
        )
        self.kept = gr.HTML(panels(self.places.value, 0), elem_id="panels")
        self.share = gr.DownloadButton("Share as PNG", visible=False, elem_id="share")
        with gr.Accordion("The same in Python", open=False, elem_id="python", visible=False) as self.python:
            self.code = gr.Code(language="python", interactive=False, show_label=False, buttons=["copy"])

    def _connect(self) -> None:
        shown = [
            *(self.subject, self.places, self.notice, self.proposed, self.answers),
            *(self.words, self.slider, self.kept, self.share, self.python, self.code),
        ]
        self.proposed.click(lambda row: row[0], self.proposed, self.question, **AT_ONCE, **HIDDEN)
        asking = [self.subject, self.question, self.methods, self.percent]
        running = [
            event(self.reply, asking, shown, **MODEL, **HIDDEN) for event in (self.ask.click, self.question.submit)
        ]
        self.stop.click(None, cancels=running, **HIDDEN)
        taken = [*shown, self.file, self.ask, self.gallery]
        self.file.upload(self.upload, self.file, taken, cancels=running, **HIDDEN)
        self.gallery.select(self.choose, None, [*taken, self.question], cancels=running, **HIDDEN)
        self.slider.input(
            lambda places, stop: (panels(places, int(stop)), stop_words(places, int(stop))),
            [self.places, self.slider],
            [self.kept, self.words],
            trigger_mode="always_last",
            **AT_ONCE,
            **HIDDEN,
        )

    # -- what happens -----------------------------------------------------------------------------------------

    def clear(self) -> Changes:
        """Show nothing, and let nothing be asked."""
        return {
            self.subject: None,
            self.ask: gr.Button(interactive=False),
            self.gallery: gr.Gallery(selected_index=None),
            self.notice: notice(()),
            self.proposed: gr.Dataset(visible=False),
            self.answers: "",
            self.words: "",
            self.slider: gr.Slider(visible=False),
            self.kept: "",
            self.share: gr.DownloadButton(value=None, visible=False),
            self.python: gr.Accordion(visible=False),
            self.code: "",
        }

    def show(self, subject: Subject) -> Changes:
        """Everything for a new picture."""
        places = places_of(subject)
        return self.clear() | {
            self.subject: subject,
            self.ask: gr.Button(interactive=True),
            self.places: places,
            self.notice: notice(subject.notes),
            self.proposed: gr.Dataset(samples=_samples(subject), visible=bool(subject.questions)),
            self.answers: BEGIN,
            self.words: stop_words(places, 0),
            self.kept: panels(places, 0),
        }

    def upload(self, path: str | None) -> Iterator[Changes]:
        """Take a file; where it is bad, say so, and empty the box. The picture before is never asked about again."""
        yield self.clear() | {self.notice: notice(("The file is being read.",))}
        try:
            yield self.show(self.desk.opened(path))
        except FoveateError as error:
            yield {self.notice: gr.HTML(alert(str(error)), visible=True), self.file: None}

    def choose(self, event: gr.SelectData) -> Changes:
        """Take an example, and a question that fits it."""
        subject = examples()[event.index]
        chosen = gr.Gallery(selected_index=event.index)
        return self.show(subject) | {self.file: None, self.gallery: chosen, self.question: subject.questions[0][0]}

    def reply(self, subject: Subject | None, question: str, names: list[str], percent: float) -> Iterator[Changes]:
        """Answer with the full model, then with every method, as the words come."""
        question, names = question.strip(), list(dict.fromkeys(names))
        try:
            if subject is None:
                raise InputError("There is no picture to ask about. Drop one that can be read, or take an example.")
            self.desk.check(question, names)
        except FoveateError as error:
            yield {self.answers: alert(str(error))}
            return
        replies = [Reply(name) for name in (FULL, *names)]
        yield {self.answers: cards(replies), self.share: gr.DownloadButton(visible=False)}
        for place, name in enumerate((FULL, *names)):
            for piece in self._pieces(subject, question, name, percent / 100):
                replies[place] = piece
                yield {self.answers: cards(replies)}
        places = places_of(subject, replies)
        last = len(places.stops)
        stop = (last + 1) // 2  # at the end, many methods have hardly any token left
        file = self._drawn(question, replies)
        code = code_of(subject, question, names, percent / 100, self.desk.vlm.name, self.desk.max_new_tokens)
        yield {
            self.answers: cards(replies, subject.right_answer(question)),
            self.places: places,
            self.slider: gr.Slider(maximum=max(1, last), value=stop, visible=last > 0),
            self.words: stop_words(places, stop),
            self.kept: panels(places, stop),
            self.share: gr.DownloadButton(value=file, visible=file is not None),
            self.python: gr.Accordion(visible=True),
            self.code: code,
            self.notice: notice((*subject.notes, *_notes(replies))),
        }

    def _pieces(self, subject: Subject, question: str, name: str, retention: float) -> Iterator[Reply]:
        """The answer of one method, or of the full model, as it comes."""
        desk = self.desk
        method, budget = (None, None) if name == FULL else (name, retention)
        return answer(desk.vlm, desk.shelf, subject, question, method, budget, max_new_tokens=desk.max_new_tokens)

    def _drawn(self, question: str, replies: Sequence[Reply]) -> str | None:
        """A picture of all answers, as a file; None where nothing was dropped, or there is no room."""
        rows, shown = [], None
        for reply in replies:
            if reply.answer is not None and reply.answer.trace.history:
                share = f"{reply.answer.retention:.0%} of {reply.answer.vision_tokens} tokens"
                rows.append((f"{reply.name}: {reply.text} ({share})", reply.answer.trace.history[0]))
                shown = reply.answer.prompt.shown
        if shown is None:
            return None
        try:
            picture = draw_comparison(rows, shown, f"{question}  Full model: {replies[0].text}")
        except FoveateError:  # where the model's tokens look is not known
            return None
        if not self.desk.folder.has_room(picture.width * picture.height):
            return None
        path = self.desk.folder.new("foveate.png")
        picture.save(path)
        return str(path)


def _samples(subject: Subject) -> list[list[str]]:
    return [[question] for question, _ in subject.questions]


def _notes(replies: Sequence[Reply]) -> tuple[str, ...]:
    """What the user should know of the input."""
    for reply in replies:
        if reply.answer is not None:
            return reply.answer.notes
    return ()
