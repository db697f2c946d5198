"""`foveate demo` before it serves: what it refuses, quickly and in one line."""

import socket
import subprocess
import sys

import pytest

from foveate.app import server


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_out_of_range_is_wrong_usage(run, port):
    code, _, err = run("demo", "--port", port)
    assert (code, f"--port: {port} is not from 0 to 65,535." in err) == (2, True)


def test_a_model_that_is_not_there_is_refused(run):
    code, out, err = run("demo", "--model", "./nosuch")
    assert (code, out) == (1, "")
    assert err.count("\n") == 1


def test_without_gradio_it_says_how_to_install_it(run, monkeypatch):
    monkeypatch.setattr(server.importlib.util, "find_spec", lambda name: None)
    code, out, err = run("demo", "--port", 0)
    assert (code, out) == (1, "")
    assert err == "foveate: The page needs Gradio: pip install -e '.[app]' in a checkout of foveate.\n"


def test_a_busy_port_is_refused_before_a_model_is_loaded(run, monkeypatch):
    monkeypatch.setattr(server.importlib.util, "find_spec", lambda name: name)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, out, err = run("demo", "--port", port)
    assert (code, out) == (1, "")
    assert f"port {port} of '127.0.0.1': Address already in use." in err
    assert err.count("\n") == 1


def test_help_and_refusals_need_neither_torch_nor_gradio():
    program = (
        "import sys; from foveate.cli import main\n"
        "main(['demo', '--help'])\n"
        "main(['demo', '--port', '-1'])\nprint([n for n in ('torch', 'gradio', 'PIL', 'numpy') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
