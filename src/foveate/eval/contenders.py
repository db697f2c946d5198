"""Methods at budgets: what a run compares, and what cannot meet its budget."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from foveate._transformers import PreTrainedConfig, PreTrainedModel
from foveate.ask.prompt import Prompt
from foveate.contract.budget import Budget, decoder_depth
from foveate.contract.cuts import Cuts
from foveate.contract.method import Method, meet
from foveate.cost.fitting import Costs, within_flops
from foveate.errors import BudgetError, SettingError
from foveate.naming import draws, is_bare, with_seed

USUAL = ("v2drop", "visiondrop", "mustdrop")
"""What is compared where nobody names a method."""


@dataclass(frozen=True)
class Contender:
    """Who competes: a method as it was asked for, at a budget, with as many draws as it has seeds.

    Attributes:
        name: What it is called: "v2drop", "v2drop:metric=l1", or a preset.
        budget: Mean over decoder layers as it was asked for: a share of the vision tokens, or, above 1, a number of
            them; None where a preset brings its own.
        draws: The methods to run: one, or one a seed; none where the budget cannot be reached.
        infeasible: Why it cannot.
        floor: The lowest share that can be, where it is known.
        note: What is unusual about the setting.
        sure: Of a second look, from which confidence on an answer is trusted; None where nothing is asked again.
        spends: What the budget is of, and rivals spend as much of: "spent", vision tokens, or "flops".
    """

    name: str
    budget: float | None
    draws: tuple[Method, ...]
    infeasible: str = ""
    floor: float | None = None
    note: str = ""
    sure: float | None = None
    spends: Literal["spent", "flops"] = "spent"


def contenders_at(
    methods: Mapping[str, Method],
    model: PreTrainedModel | PreTrainedConfig,
    budgets: Sequence[Budget],
    vision_tokens: int | None,
    seeds: Sequence[int],
    *,
    alike: Prompt | None = None,
    given: bool = True,
    passes_over: type[SettingError] = BudgetError,
    costs: Costs | None = None,
) -> list[Contender]:
    """A contender for each method and budget; one alone for a method that takes none or brings its own.

    Args:
        methods: What is compared, by name in the grammar of `foveate.naming`.
        model: A model or its config.
        budgets: Of methods that take one and were not given theirs.
        vision_tokens: Tokens of each picture, where all have the same count.
        seeds: Draws of a method that draws at random.
        alike: One of the prompts, where all have media of one size; some floors depend on a film's frames.
        given: Whether somebody gave the budgets; else only what is a name alone gets them.
        passes_over: Errors of a method that make it infeasible; others are raised.
        costs: What prompts cost, where budgets are shares of the full model's FLOPs; see `within_flops`.
    """
    contenders = []
    spends: Literal["spent", "flops"] = "spent" if costs is None else "flops"
    for name, method in methods.items():
        offered: Sequence[Budget | None] = budgets if method.open and (given or is_bare(name)) else [None]
        for budget in offered:
            asked = None
            if budget is not None:
                asked = budget.tokens or budget.retention
            try:
                met, note = _met(method, budget, model, vision_tokens, costs)
                if alike is not None and alike.grids is not None:
                    sizes = [sum(rows * columns for rows, columns in frames) for frames in alike.grids]
                    met.plan(decoder_depth(model), sizes, alike.grids, alike.videos)
            except passes_over as error:
                floor = getattr(error, "floor", None)
                contenders.append(Contender(name, asked, (), infeasible=str(error), floor=floor, spends=spends))
            else:
                drawn: tuple[Method, ...] = (met,)
                if draws(met):
                    drawn = tuple(with_seed(met, seed) for seed in seeds)
                contenders.append(Contender(name, asked, drawn, note=note, spends=spends))
    return contenders


def _met(
    method: Method,
    budget: Budget | None,
    model: PreTrainedModel | PreTrainedConfig,
    vision_tokens: int | None,
    costs: Costs | None,
) -> tuple[Method, str]:
    """A method with a budget that it can meet, and what is unusual about it.

    Raises:
        BudgetError: If no schedule meets the budget.
    """
    asked = method
    try:
        if budget is not None and costs is not None:
            asked = within_flops(method, budget.retention or 1, costs)
        elif budget is not None:
            asked = method.with_budget(tokens=budget.tokens, retention=budget.retention)
        meet(asked, model, vision_tokens)
    except BudgetError:
        layers = getattr(method, "layers", ())
        if not method.open or not isinstance(method, Cuts) or method.first_layer > 0 or layers is not None:
            raise
        early, _ = _met(replace(method, layers=(0,)), budget, model, vision_tokens, costs)  # type: ignore[call-arg]
        return early, "cut before the decoder"  # where it meets any budget
    return asked, ""
