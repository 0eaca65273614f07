"""A progress bar on stderr that appears only for work that a person waits for."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn

from wherever.cli.common import end_if_asked

_PATIENCE = 0.7  # seconds


class Steps:
    """Progress over a number of steps, each of which may tell how much of it is done.

    Each step, and each part of it, is also a place where a command ends that a signal asked to.
    Nothing is shown if stderr is no terminal, if `quiet`, or if the work takes only a moment.

    Parameters
    ----------
    total : int
        Number of steps.
    quiet : bool
        Whether to show nothing at all.
    """

    def __init__(self, total: int, quiet: bool) -> None:
        console = Console(stderr=True)
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._shown = False
        self._allowed = console.is_terminal and not quiet
        self._task = self._bar.add_task("", total=total)
        self._begun = time.monotonic()
        self._started = 0

    def __enter__(self) -> Steps:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._shown:
            self._bar.stop()

    def next(self, words: str, long: bool = False) -> None:
        """Begin the next step; a `long` one shows itself at once, since nothing may be heard of it before its end."""
        end_if_asked()
        self._bar.update(self._task, description=words, completed=self._started)
        self._started += 1
        self._show(long)

    def part(self, done: int, total: int) -> None:
        """Tell how much of the step is done."""
        end_if_asked()
        self._bar.update(self._task, completed=self._started - 1 + done / max(total, 1))
        self._show(False)

    def _show(self, long: bool) -> None:
        if self._allowed and not self._shown and (long or time.monotonic() - self._begun > _PATIENCE):
            self._shown = True
            self._bar.start()
