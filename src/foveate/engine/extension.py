"""Each layer: what an extension of the engine may do, and when it is called."""

from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor

from foveate._transformers import FeatureCall
from foveate.core.cut import Cut
from foveate.core.patching import Patcher
from foveate.engine.ancestry import Where
from foveate.engine.forward import Forward, LayerCall
from foveate.engine.generating import Generating
from foveate.engine.media_tokens import PromptLengths
from foveate.engine.program import Program
from foveate.engine.rows import Rows
from foveate.engine.runner import LayerRunner
from foveate.engine.trace import Trace
from foveate.families.base import Family


class Context(Protocol):
    """An open `drop` context.

    The memo of towers also joins `vlm.ask` without a method, which has only `family`, `program`, `patches` and `trace`.

    Attributes:
        family, program: The model's family, and where the method's stages run.
        patches: What is put on the model; taken off when the context closes.
        trace: What `drop` yields.
        runner: Runs the decoder's layers.
        generating: The call of `generate` that is running.
        cuda_graphs: Whether these were requested.
    """

    family: Family
    program: Program
    patches: Patcher
    trace: Trace
    runner: LayerRunner
    generating: Generating
    cuda_graphs: bool

    def note_positions(self) -> None:
        """Let every forward know the position ids that the model passes to its rotary embedding."""


class Extension:
    """A feature that the engine's bare way does not know: what any cut needs is done without it.

    Override the functions that the feature needs; the others are not called. What belongs to rows is a column of the
    table of rows (`Rows.put`), what belongs to a cache layer a note (`PrunedLayer.notes`): both follow every cut.
    Extensions share nothing else. They are called in the order of their list.

    Attributes:
        watches_all: Whether `before_layer`, `arguments`, `around_layer` and `after_store` are called at every layer of
            every forward. If not, they may be left out where nothing can be dropped: in prompts of text, and in steps.
    """

    watches_all = True

    @classmethod
    def overrides(cls, name: str) -> bool:
        """Return whether it has a function of its own of this name."""
        return getattr(cls, name) is not getattr(Extension, name)

    def attach(self, context: Context) -> None:
        """Called once, when the context opens. May hook functions of the model by `context.patches`."""

    def encode(self, call: FeatureCall, prompt: PromptLengths) -> tuple[Any, list[Cut | None], list[Cut]] | None:
        """Called when the model encodes pictures. The first extension that returns something has run the call.

        Args:
            call: The call of a `get_*_features`; `call.run()` runs it.
            prompt: Returns the vision tokens of each image of each sample, from the sizes of the features' pieces.

        Returns:
            The call's output, the cut of each image (its rows are in the first places of its features), and which rows
            of the tower ran, if some did not.
        """
        return None

    def enter(self, forward: Forward, hidden: Tensor) -> Tensor:
        """Called behind `begin` when something may be dropped. Returns the decoder's input.

        Args:
            forward: The forward. Rows may be cut here.
            hidden: The input, (samples, columns, width).
        """
        return hidden

    def begin(self, forward: Forward, cache: Any) -> None:
        """Called at every forward, a step included, before the decoder's first layer.

        Args:
            forward: The forward. It knows the samples; nothing was cut yet.
            cache: The cache of earlier turns; None if there is none.
        """

    def before_layer(self, forward: Forward, call: LayerCall) -> None:
        """Called before a layer, and before the stages in front of it. May not change the call's arguments."""

    def after_cut(self, forward: Forward, where: Where, layer: int | None, before: Rows | None) -> None:
        """Called when rows were dropped or merged; `forward.table` has those that are left. May add columns.

        Args:
            forward: The forward.
            where: Where rows were cut; "kv" for a layer's cache after the prompt.
            layer: The layer; None for cuts before the decoder.
            before: The rows before the cut; None: all columns.
        """

    def arguments(self, forward: Forward, call: LayerCall, rows: Rows | None, own: dict[str, Any]) -> None:
        """Called once for layers that are called alike. May put into `own`, by name, what they get.

        What the model passes (`call.kwargs`) is not to be changed. For what is missing in `own`, the engine takes the
        model's tables, ids and other arguments at the rows. The mask is made afterwards, from the rows. If a stage
        reads attention ahead of a layer, this is called for the rows before its cut too.

        Args:
            forward: The forward.
            call: The first of these calls.
            rows: The rows on which the layers run; None: all columns.
            own: What the layers get in place of the model's arguments.
        """

    def around_layer(self, forward: Forward, call: LayerCall) -> AbstractContextManager[Any]:
        """Return a context in which the layer runs on its rows."""
        raise NotImplementedError

    def after_store(self, forward: Forward, call: LayerCall) -> None:
        """Called when a layer has run, and its rows are in its cache, `call.stored`; None if it has none."""

    def rows_for(self, forward: Forward, call: LayerCall, rows: Rows | None) -> Rows | None:
        """Return the rows on which a layer runs, if not `rows`: all that are left. None: what the model passes.

        Called before a layer, after its stages. A model may pass the last rows of a prompt alone.
        """
        return rows

    def end(self, forward: Forward, cache: Any) -> None:
        """Called after the last layer of a prompt.

        Args:
            forward: The forward.
            cache: Holds what the layers stored; None if the model runs without one.
        """
