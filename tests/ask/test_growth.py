"""A look that grows and forgets: rows are those of a whole prompt, and what leaves gives its columns back."""

import gc
import itertools
import pickle
import random
import threading
import weakref

import numpy as np
import pytest
import torch
from PIL import Image

import foveate as fv
from foveate.ask.conversation import Conversation
from foveate.ask.generation import FirstToken
from foveate.ask.growth import Seen, forget, grow, refuse_unturnable, turn_back
from foveate.ask.look import end_of_pictures, look_at
from foveate.ask.prompt import is_vision, prepare
from foveate.ask.running import answers_to
from foveate.contract.method import LastFrame
from foveate.registry import family_for
from tests import models
from tests.ask.conftest import image, prompt_of, random_vlm, text, user

FAMILIES = (
    "glm4v", "idefics3", "internvl", "llava", "llava_next", "llava_onevision", "mistral3", "qwen2_5_vl", "qwen2_vl",
    "qwen3_vl", "smolvlm",
)  # fmt: skip
ALONE = (None, fv.VidCom2(retention=1 / 3), fv.DivPrune(keep=0.5))
"""What cuts every picture on its own, so that one by one is as at once."""
VISION = fv.VisionDrop(positions="reindex")
QUESTION = torch.arange(11, 16)
FEW = fv.Generation(max_new_tokens=4)
NEW = {"max_new_tokens": 4}


def inputs_of(vlm, ids, pictures):
    """A prompt of ids and pictures that are there already."""
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    for name in dict.fromkeys(itertools.chain(*pictures)):
        inputs[name] = torch.cat([picture[name] for picture in pictures])
    return inputs | models.TINY[vlm.name].extra(ids)


def looks_of(vlm, method, places=(0, 1, 2)):
    """Some of three pictures, seen one by one by a tiny model: the looks, what each saw, and all with a question."""
    pieces, pictures = models.sample(vlm.name, "tititi")
    start, texts, images = pieces[0], pieces[1::2], pieces[2::2]
    looks, seen, ids = [], [], start
    for place in places:
        alone = inputs_of(vlm, torch.cat((start, texts[place], images[place], QUESTION))[None], [pictures[place]])
        prompt = prompt_of(vlm, alone)
        ids = torch.cat((ids, texts[place], images[place]))
        whole = torch.cat((ids, QUESTION))
        if not looks:
            looks.append(look_at(vlm.model, alone, method))
            seen.append(Seen(prompt, None, looks[0].ids, prompt.first, method).with_record(looks[0]))
            continue
        brought = whole[looks[-1].tokens : end_of_pictures(vlm.model, whole)]
        new = Seen(prompt, None, brought[None], int(models.is_vision(brought).nonzero()[0]))
        looks.append(grow(vlm.model, looks[-1], [*seen, new], method))
        seen.append(new.with_record(looks[-1]))
    return looks, seen, inputs_of(vlm, whole[None], [pictures[place] for place in places])


def first():
    """What makes an answer have the logits of its first token."""
    return {"logits_processor": [FirstToken()]}


def assert_close(answer, expected):
    assert answer.tokens == expected.tokens
    torch.testing.assert_close(answer.first, expected.first, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("family", "method"), list(zip(FAMILIES, itertools.cycle(ALONE), strict=False)))
def test_pictures_one_by_one_are_as_all_at_once(family, method, monkeypatch):
    vlm = random_vlm(family, monkeypatch)
    looks, _, inputs = looks_of(vlm, method)
    prompt = prompt_of(vlm, inputs, 3)
    grown = answers_to(vlm, [prompt], method, FEW, looks[-1], first())[0]
    assert_close(grown, vlm.answer(prompt, method, generation=FEW, first=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_move_up_have_the_keys_of_their_new_positions(family, monkeypatch):
    """In the first layer, whose rows know of no other. Deeper ones keep what they took from the forgotten."""
    vlm = random_vlm(family, monkeypatch)
    looks, seen, _ = looks_of(vlm, None)
    start, end = seen[0].columns, seen[0].columns + seen[1].columns
    without = forget(vlm.model, looks[2], start, end, [seen[0], seen[2]])
    (*_, never), _, inputs = looks_of(vlm, None, (0, 2))
    assert torch.equal(without.ids, never.ids)
    torch.testing.assert_close(without.cache.layers[0].keys, never.cache.layers[0].keys, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(without.cache.layers[0].values, never.cache.layers[0].values)
    for layer, expected in zip(without.cache.layers, never.cache.layers, strict=True):
        assert layer.keys.shape == expected.keys.shape
        assert layer.get_seq_length() == expected.get_seq_length()
    answer = answers_to(vlm, [prompt_of(vlm, inputs, 2)], None, FEW, look=without)[0]
    assert len(answer.tokens) == 4


@pytest.mark.parametrize("positions", [1, 700])
def test_keys_are_turned_back_as_far_as_they_came(positions):
    for name in ("llava", "qwen3_vl", "glm4v"):
        family = family_for(models.tiny(name))
        text = models.tiny(name).config.get_text_config()
        keys = torch.randn(1, 2, 3, text.hidden_size // text.num_attention_heads)
        there = turn_back(family, 0, keys, -positions)
        assert not torch.allclose(there, keys, atol=1e-3)
        torch.testing.assert_close(turn_back(family, 0, there, positions), keys, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "word"), [("gemma3", "bidirectional"), ("gemma4", "bidirectional")])
def test_families_whose_looks_do_not_grow_say_so(name, word, monkeypatch):
    vlm = random_vlm(name, monkeypatch)
    with pytest.raises(fv.UnsupportedError, match=word):
        looks_of(vlm, None)


def test_layers_with_a_state_forget_nothing(monkeypatch):
    vlm = random_vlm("qwen3_5", monkeypatch)
    looks, seen, inputs = looks_of(vlm, None)
    prompt = prompt_of(vlm, inputs, 3)
    grown = answers_to(vlm, [prompt], None, FEW, looks[-1], first())[0]
    assert_close(grown, vlm.answer(prompt, generation=FEW, first=True))
    with pytest.raises(fv.UnsupportedError, match=r"state.* hold 2,048 pictures of 2 columns"):
        forget(vlm.model, looks[1], 0, 2, seen[:1])


@pytest.mark.parametrize("kind", ["dynamic", {"full_attention": "longrope"}], ids=str)
def test_keys_whose_rope_follows_the_length_are_not_moved(kind, monkeypatch):
    family = family_for(models.tiny("llava"))
    refuse_unturnable(family, 25)
    monkeypatch.setattr(family.text.rotary_emb, "rope_type", kind)
    with pytest.raises(fv.UnsupportedError, match="no RoPE that can be rotated back"):
        refuse_unturnable(family, 25)


# -- prefixes -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(1)
    return [Image.fromarray(rng.integers(0, 255, (336, 336, 3), dtype=np.uint8)) for _ in range(4)]


def assert_same_prompt(prompt, expected):
    assert torch.equal(prompt.inputs["input_ids"], expected.inputs["input_ids"])
    assert (prompt.sizes, prompt.grids, prompt.videos) == (expected.sizes, expected.grids, expected.videos)
    assert prompt.cost() == expected.cost()


@pytest.mark.parametrize("method", [None, "vidcom2", "divprune"])
def test_an_answer_is_that_of_all_pictures_asked_afresh(small, pictures, method):
    live = small.look(pictures[0], method=method)
    for picture in pictures[1:3]:
        live = live.see(picture)
    answer, fresh = live.ask("What?", **NEW), small.ask(pictures[:3], "What?", method=method, **NEW)
    assert_same_prompt(answer.prompt, fresh.prompt)
    assert (answer.tokens, answer.retention, answer.spent) == (fresh.tokens, fresh.retention, fresh.spent)
    assert (answer.flops, answer.kv_bytes) == (fresh.flops, fresh.kv_bytes)
    assert answer.looked == live.tokens == 4 + 3 * 576
    assert len(live.pictures) == len(live.media) == 3
    if method is not None:
        assert answer.to_dict()["trace"]["stages"] == fresh.to_dict()["trace"]["stages"]
        assert answer.show().size == fresh.show().size
    many = list(live.ask_many(["What?", "And what else?"], **NEW))
    assert [one.tokens for one in many] == [
        live.ask(question, **NEW).tokens for question in ("What?", "And what else?")
    ]


def test_each_picture_has_a_budget_of_its_own(small, pictures):
    live = small.look(pictures[0], method="vidcom2", retention=1 / 3).see(pictures[1], retention=1 / 9)
    assert live.rows == 3 + 192 + 64
    assert live.trace.stages[0].after == (256,)
    assert live.see(pictures[2]).rows == 4 + 192 + 64 + 192
    assert live.see(pictures[2], tokens=64).rows == 4 + 192 + 2 * 64
    answer = live.ask("What?", **NEW)
    assert answer.asked == pytest.approx(2 / 9)
    assert answer.met


@pytest.mark.parametrize("method", [None, "vidcom2", "v2drop", "visiondrop"])
def test_any_picture_is_forgotten(small, pictures, method):
    live = small.look(pictures[0], method=method)
    for picture in pictures[1:3]:
        live = live.see(picture)
    before = live.ask("What?", **NEW).tokens
    for place in (0, 1, 2, -1):
        left = live.forget(place)
        kept = [picture for at, picture in enumerate(pictures[:3]) if at != place % 3]
        assert_same_prompt(left.prompt("What?"), small.prepare(kept, "What?"))
        assert left.see(pictures[3]).forget().ask("What?", **NEW).looked == left.tokens
    assert live.ask("What?", **NEW).tokens == before
    assert (
        live.forget(2).ask("What?", **NEW).tokens
        == small.look(pictures[0], method=method).see(pictures[1]).ask("What?", **NEW).tokens
    )


@pytest.mark.filterwarnings("ignore:The last layer has:UserWarning")
@pytest.mark.parametrize("method", ["vidcom2", "v2drop"])
def test_the_pooling_mask_has_the_columns_of_all_that_was_seen(small, pictures, method):
    grown = small.look(pictures[0], method=method).see(pictures[1], after=["What?", "That."]).see(pictures[2])
    for live in (grown, grown.forget(1), grown.forget(0), grown.forget(0).forget(1)):
        (mask,), vision = live.trace.pooling_mask, is_vision(small.model.config, live.look.ids[0])
        (origin,), columns = live.trace.cuts[-1].origin, vision.nonzero()[:, 0]
        assert len(mask) == live.tokens
        assert mask[~vision].all()
        assert int(mask[vision].sum()) == len(origin) < len(columns)
        if method == "v2drop":  # rows that leave a tower stand in the first columns of their picture
            assert torch.equal((mask * vision).nonzero()[:, 0], columns[origin])
        assert torch.equal(pickle.loads(pickle.dumps(live.trace)).pooling_mask[0], mask)


TEMPLATES = {
    "pictures first": None,
    "where they are written": "{% for m in messages %}<{{ m.role }}>{% for p in m.content %}{% if p.type == 'image' %}"
    "[<image>]{% else %} {{ p.text }}{% endif %}{% endfor %}</>{% endfor %}<assistant>",
    "nothing between": "{% for m in messages %}{% for p in m.content %}{% if p.type == 'image' %}<image>{% else %}"
    "{{ p.text }}{% endif %}{% endfor %}{% endfor %}",
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_ids_are_those_of_the_conversation_whatever_is_forgotten(small, pictures, template, monkeypatch):
    if TEMPLATES[template] is not None:
        monkeypatch.setattr(small.processor, "chat_template", TEMPLATES[template])
    rng, forgotten = random.Random(template), 0
    for _ in range(3):
        start = [user(*[image(pictures[0]), text("One.")][: rng.randint(1, 2)])]
        live = small.look(messages=start, method="vidcom2")
        for number in range(6):
            said = [f"Question {number}?", f"Answer {number}."] * rng.randint(0, 2)
            live = live.see(pictures[number % 4], after=said)
            if rng.random() < 0.6:
                with_texts = rng.random() < 0.5
                try:
                    live = live.forget(rng.randrange(len(live.pictures)), with_texts=with_texts)
                    forgotten += 1
                except fv.UnsupportedError:  # "?" and "A" are one token without a picture between them
                    assert template == "nothing between"
                    assert not with_texts
            prompt = live.prompt("What?")
            fresh = prepare(small, prompt.conversation)
            assert torch.equal(prompt.inputs["input_ids"], fresh.inputs["input_ids"])
            counts = {layer.columns(0, 1, live.look.ids.device).max().item() for layer in live.look.cache.layers}
            assert max(counts) < live.tokens == live.look.cache.get_seq_length()
        assert len(live.ask("What?", **NEW).tokens) == 4
    assert forgotten > 4


def test_turns_of_any_roles_stand_between_pictures(small, pictures):
    messages = [
        {"role": "system", "content": "Be brief."},
        user(text("One."), image(pictures[0])),
        user(text("Two."), text("Three.")),
        {"role": "system", "content": "Look well."},
        user(image(pictures[1]), text("Four."), image(pictures[2]), text("Five.")),
        {"role": "assistant", "content": [text("Six."), text("Seven.")]},
        user(text("What?"), text("And now?")),
    ]
    conversation = Conversation.of(messages)
    live = small.look(messages=[messages[0], user(text("One."), image(pictures[0]))], method="vidcom2")
    for number in (1, 2):
        behind, _ = conversation.split(number)[1].split(1)
        live = live.see(behind.media[0], after=behind.without_media([0]))
    prompt, fresh = live.prompt(conversation.split(3)[1]), small.prepare(messages=messages)
    assert_same_prompt(prompt, fresh)
    assert prompt.conversation.turns == conversation.turns
    with pytest.raises(fv.InputError, match="special"):
        live.prompt(Conversation((("user", (("text", "<image>"),)),)))
    with pytest.raises(fv.InputError, match="special"):
        live.ask("What?", after=["<image>", "A cat."])


def test_memory_is_bounded_however_many_frames_come(small, pictures):
    live = small.look(pictures[0], method="vidcom2")
    rows, sizes, columns = set(), set(), set()
    for number in range(40):
        earlier, live = weakref.ref(live.look), live.see(pictures[number % 4], at=number, memory=600)
        rows.add(live.rows)
        sizes.add(live.nbytes)
        columns.add(live.look.cache.layers[0].columns(0, 1, live.look.ids.device).max().item())
    gc.collect()
    assert earlier() is None
    assert max(rows) <= 600
    assert len(live.pictures) == 3
    assert max(columns) < 4 * 576
    assert len(sizes) <= 3
    assert [seen.at for seen in live.pictures] == [37, 38, 39]
    assert live.tokens == live.look.cache.get_seq_length() == 4 + 3 * 576


def test_an_interrupt_leaves_the_old_look_whole(small, pictures, monkeypatch):
    layer, interrupts = small.model.model.language_model.layers[3], []

    def stop(*arguments, forward=layer.forward, **named):
        if interrupts:
            raise KeyboardInterrupt
        return forward(*arguments, **named)

    monkeypatch.setattr(layer, "forward", stop)
    live = small.look(pictures[0], method="v2drop")
    before = live.ask("What?", **NEW).tokens
    interrupts.append(True)
    with pytest.raises(KeyboardInterrupt):
        live.see(pictures[1])
    interrupts.clear()
    assert live.ask("What?", **NEW).tokens == before
    assert len(live.pictures) == 1


def test_one_sees_while_others_ask(small, pictures):
    live = small.look(pictures[0], method="v2drop")
    expected = live.ask("What?", **NEW).tokens
    answers = []

    def ask():
        answers.extend(live.ask("What?", **NEW).tokens for _ in range(3))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    grown = live
    for picture in pictures[1:]:
        grown = grown.see(picture)
    for thread in threads:
        thread.join()
    assert answers == [expected] * 6
    assert len(grown.pictures) == 4


def test_what_is_asked_for_wrongly_is_refused(small, pictures):
    live = small.look(pictures[0], method="v2drop")
    with pytest.raises(fv.SettingError, match="memory"):
        live.see(pictures[1], memory=100)
    with pytest.raises(fv.SettingError, match="stay"):
        live.forget()
    with pytest.raises(fv.SettingError, match="2 looks"):
        live.see(pictures[1]).forget(2)
    with pytest.raises(fv.SettingError, match="budget"):
        small.look(pictures[0]).see(pictures[1], retention=0.5)
    with pytest.raises(fv.BudgetError):
        live.see(pictures[1], retention=0.01)
    with pytest.raises(fv.SettingError, match="at"):
        live.see(pictures[1], at="noon")
    with pytest.raises(fv.FoveateError, match="memry"):
        live.see(pictures[1], memry=100)
    with pytest.raises(fv.InputError):
        live.see("nothing.png")
    with fv.drop(small.model, "v2drop"), pytest.raises(fv.SessionError):
        live.see(pictures[1])


CAUSAL = [fv.EVS(), fv.EVS(retention=0.25), fv.DTD(share=0.75), fv.DTD(threshold=0.9999), fv.EVS() + fv.V2Drop()]


@pytest.mark.filterwarnings("ignore:evs does not meet the budget")  # its first frame stays whole
@pytest.mark.parametrize("method", CAUSAL, ids=str)
def test_a_frame_is_compared_with_the_last_that_was_seen(method, small, pictures):
    """The first stays whole; of a later one a quarter, or what changes."""
    live = small.look(pictures[0], method=method)
    assert live.trace.stages[0].after == (576,) if live.trace.stages else live.rows > 576
    first = live.pictures[0].last.features
    assert first.shape[0] == 576
    other, same = live.see(pictures[1]), live.see(pictures[0])
    counts = (144, 144)
    if "threshold" in str(method):
        counts = (576, 0)
    for grown, count in zip((other, same), counts, strict=True):
        assert grown.trace.stages[0].after == (576 + count,)
    assert live.pictures[0].last.features is first
    assert torch.equal(same.pictures[1].last.features, first)
    assert not torch.equal(other.pictures[1].last.features, first)
    assert other.ask("What?", **NEW).tokens


@pytest.mark.parametrize("kind", [fv.EVS, fv.DTD])
def test_frames_one_by_one_are_chosen_as_in_one_film(kind):
    features, method = torch.randn(3, 16, 8, generator=torch.Generator().manual_seed(0)), kind(retention=0.5)
    last = LastFrame(features[0])
    goes_on = method.goes_on(last)
    assert goes_on == method
    whole = method.select(features, 16 + 12)[16:] - 16
    assert torch.equal(goes_on.select(features[1:], 12), whole)
