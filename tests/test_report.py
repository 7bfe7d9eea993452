from __future__ import annotations

import base64
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from bert.errors import DataError
from bert.report import Card, Report, write_card

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)",
    "</style><script>alert(1)</script>",
    "<!--",
    "]]>",
    "&lt;b&gt;",
]
ALLOWED = {
    *("html", "head", "meta", "title", "style", "body", "header", "main", "h1", "h2", "p"),
    *(
        "div",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "span",
        "br",
        "bdi",
        "mark",
        "figure",
        "img",
    ),
    *("figcaption", "blockquote"),
}
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)


class Page(HTMLParser):
    """What a browser would see: the tags, their attributes and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in {"meta", "img", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


def report_of(text: str, picture: Path) -> str:
    """A report with the same text in every place that takes text."""
    report = Report(text, text)
    report.heading(text)
    report.paragraph(text)
    report.table([text, "n"], [(text, 1), (None, 2)])
    report.picture(picture, text)
    report.confusion([[3, 1], [0, 2]], [text, "other"])
    report.confusion([[1] * 31] * 31, [f"{text} {number}" for number in range(31)])
    marks = [(0, 1, "truth"), (0, len(text), "answer")]
    report.mistakes([{"truth": text, "answer": text, "sure": 0.75, "text": text, "marks": marks}])
    report.mistakes([{"truth": text, "answer": text, "sure": None, "text": text, "marks": []}])
    return report.html()


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "a.png"
    path.write_bytes(PIXEL)
    return path


@pytest.mark.parametrize("text", HOSTILE)
def test_text_stays_text(text: str, picture: Path) -> None:
    check_is_harmless(text, report_of(text, picture))


@given(text=st.text(st.sampled_from("<>\"'&/=!-ab;#体 \n")))
@settings(deadline=None, max_examples=100)
def test_any_text_stays_text(text: str, picture: Path) -> None:
    check_is_harmless(text, report_of(text, picture))


def check_is_harmless(text: str, html: str) -> None:
    page = Page(html)
    assert page.open == []
    assert set(page.tags) <= ALLOWED
    for tag, name, value in page.attributes:
        assert not name.startswith("on")
        if name == "src":
            assert value is not None
            assert value.startswith("data:image/png;base64,")
        assert name in {
            *("lang", "charset", "http-equiv", "content", "name", "scope", "class", "src", "alt"),
            *("style", "dir", "tabindex"),
        }, (tag, name)
    # Title and heading, subtitle, section, paragraph, two tables, caption, matrix, texts.
    assert page.text.count(text) >= 10
    assert ("img", "alt", text) in page.attributes


def test_the_page_needs_nothing_else(picture: Path) -> None:
    html = report_of("plain", picture)
    assert "http://" not in html
    assert "https://" not in html
    assert "url(" not in html
    assert "@import" not in html
    assert "default-src 'none'" in html
    assert base64.b64encode(PIXEL).decode() in html
    assert "prefers-color-scheme: dark" in html
    assert "width=device-width" in html


def test_chinese_is_written_as_it_is(tmp_path: Path) -> None:
    report = Report("新闻分类")
    report.paragraph("模型在测试集上的表现。")
    written = report.write(tmp_path / "new" / "report.html").read_bytes().decode("utf-8")
    assert "<h1>新闻分类</h1>" in written
    assert "模型在测试集上的表现。" in written
    assert '<meta charset="utf-8">' in written


def test_half_a_character_pair_can_be_written(tmp_path: Path) -> None:
    report = Report("a\ud800b")
    assert b"<h1>a?b</h1>" in report.write(tmp_path / "report.html").read_bytes()


def test_cells_read_well_and_numbers_stand_right() -> None:
    report = Report("t")
    report.table(
        ["name", "value", "mixed", "none"],
        [
            ("rows", 12345, "x", None),
            ("rate", 5e-5, 1, None),
            ("score", 0.98765, None, None),
            ("time", 1234.56, True, None),
            ("lost", float("nan"), 2, None),
        ],
    )
    html = report.html()
    numbers = re.findall(r'<td class="number">([^<]*)</td>', html)
    assert numbers == ["12,345", "5e-05", "0.9877", "1,234.6", "–"]
    assert "<td>yes</td>" in html


def test_a_row_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(DataError, match="row 2"):
        Report("t").table(["a", "b"], [(1, 2), (1,)])


def test_a_missing_picture_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no\.png"):
        Report("t").picture(tmp_path / "no.png", "caption")
    (tmp_path / "text.png").write_text("<svg onload=alert(1)>")
    with pytest.raises(DataError, match="no PNG"):
        Report("t").picture(tmp_path / "text.png", "caption")


def test_confusion_shades_shares_and_marks_the_diagonal() -> None:
    report = Report("t")
    report.confusion([[3, 1], [0, 0]], ["a", "b"])
    html = report.html()
    cells = re.findall(
        r'<td class="(\w+)" style="background:rgba\(0,114,178,([\d.]+)\)">(\d+)', html
    )
    assert cells == [
        ("right", "0.450", "3"),
        ("other", "0.150", "1"),
        ("other", "0.000", "0"),
        ("right", "0.000", "0"),
    ]


def test_confusion_of_many_labels_lists_the_worst_pairs() -> None:
    matrix = [[10 if row == column else 0 for column in range(50)] for row in range(50)]
    matrix[4][7] = 10
    matrix[9][2] = 3
    report = Report("t")
    report.confusion(matrix, [f"label {number}" for number in range(50)])
    rows = re.findall(
        r"<tr><td>(.*?)</td><td>(.*?)</td>.*?>(\d+)</td>.*?>([\d.]+)</td>", report.html()
    )
    assert rows == [
        ("label 4", "label 7", "10", "0.5000"),
        ("label 9", "label 2", "3", "0.2308"),
    ]


def test_confusion_that_does_not_fit_is_refused() -> None:
    with pytest.raises(DataError, match="2 names"):
        Report("t").confusion([[1]], ["a", "b"])


def test_long_texts_are_cut_and_said_to_be() -> None:
    report = Report("t")
    row = {"truth": "a", "answer": "b", "sure": 0.999, "text": "x" * 5000, "marks": []}
    report.mistakes([row])
    html = report.html()
    assert "x" * 2000 in html
    assert "x" * 2001 not in html
    assert "3,000 characters more" in html
    assert "99.9%" in html


def test_marks_stand_where_they_are_and_a_long_text_is_shown_around_them() -> None:
    report = Report("t")
    text = "Ada met <Bo> " + "x" * 4000 + " in Oslo" + "y" * 3000
    oslo = text.index("Oslo")
    marks = [(oslo, oslo + 4, "truth"), (oslo + 2, oslo + 6, "answer")]
    report.mistakes([{"truth": "a", "answer": "b", "sure": None, "text": text, "marks": marks}])
    html = report.html()
    assert '<mark class="truth">Os</mark><mark class="answer truth">lo</mark>' in html
    assert '<mark class="answer">yy</mark>' in html
    assert "Ada" not in html
    report = Report("t")
    marks = [(0, 3, "truth"), (8, 12, "answer")]
    report.mistakes([{"truth": "", "answer": "", "sure": None, "text": text[:20], "marks": marks}])
    html = report.html()
    assert '<mark class="truth">Ada</mark> met <mark class="answer">&lt;Bo&gt;</mark>' in html


def test_writing_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    Report("old").write(path)

    def fail(self: Path, target: Path) -> Path:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        Report("new").write(path)
    assert "<h1>old</h1>" in path.read_text(encoding="utf-8")
    assert os.listdir(tmp_path) == ["report.html"]  # noqa: PTH208


FULL = Card(
    name="news_classifier",
    summary="Tells the topic of a text.\n\nMade for headlines.",
    library="transformers",
    usage='pipeline("text-classification", "runs/news/model")("今天")',
    language="no",
    license="apache-2.0",
    base_model="bert-base-chinese",
    training_data={"rows": "12,000", "labels": "体育, 财经|a"},
    settings={"learning_rate": 5e-5, "bf16": True, "layers": [1, 2], "seed": None, "text": "标题"},
    metrics=[("macro F1", 0.9123, 0.89, 0.93), ("loss", 0.31, None, None)],
    limits=["Texts over 128 tokens are cut.", "1. <b>Chinese</b> only"],
)


def test_a_full_card_tells_everything(tmp_path: Path) -> None:
    text = write_card(tmp_path / "README.md", FULL).read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "language": "no",
        "license": "apache-2.0",
        "library_name": "transformers",
        "base_model": "bert-base-chinese",
    }
    page = Page(MarkdownIt("commonmark").enable("table").render(body))
    assert page.tags.count("table") == 3
    assert page.tags.count("h2") == 5
    assert page.tags.count("li") == 2
    assert page.tags.count("pre") == 1
    assert "b" not in page.tags
    for told in [
        *("news_classifier", "Made for headlines.", FULL.usage, "体育, 财经|a", "5e-05", "true"),
        *("[1, 2]", "标题", "0.9123", "0.8900 to 0.9300", "0.3100", "1. <b>Chinese</b> only"),
    ]:
        assert told in page.text
    assert "seed" not in page.text
    assert "None" not in page.text
    assert "null" not in page.text


def test_what_is_not_known_is_left_out(tmp_path: Path) -> None:
    card = Card(
        name="m",
        summary="A model.",
        library="",
        usage="",
        training_data={"files": ""},
        settings={"seed": None},
        metrics=[("loss", float("nan"), None, None)],
        limits=[""],
    )
    assert write_card(tmp_path / "README.md", card).read_text() == "# m\n\nA model.\n"


def test_scores_without_intervals_have_no_column_for_them(tmp_path: Path) -> None:
    card = Card("m", "A model.", "transformers", "x", metrics=[("loss", 1.5, None, None)])
    assert "interval" not in write_card(tmp_path / "README.md", card).read_text()


@pytest.mark.parametrize(
    ("usage", "block"),
    [
        ("a = 1\n", "```\na = 1\n```"),
        ("print('```')", "````\nprint('```')\n````"),
        ("```python\na = 1\n```", "```python\na = 1\n```"),
    ],
)
def test_usage_becomes_a_code_block(tmp_path: Path, usage: str, block: str) -> None:
    card = Card("m", "A model.", "transformers", usage)
    text = write_card(tmp_path / "README.md", card).read_text()
    assert text.endswith(f"## How to call it\n\n{block}\n")


@given(st.text(st.sampled_from("ab1 .)_-+=*`#<>&|[]!~$\\/:()体\n"), min_size=1))
@settings(deadline=None)
def test_plain_text_shows_in_markdown_as_it_is(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    plain = " ".join(text.split())
    card = Card("m", "s", "", "", training_data={"fact": text}, limits=[text])
    path = write_card(tmp_path_factory.getbasetemp() / "README.md", card)
    tokens = (
        MarkdownIt("commonmark")
        .enable(["table", "strikethrough"])
        .parse(path.read_text(encoding="utf-8"))
    )
    shown = [
        "".join(child.content for child in token.children or [])
        for token in tokens
        if token.type == "inline"
    ]
    kinds = {
        child.type for token in tokens if token.type == "inline" for child in token.children or []
    }
    assert kinds <= {"text", "text_special"}
    expected = ["m", "s", "Training data", "fact", "value", "fact", plain]
    assert shown == [*expected, *(["Limits", plain] if plain else [])]
