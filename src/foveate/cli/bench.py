"""`foveate bench`: speed and memory against the untouched model, as ratios with intervals beside their controls."""

import shlex
import sys
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Group

from foveate.cli.checks import check_methods, check_model
from foveate.cli.options import MethodsOptions, TableOptions, check_each_once
from foveate.cli.outputs import check_targets, finish
from foveate.cli.screen import busy, counting, note
from foveate.cli.usage import UsageError
from foveate.errors import BudgetError, InputError, SettingError
from foveate.plain.flags import EMBEDDED, Count, Flag, LoadOptions, PromptRequest, whole

if TYPE_CHECKING:
    import torch

    from foveate.bench.benched import Benched
    from foveate.bench.paired import PairedRun
    from foveate.bench.shapes import NamedShape
    from foveate.contract.method import Method
    from foveate.plain.table import Table

LEAST = 2  # rounds that a ratio needs
ALL = "all"


@dataclass(frozen=True, kw_only=True)
class BenchedModel(LoadOptions):
    """The model and how it runs."""

    model: Annotated[str, tyro.conf.arg(metavar="SHAPE|ID|FOLDER")] = EMBEDDED
    """a shape with random weights (list: --shapes; auto is bfloat16 on an accelerator), a hub id or a local folder"""


@dataclass(frozen=True, kw_only=True)
class Bench(PromptRequest, MethodsOptions):
    """Time a model with and without dropping, in alternating runs, and measure its memory.

    Every round runs, in a new random order: the untouched model, the same again (A/A), keep-all inside the context,
    and every method at every budget, each beside random dropping and the bare layers with as many tokens. Times of the
    vision tower, the prefill, the first token, each further token and the whole call are medians of the rounds' ratios
    with 95 % bootstrap intervals, beside the ratio of FLOPs. Answers have a fixed length. A named shape has a real
    model's sizes and random weights, which do not change speed at a fixed schedule; it is labelled so.

    Examples:
      foveate bench --model cpu-medium --budget 192 --budget 64
      foveate bench --model llava-1.5-7b --budget 192 --budget 128 --budget 64 --batch 8 --out bench.json
      foveate bench --model llava-hf/llava-1.5-7b-hf --method v2drop --retention 0.33
      foveate bench --model ./my-model --ladder
      foveate bench --model cpu-small --method all --budget 192 --new-tokens 1 --out methods.json
    """

    method: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="NAME[:KEY=VALUE;…]")] = ()
    """a method, preset, preset file or chain, with settings: "visiondrop+v2drop:metric=l1;keep=0.5,0.3,0";
    or all (default: v2drop, visiondrop and mustdrop; list: foveate methods)"""
    new_tokens: Count = 16
    """length of every answer"""
    pairs: Annotated[int | None, whole(LEAST), tyro.conf.arg(help_behavior_hint="")] = None
    """timed rounds, after one of warm-up (default: 30 on an accelerator, 10 on a CPU; a 95 % interval takes 6)"""
    bare: Flag = True
    """leave out the rows of the bare layers: the model's own, on as many tokens; the least time a schedule can take"""
    ladder: Flag = False
    """time steps, each on top of the last: the untouched model, CUDA graphs where there are any, a third of the tokens
    by one --method (default: vidcom2), and a thinner vision tower"""
    cuda_graphs: Flag = False
    """also time the untouched model and each method as CUDA graphs (experimental)"""
    clock: Literal["wall", "cpu"] = "wall"
    """wall time, or processor time: for a busy machine, on a CPU only"""
    shapes: Flag = False
    """list the shapes and do nothing else"""
    models: Annotated[BenchedModel, tyro.conf.arg(name="model")] = field(default_factory=BenchedModel)
    outputs: Annotated[TableOptions, tyro.conf.arg(name="output")] = field(default_factory=TableOptions)

    def run(self) -> None:
        """Time, print, and write what was asked for.

        Raises:
            KeyboardInterrupt: After the rounds that were finished have been printed and written.
        """
        check_each_once(self)
        check_targets(self.outputs)
        if self.method != (ALL,):
            check_methods(self.method)
        # Only now anything slow is imported: --help and refusals stay quick.
        with busy("Starting torch"):
            from foveate.bench.shapes import shape_sheet, shapes

        stopped = None
        if self.shapes:
            listed = {name: {"of": shape.of, **shape.config} for name, shape in shapes().items()}
            record: dict[str, Any] = {"shapes": listed}
            tables = [shape_sheet(list(shapes().values()))]
        else:
            record, tables, stopped = self._measure(shapes().get(self.models.model))
        finish(record, Group(*tables), self.outputs, tables=tables)
        if stopped is not None:
            raise stopped

    def _device(self) -> "torch.device":
        """Where everything runs."""
        import torch

        from foveate.cli.setup import find_device
        from foveate.core.graphs import refuse_without_graphs

        device: torch.device = find_device(self.models.device)
        if device.index is not None and device.type != "cpu":
            torch.accelerator.set_device_index(device.index)
        if self.clock == "cpu" and device.type != "cpu":
            raise UsageError("--clock cpu: the processor's time says nothing of an accelerator. Use --clock wall.")
        if self.cuda_graphs:
            refuse_without_graphs(device)
        if self.models.attention == "flex_attention" and device.type != "cuda":
            raise UsageError(
                "--attention flex_attention: its memory can be measured on CUDA alone, as it is compiled. "
                "Use --attention sdpa."
            )
        return device

    def _measure(self, shape: "NamedShape | None") -> "tuple[dict[str, Any], list[Table], BaseException | None]":
        """The record and the tables of all timed rounds, and what stopped them, if anything did."""
        from foveate.bench.benched import budgeted_methods, conditions, named_methods, title_of
        from foveate.bench.ladder import ladder_rows, ladder_sheet
        from foveate.bench.paired import PairedRun
        from foveate.bench.results import noisy_parts, result_sheets, rows_of
        from foveate.bench.stopwatch import clock_of

        named = self._ladder() if self.ladder else named_methods(self.method)
        device = self._device()
        benched = self._prepare(shape, device)
        methods, infeasible = budgeted_methods(
            named,
            benched.model,
            benched.workload.vision_tokens,
            tokens=self.budget,
            retention=self.retention,
            seed=self.seed,
            passes_over=SettingError if self.method == (ALL,) else BudgetError,
        )
        command = shlex.join(["foveate", *sys.argv[1:]])
        record: dict[str, Any] = conditions(
            benched, device, new_tokens=self.new_tokens, clock=self.clock, seed=self.seed, command=command
        )
        title = title_of(record)
        run = PairedRun(benched.model, benched.workload, self.new_tokens, clock_of(self.clock))
        pairs = self.pairs or (10 if benched.model.device.type == "cpu" else 30)
        stopped = self._time(run, methods, pairs)
        finished = len(run.rounds)
        notes = []
        if stopped is not None:
            notes = [f"Interrupted after {finished} of {pairs} rounds."]
            if finished < LEAST:
                note(f"{finished} of {pairs} rounds were finished: too few for a ratio, so nothing is written.")
                raise stopped
        rows = rows_of(run)
        noisy = noisy_parts(rows)
        if noisy:
            note(
                f"warning: the machine is noisy: the untouched model differs from itself ({', '.join(noisy)}). "
                "Distrust differences of that size; run more --pairs on a quiet machine."
            )
        failed = {candidate.name: candidate.failed for candidate in run.candidates.values() if candidate.failed}
        if run.obstacle:
            notes = [f"No rows of bare layers: {run.obstacle}.", *notes]
        notes += [f"{name}: infeasible: {why}" for name, why in infeasible.items()]
        notes += [f"{name}: did not run: {why}" for name, why in failed.items()]
        record |= {"infeasible": infeasible, "rounds": finished, "rounds_asked": pairs, "noisy": noisy}
        record |= {"failed": failed, "no_bare": run.obstacle, "rows": rows}
        if self.ladder:
            steps = ladder_rows(run, [*methods, *infeasible])
            return record | {"rows": steps}, [ladder_sheet(steps, title, notes)], stopped
        return record, result_sheets(rows, title, notes), stopped

    def _ladder(self) -> "dict[str, Method]":
        """The methods of a ladder's steps, each named in front of any model."""
        from foveate.bench.ladder import ladder_methods

        if len(self.method) > 1 or self.method == (ALL,) or len(self.budget) + len(self.retention) > 1:
            raise UsageError("--ladder takes one --method at one budget. Leave the others out.")
        return ladder_methods(*self.method)

    def _prepare(self, shape: "NamedShape | None", device: "torch.device") -> "Benched":
        """The model and its prompt."""
        from foveate.bench.benched import dtype_for, from_checkpoint, from_shape
        from foveate.cli.setup import load

        if shape is not None:
            with busy(f"Making random weights for {shape.name}"):
                return from_shape(shape, device, dtype_for(self.models.dtype, device), self.models.attention, self)
        try:
            check_model(self.models.model)
        except InputError as error:
            raise InputError(f"{error} Shapes: foveate bench --shapes.") from error
        benched = from_checkpoint(load(replace(self.models, device=str(device))), self)
        text_tokens = benched.workload.text_tokens
        if self.text_tokens not in (None, text_tokens):
            asked = self.text_tokens
            note(f"the prompt has {text_tokens} tokens of text: words of this tokenizer do not add up to {asked}.")
        return benched

    def _time(self, run: "PairedRun", methods: "dict[str, Method]", pairs: int) -> BaseException | None:
        """Run everything; what stopped it, if anything did. What is finished then stays in the run."""
        from foveate.core.graphs import TAPES

        try:
            with counting("Measuring memory", None) as advance:
                run.prepare(
                    methods,
                    controls=not self.ladder,
                    bare=self.bare and not self.ladder,
                    cuda_graphs=self.cuda_graphs or (self.ladder and run.model.device.type in TAPES),
                    starting=lambda _: advance(),
                )
            with counting("Timing, in rounds", pairs + 1) as advance:
                for _ in run.run(pairs, self.seed, advance):
                    pass
        except (KeyboardInterrupt, InputError) as error:
            return error
        return None
