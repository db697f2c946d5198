"""A second look calibrated on samples of one's own, without labels: the full model and some settings answer them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import fmean
from typing import Any, TypedDict, Unpack

from foveate.ask.answer import Answer
from foveate.ask.answers import Answerer, in_order
from foveate.ask.batch import parts
from foveate.ask.generation import Generation
from foveate.ask.prompt import Prompt
from foveate.ask.second_look import Promise, SecondLook, TaskLook, conditions_of, share_words
from foveate.ask.vlm import VLM
from foveate.contract.method import Method, meet
from foveate.engine.tower_memo import TowerMemo
from foveate.errors import BudgetError, SettingError
from foveate.methods.vidcom2 import VidCom2
from foveate.plain.spelling import read_json, written
from foveate.runs.listener import Advance, Listener
from foveate.tuning.parts import by_picture, digest, digest_of, notes_on, picture_of, prompt_of
from foveate.tuning.promise import fewest, one_each, threshold

MAX_NEW_TOKENS = 64
"""The longest answer of the full model."""

BUDGETS = (2 / 9, 1 / 9, 1 / 3)
"""What is tried of a method without a budget, as shares: the first alone where samples are too few for three."""
BATCH = 8
"""Samples that every setting answers before the next ones, so that the tower looks at them once."""
LONG = 6
"""Tokens from which on an answer is long, its end among them."""
ENOUGH = 20
"""Long answers that something is said of."""


class Agreeing(TypedDict, total=False):
    """How a second look is calibrated.

    Attributes:
        tasks: What kind of question each sample is, for a table by task.
        seed: Which question of each picture counts for the bound; 0 by default.
        max_new_tokens: The longest answer; 64 by default.
        listener: Hears how it goes.
    """

    tasks: Sequence[str]
    seed: int
    max_new_tokens: int
    listener: Listener | None


@dataclass(frozen=True, slots=True)
class _Sample:
    """A question, and all that was answered.

    Attributes:
        task: Its kind.
        full: The full model's answer.
        quick: Each setting's, in the settings' order.
    """

    task: str
    full: Answer
    quick: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class _Looks:
    """What a threshold makes of a setting's answers to some samples."""

    place: int
    sure: float
    samples: Sequence[_Sample]

    def again(self, sample: _Sample) -> bool:
        return not _confidence(sample.quick[self.place]) >= self.sure

    def differs(self, sample: _Sample) -> bool:
        """Whether a trusted answer is not the full model's."""
        return not self.again(sample) and sample.quick[self.place].text != sample.full.text

    def mean(self, figure: Callable[[Answer], float]) -> float:
        """Of a figure that both looks add to."""
        return fmean(
            figure(sample.quick[self.place]) + self.again(sample) * figure(sample.full) for sample in self.samples
        )

    def shares(self, samples: Sequence[_Sample]) -> tuple[float, float]:
        """Of the samples: asked again, and trusted though they differ."""
        return fmean(map(self.again, samples)), fmean(map(self.differs, samples))


def settings_of(method: Method | None) -> tuple[Method, ...]:
    """What is tried: a method as it says, or an open one at three budgets; None is VidCom2.

    They are fixed before a sample is seen: settings chosen on the samples of a bound void it.
    """
    method = VidCom2() if method is None else method
    if method.open:
        return tuple(method.with_budget(retention=share) for share in BUDGETS)
    return (method,)


def refuse_few(questions: int, agreement: float, settings: int) -> None:
    """Refuse samples with which nothing could be promised, before anything runs.

    Raises:
        SettingError: That says how many are missing.
    """
    least = fewest(agreement, settings)
    if questions < least:
        tried = "1 setting"
        if settings != 1:
            tried = f"{settings} settings"
        raise SettingError(
            f"{share_words(agreement)} agreement takes {least} samples for {tried}, each of another picture; got "
            f"{questions}: {least - questions} are missing. Give more, try fewer settings, or ask for less."
        )


def agree(
    vlm: VLM,
    samples: Iterable[Any],
    settings: Sequence[Method],
    agreement: float,
    texts: Sequence[str] = (),
    *,
    may_narrow: bool = False,
    **how: Unpack[Agreeing],
) -> SecondLook:
    """The cheapest setting whose trusted answers are the full model's, with a promise; see `foveate.tuning.promise`.

    Args:
        vlm: The model.
        samples: (media, question) pairs or prompts.
        settings: What is tried.
        agreement: The share of answers that are to be the full model's.
        texts: How settings were written, where they were texts.
        may_narrow: Whether the first setting alone is tried where samples are too few for all.
        how: See `Agreeing`.

    Raises:
        BudgetError: If nothing cheaper than the full model keeps the promise.
        SettingError: If samples are too few, or a schedule was tuned on them; or if there is no such keyword.
    """
    if unread := sorted(set(how) - set(Agreeing.__annotations__)):
        raise SettingError(f"With agreement= no schedule is tuned: leave {', '.join(unread)} out.")
    listener, seed = how.get("listener") or Listener(), how.get("seed", 0)
    every = [prompt_of(vlm, sample) for sample in samples]
    kinds = list(how.get("tasks", ())) or ["samples"] * len(every)
    if len(kinds) != len(every):
        raise SettingError(f"Give a task for each sample, or none; got {len(kinds)} for {len(every)}.")
    once = sorted({digest(prompt.inputs): place for place, prompt in reversed(list(enumerate(every)))}.values())
    prompts, kinds = [every[place] for place in once], [kinds[place] for place in once]
    about, inputs = by_picture(prompts), digest_of(by_picture(every))
    for part in (part for text in texts for part in written(text)):
        if part.is_file and read_json(part.name).get("inputs") == inputs:  # on these samples its bound is void
            raise SettingError(
                f"{part.name} was tuned on these very samples, so they say nothing of it. Calibrate on other pictures."
            )
    pictures = [picture_of(prompt.inputs) for prompt in prompts]
    settings, places, notes = _planned(pictures, settings, agreement, seed, may_narrow)
    if len(prompts) < len(every):
        notes.append(f"{len(every) - len(prompts)} samples ask what another one asks, and are left out.")
    for method in settings:
        for size in sorted({prompt.vision_tokens for prompt in prompts}):
            meet(method, vlm.model, size)
    generation = Generation(max_new_tokens=how.get("max_new_tokens", MAX_NEW_TOKENS))
    with listener.stage("Answering in full and with few tokens", len(prompts)) as advance:
        answered = _answered(vlm, prompts, kinds, settings, generation, advance)
    counted = [answered[place] for place in places]
    looks = []
    for place in range(len(settings)):
        pairs = [(_confidence(sample.quick[place]), sample.quick[place].text == sample.full.text) for sample in counted]
        sure = threshold(pairs, agreement, len(settings))
        if sure is not None:  # else nothing of it can be trusted
            looks.append(_Looks(place, sure, counted))
    cost = _flops
    if any(answer.flops is None for sample in counted for answer in (sample.full, *sample.quick)):
        cost = _spent
    best = min(looks, key=lambda look: look.mean(cost), default=None)
    if best is None or best.mean(cost) >= fmean(cost(sample.full) for sample in counted):
        none = f"none of {len(settings)} settings keeps"
        if len(settings) == 1:
            none = f"{settings[0]} does not keep"
        raise BudgetError(
            f"Take the full model: {none} {share_words(agreement)} agreement for less. Ask for less "
            "agreement, give more samples, or try another method."
        )
    tasks = []
    for task in dict.fromkeys(sample.task for sample in answered):
        of_task = [sample for sample in answered if sample.task == task]
        again, differ = best.shares(of_task)
        tasks.append(TaskLook(task=task, questions=len(of_task), again=again, differ=differ))
    again, differ = best.shares(counted)
    promise = Promise(
        agreement=agreement,
        samples=len(counted),
        wrong=round(differ * len(counted)),
        tried=len(settings),
        pictures=len(about),
        again=again,
        tokens=best.mean(_spent),
        first=fmean(sample.quick[best.place].spent for sample in counted),
        full=fmean(sample.full.spent for sample in counted),
        tasks=tuple(tasks),
        model=vlm.name,
        conditions=conditions_of(vlm, generation),
        single_turn=all(prompt.single_turn for prompt in prompts),
        notes=(*notes, *notes_on(about), *_on_length(best)),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return SecondLook(method=settings[best.place], sure=best.sure, promise=promise)


def _planned(
    pictures: Sequence[str], settings: Sequence[Method], agreement: float, seed: int, may_narrow: bool
) -> tuple[Sequence[Method], list[int], list[str]]:
    """What is tried, the places of the samples that count for the bound, and what is to be said of it.

    Raises:
        SettingError: If samples are too few.
    """
    if may_narrow and len(settings) > 1:
        choices = [settings, settings[:1]]
    else:
        choices = [settings]
    every = list(range(len(pictures)))
    approximate = (
        "Pictures are too few for a bound of one question each, so all questions count. Those about one picture are "
        "not independent: the promise is approximate."
    )
    for places, note in ((one_each(pictures, seed), ""), (every, approximate)):
        for tried in choices:
            if len(places) >= fewest(agreement, len(tried)):
                notes = [note] if note else []
                if len(tried) < len(settings):
                    least = fewest(agreement, len(settings))
                    notes.append(f"{len(settings)} settings take {least} samples: {tried[0]} alone is tried.")
                return tried, places, notes
    refuse_few(len(pictures), agreement, len(choices[-1]))
    raise AssertionError("samples are as many as is refused")


def _answered(
    vlm: VLM,
    prompts: Sequence[Prompt],
    tasks: Sequence[str],
    settings: Sequence[Method],
    generation: Generation,
    advance: Advance,
) -> list[_Sample]:
    """All answers, some samples at a time: the tower looks once at what they show."""
    samples = []
    for places in parts(range(len(prompts)), BATCH):
        tower = TowerMemo()
        columns = []
        for method in (None, *settings):
            answerer = Answerer(vlm, method, generation, BATCH, confidence=True, tower=tower)
            columns.append(list(in_order(answerer.replies(places, lambda place, _: prompts[place]))))
        for place, full, *quick in zip(places, *columns, strict=True):
            samples.append(_Sample(tasks[place], full, tuple(quick)))
        advance(len(places))
    return samples


def _on_length(look: _Looks) -> list[str]:
    """What a second look makes of decoding, and of long answers, in the user's own figures."""
    full = fmean(_steps(sample.full) for sample in look.samples)
    notes = [f"Decoding takes {look.mean(_steps):.1f} steps an answer, both looks together; the full model {full:.1f}."]
    long = [sample for sample in look.samples if _steps(sample.full) >= LONG]
    short = [sample for sample in look.samples if _steps(sample.full) < LONG]
    if len(long) >= ENOUGH:
        words = f"Of {len(long)} answers of {LONG} tokens or more {share_words(look.shares(long)[0])} are asked again"
        others = ""
        if short:
            others = f", of the {len(short)} shorter ones {share_words(look.shares(short)[0])}"
        notes.append(f"{words}{others}: long answers gain little.")
    return notes


def _confidence(answer: Answer) -> float:
    assert answer.confidence is not None
    return answer.confidence


def _spent(answer: Answer) -> float:
    return answer.spent


def _flops(answer: Answer) -> float:
    """From the pixels to the first token; counted for all, or nothing is compared by it."""
    return float(answer.flops or 0)


def _steps(answer: Answer) -> float:
    return float(len(answer.tokens))
