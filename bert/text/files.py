"""The door of the house: files are read line by line and row by row, and judged as they enter.

Every format is read in constant memory, and whatever is wrong with a file (missing, cut short,
not UTF-8, a ragged row) leaves here as a ``DataError`` that says where. Layer 1.

The suffix names the format: ``.txt``, ``.jsonl``, ``.csv``, ``.tsv`` and ``.parquet``. All but
Parquet, which compresses inside, may be followed by ``.gz``, ``.xz`` or ``.zst``.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import gzip
import io
import itertools
import json
import lzma
import shlex
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from bert.errors import DataError, RowError

FORMATS = (".txt", ".jsonl", ".csv", ".tsv", ".parquet")
ROW_FORMATS = FORMATS[1:]
COMPRESSIONS = {".gz": "gzip", ".xz": "xz", ".zst": "zstd"}  # suffix -> the command for it

LINE_LIMIT = 16 * 2**20  # bytes: longer lines are refused, so that memory stays bounded

_SAMPLE = 2**20  # bytes looked at to guess an encoding
_BUFFER = 2**18  # bytes taken from a decompressor at a time
_BATCH = 256  # Parquet rows in memory at a time
_MAGIC = {
    b"\x1f\x8b": "gzip data",
    b"\xfd7zXZ": "xz data",
    b"\x28\xb5\x2f\xfd": "Zstandard data",
    b"PAR1": "a Parquet file",
    b"PK\x03\x04": "a zip archive (or a Word or Excel file)",
    b"%PDF": "a PDF",
}
_BYTE_ORDER_MARKS = {  # UTF-32 first: its little-endian mark begins with that of UTF-16
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


@dataclass(frozen=True)
class Row:
    """One row of a file: its values by column, and ``file:line`` (Parquet: ``file:row``)."""

    values: dict[str, Any]
    where: str


S = TypeVar("S")
T = TypeVar("T")


def each(function: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """What a function makes of items, one by one, as ``map`` does.

    Where it raises a ``DataError``, a ``RowError`` comes instead, and ``next`` goes on with the
    item after it. Of a generator nothing would be left.
    """

    def one(item: S) -> T:
        try:
            return function(item)
        except DataError as error:
            raise RowError(error.what, where=error.where, fix=error.fix) from None

    return map(one, items)


# Names of files ---------------------------------------------------------------------------------


def suffixes(path: Path) -> tuple[str, str]:
    """The suffix of the format and that of the compression ("" if none), in lower case."""
    name = Path(path.name.lower())
    if name.suffix in COMPRESSIONS:
        return Path(name.stem).suffix, name.suffix
    return name.suffix, ""


def is_supported(path: Path) -> bool:
    """Whether the name is that of a format read here; the file need not exist."""
    suffix, compression = suffixes(path)
    return suffix in FORMATS and not (suffix == ".parquet" and compression)


def format_of(path: Path) -> str:
    """The format by name: ``.txt``, ``.jsonl``, ``.csv``, ``.tsv`` or ``.parquet``.

    Raises:
        DataError: the name ends otherwise.
    """
    suffix, compression = suffixes(path)
    if is_supported(path):
        return suffix
    if suffix == ".parquet":
        raise DataError(
            f"A Parquet file compresses inside and is not read through {compression}.",
            where=str(path),
            fix=_shell(COMPRESSIONS[compression], "-d", path),
        )
    if path.is_dir():
        raise _is_folder(path)
    fix = "rename or convert it to one of these"
    if suffix in (".doc", ".docx", ".odt", ".rtf", ".pdf", ".html", ".htm", ".epub"):
        fix = "save it as plain text in UTF-8, with the suffix .txt"
    elif suffix == ".zip":
        fix = _shell("unzip", path) + "  # then give what was in it"
    elif suffix in (".tar", ".tgz"):
        fix = _shell("tar", "-xf", path) + "  # then give what was in it"
    elif suffix == ".json":
        fix = f"jq -c '.[]' {_quote(path)} > {_quote(path.with_suffix('.jsonl'))}"
    elif suffix in (".xls", ".xlsx", ".ods"):
        fix = "save the sheet as CSV UTF-8"
    raise DataError(
        f"Files named {suffix or 'without a suffix'} are not read; supported are "
        f"{', '.join(FORMATS)}, all but the last also with {', '.join(COMPRESSIONS)}.",
        where=str(path),
        fix=fix,
    )


def _quote(path: Path) -> str:
    return shlex.quote(str(path))


def _shell(*words: str | Path) -> str:
    return shlex.join(str(word) for word in words)


# Bytes ------------------------------------------------------------------------------------------


def open_raw(path: Path) -> io.BufferedReader:
    """Open a file for its bytes as they are stored.

    Raises:
        DataError: there is no such file, it is a folder, or it may not be read.
    """
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise _missing(path) from None
    except IsADirectoryError:
        raise _is_folder(path) from None
    except PermissionError:
        raise DataError(
            "The file may not be read.", where=str(path), fix=_shell("chmod", "u+r", path)
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        raise DataError(
            f"The file cannot be opened: {getattr(error, 'strerror', None) or error}.",
            where=str(path),
            fix="check the name",
        ) from None


def _is_folder(path: Path) -> DataError:
    return DataError(
        "A folder was given where one file is needed.",
        where=str(path),
        fix=f"name one file in it: {_shell('ls', path)}",
    )


def _missing(path: Path) -> DataError:
    """The error for a path that is not there, with near names from the same folder."""
    folder = path.parent
    if not folder.is_dir():
        there = next(parent for parent in folder.parents if parent.is_dir())
        return DataError(
            f"There is no folder {folder}.",
            where=str(path),
            fix=f"look what is there: {_shell('ls', there)}",
        )
    # A folder may hold millions of files; the first thousands are enough for a hint.
    names = [entry.name for entry in itertools.islice(folder.iterdir(), 10_000)]
    near = difflib.get_close_matches(path.name, names, n=3)
    fix = f"look what is there: {_shell('ls', folder)}"
    if near:
        fix = "did you mean " + " or ".join(str(folder / name) for name in near) + "?"
    return DataError(f"There is no file {path.name}.", where=str(path), fix=fix)


class _Source(io.RawIOBase):
    """The bytes of a file, decompressed, whose every failure is a ``DataError``."""

    def __init__(self, path: Path, raw: io.BufferedReader) -> None:
        self._path = path
        self._compression = suffixes(path)[1]
        self._raw = raw
        self._stream: Any = raw
        try:
            # A compressed file of no bytes is a broken download; not every decoder says so.
            if self._compression and not self._raw.peek(1):
                raise EOFError
            if self._compression == ".gz":
                self._stream = gzip.GzipFile(fileobj=self._raw)
            elif self._compression == ".xz":
                self._stream = lzma.LZMAFile(self._raw)  # noqa: SIM115 (see close)
            elif self._compression == ".zst":
                import pyarrow

                self._stream = pyarrow.CompressedInputStream(self._raw, "zstd")
        except (EOFError, OSError) as error:
            self.close()
            raise self._failure(error) from None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        try:
            data: bytes = self._stream.read(len(buffer))
        except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
            raise self._failure(error) from None
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
            self._raw.close()
        super().close()

    def _failure(self, error: Exception) -> DataError:
        if not self._compression:
            return DataError(f"The file cannot be read: {error}.", where=str(self._path))
        command = COMPRESSIONS[self._compression]
        cut = isinstance(error, EOFError) or "truncated" in str(error).lower()
        what = "is cut short" if cut else f"is damaged or not {command} data ({error})"
        return DataError(
            f"The compressed file {what}.",
            where=str(self._path),
            fix=f"download or make it again; this tests it: {_shell(command, '-t', self._path)}",
        )


def open_binary(path: Path) -> io.BufferedReader:
    """Open a file for its bytes, decompressed as they are read if its name says so.

    Raises:
        DataError: the file cannot be opened; also while reading, if it is damaged or cut short.
    """
    return io.BufferedReader(_Source(path, open_raw(path)), _BUFFER)


# Lines ------------------------------------------------------------------------------------------


def lines(path: Path) -> Iterator[tuple[int, str]]:
    r"""Lines of a UTF-8 file with their numbers from 1, without their ``\n`` or ``\r\n``.

    Only ``\n`` ends a line: other separators of Unicode are text. A byte order mark at the start
    is dropped. Memory stays constant.

    Raises:
        DataError: a file that cannot be read.
        RowError: bytes that are not UTF-8 or are NUL, or a line of more than 16 MiB.
    """
    return each(partial(_decoded, path), _raw_lines(path))


class _RawLine(NamedTuple):
    number: int
    raw: bytes
    head: bytes  # of the file
    file: io.BufferedReader


def _raw_lines(path: Path) -> Iterator[_RawLine]:
    with open_binary(path) as file:
        head = file.peek(8)[:8]
        number = 0
        while raw := file.readline(LINE_LIMIT + 2):
            number += 1
            yield _RawLine(number, raw, head, file)
            while len(raw) == LINE_LIMIT + 2 and not raw.endswith(b"\n"):
                raw = file.readline(LINE_LIMIT + 2)  # the rest of a line that is too long


def _decoded(path: Path, line: _RawLine) -> tuple[int, str]:
    number, raw, head, file = line
    if raw.endswith(b"\n"):
        raw = raw[:-2] if raw.endswith(b"\r\n") else raw[:-1]
    if len(raw) > LINE_LIMIT:
        raise DataError(
            f"The line is longer than {LINE_LIMIT // 2**20} MiB.",
            where=f"{path}:{number}",
            fix="put each paragraph or row on a line of its own",
        )
    bad = raw.find(b"\0")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        bad = min(bad, error.start) if bad >= 0 else error.start
    if bad >= 0:
        # Looked at and not taken: the lines that follow may be good.
        sample = raw[max(0, bad - 4096) :] + b"\n" + file.peek(_SAMPLE)
        where = f"{path}:{number}:{bad + 1}"
        raise _not_utf8(path, where, raw[bad], head, sample[:_SAMPLE])
    return number, text.removeprefix("\ufeff") if number == 1 else text


def _not_utf8(path: Path, where: str, byte: int, head: bytes, sample: bytes) -> DataError:
    """The error for a byte that no UTF-8 text has, with the likely reason."""
    for magic, name in _MAGIC.items():
        if head.startswith(magic):
            return DataError(
                f"This is not text but {name}.",
                where=where,
                fix=f"give it the suffix of what it is, or save it as text: {_shell('file', path)}",
            )
    encoding = _likely_encoding(head, sample)
    if encoding is None:
        return DataError(
            "A NUL byte: the file looks binary, not text.",
            where=where,
            fix=f"save it as UTF-8 text; see what it is: {_shell('file', path)}",
        )
    if encoding == "UTF-8":
        return DataError(
            f"Damaged UTF-8: byte 0x{byte:02x} does not belong here.",
            where=where,
            fix=_convert(path, "iconv -c -f UTF-8 -t UTF-8") + "  # drops the bad bytes",
        )
    name = {"LATIN1": "Latin-1"}.get(encoding, encoding)
    return DataError(
        f"Not UTF-8: byte 0x{byte:02x} cannot be decoded; the file is probably {name}.",
        where=where,
        fix=_convert(path, f"iconv -f {encoding} -t UTF-8"),
    )


def _convert(path: Path, command: str) -> str:
    """A shell line that puts a file through ``command`` into one whose name is read here too."""
    compression = suffixes(path)[1]
    plain = path.with_suffix("") if compression else path
    result = _quote(plain.with_name(f"{plain.stem}.utf8{plain.suffix}"))
    if compression:
        return f"{COMPRESSIONS[compression]} -dc {_quote(path)} | {command} > {result}"
    return f"{command} {_quote(path)} > {result}"


def _likely_encoding(head: bytes, sample: bytes) -> str | None:
    """The encoding that bytes refused as UTF-8 probably have, in iconv's words; None: binary."""
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            return encoding
    if b"\0" in sample:
        # Western text in UTF-16 has its zeros in every second place.
        many, few = len(sample) / 6, len(sample) / 20
        even, odd = sample[::2].count(0), sample[1::2].count(0)
        if odd > many and even < few:
            return "UTF-16LE"
        return "UTF-16BE" if even > many and odd < few else None
    text = sample.decode("utf-8", "replace")
    bad = text.count("\ufffd")
    if sum(character > "\x7f" for character in text) - bad > bad:
        return "UTF-8"
    try:
        text = codecs.getincrementaldecoder("gb18030")().decode(sample)
    except UnicodeDecodeError:
        pass
    else:
        # Western text often decodes too, but into rare characters; Chinese is mostly GB 2312.
        wide = [character for character in text if character > "\x7f"]
        common = len("".join(wide).encode("gb2312", "ignore")) // 2
        if wide and common * 2 >= len(wide):
            return "GB18030"
    if any(0x80 <= byte < 0xA0 for byte in sample):  # control characters in Latin-1
        try:
            sample.decode("cp1252")
        except UnicodeDecodeError:
            pass
        else:
            return "WINDOWS-1252"
    return "LATIN1"


# Rows -------------------------------------------------------------------------------------------


def rows(path: Path) -> Iterator[Row]:
    """Rows of a .jsonl, .csv, .tsv or .parquet file, in order, in constant memory.

    CSV and TSV values are strings. CSV follows the usual quoting, so that a field may hold line
    ends; in TSV a quote is a character like any other. Blank lines are skipped.

    Raises:
        DataError: the format has no columns or is not known; while reading, anything wrong with
            the file.
        RowError: anything wrong with a row, after which the next one can be read.
    """
    kind = format_of(path)
    if kind == ".txt":
        raise _no_columns(path)
    if kind == ".jsonl":
        return _json_rows(path)
    if kind == ".parquet":
        return _parquet_rows(path)
    return _table_rows(path, kind)


def columns(path: Path) -> list[str]:
    """The column names: the header, the schema, or for .jsonl the keys of the first row.

    Raises:
        DataError: as ``rows``; also for a file without rows to tell the columns.
    """
    kind = format_of(path)
    if kind == ".txt":
        raise _no_columns(path)
    if kind == ".jsonl":
        return _first_names(path, _json_rows(path))
    if kind == ".parquet":
        with open_raw(path) as raw:
            return _parquet_names(path, _open_parquet(path, raw))
    return _header(path, _records(path, kind))


def _first_names(path: Path, found: Iterator[Row]) -> list[str]:
    """The columns of the first row that is not bad."""
    first: RowError | None = None
    while True:
        try:
            return list(next(found).values)
        except StopIteration:
            raise first or _no_rows(path) from None
        except RowError as error:
            first = first or error


def _no_columns(path: Path) -> DataError:
    return DataError(
        "A .txt file has no columns, and rows need them.",
        where=str(path),
        fix=f"give a file with named columns: {', '.join(ROW_FORMATS)}",
    )


def _no_rows(path: Path) -> DataError:
    return DataError("The file has no rows.", where=str(path), fix="give a file that has some")


def _check_names(names: list[str], where: str) -> list[str]:
    """Refuse column names that are empty or come twice."""
    if not all(name.strip() for name in names):
        place = next(i for i, name in enumerate(names, 1) if not name.strip())
        raise DataError(
            f"Column {place} of {len(names)} has no name.",
            where=where,
            fix="name it in the first row (pandas: write with index=False)",
        )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"Column names come more than once: {', '.join(twice)}.",
            where=where,
            fix="give every column a name of its own",
        )
    return names


def check_strings(value: Any, where: str) -> None:
    """Refuse characters that no text has in the strings of a row, however deep they lie."""
    stack = [value]  # not recursive: rows can be nested deeper than Python's own stack
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            if "\0" in item:
                raise DataError(
                    "A string holds a NUL character.",
                    where=where,
                    fix="remove it from the data: it is no text",
                )
            try:
                item.encode("utf-8")
            except UnicodeEncodeError as error:
                raise DataError(
                    f"A string holds half a character: lone surrogate "
                    f"\\u{ord(item[error.start]):04x}.",
                    where=where,
                    fix="write the file again from its source; the text was cut inside a character",
                ) from None
        elif isinstance(item, dict):
            stack.extend(item)
            stack.extend(item.values())
        elif isinstance(item, list | tuple):
            stack.extend(item)


def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object of its names and values; the hook of a decoder.

    Raises:
        DataError: a name comes twice; which value is meant one can only guess.
    """
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise DataError(
            f"The name {twice!r:.60} comes twice in one object.", fix="keep one of them"
        )
    return values


_DECODER = json.JSONDecoder(object_pairs_hook=distinct)


def _json_rows(path: Path) -> Iterator[Row]:
    filled = filter(lambda line: line[1].strip(), lines(path))
    return each(partial(_json_row, path), filled)


def _json_row(path: Path, numbered: tuple[int, str]) -> Row:
    number, line = numbered
    where = f"{path}:{number}"
    try:
        values = _DECODER.decode(line)
    except DataError as error:
        error.where = where
        raise
    except json.JSONDecodeError as error:
        raise DataError(
            f"Not valid JSON: {error.msg}.",
            where=f"{where}:{error.colno}",
            fix=_one_object(path, line),
        ) from None
    except RecursionError:
        raise DataError(
            "The JSON is nested too deeply.", where=where, fix="flatten it to named columns"
        ) from None
    except ValueError as error:  # a number of thousands of digits
        raise DataError(
            f"Not readable JSON: {error}.", where=where, fix="write such a value as a string"
        ) from None
    if not isinstance(values, dict):
        kind = {list: "an array", str: "a string", type(None): "null"}.get(
            type(values), "a single value"
        )
        raise DataError(
            f"The line holds {kind}, not an object.", where=where, fix=_one_object(path, line)
        )
    if "\\u" in line:  # the only way in: raw NULs and surrogates never pass lines()
        check_strings(values, where)
    return Row(values, where)


def _one_object(path: Path, line: str) -> str:
    if line.lstrip().startswith("[") and not suffixes(path)[1]:
        result = path.with_name(f"{path.stem}.lines.jsonl")
        return f"jq -c '.[]' {_quote(path)} > {_quote(result)}"
    return 'write one object a line: {"text": "...", "label": "..."}'


def _records(path: Path, kind: str) -> Iterator[tuple[int, list[str]]]:
    """Rows of a CSV or TSV file, the header too: the line each starts on, and its fields."""
    # The module's default of 128 KiB is less than a long document.
    csv.field_size_limit(max(csv.field_size_limit(), LINE_LIMIT))
    numbers: list[int] = []  # of the lines of a record

    def line_of(numbered: tuple[int, str]) -> str:
        numbers.append(numbered[0])
        return numbered[1] + "\n"

    source = map(line_of, lines(path))
    if kind == ".csv":
        reader = csv.reader(source, strict=True)
    else:
        reader = csv.reader(source, delimiter="\t", quoting=csv.QUOTE_NONE)

    def record() -> tuple[int, list[str]]:
        numbers.clear()
        try:
            fields = next(reader)
        except csv.Error as error:
            bad = _bad_record(f"{path}:{numbers[0]}", kind, str(error))
            if len(numbers) == 1:
                raise RowError(bad.what, where=bad.where, fix=bad.fix) from None
            raise bad from None  # a quote may have swallowed rows
        return numbers[0], fields

    # Not a generator: after a bad record the next one can be asked for.
    return filter(lambda found: found[1], iter(record, None))


def _bad_record(where: str, kind: str, message: str) -> DataError:
    """The error for a row that the csv module refuses, in words about the file."""
    fix = 'inside a quoted field write a quote twice: "He said ""yes"" to it"'
    if "unexpected end of data" in message:
        what = "A quote is opened in this row and never closed."
    elif "field limit" in message:
        what = f"A field is longer than {LINE_LIMIT // 2**20} MiB; is a quote never closed?"
    elif "new-line character" in message:
        what = "A carriage return stands alone in this row."
        fix = "write line ends as \\n or \\r\\n"
        if kind == ".csv":
            fix += ", and quote fields that hold one"
    else:
        what = f"Not valid CSV: {message}."
    return DataError(what, where=where, fix=fix)


def _header(path: Path, records: Iterator[tuple[int, list[str]]]) -> list[str]:
    start, names = next(records, (0, []))
    if not names:
        raise _no_rows(path)
    return _check_names(names, f"{path}:{start}")


def _table_rows(path: Path, kind: str) -> Iterator[Row]:
    records = _records(path, kind)
    names = _header(path, records)

    def row(record: tuple[int, list[str]]) -> Row:
        start, fields = record
        where = f"{path}:{start}"
        if len(fields) != len(names):
            separator = {".csv": "comma", ".tsv": "tab"}[kind]
            quoting = " (quote fields that hold one)" if kind == ".csv" else ""
            raise DataError(
                f"Expected {len(names)} fields as in the header, found {len(fields)}.",
                where=where,
                fix=f"separate the fields of this row with one {separator} each{quoting}",
            )
        return Row(dict(zip(names, fields, strict=True)), where)

    return each(row, records)


def _open_parquet(path: Path, raw: io.BufferedReader) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(raw)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise _bad_parquet(str(path), error) from None


def _bad_parquet(where: str, error: Exception) -> DataError:
    reason = " ".join(str(error).split())
    return DataError(
        f"The Parquet file is damaged, or is none: {reason}",
        where=where,
        fix="download or write it again",
    )


def _parquet_names(path: Path, file: Any) -> list[str]:
    return _check_names(list(file.schema_arrow.names), str(path))


def _parquet_rows(path: Path) -> Iterator[Row]:
    return each(_checked, _parquet_values(path))


def _checked(row: Row) -> Row:
    check_strings(row.values, row.where)
    return row


def _parquet_values(path: Path) -> Iterator[Row]:
    import pyarrow

    with open_raw(path) as raw:
        file = _open_parquet(path, raw)
        _parquet_names(path, file)
        batches = file.iter_batches(batch_size=_BATCH)
        number = 0
        while True:
            try:
                batch = next(batches, None)
                values = batch.to_pylist() if batch is not None else None
            except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
                raise _bad_parquet(f"{path}:{number + 1}", error) from None
            if values is None:
                return
            for row in values:
                number += 1
                yield Row(row, f"{path}:{number}")
