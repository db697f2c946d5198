"""The page as `foveate demo` serves it, in a process of its own; and what its tests need to be there."""

import contextlib
import http.client
import importlib.util
import json
import os
import shutil
import subprocess
from urllib.parse import urlsplit

from tests.forked import forked

HAS_GRADIO = importlib.util.find_spec("gradio") is not None
HAS_PLAYWRIGHT = importlib.util.find_spec("playwright") is not None
CHROMIUM = os.environ.get("FOVEATE_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
JSON = {"Content-Type": "application/json"}


class Served:
    """The page in a process of its own, at any free port.

    Args:
        arguments: Of `foveate demo`.
        folder: Where the process puts its temporary files.
        missing: A package that is not there.
    """

    def __init__(self, *arguments, folder, missing="nothing"):
        absent = f"import sys; sys.modules[{missing!r}] = None"
        program = f"{absent}; from foveate.cli import main; sys.exit(main(['demo', *sys.argv[1:]]))"
        self.folder = folder
        self.process = forked(
            program, "--port", 0, "--json", *arguments,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)},
        )  # fmt: skip
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if line == "}\n":
                break
        assert lines, self.process.stderr.read()
        self.url = json.loads("".join(lines))["url"]

    @property
    def files(self):
        """The folders that the page has for uploads: one, and none when it has ended."""
        return list(self.folder.glob("foveate-page-*"))

    def get(self, path, method="GET", body=None, headers=None):
        """An answer to a path that no client has tidied: status, headers, bytes."""
        with self.open(path, method, body, headers) as response:
            return response.status, dict(response.getheaders()), response.read()

    @contextlib.contextmanager
    def open(self, path, method="GET", body=None, headers=None):
        """The same, as it comes."""
        place = urlsplit(self.url)
        connection = http.client.HTTPConnection(place.hostname, place.port, timeout=60)
        headers = headers or {}
        connection.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        with contextlib.closing(connection):
            connection.endheaders(body)
            yield connection.getresponse()

    def event(self, name):
        """The number of an event: what is called when the part of this id is used."""
        config = json.loads(self.get("/config")[2])
        parts = {one["props"].get("elem_id"): one["id"] for one in config["components"]}
        called = [one for one in config["dependencies"] if one["backend_fn"]]  # others end what is under way
        (number,) = {one["id"] for one in called if parts[name] in [part for part, _ in one["targets"]]}
        return number

    def uploaded(self, path):
        """Upload a file: the status and bytes of the answer."""
        head = f'--b\r\nContent-Disposition: form-data; name="files"; filename="{path.name}"\r\n\r\n'
        body = head.encode() + path.read_bytes() + b"\r\n--b--\r\n"
        kind = {"Content-Type": "multipart/form-data; boundary=b"}
        return self.get("/gradio_api/upload", "POST", body, kind)[::2]

    def upload(self, path):
        """Upload a file: what an event calls it."""
        (there,) = json.loads(self.uploaded(path)[1])
        return {"path": there, "orig_name": path.name, "meta": {"_type": "gradio.FileData"}}

    def use(self, name, *data):
        """Use the part of this id: everything that the page shows for it."""
        event = {"data": data, "fn_index": self.event(name), "session_hash": "s"}
        status, _, said = self.get("/gradio_api/queue/join", "POST", json.dumps(event).encode(), JSON)
        assert status == 200, said
        with self.open("/gradio_api/queue/data?session_hash=s") as answer:
            return answer.read().decode()

    def end(self, how):
        """End it with a signal: its exit code, stdout and stderr."""
        self.process.send_signal(how)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err
