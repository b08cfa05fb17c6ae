"""Frames of a video file, by torchcodec where it works and by PyAV otherwise: the same frames either way."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .frame_folders import FrameFolderReader
from .manifests import IMAGE_SUFFIXES
from .video_readers import (
    PyAVReader,
    StillReader,
    TorchCodecReader,
    VideoDecodeError,
    VideoInfo,
    VideoReader,
    decode_errors,
)

# Text that makes FFmpeg open other files or addresses, whatever the file is called.
_PLAYLISTS = (b"#EXTM3U", b"ffconcat", b"<?xml", b"<MPD")
_MATROSKA, _ISO_MEDIA = b"\x1aE\xdf\xa3", (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")


@cache
def torchcodec_works() -> bool:
    """Whether torchcodec is installed and finds FFmpeg libraries."""
    try:
        from torchcodec.decoders import VideoDecoder

        # Without FFmpeg, some versions fail to import and others only here.
        VideoDecoder(bytes(64))
    except ImportError:
        return False
    except Exception as error:
        return "libtorchcodec" not in str(error)
    return True


def video_backend(head: bytes | None = None) -> str:
    """
    Chooses the decoder.

    Args:
        head (`bytes`, *optional*): the first 8 bytes of the file. torchcodec is used for MP4, MOV, MKV and WebM: in
            AVI, TS and MPEG-PS its random access gives other frames than playing the file does, and damaged TS files
            have brought the process down (0.17).

    Returns:
        `str`: `"torchcodec"` where it works and is exact, otherwise `"pyav"`.

    Raises:
        ImportError: if there is no decoder for the file.
    """
    if torchcodec_works() and (head is None or head.startswith(_MATROSKA) or head[4:8] in _ISO_MEDIA):
        return "torchcodec"
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "Decoding videos needs PyAV: pip install 'hf-jepa[video]'. torchcodec, with FFmpeg libraries, is used "
            "where it is installed, for MP4, MOV, MKV and WebM."
        ) from error
    return "pyav"


def _file_or_bytes(source: Any) -> tuple[str | bytes, bytes, bool]:
    """The path or the bytes behind a cell of a video column, the first bytes, and whether it is an image."""
    source = getattr(source, "_hf_encoded", source)
    if isinstance(source, (str, Path)):
        source = {"path": str(source), "bytes": None}
    elif isinstance(source, (bytes, bytearray)):
        source = {"path": None, "bytes": bytes(source)}
    if not isinstance(source, dict):
        raise VideoDecodeError(f"the cell holds {type(source).__name__}, not a video")
    path, data = source.get("path"), source.get("bytes")
    is_image = bool(path) and path.lower().endswith(IMAGE_SUFFIXES)
    if data is None and path and "://" in path:
        # `datasets` streams remote files through this reader.
        from datasets.utils.file_utils import xopen

        with decode_errors(), xopen(path, "rb") as file:
            data = file.read()
    if data is None and path:
        if not Path(path).is_file():
            raise VideoDecodeError(f"there is no file {path!r}")
        with open(path, "rb") as file:
            head = file.read(16)
    else:
        head = (data or b"")[:16]
    if not head:
        raise VideoDecodeError("the video is empty (zero bytes)")
    if head.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(_PLAYLISTS):
        raise VideoDecodeError("the file is a text playlist, which names other files, and no video")
    return (path if data is None else data), head, is_image


def open_video(source: Any, backend: str | None = None) -> VideoReader:
    """
    Opens a video, an image as a video of one frame, or a folder of images as a video.

    Args:
        source (`str`, `Path`, `bytes`, `dict` or a value of a `datasets` video column): a local file, a folder of
            frames, encoded bytes, `{"path", "bytes"}`, or a decoder that `datasets` made. Files named as images are
            read as such.
        backend (`str`, *optional*): `"torchcodec"` or `"pyav"`; by default what [`video_backend`] finds.

    Returns:
        [`VideoReader`].

    Raises:
        VideoDecodeError: if the file is missing, empty, corrupt, or has no video stream.
        ImportError: if no decoder is installed.
    """
    readers = {"pyav": PyAVReader, "torchcodec": TorchCodecReader}
    path = source.get("path") if isinstance(source, dict) and source.get("bytes") is None else source
    if isinstance(path, (str, Path)) and Path(path).is_dir():
        return FrameFolderReader(path)
    source, head, is_image = _file_or_bytes(source)
    if is_image:
        return StillReader(source)
    backend = backend or video_backend(head)
    if backend not in readers:
        raise ValueError(f"backend must be one of {sorted(readers)}, got {backend!r}.")
    return readers[backend](source)


def decode_frames(source: Any, indices: Sequence[int] | np.ndarray, backend: str | None = None) -> torch.Tensor:
    """
    Decodes the asked frames of a video and no others are kept.

    Args:
        source: see [`open_video`].
        indices (`Sequence[int]`): `F` numbers in `[0, num_frames)`, in any order, repeats allowed.
        backend (`str`, *optional*): `"torchcodec"` or `"pyav"`; by default what [`video_backend`] finds.

    Returns:
        `torch.Tensor` of shape `(F, 3, height, width)`, uint8 RGB, turned as the file says it is shown.

    Raises:
        VideoDecodeError: if the file or the frames cannot be decoded.
    """
    with open_video(source, backend) as video:
        return video.frames(indices)


def probe_video(source: Any, backend: str | None = None) -> VideoInfo:
    """
    Counts and measures a video. Of the frames, only the first is decoded.

    Args:
        source: see [`open_video`].
        backend (`str`, *optional*): `"torchcodec"` or `"pyav"`; by default what [`video_backend`] finds.

    Returns:
        [`VideoInfo`].

    Raises:
        VideoDecodeError: if the file cannot be decoded.
    """
    with open_video(source, backend) as video:
        return video.info()
