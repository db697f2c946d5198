"""URLs: a local server that breaks connections, stalls and lies about lengths, and a bucket of moto's server."""

import base64
import hashlib
import json
import socket
import ssl
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote

import pytest

import foveate as fv
from foveate.batch import Predictor
from foveate.batch.job import Job, run as run_job
from foveate.cli import main
from foveate.runs import remote
from foveate.runs.remote import Remote, public
from foveate.runs.samples import samples_in
from tests.batch.conftest import rows_in

pytest.importorskip("s3fs")
HTTPFileSystem = pytest.importorskip("fsspec.implementations.http").HTTPFileSystem
SECRET = "hunter2"


class Server(BaseHTTPRequestHandler):
    """Gives files by their names, as the first word of the path says."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        way, _, name = unquote(self.path.partition("?")[0]).strip("/").partition("/")
        seen = self.server.seen
        seen.append((self.command, way))
        self.server.paths.append(self.path)
        if self.server.user and self.headers["Authorization"] != self.server.user:
            return self.give(401, b"")
        if self.path in self.server.moves:
            return self.give(302, b"", Location=self.server.moves[self.path])
        body = self.server.files.get(name, b"")
        if page := self.server.pages.get(self.path.partition("?")[0]):
            kind = "application/json" if page.startswith("[") else "text/html"
            return self.give(200, page.encode(), **{"Content-Type": kind})
        if way == "endless":
            return self.give(200, b'<a href="sub/">sub/</a>')
        if way == "list" and not name:
            return self.give(200, "".join(f'<a href="/list/{file}">{file}</a>' for file in self.server.files).encode())
        if way == "busy" and len(seen) < 6:
            return self.give(503, b"")
        if way == "moved":
            return self.give(302, b"", Location=self.server.elsewhere)
        if way == "forbidden":
            return self.give(403, b"no")
        if name not in self.server.files:
            return self.give(404, b"")
        tags = {"ETag": '"' + hashlib.md5(body).hexdigest() + '"'} if way != "untagged" else {}
        if way == "unsized" and self.command == "GET":
            self.send_response(200)
            self.end_headers()
            with_ends = body if self.server.endless is None else self.server.endless
            while self.wfile.write(with_ends) and self.server.endless is not None:
                pass
            self.close_connection = True
            return None
        if way == "large":
            return self.give(200, b"", length=2**40)
        if way == "breaks" and self.command == "GET" and seen.count(("GET", way)) < 3:
            return self.give(200, body[: len(body) // 2], length=len(body))
        if way == "breaks-always" and self.command == "GET":
            return self.give(200, body[: len(body) // 2], length=len(body))
        if way == "longer" and self.command == "HEAD":
            return self.give(200, body, length=len(body) - 5)
        if way == "stalls" and self.command == "GET":
            self.give(200, body[:10], length=len(body))
            return time.sleep(2)
        if way == "drips" and self.command == "GET":
            self.give(200, b"", length=len(body))
            for byte in body:
                self.wfile.write(bytes([byte]))
                time.sleep(0.05)
            return None
        return self.give(200, body, **tags)

    def give(self, code, body, length=None, **headers):
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        if not (self.path.startswith("/unsized")):
            self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
        if length is not None:
            self.wfile.flush()

    def handle(self):
        with suppress(OSError):  # the reader had enough
            super().handle()

    def log_message(self, *_):
        pass


@contextmanager
def serving(files, host="127.0.0.1", context=None):
    server = ThreadingHTTPServer((host, 0), Server)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    server.files, server.seen, server.endless, server.elsewhere = files, [], None, ""
    server.pages, server.moves, server.paths, server.user = {}, {}, [], None
    server.url = f"{'http' if context is None else 'https'}://{host}:{server.server_port}"
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def server(pictures, monkeypatch):
    monkeypatch.setattr(remote, "PAUSES", (0, 0, 0, None))
    monkeypatch.setattr(remote, "WAIT", 0.5)
    HTTPFileSystem.clear_instance_cache()
    with serving({path.name: path.read_bytes() for path in pictures.iterdir()}) as server:
        yield server


@pytest.fixture(scope="module")
def bucket(pictures):
    """A bucket with the pictures, on a server that begins once."""
    moto = pytest.importorskip("moto.server")
    import s3fs

    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, SECRET)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        system = s3fs.S3FileSystem()
        system.mkdir("bucket")
        for path in pictures.iterdir():
            system.put(str(path), f"bucket/pictures/{path.name}")
        yield system
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def body_of(url, **options):
    return Remote(private=True, **options).data_url(url)


@pytest.mark.parametrize("way", ["plain", "untagged", "unsized", "busy", "breaks"])
def test_a_picture_behind_a_url_is_its_bytes(way, server, pictures):
    from foveate.ask.media import decode_url

    kind, content = decode_url(body_of(f"{server.url}/{way}/3.png"))
    assert (kind, content) == ("image/png", (pictures / "3.png").read_bytes())


def test_a_picture_needs_no_ending(server, pictures):
    from foveate.ask.media import decode_url

    server.files["3"] = (pictures / "3.png").read_bytes()
    assert decode_url(body_of(f"{server.url}/plain/3")) == ("", server.files["3"])


BAD = {
    "breaks-always": "Payload",
    "longer": "ConnectionError",
    "stalls": "Timeout",
    "drips": "Timeout",
    "forbidden": "403",
    "large": "more than",
    "gone": "404",
    "unsized": "more than",
}


@pytest.mark.parametrize(("way", "word"), BAD.items())
def test_what_cannot_be_read_says_why_and_shows_no_credential(way, word, server, monkeypatch):
    monkeypatch.setattr(remote, "SLOWEST", 10**9)
    monkeypatch.setattr(remote, "MEDIUM", 2**20)
    server.endless = b"x" * 2**16 if way == "unsized" else None
    name = "nofile.png" if way == "gone" else "3.png"
    url = server.url.replace("//", f"//user:{SECRET}@") + f"/{way}/{name}?signature={SECRET}"
    with pytest.raises(fv.InputError, match=word) as raised:
        body_of(url)
    assert SECRET not in str(raised.value)
    assert raised.value.__suppress_context__ or raised.value.__context__ is None


def test_a_size_is_looked_at_before_the_body(server):
    with pytest.raises(fv.InputError, match="more than"):
        body_of(f"{server.url}/large/3.png")
    assert {method for method, _ in server.seen} == {"HEAD"}


PRIVATE = [
    "https://127.0.0.1:{port}/plain/3.png",
    "https://localhost:{port}/plain/3.png",
    "https://[::ffff:127.0.0.1]:{port}/x",
]


@pytest.mark.parametrize("url", PRIVATE)
def test_private_addresses_are_refused(url, server):
    with pytest.raises(fv.InputError, match="private"):
        Remote().data_url(url.format(port=server.server_port))
    assert server.seen == []


def test_http_is_for_private_addresses_alone(server):
    with pytest.raises(fv.InputError, match="http"):
        Remote().data_url(f"{server.url}/plain/3.png")
    assert server.seen == []


def test_a_redirect_to_a_private_address_is_refused(server, monkeypatch):
    """The first server counts as public here, and so does http."""
    public_socket = Remote._socket

    def look(self, address):
        return public_socket(Remote(private=address[4][0] == "127.0.0.1"), address)

    monkeypatch.setattr(Remote, "_socket", look)
    with serving(server.files, "127.0.0.2") as inner:
        server.elsewhere = f"{inner.url}/plain/3.png"
        with pytest.raises(fv.InputError, match="private"):
            body_of(f"{server.url}/moved/3.png")
        assert inner.seen == []


def test_a_redirect_to_http_is_refused(server, tmp_path, monkeypatch):
    """Addresses of this machine count as public here, and the certificate of the server with https is not checked."""
    serving_module = pytest.importorskip("werkzeug.serving")
    connector = pytest.importorskip("aiohttp.connector")
    monkeypatch.setattr(Remote, "_socket", lambda self, address: socket.socket(*address[:3]))
    monkeypatch.setattr(connector, "_SSL_CONTEXT_VERIFIED", connector._SSL_CONTEXT_UNVERIFIED)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*serving_module.make_ssl_devcert(str(tmp_path / "server"), host="127.0.0.1"))
    with serving(server.files, context=context) as safe:
        assert Remote().data_url(f"{safe.url}/plain/3.png") == body_of(f"{server.url}/plain/3.png")
        server.seen.clear()
        safe.elsewhere = f"{server.url}/plain/3.png?signature={SECRET}"
        with pytest.raises(fv.InputError, match="http:") as raised:
            Remote().data_url(f"{safe.url}/moved/3.png")
    assert server.seen == []
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"https://me:{SECRET}@host.org:81/a/b.png?sig={SECRET}#x", "https://host.org:81/a/b.png?…"),
        (f"https://me:{SECRET[:3]}/{SECRET[3:]}@host.org/b.png", "https://…"),
        (f"s3://{SECRET}@bucket/what?.png", "s3://bucket/what?.png"),
        (f"ftp://me:{SECRET}@host/b.png", "ftp://host/b.png"),
    ],
)
def test_a_url_is_shown_without_its_credentials(url, shown):
    assert public(url) == shown


# -- jobs -------------------------------------------------------------------------------------------------------------

QUESTION = "What is this?"
EVERYWHERE = Remote(private=True)


@pytest.fixture
def ask_all(asking, tmp_path, vlm):
    """Run a job that may read URLs: its rows by number, and its summary."""

    def run(place, name="out", remote=EVERYWHERE, **options):
        summary = run_job(Job(input=place, out=tmp_path / name, asking=replace(asking, remote=remote), **options))
        bad = tmp_path / name / "bad.jsonl"
        failed = map(json.loads, bad.read_text().splitlines()) if bad.exists() else ()
        return rows_in(tmp_path / name) | {row["row"]: row for row in failed}, summary

    return run


def said(rows):
    return {number: (row["id"], row.get("answer"), "reason" in row) for number, row in rows.items()}


def test_a_folder_in_a_bucket_is_answered_as_one_on_the_disk(ask_all, bucket, pictures):
    there, summary = ask_all("s3://bucket/pictures", question=QUESTION)
    here, _ = ask_all(pictures, "here", question=QUESTION)
    assert said(there) == said(here)
    assert (summary.answered, summary.input) == (10, "s3://bucket/pictures")


def test_a_folder_behind_http_is_listed_by_its_links(ask_all, server, pictures):
    rows, _ = ask_all(f"{server.url}/list/", question=QUESTION)
    assert sorted(row["id"] for row in rows.values()) == sorted(path.name for path in pictures.iterdir())
    assert not any("reason" in row for row in rows.values())


APACHE = """<th><a href="?C=N;O=D">Name</a></th><th><a href="?C=M;O=A">Last modified</a></th>
<td><a href="/">Parent Directory</a></td><td><A HREF='3.png'>3.png</A></td><td><a href="sub/">sub/</a></td>
<td><a href="../4.png">4.png</a></td><td><a class="a" href=a&amp;b.png>a&b.png</a></td>"""


def test_a_page_of_apache_names_its_files_and_those_of_folders_below(server):
    server.pages = {"/pub/": APACHE, "/pub/sub/": '<a href="/pub/">Parent Directory</a><a href="4.png">4.png</a>'}
    server.files["a&b.png"] = b"a"
    server.files["sub/4.png"] = b"b"
    with pytest.warns(match="1 link .* lead"):  # to 4.png, above
        assert set(EVERYWHERE.files(f"{server.url}/pub")) == {"3.png", "a&b.png", "sub/4.png"}


NAMES = ["a b.png", "c#d&e.png", "50% 'off'.png", "é+f.png", "x;y:1.png", "what?.png", "sub/%41.png"]


def lines_of(server, folder, names):
    """Return the links of a server's page: the usual ones, and those of the names."""
    names = [quote(name) for name in names]
    return {
        "apache": ['<a href="?C=N;O=D">Name</a> <a href="?C=M;O=A">Date</a> <a href="/">Parent Directory</a>']
        + [f'<img src="/icons/image2.gif" alt="[IMG]"> <a href="{name}">{name}</a>' for name in names],
        "nginx": ['<a href="../">../</a>'] + [f'<a href="{name.replace("%27", "&#39;")}">x</a>' for name in names],
        "iis": ['<A HREF="/">[To Parent Directory]</A>'] + [f'<br><A HREF="{folder}{name}">x</A>' for name in names],
        "jetty": ["<a href='?C=N&amp;O=A'>Name</a>", '<a href="/">Parent</a>']
        + [f'<td class=name><a href="{server.url}{folder}{name.lower()}">x&nbsp;</a>' for name in names],
        "caddy": ['<a href="./?sort=name&amp;order=desc">Name</a>', '<a href="..">Up</a> <a href="#top">Top</a>']
        + [f"<a href=./{name}><svg/></a>" for name in names],
    }


@pytest.mark.parametrize("kind", ["apache", "nginx", "iis", "jetty", "caddy"])
def test_a_page_of_every_server_names_all_its_files(kind, server):
    names = [name.lower() if kind == "jetty" else name for name in NAMES]
    server.files |= {name: name.encode() for name in names}
    for folder, links in {"/v 2/": [*names[:-1], "sub/"], "/v 2/sub/": ["%41.png"]}.items():
        server.pages[quote(folder)] = "\n".join(lines_of(server, quote(folder), links)[kind])
    server.moves["/latest/"] = "/v%202/"
    port = server.url.rpartition(":")[2]
    for url in ("/v 2", "/v%202/", "/latest", "/x/../v%202/./", "/v%202/#top"):
        assert sorted(EVERYWHERE.files(f" HTTP://127.0.0.1:{port}{url} ")) == sorted(names), url


def contents(place):
    """Return the content of each row's picture by the row's id; None for one that cannot be read."""
    read = {}
    for sample in samples_in(place, question=QUESTION, remote=EVERYWHERE).read():
        read[sample.id] = None
        with suppress(fv.InputError, OSError):
            for source in getattr(sample, "media", ()):
                content = (
                    body_of(source)
                    if remote.is_remote(source)
                    else f",{base64.b64encode(Path(source).read_bytes()).decode()}"
                )
                read[sample.id] = content.partition(",")[2]
    return read


def test_a_folder_of_pythons_server_is_that_on_the_disk(tmp_path):
    (tmp_path / "odd/sub").mkdir(parents=True)
    for number, name in enumerate([*NAMES, "data:a.png", "http:b.png", "<c>&amp;.png"]):
        (tmp_path / "odd" / name).write_bytes(b"%d" % number)
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        there = contents(f"http://127.0.0.1:{server.server_port}/odd")
        server.shutdown()
    assert there == contents(tmp_path / "odd")
    assert len({*there.values()} - {None}) == 10


ODD = """<!-- <a href="no.png"> --><script>'<a href="no.png">'</script><BASE TARGET=_top>
<base href='/plain/'><base href=no/>
<A CLASS=a HREF = '3.png'>3</A><area href=4.png><a name="no.png"></a><a href="mailto:a@b.c"></a><a href="
5.png "></a><a href="/plain/%36.p%6Eg#a"></a><a href="?C=M&O=D"></a><a title='href="no.png"' href="7&#46;png"></a>
<a href=sub/?sort=name>sub</a>"""


def test_a_page_is_read_as_html(server):
    server.pages = {"/plain/": ODD, "/plain/sub/": '<a href="/plain/3.png">a</a>'}
    assert sorted(EVERYWHERE.files(f"{server.url}/plain/?C=M;O=D")) == [f"{number}.png" for number in range(3, 8)]
    assert server.paths[:3] == ["/plain/?C=M;O=D"] * 2 + ["/plain/sub/"]


@pytest.mark.parametrize(
    "link", ["https://else.where/a.png", "/above.png", "?page=2", "8.png?v=2", "ftp://h/a", "//[a"]
)
def test_links_that_lead_elsewhere_are_counted_and_said(link, server):
    server.pages["/plain/"] = f'<a href="{link}">a</a><a href="{link}">a</a><a href="/">up</a>'
    with pytest.raises(fv.InputError, match="1 link"):
        EVERYWHERE.files(f"{server.url}/plain/")
    server.pages["/plain/"] += '<a href="3.png">a</a>'
    heard = []
    assert set(EVERYWHERE.files(f"{server.url}/plain/", heard.append)) == {"3.png"}
    assert "1 link" in heard[0]


def test_a_spelling_of_an_address_is_no_other_address(server):
    server.pages["/caf%c3%a9/"] = f'<a href="/caf%C3%A9/3.png">a</a><a href="{server.url.upper()}/café/4.png">b</a>'
    assert set(EVERYWHERE.files(f"{server.url}/caf%c3%a9/")) == {"3.png", "4.png"}
    assert remote._place("https://HOST:443/%7ea/") == remote._place("https://host/~a/./b/../")


def test_a_folder_that_cannot_be_listed_is_not_left_out(server):
    server.pages = {"/pub/": APACHE}
    with pytest.raises(fv.InputError, match="sub"):
        EVERYWHERE.files(f"{server.url}/pub")


def test_folders_in_each_other_without_end_are_refused(server, monkeypatch):
    monkeypatch.setattr(remote, "PAGES", 9)
    with pytest.raises(fv.InputError, match="folders"):
        EVERYWHERE.files(f"{server.url}/endless")


def test_a_page_without_end_is_refused(server, monkeypatch):
    monkeypatch.setattr(remote, "PAGE", 2**20)
    server.endless, server.files[""] = b"x" * 2**16, b""
    with pytest.raises(fv.InputError, match="more than"):
        EVERYWHERE.files(f"{server.url}/unsized")


def test_the_object_that_stands_for_a_folder_is_no_file(bucket):
    bucket.call_s3("put_object", Bucket="bucket", Key="marked/sub/", Body=b"")
    bucket.pipe("bucket/marked/sub/a.png", b"a")
    assert set(Remote().files("s3://bucket/marked")) == {"sub/a.png"}


def test_an_object_is_asked_for_its_size_once(bucket, monkeypatch):
    asked, call = [], type(bucket)._call_s3

    def note(self, method, *arguments, **options):
        asked.append(method)
        return call(self, method, *arguments, **options)

    monkeypatch.setattr(type(bucket), "_call_s3", note)
    Remote().data_url("s3://bucket/pictures/3.png")
    assert asked.count("head_object") == 1


def test_a_job_goes_on_while_its_bucket_is_as_it_was(ask_all, bucket, pictures):
    bucket.copy("bucket/pictures/", "bucket/again/", recursive=True)
    assert ask_all("s3://bucket/again", question=QUESTION, limit=2)[1].asked == 2
    assert ask_all("s3://bucket/again", question=QUESTION)[1].asked == 8
    bucket.pipe("bucket/again/3.png", (pictures / "4.png").read_bytes())
    with pytest.raises(fv.InputError, match="another"):
        ask_all("s3://bucket/again", question=QUESTION)


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_a_table_in_a_bucket_names_pictures_beside_it_and_elsewhere(ending, ask_all, bucket, server, pictures):
    rows = [
        {"id": "beside", "image": "3.png", "question": QUESTION},
        {"id": "elsewhere", "image": f"{server.url}/plain/3.png", "question": QUESTION},
        {"id": "on this machine", "image": str(pictures / "3.png"), "question": QUESTION},
        {"id": "as a file URL", "image": f"file://{pictures / '3.png'}", "question": QUESTION},
        {"id": "by another scheme", "image": f"ftp://me:{SECRET}@host/3.png", "question": QUESTION},
        {"id": "gone", "image": "nofile.png", "question": QUESTION},
    ]
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(rows)
    written = {"jsonl": partial(frame.to_json, orient="records", lines=True), "csv": partial(frame.to_csv, index=False)}
    content = written.get(ending, frame.to_parquet)(None)
    bucket.pipe(f"bucket/pictures/rows.{ending}", content if isinstance(content, bytes) else content.encode())
    answers, _ = ask_all(f"s3://bucket/pictures/rows.{ending}", parts="jsonl")
    bucket.rm(f"bucket/pictures/rows.{ending}")
    assert [("reason" in answers[number]) for number in range(6)] == [False, False, True, True, True, True]
    assert answers[0]["answer"] == answers[1]["answer"]


def test_no_output_has_a_credential(ask_all, server, tmp_path, capfd):
    signed = server.url.replace("//", f"//user:{SECRET}@") + f"/plain/3.png?X-Amz-Signature={SECRET}"
    lines = [
        json.dumps({"id": 1, "image": signed, "question": QUESTION, "source": {"of": [signed]}}),
        json.dumps({"id": signed, "image": [signed.replace("plain", "gone"), "a.png"], "question": QUESTION}),
        json.dumps({"id": 3, "image": signed.replace("plain/3.png", ""), "question": 3}),
        json.dumps({"id": 4, "image": {"bytes": None, "path": signed}, "question": QUESTION}),
        f'{{"image": "{signed}"',
    ]
    server.files["rows.jsonl"] = "\n".join(lines).encode()
    _, summary = ask_all(f"{server.url}/plain/rows.jsonl?token={SECRET}")
    assert (summary.answered, summary.bad, summary.broken) == (2, 3, 1)
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert SECRET.encode() not in written
    assert SECRET not in repr(summary) + "".join(capfd.readouterr())


def test_a_folder_and_a_table_with_a_user_are_read_with_it(ask_all, server):
    server.user = "Basic bWU6aHVudGVyMg=="
    server.files["rows.jsonl"] = b'{"image": "3.png"}\n{"image": "no.png"}'
    url = server.url.replace("//", f"//me:{SECRET}@")
    assert ask_all(f"{url}/list/", "list", question=QUESTION)[1].answered == 10
    rows, summary = ask_all(f"{url}/plain/rows.jsonl", question=QUESTION)
    assert (summary.answered, rows[1]["root"]) == (1, f"{server.url}/plain")
    with pytest.raises(fv.SettingError) as raised:
        ask_all(f"{url}/list/", "no-question")
    assert SECRET not in str(raised.value)


def test_paths_in_a_table_behind_a_url_name_the_files_that_they_name_on_the_disk(server, tmp_path):
    names = [*NAMES, "plan#1.png", "plan", "50%20off.png", "50 off.png", "a\\b.png", "what", r"\udcff.png"]
    for number, name in enumerate(names):
        server.files[name] = b"%d" % number
    paths = [
        *names,
        "./3.png",
        "sub//%41.png",
        "sub/../4.png",
        "../plain/5.png",
        "gone#.png",
        "/3.png",
        "//plain/3.png",
    ]
    server.files["rows.jsonl"] = "\n".join(json.dumps({"id": path, "image": path}) for path in paths).encode()
    for name, content in server.files.items():
        (path := tmp_path / "plain" / name).parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    there = contents(f"{server.url}/plain/rows.jsonl")
    assert there == contents(tmp_path / "plain/rows.jsonl")
    assert list(there.values()).count(None) == 3


def test_a_url_is_sent_as_it_is_written(server):
    signed = "/plain/3.png?sig=a%2Bb%2Fc%3d&x=1+2&y=%7E;@"
    server.moves["/plain/moved.png"] = signed
    for url in (server.url + signed, f" {server.url.upper()}{signed}#a\n", f"{server.url}/plain/moved.png"):
        server.paths.clear()
        body_of(url)
        assert server.paths[-1] == signed
    server.files["é 5%.png"] = b"a"
    body_of(f"{server.url}/plain/é 5%.png")
    assert server.paths[-1] == "/plain/%C3%A9%205%25.png"
    server.moves["/plain/moved.png"] = "/plain/é 5%.png".encode().decode("latin-1")
    body_of(f"{server.url}/plain/moved.png")


def test_names_in_a_bucket_are_literal(bucket):
    rows = [{"id": name, "image": name} for name in ("a#1.png", "a?.png", "50%20.png", "é b .png ")]
    for row in rows:
        bucket.pipe(f"bucket/what?/{row['id']}", b"a")
    bucket.pipe("bucket/what?/rows#1.jsonl", "\n".join(map(json.dumps, rows)).encode())
    assert None not in contents(" S3://bucket/what?/rows#1.jsonl ").values()


REFUSED = {
    "/plain/rows.csv.gz": "folder",
    "/plain/pics.zip": "folder",
    "/plain/3.png?a=b": "folder",
    "/plain/rows.jsonl.zst": "jsonl",
    "/data": "json",
    "https:/host/pics": "host",
    "hf://datasets/a/b": "hf:",
    "/login/a/": "above",
}


@pytest.mark.parametrize(("place", "word"), REFUSED.items())
def test_an_input_that_is_not_read_is_refused_by_its_name(place, word, ask_all, server):
    server.pages = {"/data/": '["a.png"]', "/login": '<a href="help">'}
    server.moves["/login/a/"] = "/login"
    with pytest.raises(fv.InputError, match=word) as raised:
        ask_all(place if ":" in place else server.url + place, question=QUESTION)
    assert place.partition("?")[0].rpartition("/")[2] in str(raised.value)


def test_a_bad_row_of_a_folder_is_asked_again(ask_all, server, pictures, tmp_path):
    server.files["c#d?.png"] = (pictures / "3.png").read_bytes()
    row = {"row": 1, "reason": "busy", "root": f"{server.url}/plain", "image": "c#d?.png", "question": QUESTION}
    (path := tmp_path / "bad.jsonl").write_text(json.dumps(row))
    assert None not in contents(path).values()


def test_rows_of_another_engine_may_name_urls(asking, server, vlm):
    columns = {"image": [f"{server.url}/plain/3.png", f"{server.url}/plain/nofile.png"]}
    told = Predictor(replace(asking, remote=EVERYWHERE), prompt=QUESTION, vlm=vlm)(columns)
    assert [answer is None for answer in told["answer"]] == [False, True]


def test_nothing_is_downloaded_without_the_flag(ask_all, server, bucket):
    with pytest.raises(fv.InputError):
        ask_all("s3://bucket/pictures", question=QUESTION, remote=None)
    server.files["rows.jsonl"] = b""
    with pytest.raises(fv.InputError):
        fv.load().ask(f"{server.url}/plain/3.png", QUESTION)
    assert server.seen == []


def test_the_command_reads_a_file_url(model, questions, tmp_path, capfd):
    words = ("--method", "v2drop:layers=1,2,3", "--max-new-tokens", "3", "--model", str(model), "--device", "cpu")
    code = main(["batch", questions(2, "a b.jsonl").as_uri(), str(tmp_path / "out"), *words])
    assert code in (0, 3), capfd.readouterr().err


@pytest.mark.parametrize("words", [["--remote-private"], []], ids=["remote", "none"])
def test_the_command_reads_urls_with_its_flag_alone(words, model, server, tmp_path, capfd):
    method = ("--method", "v2drop:layers=1,2,3", "--max-new-tokens", "3", "--model", str(model), "--device", "cpu")
    code = main(["batch", f"{server.url}/list/", str(tmp_path / "out"), "--prompt", QUESTION, *method, *words])
    assert (code, bool(server.seen)) == ((0, True) if words else (1, False)), capfd.readouterr().err


def test_root_and_remote_exclude_each_other(asking):
    with pytest.raises(fv.SettingError):
        replace(asking, remote=Remote(), within="/")
