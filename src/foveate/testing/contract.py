"""The contract of every method, tested on bare tensors and on tiny models. Works with and without pytest."""

import itertools
import json
import os
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from foveate import registry
from foveate.contract import follow
from foveate.contract.method import Chain, Method
from foveate.contract.stages import Place, Shape, Stage, ThinStage
from foveate.core import author
from foveate.core.cut import Cut, look_up, note_of
from foveate.core.grid import Grid
from foveate.core.signals import Cells
from foveate.core.views import Arriving, View
from foveate.engine.ancestry import StageRecord
from foveate.engine.doors import drop_or_not
from foveate.engine.program import Program
from foveate.engine.trace import Trace
from foveate.errors import SettingError, UnsupportedError
from foveate.registry import family_for
from foveate.testing.models import DEPTH, FAMILIES, TinyModel, tiny_model, words_of
from foveate.testing.random_views import made_tensors, made_view

DEPTHS = (6, 8, 12, 24, 28, 40)
CLOSE: dict[str, Any] = {"atol": 1e-4, "rtol": 1e-4}


def check_method(*examples: Method, keep_all: Method | None = None) -> None:
    """Run all tests of the contract on examples of a method.

    Args:
        examples: Instances of the method that drop tokens on a decoder of six layers and images of about 25 tokens.
        keep_all: The instance that keeps everything; by default the method with `retention=1.0`.

    Raises:
        AssertionError: If a test fails. The message lists all failures.
    """
    contract = MethodContract()
    contract.examples, contract.keep_all = examples, keep_all  # type: ignore[misc]
    wrong = []
    for name in sorted(dir(contract)):
        if name.startswith("test_"):
            try:
                getattr(contract, name)()
            except Exception as error:  # list every failure
                wrong.append(f"{name.removeprefix('test_').replace('_', ' ')}: {type(error).__name__}: {error}")
    if wrong:
        raise AssertionError("The method breaks its contract.\n" + "\n".join(wrong))


class MethodContract:
    """The contract as a test class. Name a subclass `Test…` and give it `examples`; pytest runs it.

        class TestNorm(MethodContract):
            examples = (Norm(layer=2, keep=0.5),)

    Attributes:
        examples: Instances of the method that drop tokens on a decoder of six layers and images of about 25 tokens.
        keep_all: The instance that keeps everything; None uses the method with `retention=1.0`.
    """

    examples: ClassVar[Sequence[Method]] = ()
    keep_all: ClassVar[Method | None] = None

    def test_there_are_examples(self) -> None:
        """Check that there are examples, without which the other tests test nothing."""
        assert self.examples, "Give examples: settings that drop on six layers and images of about 25 tokens."

    def test_settings_survive_json(self) -> None:
        """Check that the JSON of each example gives back an equal method."""
        for method in self.examples:
            if isinstance(method, Chain):
                read = registry.from_dict
            else:
                read = type(method).from_dict
            again = read(json.loads(json.dumps(method.to_dict())))
            assert again == method, f"{method} came back as {again}"
            assert hash(again) == hash(method)

    def test_stages_are_pure(self) -> None:
        """Check that each stage gives the same result twice, and does not modify its input."""
        for method in self.examples:
            for stage, view, tensors in walk(method):
                before = [tensor.clone() for tensor in tensors]
                first, second = stage.cut(view()), stage.cut(view())
                where = f"{stage} of {method}"
                assert equal_cuts(first, second), f"{where} gives another result when it is called again"
                same = all(torch.equal(a, b) for a, b in zip(before, tensors, strict=True))
                assert same, f"{where} writes into its input tensors"

    def test_stages_count_right(self) -> None:
        """Check that as many rows stay as `keep` or `count` announces, and that each row stands for its own token."""
        for method in self.examples:
            for stage, view, _ in walk(method):
                cut, arriving = stage.cut(view()), view().arriving
                counted, where = stage.left(arriving), f"{stage} of {method}"
                left = arriving.tokens if cut is None else int(cut.count)
                assert counted is None or counted == left, f"{where} announced {counted} rows but kept {left}"
                assert 0 <= left <= arriving.tokens + int(stage.ownerless), f"{where} kept {left} of {arriving.tokens}"
                source = None if cut is None else cut.source[:left]
                if source is not None:
                    owned = source[source >= 0]
                    assert len(set(owned.tolist())) == len(owned), f"{where} takes a token twice"
                    assert bool((source < arriving.tokens).all()), f"{where} takes a token that does not exist"
                    assert stage.ownerless or len(owned) == len(source), f"{where} makes undeclared ownerless rows"

    def test_stages_read_no_values(self) -> None:
        """Warn if Python reads values of tensors in a stage. It is allowed, but on a GPU the host waits each time."""
        for method in self.examples:
            for stage, view, tensors in walk(method):
                _Read.places.clear()
                stage.cut(view(*(tensor.as_subclass(_Read) for tensor in tensors)))
                if _Read.places:
                    places = ", ".join([f"{times} at {place}" for place, times in _Read.places.items()])
                    effect = "On a GPU the host waits for each, in every image or sample; tensor code does not wait."
                    warnings.warn(f"{stage} of {method} reads values of tensors: {places}. {effect}", stacklevel=2)

    def test_the_defaults_fit_decoders_of_every_depth(self) -> None:
        """Check that the method's own layers and counts, with and without a budget, fit decoders of several depths."""
        for kind in dict.fromkeys(type(method) for method in self.examples):
            budget = {"retention": 0.9} if registry.takes_budget(kind) else {}
            for settings, depth in itertools.product(({}, budget), DEPTHS):
                try:
                    kind(**settings).plan(depth, (25,))
                except TypeError:  # it has no defaults
                    break
                except Exception as error:
                    raise AssertionError(f"{kind.__name__} on a decoder of {depth} layers: {error}") from error

    def test_something_leaves(self) -> None:
        """Check that each example drops tokens on at least one tiny model."""
        for method in self.examples:
            models = [tiny for _, tiny in models_for([method])]
            assert models, f"{method} is refused on all of {', '.join(FAMILIES)}"
            stages: list[StageRecord] = []
            reads: list[dict[int, tuple[int, ...]]] = []
            for tiny in models:
                with drop_or_not(tiny.model, method) as trace:
                    tiny.generate(tiny.inputs("titit"), 2)
                stages += trace.stages
                reads += [trace.reads] if trace.reads else []
            left = [stage for stage in stages if stage.after != stage.before]
            assert left or reads, f"{method} drops nothing on images of about 25 tokens and six layers"

    def test_keeping_everything_is_the_untouched_model(self) -> None:
        """Check that keeping everything gives the model's own logits, bit for bit."""
        for method, tiny in models_for((self.keep_all,) if self.keep_all is not None else self._whole()):
            inputs = tiny.inputs(*words_of(tiny.family))
            plain = tiny.generate(inputs)
            with drop_or_not(tiny.model, method):
                kept = tiny.generate(inputs)
            assert same(kept, plain), f"{method} changes {tiny.family}, though it should keep everything"

    def test_a_batch_is_its_samples_alone(self) -> None:
        """Check that the kept tokens and the logits of a sample do not depend on the other samples of the batch."""
        for method, tiny in models_for(self.examples):
            words = words_of(tiny.family)
            with drop_or_not(tiny.model, method) as together:
                out = tiny.generate(tiny.inputs(*words))
            for index, word in enumerate(words):
                with drop_or_not(tiny.model, method) as alone:
                    single = tiny.generate(tiny.inputs(word))
                where = f"{method} on {tiny.family}, sample {word!r}"
                others = differing(kept_of(together, index), kept_of(alone, 0))
                assert not others, f"{where}: other tokens are kept in a batch, {others}"
                for a, b in zip(out.logits, single.logits, strict=True):
                    torch.testing.assert_close(a[index], b[0], msg=f"{where}: other logits in a batch", **CLOSE)

    def test_generation_with_a_cache_is_that_without(self) -> None:
        """Check that generation without a cache gives the same logits.

        Skipped for methods that read text, or that cut or partly read the cache, because these results may differ.
        """
        for method, tiny in models_for(self.examples):
            stages = method.placed(Shape(DEPTH))
            if follow.reads_text(stages) or follow.cached_layers(stages) or follow.reading(stages) is not None:
                continue
            inputs = tiny.inputs("titt", "tit")
            with drop_or_not(tiny.model, method):
                cached, plain = tiny.generate(inputs), tiny.generate(inputs, use_cache=False)
            message = f"{method} on {tiny.family}: other logits without a cache"
            torch.testing.assert_close(torch.cat(cached.logits), torch.cat(plain.logits), msg=message, **CLOSE)

    def test_leaving_restores_the_model(self) -> None:
        """Check that the model is restored after the context."""
        for method, tiny in models_for(self.examples):
            inputs, before = tiny.inputs("titt"), state_of_model(tiny.model)
            plain = tiny.generate(inputs)
            with drop_or_not(tiny.model, method):
                tiny.generate(inputs)
            after = tiny.generate(inputs)
            assert state_of_model(tiny.model) == before, f"{method} leaves something on {tiny.family}"
            assert same(after, plain), f"{method} leaves {tiny.family} changed"

    def _whole(self) -> Sequence[Method]:
        kinds: dict[Any, None] = dict.fromkeys(type(method) for method in self.examples)
        try:
            return [kind(retention=1.0) for kind in kinds]
        except (TypeError, SettingError) as error:
            raise AssertionError(f"Give keep_all, the setting that keeps everything: {error}") from error


def models_for(methods: Sequence[Method]) -> Iterator[tuple[Method, TinyModel]]:
    """Yield each method with each tiny model that does not refuse it."""
    for method, family in itertools.product(methods, FAMILIES):
        tiny = tiny_model(family)
        try:
            Program.on(method, family_for(tiny.model))
        except UnsupportedError:
            continue
        yield method, tiny


def same(first: Any, second: Any) -> bool:
    """Return True if two generations have equal logits, bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(first.logits, second.logits, strict=True))


Kept = Mapping[tuple[str, int | None], Sequence[int]]
"""The kept tokens after each stage, by (place, layer)."""


def kept_of(trace: Trace, sample: int) -> Kept:
    """Return the kept tokens of a sample after each stage that dropped some of it."""
    return {
        (stage.where, stage.layer): stage.kept[sample].tolist()
        for stage in trace.stages
        if stage.before[sample] != stage.after[sample]
    }


def differing(together: Kept, alone: Kept) -> str:
    """Describe the first stage at which a sample keeps other tokens in a batch than alone; "" if there is none.

    Results may differ in the last digits with the batch size, so tied or nearly tied scores can change order.
    """
    for place in dict.fromkeys((*alone, *together)):
        batched, single = set(together.get(place, ())), set(alone.get(place, ()))
        if batched != single or (place in together) != (place in alone):
            if place[1] is None:
                name = place[0]
            else:
                name = f"{place[0]} {place[1]}"
            there, here = sorted(batched - single), sorted(single - batched)
            return (
                f"first at {name}: tokens {there} only there, {here} only alone. "
                "If their scores are equal or differ only by rounding errors, a batch may change their order: compute "
                "them in float32 and round them, or rank in float64; top() keeps the lower index of equal scores."
            )
    return ""


def state_of_model(model: nn.Module) -> dict[str, Any]:
    """Return the attributes and hooks of every module, which a context could leave behind."""
    return {
        name: (
            type(module),
            sorted(vars(module)),
            {k: len(v) for k, v in vars(module).items() if k.endswith("_hooks") and v},
        )
        for name, module in model.named_modules()
    }


READS = {
    "__bool__", "__contains__", "__float__", "__format__", "__index__", "__int__", "allclose", "argwhere", "bincount",
    "cpu", "equal", "item", "masked_select", "nonzero", "numpy", "tolist", "unique", "unique_consecutive",
}  # fmt: skip
"""Functions of a tensor whose result, or its size, Python gets only after the device has computed it."""


class _Read(Tensor):
    """A tensor that counts where Python reads values of it, or of what is computed from it.

    Attributes:
        places: How often, by file and line.
    """

    places: ClassVar[Counter[str]] = Counter()

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        index = args[1] if name in ("__getitem__", "__setitem__") else ()
        parts = index if isinstance(index, tuple) else (index,)
        bounds = [bound for part in parts if isinstance(part, slice) for bound in (part.start, part.stop)]
        masks = [part for part in parts if isinstance(part, Tensor) and part.dtype == torch.bool]
        if name in READS or masks or any(isinstance(bound, Tensor) for bound in bounds):
            stack = traceback.extract_stack()[:-1]
            place = next(frame for frame in reversed(stack) if f"{os.sep}torch{os.sep}" not in frame.filename)
            if place.filename != author.__file__:  # it looks for NaN, and does not wait on a GPU
                cls.places[f"{Path(place.filename).name}:{place.lineno}"] += 1
        return super().__torch_function__(function, types, args, kwargs or {})  # type: ignore[no-untyped-call]


# -- stages on bare tensors ----------------------------------------------------------------------------------------


def walk(method: Method) -> Iterator[tuple[Stage, Callable[..., View], list[Tensor]]]:
    """Run the stages of a method on random tensors, each on the tokens that the stages before it kept.

    Yields:
        The stage, a function that builds its view (from other tensors, if they are given), and its tensors.
    """
    for cls in (True, False):
        grid, tokens = (5, 5), torch.arange(25)
        arriving = Arriving(25, 25, 25, grids=(grid,))
        notes: dict[str, Tensor] = {}
        for stage in method.placed(Shape(DEPTH, cls=cls)):
            if stage.place in (Place.PIXELS, Place.CACHE):
                continue
            if stage.place is Place.LAYER and arriving.grids:
                arriving = replace(arriving, started=arriving.tokens)
                if Cells() not in stage.reads:
                    arriving = replace(arriving, grids=())
            view, tensors = _words_of(stage, grid, tokens, arriving, dict(notes))
            yield stage, view, tensors
            cut = stage.cut(view())
            if cut is None or isinstance(stage, ThinStage):  # the rows of a ThinStage are restored after the tower
                continue
            if cut.stays_whole:
                notes |= cut.notes
                continue
            left = int(cut.count)
            cut = cut.first(left)
            tokens = look_up(cut.source, tokens)
            notes = {name: note_of(note, cut.source, cut.rows) for name, note in notes.items()} | dict(cut.notes)
            arriving = replace(arriving, tokens=left, grids=())
            if not left:
                return


def _words_of(
    stage: Stage, grid: Grid, tokens: Tensor, arriving: Arriving, notes: dict[str, Tensor]
) -> tuple[Callable[..., View], list[Tensor]]:
    """Return a function that builds the view of a stage, and its tensors: signals, then notes."""
    signals = made_tensors(stage, len(tokens), seed=stage.order[0])
    tensors = [*signals.values(), *notes.values()]

    def view(*others: Tensor) -> View:
        values = others or tensors
        by_name = dict(zip(notes, values[len(signals) :], strict=True))
        by_signal = dict(zip(signals, values, strict=False))
        on = grid if arriving.grids else None
        return made_view(stage, tokens, grid=on, arriving=arriving, notes=by_name, tensors=by_signal)

    return view, tensors


def equal_cuts(first: Cut | None, second: Cut | None) -> bool:
    """Return True if two cuts are equal."""
    if first is None or second is None:
        return first is second
    if int(first.count) != int(second.count) or set(first.notes) != set(second.notes):
        return False
    left = int(first.count)
    same = torch.equal(first.source[:left], second.source[:left]) and torch.equal(first.parent, second.parent)
    for a, b in [(first.rows, second.rows), *((first.notes[name], second.notes[name]) for name in first.notes)]:
        same = same and (a is None) == (b is None) and (a is None or b is None or torch.equal(a[:left], b[:left]))
    return same
