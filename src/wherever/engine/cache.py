"""Files in the user's cache: whole or not there, and nobody else's; a cache that cannot be used is no cache."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from pathlib import Path

import platformdirs

_MAGIC = b"wherever cache 2\n"


def cache_directory(kind: str) -> Path:
    """Where files of a kind are kept: in ``WHEREVER_CACHE_DIR``, or the user's cache."""
    return Path(os.environ.get("WHEREVER_CACHE_DIR") or platformdirs.user_cache_dir("wherever", False)) / kind


def read(kind: str, key: str) -> bytes | None:
    """The content of a file, if it is whole, was written under this key, and nobody else could have written it."""
    try:
        directory = cache_directory(kind)
        if not _ours(directory.stat()):
            return None
        with open(directory / key, "rb", opener=_at_once) as file:
            if not _ours(os.fstat(file.fileno())):
                return None
            content = file.read()
    except OSError:
        return None
    head, digest, body = content[: len(_MAGIC)], content[len(_MAGIC) : len(_MAGIC) + 32], content[len(_MAGIC) + 32 :]
    if head != _MAGIC or digest != hashlib.sha256(key.encode() + body).digest() or not body:
        return None
    return body


def write(kind: str, key: str, body: bytes) -> None:
    """Keep some content under its key; whoever reads it sees all of it or nothing."""
    try:
        directory = cache_directory(kind)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _ours(directory.stat()):
            return
        handle, name = tempfile.mkstemp(dir=directory)
        try:
            with open(handle, "wb") as file:
                file.write(_MAGIC + hashlib.sha256(key.encode() + body).digest() + body)
            os.replace(name, directory / key)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError:
        return


def _at_once(path: str, flags: int) -> int:
    """Open a file; a pipe without waiting for whoever would write to it."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _ours(status: os.stat_result) -> bool:
    """Whether a file or directory is this user's, and only this user's to write."""
    if not hasattr(os, "geteuid"):  # Windows: the user's profile is
        return True
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
