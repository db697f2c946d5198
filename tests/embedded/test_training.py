"""The training code: packing, resume, growing, export. Tiny networks, no trained weights."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from data import ask, dense_targets, pictures
from export import export, import_network, llava, processor
from foveate.embedded import FILM_TASKS, TASKS
from foveate.embedded.drawing import COLOURS, SHAPES
from foveate.embedded.film_model import for_films
from foveate.embedded.films import film
from foveate.embedded.questions import all_questions, film_questions
from foveate.embedded.scenes import CHARACTERS, rng_for, scene
from grow import grow
from labels import UNKNOWN, labels, places
from losses import dense_loss, right_answers
from network import Network, Shape
from packing import pack
from stages import STAGES, Stage
from tokenizer import ASSISTANT, BOS, EOS, IMAGE, SIZE, USER, build
from train import Trainer, adopt, save

TINY = Shape(width=32, heads=2, tower_layers=2, tower_mlp=48, layers=2, mlp=40)
RATES = {"tower": 1e-3, "rest": 1e-3, "decoder": 1e-3, "projector": 1e-3}
EVERY = dict.fromkeys(TASKS, 1.0)


@pytest.fixture(scope="module")
def tokenizer():
    return build()


def test_questions_and_answers_survive_the_tokenizer(tokenizer):
    for index in range(40):
        for questions in all_questions(scene("held-out", index), rng_for("held-out", index, 1)).values():
            for q in questions:
                for words in (q.question, q.answer):
                    ids = tokenizer.encode(words, add_special_tokens=False).ids
                    assert tokenizer.decode(ids) == words
    ids = tokenizer.encode("é ∑ 汉", add_special_tokens=False).ids
    assert tokenizer.decode(ids) == "é ∑ 汉"


def test_a_prompt_has_its_special_tokens_and_one_token_a_character(tokenizer):
    ids = tokenizer.encode("USER: <image>\nWhat does the text say? ASSISTANT: K7XQ</s>").ids
    assert ids[:3] == [BOS, USER, IMAGE]
    answer = ids.index(ASSISTANT)
    assert [tokenizer.decode([i]) for i in ids[answer + 1 : -1]] == ["K", "7", "X", "Q"]
    assert ids[-1] == EOS
    assert tokenizer.get_vocab_size() <= SIZE  # the rest of the embedding is padding


def test_places_count_from_the_left_and_the_top_and_stay_open_beside_near_ties():
    assert places([50.0, 10.0, 90.0]).tolist() == [2, 1, 3]
    assert places([50.0, 10.0, 60.0]).tolist() == [UNKNOWN, 1, UNKNOWN]
    assert places([]).tolist() == []
    assert places([30.0 * i for i in range(9)]).tolist() == [UNKNOWN] * 9
    one = scene("held-out", 3, 168)
    found = labels(one)
    for thing, place in zip(one.things, places([t.x for t in one.things]), strict=True):
        patch = int(thing.y) // 14 * 12 + int(thing.x) // 14
        if thing.shape not in ("ring", "moon"):
            assert found.across[patch] == place


def test_what_has_no_place_costs_nothing():
    scores = {name: torch.zeros(1, 4, size) for name, size in Network(TINY).heads.sizes.items()}
    targets = {name: value[:, :4] for name, value in dense_targets([scene("train", 1, 84)]).items()}
    targets["across"] = torch.full((1, 4), UNKNOWN)
    one, _ = dense_loss(scores, targets)
    scores["across"] = torch.randn(1, 4, 9)
    two, _ = dense_loss(scores, targets)
    assert one == two
    assert one.isfinite()


def test_a_stage_may_begin_with_weights_whose_heads_were_smaller():
    older = Network(TINY).state_dict()
    older["heads.dense.weight"], older["heads.dense.bias"] = (
        older[f"heads.dense.{kind}"][:10].clone() + 1 for kind in ("weight", "bias")
    )
    network = Network(TINY, seed=3)
    before = network.heads.dense.weight.clone()
    adopt(network, older)
    torch.testing.assert_close(network.heads.dense.weight[:10], older["heads.dense.weight"])
    torch.testing.assert_close(network.heads.dense.weight[10:], before[10:])
    torch.testing.assert_close(network.tower.patch.weight, older["tower.patch.weight"])


def test_labels_agree_with_the_scene():
    one = scene("train", 7, 168, dense=True)
    found = labels(one)
    grid = 168 // 14
    for thing in one.things:
        patch = int(thing.y) // 14 * grid + int(thing.x) // 14
        assert found.centre[patch] == 1
        if thing.shape not in ("ring", "moon"):  # the others have ink at their centre
            assert found.shape[patch] == SHAPES.index(thing.shape) + 1
            assert found.colour[patch] == list(COLOURS).index(thing.colour) + 1
            np.testing.assert_allclose((found.xy[patch] + 1) / 2 * 168, [thing.x, thing.y], atol=1e-3)
    assert found.present[: len(SHAPES)].sum() == len({t.shape for t in one.things})
    drawn = {c for text in one.texts for c in text.characters}
    assert {CHARACTERS[c - 1] for c in found.character if c} <= drawn
    empty = labels(replace(one, things=(), texts=(), owner=np.zeros_like(one.owner)))
    assert not empty.shape.any()
    assert not empty.present.any()


@torch.no_grad()
def test_packing_equals_asking_one_at_a_time(tokenizer):
    network = Network(TINY).eval()
    one = scene("held-out", 1, 84)
    questions = ask(one, rng_for("held-out", 1, 1), 5, EVERY)
    features, _ = network.tower(pictures([one]), torch.float32)
    prefix = network.prefix(features)

    def logits(some):
        packed = pack([some], tokenizer, prefix.shape[1])
        hidden = network.decoder(prefix, network.decoder.embed(packed.ids), packed.position, packed.mask)
        return network.logits(hidden[0][packed.at])

    alone = torch.cat([logits([q]) for q in questions])
    torch.testing.assert_close(logits(questions), alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_after_the_exit_the_image_is_gone(tokenizer):
    network = Network(TINY).eval()
    questions = ask(scene("held-out", 1, 84), rng_for("held-out", 1, 1), 3, EVERY)
    hidden = []
    for seed in (1, 2):
        image = torch.randn(1, 37, 32, generator=torch.Generator().manual_seed(seed))
        packed = pack([questions], tokenizer, 38)
        text = network.decoder.embed(packed.ids)
        hidden.append(network.decoder(network.prefix(image), text, packed.position, packed.mask, 0))
    torch.testing.assert_close(hidden[0], hidden[1])


@torch.no_grad()
def test_the_exported_model_gives_our_logits(tmp_path, tokenizer):
    network = Network(TINY).eval()
    model, preparer = llava(network), processor()
    one = scene("held-out", 2)
    questions = ask(one, rng_for("held-out", 2, 1), 4, EVERY)
    features, _ = network.tower(pictures([one]), torch.float32)
    packed = pack([questions], tokenizer, 578)
    hidden = network.decoder(network.prefix(features), network.decoder.embed(packed.ids), packed.position, packed.mask)
    own, start = network.logits(hidden[0][packed.at]), 0
    for q in questions:
        text = f"USER: <image>\n{q.question} ASSISTANT: {q.answer}</s>"
        theirs = model(**preparer(images=Image.fromarray(one.image), text=text, return_tensors="pt")).logits[0]
        count = len(tokenizer.encode(q.answer, add_special_tokens=False).ids) + 1
        torch.testing.assert_close(theirs[-count - 1 : -1], own[start : start + count], atol=1e-4, rtol=1e-4)
        start += count
    export(network, tmp_path)
    again = import_network(tmp_path)
    for name in ("decoder.layers.1.down.weight", "tower.layers.0.q.bias", "project2.weight", "tower.patch.weight"):
        torch.testing.assert_close(again.state_dict()[name], network.state_dict()[name].bfloat16().float())
    with torch.enable_grad():  # training goes on from the exported folder alone
        report = Trainer("x", small_stage(), again).advance()
    assert 0 < report["loss"] < 50


@torch.no_grad()
def test_the_model_for_films_gives_our_logits_about_frames(tokenizer):
    network = Network(replace(TINY, grid=24)).eval()
    model, preparer = llava(network), processor()
    model, preparer = for_films(model, preparer)
    one = film("held-out", 2, frames=4)
    questions = film_questions(one, rng_for("held-out", 2, 1))[:3]
    features, _ = network.tower(pictures(list(one.frames)), torch.float32)
    prefix = network.prefix(features, frames=4)
    assert prefix.shape[1] == 2 + 4 * 144 + 3
    packed = pack([questions], tokenizer, prefix.shape[1])
    hidden = network.decoder(prefix, network.decoder.embed(packed.ids), packed.position, packed.mask)
    own, start = network.logits(hidden[0][packed.at]), 0
    frames = [frame.image for frame in one.frames]
    for q in questions:
        text = f"USER: <video>{q.question} ASSISTANT: {q.answer}</s>"
        theirs = model(**preparer(videos=[frames], text=text, return_tensors="pt")).logits[0]
        count = len(tokenizer.encode(q.answer, add_special_tokens=False).ids) + 1
        torch.testing.assert_close(theirs[-count - 1 : -1], own[start : start + count], atol=1e-4, rtol=1e-4)
        start += count


@torch.no_grad()
def test_growing_without_copies_changes_nothing_and_copies_share_the_output():
    network = Network(TINY)
    same = grow(network, (1, 1)).state_dict()
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(same[name], tensor)
    deep = grow(network, (1, 3)).state_dict()
    total = sum(deep[f"decoder.layers.{i}.down.weight"] for i in (1, 2, 3))
    torch.testing.assert_close(total, network.state_dict()["decoder.layers.1.down.weight"])
    torch.testing.assert_close(deep["decoder.layers.3.q.weight"], network.state_dict()["decoder.layers.1.q.weight"])


def small_stage(**settings) -> Stage:
    return Stage(images=24, first=5_000_000, mix={84: 0.5, 168: 0.5}, rates=RATES, batch={84: 2, 168: 1}, **settings)


@pytest.mark.parametrize("joint", [False, True])
def test_a_resumed_run_is_the_run_that_never_stopped(tmp_path, joint):
    stage = small_stage(joint=joint, exits=0.5, exit_from=1)
    straight = Trainer("x", stage, Network(TINY))
    for _ in range(4):
        straight.advance()
    first = Trainer("x", stage, Network(TINY))
    for _ in range(2):
        first.advance()
    save(first.state(), tmp_path / "checkpoint.pt")
    second = Trainer("x", stage, Network(TINY, seed=1))
    second.restore(torch.load(tmp_path / "checkpoint.pt", weights_only=True))
    for _ in range(2):
        second.advance()
    assert (second.step, second.seen) == (straight.step, straight.seen)
    for name, tensor in straight.network.state_dict().items():
        assert torch.equal(tensor, second.network.state_dict()[name]), name


def test_the_learning_rate_warms_up_holds_and_falls_to_two_percent():
    trainer = Trainer("x", small_stage(constant=0.5), Network(TINY))
    assert trainer.factor() == pytest.approx(1 / 40)
    trainer.step, trainer.seen = 100, 12
    assert trainer.factor() == pytest.approx(1)
    trainer.seen = 18
    assert trainer.factor() == pytest.approx(0.51)
    trainer.seen = 24
    assert trainer.factor() == pytest.approx(0.02)


def test_stages_share_no_scene():
    spans = sorted((s.first, s.first + s.images + 200) for s in STAGES.values())
    assert all(stop <= start for (_, stop), (start, _) in pairwise(spans))


def test_marks_count_whole_answers(tokenizer):
    packed = pack([ask(scene("held-out", 3, 84), rng_for("held-out", 3, 1), 4, EVERY)], tokenizer, 38)
    logits = torch.nn.functional.one_hot(packed.next, SIZE).float()
    assert right_answers(logits, packed, 4) == [True] * 4
    logits[0] = 0
    assert right_answers(logits, packed, 4) == [False, True, True, True]


def test_a_stage_trains_on_sketches_and_on_films():
    stage = replace(small_stage(), sketches=1.0, mix={168: 1.0}, batch={168: 2})
    trainer = Trainer("x", stage, Network(TINY))
    assert trainer.draw(0, 168).sketched
    assert 0 < trainer.advance()["loss"] < 60
    trainer = Trainer("x", replace(stage, films=1.0), Network(TINY))
    report = trainer.advance()
    assert 0 < report["loss"] < 60
    assert set(report) & set(FILM_TASKS)
