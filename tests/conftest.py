"""What all tests share: how many examples hypothesis draws, and where the real data lie."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# The ordinary run draws the same examples every time, so that what fails is what was changed; WHEREVER_EXAMPLES=N draws
# N others.
settings.register_profile(
    "wherever",
    derandomize="WHEREVER_EXAMPLES" not in os.environ,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    max_examples=int(os.environ.get("WHEREVER_EXAMPLES", "100")),
)
settings.load_profile("wherever")


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real data; the test is skipped where there is none."""
    folder = os.environ.get("WHEREVER_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("WHEREVER_DATA names no folder of real data")
    return Path(folder)


@pytest.fixture(scope="session")
def unpack(data: Path) -> Callable[[str, Path, Callable[[str], bool]], None]:
    """Unpack those members of an archive of the real data whose name is wanted, into a folder."""
    safely: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Python 3.11.4 and later

    def into(archive: str, folder: Path, wanted: Callable[[str], bool]) -> None:
        with tarfile.open(data / archive) as tar:
            tar.extractall(folder, [member for member in tar.getmembers() if wanted(member.name)], **safely)

    return into
