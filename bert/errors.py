"""The error classes: each tells what is wrong, where, and how to fix it.

The exit code of a command is that of the error's class, so scripts can rely on it:
0 ok, 1 internal, 2 usage, 3 data, 4 model or checkpoint, 5 out of memory,
130/143 interrupted by Ctrl-C or SIGTERM.
"""

from __future__ import annotations


class BertError(Exception):
    """A failure that a person can act on.

    Args:
        what: one line saying what is wrong.
        where: one line saying where: ``file:row:column``, an option, a directory.
        fix: one line saying how to fix it, an exact command where there is one.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.fix = fix

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.fix:
            lines.append(f"  fix:   {self.fix}")
        return "\n".join(lines)


class UsageError(BertError, ValueError):
    """A command, option or setting that cannot be."""

    exit_code = 2


class DataError(BertError, ValueError):
    """A file of text or rows that cannot be read, or says impossible things."""

    exit_code = 3


class RowError(DataError):
    """One row of a file that is bad; those after it can still be read."""


class ModelError(BertError, ValueError):
    """A model directory, checkpoint or configuration that cannot be."""

    exit_code = 4


class OutOfMemoryError(BertError, MemoryError):
    """The model or the batch does not fit."""

    exit_code = 5


class Interrupted(BertError):
    """Ctrl-C (130) or SIGTERM (143) arrived."""

    def __init__(self, signal_number: int, *, where: str | None = None, fix: str | None = None):
        name = {2: "Ctrl-C", 15: "SIGTERM"}.get(signal_number, f"signal {signal_number}")
        super().__init__(f"Interrupted by {name}.", where=where, fix=fix)
        self.exit_code = 128 + signal_number
