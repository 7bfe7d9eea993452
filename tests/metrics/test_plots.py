from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from bert.errors import DataError
from bert.metrics import plots
from bert.metrics.calibrate import CalibrationTally

CHINESE = ["体育", "财经 money", "entertainment"]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved, to look into."""
    figures: list[Figure] = []
    save = Figure.savefig

    def remember(self: Figure, *arguments: Any, **options: Any) -> None:
        figures.append(self)
        save(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", remember)
    return figures


@pytest.fixture
def without_chinese_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "CJK_FONTS", ())


@pytest.fixture
def with_a_chinese_font(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A font under a well-known name that has the characters 体 and 育 only."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    pen = TTGlyphPen(None)
    for move, point in [
        (pen.moveTo, (100, 0)),
        (pen.lineTo, (900, 0)),
        (pen.lineTo, (900, 900)),
        (pen.lineTo, (100, 900)),
    ]:
        move(point)
    pen.closePath()
    square = pen.glyph()
    order = [".notdef", "ti", "yu"]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(order)
    builder.setupCharacterMap({ord("体"): "ti", ord("育"): "yu"})
    builder.setupGlyf(dict.fromkeys(order, square))
    builder.setupHorizontalMetrics(dict.fromkeys(order, (1000, 100)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": "SimHei", "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=900, sTypoDescender=-100)
    builder.setupPost()
    file = tmp_path / "simhei.ttf"
    builder.save(file)
    monkeypatch.setattr(plots, "CJK_FONTS", ("SimHei",))
    before = list(font_manager.fontManager.ttflist)
    font_manager.fontManager.ttflist[:] = [entry for entry in before if entry.name != "SimHei"]
    font_manager.fontManager.addfont(file)
    plots._has.cache_clear()
    yield "SimHei"
    font_manager.fontManager.ttflist[:] = before
    plots._has.cache_clear()


def words_in(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def is_png(path: Path) -> bool:
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        image.load()
        return image.format == "PNG" and image.info["dpi"][0] == pytest.approx(120, abs=1)


def test_importing_does_not_import_matplotlib() -> None:
    code = "import sys, bert.metrics.plots; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_curves(tmp_path: Path, drawn: list[Figure]) -> None:
    path = plots.curves(
        tmp_path / "plots" / "loss.png",
        {
            "train": ([0, 1, 2, 3, 4], [3, np.nan, 2, np.inf, 1]),
            "empty": ([], []),
            "_dev": ([2], [2.5]),
            "nothing": ([1, 2], [np.nan, np.nan]),
            "cost in $ or $": ([0, 4], [2, 1]),
        },
        title="Loss",
        x_label="step",
        y_label="loss (nats per token)",
    )
    assert is_png(path)
    (axes,) = drawn[0].axes
    names = [text.get_text().replace("\\$", "$") for text in drawn[0].legends[0].get_texts()]
    assert names == ["train", "_dev", "cost in $ or $"]
    # Points without neighbours would be invisible as a line.
    assert [line.get_markevery() for line in axes.lines] == [[0, 2, 4], [0], []]
    assert axes.get_xlabel() == "step"
    assert axes.get_ylabel() == "loss (nats per token)"


def test_curves_can_mark_a_place(tmp_path: Path, drawn: list[Figure]) -> None:
    plots.curves(
        tmp_path / "a.png",
        {"precision": ([0, 1], [0.2, 1]), "recall": ([0, 1], [1, 0])},
        title="Label 1",
        x_label="threshold",
        y_label="share",
        mark=0.375,
    )
    assert drawn[0].axes[0].lines[-1].get_xdata() == [0.375, 0.375]
    assert "threshold 0.375" in words_in(drawn[0])


def calibration_of(rows: int) -> dict[str, Any]:
    tally = CalibrationTally()
    sure = np.linspace(0.34, 0.99, rows)
    tally.add_answers(sure, np.arange(rows) % 3 > 0)
    return tally.figures()


@pytest.mark.parametrize("rows", [1, 400])
def test_reliability(tmp_path: Path, drawn: list[Figure], rows: int) -> None:
    table = calibration_of(rows)["reliability"]
    assert is_png(plots.reliability(tmp_path / "a.png", table, title="可靠性"))
    (axes,) = drawn[0].axes
    bars: Any = axes.patches
    assert sum(bar.get_height() for bar in bars) == pytest.approx(1)
    assert [bar.get_x() for bar in bars] == [row["low"] for row in table]
    shown = np.asarray(axes.lines[-1].get_ydata()).tolist()
    assert shown == [row["accuracy"]["value"] for row in table]


@pytest.mark.parametrize("rows", [1, 400])
def test_abstain(tmp_path: Path, drawn: list[Figure], rows: int) -> None:
    table = calibration_of(rows)["abstain"]
    assert is_png(plots.abstain(tmp_path / "a.png", table, title="Coverage"))
    (axes,) = drawn[0].axes
    low, high = axes.get_ylim()
    assert np.asarray(axes.lines[0].get_xdata()).tolist() == [row["coverage"] for row in table]
    for row in table:
        assert low <= row["accuracy"]["low"] <= row["accuracy"]["high"] <= high


@pytest.mark.parametrize("rows", [1, 30, 2001])
def test_scatter(tmp_path: Path, drawn: list[Figure], rows: int) -> None:
    true = np.linspace(-1, 5, rows)
    said = np.append(2 * true[:-1] + 1, np.nan) if rows > 1 else true
    assert is_png(plots.scatter(tmp_path / "a.png", true, said, title="相似度", label="score $"))
    axes = drawn[0].axes[0]
    assert axes.get_xlim() == axes.get_ylim()
    low, high = axes.get_xlim()
    assert low < min(true[0], said[0])
    assert max(true[-1], np.nanmax(said)) < high
    assert axes.get_xlabel() == r"true score \$"
    points = len(axes.lines) == 2
    assert points == (rows <= 2001)


def test_many_points_are_counted(tmp_path: Path, drawn: list[Figure]) -> None:
    values = np.repeat([0.0, 1.0], [3000, 10])
    plots.scatter(tmp_path / "a.png", values, values, title="", label="score")
    cloud = drawn[0].axes[0].collections[0]
    assert sorted(np.asarray(cloud.get_array()).tolist()) == [10, 3000]


def test_a_scatter_of_two_lengths_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 true numbers, but 1"):
        plots.scatter(tmp_path / "a.png", [1, 2], [1], title="", label="")


def test_curves_of_two_lengths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'dev' has 2 x values, but 1 y"):
        plots.curves(tmp_path / "a.png", {"dev": ([1, 2], [1])}, title="", x_label="x", y_label="y")


def test_nothing_to_draw_is_a_picture_too(tmp_path: Path, drawn: list[Figure]) -> None:
    plots.curves(tmp_path / "a.png", {}, title="Loss", x_label="step", y_label="loss")
    plots.histogram(tmp_path / "b.png", [], title="Lengths", x_label="tokens", mark=128)
    plots.intervals(tmp_path / "c.png", {}, title="F1", x_label="F1")
    plots.reliability(tmp_path / "d.png", [], title="Reliability")
    plots.abstain(tmp_path / "e.png", [], title="Coverage")
    plots.scatter(tmp_path / "f.png", [np.nan], [1], title="Scores", label="score")
    assert len(drawn) == 6
    for figure in drawn:
        assert "no values" in words_in(figure)


def test_confusion_writes_counts_and_colours_shares(tmp_path: Path, drawn: list[Figure]) -> None:
    matrix = [[3, 1, 0], [0, 1_234_567, 0], [0, 0, 0]]
    path = plots.confusion(tmp_path / "a.png", matrix, ["a", "b", "none"], title="Confusion")
    assert is_png(path)
    axes = drawn[0].axes[0]
    assert [text.get_text() for text in axes.texts] == ["3", "1", "0", "0", "1235k", *"0000"]
    shares = np.asarray(axes.images[0].get_array())
    assert shares == pytest.approx(np.array([[0.75, 0.25, 0], [0, 1, 0], [0, 0, 0]]))


def test_confusion_of_many_labels_has_no_numbers_but_names(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    names = [f"quite_a_long_name_of_a_label_{number}" for number in range(21)]
    plots.confusion(tmp_path / "a.png", np.eye(21, dtype=int), names, title="Confusion")
    axes = drawn[0].axes[0]
    assert not axes.texts
    shown = [text.get_text() for text in axes.get_yticklabels()]
    assert len(set(shown)) == 21
    assert max(map(len, shown)) <= plots.LONGEST_NAME


def test_confusion_of_very_many_labels_stays_small(tmp_path: Path, drawn: list[Figure]) -> None:
    names = [str(number) for number in range(300)]
    plots.confusion(tmp_path / "a.png", np.eye(300, dtype=int), names, title="Confusion")
    assert drawn[0].get_figwidth() < 20
    assert len(drawn[0].axes[0].get_yticklabels()) <= 110


def test_confusion_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 names"):
        plots.confusion(tmp_path / "a.png", [[1]], ["a", "b"], title="")


def test_histogram_counts_every_value_and_marks_the_limit(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    lengths = [*range(1, 101), 50, 20_000]
    path = plots.histogram(
        tmp_path / "a.png", lengths, title="Lengths", x_label="length (tokens)", mark=64
    )
    assert is_png(path)
    (axes,) = drawn[0].axes
    assert sum(patch.get_height() for patch in axes.patches) == len(lengths)  # type: ignore[attr-defined]
    assert axes.lines[0].get_xdata() == [64, 64]
    share = sum(length > 64 for length in lengths) / len(lengths)
    assert f"limit 64: {share:.1%} above" in words_in(drawn[0])


def test_histogram_says_what_the_last_bar_holds(tmp_path: Path, drawn: list[Figure]) -> None:
    lengths = [*([10] * 500), *range(20, 40), 90_000]
    plots.histogram(tmp_path / "a.png", lengths, title="Lengths", x_label="tokens")
    (axes,) = drawn[0].axes
    assert axes.get_xlim()[1] < 100
    assert "the last bar includes 1 beyond it, up to 90,000" in axes.get_xlabel()
    assert sum(patch.get_height() for patch in axes.patches) == len(lengths)  # type: ignore[attr-defined]


@given(
    st.lists(
        st.one_of(st.integers(0, 5000), st.floats(-1e9, 1e9), st.just(float("nan"))), max_size=30
    )
)
@settings(max_examples=60, deadline=None)
def test_histogram_edges_hold_every_value(values: list[float]) -> None:
    numbers = np.array([value for value in values if np.isfinite(value)], dtype=float)
    if numbers.size:
        edges = plots._edges(numbers, float(numbers.max()))
        assert len(edges) <= 53
        assert (np.diff(edges) > 0).all()
        assert edges[0] <= numbers.min()
        assert numbers.max() <= edges[-1]


def test_intervals(tmp_path: Path, drawn: list[Figure]) -> None:
    path = plots.intervals(
        tmp_path / "a.png",
        {"good": (0.9, 0.85, 0.93), "unknown": (0.0, 0.0, 1.0), "nan": (0.5, np.nan, np.nan)},
        title="F1 per label",
        x_label="F1",
    )
    assert is_png(path)
    (axes,) = drawn[0].axes
    assert np.asarray(axes.lines[0].get_xdata()).tolist() == [0.9, 0.0, 0.5]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["good", "unknown", "nan"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first name on top


def test_intervals_of_very_many_labels_stay_small(tmp_path: Path, drawn: list[Figure]) -> None:
    values = {str(number): (0.5, 0.4, 0.6) for number in range(1000)}
    plots.intervals(tmp_path / "a.png", values, title="F1", x_label="F1")
    assert drawn[0].get_figheight() <= plots.TALLEST


@pytest.mark.usefixtures("without_chinese_fonts")
def test_without_a_chinese_font_numbers_stand_for_names(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    plots.confusion(tmp_path / "a.png", np.eye(3, dtype=int), CHINESE, title="新闻 news")
    plots.curves(
        tmp_path / "b.png", {"训练": ([1, 2], [1, 2])}, title="t", x_label="步", y_label="y"
    )
    plots.intervals(tmp_path / "c.png", {"验证": (0.5, 0.4, 0.6)}, title="t", x_label="x")
    shown = [text.get_text() for text in drawn[0].axes[0].get_yticklabels()]
    assert shown == ["#0", "#1 money", "entertainment"]
    assert drawn[0].get_suptitle() == "□□ news"
    assert "#0" in words_in(drawn[1])
    assert "#0" in words_in(drawn[2])


def test_with_a_chinese_font_names_are_drawn(
    tmp_path: Path, drawn: list[Figure], with_a_chinese_font: str
) -> None:
    plots.confusion(tmp_path / "a.png", np.eye(3, dtype=int), CHINESE, title="体育")
    labels = drawn[0].axes[0].get_yticklabels()
    assert [text.get_text() for text in labels] == ["体育", "#1 money", "entertainment"]
    assert labels[0].get_fontfamily() == ["DejaVu Sans", with_a_chinese_font]
    assert drawn[0].get_suptitle() == "体育"


@given(st.lists(st.text(max_size=40), min_size=1, max_size=3, unique=True))
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_name_can_be_drawn(tmp_path: Path, names: list[str]) -> None:
    # Formulas, control characters, half pairs: nothing may fail or warn.
    values = dict.fromkeys(names, (0.5, 0.4, 0.6))
    assert plots.intervals(
        tmp_path / "a.png", values, title="".join(names), x_label=names[0]
    ).exists()


@pytest.mark.parametrize("name", [r"$\frac{", "$x$", r"\$", "_hidden", "a\nb", "\r", "", "\ud800"])
def test_hostile_names_can_be_drawn(tmp_path: Path, drawn: list[Figure], name: str) -> None:
    plots.curves(
        tmp_path / "a.png", {name: ([1, 2], [1, 2])}, title=name, x_label=name, y_label=name
    )
    text = drawn[0].legends[0].get_texts()[0].get_text()
    assert text
    assert text == plots._Words(name).label(name, 0)


@given(st.text(st.sampled_from("abc体育新闻_-"), max_size=60))
def test_long_names_keep_both_ends(name: str) -> None:
    short = plots._shorten(name)
    assert sum(map(plots._width, short)) <= plots.LONGEST_NAME
    if short != name:
        head, tail = short.split("…")
        assert name.startswith(head)
        assert name.endswith(tail)
        assert head
        assert tail
