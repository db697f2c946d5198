"""The command: a server with several clients, one answer, a check that passes and one that does not, and bench."""

import base64
import json
import re
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import mlx_vlm
import pytest
from mlx_vlm.generate import dispatch
from PIL import Image

import foveate_mlx
from foveate import embedded
from foveate_mlx import dropping, host
from foveate_mlx.__main__ import main
from tests import command

COMMAND = [sys.executable, str(Path(command.__file__))]
PICTURE = str(embedded.picture())


@pytest.fixture(autouse=True)
def repaired(monkeypatch):
    """What `command.repair` does, for one test."""
    monkeypatch.setattr(command.BaseImageProcessor, "__call__", command.process)
    monkeypatch.setattr(command.vision.MLP, "__call__", command.activate)


def ask(port, folder, stream=False):
    """The answer of a server about the embedded model's picture."""
    url = "data:image/png;base64," + base64.b64encode(Path(PICTURE).read_bytes()).decode()
    content = [{"type": "text", "text": embedded.QUESTION}, {"type": "image_url", "image_url": {"url": url}}]
    body = {
        "model": str(folder),
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 8,
        "stream": stream,
    }
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        if not stream:
            return json.load(response)["choices"][0]["message"]["content"]
        lines = [line.decode().removeprefix("data: ").strip() for line in response]
    parts = [json.loads(line)["choices"] for line in lines if line.startswith("{")]
    return "".join(choices[0]["delta"].get("content") or "" for choices in parts if choices)


@contextmanager
def served(folder, log):
    """A server with dropping, on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["divprune", "--tokens", "192", "--", "mlx_vlm.server", "--model", str(folder), "--port", str(port)]
    with open(log, "w") as file, subprocess.Popen([*COMMAND, *arguments], stdout=file, stderr=file) as server:
        try:
            for _ in range(240):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                    break
                except OSError:
                    assert server.poll() is None, Path(log).read_text()
                    time.sleep(0.5)
            yield port
        finally:
            server.terminate()  # its exit status says nothing: mlx-vlm's server ends with an exception of its own here


def test_a_server_answers_three_clients_at_once_and_a_stream(embedded_folder, tmp_path):
    with served(embedded_folder, tmp_path / "log") as port, ThreadPoolExecutor(3) as clients:
        assert list(clients.map(ask, [port] * 3, [embedded_folder] * 3)) == [embedded.ANSWER] * 3
        assert ask(port, embedded_folder, stream=True) == embedded.ANSWER


def test_generate_answers_and_says_what_was_dropped(embedded_folder):
    arguments = ["divprune", "--tokens", "192", "--", "mlx_vlm.generate", "--model", str(embedded_folder), "--image"]
    asked = [*arguments, PICTURE, "--prompt", embedded.QUESTION, "--max-tokens", "8"]
    done = subprocess.run([*COMMAND, *asked], capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    assert embedded.ANSWER in done.stdout
    assert "192 of 576" in done.stderr


def test_a_check_passes_and_is_remembered(small_folder, capsys):
    assert main(["check", str(small_folder)]) == 0
    assert "passed" in capsys.readouterr().out
    (mark,) = json.loads((Path.home() / ".cache/foveate/mlx-vlm-checks.json").read_text())
    assert mark[0] == version("mlx-vlm")


def test_a_check_of_what_is_wrong_does_not_pass(small_folder, monkeypatch):
    stock = host.shortened

    def late(features, vision, columns):  # every image row but the first is that of the column before
        return stock(features, vision, columns - (vision[0][columns] & vision[0][columns - 1]))

    monkeypatch.setattr(dropping, "host", SimpleNamespace(**{**vars(host), "shortened": late}))
    assert main(["check", str(small_folder)]) == 1
    assert not (Path.home() / ".cache/foveate/mlx-vlm-checks.json").exists()


def test_bench_measures_nothing_where_there_is_no_metal(small_folder, capsys, monkeypatch):
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    assert main(["bench", str(small_folder), "divprune"]) == 2
    assert "Metal" in capsys.readouterr().err


def test_bench_writes_every_round_beside_an_earlier_record(small_folder, tmp_path, capsys, monkeypatch):
    out = tmp_path / "bench.json"
    out.write_text("earlier")
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(dispatch, "wired_limit", lambda *_: nullcontext())
    options = ["--tokens", "64", "--rounds", "1", "--out", str(out)]
    assert main(["bench", str(small_folder), "divprune", *options]) == 0
    assert out.read_text() == "earlier"
    record = json.loads((tmp_path / "bench-2.json").read_text())
    assert [*record["rounds"][0]] == ["full", "dropping"]
    assert record["trace"].startswith("64 of 576")
    assert "first token" in capsys.readouterr().out


def test_wrong_use_is_an_error_of_one_line(small_folder, capsys):
    with pytest.raises(SystemExit):
        main(["divprune", "--tokens", "5"])
    assert main(["bench", str(small_folder), "divprune", "--rounds", "0"]) == 2
    monkey = [sys.executable, "-m", "foveate_mlx", "v2drop", "--", "mlx_vlm.generate", "--model", str(small_folder)]
    done = subprocess.run([*monkey, "--prompt", "x"], capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("foveate-mlx: v2drop")


def test_why_a_command_ends_is_said(tmp_path, monkeypatch):
    (tmp_path / "ends.py").write_text("raise SystemExit('no such picture')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SystemExit, match="no such picture"):
        main(["divprune", "--", "ends"])


def test_the_guide_runs(small_folder, tmp_path, monkeypatch, capsys):
    guide = Path(__file__).parents[3] / "docs/guides/mlx.md"
    (block,) = re.findall(r"^```python\n(.*?)^```$", guide.read_text(), re.MULTILINE | re.DOTALL)
    stock = mlx_vlm.load
    monkeypatch.setattr(mlx_vlm, "load", lambda name: stock(str(small_folder)))
    monkeypatch.chdir(tmp_path)
    Image.open(PICTURE).convert("RGB").save("cat.jpg")
    block = block.replace('["cat.jpg"])', '["cat.jpg"], max_tokens=2)')
    exec(block, {})
    assert "192 of 576 vision tokens" in capsys.readouterr().out


def test_batch_generate_answers_with_dropping(embedded_folder):
    model, processor = mlx_vlm.load(str(embedded_folder))
    asked = {"images": [PICTURE] * 2, "prompts": [embedded.QUESTION] * 2}
    with foveate_mlx.drop(model, "divprune", tokens=192) as trace:
        batch = mlx_vlm.batch_generate(model, processor, **asked, max_tokens=8, verbose=False)
    assert [text.strip() for text in batch.texts] == [embedded.ANSWER] * 2
    assert trace.kept == [192] * 2
