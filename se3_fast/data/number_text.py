"""Numbers as the text of files has them."""

from __future__ import annotations


def number_of_text(text: str) -> float:
    """The number that stands in a text; Python would take `1_000` and other scripts' digits too.

    Raises:
        ValueError: It is none.
    """
    if "_" in text or not text.isascii():
        raise ValueError(f"could not convert string to float: {text!r:.50}")
    return float(text)
