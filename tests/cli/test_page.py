"""`foveate demo` before it serves: what it refuses, quickly and in one line."""

import socket

from foveate.app import server


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
