"""Run prompts to answers: the keywords of `ask`, batches with one prefill or after a look, and choices."""

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypedDict, cast

import torch
from torch import Tensor

from foveate._transformers import Cache, PreTrainedModel, cache_in, with_cache
from foveate.ask.answer import OVERFLOW, Answer, kv_bytes
from foveate.ask.generation import (
    Decoding,
    FirstToken,
    Forced,
    Generation,
    LeastSure,
    ends_of,
    generate,
    pad_id,
    run,
    without_padding,
)
from foveate.ask.loaded import Loaded
from foveate.ask.look import Look, resume
from foveate.ask.prompt import Fit, Prompt, check_text, collate, refuse_special
from foveate.ask.second_look import AnyLook, SecondLook
from foveate.ask.stream import Stream
from foveate.contract.method import Method, meet
from foveate.core.tensors import seeded
from foveate.engine.copies import copy_of
from foveate.engine.doors import drop_or_not
from foveate.engine.hold import refuse_open
from foveate.engine.state import state_of
from foveate.engine.trace import Trace
from foveate.errors import FoveateError, InputError, SessionError, SettingError
from foveate.naming import method_of
from foveate.plain.spelling import is_second_look, unquote
from foveate.plain.upstream import brief, is_out_of_memory

AnyMethod = str | Method

# -- keywords of asking -------------------------------------------------------------------------------------------


class Showing(TypedDict, total=False):
    """How videos and images are prepared for the model.

    Attributes:
        frames: Maximum number of frames read from a video; see `foveate.video.read`.
        fps: Frames per second read from a video.
        fit: "pad" pads an image to a square, so that the processor does not crop it.
    """

    frames: int | None
    fps: float | None
    fit: Fit


class Preparing(Showing, total=False):
    """Keywords of `prepare`: how media are prepared, and what comes before them.

    Attributes:
        system: The text of a system turn before everything else; None for no such turn.
    """

    system: str | None


class Looking(Preparing, total=False):
    """Keywords of `look`: how media are prepared, and what is dropped.

    Attributes:
        method: A method or its name (`foveate.naming`); None is the untouched model.
        tokens: Budget: mean vision tokens per decoder layer, for this input.
        retention: Budget as a share of the vision tokens. A name without a budget keeps a third.
    """

    method: AnyMethod | None
    tokens: float | None
    retention: float | None


class Asking(Preparing, Decoding, total=False):
    """Keywords of `ask`: how media are prepared, what is dropped, and how the answer is decoded.

    See `Looking` and `Decoding` for the rest.

    Attributes:
        method: A method, a second look, or the name or file of one.
        sure: Confidence in [0, 1] below which the full model is asked again.
    """

    method: AnyMethod | SecondLook | None
    tokens: float | None
    retention: float | None
    sure: float | None


def in_parts(asking: Mapping[str, Any]) -> tuple[Preparing, AnyLook, Generation]:
    """Split the keywords of `ask` into media settings, the method or second look, and decoding settings.

    Raises:
        SettingError: If a keyword is unknown, and as in `drops_of` and `Generation`.
    """
    dropping = {name: asking[name] for name in ("method", "tokens", "retention", "sure") if name in asking}
    decoding = {name: asking[name] for name in Decoding.__annotations__ if name in asking}
    showing = cast(Preparing, {name: asking[name] for name in Preparing.__annotations__ if name in asking})
    return showing, drops_of(dropping.pop("method", None), **dropping), Generation(**decoding)


# -- what drops ---------------------------------------------------------------------------------------------------


def drops_of(
    method: Method | SecondLook | str | None,
    tokens: float | None = None,
    retention: float | None = None,
    sure: float | None = None,
) -> AnyLook:
    """Return the method or second look of these settings, or None for the untouched model.

    Args:
        method: A method or its name, a second look or its file; see `foveate.naming.method_of`.
        tokens, retention: A budget.
        sure: Lowest trusted confidence. It makes a second look with this threshold, without a calibration.

    Raises:
        SettingError: If a second look is given another budget or threshold, or a threshold comes without a method.
        FoveateError: As in `method_of` and `SecondLook.load`.
    """
    if isinstance(method, str) and is_second_look(method):
        method = SecondLook.load(unquote(method.strip()))
    if isinstance(method, SecondLook):
        if (tokens, retention, sure) != (None, None, None):
            raise SettingError(
                "A second look has a budget and threshold of its own: leave tokens, retention and sure out."
            )
        return method
    drops = method_of(method, tokens, retention)
    if sure is None:
        return drops
    if drops is None:
        raise SettingError('sure needs a method for the first look: name one, such as method="vidcom2".')
    return SecondLook(method=drops, sure=sure)


def method_in(loaded: Loaded, drops: AnyLook, vision_tokens: int) -> Method | None:
    """Return the method of the first look, checked for an input of `vision_tokens`, if it has any.

    Raises:
        BudgetError: If no schedule meets the method's budget. The message names the lowest possible budget, the floor.
        SettingError: If the budget exceeds the vision tokens.
    """
    method = drops.method if isinstance(drops, SecondLook) else drops
    if method is not None and vision_tokens:
        meet(method, loaded.model, vision_tokens)
    return method


# -- answers ------------------------------------------------------------------------------------------------------


def reply_to(
    loaded: Loaded,
    prompt: Prompt,
    method: Method | None,
    settings: Generation,
    choices: Sequence[str] = (),
    stream: bool = False,
    look: Look | None = None,
) -> Answer | Stream:
    """Answer one prompt freely, from `choices`, or as a stream; see `answers_to` for the other arguments."""
    if choices:
        return choices_of(loaded, [prompt], Choices.of(loaded, choices), method, look)[0]
    if not stream:
        return answers_to(loaded, [prompt], method, settings, look)[0]

    def answer(streamer: object, stopping: object) -> Answer:
        listening = {"streamer": streamer, "stopping_criteria": [stopping]}
        return answers_to(loaded, [prompt], method, settings, look, listening)[0]

    return Stream(answer, loaded.tokenizer, settings.stop)


def answers_to(
    loaded: Loaded,
    prompts: Sequence[Prompt],
    method: Method | None,
    settings: Generation,
    look: Look | None = None,
    extra: Mapping[str, Any] | None = None,
) -> list[Answer]:
    """Answer a batch of prompts, in order.

    Args:
        loaded: The model and its processor.
        prompts: The prompts.
        method: The method for each prompt that has vision tokens.
        settings: The decoding settings.
        look: The beginning that all prompts continue from, or None.
        extra: Further arguments of transformers' `generate`, such as a streamer. If `logits_processor` has a
            `FirstToken` or a `LeastSure`, the answers get `first` or `confidence` from it.
    """
    extra = extra or {}
    arguments = {**settings.arguments(loaded.tokenizer), **extra}

    def decode(inputs: Mapping[str, Any]) -> tuple[list[dict[str, Any]], Cache]:
        seed = nullcontext() if settings.seed is None else seeded(loaded.model.device, settings.seed)
        with seed:
            out = run(loaded.model, inputs, arguments)
        columns = inputs["input_ids"].shape[1]
        figures: list[dict[str, Any]] = []
        for sample in range(len(prompts)):
            ids = without_padding(loaded.model, out.sequences[sample, columns:].cpu())
            text, ids = _text_of(loaded, ids, settings.stop)
            figures.append({"text": text, "tokens": ids})
            for recorder in extra.get("logits_processor", ()):
                if isinstance(recorder, LeastSure):
                    figures[-1]["confidence"] = recorder.of(sample, len(ids))
                elif recorder.logs is not None:
                    figures[-1]["first"] = recorder.logs[sample * settings.num_beams]
        return figures, cache_in(out)

    return _answers(loaded, prompts, method, look, decode, settings.num_beams)


def _answers(
    loaded: Loaded,
    prompts: Sequence[Prompt],
    method: Method | None,
    look: Look | None,
    work: Callable[[Mapping[str, Any]], tuple[Sequence[Mapping[str, Any]], Cache]],
    beams: int = 1,
) -> list[Answer]:
    """Answer a batch of prompts; see `answers_to`.

    Args:
        work: Runs the model on the batch's inputs. Returns the fields of each answer that it knows, and the cache.
        beams: Beams of a beam search.
    """
    idle: Method | None = None
    if not prompts[0].vision_tokens:
        method, idle = None, method
    with _begin(loaded, prompts, method, look, beams) as (inputs, trace):
        figures, cache = work(inputs)
        held, undropped = kv_bytes(cache)
        prompts = _with_overflow(prompts, cache)
    return [
        Answer(
            prompt=prompt,
            method=method,
            trace=trace,
            sample=sample * beams,
            kv_bytes=held // len(prompts),
            kv_bytes_whole=undropped // len(prompts),
            looked=0 if look is None else look.tokens,
            idle=idle,
            **own,
        )
        for sample, (prompt, own) in enumerate(zip(prompts, figures, strict=True))
    ]


def _with_overflow(prompts: Sequence[Prompt], cache: Any) -> Sequence[Prompt]:
    """Add a note to each prompt with pictures whose rows entered the decoder as NaN.

    The keys of the first layer that caches any show it: nothing before them mixes rows.
    """
    cached = [layer for layer in getattr(cache, "layers", ()) if isinstance(getattr(layer, "keys", None), Tensor)]
    if not cached or not prompts[0].vision_tokens:
        return prompts
    keys, head = cached[0].keys, getattr(cached[0], "head", None)
    is_nan = keys.isnan().reshape(len(prompts), -1).any(dim=1)  # beams of a sample are adjacent
    if head is not None:  # the look that all samples continue
        is_nan = is_nan | head[0].isnan().any()
    return [
        replace(prompt, notes=(*prompt.notes, OVERFLOW)) if wrong else prompt
        for prompt, wrong in zip(prompts, is_nan.tolist(), strict=True)
    ]


@contextmanager
def _begin(
    loaded: Loaded, prompts: Sequence[Prompt], method: Method | None, look: Look | None, beams: int = 1
) -> Iterator[tuple[dict[str, Any], Trace]]:
    """Hold the model's lock while the method drops. Yields the arguments for `generate` and the trace."""
    samples = [prompt.inputs for prompt in prompts]
    if look is not None:
        refuse_stale(loaded, look)
    fits = fitting(loaded, samples[0]) if look is None else nullcontext()
    with loaded.lock, fits, drop_or_not(loaded.model, method, loaded.cuda_graphs) as trace:
        if look is None:
            yield collate(samples, pad_id(loaded.model)), trace
        else:
            yield resume(loaded.model, look, samples, beams), look.trace if look.inputs else trace


def refuse_stale(loaded: Loaded, look: Look) -> None:
    """Refuse to continue from a look while a `drop` context is open, or after the model has changed.

    Raises:
        SessionError: In either case.
    """
    with loaded.lock:
        refuse_open(loaded.model)
        if look.state is not None and look.state != state_of(loaded.model):
            raise SessionError(
                f"The weights of {loaded.name}, its hooks, adapters or attributes have changed since it looked. Look "
                "again with vlm.look."
            )


def _text_of(loaded: Loaded, ids: tuple[int, ...], stop: Sequence[str]) -> tuple[str, tuple[int, ...]]:
    """Return an answer's text up to the first stop text, and its ids without the padding after a stop."""
    decoded: str = loaded.processor.decode(list(ids), skip_special_tokens=True)
    text = decoded
    for end in stop:
        text = text.partition(end)[0]
    padding = {pad_id(loaded.model), *ends_of(loaded.model)}
    while text != decoded and ids[-1] in padding:
        ids = ids[:-1]
    return text.strip(), ids


@contextmanager
def fitting(loaded: Loaded, inputs: Mapping[str, Tensor]) -> Iterator[None]:
    """Explain a failure inside the context if the untouched model fails on these inputs too.

    Then the processor does not fit the model.

    Raises:
        InputError: If the untouched model refuses the inputs. Otherwise the original error.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, FoveateError) and not isinstance(error, SettingError):
            raise
        try:
            generate(loaded.model, inputs, 1)
        except (ValueError, TypeError, LookupError, RuntimeError) as refused:
            if is_out_of_memory(refused) or (isinstance(refused, RuntimeError) and type(refused) is not RuntimeError):
                raise error from None  # out of memory, or a kernel that does not compile: the original error says more
            raise InputError(loaded.misfit(str(refused).partition("\n")[0])) from error
        raise


# -- choices ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choices:
    """Candidate answers.

    Attributes:
        texts: The texts.
        ids: Their token ids, as at the start of an answer.
        ends: Ids that end an answer, if one choice is the beginning of another; else none.
    """

    texts: Sequence[str]
    ids: Sequence[tuple[int, ...]]
    ends: Collection[int] = ()

    @classmethod
    def of(cls, loaded: Loaded, texts: Sequence[str]) -> "Choices":
        """Read the texts.

        Raises:
            InputError: If one is not valid Unicode, or contains a special token.
            SettingError: If there are fewer than two, one has no tokens, or two have the same tokens. Also if one is
                the beginning of another and the model has no end token to tell them apart.
        """
        if len(texts) < 2:
            raise SettingError(f"choices must be a list of two or more texts; got {brief(list(texts))}.")
        ids = []
        for text in texts:
            check_text(text, "A choice")
            refuse_special(loaded, text)
            ids.append(tuple(loaded.tokenizer(text, add_special_tokens=False).input_ids))
            if not ids[-1]:
                raise SettingError(f"Every choice must have at least one token; got {brief(text)}.")
        if len(set(ids)) < len(ids):
            raise SettingError(f"No two choices may have the same tokens; got {brief(list(texts))}.")
        ends: set[int] = set()
        if any(longer[: len(short)] == short for short, longer in itertools.permutations(ids, 2)):
            ends = ends_of(loaded.model) or {loaded.tokenizer.eos_token_id}
            if None in ends:
                raise SettingError("One choice begins another, and the model has no end token to tell them apart.")
        return cls(texts, ids, ends)


def choices_of(
    loaded: Loaded, prompts: Sequence[Prompt], choices: Choices, method: Method | None, look: Look | None = None
) -> list[Answer]:
    """Answer each prompt of a batch with its likeliest choice; see `answers_to` for the other arguments.

    An answer holds the log-probability of each choice. If every choice is one token, that takes one forward.
    """
    settings = Generation().arguments(loaded.tokenizer)

    def score(inputs: Mapping[str, Any]) -> tuple[list[dict[str, Any]], Cache]:
        values, cache = log_probabilities(loaded.model, inputs, choices.ids, settings, choices.ends)
        figures: list[dict[str, Any]] = []
        for row in values.tolist():
            best = row.index(max(row))
            by_text = dict(zip(choices.texts, row, strict=True))
            figures.append({"text": choices.texts[best], "tokens": choices.ids[best], "choices": by_text})
        return figures, cache

    return _answers(loaded, prompts, method, look, score)


def log_probabilities(
    model: PreTrainedModel,
    inputs: Mapping[str, object],
    choices: Sequence[tuple[int, ...]],
    settings: Mapping[str, object],
    ends: Collection[int] = (),
) -> tuple[Tensor, Cache]:
    """Return the natural log-probability of each choice after each prompt, and the prompts' cache.

    Args:
        model: A transformers model; it drops if a context is open.
        inputs: The prompts, with the look's cache if they continue from a look.
        choices: Token ids of each choice.
        settings: Greedy settings for `generate`.
        ends: End-of-answer ids. If given, the probability that one of them follows the choice is included.

    Returns:
        (samples, choices) float32 on the CPU, summed over the tokens of each choice.
    """
    first = FirstToken()
    out = run(model, inputs, {**settings, "max_new_tokens": 1}, logits_processor=[first])
    assert first.logs is not None
    values = first.logs[:, [tokens[0] for tokens in choices]]
    for place, tokens in enumerate(choices):
        if len(tokens) > 1 or ends:
            values[:, place] += _rest(model, inputs, tokens, copy_of(cache_in(out)), settings, ends)
    return values, cache_in(out)


def _rest(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    tokens: tuple[int, ...],
    cache: Cache,
    settings: Mapping[str, object],
    ends: Collection[int],
) -> Tensor:
    """Return the log-probability of all tokens of a choice except the first, and of the end: (samples,) on the CPU.

    The first token is appended to the prompts: (samples, tokens) -> (samples, tokens + 1). The others are forced.
    """
    forced = Forced(tokens[1:], ends)
    text = inputs["input_ids"].shape
    longer = {name: value for name, value in inputs.items() if isinstance(value, Tensor) and value.shape == text}
    for name, value in longer.items():
        column = {"input_ids": tokens[0], "attention_mask": 1}.get(name, 0)
        longer[name] = torch.cat((value, value.new_full((text[0], 1), column)), dim=1)
    # No `min_new_tokens`: it would move the probability of the end to the other tokens.
    steps = len(tokens) - 1 + bool(ends)
    run(model, {**longer, **with_cache(cache)}, {**settings, "max_new_tokens": steps}, logits_processor=[forced])
    return forced.logs.cpu()
