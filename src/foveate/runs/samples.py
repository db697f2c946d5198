"""Read samples: pictures or films with a question each, from JSON lines, CSV, Parquet, or a folder of pictures.

Files are read lazily, never as a whole. Other columns of a sample are carried into the output.
"""

import base64
import csv
import hashlib
import json
import mimetypes
import os
import re
import warnings
from abc import ABC, abstractmethod
from ast import literal_eval
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from io import TextIOWrapper
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

from foveate.errors import InputError, SettingError
from foveate.plain.files import BASE64, is_video, local_path, open_readable, scheme_of, sha256_of, spell
from foveate.plain.upstream import Shared, brief, extra, first_line, printable
from foveate.runs.remote import Remote, as_folder, beside, file_name, folder_of_url, is_remote, public, request_url

LABELS = ("label", "labels", "answer", "answers")
"""Columns with the true answer or answers. The first one present is used."""
LINE = 2**24
"""Maximum bytes of a JSON line, or letters of a CSV cell. A longer one is not a sample."""
PARSER = json.JSONDecoder(parse_constant=lambda name: None)
"""Reads a line. pandas writes a missing value as NaN."""
ROOT = "root"
"""The key of a bad row's base folder of relative paths."""
OF_BAD = {"row", "reason", ROOT}
"""The keys by which a bad row of an earlier job is known."""
LINE_KEY = "line"
"""The key of a line that cannot be parsed."""
SHOWN = 10_000
"""Maximum letters that are kept of a line that cannot be parsed."""
PANDAS_MISSING = ("NAType", "NaTType")
"""The types of pandas' missing values. They cannot be compared."""
READ = 128
"""Rows of a Parquet file that are read at a time."""
LONG_CELLS = Shared(csv.field_size_limit, csv.field_size_limit, LINE)
LOOK = 1024
"""Number of samples between checks that the file has not changed."""


class Unreadable(ValueError):
    """Raised for a record that is not a sample. The message says why."""


@dataclass(frozen=True, slots=True)
class MediaSample:
    """A question about pictures or films.

    Attributes:
        number: Its index in the file, from 0.
        id: Its id, a text or a whole number.
        media: Absolute paths, or `data:` URLs of media inside the file; images and arrays of rows in memory.
        question: The question.
        record: The file's record by column, without media inside the file.
        column: The column of the media.
        root: The base folder of relative paths.
    """

    number: int
    id: str | int
    media: tuple[Any, ...]
    question: str
    record: Mapping[str, object]
    column: str = "media"
    root: str = ""


@dataclass(frozen=True, slots=True)
class Bad:
    """A record that is not a sample.

    Attributes:
        number: Its index in the file, from 0.
        record: As in `MediaSample`, or the line under `LINE_KEY`.
        reason: Why it is not a sample, and what to do.
        id: Its id; None if unknown.
        root: The base folder of relative paths; empty for a line that cannot be parsed.
    """

    number: int
    record: Mapping[str, object]
    reason: str
    id: str | int | None = None
    root: str = ""


@dataclass(frozen=True, slots=True)
class SampleColumns:
    """The names of a file's columns. Of several names, the first one present is used.

    Attributes:
        media: Columns of the paths of pictures or films, one or a list.
        question: Columns of the question.
        id: Column of the id. None uses the sample's number, and so does a row without a value in the default column.
        text_only: Allow samples without a picture or film.
    """

    media: tuple[str, ...] = ("media", "image", "images", "picture", "video")
    question: tuple[str, ...] = ("question", "prompt")
    id: str | None = "id"
    text_only: bool = False


# -- formats ------------------------------------------------------------------------------------------------------


class _Records(ABC):
    """A file or folder, record by record.

    Args:
        path: The file or folder.
        asked: Columns that samples need, if present.
        url: Its URL, without credentials; None for a local file.
        copy: The file at `path`, if it is a copy of what the URL names. It is removed when nothing holds it.

    Attributes:
        without_media, without_question: What to do about a row without a picture or question, for errors.
    """

    without_media = " To ask without media, use --text-only of foveate batch."
    without_question = " For one question about all rows, use --prompt of foveate batch."

    def __init__(
        self, path: Path, asked: tuple[str, ...] = (), url: str | None = None, copy: IO[bytes] | None = None
    ) -> None:
        self.path, self.asked, self.url, self.copy = path, asked, url, copy
        self.name = url or spell(path)

    @abstractmethod
    def records(self, carried: bool) -> Iterator[Mapping[str, object] | Bad]:
        """Yield the records. `carried` includes the columns that samples do not need.

        Raises:
            InputError: If the file cannot be read.
        """

    def digest(self) -> str:
        """Return the SHA-256 of the contents."""
        return sha256_of(self.path)

    def name_of(self, record: Mapping[str, object], column: str | None) -> str | None:
        """Return what a record is known by when others come: its id. None without one."""
        value = None if column is None else record.get(column)
        return None if value is None else str(value)

    def content_of(self, record: Mapping[str, object]) -> str:
        """Return a short text that is another one if the record changes, with media inside of it."""
        text = CONTENT.encode(record)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def state(self) -> object:
        """Return a value that changes when the file is written to."""
        status = self.path.stat()
        return status.st_size, status.st_mtime_ns, status.st_ino


def _digest_of(value: object) -> str:
    """Return a text for a value without a JSON type."""
    return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else str(value)


CONTENT = json.JSONEncoder(sort_keys=True, default=_digest_of)
"""Writes a record as a text."""


class _JsonLines(_Records):
    """A JSON object per line. Blank lines are skipped."""

    def records(self, carried: bool) -> Iterator[Mapping[str, object] | Bad]:
        with open_readable(self.path) as file:
            start, number = b"\xef\xbb\xbf", 0
            while line := file.readline(LINE):
                text = line.removeprefix(start).strip()
                start = b""
                if len(line) == LINE and not line.endswith(b"\n"):
                    while (rest := file.readline(LINE)) and not rest.endswith(b"\n"):
                        pass  # skip the rest of the line
                    yield _no_sample(number, text, f"The line has more than {LINE:,} bytes.")
                elif text:
                    yield _object(number, text)
                else:
                    continue
                number += 1


def _object(number: int, line: bytes) -> Mapping[str, object] | Bad:
    try:
        values = PARSER.decode(line.decode(errors="surrogatepass"))
    except (ValueError, RecursionError) as error:
        return _no_sample(number, line, f"The line is not valid JSON: {first_line(error)}")
    if not isinstance(values, dict):
        return _no_sample(number, line, f"A line must be a JSON object; got a {type(values).__name__}.")
    return values


def _no_sample(number: int, line: bytes, reason: str) -> Bad:
    return Bad(number, {LINE_KEY: line[:SHOWN].decode(errors="backslashreplace")}, reason)


class _Csv(_Records):
    """A CSV file with column names in the first line. Several pictures are written as a JSON list.

    The separator is the most frequent one in the first line: comma, semicolon (Excel in some countries) or tab.
    """

    def records(self, carried: bool) -> Iterator[Mapping[str, object] | Bad]:
        with open_readable(self.path) as binary, LONG_CELLS:
            text = TextIOWrapper(binary, encoding="utf-8-sig", errors="surrogateescape", newline="")
            head = text.readline()
            separator = "\t"
            if self.path.suffix.lower() != ".tsv":
                separator = max(",;\t", key=head.count)
            # Strict: an unclosed quote raises. Otherwise all rows after it would become one cell.
            reader = csv.reader(chain([head], text), delimiter=separator, skipinitialspace=True, strict=True)
            names = self._names(reader)
            number = 0
            while True:
                try:
                    cells = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    if "field limit" in str(error):  # continuing would read the cell's lines as rows
                        raise InputError(f"{self.name}, row {number} (from 0): {error}. Shorten it.") from error
                    yield Bad(number, {}, f"The line is not valid CSV: {error}.")
                else:
                    if not cells:
                        continue
                    yield _cells(number, names, cells)
                number += 1

    def _names(self, reader: Iterator[list[str]]) -> list[str]:
        try:
            names = [name.strip() for name in next(reader, [])]
        except csv.Error as error:
            raise InputError(f"{self.name} has no line with the names of its columns: {error}.") from error
        twice = [name for name, times in Counter(names).items() if name and times > 1]
        if twice:
            raise InputError(f"{self.name} has two columns {min(twice)!r}. Rename one.")
        return names


def _cells(number: int, names: list[str], cells: list[str]) -> Mapping[str, object] | Bad:
    if len(cells) > len(names):
        reason = f"The line has {len(cells)} cells, but there are {len(names)} columns."
        return Bad(number, {LINE_KEY: ",".join(cells)[:SHOWN]}, reason)
    filled = ((name, cell.strip()) for name, cell in zip(names, cells, strict=False) if name)
    return {name: _cell(name, cell) for name, cell in filled if cell}


def _cell(name: str, cell: str) -> object:
    """Return a cell's text, or its list if it is a list of texts (for labels also of numbers)."""
    if not cell.startswith("["):
        return cell
    try:
        values = literal_eval(cell) if cell.startswith("['") else json.loads(cell)  # a Python list or a JSON list
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return cell  # an ordinary text may begin with a bracket
    kinds = (str, int, float) if name in LABELS else str
    if isinstance(values, list) and all(isinstance(value, kinds) for value in values):
        return values
    return cell


class _Parquet(_Records):
    """A Parquet file, read some rows at a time.

    Columns that samples do not need are carried along if they can be read, except binary ones such as pictures inside
    the file.
    """

    def records(self, carried: bool) -> Iterator[Mapping[str, object] | Bad]:
        pyarrow = arrow()
        try:
            with open_readable(self.path) as binary, pyarrow.parquet.ParquetFile(binary) as file:
                types = {field.name: str(field.type) for field in file.schema_arrow}
                asked = [name for name in types if name in self.asked]
                others = [name for name in types if name not in self.asked and "binary" not in types[name]]
                if not asked:
                    raise InputError(f"{self.name} has none of the columns {', '.join(self.asked)}.")
                beside = _readable(file, others if carried else [])
                for batch in file.iter_batches(batch_size=READ, columns=asked):
                    columns = batch.to_pydict() | next(beside, {})
                    for row in zip(*columns.values(), strict=True):
                        # NaN becomes None.
                        yield {name: None if cell != cell else cell for name, cell in zip(columns, row, strict=True)}
        except (pyarrow.ArrowException, OSError) as error:
            raise InputError(f"{self.name} is no Parquet file, or is damaged: {first_line(error)}") from error


def _readable(file: Any, names: list[str]) -> Iterator[dict[str, list[object]]]:
    """Yield the values of columns that samples do not need, batch by batch. Stop where they are damaged."""
    with suppress(arrow().ArrowException, OSError):
        for batch in file.iter_batches(batch_size=READ, columns=names):
            yield dict(zip(batch.schema.names, map(_values, batch.columns), strict=True))


def _values(column: Any) -> list[object]:
    """Return a column's values, or None for each if Python cannot represent them, such as a date after 9999."""
    try:
        return list(column.to_pylist())
    except Exception:  # a column that samples do not need may hold anything
        return [None] * len(column)


class _Folder(_Records):
    """A folder: every file in it and its subfolders is a sample, in the order of names. Dot files are skipped.

    Links to files are followed. A link to a folder is a sample that cannot be read.
    """

    def records(self, carried: bool) -> Iterator[Mapping[str, object] | Bad]:
        for name in self._files:
            yield {"image": name, "id": printable(name)}

    def place(self, name: str) -> str:
        """Return the path or URL of a file by its name, which may look like a URL."""
        return os.path.join(os.path.abspath(self.path), name)

    @cached_property
    def _files(self) -> dict[str, str]:
        """The files by name, each with its size and time. They are listed once: a folder may grow meanwhile."""
        files = {}
        for name in self._below(""):
            with suppress(FileNotFoundError):  # removed since it was listed
                status = os.lstat(os.path.join(self.path, name))
                files[name] = f"{status.st_size}\0{status.st_mtime_ns}"
        return files

    def _below(self, folder: str) -> Iterator[str]:
        place = os.path.join(self.path, folder)
        try:
            with os.scandir(place) as entries:
                names = [
                    entry.name + "/" * entry.is_dir(follow_symlinks=False)
                    for entry in entries
                    if not entry.name.startswith(".")
                ]
        except OSError as error:
            raise InputError(
                f"{spell(Path(place))} cannot be listed: {error.strerror}. Check its permissions."
            ) from error
        for name in sorted(names):
            if name.endswith("/"):
                yield from self._below(folder + name)
            else:
                yield folder + name

    def digest(self) -> str:
        """Return the SHA-256 of the files' names, sizes and times. Contents are not read."""
        sha = hashlib.sha256()
        for name, content in self._files.items():
            sha.update(f"{name}\0{content}\n".encode(errors="surrogateescape"))
        return sha.hexdigest()

    def name_of(self, record: Mapping[str, object], column: str | None) -> str | None:
        return str(record["image"])

    def content_of(self, record: Mapping[str, object]) -> str:
        """Return the file's size and time, or its identity behind a URL."""
        return self._files[str(record["image"])]

    def state(self) -> object:
        return None  # new files change the digest, which the next run checks


class _RemoteFolder(_Folder):
    """A folder behind a URL, listed once.

    Args:
        url: The folder.
        remote: Lists it.
        note: See `Remote.files`.
    """

    def __init__(self, url: str, remote: Remote, note: Callable[[str], object]) -> None:
        super().__init__(Path(url), url=public(url))
        self._all = dict(sorted(remote.files(url, note).items()))

    def place(self, name: str) -> str:
        return self._all[name].url

    @cached_property
    def _files(self) -> dict[str, str]:
        return {name: file.identity for name, file in self._all.items() if "/." not in f"/{name}"}

    def digest(self) -> str:
        """Return the SHA-256 of the files' names, sizes and ETags."""
        identities = [(name, file.identity) for name, file in self._all.items()]
        return hashlib.sha256(repr(identities).encode()).hexdigest()


class _InMemory(_Records):
    """Records that are in memory already, with NumPy's values as engines give them."""

    without_media = " Rename the column of the pictures."
    without_question = " Rename the column of the questions, or set the Predictor's prompt."

    def __init__(self, rows: Sequence[Mapping[str, object]]) -> None:
        super().__init__(Path("rows"))
        self._rows = rows

    def records(self, carried: bool) -> Iterator[Mapping[str, object] | Bad]:
        for row in self._rows:
            yield {name: _without_numpy(value) for name, value in row.items()}

    def state(self) -> object:
        return None


def _without_numpy(value: Any) -> object:
    """Return a missing value as None, and an array of texts or of other objects as a list."""
    if (isinstance(value, float) and value != value) or type(value).__name__ in PANDAS_MISSING:
        return None
    return value.tolist() if getattr(getattr(value, "dtype", None), "kind", "") in ("O", "U") else value


ENDINGS: dict[str, type[_Records]] = {
    ".jsonl": _JsonLines,
    ".ndjson": _JsonLines,
    ".csv": _Csv,
    ".tsv": _Csv,
    ".parquet": _Parquet,
}


def arrow() -> Any:
    """Import pyarrow with its Parquet module.

    Raises:
        UnsupportedError: If pyarrow is not installed.
    """
    with extra("batch", "Parquet needs pyarrow"):
        import pyarrow.parquet
    return pyarrow


# -- samples ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Samples:
    """The samples of a file or folder. `samples_in` makes it.

    Attributes:
        source: Reads the records.
        columns: The names of the columns.
        question: One question for every sample; None reads the column.
        root: The base folder of relative paths. None is the file's folder, or that of the job whose bad row it is.
        state: The file's state when it was opened, to detect changes.
        remote: Whether media may be URLs. Then no record shows a URL's credentials, nor a line that cannot be parsed.
        numbers: The number of each record; None numbers them in their order, from 0.
    """

    source: _Records
    columns: SampleColumns
    question: str | None
    root: str | None
    state: object
    remote: bool = False
    numbers: Sequence[int] | None = None

    @property
    def is_folder(self) -> bool:
        """Whether the source is a folder."""
        return isinstance(self.source, _Folder)

    def read(
        self, skip: Callable[[int], bool] = lambda number: False, carried: bool = True
    ) -> Iterator[MediaSample | Bad]:
        """Yield the samples in order.

        Args:
            skip: Returns whether to skip the sample with this number.
            carried: Include the columns that samples do not need in records.

        Raises:
            InputError: If the file cannot be read, or changes meanwhile.
        """
        for place, record in enumerate(self._records(carried)):
            number = place if self.numbers is None else self.numbers[place]
            if not skip(number):
                yield self._sample(number, record)

    def _records(self, carried: bool) -> Iterator[Mapping[str, object] | Bad]:
        """Yield the records, and refuse to continue if the file changes."""
        for place, record in enumerate(self.source.records(carried)):
            if place % LOOK == 0:
                self._refuse_changed()
            yield record
        self._refuse_changed()

    def _refuse_changed(self) -> None:
        """Refuse to continue if the file has changed."""
        if self.source.state() != self.state:
            raise InputError(f"{self.source.name} was written to meanwhile. Run again when it is complete.")

    def count(self, take: Callable[[str | None, str], object] = lambda name, content: None) -> int:
        """Count the records, and check them.

        Ids are compared by hashes of 16 bytes to save memory.

        Args:
            take: Called with what each record is known by (None: its place), and a short text of its content.

        Raises:
            InputError: If there is no record, none is a sample, or an id occurs twice.
        """
        hashes = bytearray()
        count, usable, first_bad = 0, False, None
        for record in self._records(carried=True):
            sample = self._sample(count, record)
            plain = record.record if isinstance(record, Bad) else self._shown(record)
            # The content with its credentials, of which only a hash stays: a query may name another picture.
            whole = record.record if isinstance(record, Bad) else record
            take(self.source.name_of(plain, self.columns.id), self.source.content_of(whole))
            count += 1
            if isinstance(sample, Bad):
                first_bad = first_bad or sample
            else:
                usable = True
            own = repr(count if sample.id is None else str(sample.id))  # a row without an id is like no other
            hashes += hashlib.blake2b(own.encode(), digest_size=16).digest()
        shown = self.source.name
        if not count:
            raise InputError(f"{shown} has no row.")
        if not usable and first_bad is not None:
            raise InputError(
                f"No row of {shown} can be asked. Row {first_bad.number}: {first_bad.reason} "
                "Name the columns (foveate batch: --media-column, --question-column, --id-column), or correct the "
                "input."
            )
        import numpy as np  # imported late, because commands check their input first

        each = np.frombuffer(hashes, dtype="S16")
        rows = np.argsort(each, kind="stable")
        # Neighbours that are equal: rows [4, 0, 2, 1] of hashes [b, b, d, a, …] -> rows 0 and 1.
        twice = np.flatnonzero(each[rows[1:]] == each[rows[:-1]])
        if twice.size and not self.is_folder:  # files are distinct even if their printed names are equal
            first, second = rows[twice[0] : twice[0] + 2]
            raise InputError(
                f"Rows {first} and {second} (from 0) have the same id. Make ids unique, or use the row's number "
                "instead of the column (--number-rows)."
            )
        return count

    def _shown(self, record: Mapping[str, object]) -> Mapping[str, object]:
        """Return a record without credentials."""
        if self.remote and not self.is_folder:  # names of files in a folder may look like URLs
            return {key: _public(value) for key, value in record.items()}
        return record

    def _sample(self, number: int, record: Mapping[str, object] | Bad) -> MediaSample | Bad:
        if isinstance(record, Bad):
            return replace(record, number=number, record={LINE_KEY: "…"} if self.remote else record.record)
        columns, root = self.columns, self.root
        if root is None:
            root = str(record[ROOT]) if record.keys() >= OF_BAD else self._folder
        name, column, media, whole = None, columns.media[0], tuple[Any, ...](), record
        record = self._shown(record)
        base, root = root, public(root) if is_remote(root) else root  # rows show no credential
        try:
            name = self._id(record, number)
            if isinstance(self.source, _Folder):
                column, media = "image", (self.source.place(str(record["image"])),)
            elif not columns.text_only or any(record.get(other) not in (None, [], "") for other in columns.media):
                column = _first(record, columns.media, self.source.without_media)
                media = tuple(_locate(value, base, column, self.remote) for value in _as_list(whole[column]))
            asked: object = self.question
            if asked is None:
                asked = whole[_first(record, columns.question, self.source.without_question)]
            question = _question(asked)
        except Unreadable as error:
            return Bad(number, self._in_texts(record, root), str(error), name, root)
        if any(map(stands_inside, media)):
            values = _as_list(record[column])
            names: list[Any] = [value.get("path") if isinstance(value, Mapping) else value for value in values]
            # The paths, and None for media inside the file.
            names = [None if stands_inside(name) or BASE64.fullmatch(name) else name for name in names]
            record = {**record, column: names if isinstance(record[column], list) else names[0]}
        return MediaSample(number, name, media, question, record, column, root)

    def _id(self, record: Mapping[str, object], number: int) -> str | int:
        """Return a row's id: its number without an id column, or if the default column has no value."""
        column = self.columns.id
        value = None if column is None else record.get(column)
        if value is None and column in (None, SampleColumns().id):
            return self._kind_of_ids(number)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if isinstance(value, str) and value:
            return _text(value, "id")
        raise Unreadable(
            f"An id must be a text or a whole number; got {brief(value)} under {column}. Give the row one, or use row "
            "numbers (foveate batch: --number-rows)."
        )

    @cached_property
    def _folder(self) -> str:
        """The base folder of relative paths, unless another is given."""
        return os.path.abspath(self.source.path.parent)

    @cached_property
    def _kind_of_ids(self) -> type[str] | type[int]:
        """The type of the first id, which a row without one gets too, because a column has one type."""
        records = islice(self.source.records(False), LOOK)
        ids = (record.get(self.columns.id or "") for record in records if isinstance(record, Mapping))
        return str if isinstance(next(filter(None, ids), ""), str) else int

    def _in_texts(self, record: Mapping[str, object], root: str) -> Mapping[str, object]:
        """Replace media inside a record by texts, so that it can be written as JSON and be an input again."""
        column = next((name for name in self.columns.media if isinstance(record.get(name), list | Mapping | bytes)), "")
        media = _as_list(record.get(column))
        for place, value in enumerate(media):
            with suppress(Unreadable):
                media[place] = value if isinstance(value, str) else _locate(value, root, column, self.remote)
        return {**record, column: media} if column else record


def samples_in(
    path: Path | str,
    columns: SampleColumns | None = None,
    question: str | None = None,
    root: str | Path | None = None,
    remote: Remote | None = None,
    note: Callable[[str], object] = warnings.warn,
) -> Samples:
    """Return the samples of a file or folder, whose format depends on the name's ending.

    Args:
        path: A folder, or a file of JSON lines (.jsonl), CSV (.csv, .tsv) or Parquet; as a text perhaps a `file:` URL,
            or with `remote` another one.
        columns: The names of the columns. They are fixed for a folder.
        question: One question for every sample; None reads the column. Required for a folder.
        root: The base folder of relative paths; None is the file's folder.
        remote: Reads URLs, of this file and of media; None refuses them.
        note: Receives what is left out of a folder behind a URL.

    Raises:
        InputError: If the file cannot be read, is compressed, or its ending is not in `ENDINGS`.
        SettingError: If the question is empty, or it is a folder and there is none.
        UnsupportedError: If it is a Parquet file and pyarrow is not installed.
    """
    columns = columns or SampleColumns()
    place: Path | str
    if remote is not None and is_remote(path):
        place = request_url(str(path).strip())
        source = _remote_source(place, columns, remote, note)
    else:
        place = local_path(path)
        source = _source(place, columns)
    root = None if root is None else os.path.abspath(root)
    if question is not None and not question.strip():
        raise SettingError('The question is empty. Ask one, such as "What is it?".')
    if isinstance(source, _Folder):
        if question is None:
            raise SettingError(
                f"The folder {source.name} needs a question about its files: --prompt, or question= in Python. Or name "
                "a file of samples."
            )
        columns = SampleColumns(id=columns.id and SampleColumns().id)
        root = os.path.abspath(source.path)
    if isinstance(place, str):
        root = folder_of_url(as_folder(place) if source.copy is None else place)
    return Samples(source, columns, question, root, source.state(), remote is not None)


def samples_of(rows: Sequence[Mapping[str, object]], question: str | None = None, remote: bool = False) -> Samples:
    """Return the samples of rows in memory; see `Samples`. Relative paths start from the current folder."""
    return Samples(_InMemory(rows), SampleColumns(id=None), question, os.getcwd(), None, remote)


def _source(path: Path, columns: SampleColumns, url: str | None = None, copy: IO[bytes] | None = None) -> _Records:
    if os.path.isdir(path):  # unlike Path.is_dir, it does not raise for too long names
        return _Folder(path)
    with open_readable(path) as file:
        if file.read(2) == b"\x1f\x8b":
            raise InputError(f"{url or spell(path)} is compressed with gzip. Decompress it first.")
    kind = ENDINGS.get(path.suffix.lower())
    if kind is None:
        raise InputError(f"{spell(path)}: an input must be a folder, or its name must end in {', '.join(ENDINGS)}.")
    if kind is _Parquet:
        arrow()
    return kind(path, (*columns.media, *columns.question, *filter(None, [columns.id])), url, copy)


def _remote_source(url: str, columns: SampleColumns, remote: Remote, note: Callable[[str], object]) -> _Records:
    """Return a table or folder behind a URL.

    Raises:
        InputError: If it cannot be read, or has the name of another file.
    """
    name = file_name(url)
    if Path(name).suffix.lower() in ENDINGS:
        copy = remote.table(url)
        return _source(Path(copy.name), columns, public(url), copy)
    tables = f"its name must end in {', '.join(ENDINGS)}"
    # Without the types of this system, which has some for endings such as that of "v1.2".
    if url != as_folder(url) and any(mimetypes.MimeTypes().guess_type(name, strict=False)):
        raise InputError(f"{public(url)}: an input must be a folder, whose URL ends in a slash, or {tables}.")
    try:
        return _RemoteFolder(url, remote, note)
    except InputError as error:
        if not Path(name).suffix:
            raise
        raise InputError(f"{error} If it is a table, {tables}.") from None


def _first(record: Mapping[str, object], names: tuple[str, ...], advice: str) -> str:
    """Return the first of these names with a value.

    Raises:
        Unreadable: If none has one.
    """
    for name in names:
        value = record.get(name)
        if value is not None and not (isinstance(value, list) and not value):
            return name
    has = ", ".join(printable(str(key)) for key in record) or "no column"
    raise Unreadable(f"The row has nothing under {' or '.join(names)}; it has {has:.200}.{advice}")


def _as_list(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else [value]


def stands_inside(source: object) -> bool:
    """Return whether a picture or film stands in the row, not in a file of its own."""
    return not isinstance(source, str) or scheme_of(source) == "data"


def _public(value: object) -> object:
    """Return a value in which no URL shows a credential."""
    if isinstance(value, list | tuple):
        return [_public(item) for item in value]
    if isinstance(value, Mapping):
        return {name: _public(item) for name, item in value.items()}
    return public(value) if isinstance(value, str) and scheme_of(value) not in (None, "data", "file") else value


def _locate(value: Any, root: str, column: str, remote: bool) -> Any:
    """Return the absolute path of a picture or film, its URL, or a `data:` URL of one inside the file.

    An image or array in memory is returned as it is.

    Raises:
        Unreadable: If the value is neither.
    """
    is_film = column == "video"
    if isinstance(value, Mapping) and value.keys() & {"bytes", "path"}:  # the format of Hugging Face datasets
        is_film = is_film or is_video(Path(str(value.get("path"))))
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    head = "data:video/mp4;base64," if is_film else "data:;base64,"
    if isinstance(value, Path):
        if os.path.exists(os.path.join(root, value)):
            return os.path.join(root, value)  # a Path is never a URL, however it looks
        value = str(value)
    if isinstance(value, bytes):
        return head + base64.b64encode(value).decode()
    if not isinstance(value, str) and hasattr(value, "__array_interface__"):
        return value
    if not isinstance(value, str) or not value:
        raise Unreadable(f"A picture or film must be the path of a file, or a list of them; got {brief(value)}.")
    scheme = scheme_of(value)
    if scheme == "data":
        return value
    path = os.path.join(root, value)
    if scheme is None and BASE64.fullmatch(value) and not os.path.exists(path):
        return head + value
    try:
        if remote and is_remote(value):
            return request_url(value.strip())
        if remote and (is_remote(root) or scheme not in (None, "file")):  # what lies behind a URL names no local file
            if scheme is None:
                return beside(root, value)
            raise Unreadable(f"{public(value)} is not read. Name an s3://, gs:// or https:// URL.")
        path = path if scheme is None else os.path.join(root, local_path(value))
    except InputError as error:
        raise Unreadable(str(error)) from error
    if "\\udc" in path and not os.path.exists(path):  # `encodable` wrote a name that is not UTF-8
        return re.sub(r"\\udc([89a-f][0-9a-f])", lambda byte: chr(0xDC00 + int(byte[1], 16)), path)
    return path


def _question(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise Unreadable(f"A question must be a text; got {brief(value)}.")
    return _text(value, "question")


def _text(value: str, what: str) -> str:
    """Return a text, after checking that it can be encoded as UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Unreadable(f"The {what} is not valid Unicode: {brief(value)}.") from None
    return value


# -- labels -------------------------------------------------------------------------------------------------------


def labels_in(record: Mapping[str, object], names: Sequence[str] = LABELS) -> tuple[str, ...]:
    """Return the true answers of a sample; empty without a label. An empty text is not a label.

    Raises:
        InputError: If one is neither a text nor a number.
    """
    for name in names:
        value = record.get(name)
        several = value if isinstance(value, list) else [value]
        labels = [plain({name: label}, name) for label in several]
        if any(labels):
            return tuple(label for label in labels if label)
    return ()


def plain(record: Mapping[str, object], name: str) -> str:
    """Return a record's text or number under a name, as a text; empty without one.

    Raises:
        InputError: If the value is of another type.
    """
    value = record.get(name)
    if value is None or value != value:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InputError(f"{name} must be a text or a number; got {brief(value)}. Write it as a text.")
    if isinstance(value, float) and value.is_integer():  # a column of integers with gaps becomes floats
        value = int(value)
    return str(value).strip()


def as_said(answer: str) -> str:
    """Normalise an answer: ignore case, surrounding space, a final full stop, and ".0" after a whole number."""
    return re.sub(r"^([+-]?\d+)\.0+$", r"\1", answer.strip().removesuffix(".").casefold())
