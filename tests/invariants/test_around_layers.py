"""Invariant: hooks of a layer see the full stream, and what they change counts. Nothing that they hold is changed.

When layers pass rows on instead, because nobody looks, is in tests/engine/test_passed_on.py.
"""

import copy
import itertools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, ClassVar

import peft
import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from torch import Tensor, nn
from torch._dynamo.utils import counters

import foveate as fv
from foveate._transformers import CACHE_NAMES, cache_in
from foveate.contract import LayerStage, LayerView, Shape
from foveate.contract.method import Method
from foveate.contract.settings import Layers
from foveate.engine.runner import LayerRunner
from foveate.registry import family_for
from foveate.testing.hiding import Oracle
from tests import models, tiny_derived
from tests.invariants.settings import EXAMPLES, one_each, part, words_for
from tests.invariants.test_restore import state
from tests.models import DEPTH, FAMILIES, TINY, batch, cached, generate, made_of, tiny

MOVING = fv.V2Drop(layers=(1, 3), keep=(0.6, 0.5))
EVEN = fv.Uniform(layers=(1, 3), keep=(0.6, 0.5))
"""Drops the same tokens, whatever their states."""
BORROWING, STREAMS = "gemma4_unified_shared", "hy_v4_vl"
MODELS = ("llava", "qwen2_5_vl", "gemma3", "gemma4", "qwen3_5", "qwen3_vl", BORROWING, STREAMS)
"""One kind of positions, three, windows, states in the place of attention, deepstack, borrowed keys, two streams."""
SETUPS = ("llava", "qwen2_5_vl", "gemma3", "qwen3_5")
DEEPSTACK = ("qwen3_vl", "qwen3_vl_moe")
"""Families whose decoder adds features between layers, so that no layer passes its rows on."""
FROM_LAYERS = ("shared_kv_states", "prev_topk_indices")
"""Arguments that an earlier layer wrote, of its rows."""
WORDS = ["titt", "tit"]
CLOSE = 1e-4
"""Of the largest logit."""


def model_and_batch(name: str, words: list[str]) -> tuple[Any, dict[str, Any]]:
    """A model of the test's own, and a batch."""
    if name in TINY:
        return made_of(name, TINY[name].config()), batch(name, words)
    if not tiny_derived.known(name):
        pytest.skip(f"{name} needs a newer transformers")
    model, case = tiny_derived.make(name)
    return model, case.batch(model, words)


def cuts_for(name: str, method: Any) -> Any:
    """The method, without its cut at a layer that borrows keys."""
    if name != BORROWING:
        return method
    return type(method)(layers=method.layers[:1], keep=method.keep[:1])


def columns_of(name: str, inputs: dict[str, Any], tokens: Tensor, sample: int = 0) -> Tensor:
    """The columns of some vision tokens of a sample, (tokens,) int64."""
    image = models.IMAGE if name in TINY else tiny_derived.IMAGE
    return (inputs["input_ids"][sample] == image).nonzero()[:, 0][tokens]


def tokens_without(kept: Tensor, count: int) -> Tensor:
    """Those of `count` tokens that are not kept, ascending int64."""
    tokens = torch.arange(count)
    return tokens[~torch.isin(tokens, kept)]


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in an argument, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list | tuple):
        return []
    return [tensor for entry in value for tensor in tensors_in(entry)]


def assert_same_outputs(first: Any, second: Any) -> None:
    """Ids, logits and caches are equal, bit for bit."""
    assert_same_logits(first, second)
    for layers in zip(cache_in(first).layers, cache_in(second).layers, strict=True):
        one, other = ([state for state in cached(layer) if state is not None] for layer in layers)
        assert len(one) == len(other)  # a layer that borrows keys holds none
        assert all(map(torch.equal, one, other))


def assert_same_logits(first: Any, second: Any) -> None:
    """Ids and logits are equal, bit for bit."""
    assert torch.equal(first.sequences, second.sequences)
    assert all(map(torch.equal, first.logits, second.logits))


# -- what hooks see ------------------------------------------------------------------------------------------------


class Notes:
    """What hooks of every layer see: one entry for each call of a layer.

    Attributes:
        streams: What enters and leaves a layer, (samples, columns, width) each, or with several streams.
        arguments: Its other arguments, by name or place, without the cache.
    """

    def __init__(self, model: Any) -> None:
        self.streams: list[list[Tensor]] = []
        self.arguments: list[dict[str, Any]] = []
        self._handles = []
        for layer in family_for(model).layers:
            self._handles.append(layer.register_forward_pre_hook(self._note_input, with_kwargs=True))
            self._handles.append(layer.register_forward_hook(self._note_output, with_kwargs=True))

    def _note_input(self, layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self.streams.append([args[0]])
        self.arguments.append(self._others(args, kwargs))

    def _note_output(self, layer: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        assert args[0] is self.streams[-1][0]
        before, behind = self.arguments[-1], self._others(args, kwargs)
        assert before.keys() == behind.keys()
        assert all(value is behind[name] for name, value in before.items())
        self.streams[-1].append(output[0] if isinstance(output, tuple) else output)

    def _others(self, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        by_place = {str(place): value for place, value in enumerate(args[1:])}
        return by_place | {name: value for name, value in kwargs.items() if name not in CACHE_NAMES}

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    def shapes(self) -> list[list[torch.Size]]:
        """The shapes of the streams."""
        return [[stream.shape for stream in streams] for streams in self.streams]

    def of_model(self) -> list[list[Tensor]]:
        """For each call the tensors that the model passes: masks, tables, position ids."""
        calls = []
        for arguments in self.arguments:
            calls.append(tensors_in([arguments[name] for name in sorted(arguments) if name not in FROM_LAYERS]))
        return calls

    def shared(self) -> list[list[int]]:
        """Numbers for the tensors that the model passes: the same object has the same number."""
        numbers: dict[int, int] = {}
        return [[numbers.setdefault(id(tensor), len(numbers)) for tensor in call] for call in self.of_model()]


@pytest.mark.parametrize("inside", [False, True], ids=["before", "inside"])
@pytest.mark.parametrize("name", MODELS)
def test_hooks_see_the_full_stream_and_what_the_model_passes(name, inside):
    """In the prefill and in two steps, as without dropping. A dropped column leaves a layer as it entered."""
    model, inputs = model_and_batch(name, WORDS)
    method, depth = cuts_for(name, MOVING), len(family_for(model).layers)
    plain = Notes(model)
    generate(model, inputs, new_tokens=3)
    plain.remove()
    with fv.drop(model, method):
        without_hooks = generate(model, inputs, new_tokens=3)
    notes = None if inside else Notes(model)
    with fv.drop(model, method) as trace:
        notes = notes or Notes(model)
        assert_same_logits(generate(model, inputs, new_tokens=3), without_hooks)
    assert len(notes.streams) == 3 * depth
    assert notes.streams[1][0].shape[:2] == inputs["input_ids"].shape
    assert notes.shapes() == plain.shapes()
    assert [[*arguments] for arguments in notes.arguments] == [[*arguments] for arguments in plain.arguments]
    assert notes.shared() == plain.shared()
    for passed, expected in zip(notes.of_model(), plain.of_model(), strict=True):
        assert all(map(torch.equal, passed, expected))
    assert torch.equal(notes.streams[0][1], plain.streams[0][1])  # of layer 0, before any cut
    for stage in trace.stages:
        for sample, kept in enumerate(stage.kept):
            before, behind = (stream[sample] for stream in notes.streams[stage.layer])
            dropped = columns_of(name, inputs, tokens_without(kept, trace.vision_tokens[sample]), sample)
            kept = columns_of(name, inputs, kept, sample)
            assert len(dropped)
            assert torch.equal(before[dropped], behind[dropped])
            assert (before[kept] != behind[kept]).flatten(1).any(dim=1).all()


@pytest.mark.parametrize(("name", "family"), part(one_each(1), 1, of=6))
def test_hooks_that_only_look_change_no_bit(name, family):
    """What the cache holds for pads may differ: nothing reads it."""
    model, word = tiny(family), [*words_for(name, family), "tvt"][0]
    inputs = batch(family, [word, "tvtt" if "v" in word else "titt"])
    with fv.drop(model, EXAMPLES[name]) as trace:
        without_hooks, record = generate(model, inputs, new_tokens=2), trace.latest.to_dict()
        notes = Notes(model)
        try:
            with_hooks = generate(model, inputs, new_tokens=2)
        finally:
            notes.remove()
    assert_same_logits(with_hooks, without_hooks)
    assert trace.latest.to_dict() == record
    assert {before.shape[:2] for before, _ in notes.streams[: len(notes.streams) // 2]} == {inputs["input_ids"].shape}


# -- what hooks change ---------------------------------------------------------------------------------------------


class AddToColumn:
    """A hook that adds a constant to one column of the stream, in forwards that have the column.

    Args:
        layer: The layer's index.
        when: Whether it runs "before" or "behind" the layer.
        column: The column.
        constant: What it adds.
        in_place: Whether it changes the stream that it gets; else it returns another.
    """

    def __init__(self, layer: int, when: str, column: int, constant: float = 1.0, in_place: bool = False) -> None:
        self._layer, self._when, self._column = layer, when, column
        self._constant, self._in_place = constant, in_place

    def on(self, model: Any) -> Any:
        """Register it, and return its handle."""
        layer = family_for(model).layers[self._layer]
        if self._when == "before":
            return layer.register_forward_pre_hook(lambda _, args: self._change(args))
        return layer.register_forward_hook(lambda _, args, output: self._change(output))

    def _change(self, passed: Any) -> Any:
        stream = passed[0] if isinstance(passed, tuple) else passed
        if stream.shape[1] <= self._column:
            return None
        states = stream if self._in_place else stream.clone()
        states[:, self._column] += self._constant
        if self._in_place:
            return None
        return (states, *passed[1:]) if isinstance(passed, tuple) else states


class OtherArguments:
    """A hook that gives a layer other tables, and a mask that hides one more column from the rows behind it.

    Args:
        layer: The layer's index; no two layers get the same tables.
        column: The column.
    """

    def __init__(self, layer: int, column: int) -> None:
        self._layer, self._column = layer, column

    def on(self, model: Any) -> Any:
        """Register it for one run, and return its handle."""
        self._total = 0
        return family_for(model).layers[self._layer].register_forward_pre_hook(self._change, with_kwargs=True)

    def _change(self, _: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        self._total += args[0].shape[1]
        (cos, sin), mask = kwargs["position_embeddings"], kwargs["attention_mask"]
        kwargs = {**kwargs, "position_embeddings": (cos * (1 - 0.1 * self._layer), sin * 0.1 * self._layer)}
        if mask is None or mask.dim() < 4:  # of a layer that carries a state
            return args, kwargs
        rows, columns = mask.shape[-2:]
        place = self._column - (self._total - columns)  # in a step, a window's mask has only the last columns
        if place >= 0:
            behind = torch.arange(columns)[-rows:] > place
            kwargs["attention_mask"] = mask.clone()
            kwargs["attention_mask"][:, :, behind, place] = torch.finfo(mask.dtype).min
        return args, kwargs


def difference(logits: Tensor, reference: Tensor) -> float:
    """The largest difference, as a share of the largest logit; ids that a model never says have the lowest number."""
    said = reference.abs() < 1e30
    return float((logits - reference)[said].abs().max() / reference[said].abs().max())


def generate_with(model: Any, inputs: dict[str, Any], method: Any, hooks: list[Any]) -> tuple[Any, Tensor, fv.Trace]:
    """What is generated while hooks change something, its logits (tokens, vocabulary), and the trace."""
    with fv.drop(model, method) as trace, ExitStack() as handles:
        for hook in hooks:
            handles.enter_context(hook.on(model))
        output = generate(model, inputs)
    return output, torch.cat(output.logits).float(), trace


def check_against_hidden_columns(name: str, model: Any, inputs: dict[str, Any], method: Any, hooks: list[Any]) -> None:
    """Logits are those of the model without dropping, with the same hooks, and masks that hide what is dropped."""
    family, prompt = family_for(model), inputs["input_ids"].shape[1]
    _, plain, expected = generate_with(model, inputs, method, [])
    output, logits, trace = generate_with(model, inputs, method, hooks)
    hidden = torch.zeros(len(family.layers), 2, prompt, dtype=torch.bool)
    for stage, unchanged in zip(trace.stages, expected.stages, strict=True):
        assert torch.equal(stage.kept[0], unchanged.kept[0])
        dropped = tokens_without(stage.kept[0], trace.vision_tokens[0])
        hidden[stage.layer :, 0, columns_of(name, inputs, dropped)] = True
    oracle = Oracle(family, inputs, output.sequences[0, prompt:-1])
    with ExitStack() as handles:
        for hook in hooks:
            handles.enter_context(hook.on(model))
        reference = oracle.logits(hidden)
    assert difference(logits, reference) < CLOSE
    assert difference(logits[:1], plain[:1]) > 20 * CLOSE


@pytest.mark.parametrize("in_place", [False, True], ids=["returned", "in place"])
@pytest.mark.parametrize("name", MODELS)
def test_a_change_of_a_row_counts_until_the_row_is_dropped(name, in_place):
    model, inputs = model_and_batch(name, ["tit"])
    method = cuts_for(name, EVEN)
    _, plain, trace = generate_with(model, inputs, method, [])
    first, last = trace.stages[0].kept[0], trace.stages[-1].kept[0]
    add = partial(AddToColumn, in_place=in_place)

    dropped = int(columns_of(name, inputs, tokens_without(first, trace.vision_tokens[0]))[0])
    behind_the_cut = [add(1, "before", dropped), add(1, "behind", dropped), add(3, "before", dropped)]
    assert torch.equal(generate_with(model, inputs, method, behind_the_cut)[1], plain)
    check_against_hidden_columns(name, model, inputs, method, [add(0, "before", dropped)])

    kept = int(columns_of(name, inputs, last)[-1])
    check_against_hidden_columns(name, model, inputs, method, [add(1, "before", kept), add(1, "behind", kept)])
    if len(trace.stages) > 1:
        between = int(columns_of(name, inputs, first[~torch.isin(first, last)])[0])
        hooks = [add(1, "behind", between), add(2, "before", between)]
        check_against_hidden_columns(name, model, inputs, method, hooks)


@pytest.mark.parametrize("family", SETUPS)
def test_other_masks_and_tables_of_a_hook_are_read_at_the_rows_of_its_layer(family):
    model, inputs = tiny(family, "eager"), batch(family, ["tit"])
    *_, trace = generate_with(model, inputs, EVEN, [])
    columns = [0, *columns_of(family, inputs, trace.stages[-1].kept[0]).tolist()]
    hooks = [OtherArguments(layer, columns[layer % len(columns)]) for layer in range(2, DEPTH)]
    check_against_hidden_columns(family, model, inputs, EVEN, hooks)


@pytest.mark.parametrize("in_place", [False, True], ids=["returned", "in place"])
@pytest.mark.parametrize(("layer", "when"), [(3, "before"), (2, "behind")])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_5", STREAMS])
def test_a_stage_reads_the_stream_that_a_hook_changed(name, layer, when, in_place):
    """V2Drop keeps the token that a hook moves most, just before the cut."""
    model, inputs = model_and_batch(name, ["tit"])
    *_, trace = generate_with(model, inputs, MOVING, [])
    first, second = (stage.kept[0] for stage in trace.stages)
    token = first[~torch.isin(first, second)][:1]
    hook = AddToColumn(layer, when, int(columns_of(name, inputs, token)), 50.0, in_place)
    *_, trace = generate_with(model, inputs, MOVING, [hook])
    assert torch.equal(trace.stages[0].kept[0], first)
    assert torch.isin(token, trace.stages[1].kept[0])


# -- other wrappers ------------------------------------------------------------------------------------------------


def dispatch(model: Any) -> Any:
    """Give each module an entry in a device map, so that accelerate wraps each layer."""
    core, text = model.model, model.get_decoder()
    (decoder,) = (name for name, module in core.named_children() if module is text)
    places = {f"model.{name}": "cpu" for name, _ in core.named_children() if name != decoder}
    places |= {f"model.{name}": "cpu" for name, _ in core.named_parameters(recurse=False)}
    places |= {f"model.{decoder}.{name}": "cpu" for name, _ in text.named_children() if name != "layers"}
    places |= {f"model.{decoder}.layers.{index}": "cpu" for index in range(len(text.layers))}
    return dispatch_model(model, {**places, "lm_head": "cpu"}, main_device="cpu", force_hooks=True)


def offload(model: Any) -> Any:
    """Keep weights on the meta device between calls."""
    return cpu_offload(model, "cpu")


@pytest.mark.parametrize("spread", [dispatch, offload])
@pytest.mark.parametrize("family", SETUPS)
def test_accelerate_changes_no_bit_of_a_prefill_and_steps(family, spread):
    inputs, model = batch(family, WORDS), spread(copy.deepcopy(tiny(family)))
    assert all(hasattr(layer.mlp.down_proj, "_hf_hook") for layer in family_for(model).layers)
    with fv.drop(model, MOVING) as trace:
        output = generate(model, inputs)
    with fv.drop(tiny(family), MOVING):
        assert_same_outputs(generate(tiny(family), inputs), output)
    assert max(trace.retention) < 0.7


@pytest.mark.parametrize("inside", [False, True], ids=["before", "inside"])
def test_compiled_layers_behind_cuts_answer_as_the_layers_do(inside):
    model, inputs = model_and_batch("llava", WORDS)
    with fv.drop(model, MOVING):
        expected = generate(model, inputs, new_tokens=2)

    def compile_layers() -> None:
        torch._dynamo.reset()
        counters.clear()
        for layer in family_for(model).layers[2:5:2]:
            layer.compile(backend="aot_eager")

    if not inside:
        compile_layers()
    with fv.drop(model, MOVING) as trace:
        if inside:
            compile_layers()
        compiled = generate(model, inputs, new_tokens=2)
    assert counters["stats"]["unique_graphs"] > 2  # dynamo did trace
    assert max(trace.retention) < 0.7
    assert torch.equal(compiled.sequences, expected.sequences)
    torch.testing.assert_close(torch.cat(compiled.logits), torch.cat(expected.logits), atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT still reads it
@pytest.mark.parametrize("inside", [False, True], ids=["before", "inside"])
@pytest.mark.parametrize("family", SETUPS)
def test_an_adapter_put_on_at_any_time_answers_as_its_merged_weights_do(family, inside):
    model, inputs = model_and_batch(family, WORDS)
    with fv.drop(model, MOVING):
        without = generate(model, inputs)
    torch.manual_seed(0)
    targets = r".*language_model.*(q_proj|v_proj|down_proj)"
    lora = peft.LoraConfig(target_modules=targets, init_lora_weights=False, r=2)
    wrapped = model if inside else peft.get_peft_model(model, lora).eval()
    with fv.drop(wrapped, MOVING) as trace:
        if inside:
            wrapped = peft.get_peft_model(model, lora).eval()
        adapted = generate(wrapped, inputs)
    assert max(trace.retention) < 0.7
    merged = wrapped.merge_and_unload().eval()
    with fv.drop(merged, MOVING):
        expected = generate(merged, inputs)
    assert torch.equal(adapted.sequences, expected.sequences)
    torch.testing.assert_close(torch.cat(adapted.logits), torch.cat(expected.logits), atol=5e-4, rtol=1e-3)
    assert (adapted.logits[0] - without.logits[0]).abs().max() > 0.1


# -- what the model passes -----------------------------------------------------------------------------------------


class Copies:
    """Copies of all that the model passes to its layers, which are compared behind each layer and at the end."""

    def __init__(self) -> None:
        self.calls: list[list[tuple[Tensor, int, Tensor]]] = []

    def take(self, layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Copy a call's arguments, but for the cache and what layers write for one another."""
        own = {name: value for name, value in kwargs.items() if name not in (*CACHE_NAMES, *FROM_LAYERS)}
        tensors = tensors_in([args, own])
        self.calls.append([(tensor, tensor._version, tensor.clone()) for tensor in tensors])
        self._passed = args, kwargs, dict(kwargs)

    def compare(self, layer: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        """Compare the last call's arguments with their copies."""
        passed, _, by_name = self._passed
        assert all(value is before for value, before in zip(args, passed, strict=True))
        assert kwargs.keys() == by_name.keys()
        assert all(kwargs[name] is value for name, value in by_name.items())
        self._compare(self.calls[-1])

    def compare_all(self) -> None:
        """Compare all of them."""
        for call in self.calls:
            self._compare(call)

    def _compare(self, call: list[tuple[Tensor, int, Tensor]]) -> None:
        for tensor, version, values in call:
            assert tensor._version == version
            assert torch.equal(tensor, values)


@contextmanager
def copies_by_hooks(model: Any) -> Iterator[Copies]:
    """Hooks take copies, and so layers pass on the full stream."""
    copies = Copies()
    with ExitStack() as handles:
        for layer in family_for(model).layers:
            handles.enter_context(layer.register_forward_pre_hook(copies.take, with_kwargs=True))
            handles.enter_context(layer.register_forward_hook(copies.compare, with_kwargs=True))
        yield copies


@contextmanager
def copies_by_class(model: Any) -> Iterator[Copies]:
    """The layers' classes take copies, which leaves layers free to pass on their rows."""
    copies, call = Copies(), nn.Module.__call__

    def call_between(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
        copies.take(layer, args, kwargs)
        output = call(layer, *args, **kwargs)
        copies.compare(layer, args, kwargs, output)
        return output

    with pytest.MonkeyPatch.context() as patch:
        for kind in {type(layer) for layer in family_for(model).layers}:
            patch.setattr(kind, "__call__", call_between, raising=False)
        yield copies


@pytest.mark.parametrize("take_copies", [copies_by_class, copies_by_hooks])
@pytest.mark.parametrize("name", [*FAMILIES, BORROWING, STREAMS])
def test_nothing_that_the_model_passes_to_a_layer_is_changed(name, take_copies, monkeypatch):
    """Not for one sample, nor for samples that keep as many rows, nor for samples that keep different numbers."""
    answers, original = [], LayerRunner.passes_rows
    monkeypatch.setattr(LayerRunner, "passes_rows", lambda *call: answers.append(original(*call)) or answers[-1])
    # A model of the test's own: where hidden states were asked for, transformers leaves hooks.
    own = tiny.__wrapped__(name) if name in TINY else None
    for words in (["tit"], ["tit", "tit"], WORDS):
        model, inputs = model_and_batch(name, words) if own is None else (own, batch(name, words))
        with fv.drop(model, cuts_for(name, MOVING)) as trace, take_copies(model) as copies:
            generate(model, inputs, new_tokens=2)
        assert max(trace.retention) < 0.8
        assert len(copies.calls) == 2 * len(family_for(model).layers)
        assert answers.pop() == (take_copies is copies_by_class and name in TINY and name not in DEEPSTACK)
        copies.compare_all()


# -- failures ------------------------------------------------------------------------------------------------------


class Failing(Method):
    """Every second token stays at each cut. The last one fails while `fails` is not empty."""

    name = "failing"

    layers: Layers = (1, 3)

    fails: ClassVar[list[bool]] = []

    def stages(self, shape: Shape) -> tuple[LayerStage, ...]:
        return tuple(LayerStage(layer, keep=0.5, score=partial(self._score, layer)) for layer in self.layers)

    def _score(self, layer: int, view: LayerView) -> Tensor:
        if self.fails and layer == self.layers[-1]:
            raise FloatingPointError
        return (view.tokens % 2 == 0).float()


@contextmanager
def fail_in_module(module: nn.Module, number: int = 0) -> Iterator[None]:
    """Let the call of this number fail, counted from 0."""
    calls = itertools.count()

    def fail(*_: Any) -> None:
        if next(calls) == number:
            raise FloatingPointError

    with module.register_forward_pre_hook(fail):
        yield


@contextmanager
def fail_in_stage() -> Iterator[None]:
    """Let the method's last stage fail."""
    Failing.fails.append(True)
    try:
        yield
    finally:
        Failing.fails.clear()


def failures(name: str, model: Any) -> list[tuple[Any, Any]]:
    """Methods, and what fails: the last cut's layer, the last layer, that in a step, a stage, attention being read."""
    method = Failing(layers=(1,)) if name == BORROWING else Failing()
    layers, cut = family_for(model).layers, method.layers[-1]
    cases = [
        (method, partial(fail_in_module, layers[cut].mlp)),
        (method, partial(fail_in_module, layers[-1].mlp)),
        (method, partial(fail_in_module, layers[-1].mlp, 1)),
        (method, fail_in_stage),
    ]
    if name != STREAMS:  # its attention cannot be read
        attention = family_for(model).attentions[cut - 1]
        cases.append((fv.FastV(layers=(cut,), keep=(0.5,)), partial(fail_in_module, attention.o_proj)))
    return cases


def attributes(model: Any) -> list[tuple[nn.Module, str, Any]]:
    """Every attribute of every module in a layer."""
    modules = [module for layer in family_for(model).layers for module in layer.modules()]
    return [(module, name, value) for module in modules for name, value in vars(module).items()]


@pytest.mark.parametrize("name", MODELS)
def test_after_a_failure_the_next_call_is_right_and_the_model_is_restored(name):
    model, inputs = model_and_batch(name, WORDS)
    plain, hooks, before = generate(model, inputs), state(model), attributes(model)
    failure = pytest.raises((FloatingPointError, fv.MethodError))
    for method, fail in failures(name, model):
        with fv.drop(model, method) as trace:
            expected, record = generate(model, inputs), trace.latest.to_dict()
            with failure, fail():
                generate(model, inputs)
            assert_same_outputs(generate(model, inputs), expected)
            assert trace.latest.to_dict() == record
        assert len(trace.history) == 3
        assert max(trace.retention) < 0.9
        with failure, fv.drop(model, method), fail():
            generate(model, inputs)
        assert state(model) == hooks
        for after, known in zip(attributes(model), before, strict=True):
            assert all(one is other for one, other in zip(after, known, strict=True))
        assert_same_outputs(generate(model, inputs), plain)


CUTS = fv.V2Drop(layers=(1, 3), keep=(0.6, 0.5))


def test_a_layer_that_torch_compile_returned_is_served():
    model, inputs = made_of("llava", TINY["llava"].config()), batch("llava", ["tit"])
    with fv.drop(model, CUTS):
        expected = generate(model, inputs)
    layers = model.get_decoder().layers
    layers[2] = torch.compile(layers[2], backend="eager")
    with fv.drop(model, CUTS):
        compiled = generate(model, inputs)
    assert torch.equal(compiled.sequences, expected.sequences)


@pytest.mark.parametrize("name", ["retention", "kv_lengths"])
def test_a_hook_may_read_the_trace_while_the_model_runs(name):
    model, inputs = made_of("llava", TINY["llava"].config()), batch("llava", ["tit"])
    with fv.drop(model, CUTS) as trace:
        generate(model, inputs)
        expected = getattr(trace, name)
        model.get_decoder().layers[2].register_forward_pre_hook(lambda *_: (getattr(trace, name), None)[1])
        generate(model, inputs)
    assert getattr(trace, name) == expected


def test_a_layer_runs_alone_after_a_failure_as_before_it():
    model, inputs = made_of("llava", TINY["llava"].config()), batch("llava", ["tit"])
    layers, calls = model.get_decoder().layers, []
    hook = layers[0].register_forward_pre_hook(lambda _, *call: calls.append(call), with_kwargs=True)
    with torch.no_grad():
        model(**batch("llava", ["ttt"]), use_cache=False)
    hook.remove()
    args, kwargs = calls[0]

    def fail(*_):
        raise FloatingPointError

    with fv.drop(model, CUTS), torch.no_grad():
        expected = layers[0](*args, **kwargs)
        hook = layers[4].mlp.register_forward_pre_hook(fail)
        with pytest.raises(FloatingPointError):
            model(**inputs)
        hook.remove()
        assert torch.equal(layers[0](*args, **kwargs), expected)


def test_the_decoder_runs_alone_after_a_prompt_that_failed_as_before_it():
    model, inputs = made_of("llava", TINY["llava"].config()), batch("llava", ["tit"])
    text = batch("llava", ["ttt"])
    words = model.get_input_embeddings()(text["input_ids"])
    with fv.drop(model, CUTS), torch.no_grad():
        expected = model.get_decoder()(inputs_embeds=words).last_hidden_state
        with pytest.raises(ValueError, match="tokens"):
            model(**text, pixel_values=inputs["pixel_values"])
        assert torch.equal(model.get_decoder()(inputs_embeds=words).last_hidden_state, expected)
        model(**inputs)
