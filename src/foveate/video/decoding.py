"""Frames of a video file at even steps of time, decoded where they are and nowhere else."""

import errno
import os
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from enum import Enum
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageSequence

from foveate.errors import FoveateError, InputError, SettingError, UnsupportedError
from foveate.plain.files import HEAD, is_animated, local_path, open_readable, spell
from foveate.plain.memory import check_room
from foveate.plain.upstream import first_line, install_line
from foveate.video.clip import Clip, blank_frames
from foveate.video.pixels import pixels
from foveate.video.survey import Clock, Survey, survey, video_stream
from foveate.video.wanted import HAIR, FramesWanted

FORMATS = (
    # Videos.
    "asf", "av1", "avi", "avs2", "avs3", "dirac", "dv", "evc", "flv", "h261", "h263", "h264", "hevc", "ivf", "live_flv",
    "m4v", "matroska", "mjpeg", "mov", "mpeg", "mpegts", "mpegvideo", "mxf", "nut", "obu", "ogg", "rm", "swf", "vc1",
    "vvc", "webm", "wtv", "yuv4mpegpipe",
    # Moving and still pictures.
    "apng", "gif", "bmp_pipe", "jpeg_pipe", "jpegxl_anim", "png_pipe", "tiff_pipe", "webp_pipe",
    # Sound, so that a file of it is refused for what it is.
    "aac", "ac3", "aiff", "amr", "caf", "eac3", "flac", "mp3", "wav", "w64",
)  # fmt: skip
"""What FFmpeg may take a file for: nothing that names other files, as playlists and scripts do."""
PIXELS = 2 * 89_478_485
"""Most pixels of a frame: those that Pillow reads of a picture."""
DECODING = {"max_pixels": str(PIXELS)}
STRICT = DECODING | {"err_detect": "+crccheck+explode"}
"""What a decoder would conceal is an error to it. It then skips frames also where a healthy film is entered in its
middle, and with threads it does not come back to its senses."""
HDR = {16: ("PQ", 148), 18: ("HLG", 191)}
"""Transfer characteristics by FFmpeg's number (SMPTE ST 2084, ARIB STD-B67), and where they have the white of ITU-R
BT.2408, 203 cd/m²: at 58 and 75 % of the signal."""
WIDE = {9: "BT.2020", 11: "DCI-P3", 12: "Display P3"}
"""Primaries by FFmpeg's number that are wider than those of a screen."""
PROFILES, HEADER = (b"iCCP", b"ICC_PROFILE"), 2**16
"""What PNG and JPEG call a colour profile, and in how many bytes of their beginning it stands."""
NIGHT = 64
"""What no colour of 8 bits reaches whose values have 14 bits in a film of 16."""
BYTES = 12
"""Bytes of memory a pixel while a frame is decoded: several are on their way at once, and one becomes RGB."""
FRAMES = 5
"""Bytes of memory a pixel of all frames that are kept, what decoding takes beside them among these: measured on 60 and
120 frames of 1280 x 720."""
UNSAID = 100
"""Milliseconds of a WebP's frame that says none, as browsers have it."""
UNNAMED = Path("the film")
"""What is said of one that is no file."""

NEAR = 4.0  # seconds up to which decoding on is cheaper than looking for a key frame
BEFORE = 10.0  # seconds before the first frame, where a search for the beginning of the file surely ends


def read(
    path: str | Path | bytes,
    frames: int | None = None,
    fps: float | None = None,
    start: float | None = None,
    end: float | None = None,
) -> Clip:
    """Read some frames of a video file, at even steps of time.

        clip = read("clip.mp4", frames=32)              # the middles of 32 equal parts
        clip = read("clip.mp4", fps=1)                  # one a second, from the first frame on
        clip = read("clip.mp4", fps=2, frames=64)       # two a second; in a long video only 64, evenly spread

    Each step takes the frame that is visible at that time, also if the file's frame rate varies. A video with fewer
    frames than you ask for, also by `fps`, gives each of its frames once. Frames are rotated as the file says. Only the
    wanted frames are kept in memory, and in a long file only the parts near them are decoded.

    Args:
        path: A video file, a `file:` URL, or the file's bytes.
        frames: Most frames to read; 32 if neither `frames` nor `fps` is given.
        fps: Frames per second to read.
        start, end: The part of the video to read, in seconds as players count them; None: from the beginning, to the
            end.

    Raises:
        InputError: If the file cannot be read, or holds no video, or no frame of it can be decoded.
        SettingError: If a number leaves its range, a rate alone would give more than 768 frames, or the frames would
            not fit into memory.
        UnsupportedError: If PyAV is missing.

    Warns:
        UserWarning: If only a part of the file can be read; the sentence is also the clip's `note`.
    """
    clip = clip_of(path, FramesWanted(frames, fps, start, end))
    if clip.note:
        warnings.warn(clip.note, stacklevel=2)
    return clip


def clip_of(path: str | Path | bytes, request: FramesWanted, each: int = FRAMES, *, blank: bool = False) -> Clip:
    """What `read` gives, without the warning.

    Args:
        path: As for `read`.
        request: Which frames.
        each: How many bytes a pixel of all frames takes.
        blank: Whether none is decoded: black ones of their size and times take their place, in one byte of memory. A
            film is read all the same whose end is missing, or whose header does not say its size.
    """
    clip: Clip = _with(path, request, partial(_read, each=each, blank=blank))
    return clip


def shape_of(
    path: str | Path | bytes,
    frames: int | None = None,
    fps: float | None = None,
    start: float | None = None,
    end: float | None = None,
) -> tuple[int, int, int]:
    """Frames, height and width in pixels of the clip that `read` would give, by the file's header: none is decoded.

    Height and width are 0 where the header does not say. Arguments and errors are those of `read`.
    """
    _, _, times, (width, height) = _with(path, FramesWanted(frames, fps, start, end), _survey)
    return len(times), height, width


def _with(path: str | Path | bytes, request: FramesWanted, work: Callable[[BinaryIO, Path, FramesWanted], Any]) -> Any:
    """What comes out of some work on an open file, whose errors become one line with the file's name."""
    try:
        import av
    except ImportError as error:
        raise UnsupportedError(f"Reading videos needs PyAV: {install_line('vision')}.") from error
    if isinstance(path, bytes):
        opened: Callable[[], BinaryIO] = partial(BytesIO, path)
        path = UNNAMED
    else:
        path = local_path(str(path))
        opened = partial(open_readable, path)
    name = spell(path)
    with opened() as file:
        try:
            return work(_readable(file, name), path, request)
        except FoveateError:
            raise
        except MemoryError as error:
            raise InputError(f"{name} takes more memory than there is. Scale it down first.") from error
        except av.error.InvalidDataError as error:
            raise InputError(
                f"{name} is not a readable video, or its end is missing. Fetch or export it again."
            ) from error
        except (OSError, av.error.FFmpegError) as error:
            why = getattr(error, "strerror", None) or error
            raise InputError(f"{name} cannot be read: {why}. Fetch or export it again.") from error
        except (ArithmeticError, TypeError, ValueError) as error:  # PyAV's own, of times and sizes that no video has
            raise InputError(f"{name} is damaged: {first_line(error)} Fetch or export it again.") from error


def _readable(file: BinaryIO, name: str) -> BinaryIO:
    """The file; an animated WebP, which FFmpeg does not read, as an animated PNG."""
    head = file.read(HEAD)
    file.seek(0)
    if not is_animated(head):
        return file
    _check_frame(name, *(int.from_bytes(head[at : at + 3], "little") + 1 for at in (24, 27)))
    made, lengths = BytesIO(), []
    with Image.open(file) as image:
        for frame in ImageSequence.Iterator(image):
            frame.load()
            lengths.append(frame.info["duration"] or UNSAID)
        profile = image.info.get("icc_profile")
        image.save(made, "PNG", save_all=True, duration=lengths, compress_level=1, icc_profile=profile)
    made.seek(0)
    return made


def _read(file: BinaryIO, path: Path, request: FramesWanted, each: int, blank: bool) -> Clip:
    """The frames that are wanted of an open file."""
    contents, part, times, size = _survey(file, path, request)
    if blank and contents.promised is None and all(size):
        frames, seconds = blank_frames(len(times), *size[::-1]), tuple(_times(contents, times, part[0]))
        return Clip(path, frames, seconds, *part, contents.rate, chosen=request.asked)
    _check_frames(len(times), *size, each)
    name = spell(path)
    for way in _Way:
        source = _File(file, path)
        source.seek(0)
        with _container(source, name) as container, suppress(_Concealed):
            stream = video_stream(container, name)
            clip = _Decoder(container, stream, contents, way, each).clip(path, times, part)
            return replace(clip, chosen=request.asked)
    raise AssertionError("the last way conceals")


def _times(contents: Survey, times: Sequence[float], begin: float) -> list[float]:
    """The seconds of a clip of the frames on show at these times, of a part that begins then."""
    starts = np.array(contents.times or np.arange(contents.begin, contents.end, 1 / contents.rate))
    places = np.maximum(np.searchsorted(starts, np.array(times) + HAIR, side="right") - 1, 0)
    still = np.diff(places, prepend=-1) == 0
    seconds: list[float] = np.where(still, times, np.maximum(starts[places], begin)).tolist()
    return seconds


def _survey(
    file: BinaryIO, path: Path, request: FramesWanted
) -> tuple[Survey, tuple[float, float], list[float], tuple[int, int]]:
    """What an open file holds, which part of it is wanted and at which times, and the width and height of a frame."""
    name = spell(path)
    with _container(_File(file, path), name) as container:
        stream = video_stream(container, name)
        size = _size(stream)
        _check_frame(name, *size)
        contents = survey(container, stream)
    if contents is None:
        raise InputError(f"{name} cannot be read as a video: it holds no data. Fetch or export it again.")
    part = request.part(contents, name)
    return contents, part, request.times(contents, part, name), size


class _Way(Enum):
    """How a film is decoded: the second way where the first one met damage, the third where that is real.

    On 74 healthy films, in 18 codecs and the containers that PyAV writes them to, with six readings of each, the first
    way met damage in 42 of 444 readings (open groups of pictures, gradual refreshes), and the second in none.
    """

    THREADS = "an error is damage"
    ALONE = "an error is damage, but not between a seek and the first frame behind it"
    CONCEALING = "the film is damaged, and what the decoder makes of it is shown, with a note"


class _Concealed(Exception):
    """A frame would be concealed, or is not to be had."""


def _container(source: "_File", name: str) -> Any:
    """PyAV's view of an open file. No other file is opened, whatever the file says.

    Raises:
        InputError: If it is a playlist or the like.
    """
    import av

    alone = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "none"}
    try:
        # PyAV's `options` are no place for DECODING: it frees more of them than it made where streams appear late.
        return av.open(source, mode="r", container_options=alone, metadata_errors="replace", buffer_size=2**16)
    except av.error.FFmpegError as error:
        if error.errno != errno.EINVAL:
            raise
        raise InputError(
            f"{name} is a playlist or script that names other files, or of a rare kind. "
            "Name the video itself, or convert it to MP4."
        ) from error


def _size(stream: Any) -> tuple[int, int]:
    """Width and height in square pixels, upright, as the header says; 0 where it does not."""
    codec, aspect = stream.codec_context, float(stream.sample_aspect_ratio or 1)
    width, height = round((codec.width or 0) * aspect), codec.height or 0
    if _is_turned(stream):
        return height, width
    return width, height


def _is_turned(stream: Any) -> bool:
    """Whether the header says that frames are turned by a quarter: PyAV does not, but copies it to an MOV's header."""
    import av

    made = BytesIO()
    try:
        with av.open(made, "w", format="mov", options={"movflags": "empty_moov"}) as header:
            header.add_stream_from_template(stream)
            header.start_encoding()
    except (ValueError, av.error.FFmpegError):  # as of VP8, which no MOV may hold
        return False
    track = made.getvalue().partition(b"tkhd")[2]
    a, b = map(abs, struct.unpack_from(">2i", track, 40))
    return bool(b > a)


def _check_frame(name: str, width: int, height: int) -> None:
    """Refuse frames that are larger than is meant, or than the memory that is there.

    Raises:
        InputError: If they are.
    """
    if width * height > PIXELS:
        raise InputError(
            f"{name} has frames of {width} x {height} pixels; more than {PIXELS:,} are not read. Scale it down first."
        )
    check_room(f"Frames of {width} x {height} pixels, as in {name}, take", width * height * BYTES, "Scale it down.")


def _check_frames(count: int, width: int, height: int, each: int) -> None:
    """Refuse more frames than the memory holds.

    Raises:
        SettingError: If there are more.
    """
    check_room(
        f"{count} frames of {width} x {height} pixels take",
        count * width * height * each,
        "Ask for fewer with frames=…, or for a part with start=… and end=….",
        SettingError,
    )


class _File:
    """An open file as FFmpeg goes about in it. The name helps to tell its format.

    A damaged file leads to places before its beginning. PyAV prints what is raised: so FFmpeg gets a number.
    """

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.name = str(path)
        self._file = file

    def read(self, size: int) -> bytes:
        return self._file.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError, OverflowError):
            return -errno.EIO

    def tell(self) -> int:
        return self._file.tell()


class _Decoder:
    """Goes through a stream from one wanted time to the next, by decoding on or from the key frame before it."""

    def __init__(self, container: Any, stream: Any, contents: Survey, way: _Way, each: int) -> None:
        self._container = container
        self._each = each
        self._stream = stream
        self._contents = contents
        self._frames = self._decode()
        self._now: tuple[Any, float] | None = None  # the frame on show, and since when
        self._next: tuple[Any, float] | None = None
        self._due: list[float] = []  # when frames come on show whose packets have been given to the decoder
        self._way = way
        self._head = b""  # of the film, or its first frame, in the file
        self._broken = False  # whether anything could not be decoded so far
        self._near = NEAR
        if way is _Way.CONCEALING:
            self._near = 60.0  # key frames of a damaged film may be made up from the frames before them
        if not contents.seekable:
            self._near = float("inf")
        stream.thread_type = "AUTO" if way is _Way.THREADS else "NONE"
        stream.codec_context.options = DECODING if way is _Way.CONCEALING else STRICT

    def clip(self, path: Path, times: Sequence[float], part: tuple[float, float]) -> Clip:
        """The frames on show at these times, ascending."""
        aspect = float(self._stream.sample_aspect_ratio or 1)
        room: NDArray[np.uint8] | None = None
        seconds: list[float] = []
        shown_since: float | None = None
        name = spell(path)
        checked = None
        for time in times:
            self._go_to(time)
            if self._now is None:
                continue
            frame, since = self._now
            if self._broken and (since > time + HAIR or any(due <= time + HAIR for due in self._due)):
                continue  # what should be on show was not among what came out of the decoder
            if checked != (frame.width, frame.height):  # they may change on the way
                checked = frame.width, frame.height
                _check_frame(name, round(frame.width * aspect), frame.height)
            if room is None:
                first = pixels(frame, aspect, None, self._stream.codec_context.name)
                _check_frames(len(times), first.shape[1], first.shape[0], self._each)
                room = np.empty((len(times), *first.shape), np.uint8)
            count = len(seconds)
            if since == shown_since:  # still on show
                room[count] = room[count - 1]
                seconds.append(time)
            else:
                room[count] = pixels(frame, aspect, room.shape[1:3], self._stream.codec_context.name)
                seconds.append(max(since, part[0]))
            shown_since = since
        if room is None:
            raise InputError(f"{name} is damaged: no frame of it can be decoded. Fetch or export it again.")
        notes = (
            self._note(name, len(seconds), len(times)),
            *self._colour_notes(frame, room[: len(seconds)], name),
        )
        note = " ".join(filter(None, notes)) or None
        return Clip(path, room[: len(seconds)], tuple(seconds), *part, self._contents.rate, note)

    def _note(self, name: str, read: int, wanted: int) -> str | None:
        """What is wrong with the file; None where nothing is."""
        end, promised = self._contents.end, self._contents.promised
        harmed = self._way is _Way.CONCEALING or read < wanted
        if promised is None and not harmed:
            return None
        what = "is damaged"
        if promised is not None:
            what = f"breaks off after {end:.1f} of {promised:.1f} s"
        smeared = ", some of them perhaps smeared" if harmed else ""
        return (
            f"{name} {what}: {read} of {wanted} frames could be read{smeared}. Fetch or export it again for the rest."
        )

    def _colour_notes(self, frame: Any, shown: NDArray[np.uint8], name: str) -> Iterator[str]:
        """Sentences on what a film's colours ask for and do not get, which those of a picture would; none mostly."""
        codec = self._stream.codec_context
        kind, white = HDR.get(int(codec.color_trc or 0), (None, None))
        gamut = WIDE.get(int(codec.color_primaries or 0))
        if kind is not None:
            yield (
                f"{name} is in HDR ({kind}) and is not tone-mapped: it looks pale, with {white} of 255 where white "
                "should be. Convert it to SDR (BT.709) first."
            )
        elif gamut is not None or any(mark in self._head for mark in PROFILES):
            colours = f"the colours of {gamut}" if gamut else "a colour profile"
            yield f"{name} has {colours} and is not converted: its colours are off. Convert it to BT.709 first."
        if self._stream.metadata.get("alpha_mode") == "1":
            yield f"{name} is transparent in places, and shows what hides there. Convert it to FFV1 first."
        if max(part.bits for part in frame.format.components) == 16 and shown.max() < NIGHT:
            yield f"{name} has 16 bits a colour and uses few of them: it is nearly black. Save it with 8 bits."

    def _go_to(self, time: float) -> None:
        """Make the frame on show at `time` the one that is now; the last one for a time behind the end."""
        if self._now is None:
            self._begin()  # also before a seek: decoders learn from the first packet, such as which encoder wrote it
        since = self._now[1] if self._now is not None else 0.0
        if time - since > self._near:
            self._seek(time)
            if self._now is not None and self._now[1] <= since:  # no key frame on the way: it was for nothing
                self._near *= 2
        while self._next is not None and self._next[1] <= time + HAIR:
            self._now = self._next
            self._next = next(self._frames, None)
        if self._now is not None:
            self._due = [due for due in self._due if due > self._now[1] + HAIR]

    def _seek(self, time: float) -> None:
        """Start again at the key frame before `time`."""
        for earlier in (0.0, 2.0, 20.0, time + BEFORE):  # without an index, files are entered somewhere
            goal = time - earlier
            self._container.seek(int((goal + self._contents.origin) / self._stream.time_base), stream=self._stream)
            self._frames = self._decode(entered=goal > 0)
            self._begin()
            if self._now is not None and self._now[1] <= time:
                return
        self._damage()

    def _begin(self) -> None:
        self._due = []
        self._now = next(self._frames, None)
        self._next = next(self._frames, None)

    def _decode(self, entered: bool = False) -> Iterator[tuple[Any, float]]:
        """Frames from here on, each with when it comes on show, in seconds from the beginning of the file.

        Args:
            entered: Whether this is the middle of the film. What comes or shows before the first key frame then needs
                frames that are not there, and decoders make some up.
        """
        import av

        step = 1 / self._contents.rate
        last, clock = self._contents.begin - step, Clock(self._stream, self._contents.rate)
        key: float | None = None if entered else float("-inf")
        try:
            for packet in self._container.demux(self._stream):
                self._head = self._head or ((self._stream.codec_context.extradata or b"") + bytes(packet))[:HEADER]
                if packet.pts is not None or packet.dts is not None:
                    clock.set(packet)
                shown = packet.dts if packet.pts is None else packet.pts
                if key is None and packet.is_keyframe and shown is not None:
                    key = shown
                if packet.size and (key is None or (shown is not None and shown < key)):
                    continue
                if packet.is_corrupt:
                    self._damage()
                if packet.size and packet.pts is not None and not packet.is_discard:
                    self._due.append(float(packet.pts * packet.time_base) - self._contents.origin)
                try:
                    frames = packet.decode()
                except av.error.FFmpegError:
                    if not (entered and self._way is _Way.ALONE):
                        self._damage()
                    continue
                for frame in frames:
                    entered = False
                    if frame.is_corrupt:
                        self._damage()
                    expected = last + step
                    time = expected
                    if frame.time is not None:
                        time = frame.time - self._contents.origin
                    if time <= last:  # H.264 in AVI comes with its times mixed up
                        time = expected
                    last = time
                    yield frame, last
        except av.error.FFmpegError:
            self._damage()

    def _damage(self) -> None:
        """Note that something could not be decoded.

        Raises:
            _Concealed: If another way follows.
        """
        if self._way is not _Way.CONCEALING:
            raise _Concealed
        self._broken = True
