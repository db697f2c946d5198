"""What `foveate bench` does once its flags are known to be right."""

import platform
import shlex
import sys
from contextlib import nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from rich.console import Group, RenderableType
from rich.text import Text

from foveate._loading import device_of
from foveate.bench.figure import draw
from foveate.bench.predict import Forecast, forecast, verdict
from foveate.bench.profile import profiled
from foveate.bench.run import FULL, Session
from foveate.bench.shapes import Shape, shapes
from foveate.bench.stopwatch import clock_of
from foveate.bench.summary import kernel_cost, summarise
from foveate.bench.workload import Workload, synthetic
from foveate.cli.bench_tables import footnotes, forecast_table, profile_tables, shape_table, tables
from foveate.cli.choose import contender
from foveate.cli.finish import finish
from foveate.cli.loading import load
from foveate.cli.options import ModelOptions
from foveate.cli.prompt import prepare, vision_sizes
from foveate.cli.screen import busy, counted, note
from foveate.cli.usage import UsageError
from foveate.core.grid import grids_of
from foveate.engine.session import drop
from foveate.errors import InputError, SettingError, UnsupportedError
from foveate.eval import provenance
from foveate.methods.base import Method
from foveate.registry import families, family_for

if TYPE_CHECKING:
    from foveate.cli.bench import Bench

__all__ = ["list_shapes", "run"]

METHODS = ("v2drop", "visiondrop", "mustdrop")
RETENTION = 1 / 3
TEXT = 40  # tokens of text of a synthetic prompt
LEAST = 2  # rounds a ratio needs
SIDE = 672  # pixels of the noise picture that a checkpoint is shown


def list_shapes(options: "Bench") -> None:
    """Print what `--model` may name beside checkpoints."""
    known = {one.name: {"of": one.of, "arithmetic_only": one.arithmetic, **one.config} for one in shapes().values()}
    finish({"shapes": known}, shape_table(list(shapes().values())), _no_figure, options.outputs)


def run(options: "Bench") -> None:
    """Predict, time, print, and write what was asked for.

    Raises:
        KeyboardInterrupt: After what was finished has been printed and written.
    """
    named = shapes().get(options.model)
    if named is not None and named.arithmetic and not options.predict:
        raise UsageError(f"--model {named.name} is there for arithmetic alone, not to be run: add --predict.")
    device = _device(options)
    dtype = _dtype(options, device)
    if options.predict and named is not None:
        config = named.make_config()
        config.dtype = dtype
        model, workload = config, _synthetic(options, named, None, dtype)
    else:
        model, workload = _built(options, named, device, dtype)
    methods, infeasible = _methods(options, model, workload)
    promised = _forecasts(options, model, workload, methods, device)
    said = verdict(promised, workload.cost(model))
    note(f"prediction: {said}")
    values = _conditions(options, named, model, workload, device, dtype)
    values |= {"prediction": said, "infeasible": infeasible}
    values["forecasts"] = {name: asdict(found) for name, found in promised.items()}
    title = _title(options, named, workload, device, dtype)
    if options.predict:
        asked = {"untouched": None} | {name: methods[name] for name in promised}
        costs = {name: workload.cost(model, method).to_dict() for name, method in asked.items()}
        finish(values | {"costs": costs}, forecast_table(promised, costs, title), _no_figure, options.outputs)
    else:
        _measure(options, Session(model, workload, options.new_tokens, clock_of(options.clock)), methods, values, title)


def _measure(
    options: "Bench", session: Session, methods: dict[str, Method], values: dict[str, Any], title: str
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
    values["rows"] = [row.to_dict(session.times[row.name][:finished]) for row in summary.rows]
    if summary.noisy:
        note(
            f"warning: the machine is noisy: the untouched model differs from itself ({', '.join(summary.noisy)}). "
            "Distrust differences of that size; run more --pairs on a quiet machine."
        )
    shown: list[RenderableType] = [*tables(summary, title)]
    shown += map(Text, footnotes(summary, values["infeasible"], stopped is not None))
    if options.profile and stopped is None:
        values["profile"] = _profiles(session)
        shown += profile_tables(values["profile"])
    if options.outputs.figure is not None:
        values["figure"] = str(options.outputs.figure)
    finish(values, Group(*shown), lambda: draw(summary, title), options.outputs)
    if stopped is not None:
        raise stopped


def _timed(session: Session, methods: dict[str, Method], options: "Bench", pairs: int) -> BaseException | None:
    """Run everything; what stopped it, if anything did. What is finished then stays in the session."""
    try:
        with counted("Weighing", None) as progress:
            session.prepare(
                methods,
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
    for one in session.candidates.values():
        if one.failed or (one.name != FULL and not one.control):
            continue
        with busy(f"Profiling {one.name}"), nullcontext() if one.method is None else drop(session.model, one.method):
            parts, operators = profiled(session.model, session.workload.inputs)
        found[one.name] = {"parts": parts, "operators": operators}
    return found


def _device(options: "Bench") -> torch.device:
    try:
        device = device_of(options.device)
    except UnsupportedError as error:
        raise UsageError(
            f"--device {options.device} is not available here. Use auto, cpu, or one that torch sees."
        ) from error
    if device.index is not None and device.type != "cpu":
        torch.accelerator.set_device_index(device.index)
    if options.clock == "cpu" and device.type != "cpu":
        raise UsageError("--clock cpu: an accelerator's work is not the processor's. Use --clock wall.")
    return device


def _dtype(options: "Bench", device: torch.device) -> torch.dtype:
    if options.dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    dtype: torch.dtype = getattr(torch, options.dtype)
    return dtype


def _synthetic(options: "Bench", named: Shape, device: torch.device | None, dtype: torch.dtype) -> Workload:
    try:
        return synthetic(
            named,
            batch=options.batch,
            text_tokens=options.text_tokens or TEXT,
            images=options.images,
            frames=options.frames,
            device=device,
            dtype=dtype,
            seed=options.seed,
        )
    except SettingError as error:
        raise UsageError(str(error)) from error


def _built(options: "Bench", named: Shape | None, device: torch.device, dtype: torch.dtype) -> tuple[Any, Workload]:
    """The model and its prompt: of a shape at random, or of a checkpoint."""
    if named is not None:
        with busy(f"Making random weights for {named.name}"):
            model = named.build(device, dtype, options.kernel, options.seed)
        return model, _synthetic(options, named, device, dtype)
    if options.frames is not None:
        raise UsageError("--frames goes with a shape; a checkpoint is shown pictures of noise: --images.")
    loaded = load(
        ModelOptions(model=options.model, device=str(device), dtype=options.dtype, attention=options.kernel)  # type: ignore[arg-type]
    )
    loaded.model.generation_config.eos_token_id = None
    return loaded.model, _processed(loaded, options)


def _processed(loaded: Any, options: "Bench") -> Workload:
    """A prompt as the checkpoint's own processor makes it, of pictures of noise and of words."""
    count = options.images or 1
    rng = np.random.default_rng(options.seed)
    pictures = [Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)) for _ in range(count)]

    def prompt(words: int) -> tuple[Any, tuple[int, ...], int]:
        inputs = prepare(loaded, pictures, " ".join(["word"] * words))
        sizes = vision_sizes(loaded.model.config, inputs["input_ids"], count)
        return inputs, sizes, inputs["input_ids"].shape[1] - sum(sizes)

    inputs, sizes, text = prompt(1)
    wanted = options.text_tokens or max(text, TEXT)
    if wanted < text:
        raise UsageError(f"--text-tokens {wanted}: this model's template alone takes {text}.")
    if wanted > text:
        inputs, sizes, text = prompt(1 + wanted - text)
    if text != wanted:
        note(f"the prompt has {text} tokens of text: words of this tokenizer do not add up to {wanted}.")
    kind, family = families()[loaded.model.config.model_type], family_for(loaded.model)
    places = family.boxes("image", inputs, list(sizes)) if len(sizes) == count else []
    grids = [grids_of(one) for one in places if one is not None]
    tower = kind.tower_images(loaded.model.config, "image", inputs)
    batched = {
        name: torch.cat([value] * options.batch) if isinstance(value, torch.Tensor) else value
        for name, value in inputs.items()
    }
    return Workload(
        batched,
        options.batch,
        text,
        sizes,
        tower if tower is None or len(tower) == len(sizes) else (sum(tower),),
        grids if len(grids) == len(sizes) else None,
    )


def _methods(options: "Bench", model: Any, workload: Workload) -> tuple[dict[str, Method], dict[str, str]]:
    """The settings to run by the names of their rows, and why others cannot meet their budget."""
    count = workload.vision_tokens
    if options.budget and max(options.budget) > count:
        raise UsageError(f"--budget {max(options.budget):g}: the prompt has {count} vision tokens.")
    shares = options.retention or tuple(tokens / count for tokens in options.budget) or (RETENTION,)
    methods: dict[str, Method] = {}
    infeasible: dict[str, str] = {}
    config = getattr(model, "config", model)
    for name in options.method or METHODS:
        for cell in contender(name).cells(config, shares, count, [options.seed]):
            label = name if cell.budget is None else f"{name} {cell.budget * count:.0f}"
            if cell.infeasible:
                infeasible[label] = cell.infeasible
            else:
                methods[label] = cell.draws[0]
    if not methods:
        raise SettingError(" ".join(infeasible.values()))
    return methods, infeasible


def _forecasts(
    options: "Bench", model: Any, workload: Workload, methods: dict[str, Method], device: torch.device
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
    options: "Bench",
    named: Shape | None,
    model: Any,
    workload: Workload,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """What a reader needs to know to repeat the run."""
    config = getattr(model, "config", model)
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "what": "time of generate with and without dropping, interleaved in one process, as ratios of paired rounds",
        "command": shlex.join(["foveate", *sys.argv[1:]]),
        "model": {
            "name": options.model,
            "weights": "random" if named is not None else "the checkpoint's",
            "sizes_of": named.of if named is not None else options.model,
            "model_type": config.model_type,
            "device": str(device),
            "dtype": str(getattr(model, "dtype", dtype)).removeprefix("torch."),
            "attention": config.get_text_config()._attn_implementation,
        },
        "machine": {"chip": chip, "threads": torch.get_num_threads(), "system": platform.system()},
        "versions": provenance.versions() | {"python": platform.python_version()},
        "commit": provenance.commit(),
        "seed": options.seed,
        "clock": options.clock,
        "batch": workload.batch,
        "text_tokens": workload.text_tokens,
        "vision_tokens": list(workload.sizes),
        "new_tokens": options.new_tokens,
    }


def _title(options: "Bench", named: Shape | None, workload: Workload, device: torch.device, dtype: torch.dtype) -> str:
    weights = "random weights" if named is not None else "its own weights"
    return (
        f"{options.model} ({weights}), {device!s}, {str(dtype).removeprefix('torch.')}: batch {workload.batch}, "
        f"{workload.vision_tokens} vision and {workload.text_tokens} text tokens, answers of {options.new_tokens}"
    )


def _no_figure() -> Image.Image:
    raise UsageError("There is nothing to draw.")
