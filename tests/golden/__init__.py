"""Reference vectors recorded from the authors' own code, and how to run a case."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlavaForConditionalGeneration, PreTrainedModel, Qwen2VLForConditionalGeneration

from foveate._transformers import cache_in

HERE = Path(__file__).parent
TOLERANCE = 1e-3  # absolute, on logits and hidden states: a wrong position, layer or token moves logits by over 1


@dataclass
class Case:
    """One recorded run: settings and summary (`facts`), and its tensors."""

    name: str
    facts: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def model(self) -> PreTrainedModel:
        return load_model(self.facts["weights"])

    @contextmanager
    def attending(self, kernel: str) -> Iterator[PreTrainedModel]:
        """Its model with this attention kernel; others get it with SDPA again."""
        self.model.set_attn_implementation(kernel)
        try:
            yield self.model
        finally:
            self.model.set_attn_implementation("sdpa")

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What the model is called with: the recorded picture x4, never resized."""
        ids = self.tensors["input_ids"].long()[None]
        pixels = self.tensors["image_u8"].repeat_interleave(4, -1).repeat_interleave(4, -2)
        pixels = (pixels.float() - 128) / 64
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if not self.facts["weights"].startswith("qwen"):
            return {**inputs, "pixel_values": pixels[None]}
        return {
            **inputs,
            "pixel_values": qwen_patches(pixels),
            "image_grid_thw": torch.tensor([[1, pixels.shape[1] // 14, pixels.shape[2] // 14]]),
            "mm_token_type_ids": (ids == 511).long(),
        }


def qwen_patches(pixels: Tensor) -> Tensor:
    """(3, height, width) -> (patches, 1176) in Qwen2-VL's order: merge groups of 2 x 2 patches, two equal frames."""
    frames = pixels[None].repeat(2, 1, 1, 1)  # (time 2, channel, height, width)
    rows, columns = pixels.shape[1] // 14, pixels.shape[2] // 14
    grid = frames.reshape(2, 3, rows // 2, 2, 14, columns // 2, 2, 14)
    return grid.permute(2, 5, 3, 6, 1, 0, 4, 7).reshape(rows * columns, -1)


def every_case(*methods: str) -> Any:
    """Runs a test with every recorded case of these methods as `case`, each with one kernel as `attention`: with
    FOVEATE_TESTS=all, with both."""
    kernels, everything = ("sdpa", "eager"), os.environ.get("FOVEATE_TESTS") == "all"
    rows = [
        pytest.param(case, kernel, id=f"{case.name}-{kernel}")
        for index, case in enumerate(case for method in methods for case in cases(method))
        for turn, kernel in enumerate(kernels)
        if everything or index % 2 == turn
    ]
    return pytest.mark.parametrize(("case", "attention"), rows)


@cache
def load_model(weights: str) -> PreTrainedModel:
    folder = HERE / "weights" / weights
    kind = Qwen2VLForConditionalGeneration if weights.startswith("qwen") else LlavaForConditionalGeneration
    return kind.from_pretrained(folder, dtype=torch.float32).eval()


def cases(method: str) -> list[Case]:
    """Every recorded case of a method, by name."""
    return [
        Case(f"{method}/{path.stem}", json.loads(path.read_text()), load_file(path.with_suffix(".safetensors")))
        for path in sorted((HERE / method).glob("*.json"))
    ]


def generate(model: PreTrainedModel, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor, Any]:
    """Eight greedy tokens: (tokens, logits (8, vocabulary), the cache)."""
    out = model.generate(
        **inputs, max_new_tokens=8, do_sample=False, return_dict_in_generate=True, output_logits=True,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return out.sequences[0, inputs["input_ids"].shape[1] :], torch.cat(out.logits), cache_in(out)


@contextmanager
def positions_seen(model: PreTrainedModel) -> Iterator[list[list[list[int]]]]:
    """The positions every attention layer's rotary tables are of: `seen[layer][call]`, an id a row.

    Read off the tables themselves, so that it does not matter how whoever made them came by them.
    """
    text = model.model.language_model
    known = text.rotary_emb(torch.zeros(1, 1, 1), torch.arange(1024)[None])
    known = torch.cat(known, dim=-1)[0]
    seen: list[list[list[int]]] = [[] for _ in text.layers]

    def note(index: int, kwargs: dict[str, Any]) -> None:
        tables = torch.cat(kwargs["position_embeddings"], dim=-1)[0]
        distance = torch.cdist(tables, known, compute_mode="donot_use_mm_for_euclid_dist")
        assert distance.amin(dim=1).max() < 1e-4
        seen[index].append(distance.argmin(dim=1).tolist())

    hooks = [
        layer.self_attn.register_forward_pre_hook(
            lambda _, args, kwargs, index=index: note(index, kwargs), with_kwargs=True
        )
        for index, layer in enumerate(text.layers)
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def layer_inputs(model: PreTrainedModel) -> Iterator[dict[int, Tensor]]:
    """What each decoder layer is called with in the prefill, (rows, width): a model's own full-length stream."""
    seen: dict[int, Tensor] = {}

    def note(index: int, hidden: Tensor) -> None:
        seen.setdefault(index, hidden)

    hooks = [
        layer.register_forward_pre_hook(lambda _, args, index=index: note(index, args[0][0]))
        for index, layer in enumerate(model.model.language_model.layers)
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
