"""The page, built with Gradio: its frame, the question on the left, and the answers on the right."""

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import fastapi
import gradio as gr
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from foveate import embedded
from foveate.app.kept import SHOW_STOP, way_of
from foveate.app.replies import FULL, MOST, Said, ask, cards, check_names, error_words, least_percent, program
from foveate.app.subjects import CONTROL, FRAMES, HALF, MOST_FRAMES, Subject, examples, read_upload
from foveate.ask.media import FEW
from foveate.ask.prompt import reads_videos
from foveate.ask.second_look import SecondLook
from foveate.ask.vlm import VLM
from foveate.errors import FoveateError, InputError, SettingError
from foveate.plain.inventory import summary
from foveate.registry import methods, takes_budget
from foveate.viz import draw_comparison
from foveate.viz.canvas import data_url

STYLE = Path(__file__).parent / "page.css"
FONT, MONO = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")
"""System fonts: Gradio's bold fonts lack most letters, and web fonts would be fetched from the network."""
HEAD = """<div class='fv-head'><h1>foveate</h1>
<p>A model turns a picture into hundreds of vision tokens; foveate drops most of them while the model answers.
Pick a picture and press <b>Ask</b>: the full model answers first, then each method with fewer tokens.{}</p></div>"""
SMALL = " This small model knows only drawings: shapes, colours, positions, counts and words of five letters."
"""Appended for the embedded model."""
NO_VIDEOS = (
    "This model does not read videos: it sees the frames as separate pictures, so its answer may be poor. For videos, "
    f"restart the page with the small video model: foveate demo --model {embedded.FILMS}"
)
"""Shown beside a video if the model takes only pictures."""

FILE, WAITING = "50mb", 20
"""The largest upload, and how many questions may wait for the model."""
THUMBNAIL = 160
"""Pixels of an example's thumbnail."""
HOUR = 3600
"""Seconds for which a visitor's picture, answers and files are kept after the last visit."""
MODEL: dict[str, Any] = {"concurrency_id": "model", "show_progress": "hidden", "api_visibility": "private"}
"""Settings of events that ask the model. It serves one question at a time; others wait in line."""
QUICK: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
"""Settings of all other events."""
DISABLED = "() => ({__type__: 'update', interactive: false})"
"""Disables the Ask button in the browser while a picture is loaded, so that nobody asks about the previous one."""

ONE_GROUP = """() => {
    const group = document.querySelector("#examples");
    const join = () => {
        for (const example of group.querySelectorAll("input:not([name=example])")) example.name = "example";
    };
    group.ariaLabel = "Pick an example";
    join();
    new MutationObserver(join).observe(group, {subtree: true, attributes: true, childList: true});
}"""
"""Makes the examples one stop of the Tab key, with arrows between them: Gradio gives each radio button a group."""

Changes = dict[Any, Any]


def application(
    vlm: VLM, hosts: Sequence[str] = ("*",), max_new_tokens: int = 64, looks: Mapping[str, SecondLook] | None = None
) -> Any:
    """Return the page as an ASGI application.

    Args:
        vlm: The model.
        hosts: Host names under which browsers may open it.
        max_new_tokens: The longest answer, in tokens.
        looks: Second looks to offer among the methods, by name.
    """
    with gr.Blocks(title="foveate", analytics_enabled=False, delete_cache=(HOUR, HOUR)) as page:
        gr.HTML(HEAD.format(SMALL if vlm.name in embedded.NAMES else ""))
        AskPanel(vlm, max_new_tokens, looks)
        page.load(None, js=ONE_GROUP, api_visibility="private")
        facts = vlm.card.to_dict()
        kind = f"{facts['model_type']}, {vlm.card.depth} decoder layers, {facts['dtype']} on {facts['device']}"
        words = f"Model: {facts['name']} ({kind}). A single example is an illustration, not a measurement."
        gr.HTML(f"<p class='fv-foot'>{escape(words)}</p>")
    page.queue(max_size=WAITING, default_concurrency_limit=1, api_open=False)
    page.has_launched = True  # else Gradio takes any file's name for an upload's
    trusted = Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    server = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None, middleware=[trusted])
    theme = gr.themes.Default(primary_hue="indigo", neutral_hue="slate", font=FONT, font_mono=MONO)
    dress: dict[str, Any] = {"theme": theme, "css_paths": STYLE, "footer_links": [], "ssr_mode": False, "pwa": False}
    return gr.mount_gradio_app(server, page, "", max_file_size=FILE, run_history=False, show_error=False, **dress)


def _at_least(percent: int) -> str:
    """Explain the budget, and the smallest one that the chosen methods can meet."""
    if percent == 1:
        return "On average over the model's layers."
    return f"On average over the model's layers. The methods above need at least {percent} %."


def hint(text: str) -> str:
    """A hint, as HTML."""
    return f"<p class='fv-hint'>{escape(text)}</p>"


def alert(text: str) -> str:
    """An error, as HTML."""
    return f"<p class='fv-error' role='alert'>{escape(text)}</p>"


def _spoken_name(place: int, subject: Subject) -> str:
    """The name of an example, which a screen reader says instead of its thumbnail."""
    return f"{subject.noun.capitalize()} {place + 1}: {list(subject.questions)[-1]}"


def _thumbnails() -> str:
    """The style that draws each example over its radio button."""
    rules = []
    for place, subject in enumerate(examples(), 1):
        small = subject.pictures[0].copy()
        small.thumbnail((THUMBNAIL, THUMBNAIL))
        rules.append(f"#examples label:nth-of-type({place}) {{ background-image: url({data_url(small)}); }}")
    return f"<style>{' '.join(rules)}</style>"


def notice(notes: Sequence[str]) -> gr.HTML:
    """The notes without repetitions, hidden if there are none."""
    lines = ""
    for note in dict.fromkeys(notes):
        begins_with_a_file = not note.partition(" ")[0].isalpha()
        lines += hint(note if begins_with_a_file else note[:1].upper() + note[1:])
    return gr.HTML(lines, visible=bool(lines))


BEGIN = hint("Press Ask. The full model answers first, then each method.")


# -- asking ---------------------------------------------------------------------------------------------------


class AskPanel:
    """Ask about a picture: answers side by side, and the tokens that each method keeps at each place in the model."""

    def __init__(self, vlm: VLM, max_new_tokens: int, looks: Mapping[str, SecondLook] | None = None) -> None:
        self.vlm = vlm
        self.looks: dict[str, SecondLook | None] = {**(looks or {}), HALF: None}
        self.max_new_tokens = max_new_tokens
        first = examples()[0]
        self.subject = gr.State(first, time_to_live=HOUR)
        with gr.Row():
            with gr.Column(scale=5, min_width=300, elem_classes="fv-tight"):
                self._lay_out_question(first)
            with gr.Column(scale=7, min_width=300):
                self._lay_out_answers()
        self._connect()

    def _lay_out_question(self, first: Subject) -> None:
        self.picture = gr.HTML(way_of(first).to_html(), elem_id="picture", padding=False)  # on a phone, before the rest
        gr.HTML(_thumbnails(), elem_id="thumbnails")
        self.example = gr.Radio(
            [(_spoken_name(place, subject), place) for place, subject in enumerate(examples())],
            value=0,
            label="Pick an example",
            elem_id="examples",
        )
        self.file = gr.File(
            label="Or upload a picture or a video", file_types=["image", "video"], height=90, elem_id="file"
        )
        few = FRAMES if reads_videos(self.vlm.processor) else FEW
        self.frames = gr.Slider(1, MOST_FRAMES, few, step=1, label=CONTROL, visible=False, elem_id="frames", buttons=[])
        self.question = gr.Textbox(next(iter(first.questions)), label="Question", elem_id="question")
        with gr.Row():
            self.ask = gr.Button("Ask", variant="primary", elem_id="ask", min_width=100)
            self.stop = gr.Button("Stop", elem_id="stop", min_width=100)
        self.notice = gr.HTML(visible=False, elem_id="notice")
        self.proposed = gr.Dataset(
            components=[self.question],
            samples=[[question] for question in first.questions],
            label="Suggested questions",
            elem_classes="fv-proposed",
        )
        self._lay_out_budget(("v2drop", "visionzip", "random", *[name for name in self.looks if name != HALF]))
        with gr.Accordion("Answer by choices, or ask again when unsure", open=False):
            self.choices = gr.Textbox(
                label="Choices",
                placeholder="yes, no",
                info="The model then picks one of these, separated by commas, and each gets its probability.",
                elem_id="choices",
            )
            self.sure = gr.Slider(
                *(0, 0.99, 0),
                step=0.01,
                label="Ask again below a confidence of",
                info="Confidence is the probability of the answer's least likely token. 0 turns this off.",
                buttons=[],
                elem_id="sure",
            )

    def _lay_out_budget(self, chosen: Sequence[str]) -> None:
        """The list of methods, and the slider of the budget. The slider begins where every chosen method can run."""
        choices = []
        for name, kind in methods().items():
            if takes_budget(kind):
                words = summary(sys.modules[kind.__module__].__doc__).partition(": ")[2]
                choices.append((f"{name}\n{words[:1].upper()}{words[1:]}", name))
        for name, look in self.looks.items():
            words = "Asks the full model again when unsure; has its own budget"
            choices.append((f"{name}\n{words if look else 'The full model, on every other frame of a video'}", name))
        self.names = gr.Dropdown(
            choices,
            value=list(chosen),
            multiselect=True,
            allow_custom_value=True,
            label="Methods",
            info=f"Up to {MOST}. Pick some, or type a chain or settings such as visionzip+v2drop:metric=l1",
            elem_classes="fv-methods",
        )
        self.refusal = gr.HTML(visible=False, elem_classes="fv-refusal")
        least = least_percent(self.vlm, [name for name in chosen if name not in self.looks], examples()[0])
        self.percent = gr.Slider(
            least,
            100,
            33,
            step=1,
            label="Budget: % of vision tokens to keep",
            info=_at_least(least),
            buttons=[],
            elem_classes="fv-budget",
        )

    def limit(self, subject: Subject | None, names: Sequence[str], percent: float) -> Changes:
        """Reject methods that cannot run, and raise the budget to the smallest that all methods can meet."""
        try:
            plain = [name for name in check_names("?", names, self.looks) if name not in self.looks]
            least = least_percent(self.vlm, plain, subject or examples()[0])
        except FoveateError as error:
            return {self.refusal: gr.HTML(alert(error_words(error)), visible=True)}
        slider = gr.Slider(minimum=least, value=max(least, percent), info=_at_least(least))
        return {self.refusal: gr.HTML("", visible=False), self.percent: slider}

    def _lay_out_answers(self) -> None:
        self.answers = gr.HTML(BEGIN, elem_id="answers")
        self.slider = gr.Slider(
            *(0, 1, 0),
            step=1,
            label="Step through the model",
            info="From the whole picture to the last place where tokens were dropped.",
            interactive=True,
            visible=False,
            elem_id="stages",
            buttons=[],
        )
        self.kept = gr.HTML(way_of(examples()[0]).to_html(), elem_id="panels")
        self.share = gr.DownloadButton("Download as PNG", visible=False, elem_id="share")
        with gr.Accordion("Run this in Python", open=False, elem_id="python", visible=False) as self.python:
            self.code = gr.Code(language="python", interactive=False, show_label=False, buttons=["copy"])

    def _connect(self) -> None:
        names, percent = self.names, self.percent
        limited = [self.refusal, percent]
        cleared = [
            *(self.subject, self.ask, self.picture, self.example, self.notice, self.proposed, self.answers),
            *(self.slider, self.kept, self.share, self.python),
        ]
        shown = [*cleared, *limited]
        names.change(self.limit, [self.subject, names, percent], limited, **QUICK)
        self.proposed.click(lambda row: row[0], self.proposed, self.question, **QUICK)
        asking = [self.subject, self.question, names, percent, self.sure, self.choices]
        replied = [*cleared, self.code]
        running = [event(self.reply, asking, replied, **MODEL) for event in (self.ask.click, self.question.submit)]
        self.stop.click(None, cancels=running, api_visibility="private")
        for taking in (self.file.upload, self.example.input, self.frames.input):
            # Must come first: the listeners of an event run one after the other. This one runs in the browser.
            taking(None, outputs=self.ask, js=DISABLED, cancels=running, api_visibility="private")
        shown += [self.file, self.frames]
        filed = [self.file, names, percent, self.frames]
        self.file.upload(self.upload, filed, shown, **QUICK)
        self.frames.input(self.upload, filed, shown, trigger_mode="always_last", **QUICK)
        self.example.input(self.choose, [self.example, names, percent], [*shown, self.question], **QUICK)
        self.slider.input(None, js=SHOW_STOP, api_visibility="private")

    def clear(self) -> Changes:
        """Empty the page and disable Ask."""
        return {
            self.subject: None,
            self.ask: gr.Button(interactive=False),
            self.example: None,
            self.picture: "",
            self.notice: notice(()),
            self.proposed: gr.Dataset(visible=False),
            self.answers: "",
            self.slider: gr.Slider(visible=False),
            self.kept: "",
            self.share: gr.DownloadButton(value=None, visible=False),
            self.python: gr.Accordion(visible=False),
        }

    def show(self, subject: Subject, names: Sequence[str], percent: float) -> Changes:
        """Show a new picture, ready to be asked about."""
        changes = self.clear() | self.limit(subject, names, percent)
        samples = [[question] for question in subject.questions]  # as Gradio lists them
        whole = way_of(subject).to_html()
        return changes | {
            self.subject: subject,
            self.picture: whole,
            self.ask: gr.Button(interactive=True),
            self.notice: notice(self._notes(subject)),
            self.proposed: gr.Dataset(samples=samples, visible=bool(samples)),
            self.answers: BEGIN,
            self.kept: whole,
        }

    def _notes(self, subject: Subject) -> tuple[str, ...]:
        """Notes to show before the first question."""
        as_pictures = subject.noun == "video" and not reads_videos(self.vlm.processor)
        strange = self.vlm.name in embedded.NAMES and not all(map(embedded.is_drawn, subject.pictures))
        return (*subject.notes, *[NO_VIDEOS] * as_pictures, *[embedded.STRANGE] * strange)

    def upload(self, path: str | None, names: list[str], percent: float, frames: int = FRAMES) -> Iterator[Changes]:
        """Read an uploaded file. If it is bad, say so and empty the box; the previous picture is gone either way."""
        yield self.clear() | {self.notice: notice(("Reading the file …",))}
        try:
            if path is None:  # the slider was moved after the box was emptied
                raise InputError(f"The video is no longer here. Upload it again, then set “{CONTROL}”.")
            subject = read_upload(path, frames)
            yield self.show(subject, names, percent) | {self.frames: gr.Slider(visible=subject.noun == "video")}
        except SettingError as error:  # too many frames
            words = alert(f"{error} “{CONTROL}” sets how many.")
            yield {self.notice: gr.HTML(words, visible=True), self.frames: gr.Slider(visible=True)}
        except FoveateError as error:
            bad = {self.file: None, self.frames: gr.Slider(visible=False)}
            yield bad | {self.notice: gr.HTML(alert(str(error)), visible=True)}

    def choose(self, place: int, names: list[str], percent: float) -> Changes:
        """Show an example and suggest a question."""
        subject = examples()[place]
        changes = self.show(subject, names, percent)
        changes[self.example] = place
        changes |= {self.file: None, self.frames: gr.Slider(visible=False)}
        return changes | {self.question: next(iter(subject.questions))}

    def reply(
        self,
        subject: Subject | None,
        question: str,
        names: list[str],
        percent: float,
        sure: float = 0.0,
        choices: str | None = None,
    ) -> Iterator[Changes]:
        """Answer with the full model, then with each method, word by word."""
        question = question.strip()
        texts = [text.strip() for text in (choices or "").split(",") if text.strip()]  # None until it is written into
        try:
            if subject is None:
                raise InputError("There is no picture or video to ask about. Upload one, or pick an example.")
            names = [FULL, *check_names(question, names, self.looks)]
        except FoveateError as error:
            yield {self.answers: alert(error_words(error))}
            return
        replies = [Said(name) for name in names]
        yield {self.answers: cards(replies), self.share: gr.DownloadButton(visible=False)}
        for place, name in enumerate(names):
            for reply in ask(self.vlm, subject, question, name, self._asking(name, percent, sure, texts)):
                replies[place] = reply
                yield {self.answers: cards(replies)}
        way = way_of(subject, replies)
        stops = len(way.words)
        middle = stops // 2  # at the end, many methods have hardly any token left
        file = self._draw(question, replies)
        written = [name for name in names[1:] if name not in self.looks]
        asking: dict[str, Any] = {"retention": percent / 100, "max_new_tokens": self.max_new_tokens}
        asking |= {name: value for name, value in (("sure", sure), ("choices", texts)) if value}
        notes = [note for reply in replies if reply.answer is not None for note in reply.answer.notes]
        yield {
            self.answers: cards(replies, subject.questions.get(question)),
            self.slider: gr.Slider(maximum=max(1, stops - 1), value=middle, visible=stops > 1),
            self.kept: way.to_html(middle),
            self.share: gr.DownloadButton(value=file, visible=file is not None),
            self.python: gr.Accordion(visible=True),
            self.code: program(subject, question, written, self.vlm.name, asking),
            self.notice: notice((*self._notes(subject), *notes)),
        }

    def _asking(self, name: str, percent: float, sure: float, choices: Sequence[str]) -> dict[str, Any]:
        """Keywords of `VLM.ask` for this name. A second look has its own budget."""
        asking: dict[str, Any] = {"max_new_tokens": self.max_new_tokens}
        if choices:
            asking["choices"] = choices
        if name in self.looks:
            asking["method"] = self.looks[name]
        elif name != FULL:
            asking |= {"method": name, "retention": percent / 100}
            if sure:
                asking["sure"] = sure
        return asking

    def _draw(self, question: str, replies: Sequence[Said]) -> str | None:
        """Save a picture of all answers and return its path; None if nothing was dropped."""
        rows, media = [], None
        for reply in replies:
            dropping = reply.dropping
            if dropping is not None:
                share = f"{dropping.retention:.0%} of {dropping.vision_tokens} tokens"
                rows.append((f"{reply.name}: {dropping.text} ({share})", dropping.trace.history[0]))
                media = dropping.prompt.shown
        if media is None:
            return None
        try:
            picture = draw_comparison(rows, media, f"{question}  Full model: {replies[0].text}")
        except FoveateError:  # the family does not know the positions of its tokens
            return None
        path = Path(tempfile.mkdtemp(dir=self.share.GRADIO_CACHE)) / "foveate.png"
        picture.save(path)
        return str(path)
