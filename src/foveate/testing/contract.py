"""What every method must hold, on bare tensors and on tiny models. Nothing here needs pytest, and it works with it."""

import itertools
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from foveate import registry
from foveate.contract import follow
from foveate.contract.method import Chain, Method
from foveate.contract.stages import Place, Shape, Stage, ThinStage
from foveate.core.cut import Cut, look_up, note_of
from foveate.core.grid import Grid
from foveate.core.signals import Cells
from foveate.core.views import Arriving, View
from foveate.engine.program import Program
from foveate.engine.session import drop_or_not
from foveate.engine.trace import StageRecord, Trace
from foveate.errors import SettingError, UnsupportedError
from foveate.registry import family_for
from foveate.testing.models import DEPTH, FAMILIES, TinyModel, tiny_model, words_of
from foveate.testing.views import made_tensors, made_view

CLOSE: dict[str, Any] = {"atol": 1e-4, "rtol": 1e-4}


def check_method(*examples: Method, keep_all: Method | None = None) -> None:
    """Run the whole contract on settings of a method.

    Args:
        examples: Settings that drop on a decoder of six layers and images of some 25 tokens.
        keep_all: The setting that keeps everything; left out, the method with `retention=1.0`.

    Raises:
        AssertionError: If something does not hold; the message lists all that does not.
    """
    contract = MethodContract()
    contract.examples, contract.keep_all = examples, keep_all  # type: ignore[misc]
    wrong = []
    for name in sorted(dir(contract)):
        if name.startswith("test_"):
            try:
                getattr(contract, name)()
            except Exception as error:  # whatever a method does wrong is listed
                wrong.append(f"{name.removeprefix('test_').replace('_', ' ')}: {type(error).__name__}: {error}")
    if wrong:
        raise AssertionError("The method breaks its contract.\n" + "\n".join(wrong))


class MethodContract:
    """The contract as a class of tests: name a subclass `Test…`, give it `examples`, and pytest runs it.

        class TestNorm(MethodContract):
            examples = (Norm(layer=2, keep=0.5),)

    Attributes:
        examples: Settings that drop on a decoder of six layers and images of some 25 tokens.
        keep_all: The setting that keeps everything; None: the method with `retention=1.0`.
    """

    examples: ClassVar[Sequence[Method]] = ()
    keep_all: ClassVar[Method | None] = None

    def test_there_are_examples(self) -> None:
        """Without any, the rest proves nothing."""
        assert self.examples, "Give examples: settings that drop on six layers and images of some 25 tokens."

    def test_settings_survive_json(self) -> None:
        """A setting is what its JSON says, and nothing changes it."""
        for method in self.examples:
            if isinstance(method, Chain):
                read = registry.from_dict
            else:
                read = type(method).from_dict
            again = read(json.loads(json.dumps(method.to_dict())))
            assert again == method, f"{method} came back as {again}"
            assert hash(again) == hash(method)

    def test_stages_are_pure(self) -> None:
        """A stage answers alike when asked twice, and leaves what it is shown as it was."""
        for method in self.examples:
            for stage, view, tensors in walk(method):
                before = [tensor.clone() for tensor in tensors]
                first, second = stage.cut(view()), stage.cut(view())
                where = f"{stage} of {method}"
                assert alike(first, second), f"{where} answers differently when it is asked again"
                same = all(torch.equal(a, b) for a, b in zip(before, tensors, strict=True))
                assert same, f"{where} writes into what it is shown"

    def test_stages_count_right(self) -> None:
        """As many rows are left as `keep` or `count` says beforehand, and every row stands for a token of its own."""
        for method in self.examples:
            for stage, view, _ in walk(method):
                cut, arriving = stage.cut(view()), view().arriving
                counted, where = stage.left(arriving), f"{stage} of {method}"
                left = arriving.tokens if cut is None else int(cut.count)
                assert counted is None or counted == left, f"{where} counted {counted} and left {left}"
                assert 0 <= left <= arriving.tokens + int(stage.ownerless), f"{where} left {left} of {arriving.tokens}"
                source = None if cut is None else cut.source[:left]
                if source is not None:
                    owned = source[source >= 0]
                    assert len(set(owned.tolist())) == len(owned), f"{where} takes a token twice"
                    assert bool((source < arriving.tokens).all()), f"{where} takes a token that is not there"
                    assert stage.ownerless or len(owned) == len(source), f"{where} makes ownerless rows unsaid"

    def test_stages_run_on_many_samples_at_once(self) -> None:
        """Between layers: under `torch.func.vmap` as one by one, unless `host=True` says that it cannot."""
        for method in self.examples:
            for stage, view, tensors in walk(method):
                between = stage.place in (Place.LAYER, Place.DECODE)
                if stage.host or not between or stage.cut(view()) is None:
                    continue

                def parent(*made: Tensor, stage: Stage = stage, view: Any = view) -> Tensor:
                    cut = stage.cut(view(*made))
                    assert cut is not None
                    return cut.parent + 0

                others = [tensor.flip(0) if tensor.is_floating_point() else tensor for tensor in tensors]
                batch = [torch.stack(pair) for pair in zip(tensors, others, strict=True)]
                try:
                    together = torch.func.vmap(parent)(*batch)
                except RuntimeError as error:
                    raise AssertionError(f"{stage} of {method} asks tensors for their values: {error}") from error
                for index in range(2):
                    single = parent(*(tensor[index] for tensor in batch))
                    assert torch.equal(together[index], single), f"{stage} of {method} differs in a batch"

    def test_flops_are_counted(self) -> None:
        """A warning where nobody has: nothing is wrong, but no table can say what such a method costs."""
        for method in self.examples:
            for stage in follow.in_order(method.stages(Shape(DEPTH))):
                if not stage.is_counted:
                    effect = "so that costs say “not counted”. Give it flops=, see docs/guides/new-method.md."
                    warnings.warn(f"{stage} of {method} does not say what its arithmetic costs, {effect}", stacklevel=2)

    def test_something_leaves(self) -> None:
        """On one of the tiny models at the least, the examples drop."""
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
            assert left or reads, f"{method} drops nothing on images of some 25 tokens and six layers"

    def test_keeping_everything_is_the_untouched_model(self) -> None:
        """Bit for bit."""
        for method, tiny in models_for((self.keep_all,) if self.keep_all is not None else self._whole()):
            inputs = tiny.inputs(*words_of(tiny.family))
            plain = tiny.generate(inputs)
            with drop_or_not(tiny.model, method):
                kept = tiny.generate(inputs)
            assert same(kept, plain), f"{method} changes {tiny.family}, though it should keep everything"

    def test_a_batch_is_its_samples_alone(self) -> None:
        """Who is left, and what is said, does not depend on what else is in the batch."""
        for method, tiny in models_for(self.examples):
            words = words_of(tiny.family)
            with drop_or_not(tiny.model, method) as together:
                out = tiny.generate(tiny.inputs(*words))
            for index, word in enumerate(words):
                with drop_or_not(tiny.model, method) as alone:
                    single = tiny.generate(tiny.inputs(word))
                where = f"{method} on {tiny.family}, sample {word!r}"
                others = differing(kept_of(together, index), kept_of(alone, 0))
                assert not others, f"{where}: others are left in a batch, {others}"
                for a, b in zip(out.logits, single.logits, strict=True):
                    torch.testing.assert_close(a[index], b[0], msg=f"{where}: other logits in a batch", **CLOSE)

    def test_generation_with_a_cache_is_that_without(self) -> None:
        """Where text decides, or the cache itself is cut or not read whole, there is nothing to compare with."""
        for method, tiny in models_for(self.examples):
            stages = follow.in_order(method.stages(Shape(DEPTH)))
            if follow.reads_text(stages) or follow.cached_layers(stages) or follow.reading(stages) is not None:
                continue
            inputs = tiny.inputs("titt", "tit")
            with drop_or_not(tiny.model, method):
                cached, plain = tiny.generate(inputs), tiny.generate(inputs, use_cache=False)
            message = f"{method} on {tiny.family}: other logits without a cache"
            torch.testing.assert_close(torch.cat(cached.logits), torch.cat(plain.logits), msg=message, **CLOSE)

    def test_leaving_restores_the_model(self) -> None:
        """Behind the context the model is itself again."""
        for method, tiny in models_for(self.examples):
            inputs, before = tiny.inputs("titt"), state_of(tiny.model)
            plain = tiny.generate(inputs)
            with drop_or_not(tiny.model, method):
                tiny.generate(inputs)
            after = tiny.generate(inputs)
            assert state_of(tiny.model) == before, f"{method} leaves something on {tiny.family}"
            assert same(after, plain), f"{method} leaves {tiny.family} changed"

    def _whole(self) -> Sequence[Method]:
        kinds: dict[Any, None] = dict.fromkeys(type(method) for method in self.examples)
        try:
            return [kind(retention=1.0) for kind in kinds]
        except (TypeError, SettingError) as error:
            raise AssertionError(f"Give keep_all, the setting that keeps everything: {error}") from error


def models_for(methods: Sequence[Method]) -> Iterator[tuple[Method, TinyModel]]:
    """Each method with each tiny model that does not refuse it."""
    for method, family in itertools.product(methods, FAMILIES):
        tiny = tiny_model(family)
        try:
            Program.on(method, family_for(tiny.model))
        except UnsupportedError:
            continue
        yield method, tiny


def same(first: Any, second: Any) -> bool:
    """Whether two generations have the same logits, bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(first.logits, second.logits, strict=True))


Kept = Mapping[tuple[str, int | None], Sequence[int]]
"""Tokens by the place behind which they are left."""


def kept_of(trace: Trace, sample: int) -> Kept:
    """Who is left of a sample behind each stage at which any of it left."""
    return {
        (stage.where, stage.layer): stage.kept[sample].tolist()
        for stage in trace.stages
        if stage.before[sample] != stage.after[sample]
    }


def differing(together: Kept, alone: Kept) -> str:
    """Where a batch first leaves other tokens than a sample alone, and which; nothing where it leaves the same.

    Numbers may differ in their last digits with the size of a batch, so that scores which tie, or nearly, change order.
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
                "Where their scores tie, or differ by rounding alone, a batch may turn them round: compute them in "
                "float32 and round them, or rank in float64; top() lets the lower index stay of those that are equal."
            )
    return ""


def state_of(model: nn.Module) -> dict[str, Any]:
    """What attaching could leave behind: attributes and hooks of every module."""
    return {
        name: (
            type(module),
            sorted(vars(module)),
            {k: len(v) for k, v in vars(module).items() if k.endswith("_hooks") and v},
        )
        for name, module in model.named_modules()
    }


# -- stages on bare tensors ----------------------------------------------------------------------------------------


def walk(method: Method) -> Iterator[tuple[Stage, Callable[..., View], list[Tensor]]]:
    """Each stage of a method with tokens to look at, as the stages before it have left them.

    With it comes what makes a view for it (of other tensors, if they are given), and its tensors.
    """
    for cls in (True, False):
        grid, tokens = (5, 5), torch.arange(25)
        arriving = Arriving(25, 25, 25, grids=(grid,))
        notes: dict[str, Tensor] = {}
        for stage in follow.in_order(method.stages(Shape(DEPTH, cls=cls))):
            if stage.place in (Place.PIXELS, Place.CACHE):
                continue
            if stage.place is Place.LAYER and arriving.grids:
                arriving = replace(arriving, started=arriving.tokens)
                if Cells() not in stage.reads:
                    arriving = replace(arriving, grids=())
            view, tensors = _words_of(stage, grid, tokens, arriving, dict(notes))
            yield stage, view, tensors
            cut = stage.cut(view())
            if cut is None or isinstance(stage, ThinStage):  # whose rows come back
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
    """What makes a view for a stage, and the tensors it is made of: signals, then notes."""
    signals = made_tensors(stage, len(tokens), seed=stage.order[0])
    tensors = [*signals.values(), *notes.values()]

    def view(*others: Tensor) -> View:
        values = others or tensors
        by_name = dict(zip(notes, values[len(signals) :], strict=True))
        made = dict(zip(signals, values, strict=False))
        on = grid if arriving.grids else None
        return made_view(stage, tokens, grid=on, arriving=arriving, notes=by_name, tensors=made)

    return view, tensors


def alike(first: Cut | None, second: Cut | None) -> bool:
    """Whether two cuts say the same."""
    if first is None or second is None:
        return first is second
    if int(first.count) != int(second.count) or set(first.notes) != set(second.notes):
        return False
    left = int(first.count)
    same = torch.equal(first.source[:left], second.source[:left]) and torch.equal(first.parent, second.parent)
    for a, b in [(first.rows, second.rows), *((first.notes[name], second.notes[name]) for name in first.notes)]:
        same = same and (a is None) == (b is None) and (a is None or b is None or torch.equal(a[:left], b[:left]))
    return same
