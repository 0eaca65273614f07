"""How much memory a program can still take on this machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any


def available_memory() -> int | None:
    """Give the bytes of memory that a program can still take here without swapping; None if the system does not say.

    Linux: MemAvailable, or what a container's limit (cgroup version 2) leaves, if that is less. Other POSIX systems:
    the free pages, or where these are not counted (macOS) all of them. Windows: what GlobalMemoryStatusEx says.
    """
    found = []
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        found.append(
            next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("MemAvailable:"))
        )
    except (OSError, StopIteration, ValueError):
        pass
    try:
        group = Path("/sys/fs/cgroup")
        limit, used = int((group / "memory.max").read_text()), int((group / "memory.current").read_text())
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        # Pages of files that were read are counted as used, but are given back when memory is asked for.
        found.append(max(0, limit - used + int(statistics.get("inactive_file", 0))))
    except (OSError, ValueError):  # no such file, or the limit is the word "max"
        pass
    if found:
        return min(found)
    if sys.platform == "win32":
        return windows_memory()
    for pages in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES"):
        try:
            return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, ValueError):
            continue
    return None


def windows_memory() -> int | None:
    """Ask Windows for the free physical memory; the structure is MEMORYSTATUSEX, its fourth field ullAvailPhys."""
    import ctypes

    class Status(ctypes.Structure):
        _fields_ = (
            ("length", ctypes.c_uint32),
            ("load", ctypes.c_uint32),
            *((name, ctypes.c_uint64) for name in ("total", "available", "a", "b", "c", "d", "e")),
        )

    status = Status(length=ctypes.sizeof(Status))
    library: Any = getattr(ctypes, "windll")  # noqa: B009 - exists on Windows only, which a type checker elsewhere denies
    return int(status.available) if library.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)) else None
