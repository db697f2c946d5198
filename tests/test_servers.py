"""The servers of examples/servers, asked over HTTP by real clients.

Needs FastAPI, uvicorn and OpenAI's client: `make setup-page` installs the first two.
"""

import base64
import importlib.util
import json
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest
import torch
from PIL import Image

import foveate as fv
from foveate import embedded
from tests.ask.test_pictures import png_claiming
from tests.cli.conftest import save_tiny_llava
from tests.films import film
from tests.forked import forked

MISSING = [name for name in ("fastapi", "uvicorn", "openai") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.skipif(
        bool(MISSING), reason=f"THE SERVERS ARE NOT TESTED: {', '.join(MISSING)} missing; see make setup-page"
    ),
    pytest.mark.filterwarnings("ignore:v2drop is not the best choice"),
]
SERVERS = Path(__file__).parents[1] / "examples" / "servers"
sys.path.append(str(SERVERS))
QUESTIONS = ("What is written ?", "How many green objects are there?")
METHOD, RETENTION = "v2drop", 0.1
SCRIPT = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
PATIENCE = 180  # seconds: a busy machine


@contextmanager
def served(script, *arguments, says=None):
    """The address of a server that listens, while the context lasts; what it says first goes into the list `says`."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SERVERS / script), *map(str, arguments), "--port", str(port)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE if says is not None else subprocess.DEVNULL, stderr=log
        )
        address = f"http://localhost:{port}"
        try:
            until = time.monotonic() + PATIENCE
            while True:
                try:
                    httpx.get(f"{address}/health").raise_for_status()
                    break
                except httpx.HTTPError:
                    said = os.pread(log.fileno(), 1 << 16, 0).decode()
                    assert process.poll() is None, f"the server has ended: {said[-2000:]}"
                    assert time.monotonic() < until, "the server does not listen"
                    time.sleep(0.5)
            if says is not None:
                says.append(process.stdout.readline().decode())
            yield address
        finally:
            process.terminate()
            process.communicate(timeout=PATIENCE)


@pytest.fixture(scope="module")
def picture():
    return base64.b64encode(Path(embedded.picture()).read_bytes()).decode()


@pytest.fixture(scope="module")
def expected():
    """What each question gets alone, with the method and without."""
    vlm = fv.load()
    alone = {}
    for question in QUESTIONS:
        dropped = vlm.ask(embedded.picture(), question, method=METHOD, retention=RETENTION, max_new_tokens=8)
        alone[question] = dropped.text, vlm.ask(embedded.picture(), question, max_new_tokens=8).text
    assert any(dropped != full for dropped, full in alone.values())
    return alone


# -- a server of one's own ------------------------------------------------------------------------------------------


@contextmanager
def listening(vlm, *words):
    """OpenAI's client of the server that asks this model, in a thread of this process."""
    import openai
    import uvicorn

    own = runpy.run_path(str(SERVERS / "own.py"))
    with socket.create_server(("127.0.0.1", 0)) as bound:
        app = own["server"](vlm, own["options_of"](list(map(str, words))))
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        address = f"http://127.0.0.1:{bound.getsockname()[1]}"
        try:
            with openai.OpenAI(base_url=f"{address}/v1", api_key="-", timeout=PATIENCE, max_retries=0) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def client():
    """Of a server of the embedded model."""
    with listening(fv.load("embedded")) as client:
        yield client


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
    """A model that nothing trained: it says words until it may say no more."""
    return fv.load(save_tiny_llava(tmp_path_factory.mktemp("endless")))


def shown(picture, **more):
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}", "detail": "auto"}} | more


def said(text):
    return {"type": "text", "text": text}


def asked(client, *parts, model="embedded", **settings):
    """What the server answers to one turn of these parts; fields that are not OpenAI's go in as `extra_body`."""
    ours = {name: settings.pop(name) for name in ("method", "retention", "tokens") if name in settings}
    messages = settings.pop("messages", [{"role": "user", "content": list(parts)}])
    return client.chat.completions.create(model=model, messages=messages, extra_body=ours, **settings)


def refused(client, *parts, status=400, **settings):
    """The error of OpenAI's client for this: its message, and which field it is about."""
    import openai

    kinds = {400: openai.BadRequestError, 404: openai.NotFoundError, 429: openai.RateLimitError}
    with pytest.raises(kinds.get(status, openai.APIStatusError)) as caught:
        asked(client, *parts, **settings)
    assert caught.value.status_code == status, caught.value
    assert set(caught.value.body) == {"message", "type", "param", "code"}
    return caught.value


def test_an_answer_is_that_of_ask_whole_and_streamed(client, picture, expected):
    for question in QUESTIONS:
        for place, ours in enumerate(
            ({"method": METHOD, "retention": RETENTION}, {"user": "me", "metadata": {"a": "b"}})
        ):
            whole = asked(client, shown(picture), said(question), max_tokens=8, **ours)
            assert whole.choices[0].message.content == expected[question][place]
            assert whole.choices[0].finish_reason == "stop"
            counted = {"include_usage": True}
            parts = shown(picture), said(question)
            chunks = list(asked(client, *parts, max_completion_tokens=8, stream=True, stream_options=counted, **ours))
            *pieces, last, usage = chunks
            assert "".join(chunk.choices[0].delta.content for chunk in pieces) == expected[question][place]
            assert {chunk.choices[0].finish_reason for chunk in pieces} == {None}
            assert (last.choices[0].finish_reason, usage.choices) == ("stop", [])
            assert whole.usage == usage.usage
            assert len({chunk.id for chunk in chunks}) == 1
            assert last.foveate == whole.foveate
            assert (whole.foveate["retention"] < 0.11) == bool(not place)


def test_it_says_why_an_answer_ended(client, picture):
    for stream in (False, True):
        for settings, text, reason in (
            ({"max_tokens": 6}, "36KUM", "stop"),  # the sixth token ends it
            ({"max_tokens": 5}, "36KUM", "length"),
            ({"max_tokens": 3, "stop": "K"}, "36", "stop"),  # also where it is the last that may be said
            ({"max_tokens": 3, "stop": ["M", "6K"]}, "3", "stop"),
            ({"max_tokens": 3, "stop": "M"}, "36K", "length"),
        ):
            reply = asked(client, shown(picture), said("What does the text say?"), stream=stream, **settings)
            if stream:
                *pieces, last = reply
                assert "".join(chunk.choices[0].delta.content for chunk in pieces) == text
                assert last.choices[0].finish_reason == reason
            else:
                assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == (text, reason)
                assert reply.usage.completion_tokens <= settings["max_tokens"]
    refused(client, said("What ?"), stop=list("abcde"))
    refused(client, said("What ?"), stop="")


def test_a_request_without_a_picture_says_that_the_method_had_nothing_to_drop(client):
    reply = asked(client, said("What is it?"), method="v2drop", max_tokens=1)
    assert "nothing to drop" in reply.foveate["notes"][0]


def test_a_conversation_that_goes_on_runs_its_pictures_once(picture):
    vlm, towers = fv.load("embedded"), []
    hook = vlm.model.model.vision_tower.register_forward_hook(lambda *_: towers.append(1))
    ours = {"method": METHOD, "retention": RETENTION}
    live = vlm.look(embedded.picture(), **ours)
    first = live.ask(QUESTIONS[0], max_new_tokens=8).text
    live = live.see(embedded.picture(), after=[QUESTIONS[0], first])
    second = live.ask(QUESTIONS[1], max_new_tokens=8).text
    turns = [
        {"role": "user", "content": [shown(picture), said(QUESTIONS[0])]},
        {"role": "assistant", "content": first},
        {"role": "user", "content": [shown(picture), said(QUESTIONS[1])]},
    ]
    with listening(vlm, "--looks", 2, "--look-seconds", 5) as client:
        towers.clear()
        for count, (told, answer, runs) in enumerate([(1, first, 1), (1, first, 1), (3, second, 2), (3, second, 2)]):
            reply = asked(client, messages=turns[:told], max_tokens=8, **ours)
            assert reply.choices[0].message.content == answer
            assert reply.usage.prompt_tokens_details.cached_tokens > 570 * (1 + (told > 1))
            assert len(towers) == runs, count
        reply = asked(client, messages=turns[:1], max_tokens=8, method="fastv")  # which reads the question
        assert reply.usage.prompt_tokens_details is None
        towers.clear()
        time.sleep(5.5)
        asked(client, messages=turns, max_tokens=8, **ours)
        assert len(towers) == 2  # both pictures anew, one by one
    hook.remove()


def test_a_film_is_asked_about(client, tmp_path):
    data = base64.b64encode(film(tmp_path / "clip.mp4", 6).read_bytes()).decode()
    part = {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{data}"}, "max_frames": 2}
    reply = asked(client, part, said("What is it?"), max_tokens=4)
    assert reply.foveate["vision_tokens"] == 2 * 576
    assert "2 frames" in " ".join(reply.foveate["notes"])


FORMS = {
    "a path": "{folder}/secret.png",
    "a file: URL": "file://{folder}/secret.png",
    "a http: URL": "http://127.0.0.1:{port}/a.png",
    "a https: URL": "HTTPS://127.0.0.1:{port}/a.png",
    "a ftp: URL": "ftp://127.0.0.1/a.png",
    "no text": None,
}


def wraps(text):
    """Parts and messages in which this stands where a picture or film may stand."""
    yield [{"type": "image_url", "image_url": {"url": text}}]
    yield [{"type": "image_url", "image_url": text}]
    yield [{"type": "video_url", "video_url": {"url": text}, "fps": 1}]


def hides(text):
    """Others, which are refused whatever stands there."""
    yield from ([{"type": kind, key: text}] for kind in ("image", "video") for key in (kind, "path", "url"))
    yield from ([{"type": "image_url", key: text}] for key in ("path", "url", "image"))
    yield [{"type": "image_url", "image_url": {"path": text}}]
    yield [{"type": "image_url", "image_url": {"url": {"url": text}}}]
    yield [{"type": "image_url", "image_url": [text]}]
    yield [{"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA", "path": text}}]
    yield [{"type": "text", "text": "?", "image": text}]
    yield [{"type": ["image_url"], "url": text}]
    yield [{"type": "file", "file": {"file_id": text}}]
    yield [{"image": text}]


@pytest.mark.parametrize("form", FORMS)
def test_no_file_or_address_of_a_client_is_opened_or_looked_for(client, tmp_path, form):
    Image.new("RGB", (40, 40), "red").save(tmp_path / "secret.png")
    with socket.create_server(("127.0.0.1", 0)) as there:
        there.settimeout(0.1)
        errors = set()
        for folder in (tmp_path, tmp_path / "absent"):
            text = FORMS[form] and FORMS[form].format(folder=folder, port=there.getsockname()[1])
            for parts in wraps(text):
                error = refused(client, *parts, said("What ?"))
                assert f"got {form}" in error.message, error
                errors.add(error.message)
            for parts in hides(text) if text else ():
                error = refused(client, *parts, said("What ?"))
                errors.add(error.message.replace(repr(text), ""))
            for where in ("images", "image", "url"):
                refused(client, messages=[{"role": "user", "content": "What ?", where: [text]}])
        with pytest.raises(TimeoutError):
            there.accept()
    assert "secret" not in str(errors)
    assert "No such file" not in str(errors)


@pytest.mark.parametrize("written", ["{}", "v2drop+{}", "{}+v2drop", "{}:layers=3", " '{}' ", '{{"method": "{}"}}'])
def test_a_method_is_never_a_file(client, tmp_path, written, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the server is a thread of this process, and long paths are cut in errors
    (tmp_path / "secret.json").write_text('{"method": "v2drop", "password": "hush"}')
    told = []
    for name in ("secret", "absent"):
        text = written.format(f"./{name}.json")
        told.append(refused(client, said("What ?"), method=text).message.replace(name, ""))
    assert told[0] == told[1]
    assert "hush" not in told[0]
    assert "cannot be read" not in told[0]


def test_a_method_is_a_name_a_chain_settings_or_a_preset(client, picture):
    for method in ("v2drop", "visionzip+v2drop:retention=0.3", '{"method": "random", "retention": 0.5}'):
        assert asked(client, shown(picture), said("What ?"), method=method, max_tokens=2).foveate["retention"] < 0.6
    assert "v2drop" in refused(client, said("What ?"), method="v3drop").message
    assert "floor" in refused(client, shown(picture), said("What ?"), method="v2drop", retention=0.001).message


def test_what_is_no_request_is_refused_in_openais_shape(client, picture):
    place = f"{client.base_url}chat/completions"
    for body in (b"", b"{", b"[]", b'{"model": "embedded"}', b'{"model": "embedded", "messages": []}', b"\xff"):
        reply = httpx.post(place, content=body)
        assert reply.status_code == 400
        assert reply.json()["error"]["message"]
    assert httpx.get(place).status_code == 405
    assert httpx.get(f"{client.base_url}none").json()["error"]["type"] == "not_found_error"
    assert refused(client, said("What ?"), model="gpt-4o", status=404).code == "model_not_found"
    for bad in ("AAAA", "?", "", base64.b64encode(b"<svg/>").decode()):
        refused(client, shown(bad), said("What ?"))
    assert "'detail' twice" in refused(client, shown(picture, detail="low"), said("What ?")).message
    low = shown(picture)
    low["image_url"]["detail"] = "low"
    assert "detail of a part must be auto or high" in refused(client, low, said("What ?")).message
    assert "stream_options" in refused(client, said("What ?"), stream_options={"include_usage": True}).message
    assert [model.id for model in client.models.list()] == ["embedded"]
    health = httpx.get(str(client.base_url).replace("v1/", "health"))
    assert health.json() == {"status": "ok", "model": "embedded"}


def test_pixels_are_limited_before_they_are_unpacked(client, picture, tmp_path):
    for side in (8_000, 11_000, 60_000):  # Pillow warns of the second and refuses the third
        bomb = base64.b64encode(png_claiming(side, side)).decode()
        assert "pixels" in refused(client, shown(bomb), said("What ?"), status=413).message
    data = base64.b64encode(film(tmp_path / "clip.mp4", 60, size=(320, 240)).read_bytes()).decode()
    clip = {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{data}"}}
    with listening(fv.load("embedded"), "--pixels", 1_000_000) as small:
        assert asked(small, *3 * [shown(picture)], said("What ?"), max_tokens=2).usage.completion_tokens
        refused(small, *4 * [shown(picture)], said("What ?"), status=413)  # each counts as 512 x 512
        assert "1,000,000 pixels" in refused(small, clip, said("What ?"), status=413).message
        assert asked(small, {**clip, "max_frames": 2}, said("What ?"), max_tokens=2).usage.completion_tokens


def test_too_many_requests_and_too_long_ones_are_refused(endless):
    with listening(endless, "--waiting", 0, "--seconds", 1, "--tokens", 1_000_000) as client:
        ask = partial(asked, client, said("What is this ?"), model=endless.name, max_tokens=900_000)
        with ThreadPoolExecutor(1) as others:
            slow = others.submit(refused, client, said("?"), model=endless.name, max_tokens=900_000, status=504)
            wait_until(lambda: not endless.lock.acquire(blocking=False) or endless.lock.release())
            full = refused(client, said("What ?"), model=endless.name, status=429)
            assert int(full.response.headers["retry-after"]) > 0
            assert "1 s limit" in slow.result().message
        import openai

        with pytest.raises(openai.APIError, match="limit") as caught:  # the status was sent before
            list(ask(stream=True))
        assert not isinstance(caught.value, openai.APIStatusError)
        assert asked(client, said("What ?"), model=endless.name, max_tokens=2)


def wait_until(ready):
    until = time.monotonic() + PATIENCE
    while not ready():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_ends_its_answer(endless, stream):
    with listening(endless, "--waiting", 0, "--tokens", 1_000_000) as client:
        request = {"model": endless.name, "messages": [{"role": "user", "content": "What ?"}]}
        request |= {"max_tokens": 900_000, "stream": stream}
        with socket.create_connection((client.base_url.host, client.base_url.port)) as gone:
            body = json.dumps(request).encode()
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
            gone.sendall(head.encode() + body)
            if stream:
                assert gone.recv(4096).startswith(b"HTTP/1.1 200")
            wait_until(lambda: not endless.lock.acquire(blocking=False) or endless.lock.release())
            refused(client, said("What ?"), model=endless.name, status=429)
        wait_until(lambda: free(client, endless.name))


def free(client, model):
    """Whether the server takes a question."""
    import openai

    try:
        return asked(client, said("What ?"), model=model, max_tokens=2)
    except openai.RateLimitError:
        return False


def test_a_server_of_ones_own_answers_clients_side_by_side(picture, expected):
    import openai

    with (
        served("own.py", says=(first := [])) as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="-", timeout=PATIENCE) as client,
    ):

        def ask(question, **settings):
            return asked(client, shown(picture), said(question), max_tokens=8, **settings).choices[0].message.content

        dropping = {"method": METHOD, "retention": RETENTION}
        pairs = [(question, settings) for question in QUESTIONS for settings in (dropping, {})] * 2
        with ThreadPoolExecutor(len(pairs)) as clients:
            answers = list(clients.map(lambda pair: ask(pair[0], **pair[1]), pairs))
    assert answers == [expected[question][0 if settings else 1] for question, settings in pairs]
    assert f"embedded at {address.replace('localhost', '127.0.0.1')}/v1; no method" in first[0]
    assert "50,000,000 pixels, 16,384 tokens, 120 s, 16 waiting" in first[0]


def test_a_server_that_cannot_start_says_why_in_one_line():
    for words, why in (
        (["--method", "v3drop"], "v2drop"),
        (["--retention", "0.3"], "without a method"),
        (["/none"], "none"),
        *[(["--cuda-graphs"], "CUDA")] * (not torch.cuda.is_available()),
    ):
        server = forked(SCRIPT, SERVERS / "own.py", *words, stderr=subprocess.PIPE)
        _, said = server.communicate(timeout=PATIENCE)
        assert (server.returncode, said.count("\n")) == (1, 1), said
        assert why in said


# -- that of transformers -------------------------------------------------------------------------------------------


def test_the_server_of_transformers_drops_tokens_for_a_client_of_openai(picture, expected):
    import openai

    model = str(embedded.path())
    with served("with_transformers.py", model, METHOD, RETENTION) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", timeout=PATIENCE)
        image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}}

        def ask(question):
            content = [image, {"type": "text", "text": question}]
            messages = [{"role": "user", "content": content}]
            reply = client.chat.completions.create(model=model, messages=messages, max_tokens=8, temperature=0)
            return reply.choices[0].message.content

        with ThreadPoolExecutor(4) as clients:
            answers = list(clients.map(ask, QUESTIONS * 2))
    assert answers == [expected[question][0] for question in QUESTIONS * 2]
