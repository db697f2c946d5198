"""The page itself, in Gradio: two tabs, and what happens when something is pressed."""

import secrets
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import fastapi
import gradio as gr

from foveate.app.answers import FULL, Reply, Shelf, answer
from foveate.app.cards import cards, panels, places_of, stop_words
from foveate.app.code import code_of
from foveate.app.examples import examples, generated
from foveate.app.guard import tidy
from foveate.app.heat import look
from foveate.app.limits import LIMITS, Limits, opened
from foveate.app.maps import heat_html
from foveate.app.subject import Subject
from foveate.ask.pictures import Picture
from foveate.ask.vlm import VLM
from foveate.errors import FoveateError, InputError, SettingError
from foveate.methods.catalogue import methods
from foveate.methods.named import Member
from foveate.viz import draw_comparison

__all__ = ["Page"]

METHODS = ("v2drop", "visionzip", "random")
HEAT_METHODS = ("v2drop", "visionzip", "divprune", "random")
HEAT_QUESTION = "What does the text say?"
PERCENT = 33
STYLE = Path(__file__).parent / "page.css"
ONE_AT_A_TIME: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}
"""A model serves one question at a time; others wait in line."""
AT_ONCE: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
HIDDEN: dict[str, Any] = {"api_visibility": "private"}
SESSIONS = 100
"""Visitors whose last answers are remembered."""
REMEMBERED = 3600
"""Seconds."""
HEAD = """<div class='fv-head'><h1>foveate</h1>
<p>Ask about a picture while vision tokens are dropped, and see what stays. The full model answers first.</p></div>"""


class Page:
    """The page for one model.

    Args:
        vlm: The model.
        folder: Where results are written, which Gradio serves; see `foveate.app.server.own_folder`.
        limits: How much it takes.
        max_new_tokens: The longest answer.
    """

    def __init__(self, vlm: VLM, folder: Path, limits: Limits = LIMITS, max_new_tokens: int = 64) -> None:
        self.vlm = vlm
        self.folder = folder
        self.limits = limits
        self.max_new_tokens = max_new_tokens
        self.shelf = Shelf()

    def application(self) -> Any:
        """What a server serves."""
        blocks = self.blocks()
        blocks.state_session_capacity = SESSIONS
        return gr.mount_gradio_app(
            fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
            blocks,
            "",
            footer_links=[],
            run_history=False,
            max_file_size=self.limits.file,
            show_error=False,
            ssr_mode=False,
            pwa=False,
            theme=gr.themes.Default(primary_hue="indigo", neutral_hue="slate"),
            css_paths=STYLE,
        )

    def blocks(self) -> gr.Blocks:
        """The two tabs."""
        with gr.Blocks(title="foveate", analytics_enabled=False) as blocks:
            gr.HTML(HEAD)
            with gr.Tab("Ask"):
                self._ask_tab()
            with gr.Tab("Where do methods look?"):
                self._heat_tab()
            gr.HTML(self._foot())
        blocks.queue(max_size=self.limits.waiting, api_open=False)
        return blocks

    def _foot(self) -> str:
        facts = self.vlm.to_dict()
        kind = f"{facts['model_type']}, {self.vlm.depth} decoder layers, {facts['dtype']} on {facts['device']}"
        words = f"{facts['name']} ({kind})."
        return f"<p class='fv-foot'>Model: {escape(words)} One picture illustrates; it measures nothing.</p>"

    # -- asking -----------------------------------------------------------------------------------------------

    def _ask_tab(self) -> None:
        first = examples()[0]
        subject = gr.State(first, time_to_live=REMEMBERED)
        places = gr.State(places_of(first), time_to_live=REMEMBERED)
        with gr.Row():
            with gr.Column(scale=4, min_width=300):
                gallery = gr.Gallery(
                    [(one.pictures[0], one.name) for one in examples()],
                    label="Take an example",
                    columns=3,
                    height=270,
                    object_fit="cover",
                    allow_preview=False,
                    interactive=False,
                    buttons=[],
                    selected_index=0,
                )
                file = gr.File(label="Or drop a picture or a film", file_types=["image", "video"], height=130)
                notice = gr.HTML(visible=False)
                question = gr.Textbox(first.questions[0][0], label="Question", max_length=self.limits.question)
                proposed = gr.Dataset(
                    components=[question],
                    samples=_samples(first),
                    label="Questions that fit",
                    type="values",
                )
                methods = self._methods_box(METHODS)
                percent = _percent_slider()
                with gr.Row():
                    ask = gr.Button("Ask", variant="primary", elem_id="ask")
                    stop = gr.Button("Stop", elem_id="stop")
            with gr.Column(scale=7, min_width=320):
                answers = gr.HTML(_waiting(), elem_id="answers")
                words = gr.HTML(stop_words(places.value, 0), elem_id="stop-words")
                slider = gr.Slider(0, 1, 0, step=1, label="Where in the model", visible=False, elem_id="stages")
                kept = gr.HTML(panels(places.value, 0), elem_id="panels")
                with gr.Row():
                    share = gr.DownloadButton("Share as PNG", interactive=False, elem_id="share")
                with gr.Accordion("The same in Python", open=False, elem_id="python"):
                    code = gr.Code(language="python", interactive=False, show_label=False, buttons=["copy"])

        def show(one: Subject) -> dict[Any, Any]:
            """Everything for a new picture."""
            new = places_of(one)
            return {
                subject: one,
                places: new,
                notice: _notice(one.notes),
                proposed: gr.Dataset(samples=_samples(one)),
                answers: _waiting(),
                words: stop_words(new, 0),
                slider: gr.Slider(visible=False),
                kept: panels(new, 0),
                share: gr.DownloadButton(value=None, interactive=False),
                code: "",
            }

        def upload(path: str | None) -> dict[Any, Any]:
            if path is None:
                return {notice: _notice(())}
            try:
                return show(opened(Path(path), self.limits))
            except FoveateError as error:
                return {notice: gr.HTML(_alert(str(error)), visible=True)}

        def choose(event: gr.SelectData) -> dict[Any, Any]:
            one = examples()[event.index]
            return show(one) | {file: None, question: one.questions[0][0]}

        def reply(one: Subject, asked: str, names: list[str], share_of: float) -> Iterator[dict[Any, Any]]:
            asked, names = asked.strip(), list(dict.fromkeys(names))
            try:
                self._check(asked, names)
            except FoveateError as error:
                yield {answers: _alert(str(error))}
                return
            yield {
                answers: cards([Reply(name) for name in (FULL, *names)]),
                share: gr.DownloadButton(interactive=False),
            }
            replies: list[Reply] = []
            for replies in self._replies(one, asked, names, share_of / 100):
                yield {answers: cards(replies, one.right_answer(asked) if _whole(replies) else None)}
            new = places_of(one, replies)
            last = len(new.stops)
            yield {
                places: new,
                slider: gr.Slider(maximum=max(1, last), value=last, visible=last > 0),
                words: stop_words(new, last),
                kept: panels(new, last),
                share: gr.DownloadButton(value=self._drawn(one, asked, replies), interactive=True),
                code: code_of(one, asked, names, share_of / 100, self.vlm.name, self.max_new_tokens),
                notice: _notice((*one.notes, *_notes(replies))),
            }

        shown = [subject, places, notice, proposed, answers, words, slider, kept, share, code]
        file.upload(upload, file, shown, **HIDDEN)
        gallery.select(choose, None, [*shown, file, question], **HIDDEN)
        proposed.click(lambda row: row[0], proposed, question, **AT_ONCE, **HIDDEN)
        asking = [subject, question, methods, percent]
        changed = [places, answers, words, slider, kept, share, code, notice]
        running = [
            source(reply, asking, changed, show_progress="hidden", **ONE_AT_A_TIME, **HIDDEN)
            for source in (ask.click, question.submit)
        ]
        stop.click(None, cancels=running, **HIDDEN)
        slider.input(
            lambda new, at: (panels(new, int(at)), stop_words(new, int(at))),
            [places, slider],
            [kept, words],
            trigger_mode="always_last",
            **AT_ONCE,
            **HIDDEN,
        )

    def _replies(self, one: Subject, question: str, names: Sequence[str], retention: float) -> Iterator[list[Reply]]:
        """All replies as far as they have come: the full model's, then each method's."""
        replies = [Reply(name) for name in (FULL, *names)]
        for place, name in enumerate((FULL, *names)):
            method = None if name == FULL else name
            budget = None if name == FULL else retention
            pieces = answer(self.vlm, self.shelf, one, question, method, budget, max_new_tokens=self.max_new_tokens)
            for piece in pieces:
                replies[place] = piece
                yield list(replies)

    def _check(self, question: str, names: Sequence[str]) -> None:
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

    def _drawn(self, one: Subject, question: str, replies: Sequence[Reply]) -> str | None:
        """A picture of all answers, as a file that can be downloaded; None where there is nothing to draw."""
        whole = [(reply, reply.answer) for reply in replies if reply.answer is not None]
        dropped = [
            (f"{reply.name}: {reply.text} ({made.retention:.0%} of {made.vision_tokens} tokens)", made)
            for reply, made in whole
            if made.trace.history
        ]
        full = next((reply.text for reply in replies if reply.name == FULL), "")
        try:
            rows = [(words, made.trace.latest) for words, made in dropped]
            picture = draw_comparison(rows, dropped[0][1].prompt.shown, f"{question}  Full model: {full}")
        except (FoveateError, IndexError):
            return None
        tidy(self.folder, self.limits.folder)
        path = self.folder / secrets.token_hex(16) / "foveate.png"
        path.parent.mkdir()
        picture.save(path)
        return str(path)

    # -- where methods look -----------------------------------------------------------------------------------

    def _heat_tab(self) -> None:
        with gr.Row():
            with gr.Column(scale=4, min_width=300):
                methods = self._methods_box(HEAT_METHODS)
                percent = _percent_slider()
                count = gr.Slider(2, self.limits.pictures, 12, step=1, label="Generated pictures", elem_id="heat-count")
                files = gr.File(
                    label="Or pictures of your own", file_count="multiple", file_types=["image"], height=130
                )
                question = gr.Textbox(HEAT_QUESTION, label="Question", max_length=self.limits.question)
                with gr.Row():
                    start = gr.Button("Look", variant="primary", elem_id="look")
                    stop = gr.Button("Stop")
            with gr.Column(scale=7, min_width=320):
                maps = gr.HTML(
                    "<p class='fv-hint'>Press Look: every picture is shown to every method, and the maps fill.</p>",
                    elem_id="maps",
                )

        def run(names: list[str], share_of: float, many: float, paths: list[str] | None, asked: str) -> Iterator[str]:
            try:
                self._check(asked.strip(), names)
                if not names:
                    raise SettingError("Choose a method.")
                pictures = self._pictures(paths, int(many))
                for found in look(self.vlm, pictures, asked.strip(), list(dict.fromkeys(names)), share_of / 100):
                    yield heat_html(found, len(pictures))
            except FoveateError as error:
                yield _alert(str(error))

        running = start.click(
            run, [methods, percent, count, files, question], maps, show_progress="hidden", **ONE_AT_A_TIME, **HIDDEN
        )
        stop.click(None, cancels=[running], **HIDDEN)

    def _pictures(self, paths: Sequence[str] | None, count: int) -> list[Picture]:
        """The pictures that were uploaded, else so many generated ones.

        Raises:
            InputError: If there are too many, or one is damaged.
        """
        if not paths:
            return generated(min(count, self.limits.pictures))
        if len(paths) > self.limits.pictures:
            raise InputError(f"At most {self.limits.pictures} pictures make a map; got {len(paths)}.")
        pictures = []
        for path in paths:
            medium = opened(Path(path), self.limits).medium
            if not isinstance(medium, Picture):
                raise InputError(f"{Path(path).name} is a film; maps are made of pictures.")
            pictures.append(medium)
        return pictures

    # -- parts ------------------------------------------------------------------------------------------------

    def _methods_box(self, chosen: Sequence[str]) -> gr.Dropdown:
        return gr.Dropdown(
            _method_names(),
            value=list(chosen),
            multiselect=True,
            allow_custom_value=True,
            max_choices=self.limits.methods,
            label="Methods",
            info="Names, or write a chain with settings: visionzip+v2drop:metric=l1",
        )


def _percent_slider() -> gr.Slider:
    return gr.Slider(5, 100, PERCENT, step=1, label="Budget: % of the vision tokens, mean over decoder layers")


def _method_names() -> list[str]:
    """Methods that take a budget."""
    return [name for name, kind in methods().items() if Member(kind).open]


def _samples(one: Subject) -> list[list[str]]:
    return [[question] for question, _ in one.questions]


def _whole(replies: Sequence[Reply]) -> bool:
    return all(reply.answer is not None or reply.error is not None for reply in replies)


def _notes(replies: Sequence[Reply]) -> tuple[str, ...]:
    """What the user should know of the input, once."""
    for reply in replies:
        if reply.answer is not None:
            return reply.answer.notes
    return ()


def _notice(notes: Sequence[str]) -> Any:
    """Notes below the picture; nothing where there are none."""
    lines = "".join(f"<p class='fv-hint'>{escape(note)}</p>" for note in dict.fromkeys(notes))
    return gr.HTML(lines, visible=bool(lines))


def _alert(text: str) -> str:
    return f"<p class='fv-error' role='alert'>{escape(text)}</p>"


def _waiting() -> str:
    return "<p class='fv-hint'>Press Ask: the full model answers first, then every method.</p>"
