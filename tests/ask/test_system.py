"""A system text that runs once: what comes after it is as in the whole prompt, and nothing else is shared."""

import copy
import itertools
from dataclasses import replace

import pytest
import torch

import foveate as fv
from foveate.ask import answers, look
from foveate.ask.generation import FirstToken
from foveate.ask.look import Look, look_at, look_at_system, prefill, together
from foveate.ask.prompt import begun_by, text_of
from foveate.ask.running import answers_to
from foveate.engine.copies import compact
from foveate.registry import family_for
from tests import models
from tests.ask.conftest import image, prompt_of, random_vlm, text, user
from tests.ask.test_growth import FAMILIES, FEW, assert_close, inputs_of
from tests.invariants.settings import EXAMPLES, METHODS, works

FAMILIES = (*FAMILIES, "qwen3_5")
"""Those whose pictures have the same rows after a text in the cache as in a whole prompt."""
LARGE = ("llava", "llava_next", "internvl", "mistral3", "smolvlm")
"""Of these the tiny models have pictures of more than a few tokens, of which every method drops some."""
CASES = [
    *itertools.product(FAMILIES, (None, "visiondrop-1")),
    *((family, name) for name, family in zip(METHODS, itertools.cycle(LARGE), strict=False) if works(name, family)),
]
ALL = "ivcprune-1"
"""What compares tokens with all rows of a prompt, the text in front among them."""
CASES.remove((dict(map(reversed, CASES))[ALL], ALL))
SYSTEM = "Read the scene. Is there a ring? Where is the text? What is the colour of the square beside the circle?"
OTHER = "How many objects are there? What does the text say?"
NEW = {"max_new_tokens": 4}
ASKED = ("How many objects are there?", "What does the text say?", "What is it?")


# -- rows ---------------------------------------------------------------------------------------------------------


def system_of(vlm):
    """A long text that a tiny model has prefilled."""
    ids = torch.randint(11, 60, (1, 40), generator=torch.Generator().manual_seed(1))
    cache = prefill(vlm.model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    return Look(ids, {}, compact(cache))


def pages(vlm, system, lengths, letter="i"):
    """Prompts about different pictures or films, with questions of these lengths after them."""
    (_, *pieces), media = models.sample(vlm.name, letter * len(lengths))
    prompts = []
    for piece, medium, length in zip(pieces, media, lengths, strict=True):
        ids = torch.cat((system.ids[0], piece, torch.arange(11, 11 + length)))[None]
        prompts.append(prompt_of(vlm, inputs_of(vlm, ids, [medium])))
    return prompts


def kept(answer):
    """Which tokens every cut of an answer's prefill kept, if it lost some. Others of a batch may have lost some."""
    cuts = [cut for record in answer.trace.history[:1] for cut in record.cuts]
    lost = [cut for cut in cuts if cut.after[answer.sample] < answer.vision_tokens]
    return [(cut.where, cut.layer, cut.origin[answer.sample].tolist()) for cut in lost]


def assert_as_afresh(vlm, method, lengths=(5, 9, 5), letter="i"):
    """Pages after a text that is prefilled, in as few batches as may be, are as each is alone."""
    system = system_of(vlm)
    prompts = pages(vlm, system, lengths, letter)
    for places in together(vlm.model, system, [prompt.inputs for prompt in prompts]):
        extra = {"logits_processor": [FirstToken()]}
        batch = [prompts[place] for place in places]
        for prompt, answer in zip(batch, answers_to(vlm, batch, method, FEW, system, extra), strict=True):
            alone = vlm.answer(prompt, method, generation=FEW, first=True)
            assert_close(answer, alone)
            assert kept(answer) == kept(alone)
            assert (answer.spent, answer.retention, answer.flops) == (alone.spent, alone.retention, alone.flops)
            assert (answer.looked, alone.looked) == (system.tokens, 0)


@pytest.mark.parametrize(("family", "name"), CASES)
def test_pages_after_a_text_are_as_afresh_alone_and_in_ragged_batches(family, name, monkeypatch):
    vlm, method = random_vlm(family, monkeypatch), None if name is None else EXAMPLES[name]
    assert_as_afresh(vlm, method)
    assert_as_afresh(vlm, method, lengths=(5,))


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_vl", "qwen3_5"])
def test_films_after_a_text_are_as_afresh(family, monkeypatch):
    assert_as_afresh(random_vlm(family, monkeypatch), EXAMPLES["vidcom2-0"], lengths=(5, 9), letter="v")


@pytest.mark.parametrize(
    ("family", "method"),
    [
        *zip(FAMILIES, itertools.cycle((None, fv.VidCom2(retention=1 / 3), EXAMPLES["visiondrop-1"])), strict=False),
        *itertools.product(("llava", "qwen2_vl"), (fv.Read(keep=0.3), fv.VisionDrop(retention=0.5))),
    ],
    ids=str,
)
def test_a_look_after_a_text_is_as_one_from_the_start(family, method, monkeypatch):
    vlm = random_vlm(family, monkeypatch)
    system = system_of(vlm)
    prompt = pages(vlm, system, (5,))[0]
    after, afresh = look_at(vlm.model, prompt.inputs, method, system=system), look_at(vlm.model, prompt.inputs, method)
    assert torch.equal(after.ids, afresh.ids)
    for layer, expected in zip(after.cache.layers, afresh.cache.layers, strict=True):
        for value, same in zip(models.cached(layer), models.cached(expected), strict=True):
            torch.testing.assert_close(value, same, atol=2e-5, rtol=1e-4)
    extra = {"logits_processor": [FirstToken()]}
    answer = answers_to(vlm, [prompt], method, FEW, after, extra)[0]
    assert_close(answer, vlm.answer(prompt, method, generation=FEW, first=True))


def test_padding_would_change_a_state_and_fill_a_window(monkeypatch):
    for family, parts in (("llava", 1), ("qwen3_5", 2)):
        vlm = random_vlm(family, monkeypatch)
        system = system_of(vlm)
        first, second = (page.inputs for page in pages(vlm, system, (5, 5))[:1] + pages(vlm, system, (9, 5))[:1])
        assert len(together(vlm.model, system, [first, second, first])) == parts


def test_where_rows_would_differ_everything_runs_afresh(small, demo, monkeypatch):
    def looked(method=None):
        return [answer.looked for answer in small.ask_many([(demo, ASKED[0])], system=SYSTEM, method=method, **NEW)]

    assert looked(EXAMPLES["ivcprune-0"])[0] > 0 == looked(EXAMPLES[ALL])[0]
    monkeypatch.setattr(family_for(small.model).text.rotary_emb, "rope_type", "dynamic")
    assert looked() == [0]
    for family in ("gemma3", "paligemma"):
        vlm = random_vlm(family, monkeypatch)
        prompt = replace(prompt_of(vlm, models.batch(family, ["ti"])), system=SYSTEM)
        assert look_at_system(vlm, prompt, None) is None


# -- doors --------------------------------------------------------------------------------------------------------


@pytest.fixture
def texts(monkeypatch, small):
    """How many texts without pictures were prefilled."""
    lengths = []

    def counted(model, inputs):
        if "pixel_values" not in inputs:
            lengths.append(inputs["input_ids"].shape[1])
        return prefill(model, inputs)

    monkeypatch.setattr(look, "prefill", counted)
    monkeypatch.setattr(small, "system", None)
    return lengths


def turns(picture, question, system=SYSTEM):
    """The same question as messages: nothing of it is shared."""
    return [{"role": "system", "content": system}, user(image(picture), text(question))]


def assert_alike(got, expected):
    for answer, alone in zip(got, expected, strict=True):
        assert (answer.tokens, answer.prompt.tokens, answer.flops) == (alone.tokens, alone.prompt.tokens, alone.flops)
        assert torch.equal(answer.prompt.inputs["input_ids"], alone.prompt.inputs["input_ids"])


@pytest.mark.parametrize("method", [None, "vidcom2", "v2drop", "fastv:layers=1"])
def test_many_questions_and_looks_share_one_text(method, small, scenes, texts):
    pairs = list(itertools.product(scenes, ASKED))[1:]  # one picture with two questions, two with three
    pairs += [(scene, ASKED[2]) for scene in (scenes[0].rotate(90), scenes[1].rotate(90))]
    alone = [small.ask(messages=turns(*pair), method=method, **NEW) for pair in pairs]
    assert_alike([small.ask(*pair, system=SYSTEM, method=method, **NEW) for pair in pairs], alone)
    assert texts == []
    many = list(small.ask_many(pairs, system=SYSTEM, method=method, batch_size=2, **NEW))
    assert_alike(many, alone)
    assert all(answer.looked for answer in many)
    if method != "fastv:layers=1":
        for pair, expected in zip(pairs[-2:], alone[-2:], strict=True):
            assert_alike([small.look(pair[0], system=SYSTEM, method=method).ask(pair[1], **NEW)], [expected])
    assert len(texts) == 1


def test_two_texts_take_turns(small, scenes, texts):
    for system in (SYSTEM, OTHER, SYSTEM):
        answers = list(small.ask_many([(scene, ASKED[1]) for scene in scenes], system=system, **NEW))
        assert_alike(answers, [small.ask(messages=turns(scene, ASKED[1], system), **NEW) for scene in scenes])
    assert len(texts) == 3
    list(small.ask_many([(scene, ASKED[1]) for scene in scenes], **NEW))
    assert len(texts) == 3


def test_choices_second_looks_and_questions_without_pictures_share_it_too(small, scenes, texts):
    pairs = [(scene, ASKED[0]) for scene in scenes]
    for candidates in (["0", "1"], ["white triangle", "blue ring"]):
        many = small.ask_many(pairs, system=SYSTEM, choices=candidates)
        for answer, pair in zip(many, pairs, strict=True):
            alone = small.ask(messages=turns(*pair), choices=candidates)
            assert answer.choices == pytest.approx(alone.choices, abs=1e-4)
    many = list(small.ask_many(pairs, system=SYSTEM, method="vidcom2", sure=1.0, **NEW))
    assert all(answer.again for answer in many)
    assert_alike(many, [small.ask(messages=turns(*pair), method="vidcom2", sure=1.0, **NEW) for pair in pairs])
    plain = [small.ask([], question, system=SYSTEM, **NEW) for question in ASKED]
    assert_alike(list(small.ask_many([([], question) for question in ASKED], system=SYSTEM, **NEW)), plain)
    assert len(texts) == 1


def test_a_look_after_a_text_sees_and_forgets(small, scenes, texts):
    prefix, other = (
        small.look(scenes[0], system=SYSTEM),
        small.look(messages=[*turns(scenes[0], "")[:1], user(image(scenes[0]))]),
    )
    for number in (1, 2):
        prefix, other = prefix.see(scenes[number]), other.see(scenes[number])
        assert_alike([prefix.ask(ASKED[1], **NEW)], [other.ask(ASKED[1], **NEW)])
    prefix, other = (grown.forget(0, with_texts=True) for grown in (prefix, other))
    assert_alike([prefix.ask(ASKED[1], **NEW)], [other.ask(ASKED[1], **NEW)])
    assert prefix.rows == other.rows


def test_weights_that_moved_prefill_the_text_again(small, scenes, texts):
    pairs, weight = (
        [(scene, ASKED[1]) for scene in scenes],
        small.model.model.language_model.layers[0].mlp.up_proj.weight,
    )
    list(small.ask_many(pairs, system=SYSTEM, **NEW))
    with torch.no_grad():
        weight.neg_()
    try:
        many = list(small.ask_many(pairs, system=SYSTEM, **NEW))
        assert_alike(many, [small.ask(messages=turns(*pair), **NEW) for pair in pairs])
    finally:
        with torch.no_grad():
            weight.neg_()
    assert len(texts) == 2


def test_a_lack_of_memory_frees_the_text(small, scenes, texts, monkeypatch):
    answered = answers.answers_to

    def lacking(loaded, prompts, *given, look=None, **options):
        if look is not None:
            raise torch.OutOfMemoryError("CUDA out of memory")
        assert loaded.system is None
        return answered(loaded, prompts, *given, look=look, **options)

    monkeypatch.setattr(answers, "answers_to", lacking)
    pairs = [(scene, ASKED[1]) for scene in scenes]
    many = list(small.ask_many(pairs, system=SYSTEM, **NEW))
    assert_alike(many, [small.ask(messages=turns(*pair), **NEW) for pair in pairs])
    assert (len(texts), {answer.looked for answer in many}) == (1, {0})


# -- templates and wrong values -------------------------------------------------------------------------------------

SAYS = "{% for p in m.content if p.type == 'text' %}{{ p.text }}{% endfor %}"
SHOWS = "{% for p in m.content if p.type == 'image' %}<image>\n{% endfor %}"


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages if m.role == 'user' %}" + SHOWS + SAYS + "{% endfor %}",
        "{% for m in messages %}" + SHOWS + "{% endfor %}{% for m in messages %}" + SAYS + "{% endfor %}",
        "{% for m in messages | reverse %}" + SHOWS + SAYS + "{% endfor %}",
        None,
    ],
    ids=["left out", "pictures first", "last", "no template"],
)
def test_a_template_that_does_not_begin_with_the_text_is_refused(template, small, demo, monkeypatch):
    monkeypatch.setattr(small.processor, "chat_template", template)
    for call in (small.ask, lambda *given, **more: next(small.ask_many([given], **more))):
        with pytest.raises(fv.UnsupportedError, match="small"):
            call(demo, ASKED[0], system=SYSTEM)


def test_a_text_is_held_against_a_template_once(small, demo, monkeypatch):
    written = []
    monkeypatch.setattr("foveate.ask.prompt.text_of", lambda *given: written.append(given) or text_of(*given))
    list(small.ask_many([(demo, asked) for asked in ASKED], system="Be brief.", **NEW))
    assert len(written) == 2 + len(ASKED) + 2  # the check, the prompts, and the two that give the ids in common


@pytest.mark.parametrize("between", ["", "\n", " "])
def test_a_text_is_shared_up_to_the_last_token_that_no_question_changes(between, small, scenes, texts, monkeypatch):
    """Letters between it and a picture may be one token with those of a question in their place."""
    template = "{% for m in messages %}" + SHOWS + SAYS + between + "{% endfor %}"
    monkeypatch.setattr(small.processor, "chat_template", template)
    many = list(small.ask_many([(scene, ASKED[1]) for scene in scenes], system=SYSTEM, **NEW))
    assert_alike(many, [small.ask(messages=turns(scene, ASKED[1]), **NEW) for scene in scenes])
    ids = many[0].prompt.inputs["input_ids"]
    assert torch.equal(begun_by(small, SYSTEM), ids[:, : many[0].looked])
    assert 0 <= many[0].prompt.first - many[0].looked < 3


def test_prompts_that_begin_otherwise_run_afresh(small, scenes, texts, monkeypatch):
    """As when a template writes the time."""
    minutes = itertools.count()
    monkeypatch.setattr(look, "begun_by", lambda loaded, system: begun_by(loaded, f"{next(minutes)} {system}"))
    pairs = [(scene, ASKED[1]) for scene in (*scenes, scenes[0])]
    many = list(small.ask_many(pairs, system=SYSTEM, **NEW))
    assert_alike(many, [small.ask(messages=turns(*pair), **NEW) for pair in pairs])
    assert_alike([small.look(scenes[0], system=SYSTEM).ask(ASKED[1], **NEW)], many[:1])


def test_wrong_texts_are_refused(small, demo):
    for system, error, word in (
        (" \n", fv.SettingError, "empty"),
        (3, fv.SettingError, "system"),
        ("See <image>", fv.InputError, "special"),
    ):
        with pytest.raises(error, match=word):
            small.ask(demo, ASKED[0], system=system)
    with pytest.raises(fv.SettingError, match="system"):
        small.ask(messages=turns(demo, ASKED[0]), system=SYSTEM)
    with pytest.raises(fv.SettingError, match="system"):
        small.look(demo).see(demo, system=SYSTEM)


def test_an_open_drop_is_refused_as_without_a_text(small, demo):
    with fv.drop(small.model, "v2drop"), pytest.raises(fv.SessionError):
        small.look(demo, system=SYSTEM)


CHANGES = {
    "averaged weights": lambda layer: [weight.data.copy_(weight.data * 0.8) for weight in layer.parameters()],
    "an array": lambda layer: layer.mlp.up_proj.weight.detach().numpy().fill(0.3),
    "a hook": lambda layer: layer.mlp.register_forward_hook(lambda module, arguments, output: output * 0.5),
    "an attribute": lambda layer: setattr(layer.self_attn, "scaling", 2.0),
}


def test_a_hook_that_reads_from_elsewhere_reads_the_system_text_each_time(small, demo):
    vlm, factor = fv.VLM(copy.deepcopy(small.model), small.processor, "steered"), [1.0]
    layer = vlm.model.get_decoder().layers[2]
    layer.mlp.register_forward_hook(lambda module, arguments, output: output * factor[0])
    asked = {"system": SYSTEM, "choices": ["ring", "text"]}
    for factor[0] in (1.0, 0.2):
        answers = next(iter(vlm.ask_many([(demo, ASKED[0])], **asked))).choices
        assert answers == pytest.approx(vlm.ask(demo, ASKED[0], **asked).choices, abs=1e-4)


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model_reads_the_system_text_again_and_refuses_its_looks(small, demo, change):
    vlm = fv.VLM(copy.deepcopy(small.model), small.processor, "changed")
    asked = {"system": SYSTEM, "choices": ["ring", "text"]}

    def many():
        return next(iter(vlm.ask_many([(demo, ASKED[0])], **asked))).choices

    old, look = many(), vlm.look(demo)
    assert look.ask(ASKED[0], max_new_tokens=1).looked
    CHANGES[change](vlm.model.get_decoder().layers[2])
    expected, answers = vlm.ask(demo, ASKED[0], **asked).choices, many()
    assert answers == pytest.approx(expected, abs=1e-4)
    assert answers != pytest.approx(old, abs=1e-4)
    with pytest.raises(fv.SessionError, match="Look again"):
        look.ask(ASKED[0])
