"""Open videos: random access to frames in the order in which they are shown, through PyAV or torchcodec."""

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch

from .decoding import decode_image

# What one clip may take as decoded frames; 64 frames of 4K are 1.6 GB. A worker that asks for more is killed silently.
MAX_CLIP_BYTES = 4 * 2**30


class VideoDecodeError(ValueError):
    """A file is no video that can be decoded, or lacks the frames it was asked for."""


@dataclass(frozen=True)
class VideoInfo:
    """
    What [`probe_video`] finds out.

    Args:
        num_frames (`int`): frames that are there, counted, not what the header claims.
        fps (`float`): average frames per second, as stated by the file unless that is off by over 5 %; 0 for an image.
        duration (`float`): seconds from the first frame to the end of the last; 0 for an image.
        height (`int`): of a frame as shown, in pixels.
        width (`int`): of a frame as shown, in pixels.
        rotation (`int`): degrees counter-clockwise, 0, 90, 180 or 270, by which frames are turned to be shown.
    """

    num_frames: int
    fps: float
    duration: float
    height: int
    width: int
    rotation: int


@contextmanager
def decode_errors() -> Iterator[None]:
    try:
        yield
    except (VideoDecodeError, ImportError):
        raise
    except Exception as error:  # av.FFmpegError and its many kin, torchcodec's RuntimeError, IndexError, ValueError
        first_line = (str(error).splitlines() or [""])[0]
        raise VideoDecodeError(f"the video cannot be decoded ({type(error).__name__}: {first_line})") from error


class VideoReader:
    """
    An open video; use it in a `with` statement. Frames are counted in the order in which they are shown.

    `num_frames` (`int`), `fps` (`float`, average), `begin` and `duration` (`float`, seconds) are read from the packets
    without decoding any. `is_image` tells a still image from a video of one frame.
    """

    is_image = False
    num_frames: int
    fps: float
    begin: float
    duration: float

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the file."""

    def frames(self, indices: Sequence[int] | np.ndarray) -> torch.Tensor:
        """
        Decodes frames by number, turned as the file says they are shown.

        Args:
            indices (`Sequence[int]`): `F` numbers in `[0, num_frames)`, in any order, repeats allowed.

        Returns:
            `torch.Tensor` of shape `(F, 3, height, width)`, uint8.

        Raises:
            VideoDecodeError: if there are no such frames or they cannot be decoded.
        """
        indices = np.asarray(indices, dtype=np.int64).reshape(-1)
        if not len(indices) or indices.min() < 0 or indices.max() >= self.num_frames:
            raise VideoDecodeError(
                f"frames {indices.tolist()} were asked for; the video has the frames 0 to {self.num_frames - 1}"
            )
        with decode_errors():
            return self._frames(indices)

    def frames_at(self, fraction: Sequence[float] | np.ndarray) -> torch.Tensor:
        """
        Decodes the frames shown at certain times. In a video of constant frame rate, `(k + 0.5) / num_frames` is frame
        `k`; in one of variable frame rate this is what keeps equal times apart equal.

        Args:
            fraction (`Sequence[float]`): `F` times in `[0, 1)`, as shares of the video's duration.

        Returns:
            `torch.Tensor` of shape `(F, 3, height, width)`, uint8.

        Raises:
            VideoDecodeError: if the frames cannot be decoded.
        """
        with decode_errors():
            return self._frames_at(self.begin + np.asarray(fraction, dtype=np.float64) * self.duration)

    def info(self) -> VideoInfo:
        """Decodes the first frame, for its size."""
        height, width = self.frames([0]).shape[-2:]
        return VideoInfo(self.num_frames, self.fps, self.duration, height, width, self._rotation())

    def _frames(self, indices: np.ndarray) -> torch.Tensor:
        raise NotImplementedError

    def _frames_at(self, seconds: np.ndarray) -> torch.Tensor:
        raise NotImplementedError

    def _rotation(self) -> int:
        raise NotImplementedError


class StillReader(VideoReader):
    """An image, as a video of one frame."""

    is_image = True
    num_frames, fps, begin, duration = 1, 0.0, 0.0, 0.0

    def __init__(self, source: Any) -> None:
        with decode_errors():
            self._image = decode_image(source).convert("RGB")

    def _frames(self, indices: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.array(self._image)).permute(2, 0, 1).expand(len(indices), -1, -1, -1)

    def _frames_at(self, seconds: np.ndarray) -> torch.Tensor:
        return self._frames(seconds)

    def _rotation(self) -> int:
        return 0


class TorchCodecReader(VideoReader):
    def __init__(self, source: str | bytes) -> None:
        from torchcodec.decoders import VideoDecoder

        with decode_errors():
            self._decoder = VideoDecoder(source)
            self._metadata = metadata = self._decoder.metadata
            self.num_frames = metadata.num_frames
            self.begin = float(metadata.begin_stream_seconds)
            self.duration = float(metadata.end_stream_seconds) - self.begin
        self.fps = _average_fps(metadata.average_fps_from_header, self.num_frames, self.duration)

    def _frames(self, indices: np.ndarray) -> torch.Tensor:
        check_clip_size(len(indices), self._metadata.height, self._metadata.width)
        return self._decoder.get_frames_at(indices.tolist()).data

    def _frames_at(self, seconds: np.ndarray) -> torch.Tensor:
        check_clip_size(len(seconds), self._metadata.height, self._metadata.width)
        return self._decoder.get_frames_played_at(seconds.tolist()).data

    def _rotation(self) -> int:
        return 90 * _quarter_turns(getattr(self._metadata, "rotation", None) or 0)


class PyAVReader(VideoReader):
    def __init__(self, source: str | bytes) -> None:
        import av
        from av.video.reformatter import VideoReformatter

        self._av, self._source, self._container = av, source, None
        # One for all frames: a frame's own would be set up anew for each, which costs more than the conversion.
        self._reformatter = VideoReformatter()
        self._turns = 0
        with decode_errors():
            self._open()
            packets = [
                (packet.pts, packet.duration or 0, packet.is_keyframe)
                for packet in self._container.demux(self._stream)
                if packet.size and not packet.is_discard and not packet.is_corrupt
            ]
            if not packets:
                raise VideoDecodeError("the video has no frames")
            self.num_frames = len(packets)
            rate, time_base = self._stream.average_rate, float(self._stream.time_base)
        times = {pts for pts, _, _ in packets}
        if None in times or len(times) < len(packets):
            # Raw streams have no clock and MPEG-PS may guess: frames come one after the other, at the stated rate.
            self._pts = None
            step = 1 / float(rate or 25)
            self._seconds = step * np.arange(self.num_frames)
            self.begin, self.duration = 0.0, step * self.num_frames
        else:
            packets.sort()
            self._pts = np.array([pts for pts, _, _ in packets], dtype=np.int64)
            # The first frame counts as a key frame even where nothing is marked: decoding has to start somewhere.
            self._keys = np.flatnonzero([place == 0 or packet[2] for place, packet in enumerate(packets)])
            self._seconds = self._pts * time_base
            self.begin = float(self._seconds[0])
            span = float(self._seconds[-1]) - self.begin
            last = packets[-1][1] * time_base or span / max(self.num_frames - 1, 1)
            self.duration = span + last
        self.fps = _average_fps(rate, self.num_frames, self.duration)

    def _open(self) -> None:
        self.close()
        file = io.BytesIO(self._source) if isinstance(self._source, bytes) else f"file:{self._source}"
        # Titles in other encodings are no reason to refuse frames; from 19 on PyAV itself never refuses them.
        tolerant = {} if int(self._av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "ignore"}
        self._container = self._av.open(file, **tolerant)
        self._stream = self._container.streams.best("video")
        if self._stream is None:
            kinds = sorted({stream.type for stream in self._container.streams})
            raise VideoDecodeError(f"the file has no video stream, only {', '.join(kinds) or 'nothing'}")
        if self._stream.codec_context is None:
            # PyAV before 18 would crash on decoding it.
            raise VideoDecodeError("the video is encoded in a way that this FFmpeg cannot decode")
        # Workers are the parallelism; threads of each would only fight for the same cores.
        self._stream.thread_type = "NONE"
        self._decoded = self._container.decode(self._stream)

    def close(self) -> None:
        if self._container is not None:
            self._container.close()

    def _frames(self, indices: np.ndarray) -> torch.Tensor:
        unique, inverse = np.unique(indices, return_inverse=True)
        pixels = None
        for place, frame in enumerate(self._in_order(unique)):
            if pixels is None:
                check_clip_size(len(unique), frame.height, frame.width)
                pixels = np.empty((len(unique), frame.height, frame.width, 3), dtype=np.uint8)
                self._turns = _quarter_turns(_display_angle(frame))
            elif (frame.height, frame.width) != pixels.shape[1:3]:
                height, width = pixels.shape[1:3]
                raise VideoDecodeError(f"frames change from {width}x{height} to {frame.width}x{frame.height} pixels")
            pixels[place] = self._reformatter.reformat(frame, format="rgb24").to_ndarray()
        frames = torch.rot90(torch.from_numpy(pixels), self._turns, (1, 2)).permute(0, 3, 1, 2)
        return frames if len(unique) == len(indices) and (inverse[:-1] < inverse[1:]).all() else frames[inverse]

    def _frames_at(self, seconds: np.ndarray) -> torch.Tensor:
        indices = np.searchsorted(self._seconds, seconds, side="right") - 1
        return self._frames(indices.clip(0, self.num_frames - 1))

    def _rotation(self) -> int:
        return 90 * self._turns

    def _in_order(self, indices: np.ndarray) -> Iterator[Any]:
        """Frames of ascending numbers, jumping to the nearest key frame where one lies on the way."""
        if self._pts is None:
            self._open()
            wanted = set(indices.tolist())
            found = [frame for number, frame in enumerate(islice(self._decoded, max(wanted) + 1)) if number in wanted]
            if len(found) < len(wanted):
                raise VideoDecodeError(f"{len(wanted) - len(found)} of the frames {indices.tolist()} are not there")
            yield from found
            return
        last = None
        for index in indices.tolist():
            key = int(self._keys[np.searchsorted(self._keys, index, side="right") - 1])
            target = int(self._pts[index])
            if last is None or key > last + 1:
                self._container.seek(int(self._pts[key]), stream=self._stream)
                self._decoded = self._container.decode(self._stream)
            frame = self._advance(target)
            if frame is None or frame.pts != target:
                # Some containers cannot seek, or land behind the key frame.
                self._open()
                frame = self._advance(target)
            if frame is None or frame.pts != target:
                raise VideoDecodeError(f"frame {index} of {self.num_frames} is not there: the file may be truncated")
            yield frame
            last = index

    def _advance(self, target: int) -> Any | None:
        return next((frame for frame in self._decoded if frame.pts is not None and frame.pts >= target), None)


def _average_fps(stated: Any, num_frames: int, duration: float) -> float:
    """The stated rate, if it is one: some headers, and torchcodec of variable rates, give another than the average."""
    stated, measured = float(stated or 0), num_frames / duration if duration > 0 else 0.0
    return stated if abs(stated - measured) <= 0.05 * measured else round(measured, 3)


def check_clip_size(num_frames: int, height: int, width: int) -> None:
    """Raises VideoDecodeError if a clip of such frames, RGB, would take more memory than a worker should."""
    if num_frames * height * width * 3 > MAX_CLIP_BYTES:
        raise VideoDecodeError(
            f"{num_frames} frames of {width}x{height} pixels take {num_frames * height * width * 3 / 2**30:.1f} GiB, "
            f"more than {MAX_CLIP_BYTES / 2**30:g}; scale the video down first"
        )


def _quarter_turns(angle: float) -> int:
    return math.floor(angle / 90 + 0.5) % 4


def _display_angle(frame: Any) -> float:
    """Degrees counter-clockwise, read from the 3x3 fixed-point matrix as FFmpeg's `av_display_rotation_get` does."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return 0.0
    matrix = np.frombuffer(bytes(data), dtype=np.int32).reshape(3, 3) / 65536
    scale_x, scale_y = math.hypot(matrix[0, 0], matrix[1, 0]), math.hypot(matrix[0, 1], matrix[1, 1])
    if not scale_x or not scale_y:
        return 0.0
    return -math.degrees(math.atan2(matrix[0, 1] / scale_y, matrix[0, 0] / scale_x))
