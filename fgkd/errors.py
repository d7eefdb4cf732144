"""The one exception a user of fgkd sees."""

from __future__ import annotations


class FgkdError(Exception):
    """A failure the user can act on: `what` happened (with the values seen) and a `hint` to paste.

    It pickles whole, so that a DataLoader worker or another rank can hand it to the main process.
    """

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what, hint)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.what}\nTry: {self.hint}" if self.hint else self.what


class WrongDataError(FgkdError):
    """An image is not the one a cache was made of: never a bad image to skip."""


def quoted(path: object) -> str:
    """A path as one word of a line to paste into a shell."""
    import shlex

    return shlex.quote(str(path))


def near(name: str, known: list[str] | tuple[str, ...]) -> str:
    """`"; did you mean a, b?"` for the names of `known` closest to `name`, else an empty string."""
    import difflib

    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"; did you mean {', '.join(close)}?" if close else ""
