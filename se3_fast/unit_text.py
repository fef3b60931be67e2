"""Names and numbers with their unit, which there may be none of."""

from __future__ import annotations


def with_unit(number: str, unit: str) -> str:
    """`0.096 eV`, or the number alone."""
    return f"{number} {unit}" if unit else number


def in_unit(name: str, unit: str) -> str:
    """`gap (eV)`, or the name alone."""
    return f"{name} ({unit})" if unit else name
