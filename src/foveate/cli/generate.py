"""`foveate generate`: answer with vision tokens dropped, and report what that saved."""

from dataclasses import dataclass, field
from typing import Annotated, Any

import tyro

from foveate.cli.checks import check_input, check_methods
from foveate.cli.options import BudgetOptions, Files, MaybeFile, OutputOptions
from foveate.cli.outputs import check_targets, write_outputs
from foveate.cli.screen import busy, label_lines
from foveate.plain.flags import MediaOptions, ModelOptions
from foveate.plain.version import __version__


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Answer a question about images or a video, with vision tokens dropped.

    Prints the answer, the retention, and the FLOPs and KV-cache bytes saved; foveate compare adds the full model's
    answer and a measured time ratio. Without FILE, asks the embedded model about its example image.

    Examples:
      foveate generate
      foveate generate cat.jpg --prompt "What is it doing?" --model llava-hf/llava-1.5-7b-hf
      foveate generate a.png b.png --prompt "What changed?" --budget 192 --figure kept.png
      foveate generate cat.jpg --prompt "What is it doing?" --prompt "What colour is it?"
      foveate generate cat.jpg --prompt "Describe it." --method v2drop/llava-1.5-7b/64 --json
      foveate generate clip.mp4 --prompt "What happens?" --frames 32 --model llava-hf/llava-onevision-qwen2-7b-ov-hf
    """

    files: Files = ()
    """image and video files, in the order in which the model sees them"""
    prompt: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="TEXT", help_behavior_hint="")
    ] = ()
    """the question; repeatable, to ask several questions about the same files"""
    method: Annotated[str, tyro.conf.arg(metavar="NAME[:KEY=VALUE;…]")] = "v2drop"
    """a method, preset, preset file or chain, with settings: "visiondrop+v2drop:metric=l1;keep=0.5,0.3,0"
    (list: foveate methods). The default works well at a third of the tokens on the embedded model.
    Below a fifth, use divprune, scope or vidcom2 (docs/guides/choosing.md)"""
    figure: MaybeFile = None
    """draw the kept patches on the image, one panel per stage; for a video, one sheet per stage
    (png, jpg, webp, pdf)"""
    models: Annotated[ModelOptions, tyro.conf.arg(name="model")] = field(default_factory=ModelOptions)
    budgets: Annotated[BudgetOptions, tyro.conf.arg(name="budget")] = field(default_factory=BudgetOptions)
    media: Annotated[MediaOptions, tyro.conf.arg(name="media")] = field(default_factory=MediaOptions)
    outputs: Annotated[OutputOptions, tyro.conf.arg(name="output")] = field(default_factory=OutputOptions)

    def run(self) -> None:
        """Answer, print the result, and write the requested files."""
        check_targets(self.outputs, self.figure)
        check_methods([self.method])
        check_input(self.files, self.prompt, self.models.model, self.media)
        # Slow imports come last, so that --help and usage errors stay fast.
        with busy("Starting torch"):
            from foveate.ask.answers import Answerer, in_order
            from foveate.ask.generation import Generation
            from foveate.cli.setup import parse_drop, set_up

        drops = parse_drop(self.method, self.budgets)
        setup = set_up(self, self.prompt, {self.method: drops})
        generation = Generation(max_new_tokens=self.models.max_new_tokens)
        values: dict[str, Any] = {"foveate": __version__, **setup.prompt.to_dict(), "name": self.method}
        with busy(f"Answering with {self.method}"):
            answerer = Answerer(setup.vlm, drops, generation)
            answers = list(in_order(answerer.replies(setup.prompts, lambda prompt, _: prompt)))
        if len(self.prompt) > 1:
            values["answers"] = [{"prompt": answer.prompt.text, **answer.to_dict()} for answer in answers]
        else:
            values |= answers[0].to_dict()
        rows: list[tuple[str, str]] = []
        for answer in answers:
            rows += [("Question", answer.prompt.text), (f"With {self.method}", answer.text)]
        answer = answers[0]
        rows += answer.lines()
        if len(self.prompt) > 1 and not any(answer.looked for answer in answers):
            rows.append(("Looked", "for each question: the answers share no prefill"))
        if self.figure is not None:
            values["figure"] = str(self.figure)
            rows.append(("Figure", str(self.figure)))
        write_outputs(values, label_lines(rows), self.outputs, figure=self.figure, draw=answer.show)
