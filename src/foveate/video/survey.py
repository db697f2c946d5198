"""How long a video is, found without decoding it."""

from dataclasses import dataclass, field
from typing import Any

from foveate.errors import InputError

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
        seekable: Whether packets know when they are shown. In a program stream few of H.264 do; in an AVI all of H.264
            say when they are decoded.
    """

    origin: float
    end: float
    promised: float | None
    rate: float
    times: tuple[float, ...] | None
    seekable: bool = True


@dataclass(slots=True)
class _Packets:
    """What packets say, in seconds of the file.

    Attributes:
        frames: Packets of the video.
        starts: When each of those starts that know their time.
        stop: When the last of the video stops.
        last: When the last of sound and video stops.
    """

    frames: int = 0
    starts: list[float] = field(default_factory=list)
    stop: float = 0.0
    last: float = 0.0


def video_stream(container: Any, name: str) -> Any:
    """The file's first stream of moving pictures.

    Raises:
        InputError: If there is none.
    """
    from av.stream import Disposition

    for stream in container.streams.video:
        if Disposition.attached_pic in stream.disposition:  # the cover of a song
            continue
        if stream.codec_context is None:
            raise InputError(f"{name} is encoded in a way that PyAV cannot decode. Convert it to MP4 with H.264.")
        return stream
    sound = ""
    if container.streams.audio:
        sound = ", only sound"
    raise InputError(f"{name} has no video in it{sound}. Name a video file.")


def survey(container: Any, stream: Any) -> Survey | None:
    """Read the header and, of a long file, the last packets; of any other, all packets. None if none is readable."""
    rate = float(stream.average_rate or stream.guessed_rate or 25)
    promised = None
    if container.duration:
        promised = container.duration / 1e6

    few = promised is None or max(stream.frames, promised * rate) <= FEW
    if not few:
        container.seek(int(LATE / stream.time_base), stream=stream)  # to the last key frame
    packets = _look(container, stream)
    if not few and not packets.frames:
        container.seek(0)
        packets, few = _look(container, stream), True

    if not packets.frames:
        return None
    starts = sorted(packets.starts)
    if not starts:  # as in a bare stream of H.264: frames at an even rate
        even = tuple(number / rate for number in range(packets.frames))
        return Survey(0.0, packets.frames / rate, None, rate, even, seekable=False)
    untimed = 2 * len(starts) < packets.frames
    mixed = container.format.name == "avi" and stream.codec_context.name == "h264" and stream.codec_context.has_b_frames
    times = None
    origin = float((stream.start_time or 0) * stream.time_base)
    if few:
        origin = starts[0]
        if not untimed:
            times = tuple(start - origin for start in starts)
    last = packets.last - float(container.start_time or 0) / 1e6
    if promised is not None and last >= promised - max(SLACK[0], SLACK[1] * promised):
        promised = None  # nothing is missing
    end = max(packets.stop, starts[-1] + 1 / rate) - origin
    return Survey(origin, end, promised, rate, times, seekable=not (untimed or mixed))


def _look(container: Any, stream: Any) -> _Packets:
    """Go through the packets of sound and video from here on, as far as they can be read."""
    import av

    packets = _Packets()
    try:
        for packet in container.demux():
            if not packet.size or packet.is_discard or packet.stream.type not in ("video", "audio"):
                continue
            of_video = packet.stream is stream
            packets.frames += of_video
            ticks = packet.pts
            if ticks is None:
                ticks = packet.dts
            if ticks is None:
                continue
            start = float(ticks * packet.time_base)
            stop = start + float((packet.duration or 0) * packet.time_base)
            packets.last = max(packets.last, stop)
            if of_video:  # of sound, an hour has a hundred thousand packets
                packets.starts.append(start)
                packets.stop = max(packets.stop, stop)
    except av.error.FFmpegError:
        pass
    return packets
