"""The `wherever` command: find a thing wherever it is, evaluate finds, climb the ladder to convolution."""

from __future__ import annotations

import importlib.util
import io
import sys
from collections.abc import Sequence
from typing import Any

_NEEDED = ("typer", "rich", "PIL", "tifffile")
_EPILOG = (
    "Exit codes, as grep has them: 0 something was found (or the work is done), 1 nothing was found, "
    "2 bad input or any other error, 130 interrupted."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    arguments : sequence of str, optional
        What follows `wherever` on the command line; taken from there when None.

    Returns
    -------
    int
        The exit code.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        names = ", ".join(missing).replace("PIL", "pillow")
        print(f'wherever: the command needs {names}: pip install "wherever[find]"', file=sys.stderr)
        return 2
    for stream in (sys.stdout, sys.stderr):
        # A name that the terminal's encoding cannot write should not end the program.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        _application()(given, prog_name="wherever")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 2
    except KeyboardInterrupt:
        print("wherever: interrupted; nothing was written", file=sys.stderr)
        return 130
    return 0


def _flowing(text: str | None) -> str:
    """Join the lines of each paragraph, so that the help is wrapped to the terminal and not where the source was."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in (text or "").split("\n\n"))


def _application() -> Any:
    """Put the commands together; only now is anything beyond the standard library imported."""
    import typer

    from wherever.cli.check import check
    from wherever.cli.common import guarded
    from wherever.cli.evaluate import evaluate
    from wherever.cli.find import find
    from wherever.cli.ladder import ladder
    from wherever.cli.samples import samples
    from wherever.cli.train import train

    app = typer.Typer(
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
        help="Mark a few examples of a thing in a picture, and find it wherever else it is.",
        epilog=_EPILOG,
    )

    def show_version(value: bool) -> None:
        if value:
            from wherever import __version__

            print(f"wherever {__version__}")
            raise typer.Exit

    @app.callback()
    def options(
        version: bool = typer.Option(
            False, "--version", metavar="", callback=show_version, is_eager=True, help="Print the version and end."
        ),
    ) -> None:
        pass

    for name, command in (
        ("find", find),
        ("train", train),
        ("evaluate", evaluate),
        ("samples", samples),
        ("ladder", ladder),
        ("check", check),
    ):
        app.command(name, help=_flowing(command.__doc__), epilog=_EPILOG)(guarded(command))
    return app
