"""Text out of files is shown, never obeyed: by a terminal, a page or a figure."""

from __future__ import annotations

__all__ = ["figure_label", "printable", "whole_characters"]


def printable(text: str) -> str:
    r"""Return a text in which characters that steer a terminal or a page are written out.

    Those are control characters, line ends, marks of direction, and halves of characters.

    >>> printable("a\x1b[31m\u202eb ω")
    'a\\x1b[31m\\u202eb ω'
    """
    return "".join(x if x.isprintable() else x.encode("unicode_escape").decode() for x in text)


def whole_characters(text: str) -> str:
    r"""Return a text in which halves of characters, which no file can hold, are written out.

    Such halves stand in names of files that are not UTF-8, and in pickles.

    >>> whole_characters("a\ud800 ω")
    'a\\ud800 ω'
    """
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def figure_label(name: str, length: int = 44, *, end: bool = False) -> str:
    r"""Return a name as matplotlib writes it: no formula, and not left out of a legend.

    Args:
        name: any text.
        length: of what is kept, in characters.
        end: keep the end of a longer name in place of its start.

    >>> figure_label("_a$x$\n"), figure_label("abcdef", 4), figure_label("abcdef", 4, end=True)
    (' _a\\$x\\$\\n', 'abc…', '…def')
    """
    if len(name) > length:
        name = f"…{name[1 - length :]}" if end else f"{name[: length - 1]}…"
    return " " * name.startswith("_") + printable(name).replace("$", r"\$")
