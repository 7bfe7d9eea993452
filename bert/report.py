"""What a run says to a reader: ``report.html`` in one file, and ``README.md``, the model card.

The report needs nothing beside it: pictures are inside, there is no script and nothing is
fetched. Labels and texts come from anywhere, so every one is escaped, and the page's
security policy forbids scripts and the network besides.
"""

from __future__ import annotations

import base64
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from bert.errors import DataError

LONGEST_TEXT = 2000
LABELS_IN_MATRIX = 30
CONFUSIONS_LISTED = 40

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1f23; --soft: #5b6470; --page: #ffffff;
  --band: #f4f6f8; --line: #d9dee4; --right: #00664b; --wrong: #a63d00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --soft: #a3acb8; --page: #15181c;
  --band: #1e2228; --line: #353c45; --right: #4fd1a5; --wrong: #ff9d66; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 60rem; background: var(--page);
  color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto,
  "Noto Sans", "PingFang SC", "Hiragino Sans GB", "Microsoft YaHei", "Noto Sans CJK SC",
  "Source Han Sans SC", "WenQuanYi Micro Hei", sans-serif; overflow-wrap: anywhere; }
h1 { margin: 0; font-size: 1.7rem; line-height: 1.25; }
h2 { margin: 2.5rem 0 .75rem; padding-bottom: .25rem; font-size: 1.25rem;
  border-bottom: 1px solid var(--line); }
p { margin: .75rem 0; }
.soft, figcaption { color: var(--soft); }
.scroll { margin: 1rem 0; overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem;
  overflow-wrap: normal; }
th, td { padding: .35rem .75rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
td { max-width: 30rem; }
thead th { background: var(--band); white-space: nowrap; }
th.number, td.number { text-align: right; white-space: nowrap; }
.matrix td { text-align: center; vertical-align: middle; border: 1px solid var(--line); }
.matrix th { overflow-wrap: break-word; }
.matrix thead th { min-width: 5rem; max-width: 9rem; text-align: center; white-space: normal; }
.matrix tbody th { position: sticky; left: 0; min-width: 6rem; max-width: 12rem;
  background: var(--page); font-weight: normal; }
.matrix .right { font-weight: bold; }
figure { margin: 1.25rem 0; }
figure img { display: block; max-width: 100%; height: auto; border-radius: 4px; }
figcaption { margin-top: .4rem; font-size: .92rem; }
.wrong { margin: 1rem 0; padding: .6rem 1rem; background: var(--band); border-radius: 4px;
  border-left: 4px solid var(--wrong); }
.wrong p { margin: 0; font-size: .92rem; }
.wrong blockquote { margin: .4rem 0 0; white-space: pre-wrap; max-height: 16rem;
  overflow-y: auto; }
.truth { font-weight: bold; color: var(--right); }
.predicted { font-weight: bold; color: var(--wrong); }
mark { background: none; color: inherit; border-bottom: 3px solid; }
mark.truth { border-color: var(--right); }
mark.answer { border-color: var(--wrong); font-weight: bold; }
mark.answer.truth { border-style: double; }
@media print { .scroll, .wrong blockquote { overflow: visible; max-height: none; } }
""".strip()

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Report:
    """One HTML file, built from the top down and written at the end.

    Args:
        title: of the page.
        subtitle: one line under it, such as the date and the directory of the model.
    """

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title = title
        self.subtitle = subtitle
        self._parts: list[str] = []

    def heading(self, text: str) -> None:
        """Start a section."""
        self._parts.append(f"<h2>{escape(text)}</h2>")

    def paragraph(self, text: str) -> None:
        """Add a paragraph of plain text."""
        self._parts.append(f"<p>{escape(text)}</p>")

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Add a table; a column of numbers only is aligned to the right.

        Args:
            columns: the headings.
            rows: one cell for each column: text, a number, or None for an empty cell.

        Raises:
            DataError: a row with more or fewer cells than columns.
        """
        cells = [list(row) for row in rows]
        for number, row in enumerate(cells, start=1):
            if len(row) != len(columns):
                raise DataError(
                    f"A row of the table has {len(row)} cells, but there are "
                    f"{len(columns)} columns.",
                    where=f"row {number}",
                    fix="Give one cell for each column, None for an empty one.",
                )
        kinds = [
            ' class="number"'
            if any(row[column] is not None for row in cells)
            and all(row[column] is None or _is_number(row[column]) for row in cells)
            else ""
            for column in range(len(columns))
        ]
        head = "".join(
            f'<th scope="col"{kind}>{escape(name)}</th>'
            for name, kind in zip(columns, kinds, strict=True)
        )
        body = "\n".join(
            "<tr>"
            + "".join(
                f"<td{kind}>{escape(_shown(cell))}</td>"
                for cell, kind in zip(row, kinds, strict=True)
            )
            + "</tr>"
            for row in cells
        )
        self._scrolling(
            f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"
        )

    def picture(self, path: str | Path, caption: str) -> None:
        """Put a PNG file into the page.

        Raises:
            DataError: the file is not there, or no PNG.
        """
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise DataError(
                f"The picture cannot be read: {error.strerror}.",
                where=str(path),
                fix="Draw it first.",
            ) from error
        if not data.startswith(b"\x89PNG\r\n\x1a\n"):
            raise DataError("The picture is no PNG file.", where=str(path), fix="Save it as PNG.")
        source = base64.b64encode(data).decode("ascii")
        self._parts.append(
            f'<figure><img src="data:image/png;base64,{source}" alt="{escape(caption)}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )

    def mistakes(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Show wrong answers with their text, such as the worst ones.

        Args:
            rows: each with ``truth``, ``answer``, ``text``, ``sure`` (a probability or None) and
                ``marks``: (begin, end, "truth" or "answer") places of the text. Of a text of
                more than 2,000 characters the part around the first mark is shown.
        """
        for row in rows:
            sure = "" if row["sure"] is None else f" with {row['sure']:.1%}"
            self._parts.append(
                f'<div class="wrong"><p>true <bdi class="truth">{escape(row["truth"])}</bdi>, '
                f'predicted <bdi class="predicted">{escape(row["answer"])}</bdi>{sure}</p>'
                f'<blockquote dir="auto">{_marked(row["text"], row["marks"])}</blockquote></div>'
            )

    def confusion(self, matrix: Sequence[Sequence[int]], names: Sequence[str]) -> None:
        """Add a confusion matrix as a table, shaded by the share of the true label's rows.

        The numbers before the names are those of the pictures. Above 30 labels the most
        frequent confusions are listed instead.

        Args:
            matrix: counts [L, L], rows true, columns predicted; lists or an array.
            names: the L names of the labels.

        Raises:
            DataError: a matrix that does not fit the names.
        """
        counts = [[int(count) for count in row] for row in matrix]
        if len(counts) != len(names) or any(len(row) != len(names) for row in counts):
            raise DataError(
                f"The confusion matrix has {len(counts)} rows, but there are {len(names)} names.",
                fix="Give one name for each row and column.",
            )
        if len(names) > LABELS_IN_MATRIX:
            self._confusions(counts, names)
            return
        head = "".join(
            f'<th scope="col"><span class="soft">#{number}</span><br><bdi>{escape(name)}</bdi></th>'
            for number, name in enumerate(names)
        )
        body = []
        for number, (name, row) in enumerate(zip(names, counts, strict=True)):
            total = max(1, sum(row))
            cells = "".join(
                f'<td class="{"right" if column == number else "other"}" '
                f'style="background:rgba(0,114,178,{0.6 * count / total:.3f})">{count:,}</td>'
                for column, count in enumerate(row)
            )
            body.append(
                f'<tr><th scope="row"><span class="soft">#{number}</span> '
                f"<bdi>{escape(name)}</bdi></th>{cells}</tr>"
            )
        rows = "\n".join(body)
        self._parts.append(
            '<p class="soft">Rows: true label. Columns: predicted label. '
            "Shade: share of the true label's rows.</p>"
        )
        self._scrolling(
            f'<table class="matrix">\n<thead><tr><td></td>{head}</tr></thead>\n'
            f"<tbody>\n{rows}\n</tbody>\n</table>"
        )

    def html(self) -> str:
        """The page as it is so far."""
        subtitle = f'<p class="soft">{escape(self.subtitle)}</p>\n' if self.subtitle else ""
        return (
            '<!DOCTYPE html>\n<html lang="">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(self.title)}</title>\n<style>\n{_STYLE}\n</style>\n</head>\n<body>\n"
            f"<header><h1>{escape(self.title)}</h1>\n{subtitle}</header>\n<main>\n"
            + "\n".join(self._parts)
            + "\n</main>\n</body>\n</html>\n"
        )

    def write(self, path: str | Path) -> Path:
        """Write the page, whole or not at all, and return its path."""
        return _write(path, self.html())

    def _scrolling(self, table: str) -> None:
        self._parts.append(f'<div class="scroll" tabindex="0">{table}</div>')

    def _confusions(self, counts: list[list[int]], names: Sequence[str]) -> None:
        found = [
            (-count, true, predicted)
            for true, row in enumerate(counts)
            for predicted, count in enumerate(row)
            if count and true != predicted
        ]
        listed = sorted(found)[:CONFUSIONS_LISTED]
        self.paragraph(
            f"The {len(listed)} most frequent confusions of {len(found):,}."
            if found
            else "No label was taken for another."
        )
        if found:
            self.table(
                ["true label", "predicted label", "rows", "share of the true label"],
                [
                    (names[true], names[predicted], -count, -count / sum(counts[true]))
                    for count, true, predicted in listed
                ],
            )


@dataclass(frozen=True)
class Card:
    """What a model card tells; what is None or empty is left out.

    All fields but ``usage`` are plain text.

    Attributes:
        name: of the model.
        summary: what it is and what it is for; an empty line starts a paragraph.
        library: the library that loads it.
        usage: how to call it: code, put into a code block; Markdown that begins with a
            code fence is kept as it is.
        language: code of the language, such as ``en`` or ``zh``.
        license: identifier, such as ``apache-2.0``.
        base_model: the model it was made from.
        training_data: facts by name: files, rows, labels, hash.
        settings: by name, as they were.
        metrics: (name, value, low, high); low and high may be None.
        limits: what it cannot do, one sentence each.
    """

    name: str
    summary: str
    library: str
    usage: str
    language: str | None = None
    license: str | None = None
    base_model: str | None = None
    training_data: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)
    metrics: Sequence[tuple[str, float, float | None, float | None]] = ()
    limits: Sequence[str] = ()


def write_card(path: str | Path, card: Card) -> Path:
    """Write a model card, Markdown with YAML front matter, whole or not at all.

    Args:
        path: the file, ``README.md`` in the model's directory.
        card: what it tells.

    Returns:
        The path.
    """
    import yaml

    front = {
        "language": card.language,
        "license": card.license,
        "library_name": card.library,
        "base_model": card.base_model,
    }
    front = {key: value for key, value in front.items() if value}
    sections = [f"# {_markdown(card.name)}"]
    sections += [_markdown(text) for text in re.split(r"\n\s*\n", card.summary) if text.strip()]
    if card.usage.strip():
        sections += ["## How to call it", _code_block(card.usage.strip("\n"))]
    facts = [(name, fact) for name, fact in card.training_data.items() if fact]
    if facts:
        sections += ["## Training data", markdown_table(["fact", "value"], facts)]
    settings = [
        (name, _setting(value)) for name, value in card.settings.items() if value is not None
    ]
    if settings:
        sections += ["## Settings", markdown_table(["setting", "value"], settings)]
    metrics = [
        (
            name,
            _shown(float(value)),
            "" if low is None or high is None else f"{_shown(low)} to {_shown(high)}",
        )
        for name, value, low, high in card.metrics
        if value is not None and math.isfinite(value)
    ]
    if any(interval for _, _, interval in metrics):
        sections += ["## Scores", markdown_table(["score", "value", "95% interval"], metrics)]
    elif metrics:
        pairs = [(name, value) for name, value, _ in metrics]
        sections += ["## Scores", markdown_table(["score", "value"], pairs)]
    limits = [limit for limit in card.limits if limit.strip()]
    if limits:
        sections += ["## Limits", "\n".join(f"- {_markdown(limit)}" for limit in limits)]
    head = yaml.safe_dump(front, allow_unicode=True, sort_keys=False) if front else ""
    return _write(path, (f"---\n{head}---\n\n" if head else "") + "\n\n".join(sections) + "\n")


def _marked(text: str, marks: Iterable[tuple[int, int, str]]) -> str:
    """Part of a text as HTML, its marked places underlined in the colours of truth and answer."""
    places = [(begin, end, kind) for begin, end, kind in marks if begin < end]
    first = min((begin for begin, _, _ in places), default=0)
    start = max(0, first - LONGEST_TEXT // 4) if len(text) > LONGEST_TEXT else 0
    stop = min(len(text), start + LONGEST_TEXT)
    cuts = {start, stop}
    for begin, end, _ in places:
        cuts |= {place for place in (begin, end) if start < place < stop}
    edges = sorted(cuts)
    shown = []
    for begin, end in pairwise(edges):
        kinds = sorted({kind for low, high, kind in places if low <= begin and end <= high})
        piece = escape(text[begin:end])
        shown.append(f'<mark class="{" ".join(kinds)}">{piece}</mark>' if kinds else piece)
    more = len(text) - (stop - start)
    rest = f' <span class="soft">… {more:,} characters more</span>' if more else ""
    return ("… " if start else "") + "".join(shown) + rest


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    """A table cell: whole numbers by thousands, others to what a reader compares."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Integral):
        return f"{int(value):,}"
    if isinstance(value, Real):
        number = float(value)
        if not math.isfinite(number):
            return "–" if math.isnan(number) else ("∞" if number > 0 else "-∞")
        if abs(number) >= 100:
            return f"{number:,.1f}"
        return f"{number:.3g}" if 0 < abs(number) < 0.001 else f"{number:.4f}"
    return str(value)


def _setting(value: object) -> str:
    """A setting as one would write it."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def _markdown(text: str) -> str:
    """Plain text as Markdown that shows just that, on one line."""
    text = " ".join(text.split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*\[\]|~$#])", r"\\\1", text)
    # An underscore between letters means nothing, and settings are full of them.
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)
    # At the start "- ", "1. " and "---" would make a list or a rule.
    return re.sub(r"^(\d*)(?=[-+=.)]+(?:\s|$))", r"\1\\", text)


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, of plain text."""
    lines = [columns, ["---"] * len(columns), *[[_markdown(cell) for cell in row] for row in rows]]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _code_block(code: str) -> str:
    if code.startswith("```"):
        return code
    fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", code)), default=0))
    return f"{fence}\n{code}\n{fence}"


def _write(path: str | Path, text: str) -> Path:
    """Write a text file under another name first, so that a reader never sees half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # Half a character pair, as broken JSON can hold, has no bytes: shown as "?".
        temporary.write_text(text, encoding="utf-8", errors="replace", newline="\n")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
