"""Attach: puts a method onto a model with hooks around the model's functions, and takes it off again.

One forward calls the hooks in this order: `generate` or the model, the core, `get_*_features` (encode), the merger, the
decoder (begin), each of its layers, and the decoder again (finish). Each hook calls the engine file for that part.
"""

import functools
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import torch
from torch import Tensor, nn
from torch._dynamo import trace_rules

from foveate import naming
from foveate._transformers import FeatureCall, arguments_of, by_name, cache_in, cache_of
from foveate.contract.method import BUDGET, Method
from foveate.contract.stages import Shape, Stage
from foveate.core.cut import Cut
from foveate.core.fields import check_call
from foveate.core.patching import Patcher
from foveate.core.tensors import Memo
from foveate.core.turns import Turn
from foveate.engine import guards
from foveate.engine.cache import PrunedLayer, length_of
from foveate.engine.encode import encode_media
from foveate.engine.extension import Extension
from foveate.engine.extensions import extensions_for
from foveate.engine.forward import Arrival, Forward
from foveate.engine.hooks import Extensions
from foveate.engine.media_tokens import prompt_lengths, tag, tagged_media
from foveate.engine.prefill import begin, finish, take_tower_cuts
from foveate.engine.program import Program
from foveate.engine.runner import LayerRunner
from foveate.engine.streams import Original, Streams
from foveate.engine.tower_memo import memos, tower_state
from foveate.engine.trace import Trace
from foveate.errors import SessionError, SettingError, UnsupportedError
from foveate.families.base import Family
from foveate.families.placing import lengths_of, pieces_of
from foveate.families.retrieval import hand_pages
from foveate.plain.upstream import warn_caller
from foveate.registry import family_for, inside

if TYPE_CHECKING:
    from foveate.engine.replays.replayer import Replayer

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

WHOLE = ("retention", 1.0)  # the budget that keeps everything

MOST_ROOM = 1024
"""Room for this many answer tokens is reserved in recorded graphs; longer answers need more."""

MOST_PROGRAMS = 64
"""How many programs are cached per model, one per method."""

NOTHING_RAN = (
    "Nothing was dropped: the model encoded no picture and prefilled no prompt while the method was on it. Run the "
    "whole prompt inside the context, with this model object and in this process."
)

_sessions: "weakref.WeakKeyDictionary[nn.Module, Hold]" = weakref.WeakKeyDictionary()
"""Who holds each core. Entries come by `setdefault` alone, which no thread can interrupt: the first one wins."""
_programs: "weakref.WeakKeyDictionary[nn.Module, Memo]" = weakref.WeakKeyDictionary()


@contextmanager
@check_call("drop")
def drop(
    model: nn.Module,
    method: Method | str | None,
    *,
    retention: float | None = None,
    tokens: float | None = None,
    resources: Mapping[str, Any] | None = None,
    cuda_graphs: bool = False,
    extensions: Sequence[Extension] = (),
) -> Iterator[Trace]:
    """Drop vision tokens while the context is open.

        with foveate.drop(model, foveate.V2Drop()) as trace:
            ids = model.generate(**inputs)
        with foveate.drop(model, "visiondrop+v2drop", retention=0.3) as trace: ...

    The model is restored when the context exits, even after an exception or an interrupt.

    A model can be in one context at a time, and it drops for every thread. In other threads, while the context is open:

    - Dropped too, although they did not ask: `model(**inputs)` and `model.generate` without a context.
    - Wait for each other, in the order in which they came: calls of `generate`, and of the model. Exiting the context
      waits for the forward that is running, not for a `generate`.
    - Refused at once: another `drop` or `apply`, `remove` of this context, `vlm.ask` and `vlm.look`; a call of the
      model beside a running `generate`; a call that the context did not outlast.

    To drop in several threads, call `apply` once, or `vlm.ask` with a method for each question: its calls wait.

    Args:
        model: An unmodified vision-language model of transformers. It may be wrapped by PEFT or torch.compile, or be
            inside a pipeline.
        method: A method with its settings, or its name (`foveate.naming`): "v2drop", a preset, a chain. A name
            alone keeps a third. With `cuda_graphs` it may be None: nothing is dropped.
        retention: A budget: the mean share of the vision tokens that a decoder layer processes. The method (in a chain,
            the last one that takes a budget) computes for every image what stays.
        tokens: That budget as a number of tokens.
        resources: Inputs of the method that no model has, by name, such as CDPruner's "clip". See the method's page.
        cuda_graphs: Run the vision tower, the prefill and each decoding step as a CUDA graph. The second call with a
            layout records its graph and later ones replay it; `trace.graphs` counts both. Experimental.
        extensions: What else is to be done in every forward; see "Write an extension" in the documentation.

    Yields:
        The trace, which every prefill inside the context extends. Its `history` keeps all of them, but only the latest
        100 from the first one that runs with gradients enabled.

    Raises:
        BudgetError: If no image of the model can meet the budget. If images differ in size, raised by the first image
            that cannot.
        SessionError: If the model is inside such a context already, also in another thread.
        SettingError: If the method's cuts do not fit the decoder's depth, the method cannot meet the budget, or the
            model's device has no CUDA graphs.
        UnknownNameError: If there is no method of that name.
        UnsupportedError: If no family supports the model, or the model lacks a signal that the method reads.

    Warns:
        UserWarning: On exit, if the method is weak at as few tokens as an image was left, if a budget left all, or if
            the model encoded no picture and ran no prompt inside, so that nothing can have been dropped.
    """
    session = Session(model, method, retention, tokens, resources, cuda_graphs, extensions=extensions)
    yield from open_session(session, warns=True)


def open_session(session: "Session", warns: bool) -> Iterator[Trace]:
    """Yield the trace of a session while it is attached. Then, if `warns`, warn of what `drop` warns of."""
    try:
        try:
            session.attach()
            yield session.trace
        finally:
            session.detach()
    finally:
        session.detach(waits=False)  # an interrupt may have stopped the first detach halfway
    session.program.refuse_doubts()
    if not warns:
        return
    if session.idle:
        warn_caller(NOTHING_RAN)
    if session.trace.history:
        method, trace = session.method, session.trace
        caution = method.caution(min(trace.history[0].retention)) or _unspent_budget(method, trace)
        if caution is not None:
            warn_caller(caution)


def _unspent_budget(method: Method, trace: Trace) -> str | None:
    """Return why a budget dropped no token in any prefill; None if one did, or if everything was to stay."""
    seen = [prefill for prefill in trace.history if any(prefill.vision_tokens)]
    budgets = [member._not_none(BUDGET) for member in naming.members_of(method)]
    asked = [f"{name}={value:.4g}" for budget in budgets for name, value in budget.items() if (name, value) != WHOLE]
    if not seen or not asked or any(min(prefill.retention) < 1 for prefill in seen):
        return None
    most = max(max(prefill.vision_tokens) for prefill in seen)
    return (
        f"{naming.name_of(method)} dropped no token: it was to leave {asked[0]}, and prompts have up to {most} "
        "vision tokens. Ask for fewer, or take another method: those made for videos may keep pictures whole."
    )


@check_call("apply")
def apply(
    model: nn.Module,
    method: Method | str,
    *,
    retention: float | None = None,
    tokens: float | None = None,
    resources: Mapping[str, Any] | None = None,
    extensions: Sequence[Extension] = (),
) -> Trace:
    """Drop vision tokens from now until `foveate.remove(model)`; see `drop`.

    The trace's `history` keeps only the latest 100 prefills, so a server can run for weeks. `remove` warns if the model
    ran nothing in between, as `drop` does.
    """
    session = Session(model, method, retention, tokens, resources, door="apply", extensions=extensions)
    session.trace.most = LATEST
    try:
        session.attach()
    except BaseException:
        session.detach()
        raise
    return session.trace


def remove(model: nn.Module) -> None:
    """Remove the method that `foveate.apply` put on the model. A forward that is running ends first.

    Raises:
        SessionError: If no method is applied, or what drops is another thread's `drop` or `vlm.ask`.

    Warns:
        UserWarning: If the model ran nothing since, as `drop` does.
    """
    holds = (_sessions.get(module) for module in getattr(inside(model), "modules", tuple)())
    session = next(filter(None, holds), None)
    if not isinstance(session, Session):
        raise SessionError(
            f"Nothing to remove: no method is applied to this {type(model).__name__}. Call foveate.apply first."
        )
    if session.door != "apply" and session.is_elsewhere:
        guards.refuse_removal(session.method)
    try:
        session.detach()
    finally:
        session.detach(waits=False)  # as in `open_session`
    session.program.refuse_doubts()
    if session.idle:
        warn_caller(NOTHING_RAN)


@contextmanager
def drop_or_not(model: nn.Module, method: Method | None, cuda_graphs: bool = False) -> Iterator[Trace]:
    """Open `drop` without warnings. With None, keep others from dropping, and yield an empty trace.

    Raises:
        SessionError: If the model is inside a context already, even one that another thread holds.
    """
    if method is not None or cuda_graphs:
        yield from open_session(Session(model, method, cuda_graphs=cuda_graphs, door="ask"), warns=False)
        return
    family = family_for(model)
    refuse_open(model, family)
    hold = Hold(family, "ask")
    try:
        hold.claim()
        with Patcher() as patches:
            surround_towers(patches, family)
            yield Trace()
    finally:
        hold.release()


class Hold:
    """A claim on a model, from before its first hook is put on until the last is gone. A model has at most one.

    Args:
        family: The model's family.
        door: How it was opened: "drop", "apply", or "ask" for a call of a `VLM`.

    Attributes:
        method: The method; None: the model is kept as it is.
        thread: The thread that opened it.
    """

    method: Method | None = None

    def __init__(self, family: Family, door: Literal["drop", "apply", "ask"]) -> None:
        self.door, self.thread = door, threading.current_thread()
        self._core, self.family = family.core, family

    @property
    def is_elsewhere(self) -> bool:
        """Whether another thread opened it, and may close it."""
        return self.thread is not threading.current_thread() and self.thread.is_alive()

    def claim(self) -> None:
        """Claim the model.

        Raises:
            SessionError: If the model is claimed already.
        """
        holder = _sessions.setdefault(self._core, self)
        if holder is not self:
            guards.refuse_second(holder.method, holder.door, holder.is_elsewhere, self.family.model)

    def release(self) -> None:
        """End the claim. Calling it again does nothing."""
        if _sessions.get(self._core) is self:
            del _sessions[self._core]


def refuse_open(model: nn.Module, family: Family | None = None) -> None:
    """Refuse a model that is inside a context or has no weights.

    Raises:
        SessionError: If it is inside a context.
        UnsupportedError: If it has no weights, or no family supports it.
    """
    core = (family or family_for(model)).core  # `model` may be a pipeline
    weight = next(core.parameters(), None)
    is_meta = weight is not None and weight.device.type == "meta"
    # accelerate's hooks load weights when they are needed.
    if is_meta and not any(hasattr(module, "_hf_hook") for module in core.modules()):
        raise UnsupportedError(
            f"{type(core).__name__} was made without its weights, so it cannot answer. Only the tokens and costs of "
            "its prompts can be counted. Load it with its weights: fv.load(name)."
        )
    holder = _sessions.get(core)
    if holder is not None:
        guards.refuse_second(holder.method, holder.door, holder.is_elsewhere, model)


def surround_towers(
    patches: Patcher, family: Family, program: Program | None = None, replayer: "Replayer | None" = None
) -> None:
    """Put all that stands around a vision tower's call around it, until the patcher restores the tower. From outside:

        memo      answers a call that the tower was shown before
        family    reads grids once for all blocks
        graph     replays a call of a recorded layout
        stages    read, merge or leave out rows between blocks, while `get_*_features` runs
        tower     the model's own forward

    So a graph only gets calls that must run. Memo and graph stand aside for stages inside the tower
    (`Program.in_tower`), which then returns other rows. Stages that make images smaller change the call instead.

    Args:
        patches: The patcher.
        family: The model's family.
        program: The method's stages. None: the model is untouched.
        replayer: Has the recordings. None: no graphs.
    """
    memo, wrappers = memos.get(family.core), [(tower, vars(tower).get("forward")) for tower in family.towers]
    if program is not None:
        family.patch_tower(patches, None if replayer is None else replayer.run_tower)
    if memo is not None and (program is None or not program.in_tower):
        for tower, wrapper in wrappers:
            state = functools.partial(tower_state, tower, wrapper)
            patches.wrap(tower, "forward", functools.partial(memo, state=state))


class Untouched(Method):
    """Drops nothing."""

    name = "untouched"

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        return ()


@dataclass(slots=True)
class Generating:
    """State of the `generate` call that is running. `generate` encodes images before the forward that contains them.

    Attributes:
        runs: Whether a call is running.
        ids: The token ids it will feed, (samples, columns); None: embeddings, or no call is running.
        chunk: Columns per chunk, if it prefills in chunks.
        inside: Cache lengths at which a chunk of its prompt other than the first begins.
        splits: Whether chunks cut an image in two, or off the question that the method reads. A chunk that cuts one in
            two may even end in text between its tokens.
        begun: Whether its first forward has run.
    """

    runs: bool = False
    ids: Tensor | None = None
    chunk: int | None = None
    inside: range = range(0)
    splits: bool = False
    begun: bool = False


class Session(Hold):
    """A method on a model: the hooks that run it, until they are all removed. Before `attach`, the model is unchanged.

    Args:
        model, method, retention, tokens, resources, cuda_graphs, extensions: See `drop`.
        door: See `Hold`.

    Attributes:
        family, program: The model's family, and where the method's stages run.
        patches: What is put on the model; taken off when the context ends.
        method: The method.
        trace: The trace, extended by every prefill.
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
            method = Untouched()
        self.method: Method = naming.method_of(method, tokens, retention)
        self.trace = Trace()
        self.idle = not isinstance(self.method, Untouched)
        family = family_for(model)
        super().__init__(family, door)
        refuse_open(model, family)
        guards.refuse_unknown_host(family)
        if resources:
            self.program = Program.on(self.method, family, resources)
        else:  # modules around the core, such as PEFT's, do not matter to a program
            memo = _programs.setdefault(family.core, Memo(MOST_PROGRAMS))
            key = self.method, type(family), len(family.layers)
            self.program = memo.once(functools.partial(Program.on, self.method, family), *key)
        if self.program.encodes is not None and not hasattr(family.core, "get_image_features"):
            raise UnsupportedError(
                f"{type(family.core).__name__} encodes pictures within its forward, so tokens cannot be reduced before "
                "the decoder. Use a method that drops between layers."
            )
        guards.refuse_cuts_behind_lenders(family, self.program.cuts, self.program.reading is not None)
        self._turn = Turn()
        self._runner: LayerRunner
        self._replayer: Replayer | None = None
        self._cuda_graphs = cuda_graphs
        self.patches = Patcher()
        self._generating = Generating()
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
        self._extensions = Extensions([*extensions_for(self.program, self.family), *extensions])

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
        # These two look at what others have put on the model.
        self._runner = LayerRunner(self.family, self.program, self._turn)
        if self._cuda_graphs:
            from foveate.engine.replays import replayer

            self._replayer = replayer.Replayer(self.family, self.program, self._runner, self.trace)
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
        surround_towers(patches, self.family, self.program, self._replayer)
        for tower in self.family.towers:
            patches.hook(tower, "after", self.after_tower)
        merger = self.family.merger
        if merger is not None:
            patches.wrap(core, merger, self.around_merger)
        if text is not core:
            patches.hook(text, "before", self.before_decoder, with_kwargs=True)
        if self.family.gathers:
            self._runner.begin = self.before_layers
        if self.program.turned:
            self.note_positions()
        for index, layer in enumerate(self.family.layers):
            # Wrap the layer's forward instead of hooking it: other hooks then all see the full-length stream.
            put = patches.wrap(layer, "forward", functools.partial(self._runner.run, index))
            self._runner.wrappers.append(put)
        if self._replayer is not None:
            patches.wrap(text, "forward", self._replayer.run)
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
        runner = self._runner
        if runner.arrival is None:
            runner.arrival, runner.forward = Arrival(ids=self._generating.ids, targets=self._targets), None
        return runner.arrival

    # -- encode ------------------------------------------------------------------------------------------------

    def around_generate(self, original: Original, *args: Any, **kwargs: Any) -> Any:
        """Wrap `generate`, which encodes images before the model sees their prompt.

        Threads take turns, so that the hooks never mix the forwards of two calls.
        """
        with self._in_turn(generates=True):
            arguments = arguments_of(original, args, kwargs)
            config = arguments.get("generation_config") or self.family.model.generation_config
            chunk = arguments.get("prefill_chunk_size", getattr(config, "prefill_chunk_size", None))
            ids, cache = _new_ids(arguments), cache_of(arguments)
            start, end = 0 if cache is None else max(0, length_of(cache)), 0
            if ids is not None:
                end = start + ids.shape[1]
            elif (embeds := arguments.get("inputs_embeds")) is not None:
                end = embeds.shape[1]
            self._generating = generating = Generating(True, ids, chunk, range(start + 1, end))
            if self._replayer is not None:
                self._replayer.end, self._replayer.states = end_of(arguments, config, end), {}
                self._replayer.beams = arguments.get("num_beams") or getattr(config, "num_beams", None) or 1
            self._runner.arrival = self._runner.forward = None
            try:
                with self._cleared():
                    output = original(*args, **kwargs)
                if self._ended and not generating.begun:  # later, its cache refuses the next step
                    guards.refuse_after_end()
                self.program.refuse_doubts()
                return output
            finally:
                self._generating = Generating()
                if self._replayer is not None:
                    self._replayer.end, self._replayer.beams, self._replayer.states = 0, 1, None

    @contextmanager
    def _cleared(self) -> Iterator[None]:
        """Forget the forward that failed: a part of the model may be called alone next."""
        try:
            yield
        except BaseException:
            self._runner.arrival = self._runner.forward = self._targets = None
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
            return self._ended or (self._generating.runs and not generates)

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
            self._runner.arrival = Arrival(self._last_only, named, ids, encoded, targets=targets)
            self._runner.forward, self._last_only, self._targets = None, False, None
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
            if self.program.encodes is None:
                output, cuts, ran = call.run(), list[Cut | None](), list[Cut]()
            else:
                output, cuts, ran = encode_media(self.family, self.program, call, prompt)
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
        chunk = self._generating.chunk
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
            self._generating.splits |= cut_off or any(start < end for start, end in ends)

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
        self._runner.arrival, self._runner.forward = None, forward
        cache, generating = cache_of(kwargs), self._generating
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
        forward.passes_rows = forward.drops and self._runner.passes_rows(forward, kwargs)
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
        return args, {**kwargs, "inputs_embeds": take_tower_cuts(forward, kwargs["inputs_embeds"])}

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
        forward = self._runner.arrival or self._runner.forward
        if forward is not None and forward.position_ids is None:
            forward.position_ids = kwargs.get("position_ids", args[1] if len(args) > 1 else None)

    # -- finish ------------------------------------------------------------------------------------------------

    def after_decoder(self, text: nn.Module, args: Any, output: Any) -> None:
        """Finish the forward, and release its state."""
        guards.refuse_beside(self._turn)
        forward = self._runner.forward
        self._runner.arrival = self._runner.forward = None
        if forward is None:
            guards.refuse_lost_hooks(f"A hook before {type(text).__name__}")
        if forward.is_prefill or forward.is_prompt:
            finish(forward, cache_in(output))
        if forward.drops and forward.cache is not None and forward.ends_in_vision:
            dropped = sum(forward.table.counts) < sum(map(len, forward.table.entered))
            self._image_end = weakref.ref(forward.cache), length_of(forward.cache), dropped


def end_of(arguments: dict[str, Any], config: Any, prompt: int) -> int:
    """Return the most columns that a prompt of `prompt` columns and its answer can have; 0 if there is no limit set."""
    said = {name: arguments.get(name, getattr(config, name, None)) for name in ("max_new_tokens", "max_length")}
    if said["max_new_tokens"] is not None:
        return prompt + min(MOST_ROOM, int(said["max_new_tokens"]))
    return min(prompt + MOST_ROOM, int(said["max_length"] or 0))


def _targets_of(arguments: dict[str, Any]) -> Tensor | None:
    """Return what a forward's loss predicts at each column; see `Arrival`."""
    labels, shifted = arguments.get("labels"), arguments.get("shift_labels")
    if not isinstance(shifted, Tensor):
        return labels if isinstance(labels, Tensor) else None
    return torch.nn.functional.pad(shifted, (1, 0), value=-100)[..., :-1]  # column 1 is the target of row 0


def _new_ids(arguments: dict[str, Any]) -> Tensor | None:
    """Return the ids that `generate` will feed, without those already in its cache."""
    ids = arguments.get("input_ids")
    if ids is None:
        ids = arguments.get("inputs")
    cache, mask = cache_of(arguments), arguments.get("attention_mask")
    if ids is None or cache is None or (mask is not None and mask.shape != ids.shape):
        return ids
    new: Tensor = ids[:, max(0, length_of(cache)) :]
    return new
