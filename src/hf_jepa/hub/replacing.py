"""Replacing one folder by another at once: whatever fails, the old one is there whole, or the new one is."""

import ctypes
import errno
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

_HERE, _EXCHANGE = -100, 2  # Linux's AT_FDCWD and RENAME_EXCHANGE


def exchange(one: Path, other: Path) -> None:
    """
    Swaps the names of two folders in one step of the file system.

    Raises:
        OSError: where the system or the file system cannot.
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        raise OSError(errno.ENOSYS, "this system cannot exchange two folders")
    if rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(one))


def previous_of(folder: Path) -> Path:
    """Where the old folder waits while it is replaced in two steps."""
    return folder.with_name(f".{folder.name}.previous")


def recover(folder: Path) -> None:
    """Puts back what a process that was killed between the two steps had set aside."""
    previous = previous_of(folder)
    if previous.is_dir() and not folder.exists():
        os.replace(previous, folder)


def replace_folder(new: Path, folder: Path, kept: Iterable[str] = ()) -> None:
    """
    Puts `new` in the place of `folder`.

    Args:
        new (`Path`): complete, on the same file system; it is gone afterwards.
        folder (`Path`): may be absent.
        kept (`Iterable[str]`): names in `folder` that are taken over; files are linked, not copied, where that works.

    Raises:
        OSError: `folder` is then as it was.
    """
    for name in kept:
        _link(folder / name, new / name)
    if not folder.exists():
        os.replace(new, folder)
        return
    try:
        exchange(new, folder)
        shutil.rmtree(new, ignore_errors=True)
        return
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM):
            raise
    previous = previous_of(folder)
    os.replace(folder, previous)
    try:
        os.replace(new, folder)
    except BaseException:
        os.replace(previous, folder)
        raise
    shutil.rmtree(previous, ignore_errors=True)


def replace_text(path: Path, text: str) -> None:
    """Writes a file in one step of the file system: a process that is killed leaves the old one or the new one."""
    new = path.with_name(f".{path.name}")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)


def _link(source: Path, destination: Path) -> None:
    if source.is_dir() and not source.is_symlink():
        shutil.copytree(source, destination, symlinks=True, copy_function=_link_file)
    else:
        _link_file(source, destination)


def _link_file(source: str | Path, destination: str | Path) -> None:
    try:
        os.link(source, destination, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, destination, follow_symlinks=False)
