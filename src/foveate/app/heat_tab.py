"""The tab that shows where methods look: heat maps over many pictures, and how far methods agree."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import gradio as gr

from foveate.app.examples import generated
from foveate.app.heat import look
from foveate.app.maps import heat_html
from foveate.app.parts import HIDDEN, MODEL, Desk, alert, hint, methods_box, percent_slider
from foveate.ask.pictures import Picture
from foveate.errors import FoveateError, InputError, SettingError

__all__ = ["HeatTab"]

METHODS = ("v2drop", "visionzip", "divprune", "random")
QUESTION = "What does the text say?"
PICTURES = 12


class HeatTab:
    """Its parts, and what happens when they are used."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        with gr.Row():
            with gr.Column(scale=4, min_width=300):
                methods = methods_box(desk, METHODS)
                percent = percent_slider()
                most = desk.limits.pictures
                count = gr.Slider(2, most, min(PICTURES, most), step=1, label="Generated pictures", elem_id="pictures")
                files = gr.File(
                    label="Or pictures of your own", file_count="multiple", file_types=["image"], height=130
                )
                question = gr.Textbox(QUESTION, label="Question", max_length=desk.limits.question)
                with gr.Row():
                    start = gr.Button("Look", variant="primary", elem_id="look", min_width=100)
                    stop = gr.Button("Stop", min_width=100)
            with gr.Column(scale=7, min_width=300):
                begin = hint("Press Look: every method is shown every picture, and the maps fill.")
                maps = gr.HTML(begin, elem_id="maps")
        running = start.click(self.run, [methods, percent, count, files, question], maps, **MODEL, **HIDDEN)
        stop.click(None, cancels=[running], **HIDDEN)

    def run(
        self, names: list[str], percent: float, count: float, paths: list[str] | None, question: str
    ) -> Iterator[str]:
        """The maps so far, after every picture."""
        question, names = question.strip(), list(dict.fromkeys(names))
        try:
            self.desk.check(question, names)
            if not names:
                raise SettingError("Choose a method.")
            pictures = self._pictures(paths, int(count))
            yield hint(f"Showing the first of {len(pictures)} pictures.")
            for maps in look(self.desk.vlm, pictures, question, names, percent / 100):
                yield heat_html(maps, len(pictures))
        except FoveateError as error:
            yield alert(str(error))

    def _pictures(self, paths: Sequence[str] | None, count: int) -> list[Picture]:
        """The pictures that were uploaded, else so many generated ones.

        Raises:
            InputError: If there are too many, or one is damaged.
        """
        most = self.desk.limits.pictures
        if not paths:
            return generated(min(max(1, count), most))
        if len(paths) > most:
            raise InputError(f"At most {most} pictures make a map; got {len(paths)}.")
        pictures = []
        for path in paths:
            medium = self.desk.opened(path).medium
            if not isinstance(medium, Picture):
                raise InputError(f"{Path(path).name} is a film; maps are made of pictures.")
            pictures.append(medium)
        return pictures
