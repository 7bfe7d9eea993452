"""Pictures of scores and data, one PNG file each.

Drawn with matplotlib's ``Figure`` objects: no windows, no global state, safe in threads.
The colours are those of Okabe and Ito, told apart by colour-blind readers too.

Names are shown as they are, never read as formulas. A character that no installed font
has is replaced by the number of its label, "#3" (counted from 0, as in the model's
config); the HTML report has the names.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bert.errors import DataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

DOTS_PER_INCH = 120
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", ":", "-.")
GREY = "#595959"
LONGEST_NAME = 24  # columns; a Chinese character takes two
NUMBERED_LABELS = 20
TALLEST = 30.0  # inches

# matplotlib brings DejaVu Sans along; the others cover Chinese, Japanese and Korean.
MAIN_FONT = "DejaVu Sans"
CJK_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans SC",
    "Noto Sans CJK JP",
    "Source Han Sans SC",
    "Source Han Sans CN",
    "PingFang SC",
    "Hiragino Sans GB",
    "Heiti SC",
    "STHeiti",
    "Microsoft YaHei",
    "SimHei",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
    "Arial Unicode MS",
    "Noto Sans TC",
    "Microsoft JhengHei",
    "Noto Sans JP",
    "Yu Gothic",
    "Hiragino Sans",
    "Noto Sans KR",
    "Malgun Gothic",
    "Apple SD Gothic Neo",
    "NanumGothic",
)


def curves(
    path: str | Path,
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    title: str,
    x_label: str,
    y_label: str,
    mark: float | None = None,
) -> Path:
    """Lines over a common axis, such as losses over steps or precision over thresholds.

    Args:
        path: the PNG file to write.
        series: name to (x, y), equally long. Empty series are left out; a y that is not
            finite leaves a gap; a point without neighbours is drawn as a dot.
        title, x_label, y_label: with units.
        mark: an x, such as the threshold chosen, drawn as an upright line.

    Returns:
        The path.

    Raises:
        DataError: an x and y of different lengths.
    """
    figure, axes = _figure(7.5, 4.5)
    words = _Words(title, x_label, y_label, *series)
    lines: list[Line2D] = []
    names = []
    for number, (name, (xs, ys)) in enumerate(series.items()):
        x, y = np.asarray(xs, dtype=float), np.asarray(ys, dtype=float)
        if x.shape != y.shape:
            raise DataError(
                f"The curve {name!r} has {x.size} x values, but {y.size} y values.",
                fix="Give one y for each x.",
            )
        drawn = np.isfinite(x) & np.isfinite(y)
        if not drawn.any():
            continue
        neighbour = np.convolve(drawn, [1, 0, 1])[1:-1] > 0
        alone = np.flatnonzero(drawn & ~neighbour).tolist()
        lines += axes.plot(
            np.where(drawn, x, np.nan),
            np.where(drawn, y, np.nan),
            color=COLOURS[len(lines) % len(COLOURS)],
            linestyle=STYLES[len(lines) // len(COLOURS) % len(STYLES)],
            linewidth=1.8,
            marker="o" if alone else None,
            markersize=5,
            markevery=alone,
        )
        names.append(words.label(name, number))
    axes.ticklabel_format(useOffset=False, scilimits=(-4, 7))
    axes.grid(alpha=0.3)
    if lines and mark is not None:
        lines.append(axes.axvline(mark, color=GREY, linewidth=1.5, linestyle="--"))
        names.append(words.text(f"{x_label} {mark:.4g}"))
    if lines:
        # Below the picture it can hide no line. The names are set afterwards, because a
        # legend leaves out those that begin with an underscore.
        legend = figure.legend(
            lines,
            [str(number) for number in range(len(lines))],
            loc="outside lower center",
            ncols=min(4, len(lines)),
            frameon=False,
        )
        for text, name in zip(legend.get_texts(), names, strict=True):
            text.set_text(name)
    else:
        _nothing(axes)
    return _finish(figure, axes, words, path, title, x_label, y_label)


def confusion(path: str | Path, matrix: ArrayLike, names: Sequence[str], *, title: str) -> Path:
    """A confusion matrix: colour is the share of the true label's rows, numbers are rows.

    Args:
        path: the PNG file to write.
        matrix: counts [L, L], rows true, columns predicted.
        names: the L names of the labels. Above 20 labels no numbers are written.
        title: of the picture.

    Returns:
        The path.

    Raises:
        DataError: a matrix that does not fit the names.
    """
    counts = np.asarray(matrix, dtype=np.int64)
    if counts.shape != (len(names), len(names)) or not names:
        raise DataError(
            f"The confusion matrix has the shape {list(counts.shape)}, "
            f"but there are {len(names)} names.",
            fix="Give one name for each row and column.",
        )
    labels = len(names)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    words = _Words(title, *names)
    shown = [words.label(name, number) for number, name in enumerate(names)]
    longest = max(sum(map(_width, name)) for name in shown)
    numbered = labels <= NUMBERED_LABELS
    flat = longest <= 6 and labels <= 10  # short names need not lean
    side = min(14.0, max(2.4, (0.55 if numbered else 0.22) * labels))
    figure, axes = _figure(
        side + 2.2 + 0.085 * longest, side + (1.2 if flat else 1.0 + 0.06 * longest), "compressed"
    )
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if numbered:
        for row in range(labels):
            for column in range(labels):
                axes.text(
                    column,
                    row,
                    _short_count(int(counts[row, column])),
                    ha="center",
                    va="center",
                    fontsize=9,
                    color="white" if shares[row, column] > 0.5 else "black",
                )
    ticks = range(0, labels, math.ceil(labels / 110))
    size = 9 if numbered else 7
    axes.set_yticks(ticks, labels=shown[:: ticks.step], fontsize=size)
    axes.set_xticks(ticks, labels=shown[:: ticks.step], fontsize=size)
    if not flat:
        for text in axes.get_xticklabels():
            text.set(rotation=45, ha="right", rotation_mode="anchor")
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=30, format="{x:.0%}")
    bar.set_label("share of the true label's rows")
    return _finish(figure, axes, words, path, title, "predicted label", "true label")


def histogram(
    path: str | Path, values: ArrayLike, *, title: str, x_label: str, mark: float | None = None
) -> Path:
    """How often each value occurs, such as lengths of rows in tokens.

    A long tail does not squeeze the rest: the last bar holds everything far beyond the
    99.5th percentile, and says so.

    Args:
        path: the PNG file to write.
        values: numbers [n]; those not finite are left out.
        title, x_label: with units.
        mark: a limit, drawn as an upright line with the share of values above it.

    Returns:
        The path.
    """
    from matplotlib.ticker import MaxNLocator

    numbers = np.asarray(values, dtype=float).ravel()
    numbers = numbers[np.isfinite(numbers)]
    figure, axes = _figure(7.5, 4.2)
    words = _Words(title, x_label)
    if numbers.size:
        end = max(1.25 * float(np.quantile(numbers, 0.995)), 1.1 * (mark or 0.0))
        end = end if 0 < end < numbers.max() else float(numbers.max())
        edges = _edges(numbers, end)
        axes.hist(
            np.minimum(numbers, edges[-1]),
            bins=edges.tolist(),
            color=COLOURS[0],
            edgecolor="white",
            linewidth=0.5,
        )
        beyond = int((numbers > edges[-1]).sum())
        if beyond:
            x_label += f"\n(the last bar includes {beyond:,} beyond it, up to {numbers.max():,g})"
    else:
        _nothing(axes)
    if mark is not None:
        above = f": {float((numbers > mark).mean()):.1%} above" if numbers.size else ""
        line = axes.axvline(mark, color=COLOURS[1], linewidth=2, linestyle="--")
        figure.legend(
            [line], [f"limit {mark:,g}{above}"], loc="outside lower center", frameon=False
        )
    axes.ticklabel_format(useOffset=False, scilimits=(-4, 7))
    axes.yaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
    if (numbers == np.round(numbers)).all():
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    return _finish(figure, axes, words, path, title, x_label, "count")


def f1_scores(path: str | Path, scores: Mapping[str, Mapping[str, Any]], kind: str) -> Path:
    """F1 with its interval for each label, or for each type of what is found.

    Args:
        path: the PNG file to write.
        scores: name to figures, among them ``f1`` with value, low and high; a span without a
            type has no name.
        kind: what the names are.

    Returns:
        The path.
    """
    values = {
        name or "entity": (one["f1"]["value"], one["f1"]["low"], one["f1"]["high"])
        for name, one in scores.items()
    }
    return intervals(path, values, title=f"F1 by {kind}", x_label="F1")


def intervals(
    path: str | Path,
    values: Mapping[str, tuple[float, float, float]],
    *,
    title: str,
    x_label: str,
) -> Path:
    """A dot for each score with a bar for its 95% interval, such as F1 per label.

    Args:
        path: the PNG file to write.
        values: name to (value, low, high), drawn from the top down.
        title, x_label: with units.

    Returns:
        The path.
    """
    count = len(values)
    figure, axes = _figure(7.5, min(TALLEST, 1.5 + 0.3 * max(2, count)))
    words = _Words(title, x_label, *values)
    places = np.arange(count)
    if count:
        table = np.array(list(values.values()), dtype=float)  # [count, 3]
        axes.hlines(places, table[:, 1], table[:, 2], color=COLOURS[0], linewidth=2, alpha=0.6)
        axes.plot(table[:, 0], places, "o", color=COLOURS[0], markersize=6)
        finite = table[np.isfinite(table)]
        if finite.size and finite.min() >= 0 and finite.max() <= 1:
            axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(count - 0.4, -0.6)
        ticks = range(0, count, math.ceil(count / 96))
        names = list(values)
        axes.set_yticks(ticks, labels=[words.label(names[number], number) for number in ticks])
    else:
        _nothing(axes)
    axes.ticklabel_format(axis="x", useOffset=False, scilimits=(-4, 7))
    axes.grid(axis="x", alpha=0.3)
    axes.tick_params(axis="y", length=0)
    return _finish(figure, axes, words, path, title, f"{x_label}, with 95% interval", "")


def reliability(path: str | Path, table: Sequence[Mapping[str, Any]], *, title: str) -> Path:
    """How often answers are right against how sure the model was; on the diagonal is good.

    Grey bars are the share of all rows with that confidence.

    Args:
        path: the PNG file to write.
        table: ``reliability`` of ``CalibrationTally.figures()``.
        title: of the picture.

    Returns:
        The path.
    """
    figure, axes = _figure(5.6, 5.6)
    words = _Words(title)
    if table:
        rows = sum(row["rows"] for row in table)
        shares = [row["rows"] / rows for row in table]
        widths = [row["high"] - row["low"] for row in table]
        bars: Any = axes.bar(
            [row["low"] for row in table], shares, widths, align="edge", color="#D0D0D0", ec="white"
        )
        (perfect,) = axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1.2)
        sure = [row["confidence"] for row in table]
        low, value, high = (
            [row["accuracy"][name] for row in table] for name in ("low", "value", "high")
        )
        axes.vlines(sure, low, high, color=COLOURS[0], linewidth=2, alpha=0.6)
        (dots,) = axes.plot(sure, value, "o-", color=COLOURS[0], linewidth=1.8)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        figure.legend(
            [dots, perfect, bars],
            ["right, with 95% interval", "perfect", "share of rows"],
            loc="outside lower center",
            ncols=3,
            frameon=False,
        )
    else:
        _nothing(axes)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    return _finish(figure, axes, words, path, title, "confidence", "share right")


def abstain(path: str | Path, table: Sequence[Mapping[str, Any]], *, title: str) -> Path:
    """Accuracy where the model answers only the rows that it is surest of.

    Args:
        path: the PNG file to write.
        table: ``abstain`` of ``CalibrationTally.figures()``.
        title: of the picture.

    Returns:
        The path.
    """
    figure, axes = _figure(6.5, 4.5)
    words = _Words(title)
    covered = [row["coverage"] for row in table]
    low, value, high = (
        [row["accuracy"][name] for row in table] for name in ("low", "value", "high")
    )
    if table:
        band = axes.fill_between(covered, low, high, color=COLOURS[0], alpha=0.2, linewidth=0)
        (line,) = axes.plot(covered, value, "o-", color=COLOURS[0], linewidth=1.8, markersize=4)
        axes.set_xlim(0, 1.02)
        axes.set_ylim(min(low) - 0.03 * (1 - min(low)), 1 + 0.03 * (1 - min(low)))
        figure.legend(
            [line, band],
            ["accuracy", "95% interval"],
            loc="outside lower center",
            ncols=2,
            frameon=False,
        )
    else:
        _nothing(axes)
    axes.grid(alpha=0.3)
    return _finish(
        figure, axes, words, path, title, "share of rows answered, the surest first", "accuracy"
    )


def scatter(
    path: str | Path, truth: ArrayLike, predicted: ArrayLike, *, title: str, label: str
) -> Path:
    """Predicted against true numbers; on the diagonal is right.

    Above 2,000 rows colour tells how many lie in one place.

    Args:
        path: the PNG file to write.
        truth, predicted: numbers [n]; rows that are not finite are left out.
        title: of the picture.
        label: what the numbers are, with units.

    Returns:
        The path.

    Raises:
        DataError: lengths that differ.
    """
    true, said = np.asarray(truth, dtype=float).ravel(), np.asarray(predicted, dtype=float).ravel()
    if true.size != said.size:
        raise DataError(
            f"{true.size} true numbers, but {said.size} predicted ones.",
            fix="Give both for the same rows.",
        )
    finite = np.isfinite(true) & np.isfinite(said)
    true, said = true[finite], said[finite]
    figure, axes = _figure(5.8, 5.4)
    words = _Words(title, label)
    if true.size:
        low, high = min(true.min(), said.min()), max(true.max(), said.max())
        margin = 0.03 * (high - low) or 0.5
        ends = (low - margin, high + margin)
        axes.plot(ends, ends, color=GREY, linestyle="--", linewidth=1.2)
        if true.size > 2000:
            cloud = axes.hexbin(
                true, said, gridsize=50, bins="log", cmap="Blues", mincnt=1, extent=(*ends, *ends)
            )
            figure.colorbar(cloud, ax=axes, shrink=0.8, aspect=30).set_label("rows")
        else:
            alpha = 0.35 if true.size > 200 else 0.7
            axes.plot(true, said, "o", color=COLOURS[0], alpha=alpha, markersize=5, mew=0)
        axes.set(xlim=ends, ylim=ends, aspect="equal")
        axes.ticklabel_format(useOffset=False, scilimits=(-4, 7))
    else:
        _nothing(axes)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    return _finish(figure, axes, words, path, title, f"true {label}", f"predicted {label}")


class _Words:
    """The texts of one picture, and the fonts that have their characters."""

    def __init__(self, *texts: str) -> None:
        wanted = set("".join(texts))
        self.fonts = [MAIN_FONT]
        wanted -= {character for character in wanted if _has(MAIN_FONT, character)}
        if wanted:
            from matplotlib.font_manager import fontManager

            installed = {entry.name for entry in fontManager.ttflist}
            for font in CJK_FONTS:
                if font not in installed:
                    continue
                found = {character for character in wanted if _has(font, character)}
                if found:
                    self.fonts.append(font)
                    wanted -= found
        self.missing = wanted

    def label(self, name: str, number: int) -> str:
        """A label's name as it can be drawn, shortened; ``#number`` for what cannot be."""
        name = " ".join(name.split())
        kept = "".join(character for character in name if character not in self.missing)
        if kept != name or not name:
            name = f"#{number}"
            if any(character.isalnum() for character in kept):
                name += f" {kept.strip()}"
        return _literal(_shorten(name))

    def text(self, text: str) -> str:
        """A title as it can be drawn, in its own lines."""
        text = "\n".join(" ".join(line.split()) for line in text.split("\n"))
        return _literal("".join("□" if letter in self.missing else letter for letter in text))


@cache
def _has(font: str, character: str) -> bool:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return character.isspace() or bool(
        get_font(findfont(FontProperties(family=font))).get_char_index(ord(character))
    )


def _literal(text: str) -> str:
    """Text that matplotlib does not take for a formula."""
    return text.replace("$", r"\$")


def _shorten(name: str) -> str:
    """Cut the middle out of a long name: labels often differ at their ends only."""
    if sum(map(_width, name)) <= LONGEST_NAME:
        return name
    head, tail = "", ""
    while sum(map(_width, head + tail)) < LONGEST_NAME - 2:
        if len(head) <= len(tail):
            head += name[len(head)]
        else:
            tail = name[-len(tail) - 1] + tail
    return f"{head}…{tail}"


def _width(character: str) -> int:
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _short_count(count: int) -> str:
    if count < 100_000:
        return str(count)
    return f"{count / 1000:.0f}k" if count < 10_000_000 else f"{count / 1_000_000:.0f}M"


def _edges(numbers: NDArray[np.float64], end: float) -> NDArray[np.float64]:
    """Edges of about 50 bars; bars of whole numbers stand around whole numbers."""
    start = float(numbers.min())
    if not (numbers == np.round(numbers)).all():
        return np.linspace(start, end, 51) if end > start else np.array([start - 0.5, start + 0.5])
    width = max(1, math.ceil((end - start + 1) / 50))
    bars = math.ceil((math.floor(end) - start + 1) / width)
    return np.asarray(start - 0.5 + width * np.arange(max(1, bars) + 1), dtype=float)


def _figure(
    width: float, height: float, layout: Literal["constrained", "compressed"] = "constrained"
) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout=layout, facecolor="white")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _nothing(axes: Axes) -> None:
    axes.text(0.5, 0.5, "no values", transform=axes.transAxes, ha="center", color=GREY)
    axes.set_xticks([])
    axes.set_yticks([])


def _finish(
    figure: Figure,
    axes: Axes,
    words: _Words,
    path: str | Path,
    title: str,
    x_label: str,
    y_label: str,
) -> Path:
    from matplotlib.text import Text

    # Over the whole picture, not the axes: long names on the left leave the axes narrow.
    figure.suptitle(words.text(title), fontsize=12)
    axes.set_xlabel(words.text(x_label))
    axes.set_ylabel(words.text(y_label))
    found: list[Any] = figure.findobj(Text)
    for text in found:
        text.set_fontfamily(words.fonts)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
    return path
