"""Every model whose parts are told from its structure, against itself untouched with columns hidden.

`foveate.testing.check` proves most of it, on one picture. What it leaves out is here, with methods drawn by a table:
each model gets every proof, some of them every second model, and each method is seen on many models.
"""

import functools
import itertools
import os
from contextlib import contextmanager

import pytest
import torch

import foveate as fv
from foveate._transformers import cache_in
from foveate.ask.look import look_at, resume
from foveate.contract import ImageStage, Shape, follow
from foveate.contract.method import Method
from foveate.contract.settings import Share
from foveate.core.cut import Cut
from foveate.core.merge import average
from foveate.engine.doors import drop_or_not
from foveate.engine.lives.limited import LimitedLayer
from foveate.families.proved import DECODER, PROVED
from foveate.registry import family_for
from foveate.testing import check
from foveate.testing.contract import state_of_model
from foveate.testing.hiding import Oracle
from tests.invariants.alone import left
from tests.invariants.facts import cuts
from tests.tiny_derived import CASES, DEPTH, IMAGE, TIMM, VOCABULARY, kind_of, known, make


class Longest(Method):
    """Behind the projector: the tokens with the longest features stay."""

    name = "longest"

    keep: Share = 0.4

    def stages(self, shape):
        return (ImageStage(side="behind", keep=self.keep, score=lambda view: view.features.float().norm(dim=-1)),)


class Neighbours(Method):
    """Behind the projector: each token and the next become their mean, in the place of the first."""

    name = "neighbours"

    def stages(self, shape):
        return (ImageStage(side="behind", choose=self._join),)

    @staticmethod
    def _join(view, count=None):
        tokens = torch.arange(len(view.features))
        pairs = Cut.join(tokens[::2], tokens // 2)
        return pairs.with_rows(average(view.features, pairs))


BETWEEN_LAYERS = {
    "v2drop": fv.V2Drop(layers=(1, 3), keep=(0.6, 0.4)),
    "fastv": fv.FastV(layers=(2,), keep=(0.5,)),
    "random": fv.Random(layers=(0, 1), keep=(0.6, 0.5)),
    "divprune": fv.DivPrune(keep=0.4, positions="keep"),
    "dart": fv.DART(keep=0.5),
    "cdpruner": fv.CDPruner(keep=0.4, positions="keep"),
    "uniform": fv.Uniform(layers=(1, 2), keep=(0.5, 0.3)),
}
BEHIND_PROJECTOR = {"vidcom2": fv.VidCom2(keep=0.4), "longest": Longest()}
KEEP_ALL = {
    "v2drop": fv.V2Drop(layers=(1, 3), keep=(1.0, 1.0)),
    "fastv": fv.FastV(layers=(2,), keep=(1.0,)),
    "longest": Longest(keep=1.0),
    "random": fv.Random(layers=(0, 1), keep=(1.0, 1.0)),
    "finalkv": fv.FinalKV(first_layer=0),
}
TOWER = fv.HiPrune(retention=0.4, positions="keep")
STEPS = 3
CLOSE = 1e-4
"""Of the largest logit; a wrong gather makes 0.01 and more."""
IN_BATCH = {"hunyuan_vl": 2 * CLOSE}
"""Untouched, too, a sample of its batch is 1.3e-4 from the sample alone."""
BANNED = [[token] for token in range(90, VOCABULARY)]

NAMES = [name for name in CASES if known(name) and name not in TIMM]  # these are in tests/with_torchvision


def places(name):
    """Where tokens of a model are dropped, as the list of what is proved says."""
    one = PROVED.get(kind_of(name))
    return (*DECODER, "tower") if one is None else one.places


BORROWING = ("gemma4_unified_shared", "gemma3n")
"""Models whose layers 2 and 3 attend to keys of layers 0 and 1: no cut may stand behind these."""
SERVED = [name for name in NAMES if places(name)]
REFUSED = [name for name in NAMES if not places(name)]
FILMS_AS_IMAGES = "its films are encoded as images, so they stay whole behind the projector"
SINKS = "its rows pay attention to sinks too, so methods that read attention are refused"
FAILING: dict[str, dict[str, str]] = {
    "attention": {"hy_v4_vl": SINKS},
    "read": {"hy_v4_vl": SINKS},
    "films_projector": {"perception_lm": FILMS_AS_IMAGES},
    "keep_all": {"perception_lm": FILMS_AS_IMAGES},
    "merged": {
        "granite4_vision": "it adds features before several layers, so merging is refused",
        "gemma3n": "its streams are made of the joined token, and the proof joins behind where they are made",
    },
}
"""What is known to fail, by test and model, and why: where it is mended, the line goes."""


def each(test, names=SERVED):
    """Models that a test runs on."""
    return pytest.mark.parametrize("name", marked(test, names))


TURNS = ("right", "beams", "batch", "merged", "films_projector", "projector", "shared", "films")
"""What is proved of every second model, and its neighbour's turn is the next; of all with FOVEATE_TESTS=all."""


def marked(test, names):
    """Models, of which those that fail there are marked, so that a mend is noticed."""
    told = FAILING.get(test, {})
    if test in TURNS and os.environ.get("FOVEATE_TESTS") != "all":
        names = [name for name in names if ([*CASES].index(name) + TURNS.index(test)) % 2]
    marks = {name: pytest.mark.xfail(reason=told[name], strict=True) for name in names if name in told}
    return [pytest.param(name, marks=marks.get(name, ())) for name in names]


def one_in_seven(names):
    """All models, of which `make test` runs one in seven."""
    return [pytest.param(name, marks=[pytest.mark.further] * bool(at % 7)) for at, name in enumerate(names)]


def drawn(name, methods, more=0):
    """A method for a model, by the model's place in the list of all."""
    fitting = [one for one in methods.values() if name not in BORROWING or max(cuts(one, DEPTH), default=0) < 2]
    return fitting[([*CASES].index(name) + more) % len(fitting)]


@functools.cache
def tiny(name, attention=None):
    return make(name, attention)


def other_kernel(name):
    """The plain kernel for every second model."""
    return "eager" if [*CASES].index(name) % 2 else None


def generate(model, inputs, steps=STEPS, **settings):
    """Greedy tokens and logits, without placeholders of pictures among the new ones."""
    banned = [[token] for token in range(90, model.config.get_text_config().vocab_size)]
    return model.generate(
        **inputs, do_sample=False, max_new_tokens=steps + 1, bad_words_ids=banned, return_dict_in_generate=True,
        output_logits=True, **settings,
    )  # fmt: skip


def apart(logits, reference):
    """The largest difference, as a share of the largest logit; ids that a model never says have the lowest number."""
    said = reference.abs() < 1e30
    return float((logits - reference)[said].abs().max() / reference[said].abs().max())


@contextmanager
def joined(model, rows, columns):
    """What enters layer 0 in the first of some columns is the mean over them."""

    def mean(layer, args, kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        states = hidden.clone()
        axis = [*hidden.shape].index(rows)  # there may be several streams, before or behind it
        for some in columns:
            states.movedim(axis, 0)[some[0]] = hidden.movedim(axis, 0)[some].mean(dim=0)
        return ((states, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": states})

    handle = family_for(model).layers[0].register_forward_pre_hook(mean, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def check_hidden(model, inputs, method, steps=STEPS):
    """One sample's logits are those of the untouched model from which the dropped columns are hidden."""
    with fv.drop(model, method) as trace:
        out = generate(model, inputs, steps)
        caches = cache_in(out)
    oracle = Oracle(family_for(model), inputs, out.sequences[0, -steps - 1 : -1])
    untouched = oracle.logits(oracle.nothing())
    vision, hidden = oracle.vision, oracle.nothing()
    for stage in trace.stages:
        dropped = torch.ones(len(vision), dtype=torch.bool)
        dropped[stage.kept[0]] = False
        hidden[stage.layer or 0 :, 0, vision[dropped]] = True
    members = trace.stages[0].merged[0] if trace.stages and trace.stages[0].where == "projector" else []
    if follow.reading(follow.in_order(method.stages(Shape(len(hidden))))) is not None:
        for index, layer in enumerate(caches.layers):
            if isinstance(layer, LimitedLayer):
                hidden[index, 1, vision[~torch.isin(vision, layer.part.base[0])]] = True
    assert hidden.any(), f"nothing was dropped: {trace.stages}"
    said = torch.cat(out.logits).float()
    with joined(model, inputs["input_ids"].shape[1] + steps, [vision[columns] for columns in members]):
        assert apart(said, oracle.logits(hidden)) < CLOSE
    assert apart(said[1:], untouched[1:]) > 20 * CLOSE
    return trace, oracle


@each("check")
def test_check_proves_it(name):
    model, case = tiny(name)
    checked = check(model, case.batch(model, ["tit"]))
    assert checked.passed, str(checked)


@each("pictures")
def test_pictures_are_cut_as_hidden_columns(name):
    model, case = tiny(name)
    check_hidden(model, case.batch(model, ["titt" if case.one else "titit"]), drawn(name, BETWEEN_LAYERS))


@each("attention")
def test_what_is_read_of_attention_is_what_the_model_says_of_itself(name):
    model, case = tiny(name, attention="eager")
    inputs, family = case.batch(model, ["titt"]), family_for(model)
    layer = next(index for index in range(DEPTH) if index not in family.recurrent)
    with torch.no_grad():
        told = [one for one in model(**inputs, output_attentions=True).attentions if one is not None]
    with fv.drop(model, fv.FastV(layers=(layer + 1,), keep=(0.5,))) as trace, torch.no_grad():
        model(**inputs)
    oracle = Oracle(family, inputs, torch.tensor([5]))
    oracle.logits(oracle.nothing())
    paid = told[0][0].mean(dim=0)[-1, oracle.vision]
    paid[[place for media in trace.latest.media[0] for place in media.fixed]] = 1  # one picture, whose newlines stay
    kept = trace.stages[0].kept[0]
    assert torch.equal(kept, paid.argsort(descending=True, stable=True)[: len(kept)].sort().values)


@each("films", [name for name in SERVED if CASES[name]().video is not None])
def test_films_are_cut_as_hidden_columns(name):
    model, case = tiny(name)
    check_hidden(model, case.batch(model, ["tvt" if case.apart else "titvt"]), drawn(name, BETWEEN_LAYERS, 2))


@each("films_projector", [name for name in SERVED if CASES[name]().video is not None and "projector" in places(name)])
def test_films_behind_the_projector_are_as_hidden_columns(name):
    model, case = tiny(name)
    check_hidden(model, case.batch(model, ["tvt"]), Longest())


@each("projector", [name for name in SERVED if "projector" in places(name)])
def test_behind_the_projector_it_is_as_hidden_columns(name):
    model, case = tiny(name)
    check_hidden(model, case.batch(model, ["tit" if case.one else "titit"]), drawn(name, BEHIND_PROJECTOR))


@each("merged", [name for name in SERVED if "projector" in places(name)])
def test_tokens_that_are_joined_behind_the_projector_are_their_mean(name):
    model, case = tiny(name)
    check_hidden(model, case.batch(model, ["tit" if case.one else "titit"]), Neighbours())


@each("keep_all")
def test_keeping_all_is_the_untouched_model_bit_for_bit(name):
    model, case = tiny(name)
    films = ["tvt"] * (case.video is not None)
    for words in (["tit", "ttit"] if case.one else ["tit", "titit"], films):
        inputs = case.batch(model, words or ["tit"])
        plain = generate(model, inputs)
        with fv.drop(model, drawn(name, KEEP_ALL)):
            kept = generate(model, inputs)
        assert torch.equal(plain.sequences, kept.sequences)
        assert all(map(torch.equal, plain.logits, kept.logits))


@each("read", [name for name in SERVED if name not in BORROWING])
def test_what_steps_do_not_read_is_as_hidden_columns(name):
    model, case = tiny(name, attention=other_kernel(name))
    method = fv.Read(keep=0.3) if [*CASES].index(name) % 2 else fv.V2Drop(layers=(1,), keep=(0.6,)) + fv.Read(keep=0.5)
    check_hidden(model, case.batch(model, ["tit"]), method)


@each("batch")
def test_samples_of_a_batch_are_each_alone(name):
    model, case = tiny(name, attention=other_kernel(name))
    words = ["tit", "ttit"] if case.one else ["tit", "titit", "titt"]
    method = drawn(name, {**BETWEEN_LAYERS, **BEHIND_PROJECTOR}, 3)
    inputs = case.batch(model, words)
    with fv.drop(model, method) as together:
        out = generate(model, inputs)
    for sample, word in enumerate(words):
        one = case.batch(model, [word])
        with fv.drop(model, method) as alone:
            single = generate(model, one)
        assert left(together, sample) == left(alone, 0)
        assert [layer[sample] for layer in together.kv_lengths] == [layer[0] for layer in alone.kv_lengths]
        for step, (row, logits) in enumerate(zip(out.logits, single.logits, strict=True)):
            assert apart(row[sample], logits[0]) < IN_BATCH.get(name, CLOSE), f"{word}, step {step}"
        assert torch.equal(out.sequences[sample, -STEPS - 1 :], single.sequences[0, -STEPS - 1 :])


@each("right")
def test_a_batch_padded_on_the_right_is_its_samples(name):
    model, case = tiny(name)
    words, method = ["tit", "ttit" if case.one else "titit"], fv.Random(layers=(0, 1), keep=(0.6, 0.5))
    inputs = case.batch(model, words)
    live = inputs["attention_mask"]
    order = (1 - live).sort(dim=1, stable=True).indices  # real columns first
    right = {
        key: value.gather(1, order) if isinstance(value, torch.Tensor) and value.shape == live.shape else value
        for key, value in inputs.items()
    }
    with torch.no_grad(), fv.drop(model, method):
        together = model(**right).logits
        for sample, word in enumerate(words):
            alone = model(**case.batch(model, [word])).logits[0, -1]
            assert apart(together[sample, live[sample].sum() - 1], alone) < IN_BATCH.get(name, CLOSE)


SHARING = [name for name in SERVED if (one := PROVED.get(kind_of(name))) and one.shares and name not in BORROWING]


@each("shared", SHARING)
def test_questions_that_share_a_look_get_the_answers_that_each_gets_alone(name):
    model, case = tiny(name)
    method = fv.Random(layers=(0, 1), keep=(0.6, 0.5)) if [*CASES].index(name) % 2 else None
    for word in ("titt" if case.one else "titit", *(["tvt"] if case.video is not None else [])):
        prompt = case.batch(model, [word])
        shape = prompt["input_ids"].shape
        other = {**prompt, "input_ids": prompt["input_ids"].clone()}
        other["input_ids"][0, -2:] = torch.tensor([7, 11])
        short = {
            key: value[:, :-1] if isinstance(value, torch.Tensor) and value.shape == shape else value
            for key, value in other.items()
        }
        look = look_at(model, prompt, method)
        for questions in ([prompt, other], [short]):
            with drop_or_not(model, method):
                together = generate(model, resume(model, look, questions))
            for sample, question in enumerate(questions):
                with drop_or_not(model, method):
                    alone = generate(model, question)
                assert torch.equal(together.sequences[sample, -STEPS - 1 :], alone.sequences[0, -STEPS - 1 :])
                for row, logits in zip(together.logits, alone.logits, strict=True):
                    assert apart(row[sample], logits[0]) < IN_BATCH.get(name, CLOSE)


@each("beams", [name for name in SERVED if name not in ("llama4", "fuyu")])  # as they are, these take no beams
def test_a_batch_of_beams_is_its_samples(name):
    model, case = tiny(name)
    words, method = ["tit", "ttit" if case.one else "titit"], fv.Random(layers=(0, 1), keep=(0.6, 0.5))
    with fv.drop(model, method):
        together = generate(model, case.batch(model, words), num_beams=2).sequences
        for sample, word in enumerate(words):
            alone = generate(model, case.batch(model, [word]), num_beams=2).sequences
            assert torch.equal(together[sample, -STEPS - 1 :], alone[0, -STEPS - 1 :])


@pytest.mark.parametrize("name", SERVED)
def test_what_is_read_of_the_tower_is_served_or_refused(name):
    model, case = tiny(name)
    inputs = case.batch(model, ["tit"])
    if "tower" in places(name):
        check_hidden(model, inputs, TOWER)
        return
    with pytest.raises(fv.UnsupportedError), fv.drop(model, TOWER), torch.no_grad():
        model(**inputs)


@each("refused", REFUSED)
def test_a_model_that_is_not_served_is_refused_and_stays_as_it_was(name):
    model, case = tiny(name)
    inputs = case.batch(model, ["tit"])
    plain = generate(model, inputs)
    state = state_of_model(model)
    with pytest.raises(fv.UnsupportedError), fv.drop(model, BETWEEN_LAYERS["random"]):
        generate(model, inputs)
    assert PROVED[kind_of(name)].refused
    assert state_of_model(model) == state
    assert all(map(torch.equal, generate(model, inputs).logits, plain.logits))


INDEXED = [name for name in ("dots3_note", "mistral_large4", "hy_v4_vl") if known(name)]


@pytest.mark.parametrize("name", INDEXED)
def test_layers_that_pick_keys_are_served_while_they_pick_all(name):
    model, case = make(name)
    inputs = case.batch(model, ["titit"])
    columns, vision = inputs["input_ids"].shape[1], int((inputs["input_ids"] == IMAGE).sum())
    few, many = fv.Random(layers=(0,), keep=(0.3,)), fv.Random(layers=(0,), keep=(0.8,))
    for layer in family_for(model).layers:
        for part in layer.modules():
            if hasattr(part, "index_topk"):
                part.index_topk = columns - vision + vision // 2 + STEPS + 1
    check_hidden(model, inputs, few)
    refused = pytest.raises(fv.UnsupportedError, match="index")
    with fv.drop(model, many), refused:
        generate(model, inputs)
    with fv.drop(model, few), refused:  # once its answer is long
        model.generate(**inputs, do_sample=False, max_new_tokens=vision, bad_words_ids=BANNED)


def test_each_method_is_seen_on_many_models():
    for methods, more in itertools.product((BETWEEN_LAYERS, BEHIND_PROJECTOR), (0, 2, 3)):
        seen = [id(drawn(name, methods, more)) for name in CASES]
        assert all(seen.count(id(method)) > 5 for method in methods.values())
