"""Errors of files that others wrote: whatever a reader raises, it comes out as a `ValueError` that names the file."""

import errno
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# No fault of what is read.
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


@contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """
    Around what reads a file or folder. A `ValueError` or `OSError` that names it passes, and so does `ImportError`.

    Args:
        path (`str` or `PathLike`): the file.

    Raises:
        ValueError: in place of any other error, with the path and what was wrong.
    """
    try:
        yield
    except ImportError:
        raise
    except IsADirectoryError as error:
        raise ValueError(f"{str(error.filename or path)!r} is a folder; give a file in it.") from error
    except Exception as error:  # of PyArrow, safetensors, PyYAML, torch, or a type that a hostile file did not have
        is_plain = isinstance(error, (ValueError, OSError))
        if is_plain and (Path(path).name in str(error) or getattr(error, "errno", None) in _OF_THE_DISK):
            raise
        reason = str(error).strip() or "no reason is known"
        kind = "" if is_plain else f"{type(error).__name__}: "
        raise ValueError(f"{str(path)!r} cannot be used: {kind}{reason}") from error


def file_at_fault(error: BaseException) -> str:
    """
    `, in FILE` for the file that `datasets` was reading, which its errors do not say: it is looked up in its readers.
    Nothing where it was not reading any.
    """
    found = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if "packaged_modules" in frame.f_code.co_filename:
            found = next((frame.f_locals[name] for name in ("tar_path", "file") if name in frame.f_locals), found)
    return f", in {found}" if isinstance(found, str) and found else ""
