"""`foveate.tune`: try a small grid of settings at one cost, choose by the full model's answers, and report.

Some pictures are used to choose, others to report.
"""

import time
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Unpack, overload

from foveate import naming
from foveate.ask.prompt import Prompt
from foveate.ask.second_look import SecondLook
from foveate.ask.vlm import VLM
from foveate.contract.budget import decoder_depth
from foveate.contract.method import Method, meet
from foveate.core.fields import check_call
from foveate.cost.fitting import costs_of, largest, within_flops
from foveate.errors import BudgetError, SettingError
from foveate.eval.asked import Asked
from foveate.eval.evaluation import Questioning, open_questioning
from foveate.naming import name_of
from foveate.runs.listener import Listener
from foveate.runs.versions import versions
from foveate.tuning import agreeing
from foveate.tuning.agreeing import Agreeing, plan_of
from foveate.tuning.candidates import grid
from foveate.tuning.choice import FEWEST, best_of, comparison, mean_spent
from foveate.tuning.parts import PromptsByPicture, by_picture, digest_of, notes_on, prompt_of, question_of, split
from foveate.tuning.tuned import Tuned

METHOD = "v2drop"
"""The default method."""
NEAR = 0.01
"""Share of the budget that a scaled threshold may leave unspent."""
UNSPENT = 0.02
"""Share of the budget above which a note reports that it was left unspent."""
PASSES = 12
"""Maximum number of thresholds that are run to get near enough to the budget."""


class Tuning(Agreeing, total=False):
    """Keywords of `foveate.tune`, in addition to those of `Agreeing`. `tasks` needs `agreement`.

    Attributes:
        tokens: Budget: mean vision tokens per decoder layer.
        retention: Budget: share of the vision tokens, in (0, 1].
        flops: Budget: FLOPs to the first token, as a share of the full model's.
        given: Settings to keep, if the method is not a text; in a chain with the member's index, "1.metric".
        task: What the samples show, for the record.
    """

    tokens: float | None
    retention: float | None
    flops: float | None
    given: Collection[str]
    task: str


@overload
def tune(
    model: VLM,
    samples: Iterable[Any],
    *,
    agreement: None = None,
    method: Method | str | None = None,
    **how: Unpack[Tuning],
) -> Tuned: ...
@overload
def tune(
    model: VLM, samples: Iterable[Any], *, agreement: float, method: Method | str | None = None, **how: Unpack[Tuning]
) -> SecondLook: ...
@check_call("Tuning")
def tune(
    model: VLM,
    samples: Iterable[Any],
    *,
    agreement: float | None = None,
    method: Method | str | None = None,
    **how: Unpack[Tuning],
) -> Tuned | SecondLook:
    """Find the best setting of a method for a model, a budget and your samples, without labels.

        tuned = foveate.tune(vlm, [("a.png", "What is it?"), …], method="v2drop", tokens=64)
        tuned.save("mine.json")
        vlm.ask("b.png", "What is it?", method="mine.json")

    It answers the samples with a small grid of settings at one cost, and takes the one whose answers are nearest to the
    full model's. One part of the pictures is used to choose, the other to report. Each setting meets the budget as the
    method does without tuning. For MustDrop, thresholds are scaled, and their cost is measured by asking.

    With `agreement`, it calibrates a second look instead: few tokens first, and the full model if the answer is
    uncertain. With 90 % confidence, at least this share of answers equals the full model's, on average:

        sure = foveate.tune(vlm, samples, agreement=0.98)
        vlm.ask("b.png", "What is it?", method=sure)

    Args:
        agreement: Required share of answers that equal the full model's, word for word, such as 0.98.
        model: A `VLM`.
        samples: (media, question) pairs, or prompts of `VLM.prepare`. Use 45 or more pictures; with fewer than 20 the
            result means little.
        method: A method, a chain, or a text such as "v2drop:metric=cosine". Settings that the text gives stay; of a
            method object, those that differ from their defaults. The default is V2Drop; with `agreement` it is
            VidCom2, at three budgets unless one is given.
        how: One budget: `tokens`, `retention` or `flops` (optional with `agreement`). Also `seed`, `workers`,
            `max_new_tokens`, `cache`, `listener` and others; see `Tuning`.

    Returns:
        The tuned setting. `save` writes it as a file that works wherever a method's name does. With `agreement`, a
        second look, whose file works with `ask`.

    Raises:
        BudgetError: If no setting meets the budget.
        InputError: If answers cannot be cached, or another run uses the same cache file.
        SettingError: If the budget, the samples or the method cannot be tuned.
        UnsupportedError: If the model does not support the method.
    """
    rest: dict[str, Any] = dict(how)
    every = {kind: rest.pop(kind, None) for kind in ("tokens", "retention", "flops")}
    budget = {kind: value for kind, value in every.items() if value is not None}
    if agreement is not None:
        if "flops" in budget:
            raise SettingError(
                "With agreement=, flops is no budget. Leave it out, or give tokens or retention instead."
            )
        settings = agreeing.settings_to_try(agreeing.METHOD if method is None else method, (), **budget)
        texts = [method] if isinstance(method, str) else []
        return agreeing.agree(model, samples, settings, agreement, texts, may_narrow=True, **rest)
    if "tasks" in rest:
        raise SettingError("tasks= needs agreement=, for a table by task. Leave tasks= out, or give both.")
    if len(budget) != 1:
        raise SettingError(f"Give one budget: tokens=, retention= or flops=; got {len(budget)}.")
    return _tune(model, [prompt_of(model, sample) for sample in samples], method or METHOD, budget, rest)


def _tune(
    vlm: VLM, prompts: Sequence[Prompt], asked: Method | str, budget: dict[str, float], how: dict[str, Any]
) -> Tuned:
    """Answer with the grid, choose, and compare; see `tune`."""
    begun = time.monotonic()
    if isinstance(asked, str):
        method, stays = naming.parse(asked), naming.settings_given(asked)
    else:
        method, stays = asked, frozenset(how.get("given", ()))
    ((kind, limit),) = budget.items()
    pictures = by_picture(prompts)
    sizes = Counter(prompt.vision_tokens for prompt in prompts)
    if limit >= (max(sizes) if kind == "tokens" else 1):
        raise SettingError(f"A budget of {_words(kind, limit)} drops nothing. Give a smaller one.")
    to_choose, to_report = split(pictures, how.get("seed", 0))
    listener = how.get("listener") or Listener()
    plan = plan_of(how)
    with open_questioning(vlm, _questions(pictures, to_choose), plan, listener) as choosing:
        before = len(choosing.store)
        reporting = replace(choosing, asked=_questions(pictures, to_report))
        shapes = grid(method, decoder_depth(vlm.model), stays)
        solved = {}
        with listener.stage("Solving settings to the budget", len(shapes)) as advance:
            for shape in shapes:
                with suppress(BudgetError):
                    solved[shape] = _at_budget(shape, kind, limit, choosing, prompts)
                advance(1)
        if not solved:
            raise BudgetError(f"No setting of {name_of(method)} meets {_words(kind, limit)}. Give a larger budget.")
        published, settings = solved.get(shapes[0]), list(dict.fromkeys(solved.values()))
        choosing.ask(settings, "Asking under each setting")
        tuned, best = best_of(choosing, settings, published)
        rows = comparison(reporting, published, best, tuned, sizes.most_common(1)[0][0])
        cost, tokens = mean_spent(choosing, tuned, kind), mean_spent(choosing, tuned, "tokens")
        notes = notes_on(pictures)
        if len(to_choose) < FEWEST:
            notes.append(
                f"Too few pictures are left to choose with ({len(to_choose)}): the published schedule stays; "
                "without one, the best of the grid is taken. Give 9 pictures or more."
            )
        if 1 - cost / limit > UNSPENT:
            notes.append(f"The setting leaves {1 - cost / limit:.1%} of the budget.")
        return Tuned(
            method=tuned,
            chosen="published" if tuned == published else "grid",
            base=method.to_dict(),
            model=vlm.name,
            task=how.get("task", ""),
            budget=budget,
            cost=round(cost, 6),
            tokens=round(tokens, 4),
            pictures=(len(to_choose), len(to_report)),
            questions=len(prompts),
            inputs=digest_of(pictures),
            seed=how.get("seed", 0),
            tried=len(settings),
            runs=len(choosing.store) - before,
            seconds=round(time.monotonic() - begun, 1),
            rows=tuple(rows),
            notes=tuple(notes),
            versions=versions(),
            date=datetime.now(UTC).isoformat(timespec="seconds"),
        )


def _words(kind: str, limit: float) -> str:
    if kind == "tokens":
        return f"{limit:g} tokens"
    return f"{limit:.1%} {kind}"


def _questions(pictures: PromptsByPicture, keys: Iterable[str]) -> list[Asked]:
    """Return all distinct questions about these pictures."""
    asked = [question_of(prompt) for key in keys for prompt in pictures[key]]
    return list({question.key: question for question in asked}.values())


def _at_budget(shape: Method, kind: str, limit: float, choosing: Questioning, prompts: Sequence[Prompt]) -> Method:
    """Return a setting at the budget.

    Raises:
        BudgetError: If it cannot meet the budget.
    """
    if hasattr(shape, "at_scale"):  # its counts depend on the picture: scale thresholds, and measure their cost
        quiet = replace(choosing, listener=Listener())

        def price(setting: Method) -> float:
            quiet.ask([setting], "")
            return mean_spent(quiet, setting, kind)

        scaled: Method | None = largest(shape.at_scale, price, limit, near=NEAR, tries=PASSES)
        if scaled is None:
            raise BudgetError(f"{shape} spends more than {_words(kind, limit)} even with the highest thresholds.")
        return scaled
    if kind == "flops":
        setting = within_flops(shape, limit, costs_of(prompts))
    else:
        setting = shape.with_budget(**{kind: limit})
    for size in sorted({prompt.vision_tokens for prompt in prompts}):
        meet(setting, choosing.vlm.model, size)
    return setting
