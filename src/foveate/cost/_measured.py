"""A decoder of a type that no family has formulas for: its layers run without weights, and torch counts products."""

import copy
import math
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from foveate._transformers import with_cache
from foveate.cost._decoder import Decoder
from foveate.errors import UnsupportedError
from foveate.families.base import Family
from foveate.registry import family_kind

ROWS = (24, 40, 56)
"""Prompts that are run. No multiple of 64, so that products of whole chunks show."""

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
            family = family_kind(config.model_type)(model)
            cache = None
            prompts = []
            for rows in ROWS:
                cache = DynamicCache(config=family.text.config)
                prompts.append(_flops(family, cache, rows))
            steps = [_flops(family, cache, 1) for _ in range(2)]
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
    windows = tuple([getattr(layer, "sliding_window", None) for layer in _layers(cache, family)])
    fits = []
    for index, layer in enumerate(family.layers):
        seen = [min(ROWS[-1] + step, windows[index] or math.inf) for step in (1, 2)]
        fit = _fit([counts[index] for counts in prompts], [counts[index] for counts in steps], seen)
        if fit is None or (fit[1] > 0) == (index in family.recurrent):
            raise UnsupportedError(
                f"{why}products of its {type(layer).__name__} do not grow with rows and their pairs."
            )
        fits.append(fit)
    head = model.get_output_embeddings()
    if head is None:
        raise UnsupportedError(f"{why}it has no head.")
    return Decoder(
        depth=len(fits),
        width=family.text.config.hidden_size,
        rows=tuple(by_row for by_row, _, _ in fits),
        pairs=tuple(by_pair for _, by_pair, _ in fits),
        keys=tuple(by_key for _, _, by_key in fits),
        stored=tuple(_stored(layer) for layer in _layers(cache, family)),
        recurrent=family.recurrent,
        state=(0, 0, 0),
        vocabulary=len(head.weight),
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


def _flops(family: Family, cache: Any, rows: int) -> list[int]:
    """FLOPs of each layer on so many rows behind those in the cache.

    Raises:
        ValueError: If the decoder multiplies outside its layers, or parts of these do not run (ERNIE's experts for
            vision tokens).
    """
    text, names = family.text, {module: name for name, module in family.text.named_modules()}
    embeds = torch.empty(1, rows, text.config.hidden_size, dtype=text.dtype)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        text(inputs_embeds=embeds, use_cache=True, **with_cache(cache))
    counts = counter.get_flop_counts()

    def products(name: str) -> int:
        of_kinds = counts.get(name, {})
        return sum(count for kind, count in of_kinds.items() if "convolution" not in str(kind))

    of_layers = [products(f"{type(text).__name__}.{names[layer]}") for layer in family.layers]
    if sum(of_layers) != products("Global"):
        raise ValueError("it multiplies outside its layers")
    for layer in family.layers:
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


def _fit(prompts: list[int], steps: list[int], seen: list[Any]) -> tuple[int, int, int] | None:
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
    if not fits:
        return None
    return (by_row, by_pair, by_key)


def _layers(cache: Any, family: Family) -> list[Any]:
    """What the cache holds for each decoder layer; None behind its last."""
    depth = len(family.layers)
    return [*cache.layers, *[None] * depth][:depth]


def _stored(layer: Any) -> int:
    """Numbers that a cache's layer holds for a row."""
    held = [getattr(layer, name, None) for name in ("keys", "values")]
    return sum(states[:, :, 0].numel() for states in held if isinstance(states, Tensor) and states.dim() == 4)
