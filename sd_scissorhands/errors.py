"""The errors that a user sees: one line that names the file or flag and the remedy; and text that is safe to show."""

from __future__ import annotations

MOST_LETTERS = 300  # of a reason that a library gives


def printable(text: object) -> str:
    """Text from anybody's file as a terminal may show it, on one line: what could steer the terminal is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def out_of_memory(error: BaseException) -> bool:
    """Whether an error, of Python, torch or a library, says that memory is used up."""
    if isinstance(error, MemoryError):
        return True
    words = ("out of memory", "can't allocate", "cannot allocate memory", "bad_alloc")
    return isinstance(error, Exception) and any(word in str(error).lower() for word in words)


def reason(error: Exception) -> str:
    """Why something failed, in one printable line. That memory is used up is no file's fault, and is raised again."""
    if out_of_memory(error):
        raise error
    text = getattr(error, "strerror", None) or str(error)
    return printable(next(iter(text.strip().splitlines()), type(error).__name__)[:MOST_LETTERS])


class UserError(Exception):
    """Something that the user can put right. The message is one line that names the file or flag and the remedy."""


class UsageError(UserError):
    """The request makes no sense whatever the files hold, such as an unknown choice; exit code 2."""


class OccupiedError(UserError):
    """A folder holds another measurement than the one that would go there."""


class AbsentError(UserError):
    """What is named is neither on this machine nor could it be fetched."""
