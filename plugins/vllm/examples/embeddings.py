"""Reduced embeddings for stock vLLM, for methods that read the question or choose how many tokens stay.

    rows = reduced_embeddings(vlm, "cat.jpg", "What is it doing?", "prumerge")
    llm = vllm.LLM(…, enable_mm_embeds=True)
    llm.generate({"prompt": …, "multi_modal_data": {"image": [rows]}})

The server needs no plug-in: the model runs in transformers up to its first decoder layer, and vLLM goes on from there.
"""

from contextlib import nullcontext
from typing import Any, NoReturn

import torch
from torch import Tensor

import foveate as fv
from foveate.ask.prompt import is_vision
from foveate.core.patching import Patcher
from foveate.engine.program import Program
from foveate.registry import family_for

__all__ = ["reduced_embeddings"]


class Entered(Exception):
    """Ends a prefill where the decoder begins.

    Args:
        rows: What its first layer would compute, (rows, width).
    """

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows


def reduced_embeddings(
    vlm: fv.VLM,
    picture: Any,
    question: str,
    method: str | fv.Method,
    *,
    tokens: float | None = None,
    retention: float | None = None,
) -> Tensor:
    """The rows of one picture that enter the decoder, numbered one after the other: (rows, width), on the CPU.

    Args:
        vlm: The model that the server runs, in transformers.
        picture: One picture, as `VLM.ask` takes it.
        question: What will be asked about it.
        method: A method all of whose stages act before decoder layer 1, or its name.
        tokens, retention: A budget; see `VLM.ask`.

    Raises:
        UnsupportedError: If the model's positions have several axes (M-RoPE), which vLLM takes from the size of the
            picture; or the method goes on dropping between layers.
        FoveateError: As for `VLM.ask`.
    """
    family = family_for(vlm.model)
    if not family.renumbers:
        raise fv.UnsupportedError(f"Positions of a {family.model_type!r} have several axes. Use the plug-in.")
    prompt = vlm.prepare(picture, question)
    dropping = vlm.method_for(method, prompt.vision_tokens, tokens=tokens, retention=retention)
    if dropping is not None and (late := Program.on(dropping, family).late):
        raise fv.UnsupportedError(
            f"{dropping.name} goes on dropping behind the first decoder layer ({late[0]}), and embeddings end before "
            "it. Use the plug-in for it, or a method that drops before the decoder."
        )

    def stop(original: Any, *arguments: Any, **named: Any) -> NoReturn:
        raise Entered(arguments[0][0] if arguments else named["hidden_states"][0])

    with vlm.lock, torch.inference_mode(), Patcher() as patches:
        # The engine stands around this, so the layer gets the rows that the method's own stages have left.
        patches.wrap(family.layers[0], "forward", stop)
        try:
            with nullcontext() if dropping is None else fv.drop(vlm.model, dropping):
                vlm.model(**prompt.inputs, use_cache=False)
        except Entered as entered:
            rows = entered.rows
    # Text is never dropped, so what is missing was the picture's: of t v v v v t t, five rows are t v v t t.
    vision = is_vision(vlm.model.config, prompt.inputs["input_ids"][0])
    first, text = int(vision.int().argmax()), int((~vision).sum())
    return rows[first : first + len(rows) - text].cpu()
