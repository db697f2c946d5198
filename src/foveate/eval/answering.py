"""Answers under a method: text, what was spent, and the likeliest first tokens."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from foveate.core.grid import grids_of
from foveate.cost import cost
from foveate.engine.session import drop
from foveate.engine.trace import Trace
from foveate.errors import UnsupportedError
from foveate.methods.base import Method
from foveate.methods.follow import reads_text
from foveate.methods.stages import Shape
from foveate.registry import families, family_for

__all__ = [
    "LIKELIEST",
    "Answer",
    "First",
    "answer",
    "answer_about_one_picture",
    "can_share",
    "collate",
    "placeholders",
    "vision_counts",
]

Sample = Mapping[str, Tensor]

LIKELIEST = 256
"""First tokens whose probabilities are kept of an answer."""


@dataclass(frozen=True, slots=True)
class First:
    """The distribution of an answer's first token, cut to its likeliest.

    Attributes:
        ids: Token ids, likeliest first.
        logs: Their log-probabilities (natural).
    """

    ids: tuple[int, ...]
    logs: tuple[float, ...]

    @classmethod
    def of(cls, logs: Tensor, at: Sequence[int] | None = None) -> "First":
        """The likeliest of (vocabulary,) float32 log-probabilities, or those of the tokens `at`."""
        ids = logs.topk(min(LIKELIEST, len(logs))).indices if at is None else torch.tensor(at, device=logs.device)
        return cls(tuple(ids.tolist()), tuple(round(log, 5) for log in logs[ids].tolist()))

    def divergence(self, other: "First") -> float:
        """KL(self ‖ other) in nats over self's tokens, all others as one; a lower bound of the exact one.

        `other` must hold the same ids in the same order.
        """
        mine, theirs = (torch.tensor(one.logs, dtype=torch.float64) for one in (self, other))
        rest = [(1 - logs.exp().sum()).clamp_min(1e-12) for logs in (mine, theirs)]
        each = (mine.exp() * (mine - theirs)).sum() + rest[0] * (rest[0].log() - rest[1].log())
        return max(0.0, float(each))


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said to one prompt, and what it took.

    Attributes:
        tokens: Ids of the answer, without what marks its end.
        logs: Log-probabilities of the first answer token: (vocabulary,) float32, on the CPU.
        vision_tokens: Vision tokens in the prompt.
        spent: How many of them a decoder layer processed, on average.
        flops: From the pixels to the first token, by `foveate.cost`; None where the cost is not known.
    """

    tokens: tuple[int, ...]
    logs: Tensor
    vision_tokens: int
    spent: float
    flops: int | None


def answer(model: Any, inputs: Mapping[str, Any], method: Method | None, **generation: Any) -> list[Answer]:
    """Answer a batch greedily, each sample by itself, dropping with `method` if there is one.

    Args:
        model: A model of a supported family.
        inputs: What its processor made of the prompts, padded on the left.
        method: What drops; None is the untouched model.
        generation: For `model.generate`, such as `max_new_tokens`.
    """
    with nullcontext(Trace()) if method is None else drop(model, method) as trace:
        sequences, logs = _generate(model, inputs, **generation)
    masks = inputs["attention_mask"].sum(dim=1).tolist()
    counts = vision_counts(model.config, inputs)
    spent = trace.tokens if trace.history else [float(count) for count in counts]
    flops = [
        _flops(model, method, trace, sample, rows - count, count)
        for sample, (rows, count) in enumerate(zip(masks, counts, strict=True))
    ]
    return [
        Answer(_until_end(model, ids), log, count, tokens, operations)
        for ids, log, count, tokens, operations in zip(sequences, logs, counts, spent, flops, strict=True)
    ]


def can_share(model: Any, method: Method | None) -> bool:
    """Whether many questions about one picture may share its prefill.

    Its family must say that the question changes nothing before it, and no text may decide what leaves. Padding stands
    between the picture and a short question, so positions must be plain and no layer may have a window: windows count
    columns.
    """
    family = family_for(model)
    if method is not None and reads_text(method.stages(Shape(len(family.layers)))):
        return False
    if not (family.shares_prefix and family.renumbers):
        return False
    cache = DynamicCache(config=family.text.config)  # transformers' own choice of layers for its config
    return not any(getattr(layer, "is_sliding", False) for layer in cache.layers)


def answer_about_one_picture(
    model: Any, samples: Sequence[Sample], method: Method | None, **generation: Any
) -> list[Answer]:
    """The same as `answer` for prompts that begin with the same one picture, whose prefill is run only once.

    What follows a picture cannot change its rows in a causal decoder.

    Args:
        samples: What the processor made of each prompt, batch 1, on the model's device; equal up to the last vision
            token.

    Raises:
        UnsupportedError: If it is not one that `can_share`.
    """
    if not can_share(model, method):
        raise UnsupportedError(
            f"A {model.config.model_type!r} cannot share a prefill between questions with {method or 'no method'}: "
            "what stands before a question may depend on it, or on the padding between. Ask one by one (answer)."
        )
    prompts = [sample["input_ids"][0] for sample in samples]
    count, vision = len(prompts), vision_counts(model.config, samples[0])[0]
    last = _begin_alike(prompts, int(_vision(model.config, prompts[0]).nonzero()[-1]) + 1)
    longest = max(map(len, prompts))
    ids = torch.full((count, longest), model.generation_config.pad_token_id or 0, device=model.device)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):  # the padding stands between the picture and the question
        start = longest - (len(prompt) - last)
        ids[row, :last], ids[row, start:] = prompt[:last], prompt[last:]
        mask[row, :last], mask[row, start:] = 1, 1
    pixels = {name: value for name, value in samples[0].items() if value.shape[:2] != samples[0]["input_ids"].shape}
    with nullcontext(Trace()) if method is None else drop(model, method) as trace, torch.inference_mode():
        begun = model(
            input_ids=ids[:1, :last], attention_mask=mask[:1, :last], **pixels, use_cache=True, logits_to_keep=1
        )
        begun.past_key_values.batch_repeat_interleave(count)
        inputs = {"input_ids": ids, "attention_mask": mask, "past_key_values": begun.past_key_values}
        sequences, logs = _generate(model, inputs, **generation)
    spent = trace.history[0].tokens[0] if trace.history else float(vision)
    return [
        Answer(
            _until_end(model, one), log, vision, spent, _flops(model, method, trace, 0, len(prompt) - vision, vision)
        )
        for one, log, prompt in zip(sequences, logs, prompts, strict=True)
    ]


def collate(samples: Sequence[Sample], pad: int) -> dict[str, Tensor]:
    """A batch of samples (batch 1 each), their text padded on the left with `pad`, all else one behind the other."""
    text = samples[0]["input_ids"].shape
    longest = max(sample["input_ids"].shape[1] for sample in samples)

    def joined(name: str) -> Tensor:
        values = [sample[name] for sample in samples]
        if values[0].shape[:2] == text and values[0].ndim == 2:
            fill = pad if name == "input_ids" else 0
            values = [torch.nn.functional.pad(value, (longest - value.shape[1], 0), value=fill) for value in values]
        return torch.cat(values)

    return {name: joined(name) for name in samples[0]}


def _begin_alike(prompts: Sequence[Tensor], least: int) -> int:
    """How many tokens all prompts begin with; one stays for the call after.

    The picture alone, `least` tokens, is not enough where a tag behind it says that it has ended.
    """
    most = min(map(len, prompts)) - 1
    first = torch.stack([prompt[:most] for prompt in prompts])
    alike = (first == first[0]).all(dim=0)
    return max(least, int(alike.long().cumprod(dim=0).sum()))


def _generate(model: Any, inputs: Mapping[str, Any], **generation: Any) -> tuple[Tensor, list[Tensor]]:
    """New ids of each sample (batch, new), and the log-probabilities of the first, (vocabulary,) each, on the CPU."""
    seen: list[Tensor] = []

    def note(_: Tensor, scores: Tensor) -> Tensor:
        if not seen:
            seen.append(scores.float().log_softmax(dim=-1).cpu())
        return scores

    plain = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}
    with torch.inference_mode():
        out = model.generate(**inputs, logits_processor=[note], **{**plain, **generation})
    return out[:, inputs["input_ids"].shape[1] :].cpu(), list(seen[0])


def _until_end(model: Any, ids: Tensor) -> tuple[int, ...]:
    """Ids before the first that ends a sequence or pads one."""
    settings = model.generation_config
    ends = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    stop = {*ends, settings.pad_token_id}
    found: list[int] = []
    for token in ids.tolist():
        if token in stop:
            break
        found.append(token)
    return tuple(found)


def vision_counts(config: Any, inputs: Mapping[str, Any]) -> list[int]:
    """Vision tokens of each sample."""
    counts: list[int] = _vision(config, inputs["input_ids"]).sum(dim=1).tolist()
    return counts


def _vision(config: Any, ids: Tensor) -> Tensor:
    """Which ids stand for vision tokens: bool, on the CPU."""
    return torch.isin(ids.cpu(), torch.tensor(sorted(placeholders(config))))


def placeholders(config: Any) -> set[int]:
    """Ids that stand for vision tokens in a prompt."""
    names = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
    return {found for name in names if (found := getattr(config, name, None)) is not None}


def _flops(model: Any, method: Method | None, trace: Trace, sample: int, text: int, vision: int) -> int | None:
    """From the pixels to the first token, for a sample with one picture; None for any other."""
    config = model.config
    latest = trace.history[0] if trace.history else None
    boxes = [] if latest is None else [box for box in latest.boxes[sample] if box is not None]
    if vision == 0 or len(boxes) > 1 or config.model_type not in families():
        return None
    try:
        found = cost(
            config,
            text_tokens=text,
            vision_tokens=vision,
            method=method,
            tokens=None if latest is None else [counts[sample] for counts in latest.per_layer],
            grids=[grids_of(box) for box in boxes] or None,
        )
    except ValueError:  # the tower's part cannot be told from the counts of several tiles
        return None
    return found.total_flops
