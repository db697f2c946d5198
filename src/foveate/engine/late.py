"""Attach: the stages before decoder layers, and what they read of layers that have run."""

from collections.abc import Iterator, Sequence

from foveate.contract import follow
from foveate.contract.stages import LayerStage, Stage
from foveate.core.signals import Hidden, Signal

__all__ = ["LateStages", "hidden_note", "ran_note"]


class LateStages:
    """Which stages stand before which decoder layer.

    Args:
        stages: Of a method, in order; those before the decoder are left out.
        entering: Stages on an image's tokens that shall work before layer 0, in front of the others there.

    Attributes:
        cuts: Decoder layers before which tokens may be dropped.
        opening: See `follow.opening`.
    """

    def __init__(self, stages: Sequence[Stage], entering: Sequence[Stage] = ()) -> None:
        self._before: dict[int, tuple[Stage, ...]] = {}
        self.cuts = frozenset(follow.cut_layers(stages))
        if entering:
            self._before[0] = tuple(entering)
            self.cuts |= {0}
        layers = follow.layer_stages(stages)
        for stage in layers:
            self._before[stage.layer] = (*self._before.get(stage.layer, ()), stage)
        self.opening = follow.opening(stages)
        self._remembered, self._signals_while = _looking_back(layers)

    def before(self, layer: int) -> tuple[Stage, ...]:
        """The stages that stand before a decoder layer, in order."""
        return self._before.get(layer, ())

    def remembers(self, layer: int) -> bool:
        """Whether the rows entering a layer are read again later."""
        return layer in self._remembered

    def signals_while(self, layer: int) -> Sequence[Signal]:
        """What queries and keys of a layer are reduced to while it attends, for stages before the next."""
        return self._signals_while.get(layer, ())

    def done_with(self, layer: int) -> Iterator[str]:
        """Names of the notes that nothing reads behind the stages of a layer."""
        for entered, last in self._remembered.items():
            if last == layer:
                yield hidden_note(entered)
        for signal in self.signals_while(layer - 1):
            yield ran_note(signal, layer - 1)


def _looking_back(stages: Sequence[LayerStage]) -> tuple[dict[int, int], dict[int, list[Signal]]]:
    """What stages read of layers that have run.

    Returns:
        The layers whose input is remembered, each with the last layer before which it is read; and the layers whose
        queries and keys are reduced while they attend, each with the signals.
    """
    remembered: dict[int, int] = {}
    reduced: dict[int, list[Signal]] = {}
    for stage in stages:
        for signal in stage.reads:
            if isinstance(signal, Hidden) and signal.back:
                entered = stage.layer - signal.back
                remembered[entered] = max(stage.layer, remembered.get(entered, 0))
            elif signal.of_ran:
                signals = reduced.setdefault(stage.layer - 1, [])
                if signal not in signals:
                    signals.append(signal)
    return remembered, reduced


def hidden_note(layer: int) -> str:
    """The name under which the rows entering a layer are remembered."""
    return f"hidden {layer}"


def ran_note(signal: Signal, layer: int) -> str:
    """The name under which a signal of a layer that ran is remembered."""
    return f"{signal!r} {layer}"
