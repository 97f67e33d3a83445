"""The errors that a user sees: one line that names the file or flag and the remedy; and text that is safe to show."""

from __future__ import annotations


def printable(text: object) -> str:
    """Text from anybody's file as a terminal may show it, on one line: what could steer the terminal is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


class UserError(Exception):
    """Something that the user can put right. The message is one line that names the file or flag and the remedy."""


class UsageError(UserError):
    """The request makes no sense whatever the files hold, such as an unknown choice; exit code 2."""
