"""What `foveate bench` does once its flags are known to be right."""

import os
import platform
import shlex
import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Group, RenderableType
from rich.text import Text

from foveate.bench.figure import draw
from foveate.bench.predict import Forecast, forecast, verdict
from foveate.bench.profile import profiled
from foveate.bench.run import FULL, Session
from foveate.bench.shapes import Shape, shapes
from foveate.bench.stopwatch import clock_of
from foveate.bench.summary import kernel_cost, summarise
from foveate.bench.workload import Workload
from foveate.cli.bench_options import BenchOptions
from foveate.cli.bench_setup import build, contenders_for, device_for, dtype_for, methods_for, synthetic_for
from foveate.cli.bench_tables import footnotes, forecast_table, profile_tables, shape_table, tables
from foveate.cli.finish import finish
from foveate.cli.screen import busy, counted, note
from foveate.cli.usage import UsageError
from foveate.engine.session import drop
from foveate.errors import InputError, SettingError
from foveate.eval import provenance
from foveate.methods.base import Method

__all__ = ["list_shapes", "run"]

LEAST = 2  # rounds a ratio needs


def list_shapes(options: BenchOptions) -> None:
    """Print what `--model` may name beside checkpoints."""
    known = {one.name: {"of": one.of, "arithmetic_only": one.arithmetic, **one.config} for one in shapes().values()}
    finish({"shapes": known}, shape_table(list(shapes().values())), _no_figure, options.outputs)


def run(options: BenchOptions) -> None:
    """Predict, time, print, and write what was asked for.

    Raises:
        KeyboardInterrupt: After what was finished has been printed and written.
    """
    named = shapes().get(options.model)
    if named is not None and named.arithmetic and not options.predict:
        raise UsageError(f"--model {named.name} is there for arithmetic alone, not to be run: add --predict.")
    contenders = contenders_for(options)
    device = device_for(options)
    dtype = dtype_for(options, device)
    if options.predict and named is not None:
        config = named.make_config()
        config.dtype = dtype
        model, workload = config, synthetic_for(options, named, None, dtype)
    else:
        model, workload = build(options, named, device, dtype)
    methods, infeasible = methods_for(options, contenders, model, workload)
    promised = _forecasts(options, model, workload, methods, device)
    said = verdict(promised, workload.cost(model))
    note(f"prediction: {said}")
    values = _conditions(options, named, model, workload, device)
    values |= {"prediction": said, "infeasible": infeasible}
    values["forecasts"] = {name: asdict(found) for name, found in promised.items()}
    title = _title(values)
    if options.predict:
        asked = {"untouched": None} | {name: methods[name] for name in promised}
        costs = {name: workload.cost(model, method).to_dict() for name, method in asked.items()}
        finish(values | {"costs": costs}, forecast_table(promised, costs, title), _no_figure, options.outputs)
    else:
        _measure(options, Session(model, workload, options.new_tokens, clock_of(options.clock)), methods, values, title)


def _measure(
    options: BenchOptions, session: Session, methods: dict[str, Method], values: dict[str, Any], title: str
) -> None:
    """Time, print, and write what was asked for."""
    pairs = options.pairs or (10 if session.model.device.type == "cpu" else 30)
    stopped = _timed(session, methods, options, pairs)
    finished = session.finished
    if finished < LEAST and stopped is not None:
        note(f"{finished} of {pairs} rounds were finished: too few for a ratio, so nothing is written.")
        raise stopped
    summary = summarise(session)
    values |= {"rounds": finished, "rounds_asked": pairs, "noisy": summary.noisy, "failed": summary.failed}
    values["no_bare"] = session.obstacle
    values["rows"] = [row.to_dict(session.times[row.name][:finished]) for row in summary.rows]
    if summary.noisy:
        note(
            f"warning: the machine is noisy: the untouched model differs from itself ({', '.join(summary.noisy)}). "
            "Distrust differences of that size; run more --pairs on a quiet machine."
        )
    shown: list[RenderableType] = [*tables(summary, title)]
    shown += map(Text, footnotes(summary, values["infeasible"], session.obstacle, stopped is not None))
    if options.profile and stopped is None:
        values["profile"] = _profiles(session)
        shown += profile_tables(values["profile"])
    if options.outputs.figure is not None:
        values["figure"] = str(options.outputs.figure)
    finish(values, Group(*shown), lambda: draw(summary, title), options.outputs)
    if stopped is not None:
        raise stopped


def _timed(session: Session, methods: dict[str, Method], options: BenchOptions, pairs: int) -> BaseException | None:
    """Run everything; what stopped it, if anything did. What is finished then stays in the session."""
    try:
        with counted("Weighing", None) as progress:
            session.prepare(
                methods,
                bare=options.bare,
                eager=options.with_eager,
                told=lambda name: progress.update(progress.task_ids[0], description=f"Weighing {name}"),
            )
        with counted("Timing, in rounds", pairs + 1) as progress:
            for _ in session.run(pairs, options.seed, lambda: progress.advance(progress.task_ids[0])):
                pass
    except KeyboardInterrupt as stopped:
        return stopped
    except torch.OutOfMemoryError:
        return InputError("Out of memory while timing. Take a smaller --batch, fewer --images or --new-tokens.")
    return None


def _profiles(session: Session) -> dict[str, dict[str, dict[str, float]]]:
    """Seconds of each part, and of the operators that take most, of the untouched model and of every method."""
    found = {}
    if session.model.device.type == "cpu":
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else the profiler tells stderr when it begins and ends
    for one in session.candidates.values():
        if one.failed or (one.name != FULL and not one.control):
            continue
        with busy(f"Profiling {one.name}"), nullcontext() if one.method is None else drop(session.model, one.method):
            parts, operators = profiled(session.model, session.workload.inputs)
        found[one.name] = {"parts": parts, "operators": operators}
    return found


def _forecasts(
    options: BenchOptions, model: Any, workload: Workload, methods: dict[str, Method], device: torch.device
) -> dict[str, Forecast]:
    """What arithmetic promises for each method whose counts do not depend on the picture."""
    whole, found = kernel_cost(workload, model, options.kernel), {}
    for name, method in methods.items():
        try:
            cost = kernel_cost(workload, model, options.kernel, method)
        except SettingError:
            continue
        found[name] = forecast(cost, whole, workload.batch, device.type)
    return found


def _conditions(
    options: BenchOptions, named: Shape | None, model: Any, workload: Workload, device: torch.device
) -> dict[str, Any]:
    """What a reader needs to know to repeat the run."""
    config = getattr(model, "config", model)
    return {
        "what": "time of generate with and without dropping, interleaved in one process, as ratios of paired rounds",
        "command": shlex.join(["foveate", *sys.argv[1:]]),
        "model": {
            "name": options.model,
            "weights": "random" if named is not None else "the checkpoint's",
            "sizes_of": named.of if named is not None else options.model,
            "model_type": config.model_type,
            "device": str(device),
            "dtype": str(model.dtype).removeprefix("torch."),
            "attention": config.get_text_config()._attn_implementation,
        },
        "machine": {"chip": _chip(device), "threads": torch.get_num_threads(), "system": platform.system()},
        "versions": provenance.versions() | {"python": platform.python_version()},
        "commit": provenance.commit(),
        "seed": options.seed,
        "clock": options.clock,
        "batch": workload.batch,
        "text_tokens": workload.text_tokens,
        "vision_tokens": list(workload.sizes),
        "new_tokens": options.new_tokens,
    }


def _chip(device: torch.device) -> str:
    """What computes."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    known = Path("/proc/cpuinfo")  # Python itself knows no more than the architecture on Linux
    lines = known.read_text().splitlines() if known.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), platform.processor() or platform.machine())


def _title(values: dict[str, Any]) -> str:
    model = values["model"]
    weights = "random weights" if model["weights"] == "random" else "its own weights"
    return (
        f"{model['name']} ({weights}), {model['device']}, {model['dtype']}: batch {values['batch']}, "
        f"{sum(values['vision_tokens'])} vision and {values['text_tokens']} text tokens, "
        f"answers of {values['new_tokens']}"
    )


def _no_figure() -> Image.Image:
    raise UsageError("There is nothing to draw.")
