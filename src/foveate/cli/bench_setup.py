"""The model, the prompt and the methods that a `foveate bench` command line asks for."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from foveate.bench.shapes import Shape
from foveate.bench.workload import Workload, synthetic
from foveate.cli.bench_options import BenchOptions
from foveate.cli.loading import load, named_device
from foveate.cli.options import ModelOptions
from foveate.cli.prompt import prepare, vision_sizes
from foveate.cli.screen import busy, note
from foveate.cli.usage import UsageError
from foveate.core.grid import grids_of
from foveate.errors import SettingError
from foveate.eval.cells import Contender
from foveate.methods.base import Method
from foveate.registry import families, family_for

__all__ = ["build", "contenders_for", "device_for", "dtype_for", "methods_for", "synthetic_for"]

METHODS = ("v2drop", "visiondrop", "mustdrop")
RETENTION = 1 / 3
TEXT = 40  # tokens of text of a synthetic prompt
SIDE = 672  # pixels of the noise picture that a checkpoint is shown


def device_for(options: BenchOptions) -> torch.device:
    """Where everything runs.

    Raises:
        UsageError: If torch does not have it here, or its work cannot be timed or weighed as asked for.
    """
    device = named_device(options.device)
    if device.index is not None and device.type != "cpu":
        torch.accelerator.set_device_index(device.index)
    if options.clock == "cpu" and device.type != "cpu":
        raise UsageError("--clock cpu: an accelerator's work is not the processor's. Use --clock wall.")
    if options.kernel == "flex_attention" and device.type != "cuda" and not options.predict:
        raise UsageError(
            "--attention flex_attention: what it holds is seen on CUDA alone, as it is compiled. Use --attention sdpa."
        )
    return device


def dtype_for(options: BenchOptions, device: torch.device) -> torch.dtype:
    """The number format; of a checkpoint with "auto", what a shape would have in its place."""
    if options.dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    dtype: torch.dtype = getattr(torch, options.dtype)
    return dtype


def synthetic_for(options: BenchOptions, named: Shape, device: torch.device | None, dtype: torch.dtype) -> Workload:
    """A shape's prompt; without tensors where there is no device."""
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


def build(options: BenchOptions, named: Shape | None, device: torch.device, dtype: torch.dtype) -> tuple[Any, Workload]:
    """The model and its prompt: of a shape at random, or of a checkpoint."""
    if named is not None:
        with busy(f"Making random weights for {named.name}"):
            model = named.build(device, dtype, options.kernel, options.seed)
        return model, synthetic_for(options, named, device, dtype)
    if options.frames is not None:
        raise UsageError("--frames goes with a shape; a checkpoint is shown pictures of noise: --images.")
    loaded = load(
        ModelOptions(model=options.model, device=str(device), dtype=options.dtype, attention=options.kernel)  # type: ignore[arg-type]
    )
    loaded.model.generation_config.eos_token_id = None
    return loaded.model, _processed(loaded, options)


def _processed(loaded: Any, options: BenchOptions) -> Workload:
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


def contenders_for(options: BenchOptions) -> list[Contender]:
    """What the command line names, before any model is made."""
    return [Contender.of(name) for name in options.method or METHODS]


def methods_for(
    options: BenchOptions, contenders: Sequence[Contender], model: Any, workload: Workload
) -> tuple[dict[str, Method], dict[str, str]]:
    """The settings to run by the names of their rows, and why others cannot meet their budget."""
    count = workload.vision_tokens
    if options.budget and max(options.budget) > count:
        raise UsageError(f"--budget {max(options.budget):g}: the prompt has {count} vision tokens.")
    shares = options.retention or tuple(tokens / count for tokens in options.budget) or (RETENTION,)
    methods: dict[str, Method] = {}
    infeasible: dict[str, str] = {}
    config = getattr(model, "config", model)
    for one in contenders:
        for cell in one.cells(config, shares, count, [options.seed]):
            label = one.name if cell.budget is None else f"{one.name} {cell.budget * count:.0f}"
            if cell.infeasible:
                infeasible[label] = cell.infeasible
            else:
                methods[label] = cell.draws[0]
    if not methods:
        raise SettingError(" ".join(infeasible.values()))
    return methods, infeasible
