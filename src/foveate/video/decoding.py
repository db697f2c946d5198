"""Decode frames of a video file at even steps of time. Only the parts near them are decoded."""

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
from foveate.plain.upstream import first_line
from foveate.video.clips import Clip, blank_frames
from foveate.video.pixels import pixels
from foveate.video.survey import Clock, Survey, survey, video_stream
from foveate.video.wanted import HAIR, FramesWanted

FORMATS = (
    # Videos.
    "asf", "av1", "avi", "avs2", "avs3", "dirac", "dv", "evc", "flv", "h261", "h263", "h264", "hevc", "ivf", "live_flv",
    "m4v", "matroska", "mjpeg", "mov", "mpeg", "mpegts", "mpegvideo", "mxf", "nut", "obu", "ogg", "rm", "swf", "vc1",
    "vvc", "webm", "wtv", "yuv4mpegpipe",
    # Animations and still images.
    "apng", "gif", "bmp_pipe", "jpeg_pipe", "jpegxl_anim", "png_pipe", "tiff_pipe", "webp_pipe",
    # Audio, so that the error message can say so.
    "aac", "ac3", "aiff", "amr", "caf", "eac3", "flac", "mp3", "wav", "w64",
)  # fmt: skip
"""Formats that FFmpeg may detect. None of them can refer to other files, as playlists and scripts do."""
PIXELS = 2 * 89_478_485
"""Maximum pixels of a frame, equal to Pillow's limit for an image."""
DECODING = {"max_pixels": str(PIXELS)}
STRICT = DECODING | {"err_detect": "+crccheck+explode"}
"""Decoder options that turn damage into an error instead of concealing it.

The decoder then also drops frames after a seek into a healthy video, and with threads it does not recover.
"""
BYTES = 12
"""Peak bytes of memory per pixel while a frame is decoded: several frames are in flight, and one becomes RGB."""
FRAMES = 5
"""Peak bytes of memory per pixel of all kept frames, decoding included, on 60 and 120 frames of 1280 x 720."""
UNSAID = 100
"""Milliseconds of a WebP frame without a duration, as in browsers."""
UNNAMED = Path("the film")
"""Name in messages of a video that is not a file."""

NEAR = 4.0  # seconds up to which decoding on is faster than seeking to a key frame
BEFORE = 10.0  # seconds before the first frame, so that a seek reaches the beginning of the file


def read(
    path: str | Path | bytes,
    frames: int | None = None,
    fps: float | None = None,
    start: float | None = None,
    end: float | None = None,
) -> Clip:
    """Read frames of a video file at even steps of time.

        clip = read("clip.mp4", frames=32)              # the middles of 32 equal parts
        clip = read("clip.mp4", fps=1)                  # one per second, from the first frame on
        clip = read("clip.mp4", fps=2, frames=64)       # two per second, but at most 64, evenly spread

    Each step takes the frame that is visible at that time, also with a variable frame rate. If the video has fewer
    frames than requested, each frame is read once. Frames are rotated as the file says. Only the requested frames are
    kept in memory, and in a long file only the parts near them are decoded.

    Args:
        path: A video file, a `file:` URL, or the file's bytes.
        frames: Maximum frames to read; 32 if neither `frames` nor `fps` is given.
        fps: Frames per second to read.
        start, end: The part of the video to read, in seconds as in a player. None is the beginning or the end.

    Raises:
        InputError: If the file cannot be read, has no video, or no frame of it can be decoded.
        SettingError: If a number is out of range, `fps` alone would give more than 768 frames, or the frames would not
            fit into memory.
        UnsupportedError: If PyAV is not installed.

    Warns:
        UserWarning: If the clip has a `note`, such as that only a part of the file can be read.
    """
    clip = clip_of(path, FramesWanted(frames, fps, start, end))
    if clip.note:
        warnings.warn(clip.note, stacklevel=2)
    return clip


def clip_of(path: str | Path | bytes, request: FramesWanted, each: int = FRAMES, *, blank: bool = False) -> Clip:
    """Read frames as `read` does, without the warning.

    Args:
        path: As for `read`.
        request: The frames to read.
        each: Peak bytes of memory per pixel of all frames.
        blank: Return black frames of the right size and times (one byte of memory) instead of decoding. A video whose
            end is missing, or whose header has no size, is decoded anyway.
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
    """Return frames, height and width of the clip that `read` would give, without decoding.

    Height and width are in pixels, and 0 if the header does not have them. Arguments and errors are those of `read`.
    """
    _, _, times, (width, height) = _with(path, FramesWanted(frames, fps, start, end), _survey)
    return len(times), height, width


def _with(path: str | Path | bytes, request: FramesWanted, work: Callable[[BinaryIO, Path, FramesWanted], Any]) -> Any:
    """Open a file and return the result of `work` on it. Errors become one line with the file's name."""
    try:
        import av
    except ImportError as error:
        raise UnsupportedError("Reading videos needs PyAV: pip install av.") from error
    if isinstance(path, bytes):
        opened: Callable[[], BinaryIO] = partial(BytesIO, path)
        path = UNNAMED
    else:
        path = local_path(path if isinstance(path, Path) else str(path))
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
        except (ArithmeticError, TypeError, ValueError) as error:  # from PyAV, for impossible times or sizes
            raise InputError(f"{name} is damaged: {first_line(error)} Fetch or export it again.") from error


def _readable(file: BinaryIO, name: str) -> BinaryIO:
    """Return a file that FFmpeg can read: an animated WebP is converted to an animated PNG."""
    head = file.read(HEAD)
    file.seek(0)
    if not is_animated(head):
        return file
    # A WebP's canvas size: width − 1 and height − 1 in 3 bytes each, at offsets 24 and 27.
    _check_frame(name, *(int.from_bytes(head[at : at + 3], "little") + 1 for at in (24, 27)))
    png, lengths = BytesIO(), []
    with Image.open(file) as image:
        for frame in ImageSequence.Iterator(image):
            frame.load()
            lengths.append(frame.info["duration"] or UNSAID)
        profile = image.info.get("icc_profile")
        image.save(png, "PNG", save_all=True, duration=lengths, compress_level=1, icc_profile=profile)
    png.seek(0)
    return png


def _read(file: BinaryIO, path: Path, request: FramesWanted, each: int, blank: bool) -> Clip:
    """Read the requested frames of an open file, with each `_Way` in turn until one meets no damage."""
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
    raise AssertionError("the last way raises no _Concealed")


def _times(contents: Survey, times: Sequence[float], begin: float) -> list[float]:
    """Return the `Clip.seconds` of the frames visible at these times.

    A frame that is visible for the first time has its start time (`begin` at the earliest); a repeated one the time of
    its step. Frames start at 0, 1, 2; times 0.5, 1.2, 1.7 -> 0, 1, 1.7.
    """
    starts = np.array(contents.times or np.arange(contents.begin, contents.end, 1 / contents.rate))
    places = np.maximum(np.searchsorted(starts, np.array(times) + HAIR, side="right") - 1, 0)
    still = np.diff(places, prepend=-1) == 0
    seconds: list[float] = np.where(still, times, np.maximum(starts[places], begin)).tolist()
    return seconds


def _survey(
    file: BinaryIO, path: Path, request: FramesWanted
) -> tuple[Survey, tuple[float, float], list[float], tuple[int, int]]:
    """Return an open file's survey, the requested part and times in seconds, and a frame's width and height."""
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
    """Ways to decode a video, tried in order until one meets no damage. The third conceals damage.

    On 74 healthy videos (18 codecs in the containers that PyAV writes, six readings each), the first way reported
    damage in 42 of 444 readings (open groups of pictures, gradual refreshes), and the second in none.
    """

    THREADS = "an error counts as damage"
    ALONE = "an error counts as damage, but not between a seek and the first frame after it"
    CONCEALING = "the video is damaged, and the decoder's concealed frames are used, with a note"


class _Concealed(Exception):
    """Raised if a frame is missing or would be concealed, to try the next `_Way`."""


def _container(source: "_File", name: str) -> Any:
    """Open a file's container with PyAV, without opening any other file that it refers to.

    Raises:
        InputError: If it is a playlist or script.
    """
    import av

    alone = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "none"}
    try:
        # Do not pass DECODING as PyAV's `options`: if streams appear late, PyAV frees more options than it allocated.
        return av.open(source, mode="r", container_options=alone, metadata_errors="replace", buffer_size=2**16)
    except av.error.FFmpegError as error:
        if error.errno != errno.EINVAL:
            raise
        raise InputError(
            f"{name} is a playlist or script that names other files, or has a rare format. "
            "Name the video itself, or convert it to MP4."
        ) from error


def _size(stream: Any) -> tuple[int, int]:
    """Return width and height in square pixels, upright, from the header; 0 if it does not have them."""
    codec, aspect = stream.codec_context, float(stream.sample_aspect_ratio or 1)
    width, height = round((codec.width or 0) * aspect), codec.height or 0
    if _is_turned(stream):
        return height, width
    return width, height


def _is_turned(stream: Any) -> bool:
    """Return whether the header rotates frames by a quarter turn.

    PyAV does not expose this, but copies it to the header of a new MOV, where the track's matrix starts at byte 40.
    """
    import av

    mov = BytesIO()
    try:
        with av.open(mov, "w", format="mov", options={"movflags": "empty_moov"}) as header:
            header.add_stream_from_template(stream)
            header.start_encoding()
    except (ValueError, av.error.FFmpegError):  # a codec that MOV does not support, such as VP8
        return False
    track = mov.getvalue().partition(b"tkhd")[2]
    a, b = map(abs, struct.unpack_from(">2i", track, 40))
    return bool(b > a)


def _check_frame(name: str, width: int, height: int) -> None:
    """Refuse frames with more than `PIXELS` pixels, or that need more memory than there is.

    Raises:
        InputError: In either case.
    """
    if width * height > PIXELS:
        raise InputError(
            f"{name} has frames of {width} x {height} pixels; more than {PIXELS:,} are not read. Scale it down first."
        )
    check_room(f"Frames of {width} x {height} pixels, as in {name}, take", width * height * BYTES, "Scale it down.")


def _check_frames(count: int, width: int, height: int, each: int) -> None:
    """Refuse frames that need more memory than there is.

    Args:
        count: Number of frames.
        width, height: Size of a frame in pixels.
        each: Peak bytes of memory per pixel.

    Raises:
        SettingError: If they do.
    """
    check_room(
        f"{count} frames of {width} x {height} pixels take",
        count * width * height * each,
        "Read fewer with frames=…, or a part with start=… and end=….",
        SettingError,
    )


class _File:
    """A file object for FFmpeg. The name helps FFmpeg to detect the format.

    A damaged file can make FFmpeg seek before its beginning. PyAV would print an exception, so `seek` returns an error
    number.
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
    """Decodes a stream from one requested time to the next, directly or from the key frame before it."""

    def __init__(self, container: Any, stream: Any, contents: Survey, way: _Way, each: int) -> None:
        self._container = container
        self._each = each
        self._stream = stream
        self._contents = contents
        self._frames = self._decode()
        self._now: tuple[Any, float] | None = None  # the visible frame, and its start time
        self._next: tuple[Any, float] | None = None
        self._due: list[float] = []  # start times of the frames whose packets the decoder has received
        self._way = way
        self._broken = False  # whether anything could not be decoded so far
        self._near = NEAR
        if way is _Way.CONCEALING:
            self._near = 60.0  # key frames of a damaged video may be concealed from the frames before them
        if not contents.seekable:
            self._near = float("inf")
        stream.thread_type = "AUTO" if way is _Way.THREADS else "NONE"
        stream.codec_context.options = DECODING if way is _Way.CONCEALING else STRICT

    def clip(self, path: Path, times: Sequence[float], part: tuple[float, float]) -> Clip:
        """Return the frames that are visible at these ascending times."""
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
                continue  # the decoder did not return the frame that should be visible
            if checked != (frame.width, frame.height):  # the size may change within a video
                checked = frame.width, frame.height
                _check_frame(name, round(frame.width * aspect), frame.height)
            if room is None:
                first = pixels(frame, aspect, None, self._stream.codec_context.name)
                _check_frames(len(times), first.shape[1], first.shape[0], self._each)
                room = np.empty((len(times), *first.shape), np.uint8)
            count = len(seconds)
            if since == shown_since:  # the same frame is still visible
                room[count] = room[count - 1]
                seconds.append(time)
            else:
                room[count] = pixels(frame, aspect, room.shape[1:3], self._stream.codec_context.name)
                seconds.append(max(since, part[0]))
            shown_since = since
        if room is None:
            raise InputError(f"{name} is damaged: no frame of it can be decoded. Fetch or export it again.")
        note = self._note(name, len(seconds), len(times))
        return Clip(path, room[: len(seconds)], tuple(seconds), *part, self._contents.rate, note)

    def _note(self, name: str, read: int, wanted: int) -> str | None:
        """Return a note on damage or a missing end, or None."""
        end, promised = self._contents.end, self._contents.promised
        harmed = self._way is _Way.CONCEALING or read < wanted
        if promised is None and not harmed:
            return None
        what = "is damaged"
        if promised is not None:
            what = f"breaks off after {end:.1f} of {promised:.1f} s"
        smeared = ", some of them may be smeared" if harmed else ""
        return (
            f"{name} {what}: {read} of {wanted} frames could be read{smeared}. Fetch or export it again for the rest."
        )

    def _go_to(self, time: float) -> None:
        """Advance until the visible frame is that of `time`, or the last one if `time` is after the end."""
        if self._now is None:
            self._begin()  # even before a seek: the first packet tells the decoder which encoder wrote the video
        since = self._now[1] if self._now is not None else 0.0
        if time - since > self._near:
            self._seek(time)
            if self._now is not None and self._now[1] <= since:  # no key frame in between: the seek was useless
                self._near *= 2
        while self._next is not None and self._next[1] <= time + HAIR:
            self._now = self._next
            self._next = next(self._frames, None)
        if self._now is not None:
            self._due = [due for due in self._due if due > self._now[1] + HAIR]

    def _seek(self, time: float) -> None:
        """Continue from the key frame before `time`."""
        for earlier in (0.0, 2.0, 20.0, time + BEFORE):  # without an index, a seek is inexact
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
        """Yield the frames from here on, each with its start time in seconds from the beginning of the file.

        Args:
            entered: Whether this is the middle of the video. Packets that come or show before the first key frame are
                skipped, because decoders would invent the frames that they refer to.
        """
        import av

        step = 1 / self._contents.rate
        last, clock = self._contents.begin - step, Clock(self._stream, self._contents.rate)
        key: float | None = None if entered else float("-inf")
        try:
            for packet in self._container.demux(self._stream):
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
                    if time <= last:  # H.264 in AVI has times out of order
                        time = expected
                    last = time
                    yield frame, last
        except av.error.FFmpegError:
            self._damage()

    def _damage(self) -> None:
        """Record that something could not be decoded.

        Raises:
            _Concealed: If there is another way to try.
        """
        if self._way is not _Way.CONCEALING:
            raise _Concealed
        self._broken = True
