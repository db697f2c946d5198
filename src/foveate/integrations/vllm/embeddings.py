"""Reduced image embeddings for stock vLLM, for methods that read the question or choose how many tokens stay.

    rows = reduced_embeddings(vlm, "cat.jpg", "What is it doing?", "prumerge")
    llm = vllm.LLM(…, enable_mm_embeds=True)
    llm.generate({"prompt": …, "multi_modal_data": {"image": [rows]}})

Needs no plug-in in the server: the model runs in transformers up to its first decoder layer, and vLLM goes on from
there.
"""

from typing import Any, NoReturn

import torch
from torch import Tensor

from foveate.ask.answering import Dropping
from foveate.ask.media import Media
from foveate.ask.prompt import Prompt, is_vision
from foveate.ask.vlm import VLM
from foveate.contract.follow import in_order, reads_text
from foveate.contract.method import Method
from foveate.contract.stages import Shape
from foveate.core.patching import Patcher
from foveate.engine.program import Program
from foveate.engine.session import drop
from foveate.errors import InputError, UnsupportedError
from foveate.registry import family_for
from foveate.video import Clip

__all__ = ["reduced_embeddings"]

UNREAD = "What is this?"
"""In the place of a question that nothing reads."""


def reduced_embeddings(
    vlm: VLM,
    picture: Media,
    question: str | None,
    method: str | Method,
    *,
    tokens: float | None = None,
    retention: float | None = None,
) -> Tensor:
    """The rows of one picture that enter the decoder.

    Rows are numbered one after the other in vLLM, so answers are those of the method with `positions="reindex"`.

    Args:
        vlm: The model that the server runs, in transformers.
        picture: One picture, as `VLM.ask` takes it.
        question: What will be asked about it; None where the method does not read it.
        method: A method all of whose stages act before decoder layer 1, or its name.
        tokens, retention: A budget; see `VLM.ask`.

    Returns:
        (rows, width of the decoder), in the model's dtype, on the CPU.

    Raises:
        UnsupportedError: If the method drops later too, or the model's positions have several axes (M-RoPE): vLLM
            takes them from the size of the picture.
        InputError: If the prompt has not exactly one picture.
        FoveateError: As for `VLM.ask`.
    """
    family = family_for(vlm.model)
    if not family.renumbers:
        raise UnsupportedError(
            f"Embeddings of fewer rows than the picture has tokens have no positions in a {family.model_type!r}, whose "
            "positions have several axes. Use the plug-in: it keeps the positions of the tokens that stay."
        )
    prompt = vlm.prepare(picture, question or UNREAD)
    if len(prompt.media) != 1 or isinstance(prompt.media[0], Clip):
        raise InputError(
            f"reduced_embeddings takes one picture; got {len(prompt.media)} or a film. Call it for each picture."
        )
    solved = Dropping(method, tokens, retention).solved(vlm, prompt.vision_tokens).method
    if solved is not None:
        stages = in_order(solved.stages(Shape(len(family.layers), cls=family.tower_cls)))
        _refuse_late(Program(solved, stages))
        if question is None and reads_text(stages):
            raise InputError(f"{solved.name} reads the question, and none is given. Give the one that will be asked.")
    with vlm.lock, torch.inference_mode():
        rows = _entering(vlm.model, family, prompt, solved)
    return _of_picture(rows, is_vision(vlm.model.config, prompt.inputs["input_ids"][0])).cpu()


def _shown(prompt: Prompt) -> str:
    if any(isinstance(medium, Clip) for medium in prompt.media):
        return "a film"
    return str(len(prompt.media))


def _refuse_late(stages: Program) -> None:
    if stages.late:
        raise UnsupportedError(
            f"{stages.method.name} goes on dropping behind the first decoder layer ({stages.late[0]}), and embeddings "
            "end before it. Use the plug-in for it, or a method that drops before the decoder."
        )


class _Entered(Exception):
    """Ends a prefill where the decoder begins."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows


def _entering(model: Any, family: Any, prompt: Prompt, method: Method | None) -> Tensor:
    """The rows that the first decoder layer computes, (rows, width)."""

    def stop(original: Any, *arguments: Any, **named: Any) -> NoReturn:
        hidden = arguments[0] if arguments else named["hidden_states"]
        raise _Entered(hidden[0])

    with Patcher() as patches:
        # The engine stands around this, so the layer gets the rows that its own stages have left.
        patches.wrap(family.layers[0], "forward", stop)
        try:
            if method is None:
                model(**prompt.inputs, use_cache=False)
            else:
                with drop(model, method):
                    model(**prompt.inputs, use_cache=False)
        except _Entered as entered:
            return entered.rows
    raise AssertionError("the decoder has not begun")


def _of_picture(rows: Tensor, vision: Tensor) -> Tensor:
    """The picture's rows among those of a prompt, of whose columns `vision` says which are of the picture.

    Text is never dropped, so what is missing was the picture's: of t v v v v t t, five rows are t v v t t.
    """
    first = int(vision.int().argmax())
    text = int((~vision).sum())
    return rows[first : first + len(rows) - text].clone()
