"""Dropping inside sentence-transformers 6. Its pooling, token pooling and saving run unchanged, on what is left."""

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from foveate import naming
from foveate.contract.method import Method
from foveate.core.fields import check_call
from foveate.core.patching import Patcher
from foveate.engine import session
from foveate.engine.program import Program
from foveate.engine.trace import Trace
from foveate.errors import SettingError, UnsupportedError
from foveate.families.base import Family
from foveate.plain.upstream import extra
from foveate.registry import family_for

if TYPE_CHECKING:
    from sentence_transformers.base.modules import Transformer


@contextmanager
@check_call("drop")
def drop(
    encoder: Any, method: Method | str, *, retention: float | None = None, tokens: float | None = None
) -> Iterator[Trace]:
    """Drop vision tokens while a sentence-transformers model encodes; it pools or keeps only the rows that are left.

        with foveate.integrations.sentence_transformers.drop(encoder, "divprune", tokens=64):
            pages = encoder.encode_document(images)  # 64 vectors a page, and those of the text

    Args:
        encoder: A SentenceTransformer, MultiVectorEncoder or other model of sentence-transformers 6.
        method: A method that drops once, before the decoder, and reads pages alone; see `foveate.drop`.
        retention, tokens: Its budget; see `foveate.drop`.

    Yields:
        The trace. `history` keeps the latest 100 prefills.

    Raises:
        SettingError: If the encoder has not one Transformer module but none or several.
        UnsupportedError: If the method would leave few vectors, reads the question or acts while decoding; or, while it
            encodes, if the rows that the module returns are not the prompt's columns.
        FoveateError: As `foveate.drop`.
    """
    module = _transformer(encoder)
    chosen = naming.method_of(method, tokens, retention)
    _refuse(chosen, family_for(module.model))
    turn = threading.Lock()  # threads encode in turn: a mask is of the latest prefill

    def narrow(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with turn:
            before = trace.history[-1:]
            features = original(*args, **kwargs)
            if trace.history[-1:] != before:  # else there was no picture
                features["attention_mask"] = _narrowed(features, module.module_output_name, trace)
                if (retention or tokens) and any(trace.vision_tokens) and min(trace.retention) == 1:
                    name = naming.name_of(chosen)
                    warnings.warn(f"{name} dropped no token of a page. Methods made for videos may not.", stacklevel=2)
            return features

    with session.drop(module.model, chosen) as trace, Patcher() as patches:
        trace.most = session.LATEST
        patches.wrap(module, "forward", narrow)
        yield trace


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


def _refuse(method: Method, family: Family) -> None:
    """Refuse a method that would leave no fair index of a page."""
    program, name = Program.on(method, family), type(method).__name__
    late = sorted(layer for layer in program.cuts if layer)
    if late:
        why = f"drops before decoder layer {late[-1]}, so few of a page's vectors would be left"
    elif program.reads_text:
        why = "reads the question, and a page that is indexed has none"
    elif program.cached or program.reading is not None:
        why = "acts while decoding, and an encoder decodes nothing"
    else:
        return
    raise UnsupportedError(
        f'{name} {why}. Take a method that drops once and reads pictures alone, such as "divprune" or "vidcom2".'
    )


def _narrowed(features: dict[str, Any], output: str, trace: Trace) -> Any:
    """Return the attention mask without columns whose rows were dropped, in its own dtype."""
    mask, rows, left = features.get("attention_mask"), features[output], trace.pooling_mask
    other_rows = rows.dim() == 3 and rows.shape[:2] != left.shape  # outputs of two dimensions are pooled already
    if mask is None or mask.shape != left.shape or other_rows:
        shape = "no mask" if mask is None else f"a mask of {tuple(mask.shape)}"
        raise UnsupportedError(
            f"The Transformer module returned {shape} and rows of {tuple(rows.shape)}, and the prompt has (samples, "
            f"columns) = {tuple(left.shape)}, so it is not known which rows were dropped. Turn off what joins or "
            "flattens inputs."
        )
    return mask * left.to(mask)
