"""Find a video's length, rate and frame times without decoding it."""

from dataclasses import dataclass, field
from typing import Any

from foveate.errors import InputError

FEW = 2000  # up to so many frames, all packets are read; in longer videos only the last ones
LATE = 1_000_000  # seconds; after the end of any file
SLACK = 1.0, 0.02  # seconds, and share of the length, that may be missing at the end, because headers are inexact
BACK = {"dts": 10, "pts": 20}  # frames by which these times may go back in a healthy video


@dataclass(frozen=True, slots=True)
class Survey:
    """A video's times. All are in seconds from `origin`, except `origin` itself.

    Attributes:
        origin: Timestamp of the file's beginning, in seconds: that of the sound if it begins before the video.
        begin: Start time of the first frame.
        end: End time of the last readable frame.
        promised: The end according to the header, if a considerable part before it is missing; else None.
        rate: Mean frames per second.
        times: Start time of each frame, ascending. None for a long video.
        seekable: Whether each packet has its presentation time, and each time occurs once. H.264 in a program stream
            has few times, and in AVI only decoding times. If times restart, a time occurs twice.
    """

    origin: float
    begin: float
    end: float
    promised: float | None
    rate: float
    times: tuple[float, ...] | None
    seekable: bool = True


class Clock:
    """Makes times continue if they restart within a file, as players do.

    This happens if a recorder appends to a file, or VOB files are joined.

    Args:
        stream: The video stream. Other streams are moved with it.
        rate: Its frames per second.

    Attributes:
        restarts: How often times have restarted.
    """

    def __init__(self, stream: Any, rate: float) -> None:
        self.restarts = 0
        self._rate = rate
        self._stream = stream
        self._later = 0.0  # seconds added to times
        self._latest = {name: float("-inf") for name in BACK}

    def set(self, packet: Any) -> None:
        """Adjust a packet's times, in place. At least one of pts and dts must be set."""
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
    """Times of a file's packets, in seconds of the file's clock.

    Attributes:
        frames: Number of video packets.
        starts: Start times of the video packets that have one.
        stop: End of the last video packet.
        last: End of the last video or audio packet.
        restarts: How often times have restarted.
    """

    frames: int = 0
    starts: list[float] = field(default_factory=list)
    stop: float = 0.0
    last: float = 0.0
    restarts: int = 0


def video_stream(container: Any, name: str) -> Any:
    """Return the file's first video stream. Attached images, such as a song's cover, do not count.

    Raises:
        InputError: If there is none, or PyAV cannot decode it.
    """
    from av.stream import Disposition

    for stream in container.streams.video:
        if Disposition.attached_pic in stream.disposition:
            continue
        if stream.codec_context is None:
            raise InputError(f"{name} has a codec that PyAV cannot decode. Convert it to MP4 with H.264.")
        return stream
    sound = ", only sound" if container.streams.audio else ""
    raise InputError(f"{name} has no video in it{sound}. Name a video file.")


def survey(container: Any, stream: Any) -> Survey | None:
    """Read a file's header and packets. Return None if it has no video packets.

    Of a long file, only the last packets are read, unless its format allows times to restart.
    """
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
    if not starts:  # no times, as in a raw H.264 stream: assume a constant rate
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
    """Read the times of the video and audio packets from here on, up to the first error."""
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
            if of_video:  # not for sound: an hour has a hundred thousand packets
                packets.starts.append(start)
                packets.stop = max(packets.stop, stop)
    except av.error.FFmpegError:
        pass
    packets.restarts = clock.restarts
    return packets
