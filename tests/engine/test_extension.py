"""What extensions are told and may do, who knows them, and what a reader of the bare way reads."""

import ast
import itertools
import re
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import foveate as fv
from foveate import engine
from foveate.engine import extensions
from foveate.engine.extension import Extension
from foveate.engine.hooks import Extensions
from tests.house import code_lines
from tests.models import DEPTH, IMAGE, batch, generate, tiny

ENGINE = Path(engine.__file__).parent
METHOD = fv.Random(layers=(1, 3), keep=(0.6, 0.5))


class Witness(Extension):
    """Notes every call."""

    def __init__(self):
        self.calls = []

    def attach(self, context):
        self.calls.append(("attach",))

    def begin(self, forward, cache):
        self.calls.append(("begin", forward.span))

    def before_layer(self, forward, call):
        self.calls.append(("before_layer", call.index))

    def after_cut(self, forward, where, layer, before):
        assert sum(forward.table.counts) < sum(before.counts)
        self.calls.append(("after_cut", where, layer))

    def arguments(self, forward, call, rows, own):
        self.calls.append(("arguments", None if rows is None else rows.generation))

    @contextmanager
    def around_layer(self, forward, call):
        self.calls.append(("in", call.index))
        try:
            yield
        finally:
            self.calls.append(("out", call.index))

    def after_store(self, forward, call):
        self.calls.append(("after_store", call.index))

    def end(self, forward, cache):
        self.calls.append(("end", forward.span))

    def named(self, name):
        return [call[1:] for call in self.calls if call[0] == name]


def test_an_extension_is_called_in_order():
    model, inputs, witness = tiny("llava"), batch("llava", ["tit"]), Witness()
    span, every = inputs["input_ids"].shape[1], [(index,) for index in range(DEPTH)]
    with fv.drop(model, METHOD, extensions=[witness]):
        generate(model, inputs, new_tokens=2)
    assert witness.calls[0] == ("attach",)
    assert witness.named("begin") == [(span,), (1,)]  # at a step too
    assert witness.named("before_layer")[:DEPTH] == witness.named("after_store")[:DEPTH] == every
    assert witness.named("in")[:DEPTH] == witness.named("out")[:DEPTH] == every
    assert witness.named("after_cut") == [("layer", 1), ("layer", 3)]
    assert witness.named("arguments")[:3] == [(None,), (1,), (2,)]  # once for the layers before, and behind each cut
    assert witness.named("end") == [(span,)]
    first = [call for call in witness.calls if call[0] != "begin"][1:]
    assert first.index(("before_layer", 1)) < first.index(("after_cut", "layer", 1)) < first.index(("in", 1))
    assert first.index(("out", 1)) < first.index(("after_store", 1)) < first.index(("before_layer", 2))


def test_a_context_that_cannot_be_entered_leaves_those_before_it():
    class Refuses(Extension):
        def around_layer(self, forward, call):
            raise FloatingPointError

    witness = Witness()
    with fv.drop(tiny("llava"), METHOD, extensions=[witness, Refuses()]), pytest.raises(FloatingPointError):
        tiny("llava")(**batch("llava", ["tit"]))
    assert witness.named("in") == witness.named("out") == [(0,)]
    assert not witness.named("after_store")


def test_apply_takes_extensions_and_what_is_none_is_refused():
    model, inputs, witness = tiny("llava"), batch("llava", ["tit"]), Witness()
    fv.apply(model, METHOD, extensions=[witness])
    try:
        model(**inputs)
    finally:
        fv.remove(model)
    assert witness.named("end")
    with pytest.raises(fv.SettingError, match="Extension"), fv.drop(model, METHOD, extensions=[Witness]):
        pass


def test_only_what_is_overridden_is_called():
    class Ends(Extension):
        def end(self, forward, cache): ...

    every = vars(Extensions([Extension(), Ends()]))
    assert {name for name, hooks in every.items() if name != "_every" and hooks} == {"end"}


@pytest.mark.parametrize("word", ["tit", "ttt"])
def test_what_an_extension_gives_reaches_every_layer(word):
    """Tables of no rotation: the same as of a model without any, whatever is dropped."""

    class Unturned(Extension):
        def arguments(self, forward, call, rows, own):
            cos, sin = call.kwargs["position_embeddings"]
            pair = torch.ones_like(cos), torch.zeros_like(sin)
            own["position_embeddings"] = pair if rows is None else rows.pick(pair)

    model, inputs = tiny("llava"), batch("llava", [word])
    with fv.drop(model, METHOD, extensions=[Unturned()]):
        answer = generate(model, inputs)

    def unturned(module, args, tables):
        return torch.ones_like(tables[0]), torch.zeros_like(tables[1])

    handle = model.get_decoder().rotary_emb.register_forward_hook(unturned)
    try:
        with fv.drop(model, METHOD):
            expected = generate(model, inputs)
    finally:
        handle.remove()
    assert torch.equal(torch.cat(answer.logits), torch.cat(expected.logits))


class Weights(Extension):
    """A weight of every vision row that attention uses: log 2 from layer 1 on."""

    def after_cut(self, forward, where, layer, before):
        table = forward.table
        if layer == 1:
            values = {member: torch.full((count,), 2.0).log() for member, count in enumerate(table.counts) if count}
            table.put_vision("bias", values)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_weight_of_rows_is_one_class(attention):
    """Attention weighs the rows that are left, in later layers and steps, as by a mask with these weights."""
    model, inputs = tiny("llava", attention), batch("llava", ["titt"])
    vision = (inputs["input_ids"][0] == IMAGE).nonzero()[:, 0]
    with fv.drop(model, fv.Random(layers=(1,), keep=(0.6,)), extensions=[Weights()]) as trace:
        weighed = generate(model, inputs, new_tokens=3)
    kept, layers = vision[trace.stages[0].kept[0]], model.get_decoder().layers

    def mask(module, args, kwargs):
        rows, columns = args[0].shape[1], inputs["input_ids"].shape[1] + 2
        seen = torch.full((rows, columns), float("-inf")).triu(columns - rows + 1)
        dropped = torch.ones(columns, dtype=torch.bool)
        dropped[kept] = dropped[inputs["input_ids"].shape[1] :] = False
        dropped[: len(inputs["input_ids"][0])][inputs["input_ids"][0] != IMAGE] = False
        seen[:, dropped] = float("-inf")
        seen[:, kept] += torch.tensor(2.0).log()
        return args, {**kwargs, "attention_mask": seen[None, None]}

    tokens = weighed.sequences[:, inputs["input_ids"].shape[1] : -1]
    whole = {**inputs, "input_ids": torch.cat((inputs["input_ids"], tokens), 1)}
    whole["attention_mask"] = torch.ones_like(whole["input_ids"])
    handles = [layer.register_forward_pre_hook(mask, with_kwargs=True) for layer in layers[1:]]
    try:
        with torch.no_grad():
            logits = model(**whole).logits[0, -3:]
    finally:
        for handle in handles:
            handle.remove()
    torch.testing.assert_close(torch.cat(weighed.logits), logits, atol=1e-5, rtol=1e-5)


def test_the_guide_counts_the_rows_of_experts():
    """In a ragged batch: as many as layers ran on, times the experts a row."""
    page = Path(__file__).parents[2] / "docs" / "guides" / "write-extension.md"
    source = re.search(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)[1]
    assert len(source.splitlines()) <= 26
    exec(source, names := {})
    model, inputs, seen = tiny("qwen3_vl_moe"), batch("qwen3_vl_moe", ["titt", "tit"]), names["ExpertRows"]()
    with fv.drop(model, METHOD, extensions=[seen]) as trace, torch.no_grad():
        model(**inputs)
    text = inputs["attention_mask"].sum() - sum(trace.vision_tokens)
    width = model.config.text_config.num_experts_per_tok
    layers = sorted({layer for layer, _ in seen.rows if layer >= METHOD.layers[0]})
    assert len(layers) > 1
    for layer in layers:
        counts = trace.latest.per_layer[layer]
        assert sum(count for (own, _), count in seen.rows.items() if own == layer) == width * (text + sum(counts))


def test_a_weight_is_refused_where_a_layer_has_no_keys():
    model = tiny("qwen3_5")
    with fv.drop(model, METHOD, extensions=[Weights()]), pytest.raises(fv.UnsupportedError, match="keys, or have none"):
        model(**batch("qwen3_5", ["tit"]))


def test_attention_that_would_lack_a_weight_is_not_read():
    method = "random:layers=1;keep=0.6+fastv:layers=3;keep=0.5"
    with fv.drop(tiny("llava"), method, extensions=[Weights()]), pytest.raises(fv.UnsupportedError, match="added"):
        tiny("llava")(**batch("llava", ["tit"]))


def test_a_recorded_graph_has_no_extensions():
    with (
        pytest.raises(fv.SettingError, match="recorded graph"),
        fv.drop(tiny("llava"), METHOD, extensions=[Witness()], cuda_graphs=True),
    ):
        pass


# -- who knows whom ---------------------------------------------------------------------------------------------------


def words_of(path):
    """The identifiers of a file, and its strings but docstrings and messages."""
    tree, names, strings = ast.parse(path.read_text(encoding="utf-8")), set(), set()
    for node in ast.walk(tree):
        for attribute in ("id", "attr", "arg", "name", "asname"):
            value = getattr(node, attribute, None)
            names.update(value.split(".") if isinstance(value, str) else ())
        if isinstance(node, ast.ImportFrom):
            names.update((node.module or "").split("."))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            strings.add(node.value)
    return names, strings


def files_of(name):
    """An extension's file, or the files of its folder."""
    folder = ENGINE / "extensions" / name
    return sorted(folder.glob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


def names_of(name):
    """What nobody else may name of an extension: its file, its classes, and its columns with their constants."""
    names, columns = {name}, set()
    for node in itertools.chain.from_iterable(ast.parse(path.read_text("utf-8")).body for path in files_of(name)):
        if isinstance(node, ast.ClassDef):
            names.add(node.name)
        value = node.value.value if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) else None
        if isinstance(value, str) and value.isidentifier():  # not a message
            names.update(target.id for target in node.targets)
            columns.add(value)
    return names, columns


EVERY = (*extensions.NEEDED, "tower_memo")


@pytest.mark.parametrize("name", EVERY)
def test_the_engine_names_no_extension(name):
    names, columns = names_of(name)
    assert len(names) > 1
    for path in ENGINE.glob("*.py"):
        identifiers, strings = words_of(path)
        assert not identifiers & names, path.name
        assert not strings & (columns | {name}), path.name


@pytest.mark.parametrize("name", EVERY)
def test_extensions_do_not_name_one_another(name):
    names, columns = names_of(name)
    for other in EVERY:
        for path in files_of(other) if other != name else ():
            identifiers, strings = words_of(path)
            assert not identifiers & names, path
            assert not strings & columns, path


# -- what a reader reads ----------------------------------------------------------------------------------------------


def test_what_a_cut_and_two_steps_enter_is_counted(capsys):
    """Code lines of the engine's files that a call with one cut enters."""
    model, inputs, entered = tiny("llava"), batch("llava", ["tit"]), set()

    def note(frame, event, _):
        path = Path(frame.f_code.co_filename)
        if event == "call" and ENGINE in path.parents:
            entered.add(path)

    def call():
        with fv.drop(model, fv.Random(layers=(3,), keep=(0.3,))):
            generate(model, inputs, new_tokens=3)

    call()  # what is computed once for a model is no part of it
    before = sys.getprofile()
    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(before)
    lines = {path: code_lines(path.read_text(encoding="utf-8")) for path in sorted(ENGINE.rglob("*.py"))}
    read = {str(path.relative_to(ENGINE)): lines[path] for path in sorted(entered)}
    with capsys.disabled():
        print(f"\nA cut and two steps enter {sum(read.values()):,} of {sum(lines.values()):,} code lines: {read}")
    assert not [name for name in read if name.startswith("extensions/") and name not in ENTERED]
    assert sum(read.values()) < MOST_READ


ENTERED = ("extensions/__init__.py", "extensions/tracing.py")
MOST_READ = 3650
"""What it was when it was last looked at; a change that raises it should say why."""
