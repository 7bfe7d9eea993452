"""Files in which spans are marked, as others write them, well and badly."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import string
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bert.data.rows import Example
from bert.data.tagged import file_kind, join_tokens, read_tagged, spaceless
from bert.errors import DataError, UsageError

Spans = list[tuple[int, int, str]]
DATA = Path(os.environ.get("BERT_DATA", ""))
FIVE = ["Ada", "Byron", "met", "Ben", "in", "Rome"]
TRUTH = ((0, 9, "PER"), (14, 17, "PER"), (21, 25, "LOC"))


def read(path: Path, *text: str, label: str | None = None, labelled: bool = True) -> list[Example]:
    return list(read_tagged(path, text, label, labelled=labelled))


def write(path: Path, *lines: str | dict[str, Any]) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


# Text of tokens ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (["EU", "rejects", "German", "call", "."], "EU rejects German call ."),
        (["今天", "天气", "很", "好", "。"], "今天天气很好。"),
        (["我", "用", "i", "P", "h", "o", "n", "e", "！"], "我用iPhone！"),  # characters
        (["我们", "用", "iPhone", "打", "电话"], "我们用 iPhone 打电话"),
        (["ฉัน", "รัก", "Bangkok", "มาก"], "ฉันรัก Bangkok มาก"),
        (["서울", "에서", "만나"], "서울 에서 만나"),  # Korean writes spaces
        (["ok", "😀", "😀"], "ok 😀 😀"),
        (["a", "", "b"], "a  b"),
        ([], ""),
    ],
)
def test_tokens_are_joined_as_their_script_is_written(tokens: list[str], text: str) -> None:
    joined = join_tokens(tokens)
    assert joined.text == text
    places = zip(joined.starts, joined.ends, strict=True)
    assert [text[start:end] for start, end in places] == tokens


def test_scripts_without_spaces() -> None:
    assert all(map(spaceless, "中あカー。，》ไก่ເ"))
    assert not any(map(spaceless, "aé1 .한हاש😀"))


# One token a line -------------------------------------------------------------------------------

BIO = ["B-PER", "I-PER", "O", "B-PER", "O", "B-LOC"]
SCHEMES = {
    "bio": BIO,
    "iob1": ["I-PER", "I-PER", "O", "I-PER", "O", "I-LOC"],
    "bioes": ["B-PER", "E-PER", "O", "S-PER", "O", "S-LOC"],
    "bilou": ["B-PER", "L-PER", "O", "U-PER", "O", "U-LOC"],
    "io": ["PER", "PER", "O", "PER", "O", "LOC"],
}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("between", [" ", "\t", "  "])
def test_every_scheme_says_the_same(tmp_path: Path, scheme: str, between: str) -> None:
    lines = [between.join(pair) for pair in zip(FIVE, SCHEMES[scheme], strict=True)]
    path = write(tmp_path / "a.conll", *lines, "", "", *lines)
    found = read(path)
    assert [example.truth for example in found] == [TRUTH, TRUTH]
    assert [example.texts for example in found] == [tuple(FIVE)] * 2
    assert [example.where for example in found] == [f"{path}:1", f"{path}:9"]
    rows = write(tmp_path / "a.jsonl", {"tokens": FIVE, "ner_tags": SCHEMES[scheme]})
    assert read(rows)[0].truth == TRUTH


@given(
    st.lists(
        st.lists(
            st.tuples(
                st.text(string.ascii_letters + "äß中ไ#.-", min_size=1, max_size=4),
                st.sampled_from(["", "a", "a", "b-c"]),
                st.booleans(),
            ),
            min_size=1,
            max_size=6,
        ),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from(["bio", "iob1", "bioes"]),
    st.sampled_from(["\t", " "]),
)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_in_a_scheme_is_read_again(
    tmp_path: Path, sentences: list[list[tuple[str, str, bool]]], scheme: str, between: str
) -> None:
    lines, wanted = ["# anything"], []
    for sentence in sentences:
        tokens = [token for token, _, _ in sentence]
        spans: Spans = []
        for place, (_, kind, new) in enumerate(sentence):
            if not kind:
                continue
            if spans and not new and spans[-1][1] == place and spans[-1][2] == kind:
                spans[-1] = (spans[-1][0], place + 1, kind)
            else:
                spans.append((place, place + 1, kind))
        tags = tags_in(scheme, spans, len(tokens))
        lines += [between.join(pair) for pair in zip(tokens, tags, strict=True)]
        lines.append("")
        joined = join_tokens(tokens)
        truth = tuple((int(joined.starts[a]), int(joined.ends[b - 1]), k) for a, b, k in spans)
        wanted.append((tuple(tokens), truth))
    path = write(tmp_path / "x.bio", *lines)
    assert [(example.texts, example.truth) for example in read(path)] == wanted


def tags_in(scheme: str, spans: Spans, length: int) -> list[str]:
    tags = ["O"] * length
    for number, (start, end, kind) in enumerate(spans):
        letters = ["B"] + ["I"] * (end - start - 1)
        before = spans[number - 1] if number else (0, 0, "")
        if scheme == "iob1" and not (before[1] == start and before[2] == kind):
            letters[0] = "I"
        if scheme == "bioes":
            letters[-1] = "S" if end == start + 1 else "E"
        tags[start:end] = [f"{letter}-{kind}" for letter in letters]
    return tags


def test_documents_comments_and_columns(tmp_path: Path) -> None:
    path = write(
        tmp_path / "eng.testa",
        "-DOCSTART- -X- -X- O",
        "",
        "# sentence 1 of",
        "EU NNP B-NP B-ORG",
        "# NN O O",  # a token: the sentence has begun
        "",
        "# of an article O",  # five columns
        "#1 CD I-NP O",  # a token: it has all columns, and a tag
        "Peter NNP B-NP B-PER",
        "-DOCSTART- -X- O O",
        "Rome NNP I-NP I-LOC",
    )
    found = read(path)
    assert [example.texts for example in found] == [("EU", "#"), ("#1", "Peter"), ("Rome",)]
    assert [example.truth for example in found] == [
        ((0, 2, "ORG"),), ((3, 8, "PER"),), ((0, 4, "LOC"),)]  # fmt: skip
    phrases = read(path, label="3")
    assert phrases[0].truth == ((0, 2, "NP"),)
    words = write(tmp_path / "ger.txt", "1\tNew York\tB-LOC\tO", "2\tist\tO\tO")
    assert read(words, "2", label="3")[0].truth == ((0, 8, "LOC"),)
    tokens = write(tmp_path / "tokens.txt", "#first", "word", "", "two", "#three")
    assert [example.texts for example in read(tokens, labelled=False)] == [
        ("#first", "word"), ("two", "#three")]  # fmt: skip


@pytest.mark.parametrize(("suffix", "opened"), [(".gz", gzip.open), (".xz", lzma.open)])
def test_compressed_files_are_read(tmp_path: Path, suffix: str, opened: Any) -> None:
    path = tmp_path / f"a.conll{suffix}"
    with opened(path, "wt", encoding="utf-8") as file:
        file.write("\n".join(f"{token} {tag}" for token, tag in zip(FIVE, BIO, strict=True)))
    assert read(path)[0].truth == TRUTH


def test_blanks_of_other_scripts_are_tokens(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "中\tB-X", "\u3000\tI-X", "国\tI-X", "\u3000\tO")
    (found,) = read(path)
    assert found.texts == ("中", "\u3000", "国", "\u3000")
    assert found.truth == ((0, 3, "X"),)


# Rows -------------------------------------------------------------------------------------------


def test_spans_in_rows_in_the_ways_of_several_tools(tmp_path: Path) -> None:
    wanted = ((0, 3, "PER"), (13, 17, "LOC"))
    text = "Ada lives in Rome."
    whole = [{"start": 13, "end": 17, "type": "LOC"}, {"start": 0, "end": 3, "type": "PER"}]
    path = write(tmp_path / "a.jsonl", {"id": 7, "text": text, "entities": whole, "tokens": []})
    (found,) = read(path)
    assert (found.texts, found.truth, found.columns["id"]) == (text, wanted, 7)
    labels = [{"start": s, "end": e, "label": k, "text": text[s:e]} for s, e, k in wanted]
    assert read(write(path, {"text": text, "spans": labels}))[0].truth == wanted
    triples = [[0, 3, "PER"], [13, 17, "LOC"]]
    touching = [[2, 4, "LOC"], [0, 2, "PER"]]
    assert read(write(path, {"text": "王明北京", "spans": touching}))[0].truth == (
        (0, 2, "PER"), (2, 4, "LOC"))  # fmt: skip
    path = write(path, {"body": text, "marks": triples}, {"body": "no", "marks": []})
    assert [example.truth for example in read(path, "body", label="marks")] == [wanted, ()]
    path = write(path, {"text": text, "spans": []}, {"text": "unmarked"}, {"text": None})
    assert [example.truth for example in read(path)] == [(), None, None]


def test_blanks_at_the_ends_of_a_span_are_no_part_of_it(tmp_path: Path) -> None:
    row = {"text": "to  New York !", "spans": [{"start": 2, "end": 13, "type": "LOC"}]}
    assert read(write(tmp_path / "a.jsonl", row))[0].truth == ((4, 12, "LOC"),)


def test_parquet_with_numbered_tags_as_datasets_writes_it(tmp_path: Path) -> None:
    names = ["O", "B-PER", "I-PER", "B-LOC"]
    features = {"ner_tags": {"feature": {"names": names, "_type": "ClassLabel"}, "_type": "List"}}
    stored = json.dumps({"info": {"features": features}})
    table = pyarrow.table({"tokens": [FIVE, []], "ner_tags": [[1, 2, 0, 1, 0, 3], []]})
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(table.replace_schema_metadata({"huggingface": stored}), path)
    assert [example.truth for example in read(path)] == [TRUTH, ()]
    pyarrow.parquet.write_table(table, path)
    with pytest.raises(DataError, match="tag 1") as error:
        read(path)
    assert error.value.where == f"{path}:1"
    assert "names of tags" in str(error.value.fix)


def test_texts_alone_can_come_from_any_file(tmp_path: Path) -> None:
    table = write(tmp_path / "a.csv", "id,text", "1,Ada lives in Rome")
    assert read(table, labelled=False)[0].texts == "Ada lives in Rome"
    rows = write(tmp_path / "a.jsonl", {"tokens": FIVE, "tags": BIO}, {"tokens": None})
    assert [example.texts for example in read(rows, labelled=False)] == [tuple(FIVE), ""]
    lines = write(tmp_path / "a.txt", *map(" ".join, zip(FIVE, BIO, strict=True)))
    assert read(lines, labelled=False)[0].texts == tuple(FIVE)
    assert [file_kind(path) for path in (table, rows, lines)] == ["table", "rows", "lines"]


# Mistakes ---------------------------------------------------------------------------------------

TEXT = "Ada lives in Rome."


def marked(*spans: Any) -> dict[str, Any]:
    return {"text": TEXT, "entities": list(spans)}


def tagged(tokens: Any, tags: Any) -> dict[str, Any]:
    return {"tokens": tokens, "tags": tags}


@pytest.mark.parametrize(
    ("name", "lines", "row", "what"),
    [
        ("a.jsonl", [marked(), marked([0, 99, "X"])], 2, "does not lie in a text of 18"),
        ("a.jsonl", [marked([-1, 3, "X"])], 1, "does not lie"),
        ("a.jsonl", [marked([3, 3, "X"])], 1, "does not lie"),
        ("a.jsonl", [marked([5, 3, "X"])], 1, "does not lie"),
        ("a.jsonl", [marked([3, 4, "X"])], 1, "nothing but blanks"),
        ("a.jsonl", [marked([0, 9, "X"], [4, 12, "Y"])], 1, "overlap"),
        ("a.jsonl", [marked([0, 3, "X"], [0, 3, "X"])], 1, "overlap"),
        ("a.jsonl", [marked({"start": 0, "end": 3, "type": "X", "text": "da "})], 1, "'da '"),
        ("a.jsonl", [marked({"start": 0, "end": 3})], 1, "not a span"),
        ("a.jsonl", [marked({"start": 0.0, "end": 3, "type": "X"})], 1, "not a span"),
        ("a.jsonl", [marked({"start": True, "end": 3, "type": "X"})], 1, "not a span"),
        ("a.jsonl", [marked({"start": "0", "end": 3, "type": "X"})], 1, "not a span"),
        ("a.jsonl", [marked([0, 3, ""])], 1, "not a span"),
        ("a.jsonl", [marked([0, 3])], 1, "not a span"),
        ("a.jsonl", [marked("PER")], 1, "not a span"),
        ("a.jsonl", [{"text": TEXT, "entities": "PER"}], 1, "not a list of spans"),
        ("a.jsonl", [{"text": TEXT, "entities": {"a": 1}}], 1, "not a list of spans"),
        ("a.jsonl", [{"text": 5, "entities": []}], 1, "not text"),
        ("a.jsonl", [{"text": TEXT}], None, "No column is called entities, spans, tags, ner_tags"),
        ("a.jsonl", [{"body": TEXT, "entities": []}], None, "No column is called text"),
        ("a.jsonl", [tagged(["a"], ["O"]), tagged(["a", "b"], ["O"])], 2, "2 tokens and 1 tags"),
        ("a.jsonl", [tagged(["a"], [])], 1, "1 tokens and 0 tags"),
        ("a.jsonl", [tagged(["a", 3], ["O", "O"])], 1, "Token 2"),
        ("a.jsonl", [tagged(["a"], "O")], 1, "not a list of tags"),
        ("a.jsonl", [tagged(["a"], [[0, 1, "X"]])], 1, "not a list of tags"),
        ("a.jsonl", [tagged(["a"], [3])], 1, "tag 3"),
        ("a.jsonl", [tagged(["a"], [None])], 1, "tag None"),
        ("a.jsonl", [tagged(["a"], [""])], 1, "tag ''"),
        ("a.jsonl", [tagged(["a"], ["b-per"])], 1, "known scheme"),
        ("a.jsonl", [tagged(["a"], ["B_PER"])], 1, "known scheme"),
        ("a.jsonl", [tagged(["a"], ["PER-B"])], 1, "known scheme"),
        ("a.jsonl", [tagged(["a"], ["o"])], 1, "known scheme"),
        ("a.jsonl", [tagged(["a"], ["B-X"]), tagged(["a"], ["X"])], 2, "tags before it"),
        ("a.jsonl", [tagged(["a"], ["X"]), tagged(["a"], ["B-X"])], 2, "tags before it"),
        ("a.jsonl", [tagged([""], ["B-X"])], 1, "does not lie"),
        ("a.jsonl", [tagged([" "], ["B-X"])], 1, "nothing but blanks"),
        ("a.jsonl", ["{"], 1, "Not valid JSON"),
        ("a.conll", ["a O", "b"], 2, "one column"),
        ("a.conll", ["a O", "b X O"], 2, "3 columns"),
        ("a.conll", ["a", "b"], 1, "a token and no tag"),
        ("a.conll", ["a\tO", "b O"], 2, "one column"),
        ("a.conll", ["a\tO", "b\t"], 2, "tag ''"),
        ("a.conll", ["a O", "b B-X", "", "c PER"], 4, "tags before it"),
        ("a.conll", ["a B:X"], 1, "known scheme"),
        ("a.conll", ["\tB-X"], 1, "does not lie"),
        ("a.conll", ["", "# nothing"], None, "no rows"),
        ("a.txt", ["This is plain text.", "It has no tags, and lines of all lengths."], 2, "col"),
        ("a.csv", ["text,entities", "a,b"], None, "spans of a text"),
        ("a.docx", ["a"], None, "not read"),
    ],
)
def test_bad_files_are_told_by_file_and_row(
    tmp_path: Path, name: str, lines: Sequence[Any], row: int | None, what: str
) -> None:
    path = write(tmp_path / name, *lines)
    with pytest.raises(DataError) as error:
        read(path)
    assert what in error.value.what
    where = str(path) if row is None else f"{path}:{row}"
    assert str(error.value.where).startswith(where)
    assert error.value.fix


@pytest.mark.parametrize(
    ("text", "label"), [("1", "9"), ("9", None), ("0", None), ("1", "0"), ("1", "NER")]
)
def test_columns_that_are_not_there(tmp_path: Path, text: str, label: str | None) -> None:
    path = write(tmp_path / "a.conll", "a NN O", "b NN B-X")
    with pytest.raises(DataError, match=r"[Cc]olumn") as error:
        read(path, text, label=label)
    assert str(path) in str(error.value.where)
    assert "--label" in str(error.value.fix)


def test_a_row_has_one_text(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one text"):
        read(tmp_path / "a.jsonl", "a", "b")


@given(st.binary(max_size=200) | st.text(st.sampled_from("ab#- \t\nO\r中\u3000"), max_size=60))
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_read_or_refused(tmp_path: Path, content: bytes | str) -> None:
    raw = content if isinstance(content, bytes) else content.encode()
    for name in ("x.conll", "x.jsonl", "x.parquet"):
        path = tmp_path / name
        path.write_bytes(raw)
        found = []
        with suppress(DataError):  # any other error fails
            found = read(path)
        for example in found:
            text = join_tokens(example.texts).text
            assert all(text[start:end].strip() for start, end, _ in example.truth)


# The data sets of others ------------------------------------------------------------------------


@pytest.mark.skipif("BERT_DATA" not in os.environ, reason="BERT_DATA is not set")
def test_conll_2003_has_the_published_counts_in_both_forms(tmp_path: Path) -> None:
    original = tmp_path / "eng.testa"
    with lzma.open(DATA / "conll2003" / "original" / "eng.testa.xz") as file:
        original.write_bytes(file.read())
    lines = read(original)
    rows = read(DATA / "conll2003" / "dev.jsonl.xz")
    assert len(lines) == 3250
    kinds = [kind for example in lines for *_, kind in example.truth]
    counts = {kind: kinds.count(kind) for kind in set(kinds)}
    assert counts == {"PER": 1842, "LOC": 1837, "ORG": 1341, "MISC": 922}
    assert [(one.texts, one.truth) for one in lines] == [(one.texts, one.truth) for one in rows]
