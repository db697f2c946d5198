"""The server of the guide, word for word, and real clients: streams, rates, bad media, a kill and a restart."""

import base64
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from foveate import embedded
from foveate.naming import parse
from tests import engines
from tests.conftest import ENVIRONMENT
from tests.engines import Reference, picture

openai = pytest.importorskip("openai")
pytest.importorskip("vllm")

GUIDE = Path(__file__).parents[3] / "docs" / "guides" / "vllm.md"
QUESTION = "What does the text say?"
UNSET = [name for name in ENVIRONMENT if name not in ("HF_HUB_OFFLINE", "VLLM_NO_USAGE_STATS")]
"""What the guide must set itself, or leave as it is."""
V2 = os.environ.get("VLLM_USE_V2_MODEL_RUNNER") == "1"
STARTED = 600  # seconds, where many processes share the cores


def blocks(language):
    """The guide's blocks of code in a language."""
    return re.findall(rf"```{language}\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)


class Server:
    """The guide's command, running."""

    def __init__(self, port, log, command=None):
        self.port = port
        folder = str(Path(sys.executable).parent)
        environment = os.environ | {"PORT": str(port), "PATH": f"{folder}:{os.environ['PATH']}"}
        for name in UNSET:
            environment.pop(name, None)
        command = command or blocks("bash")[0]
        self.log = log
        with log.open("ab") as file:
            # A session of its own, so that a kill ends all of its processes.
            self.process = subprocess.Popen(
                ["bash", "-c", command], env=environment, stdout=file, stderr=file, start_new_session=True
            )
        self.client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)

    def wait(self):
        end = time.monotonic() + STARTED
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                self.client.models.list()
            except openai.APIConnectionError:
                time.sleep(1)
            else:
                return
        pytest.fail(self.log.read_text()[-3000:])

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def ask(self, url, stream=False, **rate):
        content = [{"type": "text", "text": QUESTION}]
        if url is not None:
            content.insert(0, {"type": "image_url", "image_url": {"url": url}})
        # The template of this model leaves the first token to the tokenizer: transformers adds it.
        body = {"add_special_tokens": True}
        if rate:
            body["mm_processor_kwargs"] = rate
        answer = self.client.chat.completions.create(
            model="embedded",
            messages=[{"role": "user", "content": content}],
            temperature=0,
            max_tokens=12,
            stream=stream,
            extra_body=body,
        )
        if not stream:
            return answer.choices[0].message.content
        return "".join(part.choices[0].delta.content or "" for part in answer if part.choices)


def url_of(image):
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = Server(port, tmp_path_factory.mktemp("server") / "log")
    try:
        server.wait()
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="module")
def asked():
    """Pictures and rates, and what foveate answers on transformers."""
    reference = Reference(embedded.path())
    images = [engines.demo(), picture(1, 336, 336), picture(2, 400, 300)]
    cases = []
    for index, tokens in enumerate((64, 128, 192, 288, 32, 576, 100, 64)):
        image = images[index % len(images)]
        messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
        prompt = reference.processor.apply_chat_template(messages, add_generation_prompt=True)
        request = {"prompt": prompt, "multi_modal_data": {"image": [image.convert("RGB")]}}
        method = parse("visionzip").with_budget(tokens=tokens)
        ids = reference.answer(request, method, tokens=12)
        text = reference.processor.tokenizer.decode(ids, skip_special_tokens=True)
        cases.append((url_of(image), tokens, text))
    return cases


def test_the_client_of_the_guide_reads_the_picture(server):
    client = next(block for block in blocks("python") if "OpenAI" in block)
    environment = os.environ | {"PORT": str(server.port)}
    done = subprocess.run([sys.executable, "-c", client], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == embedded.ANSWER, done.stderr


def test_the_log_says_once_what_drops_at_which_rate_and_what_runs_it(server):
    log = server.log.read_text()
    runner = "V2" if V2 else "V1"
    said = f"foveate is on: method visionzip, rate 64 tokens of an image, runner {runner}, attention backend CPU_ATTN"
    assert log.count(said) == log.count("foveate is on") == 1
    assert ("Using V2 Model Runner" in log) == V2


def test_eight_clients_at_their_own_rates_are_answered_as_on_transformers(server, asked):
    with ThreadPoolExecutor(8) as clients:
        said = list(clients.map(lambda case: server.ask(case[0], foveate_tokens=case[1]), asked))
    assert said == [text for _, _, text in asked]


def test_a_stream_says_the_same(server, asked):
    url, tokens, text = asked[2]
    assert server.ask(url, stream=True, foveate_tokens=tokens) == text


def test_the_servers_metrics_show_what_stays(server, asked):
    before = seen_and_kept(server)
    for url, tokens, _ in asked[:2]:
        server.ask(url, foveate_tokens=tokens)
    server.ask(None)
    assert [after - then for after, then in zip(seen_and_kept(server), before, strict=True)] == [2 * 576, 64 + 128]


def seen_and_kept(server):
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    names = ("foveate:vision_tokens_total ", "foveate:vision_tokens_kept_total ")
    return [float(line.split()[1]) for name in names for line in lines if line.startswith(name)]


def test_a_request_without_a_rate_gets_the_server_s(server, asked):
    url, tokens, text = asked[0]
    assert tokens == 64
    assert server.ask(url) == text


@pytest.mark.parametrize(
    ("url", "rate", "said"),
    [
        ("data:image/png;base64,AAAA", {}, "image"),
        ("data:image/png;base64,", {}, ""),
        ("good", {"foveate_tokens": 577}, "between 1 and 576"),
        ("good", {"foveate_retention": 0}, "above 0"),
        ("good", {"foveate_tokens": "many"}, "whole number"),
        ("good", {"foveate_token": 64}, "takes foveate_tokens or foveate_retention"),
        ("good", {"foveate_method": "divprune"}, "takes foveate_tokens or foveate_retention"),
        ("good", {"foveate_tokens": 64, "foveate_retention": 0.5}, "not both"),
        (None, {"foveate_tokens": 64}, "this request has no image"),
        (None, {"foveate_token": 64}, "this request has no image"),
    ],
)
def test_bad_media_and_rates_are_refused_and_the_server_lives_on(server, asked, url, rate, said):
    good, tokens, text = asked[0]
    with pytest.raises(openai.APIStatusError) as refused:
        server.ask(good if url == "good" else url, **rate)
    assert refused.value.status_code == 400, refused.value.message
    assert said in json.dumps(refused.value.body)
    assert server.ask(good, foveate_tokens=tokens) == text


def test_killed_and_started_again_it_answers_the_same(server, asked):
    url, tokens, text = asked[1]
    server.kill()
    again = Server(server.port, server.log)
    server.process = again.process  # which the fixture kills at the end
    again.wait()
    assert again.ask(url, foveate_tokens=tokens) == text


@pytest.mark.long
def test_the_guides_server_between_layers_answers_and_counts(server, tmp_path):
    server.kill()
    command = blocks("bash")[0].replace('"visionzip", "tokens": 64', '"v2drop", "tokens": 192')
    assert "v2drop" in command
    between = Server(server.port, tmp_path / "log", command)
    server.process = between.process  # which the fixture kills at the end
    between.wait()
    assert between.ask(url_of(engines.demo())) == embedded.ANSWER
    seen, kept = seen_and_kept(between)
    assert (seen, kept) == (576, pytest.approx(192, abs=1))
