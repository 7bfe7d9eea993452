from __future__ import annotations

import csv
import gzip
import json
import lzma
import os
import shlex
import subprocess
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bert.errors import DataError
from bert.text import files
from bert.text.files import columns, is_supported, lines, open_binary, rows

COMPRESSIONS = ["", ".gz", ".xz", ".zst"]


def compress(data: bytes, suffix: str) -> bytes:
    if suffix == ".gz":
        return gzip.compress(data, 1)
    if suffix == ".xz":
        return lzma.compress(data, preset=0)
    if suffix == ".zst":
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(data)
        return bytes(sink.getvalue())
    return data


def write(path: Path, content: str | bytes) -> Path:
    data = content.encode() if isinstance(content, str) else content
    suffix = path.suffix if path.suffix in COMPRESSIONS else ""
    path.write_bytes(compress(data, suffix))
    return path


def refused(action: Callable[[], Any], *words: str, where: str | None = None) -> DataError:
    """Run what must fail, and check that the error tells what, where and fix."""
    with pytest.raises(DataError) as caught:
        action()
    error = caught.value
    for word in words:
        assert word in str(error), str(error)
    if where is not None:
        assert error.where == where
    assert error.where
    assert error.fix
    assert "\n" not in error.what
    return error


# Opening ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", COMPRESSIONS)
@pytest.mark.parametrize("data", [b"", b"one", bytes(range(256)) * 5000], ids=["0", "3", "1.3M"])
def test_bytes_come_back(tmp_path: Path, suffix: str, data: bytes) -> None:
    path = write(tmp_path / f"data.bin{suffix}", data)
    with open_binary(path) as file:
        assert file.read() == data


@pytest.mark.parametrize("suffix", COMPRESSIONS[1:])
def test_files_compressed_in_parts_are_read_to_the_end(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"two.txt{suffix}"
    path.write_bytes(compress(b"one\n", suffix) + compress(b"two\n", suffix))
    assert [line for _, line in lines(path)] == ["one", "two"]


def test_missing_file_suggests_near_names(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", "text\n")
    error = refused(lambda: open_binary(tmp_path / "trian.csv"), "There is no file trian.csv")
    assert error.fix == f"did you mean {tmp_path / 'train.csv'}?"
    refused(
        lambda: open_binary(tmp_path / "quite else.csv"),
        f"fix:   look what is there: ls {tmp_path}",
    )


def test_missing_folder_is_named(tmp_path: Path) -> None:
    path = tmp_path / "no" / "where" / "a.txt"
    refused(
        lambda: open_binary(path), f"no folder {path.parent}", f"ls {tmp_path}", where=str(path)
    )


def test_folder_instead_of_file(tmp_path: Path) -> None:
    refused(lambda: list(lines(tmp_path)), "A folder was given", where=str(tmp_path))


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "open", deny)  # the tests may run as root, who may read all
    path = tmp_path / "my file.txt"
    refused(lambda: list(lines(path)), "may not be read", f"chmod u+r '{path}'", where=str(path))


@pytest.mark.parametrize("name", ["a\0b.txt", "x" * 300 + ".txt", "file.txt/below.txt"])
def test_impossible_names(tmp_path: Path, name: str) -> None:
    write(tmp_path / "file.txt", "text")
    refused(lambda: list(lines(tmp_path / name)))


@pytest.mark.parametrize("suffix", COMPRESSIONS[1:])
def test_damaged_compression(tmp_path: Path, suffix: str) -> None:
    text = "".join(f"line {n * n}\n" for n in range(20_000)).encode()
    good = compress(text, suffix)
    path = tmp_path / f"a.txt{suffix}"

    def check(data: bytes, word: str) -> None:
        path.write_bytes(data)
        refused(lambda: list(lines(path)), word, shlex.join(["-t", str(path)]), where=str(path))

    check(b"", "is cut short")
    check(good[: len(good) // 2], "is cut short")
    check(good[:-3], "is cut short")
    check(text, "is damaged or not")
    check(good[:20] + b"\xff" * 40 + good[60:], "is damaged")


def test_open_binary_turns_damage_into_a_data_error_too(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(os.urandom(100_000))[:-1000])
    with open_binary(path) as file:
        refused(file.read, "is cut short")


# Lines ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_lines_are_numbered_and_keep_all_but_their_ends(tmp_path: Path, suffix: str) -> None:
    text = "\ufeffone\r\n\n 二\u2028\x0b\x0c\x85\x1c\u2029 \ntwo\rthree\n\ufefflast\r"
    path = write(tmp_path / f"a.txt{suffix}", text)
    assert list(lines(path)) == [
        (1, "one"),
        (2, ""),
        (3, " 二\u2028\x0b\x0c\x85\x1c\u2029 "),
        (4, "two\rthree"),
        (5, "\ufefflast\r"),
    ]


def test_empty_file_has_no_lines(tmp_path: Path) -> None:
    assert list(lines(write(tmp_path / "a.txt", ""))) == []
    assert list(lines(write(tmp_path / "b.txt", "\n"))) == [(1, "")]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(exclude_characters="\n\0", exclude_categories=["Cs"]))))
def test_lines_written_are_lines_read(tmp_path: Path, texts: list[str]) -> None:
    texts = [text.rstrip("\r").lstrip("\ufeff") for text in texts]
    path = write(tmp_path / "a.txt", "".join(text + "\n" for text in texts))
    assert list(lines(path)) == list(enumerate(texts, 1))


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary())
def test_any_bytes_are_read_or_refused(tmp_path: Path, data: bytes) -> None:
    for name in ("a.txt", "a.txt.gz", "a.txt.xz", "a.txt.zst", "a.csv", "a.tsv", "a.jsonl"):
        path = tmp_path / name
        path.write_bytes(data)
        for read in (lines, rows):
            try:
                for _ in read(path):
                    pass
            except DataError as error:
                assert str(path) in str(error.where)  # noqa: PT017


CHINESE = "今天天气很好。我们去公园吧，你去吗？\n好的。\n"


@pytest.mark.parametrize(
    ("data", "name", "where"),
    [
        (b"ok\n" + CHINESE.encode("gb18030"), "GB18030", "2:1"),
        ("ok\nHier fährt der Zug über die Brücke.\n".encode("latin-1"), "LATIN1", "2:7"),
        (b"caf\xe9", "LATIN1", "1:4"),
        ("ok\n\u201cquoted\u201d \u2013 text\n".encode("cp1252"), "WINDOWS-1252", "2:1"),
        ("Hello\nthere\n".encode("utf-16"), "UTF-16", "1:1"),
        (CHINESE.encode("utf-16"), "UTF-16", "1:1"),
        ("Hello\n".encode("utf-32"), "UTF-32", "1:1"),
        ("Hello\nthere, all of you\n".encode("utf-16-le"), "UTF-16LE", "1:2"),
        ("Hello\nthere, all of you\n".encode("utf-16-be"), "UTF-16BE", "1:1"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_other_encodings_are_named_and_the_command_helps(
    tmp_path: Path, data: bytes, name: str, where: str, suffix: str
) -> None:
    path = write(tmp_path / f"my text.txt{suffix}", data)
    error = refused(lambda: list(lines(path)), where=f"{path}:{where}")
    assert f"iconv -f {name} -t UTF-8" in str(error.fix)
    subprocess.run(["bash", "-c", str(error.fix)], check=True)
    python_name = {"LATIN1": "latin-1", "WINDOWS-1252": "cp1252"}.get(name, name)
    converted = [line for _, line in lines(tmp_path / "my text.utf8.txt")]
    assert converted == data.decode(python_name).splitlines()


def test_the_fix_without_compression_is_plain(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", CHINESE.encode("gb18030"))
    error = refused(lambda: list(lines(path)), "probably GB18030")
    assert error.fix == f"iconv -f GB18030 -t UTF-8 {path} > {tmp_path}/a.utf8.txt"


def test_damaged_utf8_is_not_taken_for_another_encoding(tmp_path: Path) -> None:
    data = CHINESE.encode() + "又一行文字".encode()[:-1]
    path = write(tmp_path / "a.txt", data)
    error = refused(lambda: list(lines(path)), "Damaged UTF-8", where=f"{path}:3:13")
    # iconv's exit status differs between versions, what it writes does not.
    subprocess.run(["bash", "-c", str(error.fix)], check=False, stderr=subprocess.DEVNULL)
    assert [line for _, line in lines(tmp_path / "a.utf8.txt")][-1] == "又一行文"


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"\x00\x00\x00binary\x00\x00\x00\x00", "binary"),
        (b"text, then\n one \0 NUL\n", "NUL"),
        (gzip.compress(b"text"), "gzip data"),
        (compress(b"text", ".zst"), "Zstandard"),
        (compress(b"text", ".xz"), "xz data"),
        (b"PK\x03\x04\x14\x00\x06\x00", "Excel"),
        (b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n", "PDF"),
        (b"PAR1\x15\x04\x15\xff\x00", "Parquet"),
    ],
)
def test_files_that_are_not_text(tmp_path: Path, data: bytes, word: str) -> None:
    path = write(tmp_path / "a.txt", data)
    refused(lambda: list(lines(path)), word)


def test_nul_is_placed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"text, then\n one \0 NUL\n")
    refused(lambda: list(lines(path)), where=f"{path}:2:6")


def test_the_longest_line_passes_and_a_longer_one_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LINE_LIMIT", 2**20)
    longest = "x" * 2**20
    for end in ("\n", "\r\n", ""):
        path = write(tmp_path / "a.txt", f"a\n{longest}{end}")
        assert list(lines(path)) == [(1, "a"), (2, longest)]
        write(path, f"a\n{longest}y{end}")
        refused(lambda path=path: list(lines(path)), "longer than 1 MiB", where=f"{path}:2")


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".xz"])
def test_big_compressed_file_in_constant_memory(tmp_path: Path, suffix: str) -> None:
    line = "今天 the text is long " * 80
    count = 50_000_000 // len(line.encode()) + 1
    path = write(tmp_path / f"big.txt{suffix}", (line + "\n").encode() * count)
    tracemalloc.start()
    try:
        seen = sum(1 for _ in lines(path))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert seen == count
    assert peak < 5e6


def test_one_endless_line_in_constant_memory(tmp_path: Path) -> None:
    path = write(tmp_path / "big.txt.gz", b"x" * 100_000_000)
    tracemalloc.start()
    try:
        refused(lambda: list(lines(path)), "longer than 16 MiB", where=f"{path}:1")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 50e6


# Rows -------------------------------------------------------------------------------------------

TABLE = [
    {"text": "It works.", "label": "good"},
    {"text": 'He said "no", twice.', "label": ""},
    {"text": " 今天天气很好\u2028 ", "label": "好"},
]


def write_table(path: Path) -> Path:
    if ".parquet" in path.suffixes:
        pq.write_table(pa.Table.from_pylist(TABLE), path)
        return path
    if ".jsonl" in path.suffixes:
        return write(path, "".join(json.dumps(row) + "\n" for row in TABLE))
    if ".tsv" in path.suffixes:
        rest = [f"{row['text']}\t{row['label']}\n" for row in TABLE]
        return write(path, "text\tlabel\n" + "".join(rest))
    rest = ['"{}",{}\r\n'.format(row["text"].replace('"', '""'), row["label"]) for row in TABLE]
    return write(path, "\ufefftext,label\r\n" + "".join(rest))


@pytest.mark.parametrize(
    "name",
    [f"a{kind}{suffix}" for kind in (".jsonl", ".csv", ".tsv") for suffix in COMPRESSIONS]
    + ["a.parquet", "A.CSV.Gz", "b.c.jsonl"],
)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "A.CSV.Gz":
        write_table(tmp_path / "a.csv.gz").rename(path)
    else:
        write_table(path)
    assert is_supported(path)
    found = list(rows(path))
    assert [row.values for row in found] == TABLE
    first = 1 if "jsonl" in name or "parquet" in name else 2  # after the header
    assert [row.where for row in found] == [f"{path}:{first + n}" for n in range(3)]
    assert columns(path) == ["text", "label"]


def test_csv_rows_are_placed_where_they_start(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", '\nid,text\n1,"two\r\nlines"\n\n2,"""q"""\n3,""\n')
    assert [(row.values, row.where) for row in rows(path)] == [
        ({"id": "1", "text": "two\nlines"}, f"{path}:3"),
        ({"id": "2", "text": '"q"'}, f"{path}:6"),
        ({"id": "3", "text": ""}, f"{path}:7"),
    ]


def test_tsv_takes_quotes_as_they_are(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", 'a\tb\n"open\tshut "\n"\t\n')
    assert [row.values for row in rows(path)] == [
        {"a": '"open', "b": 'shut "'},
        {"a": '"', "b": ""},
    ]


def test_long_fields_pass(tmp_path: Path) -> None:
    text = "x" * 500_000
    for name in ("a.csv", "a.tsv"):
        assert next(rows(write(tmp_path / name, f"text\n{text}\n"))).values == {"text": text}


@pytest.mark.parametrize(
    ("name", "content", "where", "words"),
    [
        ("a.csv", "a,b\n1,2\n1,2,3\n", ":3", ["Expected 2 fields", "found 3", "comma"]),
        ("a.csv", 'a,b\n"1\n\n",2\n1\n', ":5", ["Expected 2 fields", "found 1"]),
        ("a.tsv", "a\tb\n1 2\n", ":2", ["Expected 2 fields", "found 1", "tab"]),
        ("a.csv", "a,,b\n1,2,3\n", ":1", ["Column 2 of 3 has no name", "index=False"]),
        ("a.tsv", "a\t \n1\t2\n", ":1", ["Column 2 of 2 has no name"]),
        ("a.csv", "a,b,a\n1,2,3\n", ":1", ["more than once: a"]),
        ("a.csv", "", "", ["has no rows"]),
        ("a.tsv", "\n\n", "", ["has no rows"]),
        ("a.csv", 'a,b\n1,2\n1,"2\n3,4\n', ":3", ["never closed"]),
        ("a.csv", 'a,b\n1,"2"3\n', ":2", ["Not valid CSV", '""yes""']),
        ("a.csv", "a,b\n1,2\r3\n", ":2", ["carriage return"]),
        ("a.tsv", "a\tb\n1\t2\r3\n", ":2", ["carriage return"]),
        ("a.jsonl", '{"a": 1}\n{"a": }\n', ":2:7", ["Not valid JSON", "Expecting value"]),
        ("a.jsonl", '\n \n{"a": 1} x\n', ":3:10", ["Not valid JSON", "Extra data"]),
        ("a.jsonl", '{"a": "1\n', ":1:7", ["Not valid JSON"]),
        ("a.jsonl", "[1, 2]\n", ":1", ["an array, not an object", "jq -c"]),
        ("a.jsonl", '[\n{"a": 1}\n]', ":1:2", ["Not valid JSON", "jq -c"]),
        ("a.jsonl", "1\n", ":1", ["a single value, not an object"]),
        ("a.jsonl", "null\n", ":1", ["null, not an object"]),
        ("a.jsonl", '"a"\n', ":1", ["a string, not an object", "one object a line"]),
        ("a.jsonl", '{"a": "\\ud800"}\n', ":1", ["lone surrogate \\ud800"]),
        ("a.jsonl", '{"a": [{"b\\udfff": 1}]}\n', ":1", ["lone surrogate \\udfff"]),
        ("a.jsonl", '{"a": {"b": "\\u0000"}}\n', ":1", ["NUL"]),
        ("a.jsonl", '{"a": ' + "[" * 100_000 + "\n", ":1", ["nested too deeply"]),
        ("a.jsonl", '{"a": ' + "9" * 10_000 + "}\n", ":1", ["Not readable JSON"]),
        ("a.csv", b"a,b\n1,\xe9\n", ":2:3", ["Latin-1"]),
    ],
)
def test_bad_rows(
    tmp_path: Path, name: str, content: str | bytes, where: str, words: list[str]
) -> None:
    path = write(tmp_path / name, content)
    refused(lambda: list(rows(path)), *words, where=f"{path}{where}")


def test_rows_before_a_bad_one_are_given(tmp_path: Path) -> None:
    reader = rows(write(tmp_path / "a.csv", "a,b\n1,2\n3\n"))
    assert next(reader).values == {"a": "1", "b": "2"}
    refused(lambda: next(reader), "found 1")


def test_a_field_over_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Lines stay below the limit, but an open quote swallows them all.
    monkeypatch.setattr(files, "LINE_LIMIT", 2**20)
    before = csv.field_size_limit(1000)
    try:
        path = write(tmp_path / "a.csv", 'a\n1\n"' + ("x" * 1000 + "\n") * 1200)
        refused(lambda: list(rows(path)), "longer than 1 MiB", "never closed", where=f"{path}:3")
    finally:
        csv.field_size_limit(before)


def test_json_values_are_kept(tmp_path: Path) -> None:
    line = '{"a": [1, 2.5, null, true], "b": {"c": "\\ud83d\\ude00"}, "d": NaN}\n'
    (row,) = rows(write(tmp_path / "a.jsonl", line))
    assert row.values["a"] == [1, 2.5, None, True]
    assert row.values["b"] == {"c": "😀"}
    assert row.values["d"] != row.values["d"]


def test_parquet_values_and_places(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"text": [f"row {n}" for n in range(1000)], "n": [None, *range(999)]})
    pq.write_table(table, path, row_group_size=300)
    found = list(rows(path))
    assert [row.values for row in found] == table.to_pylist()
    assert [found[0].where, found[-1].where] == [f"{path}:1", f"{path}:1000"]


def test_bad_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"row {n * n}" for n in range(5000)]}), path)
    data = path.read_bytes()
    middle = len(data) // 4
    for bad in (b"", b"text", data[:-20], data[:middle] + b"\xff" * 2000 + data[middle + 2000 :]):
        path.write_bytes(bad)
        error = refused(lambda: list(rows(path)), "Parquet file is damaged")
        assert str(error.where).startswith(str(path))
    pq.write_table(pa.table({"text": ["fine", "a\0b"]}), path)
    refused(lambda: list(rows(path)), "NUL", where=f"{path}:2")
    pq.write_table(pa.table([pa.array([1]), pa.array([2])], names=["a", "a"]), path)
    refused(lambda: list(rows(path)), "more than once: a")


def test_columns_of_files_without_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    assert columns(path) == ["text"]
    assert columns(write(tmp_path / "a.csv", "text,label\n")) == ["text", "label"]
    assert list(rows(tmp_path / "a.csv")) == []
    for name in ("b.csv", "b.tsv", "b.jsonl"):
        path = write(tmp_path / name, "\n")
        refused(lambda path=path: columns(path), "has no rows", where=str(path))
    assert list(rows(tmp_path / "b.jsonl")) == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a.txt", ["no columns", ".jsonl, .csv, .tsv, .parquet"]),
        ("a.txt.gz", ["no columns"]),
        ("a.doc", [".doc", ".txt, .jsonl, .csv, .tsv, .parquet", ".gz, .xz, .zst"]),
        ("a", ["without a suffix"]),
        ("a.gz", ["without a suffix"]),
        ("a.json", ["jq -c '.[]'"]),
        ("a.xlsx", ["CSV UTF-8"]),
        ("a.parquet.gz", ["compresses inside", "gzip -d"]),
        ("a.csv.bz2", [".bz2"]),
    ],
)
def test_formats_without_rows(tmp_path: Path, name: str, words: list[str]) -> None:
    path = tmp_path / name
    refused(lambda: rows(path), *words, where=str(path))
    refused(lambda: columns(path), *words, where=str(path))
    assert is_supported(path) == name.startswith("a.txt")


def test_missing_files_have_no_rows(tmp_path: Path) -> None:
    for kind in files.ROW_FORMATS:
        path = tmp_path / f"a{kind}"
        refused(lambda path=path: next(rows(path)), "There is no file", where=str(path))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="lists open files as Linux does")
def test_files_are_closed_when_reading_stops_early(tmp_path: Path) -> None:
    for name in ("a.csv", "a.tsv.gz", "a.jsonl.xz", "a.csv.zst", "a.parquet"):
        path = write_table(tmp_path / name)
        reader = rows(path)
        next(reader)
        del reader
        entries = Path("/proc/self/fd").iterdir()
        open_files = [str(entry.readlink()) for entry in entries if entry.is_symlink()]
        assert str(path) not in open_files
