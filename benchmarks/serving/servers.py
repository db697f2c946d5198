"""Start and stop vLLM's OpenAI servers, each in its own process and with its own setting of foveate."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

__all__ = ["Server", "Setting", "running"]

PATIENCE = 300
"""Seconds that a server may take to start."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The setting of foveate in one server.

    Attributes:
        name: The name in tables.
        foveate: The entry "foveate" of `hf_overrides`. None for stock vLLM.
    """

    name: str
    foveate: dict[str, Any] | None = None


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        setting: Its setting.
        address: The address of its API, such as "http://localhost:8123/v1".
        log: The file with its output.
    """

    setting: Setting
    address: str
    log: Path


@contextmanager
def running(
    settings: Sequence[Setting], model: str, architecture: str, flags: Sequence[str], logs: Path
) -> Iterator[list[Server]]:
    """Start a server for each setting, one after the other, and stop them when the context ends.

    Args:
        settings: The settings, one per server.
        model: A hub id or a folder.
        architecture: The class with foveate in it, such as "FoveateLlavaForConditionalGeneration".
        flags: Further arguments of every server.
        logs: Folder for the servers' output.

    Raises:
        RuntimeError: If a server does not start. The message ends with the last lines of its output.
    """
    logs.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        servers = []
        for setting in settings:
            servers.append(stack.enter_context(_server(setting, model, architecture, flags, logs)))
        yield servers


@contextmanager
def _server(setting: Setting, model: str, architecture: str, flags: Sequence[str], logs: Path) -> Iterator[Server]:
    port = _free_port()
    log = logs / f"{setting.name.replace(' ', '-').replace(',', '')}.txt"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--port", str(port)]
    command += ["--served-model-name", "model", *flags, *_own_flags(setting, architecture)]
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=_environment())
        try:
            _wait(process, f"http://localhost:{port}/health", log)
            yield Server(setting, f"http://localhost:{port}/v1", log)
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _own_flags(setting: Setting, architecture: str) -> list[str]:
    if setting.foveate is None:
        return []
    overrides = {"architectures": [architecture], "foveate": setting.foveate}
    return ["--hf-overrides", json.dumps(overrides)]


def _environment() -> dict[str, str]:
    """The servers' environment. Threads wait passively, because spinning servers would slow down the measured one."""
    quiet = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    on_a_cpu = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    return on_a_cpu | os.environ | quiet


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port: int = free.getsockname()[1]
    return port


def _wait(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    """Wait until the server answers."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            httpx.get(address, timeout=5).raise_for_status()
            return
        except httpx.HTTPError:
            ended = process.poll() is not None
            if ended or time.monotonic() > until:
                last = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])
                what = "has ended" if ended else f"does not listen after {PATIENCE} s"
                raise RuntimeError(f"The server {what}. The end of {log.name}:\n{last}") from None
            time.sleep(1)
