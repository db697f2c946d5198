"""From prompts to answers: what drops in them, a batch with one prefill or behind a look, and choices."""

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TypedDict, cast

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from foveate._transformers import Cache, PreTrainedModel, cache_in, with_cache
from foveate.ask.answer import Answer, kv_bytes
from foveate.ask.generation import (
    Decoding,
    FirstToken,
    Forced,
    Generation,
    LeastSure,
    ends_of,
    generate,
    generation_of,
    pad_id,
    run,
    without_padding,
)
from foveate.ask.loaded import Loaded
from foveate.ask.look import Look, resume, weights_of
from foveate.ask.prompt import Fit, Prompt, check_text, collate
from foveate.ask.second_look import AnyLook, SecondLook
from foveate.ask.stream import Stream
from foveate.contract.method import Method, meet
from foveate.engine.copies import copy_of
from foveate.engine.session import drop_or_not, refuse_open
from foveate.engine.trace import Trace
from foveate.errors import FoveateError, InputError, SessionError, SettingError
from foveate.naming import method_of
from foveate.plain.spelling import check_keywords, is_second_look, unquote
from foveate.plain.upstream import brief, is_out_of_memory

AnyMethod = str | Method

# -- keywords of asking -------------------------------------------------------------------------------------------


class Showing(TypedDict, total=False):
    """How films and pictures come to the model.

    Attributes:
        frames, fps: How many frames of a film at most, and how many a second; see `foveate.video.read`.
        fit: "pad" shows a picture whole, on a square, where the processor would cut its sides off.
    """

    frames: int | None
    fps: float | None
    fit: Fit


class Looking(Showing, total=False):
    """How they are looked at.

    Attributes:
        method: What drops vision tokens: a method, or its name (`foveate.naming`); None is the untouched
            model.
        tokens: A budget: mean vision tokens that a decoder layer processes, for this very input.
        retention: The same as a share of the vision tokens. Without either, a name alone keeps a third.
    """

    method: AnyMethod | None
    tokens: float | None
    retention: float | None


class Asking(Showing, Decoding, total=False):
    """How they are looked at, and how answers are decoded; see `Looking` for what is not told here.

    Attributes:
        method: What drops, also a second look or its file.
        sure: From which confidence on an answer is trusted, in [0, 1]; below it the full model is asked again.
    """

    method: AnyMethod | SecondLook | None
    tokens: float | None
    retention: float | None
    sure: float | None


def in_parts(asking: Mapping[str, Any]) -> tuple[Showing, AnyLook, Generation]:
    """What keywords say of showing, of what drops, and of decoding.

    Raises:
        SettingError: If there is no such keyword, or as `drops_of` and `Generation`.
    """
    check_keywords("An answer", asking, Asking)
    dropping = {name: asking[name] for name in ("method", "tokens", "retention", "sure") if name in asking}
    decoding = {name: asking[name] for name in Decoding.__annotations__ if name in asking}
    showing = cast(Showing, {name: asking[name] for name in Showing.__annotations__ if name in asking})
    return showing, drops_of(dropping.pop("method", None), **dropping), generation_of(decoding)


# -- what drops ---------------------------------------------------------------------------------------------------


def drops_of(
    method: Method | SecondLook | str | None,
    tokens: float | None = None,
    retention: float | None = None,
    sure: float | None = None,
) -> AnyLook:
    """How somebody asks; see `foveate.naming.method_of` for all but a second look.

    Args:
        method: What drops; or a second look, or its file.
        tokens, retention: A budget.
        sure: The least confidence that is trusted: with it this is a second look, by hand.

    Raises:
        SettingError: If a second look gets a budget or a threshold beside its own, or a threshold has no method.
        FoveateError: As `method_of` and `SecondLook.load`.
    """
    if isinstance(method, str) and is_second_look(method):
        method = SecondLook.load(unquote(method.strip()))
    if isinstance(method, SecondLook):
        if not tokens == retention == sure is None:
            raise SettingError("A second look has a budget and a threshold of its own: leave yours out.")
        return method
    drops = method_of(method, tokens, retention)
    if sure is None:
        return drops
    if drops is None:
        raise SettingError('sure is for a first look with few tokens: name what drops, such as method="vidcom2".')
    return SecondLook(method=drops, sure=sure)


def method_in(loaded: Loaded, drops: AnyLook, vision_tokens: int) -> Method | None:
    """What drops in an input of so many vision tokens, at the first look; None where there are none.

    Raises:
        BudgetError: If no schedule meets the method's budget; the message names the floor.
        SettingError: If the budget is of more tokens than there are.
    """
    method = drops.method if isinstance(drops, SecondLook) else drops
    if method is None or vision_tokens == 0:
        return None
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
    """The answer to one prompt, the likeliest of `choices`, or the stream of it; see `answers_to` for the rest."""
    if choices:
        return choice_of(loaded, prompt, choices, method, look)
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
    """The answers to prompts that share a batch, in order.

    Args:
        loaded: The model.
        prompts: What is asked.
        method: What drops in each that has vision tokens.
        settings: How answers are decoded.
        look: What all of them go on from; None where each begins afresh.
        extra: What else transformers' `generate` gets, such as a streamer. Of a `FirstToken` or a `LeastSure` among its
            `logits_processor`, answers have the figures.
    """
    model, extra = loaded.model, extra or {}
    if not prompts[0].vision_tokens:
        method = None
    arguments = {**settings.arguments(loaded.tokenizer), **extra}
    with _begin(loaded, prompts, method, look, settings.num_beams) as (inputs, trace), _seed(model, settings.seed):
        out = run(model, inputs, arguments)
        held, undropped = kv_bytes(cache_in(out))
    columns = inputs["input_ids"].shape[1]
    answers = []
    for sample, prompt in enumerate(prompts):
        ids = without_padding(model, out.sequences[sample, columns:].cpu())
        text, ids = _text_of(loaded, ids, settings.stop)
        figures: dict[str, Any] = {}
        for recorder in extra.get("logits_processor", ()):
            if isinstance(recorder, LeastSure):
                figures["confidence"] = recorder.of(sample, len(ids))
            elif recorder.logs is not None:
                figures["first"] = recorder.logs[sample * settings.num_beams]
        answers.append(
            Answer(
                prompt=prompt,
                text=text,
                tokens=ids,
                method=method,
                trace=trace,
                sample=sample,
                kv_bytes=held // len(prompts),
                kv_bytes_whole=undropped // len(prompts),
                looked=0 if look is None else look.tokens,
                **figures,
            )
        )
    return answers


@contextmanager
def _begin(
    loaded: Loaded, prompts: Sequence[Prompt], method: Method | None, look: Look | None, beams: int = 1
) -> Iterator[tuple[dict[str, Any], Trace]]:
    """The model to itself while the method drops: what `generate` is given for a batch, and the trace."""
    samples = [prompt.inputs for prompt in prompts]
    if look is not None:
        refuse_stale(loaded, look)
    fits = fitting(loaded, samples[0]) if look is None else nullcontext()
    with loaded.lock, fits, drop_or_not(loaded.model, method, loaded.cuda_graphs) as trace:
        if look is None:
            yield collate(samples, pad_id(loaded.model)), trace
        else:
            yield resume(loaded.model, look, samples, beams), look.trace


def refuse_stale(loaded: Loaded, look: Look) -> None:
    """Refuse to go on from a look inside an open context, or with other weights.

    Raises:
        SessionError: If that is so.
    """
    with loaded.lock:
        refuse_open(loaded.model)
        if look.weights is not None and weights_of(loaded.model) != look.weights:
            raise SessionError(f"The weights of {loaded.name} have changed since it looked. Look again with vlm.look.")


def _text_of(loaded: Loaded, ids: tuple[int, ...], stop: Sequence[str]) -> tuple[str, tuple[int, ...]]:
    """The text of an answer up to where a stop stands, and its ids without the padding behind a stop."""
    decoded: str = loaded.processor.decode(list(ids), skip_special_tokens=True)
    text = decoded
    for end in stop:
        text = text.partition(end)[0]
    padding = {pad_id(loaded.model), *ends_of(loaded.model)}
    while text != decoded and ids[-1] in padding:
        ids = ids[:-1]
    return text.strip(), ids


@contextmanager
def _seed(model: PreTrainedModel, seed: int | None) -> Iterator[None]:
    """Set torch's generators for a while: the CPU's alone, or those of all accelerators too."""
    kind = model.device.type
    if seed is None:
        yield
    elif kind == "cpu":
        with torch.random.fork_rng([]):
            torch.default_generator.manual_seed(seed)
            yield
    else:
        with torch.random.fork_rng(range(torch.accelerator.device_count()), device_type=kind):
            torch.manual_seed(seed)
            yield


@contextmanager
def fitting(loaded: Loaded, inputs: Mapping[str, Tensor]) -> Iterator[None]:
    """Where something fails and the untouched model refuses these inputs too, say that its processor is another's.

    Raises:
        InputError: If that is so; else what was raised within.
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
                raise error from None  # that, or a kernel that cannot be compiled
            raise InputError(loaded.misfit(str(refused).partition("\n")[0])) from error
        raise


# -- choices ------------------------------------------------------------------------------------------------------


def choice_of(
    loaded: Loaded, prompt: Prompt, choices: Sequence[str], method: Method | None, look: Look | None = None
) -> Answer:
    """The likeliest of several answers, and the log-probability of each.

    Args:
        loaded: The model.
        prompt: The question.
        choices: The answers.
        method: What drops.
        look: What the prompt goes on from, if anything.

    Raises:
        SettingError: If there are fewer than two choices, two are the same, or one begins another and the model has no
            token that ends an answer, so that the two cannot be told apart.
    """
    ids = tokens_of(loaded.tokenizer, choices)
    ends: set[int] = set()
    if any(longer[: len(short)] == short for short, longer in itertools.permutations(ids, 2)):
        ends = ends_of(loaded.model) or {loaded.tokenizer.eos_token_id}
        if None in ends:
            raise SettingError("One choice begins another, and the model has no token that ends an answer.")
    if not prompt.vision_tokens:
        method = None
    settings = Generation().arguments(loaded.tokenizer)
    with _begin(loaded, [prompt], method, look) as (inputs, trace):
        values, cache = log_probabilities(loaded.model, inputs, ids, settings, ends)
        held, undropped = kv_bytes(cache)
    best = max(range(len(choices)), key=lambda place: values[place])
    return Answer(
        prompt=prompt,
        text=choices[best],
        tokens=ids[best],
        method=method,
        trace=trace,
        kv_bytes=held,
        kv_bytes_whole=undropped,
        choices=dict(zip(choices, values, strict=True)),
        looked=0 if look is None else look.tokens,
    )


def tokens_of(tokenizer: PreTrainedTokenizerBase, choices: Sequence[str]) -> list[tuple[int, ...]]:
    """The token ids of each choice, as an answer begins with them.

    Raises:
        SettingError: If there are fewer than two, one has no token, or two have the same ones.
    """
    if isinstance(choices, str) or not isinstance(choices, Sequence) or len(choices) < 2:
        raise SettingError(f"choices are two texts or more, in a list; got {brief(choices)}.")
    ids = []
    for choice in choices:
        check_text(choice, "A choice")
        ids.append(tuple(tokenizer(choice, add_special_tokens=False).input_ids))
        if not ids[-1]:
            raise SettingError(f"Every choice has a token at least; got {brief(choice)}.")
    if len(set(ids)) < len(ids):
        raise SettingError(f"Every choice has tokens of its own; got {brief(list(choices))}.")
    return ids


def log_probabilities(
    model: PreTrainedModel,
    inputs: Mapping[str, object],
    choices: Sequence[tuple[int, ...]],
    settings: Mapping[str, object],
    ends: Collection[int] = (),
) -> tuple[list[float], Cache]:
    """Log-probability (natural) of each choice behind a prompt, all its tokens together; and the prompt's cache.

    Args:
        model: Of transformers; dropping where a context is open.
        inputs: The prompt, batch 1; where it goes on from a look, with the cache of that.
        choices: Token ids of each.
        settings: Greedy ones, for `generate`.
        ends: Ids that end an answer: where given, the probability that one of them follows the choice counts too.
    """
    first = FirstToken()
    out = run(model, inputs, {**settings, "max_new_tokens": 1}, logits_processor=[first])
    assert first.logs is not None
    values = []
    for tokens in choices:
        value = float(first.logs[0, tokens[0]])
        if len(tokens) > 1 or ends:
            value += _rest(model, inputs, tokens, copy_of(cache_in(out)), settings, ends)
        values.append(value)
    return values, cache_in(out)


def _rest(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    tokens: tuple[int, ...],
    cache: Cache,
    settings: Mapping[str, object],
    ends: Collection[int],
) -> float:
    """Log-probability of all tokens but the first, which goes in behind the prompt, and of the end."""
    forced = Forced(tokens[1:], ends)
    text = inputs["input_ids"].shape
    longer = {name: value for name, value in inputs.items() if isinstance(value, Tensor) and value.shape == text}
    for name, value in longer.items():
        column = {"input_ids": tokens[0], "attention_mask": 1}.get(name, 0)
        longer[name] = torch.cat((value, value.new_full((1, 1), column)), dim=1)
    # No `min_new_tokens`: it takes the end's probability away and shares it among the other tokens.
    steps = len(tokens) - 1 + bool(ends)
    run(model, {**longer, **with_cache(cache)}, {**settings, "max_new_tokens": steps}, logits_processor=[forced])
    return forced.value
