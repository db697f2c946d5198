"""The looks that the example server keeps: whatever a conversation is, the model gets the ids that it gets without."""

import base64
import io
import random
import sys
from pathlib import Path

import pytest
from PIL import Image

import foveate as fv
from foveate.registry import family_for
from tests.cli.conftest import save_tiny_llava
from tests.films import film

pytest.importorskip("fastapi")
sys.path.append(str(Path(__file__).parents[1] / "examples" / "servers"))
from own import options_of, server

pytestmark = pytest.mark.filterwarnings("ignore:v2drop is not the best choice")

WORDS = ("w1", "w2 w3", "What is this ?", "yes", "no", "", " ")
TURN = "{{ 'USER: ' if m.role == 'user' else 'ASSISTANT: ' if m.role == 'assistant' else 'w46 ' }}"
PART = "{% if p.type == 'image' %}<image> {% else %}{{ p.text }} {% endif %}"
TEMPLATES = {
    "where they are written": "{% for m in messages %}" + TURN + "{% for p in m.content %}" + PART + "{% endfor %}"
    "{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}ASSISTANT: ",
    "pictures first": "{% for m in messages %}" + TURN + "{% for p in m.content if p.type == 'image' %}" + PART
    + "{% endfor %}{% for p in m.content if p.type != 'image' %}" + PART + "{% endfor %}{% endfor %}ASSISTANT: ",
    "texts first": "{% for m in messages %}" + TURN + "{% for p in m.content if p.type != 'image' %}" + PART
    + "{% endfor %}{% for p in m.content if p.type == 'image' %}" + PART + "{% endfor %}{% endfor %}ASSISTANT: ",
}  # fmt: skip


def shown(number):
    file = io.BytesIO()
    Image.effect_noise((84, 84), 20 + number).convert("RGB").save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


SHOWN = [shown(number) for number in range(3)]


def said(text):
    return {"type": "text", "text": text}


def drawn(seed):
    """A conversation that a client may send: any roles in any order, any texts and pictures in any order."""
    rng = random.Random(seed)
    messages = []
    for _ in range(rng.randint(1, 5)):
        role = rng.choice(("user", "user", "assistant", "system"))
        content = [said(rng.choice(WORDS)) for _ in range(rng.randint(0, 2))]
        if role == "user":
            content += [rng.choice(SHOWN) for _ in range(rng.randint(0, 2))]
        elif rng.random() < 0.1:
            content.append(rng.choice(SHOWN))
        rng.shuffle(content)
        messages.append({"role": role, "content": content or rng.choice(WORDS[:3])})
    last = [said("What is this ?"), *([rng.choice(SHOWN)] * rng.randint(0, 1)), *([said("w4")] * rng.randint(0, 1))]
    rng.shuffle(last)
    return [*messages, {"role": "user", "content": last}]


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    return fv.load(save_tiny_llava(tmp_path_factory.mktemp("looked"), layers=6))


@pytest.fixture
def ids(vlm, monkeypatch):
    """The ids that each call of `generate` gets."""
    calls, generate = [], vlm.model.generate

    def heard(*arguments, **settings):
        calls.append(settings["input_ids"][0].tolist())
        return generate(*arguments, **settings)

    monkeypatch.setattr(vlm.model, "generate", heard)
    return calls


@pytest.fixture
def client(vlm):
    """Asks a server with looks or without one."""
    from fastapi.testclient import TestClient

    clients = {}

    def ask(looks, messages, **fields):
        if looks not in clients:
            clients[looks] = TestClient(server(vlm, options_of(["--looks", str(looks)])))
        body = {"model": vlm.name, "messages": messages, "max_tokens": 2, "method": "vidcom2", "retention": 0.5}
        return clients[looks].post("/v1/chat/completions", json=body | fields)

    return ask


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_model_gets_the_ids_that_it_gets_without_looks(vlm, client, ids, template, monkeypatch):
    monkeypatch.setattr(vlm.processor, "chat_template", TEMPLATES[template])
    looked = 0
    for seed in range(40):
        messages = drawn(seed)
        replies = [client(looks, messages) for looks in (0, 3)]
        assert [reply.status_code for reply in replies] == [200, 200], replies[1].text
        assert ids[-1] == ids[-2], f"seed {seed}"
        looked += "prompt_tokens_details" in replies[1].json()["usage"]
    assert looked > 10 or template == "texts first"


USER = {"role": "user", "content": [SHOWN[0], said("What is this ?")]}
LONGER = [USER, {"role": "assistant", "content": "yes"}, {"role": "user", "content": [said("w1"), SHOWN[1]]}]
"""The last turn has its text before its picture, as a much used client sends them."""


def shares(reply):
    assert reply.status_code == 200, reply.text
    body = reply.json()
    return body["choices"], body["foveate"], body["usage"]


@pytest.fixture
def towers(vlm):
    """One entry for each run of the vision tower."""
    runs = []
    hook = vlm.model.model.vision_tower.register_forward_hook(lambda *_: runs.append(1))
    yield runs
    hook.remove()


def test_one_request_has_one_answer_whatever_was_asked_before(client, towers):
    for method, retention in (("v2drop", 0.5), ("vidcom2", 0.25), (None, None)):
        drops = {"method": method, "retention": retention}
        fresh = shares(client(2, LONGER, **drops))
        client(3, LONGER[:1], **drops)
        towers.clear()
        assert shares(client(3, LONGER, **drops)) == fresh
        assert len(towers) == 1  # the first picture's look went on
        assert fresh[2]["prompt_tokens_details"]["cached_tokens"] > 72
        towers.clear()
        client(3, [*LONGER, {"role": "assistant", "content": "no"}, {"role": "user", "content": "What ?"}], **drops)
        assert not towers


@pytest.mark.filterwarnings("ignore:this model reads no videos", "ignore:the processor cuts off")
def test_a_film_is_looked_at_as_one(vlm, client, towers, tmp_path):
    data = base64.b64encode(film(tmp_path / "clip.mp4", 6).read_bytes()).decode()
    part = {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{data}"}, "max_frames": 3}
    turns = [{"role": "user", "content": [part, said("What ?")]}, *LONGER[1:]]
    without = shares(client(0, turns[:1], method="v2drop"))
    assert shares(client(3, turns[:1], method="v2drop"))[:2] == without[:2]
    towers.clear()
    assert shares(client(3, turns, method="v2drop"))[2]["prompt_tokens_details"]["cached_tokens"] > 4 * 36
    assert len(towers) == 1


@pytest.mark.filterwarnings("ignore:texts stand between")
def test_a_model_whose_looks_cannot_grow_looks_at_all_together(vlm, client, towers, monkeypatch):
    monkeypatch.setattr(type(family_for(vlm.model)), "grows", False)
    without = shares(client(0, LONGER, method="v2drop"))
    client(3, LONGER[:1], method="v2drop")
    towers.clear()
    assert shares(client(3, LONGER, method="v2drop"))[:2] == without[:2]
    assert len(towers) == 1


def test_where_no_look_is_possible_the_answer_is_that_without(client):
    for turns, drops in (
        (LONGER, {"method": "fastv"}),  # reads the question
        (LONGER, {"method": "vidcom2", "tokens": 40, "retention": None}),  # more than a picture has, fewer than both
        ([{"role": "system", "content": [SHOWN[0]]}, *LONGER], {}),
    ):
        with_looks, without = client(3, turns, **drops), client(0, turns, **drops)
        assert shares(with_looks) == shares(without)
