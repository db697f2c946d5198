"""Attach: puts a method onto a model with hooks around the model's functions, and takes it off again.

One forward calls the hooks in this order: `generate` or the model, the core, `get_*_features` (encode), the merger, the
decoder (begin), each of its layers, and the decoder again (finish). Each hook calls the engine file for that part.
"""

import functools
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn
from torch._dynamo import trace_rules

from foveate import naming
from foveate._transformers import FeatureCall, arguments_of, by_name, cache_in, cache_of
from foveate.contract.method import Method
from foveate.contract.stages import Shape, Stage
from foveate.core.tensors import Memo
from foveate.core.turns import Turn
from foveate.engine import guards
from foveate.engine.cache import PrunedLayer, length_of
from foveate.engine.extension import Extension
from foveate.engine.extensions import extensions_for
from foveate.engine.forward import Arrival, Forward
from foveate.engine.generating import Generating
from foveate.engine.hold import Hold, refuse_open
from foveate.engine.hooks import Extensions
from foveate.engine.media_tokens import prompt_lengths, tag, tagged_media
from foveate.engine.prefill import begin, finish
from foveate.engine.program import Program
from foveate.engine.runner import LayerRunner
from foveate.engine.streams import Original, Streams
from foveate.errors import SessionError, SettingError, UnsupportedError
from foveate.families.base import Family
from foveate.families.placing import lengths_of, pieces_of
from foveate.families.retrieval import hand_pages
from foveate.registry import family_for

MODULES = sorted(path.stem for path in Path(__file__).parent.glob("[!_]*"))
UNTRACED = [
    "_transformers",
    "registry",
    "contract",
    "core",
    "families",
    "methods",
    *(f"engine.{name}" for name in MODULES if name != "masks"),
]
"""torch.compile does not trace these modules, because they read host state. It traces the layers they call. It must
trace `engine.masks`, whose functions flex attention's masks call."""

for room in UNTRACED if hasattr(trace_rules, "add") else ():
    trace_rules.add(f"foveate.{room}")

LATEST = 100
"""How many prefills the trace of `apply` keeps, and that of `drop` in training."""

MOST_PROGRAMS = 64
"""How many programs are cached per model, one per method."""

_programs: "weakref.WeakKeyDictionary[nn.Module, Memo]" = weakref.WeakKeyDictionary()


class Untouched(Method):
    """Drops nothing."""

    name = "untouched"

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        return ()


UNTOUCHED = Untouched()


def program_of(method: Method, family: Family, resources: Mapping[str, Any] | None = None) -> Program:
    """Return where a method's stages run on a model: one that was made before, if there are no resources."""
    if resources:
        return Program.on(method, family, resources)
    # Modules around the core, such as PEFT's, do not matter to a program.
    memo, key = _programs.setdefault(family.core, Memo(MOST_PROGRAMS)), (method, type(family), len(family.layers))
    return memo.once(functools.partial(Program.on, method, family), *key)


class Session(Hold):
    """A method on a model: the hooks that run it, until they are all removed. Before `attach`, the model is unchanged.

    Args:
        model, method, retention, tokens, resources, cuda_graphs, extensions: See `drop`.
        door: See `Hold`.

    Attributes:
        runner: Runs the decoder's layers.
        generating: The call of `generate` that is running.
        cuda_graphs: See `drop`.
        idle: Whether the method had nothing to act on so far: no picture, no prefill, no cache that was cut earlier.
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method | str | None,
        retention: float | None = None,
        tokens: float | None = None,
        resources: Mapping[str, Any] | None = None,
        cuda_graphs: bool = False,
        door: Literal["drop", "apply", "ask"] = "drop",
        extensions: Sequence[Extension] = (),
    ) -> None:
        if method is None:
            if not cuda_graphs:
                raise SettingError("method must be a method such as foveate.V2Drop(), or its name; got None.")
            method = UNTOUCHED
        chosen = naming.method_of(method, tokens, retention)
        family = family_for(model)
        refuse_open(model, family)
        guards.refuse_unknown_host(family)
        super().__init__(family, door, program_of(chosen, family, resources))
        self.method: Method = chosen
        self.idle = not isinstance(chosen, Untouched)
        if self.program.encodes is not None and not hasattr(family.core, "get_image_features"):
            raise UnsupportedError(
                f"{type(family.core).__name__} encodes pictures within its forward, so tokens cannot be reduced before "
                "the decoder. Use a method that drops between layers."
            )
        guards.refuse_cuts_behind_lenders(family, self.program.cuts, self.program.reading is not None)
        self._turn = Turn()
        self.runner: LayerRunner
        self.generating, self.cuda_graphs = Generating(), cuda_graphs
        # Set if the previous forward ended in an image or right behind it: its cache, the cache's length then, and
        # whether tokens had been dropped.
        self._image_end: tuple[weakref.ref[Any], int, bool] | None = None
        self._last_only = False
        self._targets: Tensor | None = None
        self._encoding = False
        # What may show the next forward pictures past `get_*_features`, in words: the model's pixels, or a tower's run.
        self._pixels = self._tower_run = ""
        self._steps = threading.RLock()
        """Held while hooks go on or off, and while a forward runs between them."""
        self._ended = self._notes_positions = False
        if extensions and cuda_graphs:
            raise SettingError("A recorded graph calls no extensions: leave cuda_graphs unset, or extensions.")
        self._extensions = Extensions([*extensions_for(self), *extensions, *self.joined()])

    def __reduce__(self) -> NoReturn:
        """Refuse to be copied or pickled with the model."""
        raise SessionError(
            "A model cannot be copied or pickled inside a dropping context: the copy would run the original's layers. "
            "Exit the context or call foveate.remove(model) first."
        )

    def attach(self) -> None:
        """Claim the model, and install all hooks. If that fails or is interrupted, `detach` removes those on so far."""
        with self._steps:
            self.claim()
            self._attach()

    def _attach(self) -> None:
        # It looks at what others have put on the model.
        self.runner = LayerRunner(self.family, self.program, self._turn)
        patches, model, core, text = self.patches, self.family.model, self._core, self.family.text
        if self.family.retriever is not None:
            hand_pages(patches, self.family.retriever)
        if hasattr(model, "init_continuous_batching"):
            patches.wrap(model, "init_continuous_batching", guards.refuse_pages)
        if hasattr(model, "generate"):
            patches.wrap(model, "generate", self.around_generate)
            if self.program.reads_text or self.program.reading is not None:
                patches.wrap(model, "generate", guards.refuse_candidates)
        patches.wrap(core, "forward", self.around_core)
        patches.wrap(model, "forward", self.around_model)
        for modality in ("image", "video"):
            if hasattr(core, f"get_{modality}_features"):
                patches.wrap(core, f"get_{modality}_features", functools.partial(self.around_features, modality))
        self.family.patch_tower(patches)
        for tower in self.family.towers:
            patches.hook(tower, "after", self.after_tower)
        merger = self.family.merger
        if merger is not None:
            patches.wrap(core, merger, self.around_merger)
        if text is not core:
            patches.hook(text, "before", self.before_decoder, with_kwargs=True)
        if self.family.gathers:
            self.runner.begin = self.before_layers
        if self.program.turned:
            self.note_positions()
        for index, layer in enumerate(self.family.layers):
            # Wrap the layer's forward instead of hooking it: other hooks then all see the full-length stream.
            put = patches.wrap(layer, "forward", functools.partial(self.runner.run, index))
            self.runner.wrappers.append(put)
        patches.hook(text, "after", self.after_decoder)
        for extension in self._extensions.attach:
            extension(self)

    def note_positions(self) -> None:
        """Let every forward know the position ids that the model passes to its rotary embedding."""
        if not self._notes_positions:
            self._notes_positions = True
            self.patches.hook(self.family.text.rotary_emb, "before", self.before_rotary, with_kwargs=True)

    def detach(self, waits: bool = True) -> None:
        """Remove all hooks, after the forward of another thread that is running. Calling it again does nothing.

        Args:
            waits: Whether to wait for that forward. If not, it fails.
        """
        holds = self._steps.acquire(blocking=waits)
        try:
            self._ended = True
            self.patches.restore()
            self.release()
        finally:
            if holds:
                self._steps.release()

    def _arriving(self) -> Arrival:
        """Return the forward on its way to the decoder, or start a new one."""
        guards.refuse_beside(self._turn)
        runner = self.runner
        if runner.arrival is None:
            runner.arrival, runner.forward = Arrival(ids=self.generating.ids, targets=self._targets), None
        return runner.arrival

    # -- encode ------------------------------------------------------------------------------------------------

    def around_generate(self, original: Original, *args: Any, **kwargs: Any) -> Any:
        """Wrap `generate`, which encodes images before the model sees their prompt.

        Threads take turns, so that the hooks never mix the forwards of two calls.
        """
        with self._in_turn(generates=True):
            arguments = arguments_of(original, args, kwargs)
            self.generating = generating = Generating.of(arguments, self.family.model.generation_config)
            self.runner.arrival = self.runner.forward = None
            try:
                with self._cleared():
                    output = original(*args, **kwargs)
                if self._ended and not generating.begun:  # later, its cache refuses the next step
                    guards.refuse_after_end()
                self.program.refuse_doubts()
                return output
            finally:
                self.generating = Generating()

    @contextmanager
    def _cleared(self) -> Iterator[None]:
        """Forget the forward that failed: a part of the model may be called alone next."""
        try:
            yield
        except BaseException:
            self.runner.arrival = self.runner.forward = self._targets = None
            self._pixels, self._tower_run, self._last_only = "", "", False
            raise

    def around_model(self, original: Original, *args: Any, **kwargs: Any) -> Any:
        """Note if there are pixels, what the loss predicts, and if only the last column's logits are requested."""
        model = self.family.model
        named = by_name(model, args, kwargs, skip=0) if args else kwargs
        with self._in_turn():
            pixels = [name for name in named if "pixel_values" in name and named[name] is not None]
            self._pixels = f"{type(model).__name__} got {pixels[0]}" if pixels else ""
            asked = named.get("logits_to_keep")
            self._last_only = isinstance(asked, int) and asked == 1
            self._targets = _targets_of(named)
            return original(*args, **kwargs)

    @contextmanager
    def _in_turn(self, generates: bool = False) -> Iterator[None]:
        """Let threads take turns, and the context wait for a forward before it ends.

        Beside a `generate` a forward is refused: its streamer may wait for that thread.
        """

        def gives_up() -> bool:
            return self._ended or (self.generating.runs and not generates)

        if not self._turn.acquire(gives_up=gives_up):
            if self._ended:
                guards.refuse_after_end()
            raise SessionError(
                "Another thread is generating with this model. Call generate, which waits for its turn, or guard the "
                "model's forwards with your own lock."
            )
        try:
            with nullcontext() if generates else self._steps:
                if self._ended:
                    guards.refuse_after_end()
                yield
                if self._ended and not generates:
                    guards.refuse_after_end()
        finally:
            self._turn.release()

    def around_core(self, original: Original, *args: Any, **kwargs: Any) -> Any:
        """Note the forward's arguments, including images that are already encoded."""
        named = by_name(self._core, args, kwargs, skip=0) if args else kwargs
        outputs = named.get("mm_encoder_outputs") or {}
        encoded = {modality: output for modality, output in outputs.items() if output is not None}
        with self._in_turn():
            ids, targets = named.get("input_ids"), self._targets
            self.runner.arrival = Arrival(self._last_only, named, ids, encoded, targets=targets)
            self.runner.forward, self._last_only, self._targets = None, False, None
            with self._cleared():
                return original(*args, **kwargs)

    def around_features(self, modality: str, original: Original, *args: Any, **kwargs: Any) -> Any:
        """Wrap `get_image_features`, which `generate` calls before the decoder runs."""
        with self._in_turn():
            return self._encode(modality, original, args, kwargs)

    def _encode(self, modality: str, original: Original, args: Any, kwargs: Any) -> Any:
        if self._encoding:  # a model may encode a video by calling its images' function
            return original(*args, **kwargs)
        call = FeatureCall(self._core, modality, original, args, kwargs)
        self.idle = False
        arrival = self._arriving()
        self._encoding = True
        try:
            prompt = prompt_lengths(self.family, modality, arrival.ids)
            output, cuts, ran = self._extensions.encode_all(call, prompt)
        finally:
            self._encoding = False
        if hasattr(output, "to_tuple"):  # a plain tuple comes from a user's return_dict=False, never from the model
            arrival.image_lengths[modality] = lengths = prompt(lengths_of(pieces_of(output)))
            tag(self.family, call, output, cuts, lengths, ran)
            arrival.encoded[modality] = output
            self._note_splits(arrival, modality, output)
        return call.answer(output)

    def after_tower(self, tower: nn.Module, args: Any, output: Any) -> None:
        """Note a run of the tower that `get_*_features` did not start."""
        if not self._encoding and self._turn.owner in (None, threading.get_ident()):
            self._tower_run = f"{type(tower).__name__} ran outside get_image_features"

    def _note_splits(self, arrival: Arrival, modality: str, output: Any) -> None:
        """Note whether chunked prefill will cut an image in two, or off the question that the method reads."""
        chunk = self.generating.chunk
        if chunk is None or arrival.ids is None:
            return
        media = tagged_media(output, arrival.image_lengths[modality], self.program, self.family, modality)
        lengths = [image.length for image in media]
        places: Tensor = arrival.ids == self.family.placeholder(modality)  # type: ignore[assignment]
        columns = places.nonzero()[:, 1]
        chunks = columns.cpu() // chunk  # (vision tokens,): the chunk that holds each; columns 3 4 5 by 4 give 0 1 1
        if sum(lengths) == len(chunks):
            ends = {(int(image[0]), int(image[-1])) for image in torch.split(chunks, lengths)}
            last = (arrival.ids.shape[1] - 1) // chunk
            cut_off = self.program.reads_text and any(end < last for _, end in ends)
            self.generating.splits |= cut_off or any(start < end for start, end in ends)

    # -- begin -------------------------------------------------------------------------------------------------

    def around_merger(self, original: Original, *args: Any, **kwargs: Any) -> Any:
        """Note where the vision tokens are. Only the core calls it, in its turn."""
        guards.refuse_beside(self._turn, alone=False)
        arguments = arguments_of(original, args, kwargs)
        placeholders, arrival = original(*args, **kwargs), self._arriving()
        for modality, mask in self.family.vision_masks(placeholders, {**arrival.arguments, **arguments}):
            if mask.dim() == 3:  # (samples, columns, width), constant along the width
                mask = mask[..., 0]
            arrival.placeholders.append((modality, mask))
        return placeholders

    def before_decoder(self, text: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        """Prepare the forward for the decoder's layers."""
        if "write_index" in kwargs:
            guards.refuse_pages()
        if self.family.gathers and kwargs.get("inputs_embeds") is None:
            return None  # the first layer will see what enters
        arrival = self._arriving()
        forward = Forward(self.program, self.family, extensions=self._extensions)
        self.runner.arrival, self.runner.forward = None, forward
        cache, generating = cache_of(kwargs), self.generating
        arrival.splits, arrival.generate_ids = generating.splits, generating.ids
        arrival.unseen, self._tower_run, self._pixels = self._tower_run or self._pixels, "", ""
        if generating.inside and cache is not None and length_of(cache) in generating.inside:
            arrival.goes_on = True
        if self._image_end is not None and cache is not None:
            ended, length, arrival.behind_cut = self._image_end
            arrival.behind_image = ended() is cache and length == length_of(cache)
        self._image_end = None
        idle, self.idle = self.idle, False  # a prompt that is refused has said so
        begin(forward, arrival, kwargs, cache)
        if idle and not forward.is_prefill:  # a later turn may have a context of its own
            self.idle = not any(isinstance(layer, PrunedLayer) for layer in getattr(cache, "layers", ()))
        generating.begun = True
        forward.passes_rows = forward.drops and self.runner.passes_rows(forward, kwargs)
        if forward.is_prefill:
            lost = self.patches.lost()
            if lost is not None:
                guards.refuse_lost_hooks(lost)
            self.program.refuse_doubts()  # of an earlier forward
            if torch.is_grad_enabled():  # training runs for days
                self.trace.most = LATEST
        for extension in self._extensions.begin:
            extension(forward, cache)
        if not forward.drops:
            return None
        hidden = kwargs["inputs_embeds"]
        for enter in self._extensions.enter:
            hidden = enter(forward, hidden)
        return args, {**kwargs, "inputs_embeds": hidden}

    def before_layers(self, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """Prepare at the first layer if the decoder got no embeddings by name. Returns the layer's input."""
        arrival = self._arriving()
        if self.family.merger is None:
            arrival.placeholders = self.family.masks_by_ids({**arrival.arguments, "input_ids": arrival.ids})
        streams: Streams | None = None
        if hidden.dim() == 4 and arrival.ids is not None:
            streams = Streams.of(hidden, (arrival.ids.shape[0], arrival.ids.shape[1]))
            hidden = streams.fold(hidden)
        arguments = {**kwargs, **arrival.arguments, "inputs_embeds": hidden}
        answer = self.before_decoder(self.family.text, (), arguments)
        if answer is not None:
            hidden = answer[1]["inputs_embeds"]
        if streams is None:
            return hidden
        return streams.unfold(hidden)

    def before_rotary(self, rotary: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Note the forward's position ids. The engine's own calls for renumbered rows come later and are ignored."""
        guards.refuse_beside(self._turn)
        forward = self.runner.arrival or self.runner.forward
        if forward is not None and forward.position_ids is None:
            forward.position_ids = kwargs.get("position_ids", args[1] if len(args) > 1 else None)

    # -- finish ------------------------------------------------------------------------------------------------

    def after_decoder(self, text: nn.Module, args: Any, output: Any) -> None:
        """Finish the forward, and release its state."""
        guards.refuse_beside(self._turn)
        forward = self.runner.forward
        self.runner.arrival = self.runner.forward = None
        if forward is None:
            guards.refuse_lost_hooks(f"A hook before {type(text).__name__}")
        if forward.is_prefill or forward.is_prompt:
            finish(forward, cache_in(output))
        if forward.drops and forward.cache is not None and forward.ends_in_vision:
            dropped = sum(forward.table.counts) < sum(map(len, forward.table.entered))
            self._image_end = weakref.ref(forward.cache), length_of(forward.cache), dropped


def _targets_of(arguments: dict[str, Any]) -> Tensor | None:
    """Return what a forward's loss predicts at each column; see `Arrival`."""
    labels, shifted = arguments.get("labels"), arguments.get("shift_labels")
    if not isinstance(shifted, Tensor):
        return labels if isinstance(labels, Tensor) else None
    return torch.nn.functional.pad(shifted, (1, 0), value=-100)[..., :-1]  # column 1 is the target of row 0
