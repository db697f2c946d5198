"""How long a video is, found without decoding it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from foveate.errors import InputError

__all__ = ["Survey", "survey", "video_stream"]

FEW = 2000  # frames whose times are read off all packets; for more, the last ones must do
LATE = 1_000_000  # seconds, behind the end of any file
SLACK = 1.0, 0.02  # seconds, and share of the length, that may be missing at the end: headers are not exact


@dataclass(frozen=True, slots=True)
class Survey:
    """What a file holds.

    Attributes:
        origin: The file's own time of the first frame, in seconds.
        end: When the last readable frame leaves, in seconds from the first one.
        promised: Where the header says that the file ends, if a good part up to there is missing; None mostly.
        rate: Frames a second, on average.
        times: When each frame comes on show, in seconds from the first one, ascending; None where there are many.
        seekable: Whether packets know their times.
    """

    origin: float
    end: float
    promised: float | None
    rate: float
    times: tuple[float, ...] | None
    seekable: bool = True


class _Packet(NamedTuple):
    """When a packet starts and stops, in seconds of the file; None where nobody knows. Whether it is of the video."""

    start: float | None
    stop: float | None
    video: bool


def video_stream(container: Any, path: Any) -> Any:
    """The file's first stream of moving pictures.

    Raises:
        InputError: If there is none.
    """
    for stream in container.streams.video:
        if "attached_pic" not in str(stream.disposition):  # the cover of a song
            return stream
    sound = ", only sound" if container.streams.audio else ""
    raise InputError(f"{path} has no video in it{sound}. Name a video file.")


def survey(container: Any, stream: Any) -> Survey | None:
    """Read the header and, of a long file, the last packets; of any other, all packets. None if none is readable."""
    rate = float(stream.average_rate or stream.guessed_rate or 25)
    promised = container.duration / 1e6 if container.duration else None
    found: list[_Packet] = []
    if whole := promised is None or max(stream.frames, promised * rate) <= FEW:
        found = list(_packets(container, stream))
    else:
        container.seek(int(LATE / stream.time_base), stream=stream)  # to the last key frame
        found = list(_packets(container, stream))
        if not any(packet.video for packet in found):
            container.seek(0)
            found, whole = list(_packets(container, stream)), True
    mine = [packet for packet in found if packet.video]
    starts = sorted(packet.start for packet in mine if packet.start is not None)
    if not starts:  # as in a bare stream of H.264: frames at an even rate
        even = tuple(at / rate for at in range(len(mine)))
        return Survey(0.0, len(mine) / rate, None, rate, even, seekable=False) if mine else None
    origin = starts[0] if whole else float((stream.start_time or 0) * stream.time_base)
    end = max(packet.stop or 0.0 for packet in mine) - origin
    last = max(packet.stop or 0.0 for packet in found) - float(container.start_time or 0) / 1e6
    short = promised is not None and last < promised - max(SLACK[0], SLACK[1] * promised)
    times = tuple(start - origin for start in starts) if whole else None
    return Survey(origin, max(end, starts[-1] - origin + 1 / rate), promised if short else None, rate, times)


def _packets(container: Any, stream: Any) -> Iterator[_Packet]:
    """Packets of sound and video from here on, as far as they can be read."""
    import av

    try:
        for packet in container.demux():
            if not packet.size or packet.is_discard or packet.stream.type not in ("video", "audio"):
                continue
            video, at = packet.stream is stream, packet.dts if packet.pts is None else packet.pts
            if at is None:
                yield _Packet(None, None, video)
            else:
                start = float(at * packet.time_base)
                yield _Packet(start, start + float((packet.duration or 0) * packet.time_base), video)
    except av.error.FFmpegError:
        return
