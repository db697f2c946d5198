"""What is compared in a run: methods at budgets, and what cannot meet its budget; and where its answers are kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from foveate._transformers import PreTrainedConfig, PreTrainedModel
from foveate.ask.prompt import Prompt
from foveate.ask.running import drops_of
from foveate.ask.second_look import SecondLook
from foveate.contract.budget import decoder_depth
from foveate.contract.cuts import Cuts
from foveate.contract.method import Method, meet
from foveate.cost.fitting import Costs, within_flops
from foveate.errors import BudgetError, SettingError
from foveate.naming import draws, is_bare, parse, with_seed
from foveate.plain.spelling import is_second_look

USUAL = ("v2drop", "visiondrop", "mustdrop")
"""What is compared where nobody names a method."""
SHARES = (1 / 3, 2 / 9, 1 / 9)
"""Budgets where none is given: 192, 128 and 64 of LLaVA-1.5's 576 tokens."""
BASELINES = ("random", "uniform", "averagepool", "resize")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which methods run at which budgets.

        Plan(methods=["v2drop", "v2drop:metric=l1"], tokens=[192, 64])

    Attributes:
        methods: Their names, in the grammar of `foveate.naming`; or files of a second look.
        tokens: Budgets: mean vision tokens that a decoder layer processes.
        retention: The same as shares in (0, 1]. Where neither is given, names alone run at a third, two ninths and a
            ninth, and a name with settings as it says.
        flops: Instead: shares of the full model's FLOPs to the first token, below 1. Each method gets the largest
            retention that stays within one, on average over the prompts, or over 64 of them.
        draws: Seeds of methods that draw at random.
        baselines: Whether Random, Uniform, AveragePool and Resize run too.
        cache: The folder where answers are kept; None is foveate/eval in the user's cache folder.
        workers: Processes, each with a model of its own; 0 takes as many as pay off.
        max_new_tokens: The longest answer.

    Raises:
        SettingError: If budgets are given both ways, or a setting is unknown or of the wrong type.
        UnknownNameError: If there is no such method, preset or file.
    """

    methods: tuple[str, ...] = USUAL
    tokens: tuple[float, ...] = ()
    retention: tuple[float, ...] = ()
    flops: tuple[float, ...] = ()
    draws: int = 3
    baselines: bool = True
    cache: str | Path | None = None
    workers: int = 1
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        if sum(map(bool, (self.tokens, self.retention, self.flops))) > 1:
            raise SettingError("tokens, retention and flops are budgets: give one of them.")
        if self.draws < 1:
            raise SettingError(f"draws must be 1 or more; got {self.draws}.")
        own = [name for name, method in self.by_name().items() if not method.open]
        own += [look.name for look in self.second_looks()]
        if not all(0 < share < 1 for share in self.flops):
            raise SettingError(f"flops must be above 0 and below 1, shares of the full model's; got {self.flops}.")
        if self.flops and own:
            raise SettingError(f"{', '.join(own)}: it takes no budget or has its own. Leave flops out, or name others.")

    @property
    def has_budgets(self) -> bool:
        """Whether somebody gave budgets."""
        return bool(self.tokens or self.retention or self.flops)

    def by_name(self) -> dict[str, Method]:
        """What is compared, by name, the baselines last."""
        names = dict.fromkeys((*self.methods, *(BASELINES if self.baselines else ())))
        return {name: parse(name) for name in names if not is_second_look(name)}

    def second_looks(self) -> list[SecondLook]:
        """Those of the methods that ask the full model again."""
        looks = [drops_of(name) for name in dict.fromkeys(self.methods) if is_second_look(name)]
        return [look for look in looks if isinstance(look, SecondLook)]

    def shares_of(self, vision_tokens: int | None) -> tuple[float, ...]:
        """The budgets as shares, of tokens or FLOPs, where every prompt has so many vision tokens; None: they differ.

        Raises:
            SettingError: If a budget is more than that, or is of tokens where they differ.
        """
        if not self.tokens:
            return self.retention or self.flops or SHARES
        if vision_tokens is None:
            raise SettingError("Prompts differ in vision tokens here: give budgets as shares, with retention.")
        if max(self.tokens) > vision_tokens:
            most = max(self.tokens)
            raise SettingError(f"{most:g} tokens are more than the {vision_tokens} vision tokens of a picture.")
        return tuple(tokens / vision_tokens for tokens in self.tokens)


# -- methods at budgets -------------------------------------------------------------------------------------------


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
    """A contender for each method and budget; one alone for a method that takes none or brings its own.

    Args:
        methods: What is compared, by name in the grammar of `foveate.naming`.
        model: A model or its config.
        shares: Budgets of methods that take one and were not given theirs, of the vision tokens or of FLOPs.
        vision_tokens: Tokens of each picture, where all have the same count.
        seeds: Draws of a method that draws at random.
        alike: One of the prompts, where all have media of one size; some floors depend on a film's frames.
        given: Whether somebody gave the budgets; else only what is a name alone gets them.
        passes_over: Errors of a method that make it infeasible; others are raised.
        costs: What prompts cost, where budgets are shares of the full model's FLOPs; see `within_flops`.
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
    """A method with a share that it can meet, and what is unusual about it.

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
        if not method.open or not isinstance(method, Cuts) or method.first_layer > 0 or layers is not None:
            raise
        early, _ = _meet(replace(method, layers=(0,)), share, model, vision_tokens, costs)  # type: ignore[call-arg]
        return early, "cut before the decoder"  # where it meets any budget
    return asked, ""
