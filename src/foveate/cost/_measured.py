"""A model without weights runs on prompts of some lengths, torch counts products, and numbers are fitted to them."""

import copy
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from foveate._transformers import with_cache
from foveate.core.patching import Patcher
from foveate.cost._decoder import CHUNK, Decoder
from foveate.errors import UnsupportedError
from foveate.families.base import Family
from foveate.registry import family_kind

ROWS = (24, 40, 88)
"""Prompts that are run. No multiple of 64, so that products of whole chunks show, and the last has two."""

_KNOWN: dict[tuple[type[Any], str], Decoder] = {}


def measured(config: Any) -> Decoder:
    """The decoder of a model's config, from its layers' FLOPs on prompts of some lengths and on a token more.

    Convolutions are left out, and a row of a mixture goes to as many experts as its config says.

    Raises:
        UnsupportedError: If the layers do not run without weights, or their products are not so many for each row and
            so many for each pair of rows.
    """
    key = type(config), config.to_json_string(use_diff=False)
    if key not in _KNOWN:
        _KNOWN[key] = _measured(copy.deepcopy(config))
    return _KNOWN[key]


def _measured(config: Any) -> Decoder:
    why = f"The cost of a decoder of type {config.get_text_config().model_type!r} is not known: "
    try:
        with torch.device("meta"):
            model = _unweighted(config)
            family = family_kind(config.model_type, type(config).__name__)(model)
            cache = None
            prompts = []
            for rows in ROWS:
                cache = DynamicCache(config=family.text.config)
                firsts = _firsts(family, cache)
                prompts.append(_flops(family, cache, firsts, rows))
            steps = [_flops(family, cache, firsts, 1) for _ in range(2)]
    except UnsupportedError:
        raise
    except ValueError as error:
        raise UnsupportedError(f"{why}{error}.") from error
    except (ImportError, RuntimeError, NotImplementedError, TypeError, AttributeError, KeyError) as error:
        raise UnsupportedError(
            f"{why}it does not run without weights ({str(error).strip().splitlines()[0]:.200})"
        ) from error
    if family.lenders:
        raise UnsupportedError(f"{why}layers attend to keys of earlier layers.")
    if family.indexed:
        raise UnsupportedError(f"{why}layers keep an index beside keys.")
    held = _layers(cache, family)
    windows = tuple([getattr(layer, "sliding_window", None) for layer in held])
    fits = {}
    for index in sorted(set(firsts)):
        counts, after = [prompt[index] for prompt in prompts], [step[index] for step in steps]
        if index in family.recurrent:
            fits[index] = _recurrent_fit(counts, after)
        else:
            seen = [min(ROWS[-1] + step, windows[index] or math.inf) for step in (1, 2)]
            fits[index] = _fit(counts, after, seen)
        if fits[index] is None:
            raise UnsupportedError(
                f"{why}products of its {type(family.layers[index]).__name__} do not grow with rows and their pairs."
            )
    head = model.get_output_embeddings()
    if head is None:
        raise UnsupportedError(f"{why}it has no head.")
    rows, pairs, keys, chunks = zip(*[fits[first] for first in firsts], strict=True)
    return Decoder(
        depth=len(firsts),
        width=family.text.config.hidden_size,
        rows=rows,
        pairs=pairs,
        keys=keys,
        chunks=chunks,
        states=tuple(_state(held[first]) if chunks[first] else 0 for first in firsts),
        stored=tuple(_stored(held[first]) for first in firsts),
        recurrent=family.recurrent,
        head=2 * head.weight.numel(),
        windows=windows,
    )


def _unweighted(config: Any) -> Any:
    """The model of a config, on the device that is set."""
    settings = {"attn_implementation": "eager", "experts_implementation": "batched_mm"}
    names = ("AutoModelForImageTextToText", "AutoModelForMultimodalLM", "AutoModelForCausalLM")
    for auto in [getattr(transformers, name) for name in names if hasattr(transformers, name)]:
        try:
            return auto.from_config(config, **settings).eval()
        except ValueError as error:
            if "Unrecognized configuration class" not in str(error):
                raise
    raise ValueError(f"transformers has no model for a {type(config).__name__}")


def _firsts(family: Family, cache: Any) -> list[int]:
    """For each layer the first that multiplies as it does, maybe itself: of as many weights, and with such a cache."""
    kinds: dict[Any, int] = {}
    firsts = []
    for index, (layer, held) in enumerate(zip(family.layers, _layers(cache, family), strict=True)):
        shapes = tuple([(name, weight.shape) for name, weight in layer.named_parameters()])
        kind = type(layer), shapes, type(held), getattr(held, "sliding_window", None), index in family.recurrent
        firsts.append(kinds.setdefault(kind, index))
    return firsts


def _run_first(answers: dict[int, Any], first: int, original: Any, *args: Any, **kwargs: Any) -> Any:
    """Run a layer unless one that multiplies as it does has run: without weights the answers are alike."""
    if first not in answers:
        answers[first] = original(*args, **kwargs)
    return answers[first]


def _flops(family: Family, cache: Any, firsts: Sequence[int], rows: int) -> dict[int, int]:
    """FLOPs of each first layer on so many rows behind those in the cache.

    Raises:
        ValueError: If the decoder multiplies outside its layers, or parts of these do not run (ERNIE's experts for
            vision tokens).
    """
    text, names = family.text, {module: name for name, module in family.text.named_modules()}
    embeds = torch.empty(1, rows, text.config.hidden_size, dtype=text.dtype)
    answers = dict[int, Any]()
    with Patcher() as patches, torch.no_grad(), FlopCounterMode(display=False) as counter:
        for layer, first in zip(family.layers, firsts, strict=True):
            patches.wrap(layer, "forward", partial(_run_first, answers, first))
        text(inputs_embeds=embeds, use_cache=True, **with_cache(cache))
    counts = counter.get_flop_counts()

    def products(name: str) -> int:
        of_kinds = counts.get(name, {})
        return sum(count for kind, count in of_kinds.items() if "convolution" not in str(kind))

    layers = {first: family.layers[first] for first in firsts}
    of_layers = {first: products(f"{type(text).__name__}.{names[layer]}") for first, layer in layers.items()}
    if sum(of_layers.values()) != products("Global"):
        raise ValueError("it multiplies outside its layers")
    for layer in layers.values():
        for part in layer.modules():
            if _multiplies(part) and f"{type(text).__name__}.{names[part]}" not in counts:
                raise ValueError(f"whether its {type(part).__name__} runs depends on the row")
    return of_layers


def _multiplies(part: nn.Module) -> bool:
    """Whether a module is a linear layer, or a stack of them, such as experts."""
    if isinstance(part, nn.Linear):
        return True
    is_stack = any(weight.dim() > 2 for weight in part.parameters(recurse=False))
    return is_stack and not isinstance(part, nn.Conv1d)


def _fit(prompts: list[int], steps: list[int], seen: list[Any]) -> tuple[int, int, int, int] | None:
    """FLOPs of a row, of a pair of rows, and of a row that is looked at, which give all counts; None if none do.

    Args:
        prompts: Of prompts of `ROWS` rows.
        steps: Of a row behind the last of these, and of one more.
        seen: How many rows these look at.
    """
    first, second, _ = (count // rows for count, rows in zip(prompts, ROWS, strict=True))
    by_pair = (second - first) // (ROWS[1] - ROWS[0])
    both = first - by_pair * ROWS[0]
    by_key = (steps[0] - both - by_pair * seen[0]) // (seen[0] - 1)
    by_row = both - by_key
    calls = [
        *zip(ROWS, ROWS, prompts, strict=True),
        *((1, keys, count) for keys, count in zip(seen, steps, strict=True)),
    ]
    fits = all(rows * by_row + keys * by_key + rows * keys * by_pair == count for rows, keys, count in calls)
    if by_pair <= 0 or not fits:
        return None
    return by_row, by_pair, by_key, 0


def _recurrent_fit(prompts: list[int], steps: list[int]) -> tuple[int, int, int, int] | None:
    """The same of a layer without attention, with FLOPs of a chunk; a row by itself multiplies element by element."""
    by_row = (prompts[1] - prompts[0]) // (ROWS[1] - ROWS[0])
    by_chunk = prompts[0] - ROWS[0] * by_row
    calls = zip(ROWS, prompts, strict=True)
    fits = all(rows * by_row + -(-rows // CHUNK) * by_chunk == count for rows, count in calls)
    if steps != [by_row, by_row] or not fits:
        return None
    return by_row, 0, 0, by_chunk


def _layers(cache: Any, family: Family) -> list[Any]:
    """What the cache holds for each decoder layer; None behind its last."""
    depth = len(family.layers)
    return [*cache.layers, *[None] * depth][:depth]


def _stored(layer: Any) -> int:
    """Numbers that a cache's layer holds for a row."""
    held = [getattr(layer, name, None) for name in ("keys", "values")]
    return sum(states[:, :, 0].numel() for states in held if isinstance(states, Tensor) and states.dim() == 4)


def _state(layer: Any) -> int:
    """Numbers of the state that a cache's layer holds."""
    states = getattr(layer, "recurrent_states", None)
    of_all = states.values() if isinstance(states, dict) else [states]
    return sum(state.numel() for state in of_all if isinstance(state, Tensor))
