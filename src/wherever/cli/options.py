"""Options that several commands have, by the type of their parameter."""

from typing import Annotated, TypeAlias

from typer import Option

SEARCH, RESULT = "Where and how to look", "Results"  # headings of --help

Scales: TypeAlias = Annotated[
    str | None,
    Option(
        metavar="MIN:MAX",
        rich_help_panel=SEARCH,
        help="Sizes to look for, relative to the examples, for example 0.5:2.",
        show_default="learnt from the examples",
    ),
]
AnyRotation: TypeAlias = Annotated[
    bool | None,
    Option(
        "--any-rotation/--upright",
        metavar="",
        rich_help_panel=SEARCH,
        help="Look for turned ones too, or only for things that stand as the examples do.",
        show_default=False,
    ),
]
Bands: TypeAlias = Annotated[
    str | None,
    Option(
        metavar="LIST",
        rich_help_panel=SEARCH,
        help="Use only these bands, counted from 1, for example 1-30,45.",
        show_default="all",
    ),
]
Debug: TypeAlias = Annotated[
    bool,
    Option("--debug", metavar="", rich_help_panel=RESULT, help="On an error, show where it happened (traceback)."),
]
