"""How long a video is, found without decoding it."""

from dataclasses import dataclass, field
from typing import Any

from foveate.errors import InputError

FEW = 2000  # frames whose times are read off all packets; for more, the last ones must do
LATE = 1_000_000  # seconds, behind the end of any file
SLACK = 1.0, 0.02  # seconds, and share of the length, that may be missing at the end: headers are not exact
BACK = {"dts": 10, "pts": 20}  # frames by which these may go back in a healthy film


@dataclass(frozen=True, slots=True)
class Survey:
    """What a file holds.

    Attributes:
        origin: The file's own time of its beginning, in seconds: that of the sound, where it begins before the film.
        begin: When the first frame comes on show, in seconds from there.
        end: When the last readable frame leaves, likewise.
        promised: Where the header says that the file ends, if a good part up to there is missing; None mostly.
        rate: Frames a second, on average.
        times: When each frame comes on show, likewise, ascending; None where there are many.
        seekable: Whether packets know when they are shown. In a program stream few of H.264 do; in an AVI all of H.264
            say when they are decoded; and where times begin again, a time names two places.
    """

    origin: float
    begin: float
    end: float
    promised: float | None
    rate: float
    times: tuple[float, ...] | None
    seekable: bool = True


class Clock:
    """Goes on where the times of a file begin again, as players do: recorders append, and VOB files are joined.

    Args:
        stream: The film; sound goes with it.
        rate: Its frames a second.

    Attributes:
        restarts: How often they began again.
    """

    def __init__(self, stream: Any, rate: float) -> None:
        self.restarts = 0
        self._rate = rate
        self._stream = stream
        self._later = 0.0  # seconds by which times are moved
        self._latest = {name: float("-inf") for name in BACK}

    def set(self, packet: Any) -> None:
        """Move a packet's times, of which there is one at least."""
        if packet.stream is self._stream:
            length = float((packet.duration or 0) * packet.time_base)
            ticks = {name: getattr(packet, name) for name in BACK if getattr(packet, name) is not None}
            starts = {name: float(value * packet.time_base) + self._later for name, value in ticks.items()}
            name = next(iter(starts))
            back = self._latest[name] - starts[name]
            if back > BACK[name] / self._rate:
                self.restarts += 1
                self._later += back + length
                starts = {name: start + back + length for name, start in starts.items()}
                self._latest = dict.fromkeys(BACK, float("-inf"))
            self._latest |= {name: max(self._latest[name], start) for name, start in starts.items()}
        later = round(self._later / packet.time_base)
        for name in BACK:
            if later and getattr(packet, name) is not None:
                setattr(packet, name, getattr(packet, name) + later)


@dataclass(slots=True)
class _Packets:
    """What packets say, in seconds of the file.

    Attributes:
        frames: Packets of the video.
        starts: When each of those starts that know their time.
        stop: When the last of the video stops.
        last: When the last of sound and video stops.
        restarts: How often times began again.
    """

    frames: int = 0
    starts: list[float] = field(default_factory=list)
    stop: float = 0.0
    last: float = 0.0
    restarts: int = 0


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
    sound = ", only sound" if container.streams.audio else ""
    raise InputError(f"{name} has no video in it{sound}. Name a video file.")


def survey(container: Any, stream: Any) -> Survey | None:
    """Read the header and packets: of a long file whose times do not begin again the last; None where there is none."""
    from av.format import Flags

    rate = float(stream.average_rate or stream.guessed_rate or 25)
    promised = container.duration / 1e6 if container.duration else None

    begins_again = container.format.flags & Flags.ts_discont.value or container.format.name == "flv"
    few = promised is None or begins_again or max(stream.frames, promised * rate) <= FEW
    if not few:
        container.seek(int(LATE / stream.time_base), stream=stream)  # to the last key frame
    packets = _look(container, stream, rate)
    if not few and not packets.frames:
        container.seek(0)
        packets, few = _look(container, stream, rate), True

    if not packets.frames:
        return None
    starts = sorted(packets.starts)
    if not starts:  # as in a bare stream of H.264: frames at an even rate
        even = tuple(number / rate for number in range(packets.frames))
        return Survey(0.0, 0.0, packets.frames / rate, None, rate, even, seekable=False)
    untimed = 2 * len(starts) < packets.frames
    mixed = container.format.name == "avi" and stream.codec_context.name == "h264" and stream.codec_context.has_b_frames
    times = None
    begin = starts[0] if few else float((stream.start_time or 0) * stream.time_base)
    origin = min(begin, container.start_time / 1e6) if container.start_time is not None else begin
    if few and not untimed:
        times = tuple(start - origin for start in starts)
    last = packets.last - float(container.start_time or 0) / 1e6
    if promised is not None and last >= promised - max(SLACK[0], SLACK[1] * promised):
        promised = None  # nothing is missing
    end = max(packets.stop, starts[-1] + 1 / rate) - origin
    seekable = not (untimed or mixed or packets.restarts)
    return Survey(origin, begin - origin, end, promised, rate, times, seekable)


def _look(container: Any, stream: Any, rate: float) -> _Packets:
    """Go through the packets of sound and video from here on, as far as they can be read."""
    import av

    packets, clock = _Packets(), Clock(stream, rate)
    try:
        for packet in container.demux():
            if not packet.size or packet.is_discard or packet.stream.type not in ("video", "audio"):
                continue
            of_video = packet.stream is stream
            packets.frames += of_video
            if packet.pts is None and packet.dts is None:
                continue
            clock.set(packet)
            ticks = packet.dts if packet.pts is None else packet.pts
            start = float(ticks * packet.time_base)
            stop = start + float((packet.duration or 0) * packet.time_base)
            packets.last = max(packets.last, stop)
            if of_video:  # of sound, an hour has a hundred thousand packets
                packets.starts.append(start)
                packets.stop = max(packets.stop, stop)
    except av.error.FFmpegError:
        pass
    packets.restarts = clock.restarts
    return packets
