"""From prompts to answers: a method solved for them, one batch, one prefill."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveate.ask.answer import Answer
from foveate.ask.batch import collate, ends_of, pad_id, without_padding
from foveate.ask.cache import kv_bytes
from foveate.ask.choices import begin_alike, log_probabilities, tokens_of
from foveate.ask.generation import FirstToken, Generation, generate, run
from foveate.ask.loaded import Loaded
from foveate.ask.look import Look, resumed, together
from foveate.ask.prompt import Prompt
from foveate.contract.method import Method, meet
from foveate.contract.naming import asked_share, parse, with_given
from foveate.engine.session import drop_or_not
from foveate.engine.trace import Trace
from foveate.errors import FoveateError, InputError, SettingError

__all__ = ["Dropping", "Solved", "answers_behind", "answers_to", "choice_of", "fitting"]

BEHIND = {
    "use_cache": True,
    "cache_implementation": None,
    "prompt_lookup_num_tokens": None,
    "assistant_early_exit": None,
}
"""Settings that going on from a look needs, whatever a checkpoint's own say."""


@dataclass(frozen=True, slots=True)
class Solved:
    """A method for one input.

    Attributes:
        method: With its schedule solved; None for the untouched model.
        asked: The retention that is asked of it; None where none is.
    """

    method: Method | None = None
    asked: float | None = None


@dataclass(frozen=True, slots=True)
class Dropping:
    """What drops, and how much may stay.

    Attributes:
        method: A method, or its name; None for the untouched model.
        tokens: Mean vision tokens that a decoder layer processes.
        retention: The same as a share.
    """

    method: str | Method | None = None
    tokens: float | None = None
    retention: float | None = None

    def solved(self, loaded: Loaded, vision_tokens: int) -> Solved:
        """The method with its budget, which an input of so many vision tokens can meet.

        Raises:
            BudgetError: If no schedule meets the budget; the message names the floor.
            SettingError: If settings contradict each other, or a budget comes without a method.
            UnknownNameError: If there is no method of that name.
        """
        method = self.method
        if isinstance(method, str):
            method = parse(method)
        if method is not None and not isinstance(method, Method):
            raise SettingError(f"A method is such as foveate.V2Drop(), or its name; got {method!r}.")
        if method is None:
            if self.tokens is not None or self.retention is not None:
                raise SettingError('A budget without a method: name one, such as method="v2drop".')
            return Solved()
        method = with_given(method, self.tokens, self.retention)
        if vision_tokens == 0:  # nothing can be dropped
            return Solved()
        meet(method, loaded.model, vision_tokens)
        return Solved(method, asked_share(method, vision_tokens))


def answers_to(
    loaded: Loaded,
    prompts: Sequence[Prompt],
    solved: Solved,
    settings: Generation,
    *,
    first: bool = False,
    extra: Mapping[str, Any] | None = None,
) -> list[Answer]:
    """The answers to one batch.

    Args:
        loaded: The model.
        prompts: Their tensors must fit together.
        solved: What drops.
        settings: How answers are decoded.
        first: Whether answers have the log-probabilities of their first token.
        extra: What else transformers' `generate` gets, such as a streamer.
    """
    samples = [prompt.inputs for prompt in prompts]
    batch = _Batch(loaded, prompts, solved, settings, first, extra or {})
    with loaded.lock, fitting(loaded, samples[0]), drop_or_not(loaded.model, solved.method) as trace:
        return batch.answers(collate(samples, pad_id(loaded.model)), trace)


def answers_behind(
    loaded: Loaded,
    look: Look,
    prompts: Sequence[Prompt],
    solved: Solved,
    settings: Generation,
    *,
    first: bool = False,
    extra: Mapping[str, Any] | None = None,
    size: int | None = None,
) -> list[Answer]:
    """The answers to prompts that go on from a look, in order; see `answers_to`.

    They are made in as few batches as their lengths allow, of at most `size`.
    """
    answers: dict[int, Answer] = {}
    samples = [prompt.inputs for prompt in prompts]
    extra = {**BEHIND, **(extra or {})}
    for places in together(loaded.model, look, samples, size):
        batch = _Batch(loaded, [prompts[place] for place in places], solved, settings, first, extra, look.tokens)
        with loaded.lock, drop_or_not(loaded.model, solved.method):
            inputs = resumed(loaded.model, look, [samples[place] for place in places], settings.num_beams)
            answers |= zip(places, batch.answers(inputs, look.trace), strict=True)
    return [answers[place] for place in range(len(prompts))]


@dataclass(frozen=True, slots=True)
class _Batch:
    """One batch of prompts on its way to answers; see `answers_to` for its parts."""

    loaded: Loaded
    prompts: Sequence[Prompt]
    solved: Solved
    settings: Generation
    first: bool
    extra: Mapping[str, Any]
    looked: int = 0

    def answers(self, inputs: Mapping[str, Any], trace: Trace) -> list[Answer]:
        """What `generate` answers, given these inputs."""
        model, settings = self.loaded.model, self.settings
        arguments, recorder = dict(self.extra), FirstToken()
        if self.first:
            arguments["logits_processor"] = [recorder]
        columns = inputs["input_ids"].shape[1]
        with _seeded(model.device, settings.seed):
            out = run(model, inputs, {**settings.arguments(self.loaded.tokenizer), **arguments})
        held, undropped = kv_bytes(out.past_key_values)
        answers = []
        for sample, prompt in enumerate(self.prompts):
            ids = without_padding(model, out.sequences[sample, columns:].cpu())
            text, ids = _said(self.loaded, ids, settings.stop)
            answers.append(
                Answer(
                    prompt=prompt,
                    text=text,
                    tokens=ids,
                    method=self.solved.method,
                    asked=self.solved.asked,
                    trace=trace,
                    sample=sample,
                    kv_bytes=held // len(self.prompts),
                    kv_bytes_whole=undropped // len(self.prompts),
                    first=None if recorder.logs is None else recorder.logs[sample * settings.num_beams],
                    looked=self.looked,
                )
            )
        return answers


def choice_of(
    loaded: Loaded, prompt: Prompt, choices: Sequence[str], solved: Solved, look: Look | None = None
) -> Answer:
    """The likeliest of several answers, and the log-probability of each.

    Args:
        loaded: The model.
        prompt: The question.
        choices: The answers.
        solved: What drops.
        look: What the prompt goes on from, if anything.

    Raises:
        SettingError: If there are fewer than two choices, or two are the same.
    """
    ids = tokens_of(loaded.tokenizer, choices)
    ends = _ends(loaded) if begin_alike(ids) else set()
    settings = Generation().arguments(loaded.tokenizer)
    checked: AbstractContextManager[None] = nullcontext()
    if look is None:
        checked = fitting(loaded, prompt.inputs)
    with loaded.lock, checked, drop_or_not(loaded.model, solved.method) as trace:
        inputs = prompt.inputs
        if look is not None:
            inputs, trace = resumed(loaded.model, look, [prompt.inputs]), look.trace
            settings |= BEHIND
        values, cache = log_probabilities(loaded.model, inputs, ids, settings, ends)
        held, undropped = kv_bytes(cache)
    best = max(range(len(choices)), key=lambda place: values[place])
    return Answer(
        prompt=prompt,
        text=choices[best],
        tokens=ids[best],
        method=solved.method,
        asked=solved.asked,
        trace=trace,
        kv_bytes=held,
        kv_bytes_whole=undropped,
        choices=dict(zip(choices, values, strict=True)),
        looked=0 if look is None else look.tokens,
    )


def _said(loaded: Loaded, ids: tuple[int, ...], stop: Sequence[str]) -> tuple[str, tuple[int, ...]]:
    """The text of an answer up to where a stop stands, and its ids without the padding behind a stop."""
    decoded: str = loaded.processor.decode(list(ids), skip_special_tokens=True)
    text = decoded
    for end in stop:
        text = text.partition(end)[0]
    padding = {pad_id(loaded.model), *ends_of(loaded.model)}
    while text != decoded and ids[-1] in padding:
        ids = ids[:-1]
    return text.strip(), ids


def _ends(loaded: Loaded) -> set[int]:
    """Ids that end an answer.

    Raises:
        SettingError: If the model has none, so that a choice cannot be told from a longer one.
    """
    ends = ends_of(loaded.model) or {loaded.tokenizer.eos_token_id}
    if None in ends:
        raise SettingError("One choice begins another, and the model has no token that ends an answer.")
    return ends


@contextmanager
def _seeded(device: torch.device, seed: int | None) -> Iterator[None]:
    """Set torch's generators for a while: the CPU's alone, or those of all accelerators too."""
    if seed is None:
        yield
    elif device.type == "cpu":
        with torch.random.fork_rng([]):
            torch.default_generator.manual_seed(seed)
            yield
    else:
        with torch.random.fork_rng(range(torch.accelerator.device_count()), device_type=device.type):
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
            if isinstance(refused, RuntimeError) and type(refused) is not RuntimeError:
                raise error from None  # out of memory, or a kernel that cannot be compiled
            raise InputError(loaded.misfit(str(refused).partition("\n")[0])) from error
        raise
