"""The training code: packing, resume, growing, export. Tiny networks, no trained weights."""

import pytest
import torch
from PIL import Image

from data import ask, pictures
from export import export, import_network, llava, processor
from foveate.embedded import TASKS
from foveate.embedded.scenes import rng_for, scene
from network import Network, Shape
from packing import pack
from stages import Stage
from tokenizer import build
from train import Trainer, save

TINY = Shape(width=32, heads=2, tower_layers=2, tower_mlp=48, layers=2, mlp=40)
RATES = {"tower": 1e-3, "rest": 1e-3, "decoder": 1e-3, "projector": 1e-3}
EVERY = dict.fromkeys(TASKS, 1.0)


@pytest.fixture(scope="module")
def tokenizer():
    return build()


def logits(network, prefix, questions, tokenizer):
    """Those of the answers, packed behind what is in front of every question."""
    packed = pack([questions], tokenizer, prefix.shape[1])
    hidden = network.decoder(prefix, network.decoder.embed(packed.ids), packed.position, packed.mask)
    return network.logits(hidden[0][packed.at])


def check_logits(network, prefix, questions, tokenizer, answered):
    """What a model of transformers answers to each question and its answer is what the network has of all."""
    own, start = logits(network, prefix, questions, tokenizer), 0
    for q in questions:
        theirs = answered(f"{q.question} ASSISTANT: {q.answer}</s>").logits[0]
        count = len(tokenizer.encode(q.answer, add_special_tokens=False).ids) + 1
        torch.testing.assert_close(theirs[-count - 1 : -1], own[start : start + count], atol=1e-4, rtol=1e-4)
        start += count


@torch.no_grad()
def test_packing_equals_asking_one_at_a_time(tokenizer):
    network = Network(TINY).eval()
    one = scene("held-out", 1, 84)
    questions = ask(one, rng_for("held-out", 1, 1), 5, EVERY)
    features, _ = network.tower(pictures([one]), torch.float32)
    prefix = network.prefix(features)
    alone = torch.cat([logits(network, prefix, [q], tokenizer) for q in questions])
    torch.testing.assert_close(logits(network, prefix, questions, tokenizer), alone, atol=1e-5, rtol=1e-5)


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

    def answered(text):
        return model(**preparer(images=Image.fromarray(one.image), text=f"USER: <image>\n{text}", return_tensors="pt"))

    check_logits(network, network.prefix(features), questions, tokenizer, answered)
    export(network, tmp_path)
    again = import_network(tmp_path)
    for name in ("decoder.layers.1.down.weight", "tower.layers.0.q.bias", "project2.weight", "tower.patch.weight"):
        torch.testing.assert_close(again.state_dict()[name], network.state_dict()[name].bfloat16().float())
    with torch.enable_grad():  # training goes on from the exported folder alone
        report = Trainer("x", small_stage(), again).advance()
    assert 0 < report["loss"] < 50


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
