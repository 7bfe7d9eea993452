"""Questions and answers from every form of file, and what is said of files that are wrong."""

from __future__ import annotations

import gzip
import json
import lzma
import random
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert.data import questions
from bert.data.questions import NEAR, question_columns, read_questions
from bert.data.rows import Example, training_examples
from bert.errors import DataError

CONTEXT = "The old bird sings near the river. The small bird sleeps in the tree. 老鸟在河边唱歌。"


def squad(*groups: tuple[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """SQuAD's JSON: one article for each context with its questions."""
    return {
        "version": "v2.0",
        "data": [
            {"title": f"Title_{i}", "paragraphs": [{"context": context, "qas": asked}]}
            for i, (context, asked) in enumerate(groups)
        ],
    }


QUESTIONS: list[dict[str, Any]] = [
    {
        "id": "q1",
        "question": "Where does the old bird sing?",
        "answers": [
            {"text": "near the river", "answer_start": 19},
            {"text": "the river", "answer_start": 24},
            {"text": "near the river", "answer_start": 19},
        ],
        "is_impossible": False,
    },
    {
        "id": "q2",
        "question": "Who reads?",
        "answers": [],
        "plausible_answers": [{"text": "bird", "answer_start": 8}],
        "is_impossible": True,
    },
    {"id": 3, "question": "老鸟在哪里唱歌？", "answers": [{"text": "河边", "answer_start": 73}]},
    {"question": "Where does the small bird sleep?"},
]
TRUTHS: list[Any] = [((19, "near the river"), (24, "the river")), (), ((73, "河边"),), None]


def read(path: Path, *text: str, label: str | None = None, labelled: bool = True) -> list[Example]:
    return list(read_questions(path, text, label, labelled=labelled))


def write(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return path


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")
    return path


def test_squad(tmp_path: Path) -> None:
    other = [{"id": "q5", "question": "What?", "answers": [{"text": "b", "answer_start": 0}]}]
    path = write(tmp_path / "dev.json", squad((CONTEXT, QUESTIONS), ("b", other)))
    found = read(path)
    assert [example.truth for example in found] == [*TRUTHS, ((0, "b"),)]
    assert found[0].texts == ("Where does the old bird sing?", CONTEXT)
    assert [example.where for example in found] == [
        f"{path}:{name}" for name in ("q1", "q2", "3", "question 4", "q5")
    ]
    assert found[0].columns == {"title": "Title_0", "id": "q1"}
    assert question_columns(path, ["any"]) == ()


def test_compressed_files_and_other_layouts_say_the_same(tmp_path: Path) -> None:
    whole = squad((CONTEXT, QUESTIONS))
    expected = read(write(tmp_path / "plain.json", whole))
    text = json.dumps(whole, indent=1).encode()
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(text))
    (tmp_path / "a.json.xz").write_bytes(lzma.compress(text))
    (tmp_path / "mark.json").write_bytes(b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n"))
    write(tmp_path / "list.json", whole["data"])
    flat = [{**asked, "context": CONTEXT, "title": "Title_0"} for asked in QUESTIONS]
    write(tmp_path / "rows.json", {"data": flat})
    for name in ("a.json.gz", "a.json.xz", "mark.json", "list.json", "rows.json"):
        found = read(tmp_path / name)
        assert [(e.texts, e.truth) for e in found] == [(e.texts, e.truth) for e in expected], name
        assert found[0].where == f"{tmp_path / name}:q1"


def test_rows_in_every_form(tmp_path: Path) -> None:
    row = {"id": "q", "question": "Where?", "context": CONTEXT}
    hub = {"text": ["near the river", "the river"], "answer_start": [19, 24]}
    spans = TRUTHS[0]
    given: list[dict[str, Any]] = [
        {"answers": hub},
        {"answers": [{"text": t, "start": s} for s, t in spans]},
        {"answers": [{"text": t, "answer_start": s} for s, t in spans]},
        {"answers": ["near the river", {"text": "the river"}]},
        {"answers": {"text": "near the river", "answer_start": 19}},
        {"answer": "near the river"},
        {"answer": "the river", "id": "another row"},
        {"answers": {"text": [], "answer_start": []}},
        {"answers": []},
        {"answer": ""},
        {"answers": hub, "is_impossible": True},
        {"answers": None},
        {},
    ]
    one = spans[:1]
    expected = [spans, spans, spans, spans, one, one, spans[1:], (), (), (), (), None, None]
    path = write_lines(tmp_path / "rows.jsonl", [{**row, **more} for more in given])
    found = read(path)
    assert [example.truth for example in found] == expected
    assert [example.where for example in found] == [f"{path}:{n + 1}" for n in range(len(given))]
    assert found[0].columns == {"id": "q"}
    parquet = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([{**row, "answers": hub}, {**row, **given[7]}]), parquet)
    assert [(e.truth, e.where) for e in read(parquet)] == [
        (spans, f"{parquet}:1"), ((), f"{parquet}:2")
    ]  # fmt: skip
    table = tmp_path / "rows.csv"
    table.write_text('question,context,answer\nWho?,"A bird, a tree",a tree\nWho?,A bird,\n')
    assert [example.truth for example in read(table)] == [((8, "a tree"),), ()]


def test_columns_of_other_names(tmp_path: Path) -> None:
    row = {"ask": "Where?", "page": CONTEXT, "gold": "the river", "answer": "not this"}
    path = write_lines(tmp_path / "rows.jsonl", [row])
    assert question_columns(path, ["ask", "page"]) == ("ask", "page")
    (found,) = read(path, "ask", "page", label="gold")
    assert (found.texts, found.truth) == (("Where?", CONTEXT), ((24, "the river"),))
    assert found.columns == {"answer": "not this"}
    for text, label, said in (
        ([], None, "no column 'question'"),
        (["ask"], None, "two columns"),
        (["ask", "pag"], None, "no column 'pag'"),
        (["ask", "page"], "golden", "no column 'golden'"),
    ):
        with pytest.raises(DataError, match=said) as error:
            read(path, *text, label=label)
        assert error.value.where == str(path)


def test_files_without_answers_are_for_prediction(tmp_path: Path) -> None:
    rows = [{"question": "Who?", "context": "A bird."}]
    rows.append({**rows[0], "answers": "not there at all"})
    path = write_lines(tmp_path / "rows.jsonl", rows)
    assert [example.truth for example in read(path, labelled=False)] == [None, None]
    with pytest.raises(DataError, match="is not in the context"):
        read(path)


def test_rows_that_do_not_say_are_left_out_and_those_without_answer_are_not(tmp_path: Path) -> None:
    path = write(tmp_path / "dev.json", squad((CONTEXT, QUESTIONS)))
    kept, report = training_examples(
        read_questions(path, [], None, labelled=True), lambda truth: [str(len(truth))], str(path)
    )
    assert [example.truth for example in kept] == TRUTHS[:3]
    assert report.dropped == {"no label": [f"{path}:question 4"]}
    assert report.labels == {"2": 1, "0": 1, "1": 1}


@given(
    st.text("ab ", min_size=1, max_size=40),
    st.data(),
)
def test_an_answer_near_its_start_is_meant(context: str, data: st.DataObject) -> None:
    stop = data.draw(st.integers(1, len(context)))
    true = data.draw(st.integers(0, stop - 1))
    text = context[true:stop]
    if not text.strip():
        return
    given_start = data.draw(st.integers(max(0, true - NEAR), true + NEAR))
    row = questions._row(
        {"question": "?", "context": context, "answers": {"text": [text],
         "answer_start": [given_start]}}, "question", "context", None, "x:1",
    )  # fmt: skip
    ((start, found),) = questions._truth(row) or ()
    places = [i for i in range(len(context)) if context.startswith(text, i)]
    assert found == text
    assert start in places
    assert abs(start - given_start) == min(abs(place - given_start) for place in places)


def test_starts_far_off_are_errors_and_unknown_ones_are_found(tmp_path: Path) -> None:
    def row(start: Any) -> dict[str, Any]:
        answer = {"text": "river", "answer_start": start}
        return {"question": "Where?", "context": CONTEXT, "answers": [answer]}

    path = write_lines(tmp_path / "rows.jsonl", [row(28), row(30), row(-1), row(None)])
    assert [example.truth for example in read(path)] == [((28, "river"),)] * 4
    for start in (28 + NEAR + 1, 28 - NEAR - 1, 10**9, -50):
        write_lines(path, [row(28), row(start)])
        with pytest.raises(DataError, match="does not stand at") as error:
            read(path)
        assert error.value.where == f"{path}:2"
        assert "it stands at 28" in str(error.value.fix)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.text(max_size=30), st.text(max_size=8)), min_size=1, max_size=5),
    st.integers(1, 40),
    st.sampled_from([None, 1]),
)
def test_the_size_of_blocks_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory,
    texts: list[tuple[str, str]],
    block: int,
    indent: int | None,
) -> None:
    def clean(text: str) -> str:
        return text.replace("\0", "")

    groups = [
        (clean(context), [{"id": f"i{n}", "question": clean(asked), "answers": [], "n": -1.25e-7}])
        for n, (context, asked) in enumerate(texts)
    ]
    whole = {"pages": 12.5, "nothing": None, **squad(*groups), "end": [True, {"data": []}]}
    path = tmp_path_factory.mktemp("blocks") / "a.json"
    path.write_text(json.dumps(whole, indent=indent, ensure_ascii=bool(block % 2)), "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(questions, "_BLOCK", block)
        found = read(path)
    assert [e.texts for e in found] == [(qas[0]["question"], text) for text, qas in groups]
    assert all(e.columns["n"] == -1.25e-7 for e in found)


def test_one_article_is_in_memory_at_a_time(tmp_path: Path) -> None:
    context = "A bird. " * 500
    asked = [{"id": "q", "question": "Who?", "answers": [{"text": "bird", "answer_start": 2}]}]
    text = json.dumps(squad(*[(context, asked)] * 200))
    path = tmp_path / "a.json"
    damaged = text[:-3] + "?" + text[-3:]
    path.write_text(damaged, encoding="utf-8")
    articles = read_questions(path, [], None, labelled=True)
    assert next(articles).truth == ((2, "bird"),)  # before the mistake at the end is reached
    with pytest.raises(DataError, match="Not valid JSON") as error:
        list(articles)
    with pytest.raises(json.JSONDecodeError) as expected:
        json.loads(damaged)
    assert error.value.where == f"{path}:1:{expected.value.colno}"


GOOD = '{"question": "Who?", "context": "A bird.", "answer": "bird"}'
ONE = '{"data": [{"paragraphs": [{"context": "A bird.", "qas": [%s]}]}]}'
ASKED = '{"id": "q7", "question": "Who?", "answers": %s}'
MALFORMED = [
    # name, content, where, what is said
    ("a.jsonl", GOOD + '\n{"question": "Who?", "con', ":2:", "Not valid JSON"),
    ("a.jsonl", GOOD + '\n["a"]', ":2", "an array"),
    ("a.jsonl", "", "", "no rows"),
    ("a.jsonl", GOOD + '\n{"question": "Who?", "answer": "bird"}', ":2", "no context"),
    ("a.jsonl", GOOD + '\n{"context": "A bird.", "answer": "bird"}', ":2", "no question"),
    ("a.jsonl", GOOD + '\n{"question": 5, "context": "A bird."}', ":2", "not text"),
    ("a.jsonl", GOOD.replace('"bird"', '"fish"'), ":1", "is not in the context"),
    ("a.jsonl", GOOD.replace('"bird"', "7"), ":1", "The answers are 7"),
    ("a.jsonl", GOOD.replace('"bird"', "true"), ":1", "The answers are True"),
    ("a.jsonl", GOOD.replace('"bird"', "[7]"), ":1", "An answer is 7"),
    ("a.jsonl", GOOD.replace('"bird"', '[{"text": "bird", "start": "2"}]'), ":1", "An answer"),
    ("a.jsonl", GOOD.replace('"bird"', '[{"text": "bird", "start": true}]'), ":1", "An answer"),
    ("a.jsonl", GOOD.replace('"bird"', '[{"start": 2}]'), ":1", "An answer is"),
    ("a.jsonl", GOOD.replace('"bird"', '{"text": ["a", "b"], "answer_start": [0]}'), ":1",
     "2 answers and 1 starts"),
    ("a.jsonl", GOOD.replace('"bird"', '{"text": 1, "answer_start": [0]}'), ":1", "The answers"),
    ("a.jsonl", GOOD.replace("A bird", "A \\ud83d bird"), ":1", "half a character"),
    ("a.csv", "question,answer\nWho?,bird\n", "", "no column 'context'"),
    ("a.json", "", ":1:1", "cut short"),
    ("a.json", "7", ":1:1", "an object"),
    ("a.json", '"data"', ":1:1", "an object"),
    ("a.json", "{}", "", "no list named data"),
    ("a.json", GOOD + "\n" + GOOD, "", "no list named data"),
    ("a.json", '{"data": 7}', ":1:10", "data is not a list"),
    ("a.json", '{"data": []}', "", "no rows"),
    ("a.json", '{"data": [7]}', ":article 1", "not an object"),
    ("a.json", '{"data": [{}]}', ":article 1", "'paragraphs' is missing"),
    ("a.json", '{"data": [{"paragraphs": 7}]}', ":article 1", "'paragraphs' is 7, not a list"),
    ("a.json", '{"data": [{"title": 7, "paragraphs": []}]}', ":article 1", "'title' is 7"),
    ("a.json", '{"data": [{"paragraphs": [[]]}]}', ":article 1, paragraph 1", "not an object"),
    ("a.json", '{"data": [{"paragraphs": [{"qas": []}]}]}', ":article 1, paragraph 1",
     "'context' is missing"),
    ("a.json", '{"data": [{"paragraphs": [{"context": "A"}]}]}', ":article 1, paragraph 1",
     "'qas' is missing"),
    ("a.json", ONE % "7", ":question 1", "not an object"),
    ("a.json", ONE % '{"id": "q7"}', ":q7", "'question' is missing"),
    ("a.json", ONE % (ASKED % '[{"text": "fish", "answer_start": 2}]'), ":q7", "is not in the"),
    ("a.json", ONE % (ASKED % '[{"text": "bird", "answer_start": 900}]'), ":q7", "does not stand"),
    ("a.json", ONE % (ASKED % '[{"text": "bird", "answer_start": 2.5}]'), ":q7", "An answer is"),
    ("a.json", ONE % (ASKED % '[{"text": null, "answer_start": 2}]'), ":q7", "An answer is"),
    ("a.json", ONE % (ASKED % "7"), ":q7", "The answers are 7"),
    ("a.json", (ONE % (ASKED % "[]")).replace("Who?", "\\ud83d"), ":q7", "half a character"),
    ("a.json", (ONE % (ASKED % "[]")).replace("A bird", "\\u0000"), ":article 1, paragraph 1",
     "NUL"),
    ("a.json", (ONE % (ASKED % "[]"))[:-1], ":1:", "cut short"),
    ("a.json", (ONE % (ASKED % "[]"))[:40], ":1:", "cut short"),
    ("a.json", (ONE % (ASKED % "[]")) + "]", ":1:", "More follows"),
    ("a.json", '{"version": 1, "data": [}', ":1:25", "Not valid JSON"),
    ("a.json", '{"version" 1}', ":1:12", "':'"),
    ("a.json", "{version: 1}", ":1:2", "a name in double quotes"),
    ("a.json", '{"version": 1 "data": []}', ":1:15", "','"),
    ("a.json", '{\n"data":\n [{"paragraphs": nul}]}', ":3:18", "Not valid JSON"),
    ("a.json", '{"data": ' + "[" * 100_000, ":1:", "nested too deeply"),
    ("a.json", '{"version": ' + "9" * 5000 + ', "data": []}', ":1:", "Exceeds the limit"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "where", "said"), MALFORMED)
def test_malformed_files_are_named_with_their_row(
    tmp_path: Path, name: str, content: str, where: str, said: str
) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=re.escape(said)) as error:
        read(path)
    assert str(error.value.where).startswith(f"{path}{where}")
    assert "\n" not in error.value.what


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    text = json.dumps(squad((CONTEXT, QUESTIONS)), ensure_ascii=False, indent=1)
    path.write_bytes(text.encode("gb18030"))
    with pytest.raises(DataError, match="Not UTF-8") as error:
        read(path)
    assert str(error.value.where).startswith(f"{path}:")
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(text.encode())[:-20])
    with pytest.raises(DataError, match="cut short"):
        read(tmp_path / "b.json.gz")
    with pytest.raises(DataError, match="no file c"):
        read(tmp_path / "c.json")


def test_damaged_files_are_read_or_refused_by_name(tmp_path: Path) -> None:
    draw = random.Random(5)
    whole = json.dumps(squad((CONTEXT, QUESTIONS[:3]), (CONTEXT, QUESTIONS[:1])))
    flat = json.dumps({**QUESTIONS[0], "context": CONTEXT}) + "\n"
    wrong = refused = 0
    for name, text in (("a.json", whole), ("a.jsonl", flat * 3)):
        path = tmp_path / name
        for _ in range(300):
            damaged = list(text)
            for _ in range(draw.randint(1, 3)):
                place = draw.randrange(len(damaged))
                if draw.random() < 0.2:
                    del damaged[place:]
                    break
                damaged[place] = draw.choice('{}[]",:0a\\\n7')
            path.write_text("".join(damaged), encoding="utf-8")
            try:
                found = read(path)
            except DataError as error:
                refused += str(error.where).startswith(str(path)) and bool(error.fix)
                wrong += 1
            else:
                for example in found:
                    for start, answer in example.truth or ():
                        assert example.parts[1].startswith(answer, start)
    assert wrong == refused > 300
