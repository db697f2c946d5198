"""`foveate bench`: speed and memory against the untouched model, as ratios with intervals beside their controls."""

import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from foveate.cli.checks import check_methods, check_shape
from foveate.cli.options import EMBEDDED, Flag, MethodsOptions, ModelOptions, OutputOptions
from foveate.cli.outputs import check_targets
from foveate.cli.overhead import ALL, BATCHES, NEW_TOKENS, measure, names_of
from foveate.cli.usage import UsageError, check_budgets, check_most
from foveate.errors import InputError, SettingError

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from foveate._sheet import Sheet
    from foveate.bench.run import Session
    from foveate.bench.shapes import Shape
    from foveate.bench.subject import Subject
    from foveate.contract.method import Method

__all__ = ["Bench"]

Attention = Literal["auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"]
LEAST = 2  # rounds that a ratio needs


@dataclass(frozen=True, kw_only=True)
class BenchOutputs(OutputOptions):
    """What is written, and where."""

    figure: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """draw times and their intervals beside FLOPs (png, jpg, webp, pdf)"""


@dataclass(frozen=True, kw_only=True)
class Bench(MethodsOptions):
    """Time a model with and without dropping, in alternating runs, and measure its memory.

    Every round runs, in a new random order: the untouched model, the same again (A/A), keep-all inside the context,
    and every method at every budget, each beside random dropping and the bare layers with as many tokens. Times of the
    vision tower, the prefill, the first token, each further token and the whole call are medians of the rounds' ratios
    with 95 % bootstrap intervals, beside the ratio of FLOPs. Answers have a fixed length. A named shape has a real
    model's sizes and random weights, which do not change speed at a fixed schedule; it is labelled so.

    Examples:
      foveate bench --model cpu-medium --budget 192 --budget 64
      foveate bench --model llava-1.5-7b --budget 192 --budget 128 --budget 64 --batch 8 --out bench.json --figure b.png
      foveate bench --model llava-hf/llava-1.5-7b-hf --method v2drop --retention 0.33 --profile
      foveate bench --model qwen2-vl-72b --retention 0.33 --predict
      foveate bench --model cpu-small --methods all --budget 192 --out methods.json
    """

    model: Annotated[str, tyro.conf.arg(metavar="SHAPE|ID|FOLDER")] = EMBEDDED
    """a shape with random weights (list: --shapes), a hub id or a local folder"""
    methods: Annotated[str | None, tyro.conf.arg(metavar="all|NAME,…", help_behavior_hint="")] = None
    """instead of --method: one table of what each takes beside random dropping of as many tokens, to the first token"""
    batch: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """samples a run (default: 1; with --methods 1 and then 8)"""
    text_tokens: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """tokens of text in the prompt (default: 40; a checkpoint's template may need more)"""
    new_tokens: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """length of every answer (default: 16; with --methods 1)"""
    images: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """pictures in the prompt (default: 1)"""
    frames: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """frames of a video instead of pictures, for shapes that take videos"""
    pairs: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """timed rounds, after one of warm-up (default: 30 on an accelerator, 10 on a CPU; a 95 % interval takes 6)"""
    seed: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """of weights, noise, order and random dropping"""
    device: Annotated[str, tyro.conf.arg(metavar="NAME")] = "auto"
    """cpu, cuda, cuda:1; auto takes the first accelerator there is"""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """number format; auto is float32 on a CPU, elsewhere the checkpoint's own or bfloat16"""
    attention: Annotated[tyro.conf.UseAppendAction[tuple[Attention, ...]], tyro.conf.arg(help_behavior_hint="")] = ()
    """attention kernel, one for all rows (default: the model's)"""
    with_eager: Flag = False
    """add a row under eager attention: what a method that needs attention matrices pays at the first schedule"""
    bare: Flag = True
    """leave out the rows of the bare layers: the model's own, on as many tokens; the least time a schedule can take"""
    clock: Literal["wall", "cpu"] = "wall"
    """wall time, or processor time: for a busy machine, on a CPU only"""
    predict: Flag = False
    """arithmetic alone: what FLOPs and the cache promise; nothing runs, no weights are needed"""
    profile: Flag = False
    """also print where the time goes, by part, of the untouched model and of each method"""
    shapes: Flag = False
    """list the shapes and do nothing else"""
    outputs: Annotated[BenchOutputs, tyro.conf.arg(name="output")] = field(default_factory=BenchOutputs)

    def run(self) -> None:
        """Predict, time, print, and write what was asked for.

        Raises:
            KeyboardInterrupt: After the rounds that were finished have been printed and written.
        """
        self._check()
        check_targets(self.outputs)
        check_methods(self.method)
        if self.methods is not None and self._names != (ALL,):
            check_methods(self._names)
        check_shape(self.model)
        # Only now anything slow is imported: --help and refusals stay quick.
        from foveate.cli.screen import busy

        with busy("Starting torch"):
            from foveate.bench.shapes import shape_sheet, shapes

        if self.shapes:
            values = {"shapes": {name: shape.to_dict() for name, shape in shapes().items()}}
            self._finish(values, [shape_sheet(list(shapes().values()))])
        else:
            self._bench(shapes().get(self.model))

    # -- flags ------------------------------------------------------------------------------------------------

    @property
    def _names(self) -> tuple[str, ...]:
        """What --methods names."""
        return names_of(self.methods or "")

    @property
    def _length(self) -> int:
        """Length of every answer."""
        usual = 16 if self.methods is None else NEW_TOKENS
        return self.new_tokens or usual

    @property
    def _kernel(self) -> str:
        """The one attention kernel."""
        return self.attention[0] if self.attention else "auto"

    def _check(self) -> None:
        """Refuse flags that contradict each other, and numbers out of range."""
        if len(self.attention) > 1:
            raise UsageError(
                "--attention is given twice: times under different kernels say nothing of dropping. Run the command "
                "twice; for what attention matrices cost, add --with-eager."
            )
        if self.with_eager and self._kernel == "eager":
            raise UsageError("--with-eager beside --attention eager: every row has attention matrices already.")
        check_budgets(self.method, self.budget, self.retention)
        self._check_numbers()
        if self.methods is not None:
            self._check_comparison()
        if self.images is not None and self.frames is not None:
            raise UsageError("--images and --frames exclude each other; give one of them.")
        if self.predict and (self.profile or self.outputs.figure is not None):
            raise UsageError("--predict runs nothing, so there is nothing to profile or to draw. Leave it out.")
        if self.shapes and self.outputs.figure is not None:
            raise UsageError("--shapes runs nothing, so there is nothing to draw. Leave out --figure.")

    def _check_comparison(self) -> None:
        """Refuse flags that mean nothing beside --methods."""
        self._names  # noqa: B018 - or a refusal
        if self.method:
            raise UsageError("--methods and --method exclude each other: --methods gives a table of its own.")
        others = {
            "--predict": self.predict,
            "--profile": self.profile,
            "--with-eager": self.with_eager,
            "--no-bare": not self.bare,
            "--shapes": self.shapes,
            "--figure": self.outputs.figure is not None,
        }
        for flag, given in others.items():
            if given:
                raise UsageError(f"--methods compares methods with random dropping alone. Leave {flag} out.")

    def _check_numbers(self) -> None:
        least = {"batch": 1, "new_tokens": 1, "pairs": LEAST, "text_tokens": 1, "images": 1, "frames": 1}
        for name, smallest in least.items():
            number = getattr(self, name)
            if number is not None and number < smallest:
                raise UsageError(f"--{name.replace('_', '-')} {number}: {smallest} or more.")
        check_most(**{name: getattr(self, name) for name in least})
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"--seed {self.seed}: a seed lies between 0 and 2^63 - 1.")

    def _device(self) -> "torch.device":
        """Where everything runs."""
        import torch

        from foveate.cli.asking import device_named

        device: torch.device = device_named(self.device)
        if device.index is not None and device.type != "cpu":
            torch.accelerator.set_device_index(device.index)
        if self.clock == "cpu" and device.type != "cpu":
            raise UsageError("--clock cpu: the processor's time says nothing of an accelerator. Use --clock wall.")
        if self._kernel == "flex_attention" and device.type != "cuda" and not self.predict:
            raise UsageError(
                "--attention flex_attention: its memory can be measured on CUDA alone, as it is compiled. "
                "Use --attention sdpa."
            )
        return device

    # -- the way of a run -------------------------------------------------------------------------------------

    def _bench(self, shape: "Shape | None") -> None:
        from foveate.bench.conditions import conditions, title_of
        from foveate.bench.contenders import at_budgets, named_methods
        from foveate.bench.predict import forecasts, verdict
        from foveate.bench.tables import forecast_sheet
        from foveate.cli.screen import note

        if shape is not None and shape.arithmetic and not self.predict:
            raise UsageError(f"--model {shape.name} is there for arithmetic alone, not to be run: add --predict.")
        if self.methods is not None:
            self._compare(shape)
            return
        named = named_methods(self.method)
        device = self._device()
        subject = self._subject(shape, device)
        model, workload = subject.model, subject.workload
        methods, infeasible = at_budgets(
            named, model, workload.vision_tokens, tokens=self.budget, retention=self.retention, seed=self.seed
        )
        promised = forecasts(model, workload, methods, self._kernel, device.type)
        prediction = verdict(promised, workload.cost(model))
        note(f"prediction: {prediction}")
        command = shlex.join(["foveate", *sys.argv[1:]])
        record = conditions(subject, device, new_tokens=self._length, clock=self.clock, seed=self.seed, command=command)
        title = title_of(record)
        record |= {"prediction": prediction, "infeasible": infeasible}
        record["forecasts"] = {name: asdict(promise) for name, promise in promised.items()}
        unmet = [f"{name}: infeasible: {why}" for name, why in infeasible.items()]
        if not self.predict:
            self._measure(subject, methods, record, title, unmet)
            return
        record["costs"] = {"untouched": workload.cost(model).to_dict()}
        for name in promised:
            record["costs"][name] = workload.cost(model, methods[name]).to_dict()
        notes = [f"{name}: how many tokens stay depends on the picture." for name in methods if name not in promised]
        self._finish(record, [forecast_sheet(promised, record["costs"], title, notes + unmet)])

    def _compare(self, shape: "Shape | None") -> None:
        """Each method beside random dropping, at each batch size."""
        from foveate.bench.conditions import conditions, title_of
        from foveate.bench.contenders import at_budgets, compared

        named, left_out = compared(self._names)
        device = self._device()
        subject = self._subject(shape, device)
        methods, infeasible = at_budgets(
            named,
            subject.model,
            subject.workload.vision_tokens,
            tokens=self.budget,
            retention=self.retention,
            seed=self.seed,
            passes_over=SettingError,
        )
        left_out |= infeasible
        command = shlex.join(["foveate", *sys.argv[1:]])
        record = conditions(subject, device, new_tokens=self._length, clock=self.clock, seed=self.seed, command=command)
        batches = BATCHES if self.batch is None else (self.batch,)
        record["batch"] = list(batches)
        sheets, stopped = measure(
            subject,
            methods,
            record,
            title_of(record | {"batch": " and ".join(map(str, batches))}),
            left_out,
            batches=batches,
            new_tokens=self._length,
            pairs=self._pairs(device),
            seed=self.seed,
            clock=self.clock,
        )
        self._finish(record, sheets)
        if stopped is not None:
            raise stopped

    def _pairs(self, device: "torch.device") -> int:
        """Timed rounds."""
        return self.pairs or (10 if device.type == "cpu" else 30)

    @property
    def _batch(self) -> int:
        """Samples of the prompt that is made first."""
        if self.methods is not None:
            return 1
        return self.batch or 1

    def _subject(self, shape: "Shape | None", device: "torch.device") -> "Subject":
        """The model and its prompt."""
        from foveate.bench.subject import config_of_shape, dtype_for, from_checkpoint, from_shape
        from foveate.bench.workload import PromptSize
        from foveate.cli.asking import load
        from foveate.cli.screen import busy, note

        size = PromptSize(
            batch=self._batch, text_tokens=self.text_tokens, images=self.images, frames=self.frames, seed=self.seed
        )
        if shape is not None and self.predict:
            return config_of_shape(shape, dtype_for(self.dtype, device), size)
        if shape is not None:
            with busy(f"Making random weights for {shape.name}"):
                return from_shape(shape, device, dtype_for(self.dtype, device), self._kernel, size)
        options = ModelOptions(model=self.model, device=str(device), dtype=self.dtype, attention=self._kernel)  # type: ignore[arg-type]
        subject = from_checkpoint(load(options), size)
        text_tokens = subject.workload.text_tokens
        if self.text_tokens not in (None, text_tokens):
            asked = self.text_tokens
            note(f"the prompt has {text_tokens} tokens of text: words of this tokenizer do not add up to {asked}.")
        return subject

    def _measure(
        self, subject: "Subject", methods: "dict[str, Method]", record: dict[str, Any], title: str, notes: list[str]
    ) -> None:
        """Time, print, and write what was asked for."""
        from foveate.bench.figure import draw
        from foveate.bench.run import Session
        from foveate.bench.stopwatch import clock_of
        from foveate.bench.summary import summarise
        from foveate.cli.screen import note

        session = Session(subject.model, subject.workload, self._length, clock_of(self.clock))
        pairs = self._pairs(subject.model.device)
        stopped = self._time(session, methods, pairs)
        if session.finished < LEAST and stopped is not None:
            note(f"{session.finished} of {pairs} rounds were finished: too few for a ratio, so nothing is written.")
            raise stopped
        summary = summarise(session)
        record |= summary.to_dict()
        if summary.noisy:
            note(
                f"warning: the machine is noisy: the untouched model differs from itself ({', '.join(summary.noisy)}). "
                "Distrust differences of that size; run more --pairs on a quiet machine."
            )
        sheets = summary.sheets(title, notes)
        if self.profile and stopped is None:
            sheets += self._profile(session, record)
        if self.outputs.figure is not None:
            record["figure"] = str(self.outputs.figure)
        self._finish(record, sheets, lambda: draw(summary, title))
        if stopped is not None:
            raise stopped

    def _time(self, session: "Session", methods: "dict[str, Method]", pairs: int) -> BaseException | None:
        """Run everything; what stopped it, if anything did. What is finished then stays in the session."""
        from foveate.cli.screen import counted

        try:
            with counted("Measuring memory", None) as progress:
                bar = progress.task_ids[0]
                session.prepare(
                    methods,
                    bare=self.bare,
                    eager=self.with_eager,
                    starting=lambda name: progress.update(bar, description=f"Measuring the memory of {name}"),
                )
            with counted("Timing, in rounds", pairs + 1) as progress:
                step = partial(progress.advance, progress.task_ids[0])
                for _ in session.run(pairs, self.seed, step):
                    pass
        except (KeyboardInterrupt, InputError) as error:
            return error
        return None

    def _profile(self, session: "Session", record: dict[str, Any]) -> "list[Sheet]":
        """Where the time goes, also into the record."""
        from foveate.bench.profile import profiles
        from foveate.bench.tables import profile_sheets
        from foveate.cli.screen import counted

        with counted("Profiling", None) as progress:
            update = partial(progress.update, progress.task_ids[0])
            record["profile"] = profiles(session, lambda name: update(description=f"Profiling {name}"))
        return profile_sheets(record["profile"])

    def _finish(
        self, record: dict[str, Any], sheets: "list[Sheet]", draw: "Callable[[], Image.Image] | None" = None
    ) -> None:
        """Write files, then print."""
        from rich.console import Group

        from foveate.cli.outputs import finish

        finish(record, Group(*sheets), draw or _nothing_to_draw, self.outputs)


def _nothing_to_draw() -> "Image.Image":
    raise UsageError("There is nothing to draw.")
