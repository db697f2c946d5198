"""`foveate count`: count the vision tokens of images and videos without loading the model's weights."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Group

from foveate.cli.checks import check_input, check_methods, files_in
from foveate.cli.options import BudgetOptions, Files, MaybeTokens, TableOptions
from foveate.cli.outputs import check_targets, write_outputs
from foveate.cli.screen import busy, note
from foveate.cli.usage import BAD_ROWS, DONE, UsageError
from foveate.errors import FoveateError
from foveate.plain.flags import EMBEDDED, MediaOptions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from foveate.ask.prompt import Prompt
    from foveate.plain.table import Table

QUESTION = "What is this?"


@dataclass(frozen=True, kw_only=True)
class Count:
    """Count the vision tokens of images and videos, without loading the model's weights.

    Runs the model's own processor, so the counts are exactly those that the model will get. For a hub id, downloads
    only the config and the processor. With --method, also shows how many tokens each layer keeps, and the cost.

    Examples:
      foveate count cat.jpg --model Qwen/Qwen3-VL-8B-Instruct
      foveate count page.png --model Qwen/Qwen3-VL-8B-Instruct --tokens 1024
      foveate count cat.jpg --model llava-hf/llava-1.5-7b-hf --method v2drop --budget 192
      foveate count clip.mp4 --frames 32 --model llava-hf/llava-onevision-qwen2-7b-ov-hf --json
    """

    files: Files = ()
    """image and video files, or folders of them, in the order in which the model sees them"""
    model: Annotated[str, tyro.conf.arg(metavar="ID|FOLDER")] = EMBEDDED
    """hub id or local folder; its weights may be missing"""
    tokens: MaybeTokens = None
    """also find the largest max_pixels at which all images together have at most this many vision tokens"""
    method: Annotated[str | None, tyro.conf.arg(metavar="NAME[:KEY=VALUE;…]", help_behavior_hint="")] = None
    """also count the tokens that a method, preset or chain keeps in each layer; takes a budget, as generate does"""
    budgets: Annotated[BudgetOptions, tyro.conf.arg(name="budget")] = field(default_factory=BudgetOptions)
    media: Annotated[MediaOptions, tyro.conf.arg(name="media")] = field(default_factory=MediaOptions)
    outputs: Annotated[TableOptions, tyro.conf.arg(name="output")] = field(default_factory=TableOptions)

    def run(self) -> int:
        """Count, print the tables, write the requested files, and return the exit code."""
        if self.method is None and self.budgets.has_budget:
            raise UsageError("--budget and --retention need a method: name it with --method.")
        check_targets(self.outputs)
        if self.method is not None:
            check_methods([self.method])
        files = [path for place in self.files for path in files_in(place, films=True)]
        check_input(files, QUESTION, self.model, self.media, together=False)
        with busy("Starting torch"):
            from foveate import embedded
            from foveate.ask.counting import most_pixels, prepare_blank
            from foveate.ask.loading import load
            from foveate.cli.setup import parse_methods, read_each
            from foveate.plain.version import __version__
            from foveate.video.wanted import FramesWanted
        sources = files or [embedded.picture()]
        with busy("Reading the files"):
            wanted = FramesWanted(self.media.frames, self.media.fps)
            media = list(read_each(sources, wanted=wanted, blank=True).values())
        with busy(f"Loading the config of {self.model}"):
            vlm = load(self.model, weights=False)
        with busy("Preparing the pictures"):
            prompt = prepare_blank(vlm, media, QUESTION, **self.media.showing)
            if len(media) == 1:
                alone = [prompt]
            else:
                alone = [prepare_blank(vlm, [medium], QUESTION, **self.media.showing) for medium in media]
        note(*prompt.notes)
        counts = [of_medium.vision_tokens for of_medium in alone]
        values: dict[str, Any] = {"foveate": __version__, **prompt.to_dict(), "media": counts}
        try:
            cost = prompt.cost()
            values |= {"flops": cost.total_flops, "prefill_flops": cost.prefill_flops, "kv_bytes": cost.kv_bytes}
        except FoveateError as error:  # a family whose costs foveate cannot count
            values["uncounted"] = str(error)
        values["vision_tokens"] = prompt.vision_tokens
        if self.tokens is not None:
            with busy(f"Looking for the pixels of {self.tokens:g} tokens"):
                values["max_pixels"] = most_pixels(vlm, prompt, int(self.tokens))
        tables = [_table(values, prompt, media)]
        if self.method is not None:
            drops = vlm.method_for(parse_methods([self.method], self.budgets)[self.method], prompt.vision_tokens)
            cost = prompt.cost(drops)
            values["method"] = {"name": self.method, **cost.to_dict()}
            tables.append(cost.table(f"With {self.method}"))
        write_outputs(values, Group(*tables), self.outputs, tables)
        if len(media) < len(sources):
            return BAD_ROWS
        return DONE


def _table(values: "Mapping[str, Any]", prompt: "Prompt", media: "Sequence[Any]") -> "Table":
    """Return the table: a row per file of `media`, and the sum in the notes."""
    from foveate.ask.media import size_of
    from foveate.plain.table import Column, Table, number
    from foveate.video import Clip

    rows = []
    for source, medium, tokens in zip(media, prompt.media, values["media"], strict=True):
        size = "{} x {}".format(*size_of(source))
        if size_of(medium) != size_of(source):
            size += ", padded to {} x {}".format(*size_of(medium))
        if isinstance(medium, Clip):
            size += f", {len(medium)} frames"
        rows.append((str(medium.path or "the embedded picture"), size, number(tokens, "d")))
    costs = f"costs are not counted: {values.get('uncounted')}"
    if "flops" in values:
        flops, where = values["flops"], "to the first token (counted, without dropping)"
        if flops is None:
            flops, where = values["prefill_flops"], "in the decoder's prefill (the vision tower is not counted)"
        costs = f"{values['kv_bytes'] / 2**20:.3g} MiB of KV cache, {flops / 1e12:.3g} TFLOP {where}"
    notes = [f"Together {values['vision_tokens']} vision and {values['text_tokens']} text tokens; {costs}."]
    if "max_pixels" in values:
        most = values["max_pixels"]
        notes.append(
            f"max_pixels={most} keeps the images within --tokens: AutoProcessor.from_pretrained(…, "
            f"max_pixels={most}), or in vLLM --mm-processor-kwargs '{{\"max_pixels\": {most}}}'."
        )
    columns = [Column("File", wrap=True), Column("Pixels"), Column("Vision tokens", right=True)]
    return Table(f"{values['model']['name']}", columns, rows, notes)
