"""The servers of examples/servers, each in a process of its own, asked over HTTP by real clients.

Needs FastAPI, uvicorn and OpenAI's client: `make setup-page` installs the first two.
"""

import base64
import importlib.util
import os
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

import foveate as fv
from foveate import embedded

MISSING = [name for name in ("fastapi", "uvicorn", "openai") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"THE SERVERS ARE NOT TESTED: {', '.join(MISSING)} missing; see make setup-page"
)
SERVERS = Path(__file__).parents[1] / "examples" / "servers"
QUESTIONS = ("What is written ?", "How many green objects are there?")
METHOD, RETENTION = "v2drop", 0.1
PATIENCE = 180  # seconds: a busy machine


@contextmanager
def served(script, *arguments):
    """The address of a server that listens, while the context lasts."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SERVERS / script), *map(str, arguments), "--port", str(port)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=log)
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
            yield address
        finally:
            process.terminate()
            process.wait(timeout=PATIENCE)


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


def test_a_server_of_ones_own_answers_clients_side_by_side(picture, expected):
    with served("own.py") as address:

        def ask(question, **settings):
            request = {"image": picture, "question": question} | settings
            return httpx.post(f"{address}/ask", json=request, timeout=PATIENCE)

        dropping = {"method": METHOD, "retention": RETENTION}
        asked = [(question, settings) for question in QUESTIONS for settings in (dropping, {})] * 2
        with ThreadPoolExecutor(len(asked)) as clients:
            answers = list(clients.map(lambda pair: ask(pair[0], **pair[1]).json()["answer"], asked))
        assert answers == [expected[question][0 if settings else 1] for question, settings in asked]
        assert ask(QUESTIONS[0], stream=True).text.strip() == expected[QUESTIONS[0]][1]
        for settings, words in (({"method": "v3drop"}, "v2drop"), ({"image": "AAAA"}, "picture"), ({"image": "?"}, "")):
            refused = ask(QUESTIONS[0], **settings)
            assert (refused.status_code, words in refused.json()["detail"]) == (400, True)
        assert ask(QUESTIONS[0]).json()["answer"] == expected[QUESTIONS[0]][1]  # it lives on


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
