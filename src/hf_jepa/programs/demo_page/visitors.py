"""What visitors of the page may send, and what they get to see: limits, a folder for each answer, no path."""

import tempfile
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from ...data.manifests import VIDEO_SUFFIXES
from ...data.video_decoding import VideoDecodeError, open_video

# Of one upload: more is refused before it is stored, or read.
MAX_UPLOAD_BYTES = 100 * 2**20
MAX_VIDEO_SECONDS = 120.0
MAX_FILES = 64
# Of a text field, all of its lines together.
MAX_TEXT_LENGTH = 20_000
# People who are answered at the same time; others wait, and more than that are told to come back.
CONCURRENT_VISITORS, WAITING_VISITORS = 2, 32


def check_inputs(inputs: tuple[Any, ...]) -> list[Path]:
    """
    Whether what a visitor sends is small enough to be read for anybody who comes by.

    Args:
        inputs (`tuple`): texts, numbers, paths of uploads, and lists of these.

    Returns:
        `list[Path]`: the uploads among them.

    Raises:
        `ValueError`: naming the limit.
    """
    flat = [part for given in inputs for part in (given if isinstance(given, list) else [given])]
    texts = [part for part in flat if isinstance(part, str)]
    if any(len(text) > MAX_TEXT_LENGTH for text in texts):
        raise ValueError(f"A text is longer than {MAX_TEXT_LENGTH} characters.")
    uploads = [Path(text) for text in texts if "\n" not in text and len(text) < 1024 and Path(text).is_file()]
    if len(uploads) > MAX_FILES:
        raise ValueError(f"These are {len(uploads)} files; at most {MAX_FILES} are read.")
    for path in uploads:
        size = path.stat().st_size
        if size > MAX_UPLOAD_BYTES:
            raise ValueError(f"The file has {size / 2**20:.1f} MiB; at most {MAX_UPLOAD_BYTES // 2**20} are read.")
        if path.suffix.lower() in VIDEO_SUFFIXES:
            _check_duration(path)
    return uploads


def _check_duration(path: Path) -> None:
    try:
        with open_video(str(path)) as reader:
            seconds = reader.duration
    except VideoDecodeError as error:
        raise ValueError(f"The video cannot be read: {error}.") from error
    if seconds > MAX_VIDEO_SECONDS:
        raise ValueError(f"The video lasts {seconds:.0f} s; at most {MAX_VIDEO_SECONDS:.0f} s are read.")


def answering(gr: Any, folder: Path, answer: Callable[..., Any]) -> Callable[..., Any]:
    """
    What a button calls: `answer(*inputs, place)`, where `place` is a folder for this answer alone, as two people may
    ask at once. What it refuses is said on the page, without the folder in which an upload lies.
    """

    @wraps(answer)
    def guarded(*inputs: Any) -> Any:
        uploads: list[Path] = []
        try:
            uploads = check_inputs(inputs)
            return answer(*inputs, Path(tempfile.mkdtemp(prefix="answer-", dir=folder)))
        except ValueError as error:
            message = str(error)
            for path in uploads:
                message = message.replace(str(path.parent) + "/", "")
            raise gr.Error(message, print_exception=False) from error

    del guarded.__wrapped__  # gradio counts the inputs of what it calls
    return guarded


def serve(page: Any, host: str, port: int | None, **options: Any) -> Any:
    """
    Serves a page on `host` alone: no address elsewhere, no file of this machine but uploads and answers, no larger
    upload than `MAX_UPLOAD_BYTES`, no traceback.

    Args:
        page (`gradio.Blocks`).
        host (`str`), port (`int`): where.
        options: for `launch`.
    """
    page.queue(max_size=WAITING_VISITORS, default_concurrency_limit=CONCURRENT_VISITORS)
    return page.launch(
        server_name=host,
        server_port=port,
        share=False,
        max_file_size=MAX_UPLOAD_BYTES,
        allowed_paths=[],
        blocked_paths=[str(Path.home()), str(Path.cwd())],
        show_error=False,
        **options,
    )
