from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bert.errors import DataError
from bert.text import corpus
from bert.text.corpus import Document, content_hash, corpus_files, documents


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


# Files ------------------------------------------------------------------------------------------


def test_a_folder_gives_its_files_sorted_without_hidden_ones(tmp_path: Path) -> None:
    names = ["b.txt", "a/z.csv", "a/b/c.jsonl.gz", "a.tsv", "A.TXT", "p.parquet"]
    for name in [*names, ".hidden.txt", ".git/x.txt", "notes.md", "a/p.parquet.gz", "a/.b/c.txt"]:
        write(tmp_path / name, "text")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    assert corpus_files([tmp_path]) == sorted(tmp_path / name for name in names)


def test_files_come_once_and_in_the_order_of_their_names(tmp_path: Path) -> None:
    b, a = write(tmp_path / "b.txt", "b"), write(tmp_path / "a.txt", "a")
    hidden = write(tmp_path / ".h.txt", "h")
    assert corpus_files([b, hidden, tmp_path, a]) == [hidden, a, b]


def test_no_files(tmp_path: Path) -> None:
    write(tmp_path / "notes.md", "text")
    for paths in ([], [tmp_path]):
        with pytest.raises(DataError, match="There are no text files") as caught:
            corpus_files(paths)
        assert caught.value.fix


def test_missing_and_unknown_files_are_told_before_reading(tmp_path: Path) -> None:
    write(tmp_path / "corpus.txt", "text")
    with pytest.raises(DataError, match=r"did you mean .*corpus\.txt"):
        documents([tmp_path / "corpsu.txt"])
    path = write(tmp_path / "notes.md", "text")
    with pytest.raises(DataError, match=r"supported are \.txt"):
        documents([path])


# Documents --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_blank_lines_stand_between_documents(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, "\n\none\r\n two \n \t\n\u3000\n三\n\n\n")
    assert list(documents([path])) == [
        Document("one\n two ", f"{path}:3"),
        Document("三", f"{path}:7"),
    ]


def test_rows_are_documents(tmp_path: Path) -> None:
    jsonl = write(tmp_path / "a.jsonl", '{"text": "one\\n\\ntwo"}\n{"text": null}\n{"text": " "}\n')
    csv = write(tmp_path / "b.csv", 'text,id\nthree,1\n,2\n"fo\nur",3\n')
    tsv = write(tmp_path / "c.tsv", 'id\ttext\n1\t"five\n')
    parquet = tmp_path / "d.parquet"
    pq.write_table(pa.table({"text": ["six", None, ""]}), parquet)
    txt = write(tmp_path / "e.txt", "seven")
    expected = [
        Document("one\n\ntwo", f"{jsonl}:1"),
        Document("three", f"{csv}:2"),
        Document("fo\nur", f"{csv}:4"),
        Document('"five', f"{tsv}:2"),
        Document("six", f"{parquet}:1"),
        Document("seven", f"{txt}:1"),
    ]
    assert list(documents([tmp_path])) == expected
    assert list(documents([txt, jsonl, csv, tsv, parquet])) == expected


def test_another_column(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,body\nno,yes\n")
    assert [document.text for document in documents([path], text_column="body")] == ["yes"]


@pytest.mark.parametrize(
    ("content", "what", "fix"),
    [
        ('{"Text": "a", "id": 1}', 'no column "text"; the columns are: Text, id', "Text"),
        ('{"sentence": "a"}', "the columns are: sentence", "sentence"),
        ('{"title": "a", "body": "b"}', "the columns are: title, body", "NAME"),
        ("{}", "the columns are: none", "NAME"),
    ],
)
def test_missing_column(tmp_path: Path, content: str, what: str, fix: str) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "fine"}\n' + content)
    with pytest.raises(DataError) as caught:
        list(documents([path]))
    assert what in caught.value.what
    assert caught.value.where == f"{path}:2"
    assert caught.value.fix == f"text_column={fix}"


@pytest.mark.parametrize("value", ["1", "[]", "true", '{"a": "b"}'])
def test_a_text_that_is_none(tmp_path: Path, value: str) -> None:
    path = write(tmp_path / "a.jsonl", f'{{"text": {value}}}')
    with pytest.raises(DataError, match="not text") as caught:
        list(documents([path]))
    assert caught.value.where == f"{path}:1"


def test_long_documents_come_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "DOCUMENT_LIMIT", 10)
    path = write(tmp_path / "a.txt", "12345\n6789\n1234\nlonger than ten\nx\n\ny\n")
    assert list(documents([path])) == [
        Document("12345\n6789", f"{path}:1"),
        Document("1234", f"{path}:3"),
        Document("longer than ten", f"{path}:4"),
        Document("x", f"{path}:5"),
        Document("y", f"{path}:7"),
    ]


def test_one_endless_document_in_constant_memory(tmp_path: Path) -> None:
    line = "x" * 999 + "\n"
    path = write(tmp_path / "a.txt.gz", line * 25_000)
    tracemalloc.start()
    try:
        sizes = [len(document.text) for document in documents([path])]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(sizes) + len(sizes) == 25_000 * 1000
    assert max(sizes) <= corpus.DOCUMENT_LIMIT
    assert peak < 20e6


line = st.text(
    st.characters(exclude_characters="\r\n\0\ufeff", exclude_categories=["Cs"]), min_size=1
)
document = st.lists(line.filter(str.strip), min_size=1).map("\n".join)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(document))
def test_documents_written_are_documents_read(tmp_path: Path, texts: list[str]) -> None:
    path = write(tmp_path / "a.txt", "\n\n".join(texts))
    assert [document.text for document in documents([path])] == texts


# Hash -------------------------------------------------------------------------------------------


def test_the_hash_is_of_contents_not_names(tmp_path: Path) -> None:
    a = write(tmp_path / "1/a.txt", "one\n").parent
    write(a / "b.txt", "two\n")
    first = content_hash([a])
    assert len(first) == 64
    assert int(first, 16)
    c = write(tmp_path / "2/c.txt", "one\n").parent
    write(c / "d.txt", "two\n")
    assert content_hash([c]) == content_hash([c / "d.txt", c / "c.txt"]) == first


def test_the_hash_sees_every_change_and_boundary(tmp_path: Path) -> None:
    def of(*contents: str) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        for number, content in enumerate(contents):
            write(folder / f"{number}.txt", content)
        return content_hash([folder])

    hashes = [of("ab", "c"), of("a", "bc"), of("abc"), of("abc", ""), of("", "abc"), of("abd")]
    assert len(set(hashes)) == len(hashes)
    assert of("ab", "c") == hashes[0]
