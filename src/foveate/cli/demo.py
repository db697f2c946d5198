"""`foveate demo`: the web page."""

import sys
from dataclasses import dataclass, field
from typing import Annotated

import tyro
from rich.text import Text

from foveate.cli.checks import check_methods, check_model
from foveate.cli.screen import busy, note, show, show_json
from foveate.cli.usage import UsageError
from foveate.plain.flags import Flag, ModelOptions, whole
from foveate.plain.spelling import is_second_look


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Serve a web page where you ask about an image or video, and compare what methods answer and keep.

    The page needs no network: the model runs on this machine, and all files are served from it. Ctrl-C ends it.

    Examples:
      foveate demo
      foveate demo --model Qwen/Qwen2-VL-2B-Instruct --device cuda
      foveate demo --host 0.0.0.0 --port 8080
      foveate demo --port 0 --json
      foveate demo --method sure.json
    """

    host: Annotated[str, tyro.conf.arg(metavar="ADDRESS")] = "127.0.0.1"
    """who can open the page: 127.0.0.1 is this machine only, 0.0.0.0 everyone who can reach it"""
    port: Annotated[int, whole(0, 65535)] = 7860
    """port of the page; 0 uses any free one"""
    json: Flag = False
    """print the address as JSON"""
    method: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="FILE")] = ()
    """a second look from foveate tune --agreement, offered to visitors next to the methods"""
    models: Annotated[ModelOptions, tyro.conf.arg(name="model")] = field(default_factory=ModelOptions)

    def run(self) -> None:
        """Serve until Ctrl-C."""
        check_methods(self.method)
        for file in self.method:
            if not is_second_look(file):
                raise UsageError(
                    f"--method {file} is not a second look. Leave it out: visitors choose methods themselves."
                )
        check_model(self.models.model)
        # Slow imports come last, so that --help and usage errors stay fast.
        from foveate.app.server import check_gradio, listen

        check_gradio()
        with listen(self.host, self.port) as listening:
            with busy("Starting torch"):
                from foveate.app.server import serve
                from foveate.ask.generation import Generation
                from foveate.ask.second_look import SecondLook
                from foveate.cli.setup import load_vlm

            loaded = [SecondLook.load(file) for file in self.method]
            looks = {look.name: look for look in loaded}
            if len(looks) < len(loaded):
                raise UsageError(f"--method: two second looks are both called {loaded[0].name}. Give one of them.")
            vlm = load_vlm(self.models)
            longest = self.models.max_new_tokens
            for look in loaded:
                look.refuse_others(vlm, Generation(max_new_tokens=longest))
            try:
                serve(vlm, listening, self.host, max_new_tokens=longest, looks=looks, ready=self._ready)
            except KeyboardInterrupt:  # the normal end
                note("the page is closed.")
            finally:
                vlm.lock.acquire()  # wait for a running answer: Python cannot exit while torch computes

    def _ready(self, url: str) -> None:
        """Print the address of the page."""
        if self.json:
            show_json({"url": url, "model": self.models.model})
        else:
            show(Text(f"The page is at {url} (Ctrl-C ends it)."))
        sys.stdout.flush()
