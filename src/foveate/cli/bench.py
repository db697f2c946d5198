"""`foveate bench`: speed and memory relative to the full model, with intervals and controls."""

import shlex
import sys
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Group

from foveate.cli.checks import check_methods, check_model
from foveate.cli.options import MethodsOptions, TableOptions, check_each_once
from foveate.cli.outputs import check_targets, write_outputs
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

LEAST = 2  # fewest rounds for a ratio
ALL = "all"


@dataclass(frozen=True, kw_only=True)
class BenchedModel(LoadOptions):
    """The model to load, and how to run it."""

    model: Annotated[str, tyro.conf.arg(metavar="SHAPE|ID|FOLDER")] = EMBEDDED
    """hub id, local folder, or shape with random weights (list: --shapes).
    For a shape, --dtype auto is bfloat16 on an accelerator"""


@dataclass(frozen=True, kw_only=True)
class Bench(PromptRequest, MethodsOptions):
    """Time a model with and without dropping, in alternating runs, and measure its memory.

    Each round runs these in a new random order: the full model, the full model again (A/A), keep-all inside the
    context, and every method at every budget. Two controls run with as many tokens as each method: random dropping, and
    the bare layers, which are the model's own layers without foveate. The vision tower, the prefill, the first token,
    each further token and the whole call are timed. The table shows the median ratio over the rounds with its 95 %
    bootstrap interval, and the ratio of FLOPs. Answers have a fixed length. A named shape has the sizes of a real model
    but random weights, and is labelled so; weights do not change the speed of a fixed schedule.

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
    """number of tokens in every answer"""
    pairs: Annotated[int | None, whole(LEAST), tyro.conf.arg(help_behavior_hint="")] = None
    """timed rounds, after one warm-up round (default: 30 on an accelerator, 10 on a CPU; a 95 % interval needs 6)"""
    bare: Flag = True
    """do not time the bare layers: the model's own layers on as many tokens, the lower limit for a schedule's time"""
    ladder: Flag = False
    """time steps, each on top of the last: the full model, bfloat16 on a CPU that computes it, CUDA graphs if the
    device has them, a third of the tokens by one --method (default: vidcom2), and a thinner vision tower"""
    cuda_graphs: Flag = False
    """also time the full model and each method as CUDA graphs (experimental)"""
    clock: Literal["wall", "cpu"] = "wall"
    """wall time, or processor time for a busy machine (on a CPU only)"""
    shapes: Flag = False
    """list the shapes and exit"""
    models: Annotated[BenchedModel, tyro.conf.arg(name="model")] = field(default_factory=BenchedModel)
    outputs: Annotated[TableOptions, tyro.conf.arg(name="output")] = field(default_factory=TableOptions)

    def run(self) -> None:
        """Time, print the tables, and write the requested files.

        Raises:
            KeyboardInterrupt: On Ctrl-C, after the finished rounds have been printed and written.
        """
        check_each_once(self)
        check_targets(self.outputs)
        if self.method != (ALL,):
            check_methods(self.method)
        # Slow imports come last, so that --help and usage errors stay fast.
        with busy("Starting torch"):
            from foveate.bench.shapes import shape_sheet, shapes

        stopped = None
        if self.shapes:
            listed = {name: {"of": shape.of, **shape.config} for name, shape in shapes().items()}
            record: dict[str, Any] = {"shapes": listed}
            tables = [shape_sheet(list(shapes().values()))]
        else:
            record, tables, stopped = self._measure(shapes().get(self.models.model))
        write_outputs(record, Group(*tables), self.outputs, tables=tables)
        if stopped is not None:
            raise stopped

    def _device(self) -> "torch.device":
        """Return the device to run on, and make it the current one."""
        import torch

        from foveate.cli.setup import find_device
        from foveate.core.tapes import refuse_without_graphs

        device: torch.device = find_device(self.models.device)
        if device.index is not None and device.type != "cpu":
            torch.accelerator.set_device_index(device.index)
        if self.clock == "cpu" and device.type != "cpu":
            raise UsageError("--clock cpu: processor time does not measure an accelerator. Use --clock wall.")
        if self.cuda_graphs:
            refuse_without_graphs(device)
        if self.models.attention == "flex_attention" and device.type != "cuda":
            raise UsageError(
                "--attention flex_attention is compiled, so its memory can be measured on CUDA only. "
                "Use --attention sdpa."
            )
        return device

    def _measure(self, shape: "NamedShape | None") -> "tuple[dict[str, Any], list[Table], BaseException | None]":
        """Time all rounds.

        Returns:
            The record for JSON, the tables, and the exception that stopped the rounds, if any.
        """
        from foveate.bench.benched import budgeted_methods, conditions, machine_notes, named_methods, title_of
        from foveate.bench.gains import no_gains, notes_of
        from foveate.bench.ladder import fewer_over_before, ladder_rows, ladder_sheet
        from foveate.bench.paired import FULL, GRAPH, PairedRun
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
                note(f"{finished} of {pairs} rounds finished, too few for a ratio: nothing is written.")
                raise stopped
        rows = rows_of(run)
        noisy = noisy_parts(rows)
        if noisy:
            note(
                f"warning: the machine is noisy: the full model differs from itself ({', '.join(noisy)}). "
                "Do not trust differences of that size; use more --pairs on a quiet machine."
            )
        failed = {candidate.name: candidate.failed for candidate in run.candidates.values() if candidate.failed}
        if run.obstacle:
            notes = [f"The bare layers were not timed: {run.obstacle}.", *notes]
        notes += [f"{name}: infeasible: {why}" for name, why in infeasible.items()]
        notes += [f"{name}: did not run: {why}" for name, why in failed.items()]
        record |= {"infeasible": infeasible, "rounds": finished, "rounds_asked": pairs, "noisy": noisy}
        record |= {"failed": failed, "no_bare": run.obstacle}
        if self.ladder:
            steps = ladder_rows(run, rows, [*methods, *infeasible])
            bases = fewer_over_before(steps)
        else:
            bases = dict.fromkeys(methods, FULL)
            bases |= {GRAPH.format(name): GRAPH.format(FULL) for name in methods if self.cuda_graphs}
        causes = no_gains(run, rows, bases)
        notes += [*notes_of(causes), *machine_notes(run.model, ladder=self.ladder)]
        record |= {"no_gain": {name: cause.to_dict() for name, cause in causes.items()}}
        if self.ladder:
            return record | {"rows": steps}, [ladder_sheet(steps, title, notes)], stopped
        return record | {"rows": rows}, result_sheets(rows, title, notes), stopped

    def _ladder(self) -> "dict[str, Method]":
        """Return the methods of the ladder, before any model is made."""
        from foveate.bench.ladder import ladder_methods

        if len(self.method) > 1 or self.method == (ALL,) or len(self.budget) + len(self.retention) > 1:
            raise UsageError("--ladder takes one --method and one budget. Leave the others out.")
        return ladder_methods(*self.method)

    def _prepare(self, shape: "NamedShape | None", device: "torch.device") -> "Benched":
        """Return the model and its prompt."""
        from foveate.bench.benched import dtype_for, from_checkpoint, from_shape
        from foveate.cli.setup import load_vlm

        if shape is not None:
            with busy(f"Making random weights for {shape.name}"):
                return from_shape(shape, device, dtype_for(self.models.dtype, device), self.models.attention, self)
        try:
            check_model(self.models.model)
        except InputError as error:
            raise InputError(f"{error} Shapes: foveate bench --shapes.") from error
        options = replace(self.models, device=str(device))
        if device.type == "cpu" and options.dtype == "auto":
            options = replace(options, dtype="float32")  # what "auto" is; `load` would give the hint of the notes
        return from_checkpoint(load_vlm(options), self)

    def _time(self, run: "PairedRun", methods: "dict[str, Method]", pairs: int) -> BaseException | None:
        """Measure memory and time all rounds. Finished rounds stay in `run`.

        Returns:
            The exception that stopped the rounds, or None.
        """
        from foveate.bench.benched import recast_dtype
        from foveate.core.tapes import TAPES

        try:
            with counting("Measuring memory", None) as advance:
                run.prepare(
                    methods,
                    controls=not self.ladder,
                    bare=self.bare and not self.ladder,
                    cuda_graphs=self.cuda_graphs or (self.ladder and run.model.device.type in TAPES),
                    dtype=recast_dtype(run.model) if self.ladder else None,
                    starting=lambda _: advance(),
                )
            with counting("Timing, in rounds", pairs + 1) as advance:
                for _ in run.run(pairs, self.seed, advance):
                    pass
        except (KeyboardInterrupt, InputError) as error:
            return error
        return None
