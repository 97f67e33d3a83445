"""The errors that a user sees: one line that names the file or flag and the remedy."""

from __future__ import annotations


class UserError(Exception):
    """Something that the user can put right. The message is one line that names the file or flag and the remedy."""


class UsageError(UserError):
    """The request makes no sense whatever the files hold, such as an unknown choice; exit code 2."""
