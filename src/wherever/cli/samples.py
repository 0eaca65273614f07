"""`wherever samples`: the pictures that are there to try things on."""

from __future__ import annotations

from rich.table import Table

from wherever.cli.common import Terminal, count_bands
from wherever.files.images import INSTALL, read_image, sample_names


def samples() -> int:
    """List the pictures that come with scikit-image, to be used as [bold]sample:NAME[/bold]."""
    names = sample_names()
    if not names:
        raise ValueError(f"the sample pictures come with scikit-image: {INSTALL}")
    table = Table("picture", "size", "bands", box=None, pad_edge=False, header_style="bold")
    for name in names:
        image = read_image(f"sample:{name}")
        table.add_row(f"sample:{name}", f"{image.shape[1]} x {image.shape[0]}", str(count_bands(image)))
    Terminal().print(table)
    return 0
