"""`Remote`: files and folders behind s3://, gs:// and https:// URLs, read by fsspec.

Only `foveate batch --remote` reads URLs. A size is looked at before the body, every wait has an end, and neither
messages nor rows show the credentials of a URL.
"""

import base64
import hashlib
import io
import ipaddress
import mimetypes
import re
import socket
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urljoin, urlsplit

from foveate.errors import FoveateError, InputError
from foveate.plain.files import is_video, scheme_of
from foveate.plain.upstream import extra, trim

HTTP = ("https", "http")
SCHEMES = ("s3", "gs", *HTTP)
"""http is for private addresses alone: elsewhere anybody on the way could change what it carries."""
MEDIUM, PAGE, TABLE = 2**29, 2**26, 2**36
"""Maximum bytes of a picture or film and of a folder's page, in memory, and of a table, on the disk."""
PAGES = 10_000
"""Maximum folders below one over HTTP."""
PORTS = {"http": 80, "https": 443}
ALLOWED = "%/?:@!$&'()*+,;=[]"
"""Characters that stay as they are in a URL, beside letters and digits."""
HTML = ("text/html", "application/xhtml+xml")
NO_FILES = ("about", "data", "javascript", "mailto", "tel")
"""Schemes of links that lead to no file."""
ORDERS = {"c", "o", "f", "v", "sort", "order", "layout"}
"""Keys of queries that show a page in another order, on Apache, Jetty, nginx and Caddy."""
PIECE = 2**20
"""Bytes of a body that are read at a time."""
WAIT = 30.0
"""Seconds until a connection, and each next piece of a body, must be there."""
SLOWEST = 10_000
"""Bytes per second below which a body is given up, `WAIT` seconds after its beginning."""
PAUSES = (0.5, 2.0, 8.0, None)
"""Seconds before further tries over HTTP. The libraries of s3:// and gs:// try again themselves."""
PASSING = (408, 425, 429)
"""HTTP's answers below 500 after which a further try may succeed."""
LASTING = (FileNotFoundError, PermissionError, ValueError, TypeError)
"""Errors that a further try would only repeat."""


def is_remote(source: object) -> bool:
    """Return whether a source is a URL that `Remote` reads."""
    return isinstance(source, str) and scheme_of(source) in SCHEMES


def public(url: str) -> str:
    """Return a URL without what may be a credential: the user, and but for S3's and Google's the query, a signature."""
    try:
        parts = urlsplit(url.strip())
        parts = parts._replace(netloc=parts.netloc.rpartition("@")[2])
        parts.port  # noqa: B018  # raises
    except ValueError:  # a part of a password that has a slash stands where the port should
        return f"{scheme_of(url)}://…"
    if parts.scheme not in SCHEMES[:2]:
        parts = parts._replace(query=parts.query and "…", fragment="")
    return trim(parts.geturl(), most=1000)


# -- URLs as texts ----------------------------------------------------------------------------------------------------


def request_url(url: str) -> str:
    """Return a URL as it is sent: over HTTP without dot segments, and with characters quoted that URLs cannot have.

    What is quoted already stays so, because signatures may cover it. Names in buckets are left as they are.

    Raises:
        InputError: If it has no host.
    """
    scheme, rest = scheme_of(url), url.lstrip().partition(":")[2]
    if scheme not in HTTP:
        return f"{scheme}:{rest}"
    try:
        parts = urlsplit(f"{scheme}:{rest.strip()}")
        user, at, host = parts.netloc.rpartition("@")
        host = host.lower() if host.isascii() else host.encode("idna").decode()
        if not parts.hostname or parts.port == 0:
            raise ValueError
    except ValueError:
        raise InputError(f"{public(url)} names no host. Write it as {scheme}://HOST/PATH.") from None
    path = _quote_rest("/".join(_steps(parts.path)))
    parts = parts._replace(
        netloc=f"{_quote_rest(user)}{at}{host}", path=path, query=_quote_rest(parts.query), fragment=""
    )
    return parts.geturl()


def _quote_rest(part: str) -> str:
    """Quote what a URL cannot have. A percent sign that quotes nothing is quoted itself."""
    return re.sub("%(?![0-9A-Fa-f]{2})", "%25", quote(part, ALLOWED, errors="surrogateescape"))


def _steps(path: str) -> list[str]:
    """Return the steps of a URL's path without dot segments: "/a/./b/../c/" -> "", "a", "c", ""."""
    steps = list[str]()
    for step in path.split("/") if path else ["", ""]:
        dots = unquote(step)
        if dots == "..":
            del steps[max(1, len(steps) - 1) :]
        elif dots != ".":
            steps.append(step)
    if dots in (".", ".."):
        steps.append("")
    return steps


def _place(url: str) -> tuple[object, list[str]]:
    """Return the server of a URL and the steps of its path, equal for two spellings.

    Raises:
        ValueError: If its host or port cannot be read.
    """
    parts = urlsplit(url)
    steps = [unquote(step, errors="surrogateescape") for step in _steps(parts.path)]
    return (parts.scheme, parts.hostname, parts.port or PORTS.get(parts.scheme)), steps


def _is_below(url: str, folder: str) -> bool:
    """Return whether a URL lies in the folder of a page."""
    (server, steps), (home, start) = _place(url), _place(folder)
    depth = len(start) - 1  # without the page's own name, which may be empty
    return server == home and len(steps) > depth and steps[:depth] == start[:depth]


def file_name(url: str) -> str:
    """Return the last name in a URL's path."""
    if scheme_of(url) in HTTP:
        path = unquote(urlsplit(url).path, errors="surrogateescape")
    else:
        path = url.partition("://")[2].partition("/")[2]
    return path.rstrip("/").rpartition("/")[2]


def folder_of_url(url: str) -> str:
    """Return the URL of a file's folder, without a slash at its end."""
    if scheme_of(url) in HTTP:
        url = urlsplit(url)._replace(query="", fragment="").geturl()
    return url.rpartition("/")[0]


def as_folder(url: str) -> str:
    """Return a folder's URL with one slash at the end of its path."""
    if scheme_of(url) not in HTTP:
        return f"{url.rstrip('/')}/"
    parts = urlsplit(url)
    return parts._replace(path=f"{parts.path.rstrip('/')}/").geturl()


def beside(folder: str, path: str) -> str:
    """Return the URL of a file by its path from a folder. The path is quoted over HTTP, and literal in a bucket.

    Raises:
        InputError: If the path is absolute, over HTTP.
    """
    if scheme_of(folder) not in HTTP:
        return f"{folder}/{path}"
    if path.startswith("/"):
        raise InputError(f"{trim(path)} must be a path from {public(folder)}, or a whole URL. Write one of them.")
    return urljoin(f"{folder}/", quote(re.sub("/+", "/", path), errors="surrogateescape"))


class _Links(HTMLParser):
    """Reads a page's links: those of its `a` and `area`, as they are written.

    Attributes:
        base: The address from which they start, by the first `base`; None for the page's.
        links: The links, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.base: str | None = None
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        address = next((value for name, value in attrs if name == "href" and value is not None), None)
        if address is None:
            return
        if tag == "base" and self.base is None:
            self.base = address.strip()
        elif tag in ("a", "area"):
            self.links.append(address.strip())


def _target(link: str, homes: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """Return the name and the URL of the file or folder to which a link leads. A folder's name ends with a slash.

    The name is empty for a link to the page itself, in another order, or to a folder around it.

    Args:
        link: The link, as an absolute URL.
        homes: Addresses of the page and of the first page, each with the name of its folder.

    Raises:
        ValueError: If it leads elsewhere, or has a query that may show another file or more of them.
    """
    parts = urlsplit(link)
    keys = {key.lower() for key, _ in parse_qsl(parts.query.replace(";", "&"), keep_blank_values=True)}
    if parts.scheme in NO_FILES:
        return "", ""
    if parts.scheme not in HTTP:
        raise ValueError
    place = _place(link)
    is_page = any(place == _place(page) for page, _ in homes)
    is_folder = place[1][-1] == ""
    if not keys <= (ORDERS if is_page or is_folder else set()):
        raise ValueError
    if is_page or (is_folder and any(_is_below(page, link) for page, _ in homes)):
        return "", ""
    for page, folder in homes:
        if _is_below(link, page):
            depth = len(_steps(urlsplit(page).path)) - 1
            names = [name.replace("/", "%2F") for name in place[1][depth:]]
            # The page's own address has the user, which links leave out.
            url = f"{folder_of_url(page)}/{'/'.join(_steps(parts.path)[depth:])}"
            return folder + "/".join(names), request_url(url)
    raise ValueError


def _absolute(base: str, link: str) -> str:
    """Return a link as an absolute URL, or as it is where it is none."""
    try:
        return urljoin(base, link)
    except ValueError:
        return link


# -- reading ----------------------------------------------------------------------------------------------------------


class Listed(NamedTuple):
    """A file of a folder behind a URL.

    Attributes:
        url: Its URL.
        identity: Its ETag and size, or a hash of its content.
    """

    url: str
    identity: str


@dataclass(frozen=True)
class Remote:
    """Reads URLs.

    Attributes:
        private: Read addresses of private networks too, and http://.
    """

    private: bool = False

    def files(self, url: str, note: Callable[[str], object] = warnings.warn) -> dict[str, Listed]:
        """Return the files below a folder by name.

        Args:
            url: The folder.
            note: Receives a line that says how many links of its pages are left out, if any are.

        Raises:
            InputError: If the folder or a file cannot be read, or every link is left out.
        """
        url = as_folder(request_url(url))
        if scheme_of(url) in HTTP:
            return {
                name: Listed(place, self._identity(place, {})) for name, place in self._links_below(url, note).items()
            }
        # fsspec names objects BUCKET/NAME
        objects = self._try(url, lambda system: system.find(url, detail=True))
        infos = {f"{scheme_of(url)}://{name}": info for name, info in objects.items()}
        below = [place for place in infos if place.startswith(url) and not place.endswith("/")]
        return {place.removeprefix(url): Listed(place, self._identity(place, infos[place])) for place in below}

    def _links_below(self, url: str, note: Callable[[str], object]) -> dict[str, str]:
        """Return by name the URLs of the files to which the pages of a folder and of those below it link.

        fsspec's own walk finds links by a pattern, and leaves out a folder whose page cannot be read.
        """
        pages, files, left_out = {"": url}, dict[str, str](), set[str]()
        first: list[tuple[str, str]] = []
        folders = [""]
        for folder in folders:  # which grows
            address, links = self._page(pages[folder])
            homes = [(address, folder), (pages[folder], folder), *first]
            first = first or homes
            for link in links:
                try:
                    name, place = _target(link, homes)
                except ValueError:
                    left_out.add(link)
                    continue
                if not name.endswith("/"):
                    files.setdefault(name, place)
                elif name not in pages:
                    pages[name] = place
                    folders.append(name)
            if len(pages) > PAGES:
                raise InputError(f"{public(url)} has more than {PAGES:,} folders below it. Name them one by one.")
        files.pop("", None)  # links to pages
        if left_out:
            count = f"{len(left_out):,} link{'s' * (len(left_out) > 1)}"
            why = f"{count} of {public(url)} lead out of the folder or have a query, such as {public(min(left_out))}"
            if not files:
                raise InputError(f"{why}, and no other link leads to a file. Name the folder where the files are.")
            note(f"{why}. They are left out.")
        return files

    def _page(self, url: str) -> tuple[str, list[str]]:
        """Return the address that answers for a folder's page, and the page's links as absolute URLs."""
        file = io.BytesIO()
        response = self._copy(url, file, PAGE)
        address = request_url(str(response.url))
        (server, steps), (asked, below) = _place(address), _place(url)
        if server == asked:
            address = urlsplit(address)._replace(netloc=urlsplit(url).netloc).geturl()  # with the user
            if len(steps) < len(below) and _is_below(url, address):
                raise InputError(f"{public(url)} leads to {public(address)}, a page above it. Check the URL.")
        parser = _Links()
        try:
            parser.feed(file.getvalue().decode(response.charset or "utf-8", errors="replace"))
            parser.close()
        except (AssertionError, LookupError) as error:  # the parser's, and that of an unknown charset
            raise InputError(f"{public(url)} is no HTML: {trim(str(error))}. Name a folder, or a table.") from None
        kind = response.headers.get("Content-Type", HTML[0]).partition(";")[0].strip().lower()
        if not parser.links and kind not in HTML:
            raise InputError(f"{public(url)} is {trim(kind)}, and no page of links. Name a folder, or a table of URLs.")
        base = _absolute(address, parser.base or "")
        return address, [_absolute(base, link) for link in parser.links]

    def _identity(self, url: str, info: dict[str, Any]) -> str:
        info = info or self._try(url, lambda system: system.info(url))
        if tag := info.get("ETag") or info.get("etag"):
            return f"{tag} {info['size']}"
        return hashlib.sha256(self._content(url)).hexdigest()

    def table(self, url: str) -> IO[bytes]:
        """Return a temporary copy of a table, which lasts as long as the object.

        Raises:
            InputError: If it cannot be read.
        """
        url = request_url(url)
        file = tempfile.NamedTemporaryFile(suffix=Path(file_name(url)).suffix)  # noqa: SIM115
        self._copy(url, file, TABLE)
        return file

    def data_url(self, url: str) -> str:
        """Return a picture or film as a `data:` URL.

        Raises:
            InputError: If it cannot be read.
        """
        url = request_url(url)
        name = Path(file_name(url))
        # By the ending alone: mimetypes reads a name as a URL.
        kind = "video/mp4" if is_video(name) else mimetypes.guess_type(f"file{name.suffix}")[0] or ""
        return f"data:{kind};base64,{base64.b64encode(self._content(url)).decode()}"

    def _content(self, url: str) -> bytes:
        file = io.BytesIO()
        self._copy(url, file, MEDIUM)
        return file.getvalue()

    def _copy(self, url: str, file: Any, most: int) -> Any:
        """Write what a URL names into an open file: as many bytes as its size says, or at most `most`.

        Returns:
            aiohttp's response over HTTP, else None.
        """
        too_large = InputError(f"{public(url)} has more than {most:,} bytes. Make it smaller, or download it.")

        def copy(system: Any) -> Any:
            file.truncate(file.seek(0))
            begun = time.monotonic()
            # To open an object of a bucket is to ask for its size; over HTTP it is to ask for its body.
            body = None if scheme_of(url) in HTTP else system.open(url, "rb")
            size = (body.details if body else system.info(url))["size"]
            if size is not None and size > most:
                raise too_large
            with body or system.open(url, "rb", block_size=0, size=size) as body:  # 0: a stream, no ranges
                while piece := body.read(PIECE):
                    file.write(piece)
                    if file.tell() > (most if size is None else size):
                        raise too_large if size is None else ConnectionError
                    if time.monotonic() - begun > WAIT + file.tell() / SLOWEST:
                        raise TimeoutError
            if file.tell() < (size or 0):
                raise ConnectionError
            if not file.tell():
                raise InputError(f"{public(url)} is empty (0 bytes). Export it again.")
            return getattr(body, "r", None)

        response = self._try(url, copy)
        file.flush()
        return response

    def _try(self, url: str, work: Callable[[Any], Any]) -> Any:
        """Return what `work` makes of a URL's file system, tried again after faults that may pass.

        Raises:
            InputError: If it fails. Other libraries' messages quote URLs, so none is repeated.
        """
        scheme = scheme_of(url)
        for pause in PAUSES if scheme in HTTP else (None,):
            try:
                return work(self._system(scheme))
            except Exception as raised:
                error: BaseException = raised
            while scheme in HTTP and isinstance(error, FileNotFoundError) and error.__cause__ is not None:
                error = error.__cause__  # fsspec calls a file missing whatever happened to its HEAD
            if isinstance(error, FoveateError):
                raise error from None
            status = getattr(error, "status", 500)
            if pause is None or isinstance(error, LASTING) or (status < 500 and status not in PASSING):
                break
            time.sleep(pause)
        why = f"{type(error).__name__} {getattr(error, 'status', '')}".strip()
        raise InputError(f"{public(url)} cannot be read: {why}. Check the URL and your credentials.")

    def _system(self, scheme: str | None) -> Any:
        """Return the file system of a scheme. fsspec keeps one for each process."""
        with extra("remote", "Reading URLs needs fsspec with its library for the scheme"):
            import fsspec

            # encoded: URLs are sent as they are.
            http = {"get_client": self._client, "encoded": True}
            options: Any = {"gs": {"requests_timeout": WAIT}, "s3": {}}.get(scheme or "", http)
            return fsspec.filesystem(scheme, use_listings_cache=False, **options)

    async def _client(self, **options: Any) -> Any:
        import aiohttp

        limits = aiohttp.ClientTimeout(total=None, connect=WAIT, sock_read=WAIT)
        # One address after the other, so that a refused one ends the request.
        connector = aiohttp.TCPConnector(socket_factory=self._socket, happy_eyeballs_delay=None)
        options |= {"connector": connector, "timeout": limits, "middlewares": [self._send]}
        return aiohttp.ClientSession(requote_redirect_url=False, **options)

    async def _send(self, request: Any, handler: Callable[[Any], Any]) -> Any:
        """Send a request, also after a redirect.

        Raises:
            InputError: If its URL is http:// outside of private networks.
        """
        url = str(request.url)
        if request.url.scheme == "http" and not self.private:
            raise InputError(f"{public(url)}: http:// is for private networks (--remote-private).")
        request.url = type(request.url)(request_url(url), encoded=True)  # a redirect may have what no URL can
        return await handler(request)

    def _socket(self, address: tuple[Any, ...]) -> socket.socket:
        """Return the socket for an address to which a connection is about to be opened, also after a redirect.

        Raises:
            InputError: If the address belongs to a private network.
        """
        family, kind, protocol, _, (host, *_) = address
        number = ipaddress.ip_address(host)
        if not self.private and not (getattr(number, "ipv4_mapped", None) or number).is_global:
            raise InputError(f"The URL leads to the private address {host}, which only --remote-private reads.")
        return socket.socket(family, kind, protocol)
