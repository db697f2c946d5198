"""`Plan`: the methods and budgets of a run. `Contender`: one method at one budget, or why it cannot meet it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from foveate._transformers import PreTrainedConfig, PreTrainedModel
from foveate.ask.prompt import Prompt
from foveate.ask.running import drops_of
from foveate.ask.second_look import SecondLook
from foveate.contract.budget import decoder_depth
from foveate.contract.cuts import Cuts
from foveate.contract.method import Method, meet
from foveate.contract.settings import AtLeastOne, Count, Part, Tokens
from foveate.core.fields import check
from foveate.cost.fitting import Costs, within_flops
from foveate.errors import BudgetError, SettingError
from foveate.naming import draws, is_bare, parse, with_seed
from foveate.plain.spelling import is_second_look

USUAL = ("v2drop", "visiondrop", "mustdrop")
"""The default methods."""
SHARES = (1 / 3, 2 / 9, 1 / 9)
"""The default budgets: 192, 128 and 64 of LLaVA-1.5's 576 tokens."""
BASELINES = ("random", "uniform", "averagepool", "resize")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The methods and budgets of a run.

        Plan(methods=["v2drop", "v2drop:metric=l1"], tokens=[192, 64])

    Attributes:
        methods: Names in the grammar of `foveate.naming`, or files of second looks.
        tokens: Budgets: mean vision tokens per decoder layer.
        retention: Budgets as shares in (0, 1]. Without any budget, a plain name runs at a third, two ninths and a
            ninth, and a name with settings runs with these.
        flops: Budgets as shares of the full model's FLOPs to the first token, below 1. Each method gets the largest
            retention that stays within one, on average over the prompts (at most 64 of them).
        draws: Number of seeds for methods that draw at random.
        baselines: Also run Random, Uniform, AveragePool and Resize.
        cache: Folder for the answers; None is foveate/eval in the user's cache folder.
        workers: Number of processes, each with its own model; 0 uses as many as are useful.
        max_new_tokens: Maximum tokens of an answer.

    Raises:
        SettingError: If more than one kind of budget is given, or a setting is unknown or has the wrong type.
        UnknownNameError: If a method, preset or file does not exist.
    """

    methods: tuple[str, ...] = USUAL
    tokens: tuple[Tokens, ...] = ()
    retention: tuple[Part, ...] = ()
    flops: tuple[Part, ...] = ()
    draws: AtLeastOne = 3
    baselines: bool = True
    cache: str | Path | None = None
    workers: Count = 1
    max_new_tokens: AtLeastOne = 64

    def __post_init__(self) -> None:
        check(self, "eval")
        if sum(map(bool, (self.tokens, self.retention, self.flops))) > 1:
            raise SettingError("tokens, retention and flops are budgets: give only one of them.")
        if 1 in self.flops:
            raise SettingError(f"flops must be shares of the full model's, above 0 and below 1; got {self.flops}.")
        own = [name for name, method in self.by_name().items() if not method.open]
        own += [look.name for look in self.second_looks()]
        if self.flops and own:
            raise SettingError(
                f"{', '.join(own)}: it takes no budget or has its own. Leave flops out, or name other methods."
            )

    def by_name(self) -> dict[str, Method]:
        """Return the methods by name, with the baselines last and without second looks."""
        names = dict.fromkeys((*self.methods, *(BASELINES if self.baselines else ())))
        return {name: parse(name) for name in names if not is_second_look(name)}

    def second_looks(self) -> list[SecondLook]:
        """Return the second looks among the methods."""
        looks = [drops_of(name) for name in dict.fromkeys(self.methods) if is_second_look(name)]
        return [look for look in looks if isinstance(look, SecondLook)]

    def shares_of(self, vision_tokens: int | None) -> tuple[float, ...]:
        """Return the budgets as shares of tokens or FLOPs.

        Args:
            vision_tokens: Vision tokens of every prompt; None if they differ.

        Raises:
            SettingError: If a budget in tokens exceeds `vision_tokens`, or prompts differ in them.
        """
        if not self.tokens:
            return self.retention or self.flops or SHARES
        if vision_tokens is None:
            raise SettingError("Prompts differ in vision tokens: give budgets as shares, with retention.")
        if max(self.tokens) > vision_tokens:
            most = max(self.tokens)
            raise SettingError(f"{most:g} tokens are more than the {vision_tokens} vision tokens of a picture.")
        return tuple(tokens / vision_tokens for tokens in self.tokens)


# -- methods at budgets -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contender:
    """A method at a budget, with one draw per seed.

    Attributes:
        name: Its name: "v2drop", "v2drop:metric=l1", or a preset.
        budget: The requested mean over decoder layers: a share of the vision tokens or, above 1, their number. None if
            a preset has its own.
        draws: The methods to run: one, or one per seed; empty if the budget cannot be met.
        infeasible: Why the budget cannot be met.
        floor: The lowest possible share, if known.
        note: What is unusual about the setting.
        sure: The lowest trusted confidence of a second look; None for other contenders.
    """

    name: str
    budget: float | None
    draws: tuple[Method, ...]
    infeasible: str = ""
    floor: float | None = None
    note: str = ""
    sure: float | None = None


def contenders_at(
    methods: Mapping[str, Method],
    model: PreTrainedModel | PreTrainedConfig,
    shares: Sequence[float],
    vision_tokens: int | None,
    seeds: Sequence[int],
    *,
    alike: Prompt | None = None,
    given: bool = True,
    passes_over: type[SettingError] = BudgetError,
    costs: Costs | None = None,
) -> list[Contender]:
    """Make a contender for each method and budget, or one for a method that takes no budget or has its own.

    Args:
        methods: The methods, by name in the grammar of `foveate.naming`.
        model: A model or its config.
        shares: Budgets for methods that take one and have none, as shares of the vision tokens or FLOPs.
        vision_tokens: Vision tokens of each prompt, if all have the same number.
        seeds: Seeds for methods that draw at random.
        alike: One of the prompts, if all have media of one size. Some floors depend on a film's frames.
        given: Whether the user gave the budgets. If not, only plain names get them.
        passes_over: Errors of a method that make it infeasible. Others are raised.
        costs: Costs of prompts, if budgets are shares of the full model's FLOPs; see `within_flops`.
    """
    contenders = []
    for name, method in methods.items():
        offered: Sequence[float | None] = shares if method.open and (given or is_bare(name)) else [None]
        for share in offered:
            try:
                met, note = _meet(method, share, model, vision_tokens, costs)
                if alike is not None and alike.grids is not None:
                    sizes = [sum(rows * columns for rows, columns in frames) for frames in alike.grids]
                    met.plan(decoder_depth(model), sizes, alike.grids, alike.videos)
            except passes_over as error:
                floor = getattr(error, "floor", None)
                contenders.append(Contender(name, share, (), infeasible=str(error), floor=floor))
            else:
                drawn: tuple[Method, ...] = (met,)
                if draws(met):
                    drawn = tuple(with_seed(met, seed) for seed in seeds)
                contenders.append(Contender(name, share, drawn, note=note))
    return contenders


def _meet(
    method: Method,
    share: float | None,
    model: PreTrainedModel | PreTrainedConfig,
    vision_tokens: int | None,
    costs: Costs | None,
) -> tuple[Method, str]:
    """Return a method with a budget that it can meet, and a note on what is unusual about it.

    A method that cuts within the decoder and cannot meet the budget there is cut before the decoder.

    Raises:
        BudgetError: If no schedule meets the budget.
    """
    asked = method
    try:
        if share is not None and costs is not None:
            asked = within_flops(method, share, costs)
        elif share is not None:
            asked = method.with_budget(retention=share)
        meet(asked, model, vision_tokens)
    except BudgetError:
        layers = getattr(method, "layers", ())
        if not method.open or not isinstance(method, Cuts) or method.earliest > 0 or layers is not None:
            raise
        first: dict[str, Any] = {"layers": (0,)}  # a setting of most Cuts
        early, _ = _meet(replace(method, **first), share, model, vision_tokens, costs)
        return early, "cut before the decoder"  # any budget can be met there
    return asked, ""
