"""What DART and PriorTR share: one cut before a decoder layer, by a share, a number of tokens, or a budget."""

from abc import abstractmethod
from typing import Annotated, Any, ClassVar, Literal, Self

from annotated_types import Ge

from foveate.errors import SettingError
from foveate.methods.base import Method
from foveate.methods.schedule import Budget, left_by_one_cut
from foveate.methods.settings import Count, Share, Tokens
from foveate.methods.stages import Arriving

__all__ = ["OneCut"]


class OneCut(Method):
    """One cut before a decoder layer.

    Attributes:
        layer: The first layer that processes fewer tokens, 1 or more.
        keep: Share of the vision tokens.
        target: Instead of `keep`: a number of tokens.
        retention: Instead: the mean share of an image's tokens that a decoder layer processes.
        tokens: The same as a number of tokens.
        scope: Each "image" or video by itself, or each "frame".

    Raises:
        SettingError: If more than one of `target` and a budget is given.
    """

    schedule: ClassVar[tuple[str, ...]] = ("keep", "target")

    layer: Annotated[int, Ge(1)]
    keep: Share
    target: Count | None = None
    retention: Share | None = None
    tokens: Tokens | None = None
    scope: Literal["image", "frame"] = "image"

    def check_settings(self) -> None:
        if not self._has_budget:
            return
        Budget(self.tokens, self.retention)
        if self.target is not None:
            raise SettingError("Give either target or a budget (retention=, tokens=), not both.")

    @property
    def _has_budget(self) -> bool:
        return self.retention is not None or self.tokens is not None

    @abstractmethod
    def own_count(self, tokens: int) -> int:
        """How many of these tokens stay by `keep` or `target`."""

    def count(self, depth: int, arriving: Arriving) -> int:
        """How many tokens stay, in a decoder of `depth` layers."""
        if not self._has_budget:
            return self.own_count(arriving.tokens)
        budget = Budget(self.tokens, self.retention)
        return left_by_one_cut(budget, arriving.entered, arriving.started, depth, self.layer, type(self).__name__)

    @classmethod
    def solved(cls, share: float, entered: int | None, depth: int, /, **values: Any) -> Self:
        """One cut whose mean meets the budget, solved for each image. See `Method.solved`."""
        method = cls(retention=share, **values)
        if entered:
            method.count(depth, Arriving.all_of(entered))  # or a refusal
        return method
