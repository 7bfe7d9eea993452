"""What a run says: lines and progress on standard error, figures in ``metrics.jsonl``.

Answers go to standard output, everything else to standard error, so that every
command can be piped.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID


_speaks = True


def speak(yes: bool) -> None:
    """Whether this process says anything; of several that train as one only the first does."""
    global _speaks
    _speaks = yes


def say(text: str = "") -> None:
    """Print one line on standard error."""
    if _speaks:
        print(text, file=sys.stderr, flush=True)


def notice(what: str, *, where: str | None = None, fix: str | None = None) -> None:
    """Tell something the person should know, in the form of an error but without stopping."""
    say(f"Note: {what}")
    if where:
        say(f"  where: {where}")
    if fix:
        say(f"  fix:   {fix}")


def write_json(path: Path, value: Any) -> None:
    """Write figures or facts as indented JSON, readable in every language."""
    told = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    # The name of a file may be no UTF-8; JSON has the same way of writing what is left over.
    path.write_text(told, encoding="utf-8", errors="backslashreplace")


class Progress:
    """A progress bar on a terminal, one plain line every ten seconds elsewhere.

    Args:
        label: what is being done.
        total: how much there is of it (steps, rows, seconds), or None if unknown.
    """

    plain_seconds = 10.0

    def __init__(self, label: str, total: float | None = None) -> None:
        self.label = label
        self.total = total
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None
        self._last = time.monotonic()

    def __enter__(self) -> Self:
        if _speaks and sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[text]}"),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(self.label, total=self.total, text="")
        return self

    def update(self, done: float, text: str = "") -> None:
        """Show that ``done`` of the total is done, with ``text`` beside it."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, text=text)
        elif time.monotonic() - self._last >= self.plain_seconds:
            self._last = time.monotonic()
            share = f" {done / self.total:4.0%}" if self.total else ""
            say(f"{self.label}{share}  {text}")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


class MetricsFile:
    """An append-only ``metrics.jsonl``: one object a line, not-a-number shown as NaN.

    A process that does not speak writes none either.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.writes = _speaks

    def write(self, **values: Any) -> None:
        """Append one line of named values."""
        if not self.writes:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """All lines written so far; a last line cut by a crash is left out."""
        if not self.path.exists():
            return []
        rows = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return rows

    def keep_until(self, step: int) -> None:
        """Drop the lines after ``step``: what a resumed run is about to write again."""
        if not self.writes:
            return
        rows = [row for row in self.read() if row.get("step", 0) <= step and "final" not in row]
        # Elsewhere and then moved: a run that is killed here must not lose its curve.
        stage = self.path.with_name(self.path.name + ".partial")
        stage.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        stage.replace(self.path)
