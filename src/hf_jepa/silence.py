"""A Hub, or a link to it, that says nothing: an error after a while, and not a process that waits for ever."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub.utils import get_session

# Seconds. A commit of many files takes the Hub a minute or two, in which it says nothing.
MAX_SILENCE = 300.0


@contextmanager
def limited_silence() -> Iterator[None]:
    """
    Calls of `huggingface_hub` within end with a timeout of its client after `MAX_SILENCE` seconds in which nothing was
    sent or received, however long they take in all; by default only its downloads do. Limits that a caller, or
    `huggingface_hub` for a call, has set stay. Two things are without: files that `hf_xet` transfers, and what follows
    where `huggingface_hub` could not connect and made a client anew, until this is entered again.
    """

    # A hook and not the client's timeout, which calls such as `model_info` override with none; and the client itself
    # and not its factory: another factory would close connections that other threads read from.
    def limit(request: Any) -> None:
        limits = request.extensions.get("timeout") or {}
        if not any(limits.values()):
            request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), MAX_SILENCE)

    hooks = get_session().event_hooks["request"]
    hooks.append(limit)
    try:
        yield
    finally:
        hooks.remove(limit)


def is_connection_error(error: BaseException) -> bool:
    """Whether an error is a timeout or a broken connection, of Python's own or of the client of `huggingface_hub`."""
    # httpx's timeouts and connection errors (OSError does not cover them) share this base's name across its versions.
    names = {base.__name__ for base in type(error).__mro__}
    return isinstance(error, TimeoutError | ConnectionError) or "TransportError" in names
