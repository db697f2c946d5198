"""Dropping inside sentence-transformers 6. Its pooling, token pooling and saving run unchanged, on what is left."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from foveate import naming
from foveate._transformers import arguments_of
from foveate.contract.method import Method
from foveate.core.fields import check_call
from foveate.core.patching import Patcher
from foveate.engine import session
from foveate.engine.doors import open_session
from foveate.engine.program import Program
from foveate.engine.trace import Trace
from foveate.errors import SessionError, SettingError, UnsupportedError
from foveate.families.base import Family
from foveate.plain.upstream import extra
from foveate.registry import family_for

if TYPE_CHECKING:
    from sentence_transformers.base.modules import Transformer

LAST_ROW = ("causal_logits", "scores")
"""What a Transformer module returns to rerankers, made of the last row: logits for LogitScore, or a head's scores."""


@contextmanager
@check_call("drop")
def drop(
    encoder: Any, method: Method | str, *, retention: float | None = None, tokens: float | None = None
) -> Iterator[Trace]:
    """Drop vision tokens while a sentence-transformers model encodes or ranks pages.

        with foveate.integrations.sentence_transformers.drop(encoder, "divprune", tokens=64):
            pages = encoder.encode_document(images)  # 64 vectors a page, and those of the text

    An encoder pools, keeps or returns only the rows that are left. A reranker that reads the last row, a CrossEncoder
    with LogitScore, gives the scores that it gives inside `foveate.drop(module.model, ...)`.

    Args:
        encoder: A SentenceTransformer, MultiVectorEncoder, CrossEncoder or other model of sentence-transformers 6.
        method: A method that drops once, before the decoder, and reads pages alone; for a reranker any method that acts
            in the prefill. See `foveate.drop`.
        retention, tokens: Its budget; see `foveate.drop`.

    Yields:
        The trace. `history` keeps the latest 100 prefills.

    Raises:
        SessionError: While the context is open, if a process pool is started or used: its copies would drop nothing.
        SettingError: If the encoder has not one Transformer module but none or several.
        UnsupportedError: If the method would leave few vectors, reads the question or acts while decoding; or, while it
            encodes, if the rows that the module returns are not the prompt's columns.
        FoveateError: As `foveate.drop`.

    Warns:
        UserWarning: As `foveate.drop`.
    """
    module = _transformer(encoder)
    chosen = naming.method_of(method, tokens, retention)
    returns_rows = module.module_output_name not in LAST_ROW
    _refuse(chosen, family_for(module.model), returns_rows, hasattr(encoder, "predict"))
    opened = session.Session(module.model, chosen)
    trace = opened.trace
    trace.most = session.LATEST
    turn = threading.Lock()  # threads encode in turn: a mask is of the latest prefill

    def narrow(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with turn:
            before = trace.history[-1:]
            features = original(*args, **kwargs)
            if trace.history[-1:] == before or not any(trace.vision_tokens):
                return features
            return _rows_left(features, module.module_output_name, trace) if returns_rows else features

    with Patcher() as patches:
        patches.wrap(module, "forward", narrow)
        for name in filter(partial(hasattr, encoder), ("start_multi_process_pool", "encode", "predict")):
            patches.wrap(encoder, name, partial(_in_this_process, name))
        yield from open_session(opened, warns=True)


def _transformer(encoder: Any) -> "Transformer":
    """Return the encoder's module that runs a model of transformers."""
    with extra("st", "foveate drops inside sentence-transformers 6"):
        from sentence_transformers.base.modules import Transformer
    modules = [module for module in getattr(encoder, "modules", list)() if isinstance(module, Transformer)]
    if len(modules) != 1:
        raise SettingError(
            f"Give a model of sentence-transformers with one Transformer module; this {type(encoder).__name__} has "
            f"{len(modules)}. Around any other model of transformers, open foveate.drop."
        )
    return modules[0]


def _refuse(method: Method, family: Family, returns_rows: bool, ranks: bool) -> None:
    """Refuse a method that would leave no fair index of a page, or would not act.

    Args:
        method, family: The method, and the model's family.
        returns_rows: Whether all rows of the last layer are used, not the last alone.
        ranks: Whether the question is in the prompt, beside the page.
    """
    program, name = Program.on(method, family), type(method).__name__
    late = sorted(layer for layer in program.cuts if layer)
    if late and returns_rows:
        why = f"drops before decoder layer {late[-1]}, so few of a page's vectors would be left"
    elif program.reads_text and not ranks:
        why = "reads the question, and a page that is indexed has none"
    elif program.cached or program.reading is not None:
        why = "acts while decoding, and an encoder decodes nothing"
    else:
        return
    raise UnsupportedError(
        f"{name} {why}. Take a method that drops once and reads pictures alone, such as "
        '"divprune", "vidcom2" or "random:layers=0".'
    )


def _in_this_process(name: str, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call `encode` or `predict` unless other processes would run it. Refuse to start these."""
    arguments, starts = arguments_of(original, args, kwargs), name == "start_multi_process_pool"
    if starts or arguments.get("pool") is not None or isinstance(arguments.get("device"), list):
        raise SessionError(
            "A process pool runs pickled copies of the model, which drop nothing. Open the context in each process "
            '(docs/guides/pages.md, "Several processes"), or leave pool and a list of devices out.'
        )
    return original(*args, **kwargs)


def _rows_left(features: dict[str, Any], output: str, trace: Trace) -> dict[str, Any]:
    """Return the features with a column for each row that is left, in the prompt's order, and padding behind.

    The module's own dictionary keeps all columns, for callers that run it again.
    """
    mask, rows, left = features.get("attention_mask"), features[output], trace.pooling_mask
    pooled = rows.dim() == 2
    if mask is None or mask.shape != left.shape or not (pooled or rows.shape[:2] == left.shape):
        shape = "no mask" if mask is None else f"a mask of {tuple(mask.shape)}"
        raise UnsupportedError(
            f"The Transformer module returned {shape} and rows of {tuple(rows.shape)}, and the prompt has (samples, "
            f"columns) = {tuple(left.shape)}, so it is not known which rows were dropped. Turn off what joins or "
            "flattens inputs."
        )
    mask = mask * left.to(mask)
    # A stable sort moves columns that are left to the front: of columns 0 to 4 without 1 and 2 it makes 0 3 4 1 2.
    order = (mask != 0).to(torch.uint8).sort(dim=1, descending=True, stable=True).indices
    order = order[:, : int((mask != 0).sum(dim=1).max())]  # (samples, most left)

    def shorten(value: Any) -> Any:
        if isinstance(value, tuple):  # the rows of all layers
            return tuple(map(shorten, value))
        if not isinstance(value, Tensor) or value.shape[:2] != left.shape:  # pixels, or one number a sample
            return value
        columns = order.to(value.device)
        return value[torch.arange(len(columns), device=value.device)[:, None], columns]

    short = {name: shorten(value) for name, value in {**features, "attention_mask": mask}.items()}
    if pooled:
        short[output] = rows
    return short
