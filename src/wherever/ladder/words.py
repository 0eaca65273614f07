"""Shapes, counts, bytes and seconds as people write them."""

from __future__ import annotations

from collections.abc import Sequence


def by(sizes: Sequence[int]) -> str:
    """Write a shape, as 1000x1000."""
    return "x".join(map(str, sizes))


def indices(letters: str, n: int) -> str:
    """Write n indices: i for one dimension, i,j for two as the source has it, i1,i2,i3 for more."""
    return ",".join(letters[:n]) if n <= 2 else ",".join(f"{letters[0]}{m}" for m in range(1, n + 1))


def whole(n: int) -> str:
    """Write a whole number: as 10^12 or 4·10^6 if it is that exactly, else with all its digits."""
    zeros = len(str(n)) - len(str(n).rstrip("0"))
    if n and zeros >= 6 and n < 10 ** (zeros + 1):
        lead = n // 10**zeros
        return f"10^{zeros}" if lead == 1 else f"{lead}·10^{zeros}"
    return f"{n:,}" if n < 10**15 else rounded(n)


def rounded(n: int) -> str:
    """Write a whole number to three digits, as 4.36·10^8."""
    if n < 10**6:
        return f"{n:,}"
    lead, exponent = f"{n:.2e}".split("e")
    lead = lead.rstrip("0").rstrip(".")
    return f"10^{int(exponent)}" if lead == "1" else f"{lead}·10^{int(exponent)}"


def in_bytes(n: int) -> str:
    """Write bytes to three digits, in powers of 1000."""
    amount, units = float(n), ["B", "kB", "MB", "GB", "TB", "PB", "EB"]
    while amount >= 999.5 and len(units) > 1:
        amount /= 1000
        units.pop(0)
    return f"{amount:.3g} {units[0]}"


def in_seconds(seconds: float) -> str:
    """Write a time to three digits."""
    for factor, unit in ((1, "s"), (1e3, "ms")):
        if seconds * factor >= 0.9995:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"
