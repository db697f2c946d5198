"""`Remote`: files and folders behind s3://, gs:// and https:// URLs, read by fsspec.

Only `foveate batch --remote` reads URLs. A size is looked at before the body, every wait has an end, and neither
messages nor rows show the credentials of a URL.
"""

import base64
import hashlib
import html
import io
import ipaddress
import mimetypes
import re
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urljoin, urlsplit

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
LINK = re.compile(r"""<a\s[^>]*?href\s*=\s*["']?([^"'\s>]+)""", re.IGNORECASE)
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


@dataclass(frozen=True)
class Remote:
    """Reads URLs.

    Attributes:
        private: Read addresses of private networks too, and http://.
    """

    private: bool = False

    def files(self, url: str) -> dict[str, str]:
        """Return the files below a folder by name, each with its identity: its ETag and size, or a hash of its content.

        Raises:
            InputError: If the folder or a file cannot be read.
        """
        url = f"{url.rstrip('/')}/"
        if scheme_of(url) in HTTP:
            infos: dict[str, Any] = {place: {} for place in self._linked(url)}
        else:  # fsspec names objects BUCKET/NAME
            infos = self._try(url, lambda system: system.find(url, detail=True))
            infos = {f"{scheme_of(url)}://{name}": info for name, info in infos.items()}
        below = [place for place in infos if place.startswith(url) and not place.endswith("/")]
        return {place.removeprefix(url): self._identity(place, infos[place]) for place in below}

    def _linked(self, url: str) -> set[str]:
        """Return the URLs below a folder's to which its page links, and those of the folders among them.

        fsspec's own walk leaves out a folder whose page cannot be read.
        """
        pages, places = [url], {url}
        for page in pages:  # which grows
            text = self._copy(page, io.BytesIO(), PAGE).getvalue().decode(errors="replace")
            links = {urljoin(page, html.unescape(link)) for link in LINK.findall(text)}
            # Links with a query lead to the same page in another order on servers such as Apache.
            below = {link for link in links if link.startswith(url) and not re.search("[?#]", link)}
            pages += sorted(link for link in below - places if link.endswith("/"))
            places |= below
            if len(pages) > PAGES:
                raise InputError(f"{public(url)} has more than {PAGES:,} folders below it. Name them one by one.")
        return places

    def _identity(self, url: str, info: dict[str, Any]) -> str:
        info = info or self._try(url, lambda system: system.info(url))
        if tag := info.get("ETag") or info.get("etag"):
            return f"{tag} {info['size']}"
        return hashlib.sha256(self._copy(url, io.BytesIO(), MEDIUM).getvalue()).hexdigest()

    def table(self, url: str) -> IO[bytes]:
        """Return a temporary copy of a table, which lasts as long as the object.

        Raises:
            InputError: If it cannot be read.
        """
        file = tempfile.NamedTemporaryFile(suffix=Path(urlsplit(url).path).suffix)  # noqa: SIM115
        copy: IO[bytes] = self._copy(url, file, TABLE)
        return copy

    def data_url(self, url: str) -> str:
        """Return a picture or film as a `data:` URL.

        Raises:
            InputError: If it cannot be read.
        """
        name = urlsplit(url).path
        kind = "video/mp4" if is_video(Path(name)) else mimetypes.guess_type(name)[0] or ""
        return f"data:{kind};base64,{base64.b64encode(self._copy(url, io.BytesIO(), MEDIUM).getvalue()).decode()}"

    def _copy(self, url: str, file: Any, most: int) -> Any:
        """Write what a URL names into an open file: as many bytes as its size says, or at most `most`."""
        too_large = InputError(f"{public(url)} has more than {most:,} bytes. Make it smaller, or download it.")

        def copy(system: Any) -> None:
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

        self._try(url, copy)
        file.flush()
        return file

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

            options: Any = {"gs": {"requests_timeout": WAIT}, "s3": {}}.get(scheme or "", {"get_client": self._client})
            return fsspec.filesystem(scheme, use_listings_cache=False, **options)

    async def _client(self, **options: Any) -> Any:
        import aiohttp

        limits = aiohttp.ClientTimeout(total=None, connect=WAIT, sock_read=WAIT)
        # One address after the other, so that a refused one ends the request.
        connector = aiohttp.TCPConnector(socket_factory=self._socket, happy_eyeballs_delay=None)
        return aiohttp.ClientSession(connector=connector, timeout=limits, middlewares=[self._send], **options)

    async def _send(self, request: Any, handler: Callable[[Any], Any]) -> Any:
        """Send a request, also after a redirect.

        Raises:
            InputError: If its URL is http:// outside of private networks.
        """
        if request.url.scheme == "http" and not self.private:
            raise InputError(f"{public(str(request.url))}: http:// is for private networks (--remote-private).")
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
