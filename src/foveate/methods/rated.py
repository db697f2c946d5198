"""What both versions of SparseVLM share: cuts by the attention of the words that resemble the picture."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, Self

from annotated_types import Ge

from foveate.core.cut import Cut
from foveate.core.rank import spread, top
from foveate.errors import SettingError
from foveate.methods.base import Method, Preset
from foveate.methods.schedule import Budget, as_layers, half_up, scaled_counts
from foveate.methods.settings import Counts, Layers, Positions, Share, Tokens, numbering
from foveate.methods.stages import Arriving, Attention, LayerStage, LayerView, Shape, Signal, Stage

__all__ = ["Rated", "presets"]

LAYERS = (2, 6, 15)  # of 32 decoder layers, in the released code
REFERENCE = 576


class Rated(Method):
    """Cuts behind given decoder layers, each leaving a fixed number of an image's tokens.

    A subclass says which attention rates them (`rated`).

    Attributes:
        pruning_layers: Decoder layers whose attention is read; each cut is before the next layer. By default the code's
            (2, 6, 15) of 32 layers; a budget moves them with the depth.
        targets: Tokens that each cut leaves.
        reference: Vision tokens of the image that these counts are for; scaled for images of another size.
        retention: Instead of the targets: the mean share of an image's tokens that a decoder layer processes. What the
            cuts leave is in the ratio of `usual_targets`.
        tokens: The same as a number of tokens.
        positions: "reindex" renumbers the rows after each cut; "keep" keeps position ids. Families with M-RoPE always
            keep.

    Raises:
        SettingError: If the lists differ in length.
    """

    rated: ClassVar[Attention]
    """The attention that rates tokens."""
    usual_targets: ClassVar[tuple[int, ...]]
    """Default of `targets`: the released setting that the authors call 192."""
    schedule: ClassVar[tuple[str, ...]] = ("targets", "reference")

    pruning_layers: Layers | None = None
    targets: Counts | None = None
    reference: Annotated[int, Ge(1)] = REFERENCE
    retention: Share | None = None
    tokens: Tokens | None = None
    positions: Positions = "keep"

    def check_settings(self) -> None:
        layers = LAYERS if self.pruning_layers is None else self.pruning_layers
        targets = self.usual_targets if self.targets is None else self.targets
        if self.retention is not None or self.tokens is not None:
            Budget(self.tokens, self.retention)
            if self.targets is not None:
                raise SettingError("Give either targets or a budget (retention=, tokens=), not both.")
        else:
            self._set(pruning_layers=layers, targets=targets)
        if len(layers) != len(targets):
            raise SettingError(
                f"pruning_layers and targets must have the same length; got {len(layers)} and {len(targets)}."
            )

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        if self.retention == 1:
            return ()
        return tuple(
            LayerStage(
                layer,
                reads=self._reads(),
                count=partial(self._rows, shape.depth, index),
                choose=partial(self._choose, shape.depth, index),
                unit="image",
                positions=numbering(self.positions),
                flops=partial(self._flops, shape.depth, index),
            )
            for index, layer in enumerate(self._cuts(shape.depth))
        )

    def _reads(self) -> tuple[Signal, ...]:
        return (self.rated,)

    def _choose(self, depth: int, index: int, view: LayerView, count: int | None) -> Cut | None:
        """The tokens that are rated highest; at even steps, where no text can rate them."""
        assert count is not None
        if count >= len(view):
            return None
        if not view.text_behind:
            return Cut.take(spread(len(view), count, device=view.device), len(view))
        return Cut.take(top(view.attention, count), len(view))

    def _rows(self, depth: int, index: int, arriving: Arriving) -> int:
        """Rows that the cut of this index leaves of an image."""
        return min(self._left(depth, index, arriving), arriving.tokens)

    def _left(self, depth: int, index: int, arriving: Arriving) -> int:
        """Tokens that the cut of this index may leave of an image, as given or solved for the budget."""
        if self.targets is None:
            budget, cuts, owner = Budget(self.tokens, self.retention), self._cuts(depth), type(self).__name__
            entered, started = arriving.entered, arriving.started
            return scaled_counts(budget, entered, started, depth, cuts, self.usual_targets, owner)[index]
        target = self.targets[index]
        if target and arriving.entered != self.reference:
            return max(1, half_up(target * arriving.entered / self.reference))
        return target

    def _cuts(self, depth: int) -> tuple[int, ...]:
        """The layers that are the first to process fewer rows."""
        layers = _at_depth(depth) if self.pruning_layers is None else self.pruning_layers
        return tuple(layer + 1 for layer in layers)

    def _flops(self, depth: int, index: int, arriving: Arriving, width: int) -> int:
        """FLOPs of the choice itself, once tokens are rated."""
        return 0

    @classmethod
    def solved(
        cls,
        share: float,
        entered: int | None,
        depth: int,
        /,
        pruning_layers: Sequence[int] | None = None,
        **values: Any,
    ) -> Self:
        """Rows in the ratio of the code's whose mean meets the budget, solved for each image. See `Method.solved`."""
        layers = _at_depth(depth) if pruning_layers is None else as_layers(pruning_layers)
        method = cls(pruning_layers=layers, retention=share, **values)
        method._rows(depth, 0, Arriving.all_of(entered or REFERENCE))  # or a refusal
        return method


def presets(
    kind: type[Rated], targets: Mapping[int, tuple[int, ...]], source: str, **settings: Any
) -> tuple[Preset, ...]:
    """The authors' settings for LLaVA-1.5-7B, by what they call them."""
    made = []
    for budget, counts in targets.items():
        method = kind(pruning_layers=LAYERS, targets=counts, **settings)
        made.append(Preset(f"{kind.name}/llava-1.5-7b/{budget}", method, 32, REFERENCE, source))
    return tuple(made)


def _at_depth(depth: int) -> tuple[int, ...]:
    """2, 6, 15 of 32 layers, and alike at other depths: 2, 5, 13 of 28."""
    if depth < 6:
        raise SettingError(f"A three-cut schedule needs a decoder of six layers or more; got {depth}.")
    first = max(0, min(2, depth // 4 - 1))
    second = max(first + 1, round(6 * depth / 32))
    return first, second, max(second + 1, round(15 * depth / 32))
