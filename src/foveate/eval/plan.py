"""What is compared in a run, methods at budgets; and where its answers are kept."""

from dataclasses import dataclass
from pathlib import Path

from foveate.ask.second_look import SecondLook, drops_of
from foveate.contract.method import Method
from foveate.errors import SettingError
from foveate.eval.contenders import USUAL
from foveate.naming import parse
from foveate.plain.spelling import is_second_look

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

    @property
    def seeds(self) -> range:
        """Draws of a method that draws at random."""
        return range(self.draws)

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
