"""`foveate.tune`: thresholds for MustDrop, a searched schedule for every other method."""

from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from foveate.ask.vlm import VLM
from foveate.contract import naming
from foveate.contract.method import Method
from foveate.errors import SettingError
from foveate.methods.mustdrop import MustDrop
from foveate.tune.costs import Limit
from foveate.tune.record import Record
from foveate.tune.samples import inputs_of
from foveate.tune.schedules import tune_schedule
from foveate.tune.thresholds import model_name, tune_thresholds
from foveate.tune.tuned import Tuned

__all__ = ["tune"]


def tune(
    model: Any,
    samples: Iterable[Any],
    *,
    method: Method | str | None = None,
    given: Collection[str] = (),
    tokens: float | None = None,
    retention: float | None = None,
    flops: float | None = None,
    kv: float | None = None,
    task: str = "",
    seconds: float | None = None,
    seed: int = 0,
    workers: int = 1,
    max_new_tokens: int = 64,
    state: str | Path | None = None,
    advance: Callable[[], object] | None = None,
) -> Record | Tuned:
    """The best setting of a method for a model, a budget and samples of one's own, without labels.

        tuned = foveate.tune(vlm, [("a.png", "What is it?"), …], method="v2drop", tokens=64)
        tuned.save("mine.json")
        vlm.ask("b.png", "What is it?", method="mine.json")

    Cut layers, ratios and settings are searched at one exact cost, for the answers that stay nearest to the full
    model's. Pictures are split: to search, to choose among the best, and to report with. MustDrop has no exact cost:
    its γ is found by bisection (`foveate.tune.thresholds`), and the outcome is a `Record`.

    Args:
        model: A `VLM`; or a model of transformers, whose samples are then its inputs.
        samples: (media, question) pairs or prompts of `VLM.prepare`; or the model's inputs, batch 1. 45 pictures or
            more are good, 20 are the fewest that say something.
        method: The method, chain, or its name, such as "v2drop:metric=cosine": a setting that is given is not searched.
            Of a method that is no name, those are given that differ from the usual ones. None is MustDrop.
        given: Settings that stay, too, of a method that is no name; of a chain with their member's place, "1.metric".
        tokens: Mean vision tokens that a decoder layer processes.
        retention: The same as a share of the vision tokens, in (0, 1].
        flops: FLOPs to the first token, as a share of the full model's.
        kv: Bytes of the KV cache after the prompt, likewise.
        task: What the samples show, for the record.
        seconds: How long settings may be tried; the best so far is then taken.
        seed: Of the split and the search.
        workers: Processes that run pictures at once, each with a model of its own; for a `VLM` on a CPU.
        max_new_tokens: The longest answer of the full model.
        state: A folder in which what was tried is kept; with the same one a stopped search goes on.
        advance: Called after every step.

    Returns:
        The setting found and where it comes from; `save` writes it as a file that goes wherever a method's name does.

    Raises:
        BudgetError: If no setting meets the budget.
        InputError: If `state` belongs to another model or other samples.
        SettingError: If the budget, the samples or the method cannot be tuned.
    """
    if isinstance(method, str):
        given, method = naming.given(method), naming.parse(method)
    if method is None or isinstance(method, MustDrop):
        if flops is not None or kv is not None:
            raise SettingError("MustDrop's thresholds are found for tokens= or retention=, not for flops= or kv=.")
        if state is not None or seconds is not None or workers != 1:
            raise SettingError("MustDrop's thresholds are found in a few passes, without state=, seconds= or workers=.")
        return tune_thresholds(
            model.model if isinstance(model, VLM) else model,
            [inputs_of(model, sample) for sample in samples],
            method=method,
            tokens=tokens,
            retention=retention,
            task=task,
            advance=advance,
        )
    if workers < 1:
        raise SettingError(f"workers must be 1 or more; got {workers}.")
    limit = Limit.of(tokens=tokens, retention=retention, flops=flops, kv=kv)
    name = model.name if isinstance(model, VLM) else model_name(model)
    return tune_schedule(
        model,
        samples,
        method,
        limit,
        given=given,
        task=task,
        seconds=seconds,
        seed=seed,
        workers=workers,
        max_new_tokens=max_new_tokens,
        state=state,
        name=name,
        advance=None if advance is None else lambda what: advance(),
    )
