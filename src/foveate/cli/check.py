"""`foveate check`: test on this machine whether dropping gives correct results with a model."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.text import Text

from foveate.cli.checks import check_model
from foveate.cli.options import OutputOptions
from foveate.cli.outputs import check_targets, write_outputs
from foveate.cli.screen import busy, counting, note
from foveate.cli.usage import DONE, FAILED, UsageError
from foveate.plain.files import check_readable
from foveate.plain.flags import EMBEDDED, LoadOptions


@dataclass(frozen=True, kw_only=True)
class CheckedModel(LoadOptions):
    """The model to load, and how to run it."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[MODEL]")] = EMBEDDED
    """hub id or local folder; only safetensors are read, and remote code is never run"""


@dataclass(frozen=True, kw_only=True)
class Check:
    """Test on this machine whether dropping gives correct results with a model.

    The result holds for this checkpoint, number format, device, attention kernel and these library versions. Several
    methods drop tokens of one image. Their logits are compared with those of the unmodified model in which the dropped
    tokens are masked. The command also checks that keeping everything changes no bit, that a cache and a batch change
    nothing, and that the model is restored. No labels are needed. Small errors show only in float32.
    Exit code 1: something differs, or the check is inconclusive.

    With --method, check that method instead, on a tiny model: foveate.testing.check_method, which in Python also takes
    several examples, and keep_all for a method without a budget.

    Examples:
      foveate check
      foveate check llava-hf/llava-1.5-7b-hf --device cuda --dtype bfloat16
      foveate check ./my-model --image cat.jpg --attention flash_attention_2 --out check.json
      foveate check Qwen/Qwen2-VL-2B-Instruct --json
      foveate check --method ./mine.py
      foveate check --method "./mine.py:layers=2,4;keep=0.5,0.3"
    """

    models: Annotated[CheckedModel, tyro.conf.arg(name="model")] = field(default_factory=CheckedModel)
    image: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """the image (default: the embedded one)"""
    method: Annotated[str, tyro.conf.arg(metavar="METHOD", help_behavior_hint="")] = ""
    """check this method on a tiny model: a name, or the path of a Python file with your own, with settings"""
    outputs: Annotated[OutputOptions, tyro.conf.arg(name="output")] = field(default_factory=OutputOptions)

    def run(self) -> int:
        """Check, print the table, write the requested files, and return the exit code."""
        check_targets(self.outputs)
        if self.method:
            return self._check_method()
        check_model(self.models.model)
        if self.image is not None:
            check_readable(self.image)
        # Slow imports come last, so that --help and usage errors stay fast.
        with busy("Starting torch"):
            from foveate import embedded
            from foveate.ask.loaded import quiet
            from foveate.ask.media import read_medium
            from foveate.ask.running import fitting
            from foveate.cli.setup import load_vlm
            from foveate.testing.checking import STEPS, Checking

        image = read_medium(self.image or embedded.picture())
        vlm = load_vlm(self.models)
        prompt = vlm.prepare(image, "What is in the picture?")
        checking = Checking(vlm.model, prompt.inputs)
        note(
            f"{checking.comparisons} comparisons, each of about three runs of the model with {checking.tokens} prompt "
            f"tokens ({prompt.vision_tokens} vision tokens) and {STEPS} answer tokens; two runs are batches of three."
        )
        with counting("Checking", checking.comparisons) as advance, quiet(), fitting(vlm, prompt.inputs):
            checked = checking.run(advance)
        write_outputs({"model": self.models.model, **checked.to_dict()}, checked.table, self.outputs)
        if checked.passed:
            return DONE
        return FAILED

    def _check_method(self) -> int:
        """Run the contract's tests on the method, print what failed, and return the exit code."""
        if self.models != CheckedModel() or self.image is not None:
            raise UsageError("--method is checked on a tiny model of its own: leave the model and its options out.")
        with busy("Starting torch"):
            from foveate.naming import method_of
            from foveate.testing import check_method

            method = method_of(self.method)
            failed = ""
            try:
                check_method(method)
            except AssertionError as error:
                failed = str(error)
        shown = Text(f"foveate check: {'FAILED' if failed else 'passed'}: {method} on a tiny model. {failed}".rstrip())
        write_outputs({"method": method.to_dict(), "passed": not failed, "failed": failed}, shown, self.outputs)
        return FAILED if failed else DONE
