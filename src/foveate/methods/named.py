"""What a text names: methods with their settings, and which of them takes a budget from a command or a call."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from foveate._spelling import pair_of
from foveate.errors import BudgetError, SettingError
from foveate.methods.base import Method
from foveate.methods.chain import Chain
from foveate.methods.schedule import budget_of, decoder_depth
from foveate.methods.scheduled import Scheduled
from foveate.methods.values import listed, settings_of, value_of

__all__ = ["RETENTION", "Member", "Named", "asked_share"]

RETENTION = 1 / 3
"""The budget of a method of which only the name is given: a share, so that it fits any model."""

BUDGET = ("tokens", "retention")


@dataclass(frozen=True)
class Member:
    """One method of a text.

    Attributes:
        kind: The method's class.
        values: The settings that were given.
        ready: The method that the name of a preset or a file stands for; else None.
    """

    kind: type[Method]
    values: Mapping[str, Any] = field(default_factory=dict)
    ready: Method | None = None

    @property
    def scheduled(self) -> bool:
        """Whether its own settings say how many tokens stay."""
        if self.ready is not None:
            return True
        defaults = {field.name: field.default for field in fields(self.kind)}  # type: ignore[arg-type]
        changed = {name for name, value in self.values.items() if value != defaults.get(name)}
        return bool(changed & {*self.kind.schedule, *BUDGET})

    @property
    def open(self) -> bool:
        """Whether it takes a budget: it can, and its own settings have none."""
        if self.scheduled:
            return False
        try:
            self.kind().with_budget(retention=1.0)
        except (SettingError, TypeError):  # it takes no budget, or cannot be made without settings
            return False
        return True

    def check(self) -> None:
        """Refuse values that do not fit a setting, and settings that contradict each other.

        Raises:
            SettingError: If there are such values or settings.
        """
        if self.open:
            self.spending(None, 1.0)
        else:
            self.method()

    def method(self) -> Method:
        """The method with the settings that were given."""
        if self.ready is not None:
            return replace(self.ready, **self.values)  # type: ignore[type-var]
        return self.kind(**self.values)

    def spending(self, tokens: float | None, retention: float | None) -> Method:
        """The method with a budget, which its stages solve for every image they see."""
        usual = self.kind().with_budget(tokens=tokens, retention=retention)
        return replace(usual, **self.values)  # type: ignore[type-var]

    def solved(self, model: Any, **budget: Any) -> Method:
        """The method with its schedule solved for a budget on a model; arguments as for `Method.for_budget`."""
        self.check()
        return self.kind.for_budget(model, **budget, **self.values)


@dataclass(frozen=True)
class Named:
    """What a text says: methods, their settings, and which of them takes a budget.

    Attributes:
        text: As it was written.
        members: The methods; several are a chain.
    """

    text: str
    members: tuple[Member, ...]

    @property
    def settled(self) -> bool:
        """Whether no member takes a budget, as with a preset."""
        return not any(member.open for member in self.members)

    @property
    def bare(self) -> bool:
        """Whether only names were given; a seed does not count, as it decides no schedule."""
        return not any(set(member.values) - {"seed"} for member in self.members)

    @property
    def drawn(self) -> bool:
        """Whether a member drops at random and no seed was given."""
        return any("seed" in settings_of(member.kind) and "seed" not in member.values for member in self.members)

    @property
    def given(self) -> frozenset[str]:
        """The settings that were given; of a chain with the place of their member, "1.metric"."""
        if len(self.members) == 1:
            return frozenset(self.members[0].values)
        return frozenset(f"{place}.{name}" for place, member in enumerate(self.members) for name in member.values)

    def has(self, setting: str) -> bool:
        """Whether a member has such a setting."""
        return bool(self._owners(setting))

    def settings(self) -> list[str]:
        """The settings of all members."""
        return sorted({name for member in self.members for name in settings_of(member.kind)})

    def check(self) -> None:
        """Refuse values that do not fit a setting, and settings that contradict each other.

        Raises:
            SettingError: If there are such values or settings.
        """
        for member in self.members:
            member.check()

    # -- as a method ------------------------------------------------------------------------------------------

    def method(self) -> Method:
        """The method, or the chain of them, with the settings that were given."""
        return _joined([member.method() for member in self.members])

    def refuse_second_budget(self) -> None:
        """Refuse a budget from outside where no member takes one.

        Raises:
            SettingError: If that is so.
        """
        if self.settled:
            raise SettingError(f"{self.text} has its own budget, or takes no budget. Leave tokens= and retention= out.")

    def spending(self, tokens: float | None, retention: float | None) -> Method:
        """The method with a budget, which its last member that takes one solves for every image.

        Raises:
            SettingError: If no member takes a budget, or not exactly one of both is given.
        """
        self.refuse_second_budget()
        last = max(index for index, member in enumerate(self.members) if member.open)
        methods = [member.method() for index, member in enumerate(self.members) if index != last]
        methods.insert(last, self.members[last].spending(tokens, retention))
        return _joined(methods)

    def solved(
        self,
        model: Any,
        *,
        tokens: float | None = None,
        retention: float | None = None,
        vision_tokens: int | None = None,
    ) -> Method:
        """The method with a budget, which goes to the last member that takes one.

        Without a budget, names alone get a third (`RETENTION`), and methods with settings stay as they are. Presets
        stay as they are in any case. The schedule of a single method is solved here, that of a chain by its stages, for
        every image.

        Args:
            model: A model or its config.
            tokens: Mean vision tokens that a decoder layer processes.
            retention: The same as a share of the vision tokens, in (0, 1].
            vision_tokens: The image's token count, if it is known.

        Raises:
            BudgetError: If the budget cannot be met; the message names the floor.
            SettingError: If settings contradict each other, or the budget.
        """
        if not self._spends(tokens, retention):
            method = self.method()
            if vision_tokens is not None and asked_share(method, vision_tokens) is not None:
                _refuse_unmet(method, model, vision_tokens)
            return method
        if tokens is None and retention is None:
            retention = RETENTION
        if len(self.members) == 1:
            return self.members[0].solved(model, tokens=tokens, retention=retention, vision_tokens=vision_tokens)
        _, count = budget_of(model, tokens, retention, vision_tokens)
        chain = self.spending(tokens, retention)
        if count is not None:
            _refuse_unmet(chain, model, count)
        return chain

    def asked(
        self, method: Method, vision_tokens: int, *, tokens: float | None = None, retention: float | None = None
    ) -> float | None:
        """The share of the vision tokens that `solved` was asked for, if any; `method` is what `solved` returned."""
        if not self._spends(tokens, retention):
            return asked_share(method, vision_tokens)
        if tokens is not None:
            return tokens / vision_tokens
        if retention is not None:
            return retention
        return RETENTION

    def _spends(self, tokens: float | None, retention: float | None) -> bool:
        """Whether `solved` gives a budget to a member: the one that was asked for, or a third to names alone."""
        if self.settled:
            return False
        return tokens is not None or retention is not None or self.bare

    def seeded(self, method: Method, seed: int) -> Method:
        """The same with this seed, where a member drops at random and none was given; `method` is what `solved`
        returned."""
        if self.drawn:
            return _with_seed(method, seed)
        return method

    def before_decoder(self) -> "Named | None":
        """The same with a single cut before the decoder, which meets any budget; None where that is not possible."""
        member, *others = self.members
        if others or "layers" in member.values:
            return None
        if not issubclass(member.kind, Scheduled) or member.kind.first_layer > 0:
            return None
        return self.with_values({"layers": (0,)})

    def solved_early(self, model: Any, retention: float | None, vision_tokens: int | None) -> tuple[Method, bool]:
        """As `solved`; and whether a control that cannot meet its budget at its usual layers cuts before the decoder.

        Raises:
            BudgetError: If no schedule meets the budget.
        """
        try:
            return self.solved(model, retention=retention, vision_tokens=vision_tokens), False
        except BudgetError:
            early = None if self.settled else self.before_decoder()
            if early is None:
                raise
            return early.solved(model, retention=retention, vision_tokens=vision_tokens), True

    # -- with more settings -----------------------------------------------------------------------------------

    def with_values(self, values: Mapping[str, Any]) -> "Named":
        """The same with these settings added, each to the member that has it.

        Raises:
            SettingError: If no member or several have such a setting, or it is given already.
        """
        members = list(self.members)
        for name, value in values.items():
            index = self._owner(name)
            member = members[index]
            if name in member.values:
                raise SettingError(f"{name} is given twice.")
            settings = {**member.values, **listed(member.kind, {name: value})}
            members[index] = replace(member, values=settings)
        return replace(self, members=tuple(members))

    def with_pairs(self, pairs: Sequence[str]) -> "Named":
        """The same with these `key=value` texts added; see `with_values`."""
        values: dict[str, Any] = {}
        for pair in pairs:
            name, text = pair_of(pair)
            if name in values:
                raise SettingError(f"{name} is given twice.")
            owner = self.members[self._owner(name)]
            values[name] = value_of(owner.kind, name, text)
        return self.with_values(values)

    def _owners(self, setting: str) -> list[int]:
        """The members that have a setting."""
        return [index for index, member in enumerate(self.members) if setting in settings_of(member.kind)]

    def _owner(self, name: str) -> int:
        """The one member that has a setting."""
        owners = self._owners(name)
        if not owners:
            raise SettingError(f"{self.text} has no setting {name}. It has: {', '.join(self.settings())}.")
        if len(owners) > 1:
            raise SettingError(
                f"Several methods of {self.text} have the setting {name}. Write it after the method's name: "
                f"name:{name}=…."
            )
        return owners[0]


def asked_share(method: Method, vision_tokens: int) -> float | None:
    """The share of the vision tokens that a method's own budget asks for (the last of a chain's); None without one."""
    members: tuple[Method, ...] = (method,)
    if isinstance(method, Chain):
        members = method.members
    for member in reversed(members):
        member = getattr(member, "inner", None) or member
        if share := getattr(member, "retention", None):
            return float(share)
        if tokens := getattr(member, "tokens", None):
            return min(1.0, float(tokens) / vision_tokens)
    return None


def _refuse_unmet(method: Method, model: Any, vision_tokens: int) -> None:
    """Plan a method on an image of this size, which raises where its budget cannot be met."""
    method.plan(decoder_depth(model), (vision_tokens,))


def _with_seed(method: Method, seed: int) -> Method:
    """A method with this seed; of a chain, every member that has one."""
    if isinstance(method, Chain):
        return replace(method, members=tuple(_with_seed(member, seed) for member in method.members))
    if "seed" in settings_of(type(method)):
        return replace(method, seed=seed)  # type: ignore[type-var]
    return method


def _joined(methods: Sequence[Method]) -> Method:
    """A single method as it is, several as a chain."""
    if len(methods) == 1:
        return methods[0]
    return Chain.of(*methods)
