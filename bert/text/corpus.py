"""The reading room: files and folders become a stream of documents. Layer 1.

A document is what belongs together: a row's text, or in a ``.txt`` file the lines between two
blank lines. Sentence pairs and packed sequences are later made inside documents only.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bert.errors import DataError
from bert.text import files

PREPARED = "shards.json"  # the file that tells prepared shards from text
DOCUMENT_LIMIT = 4 * 2**20  # characters: a longer .txt document is handed out in pieces


@dataclass(frozen=True)
class Document:
    """One document's text, and ``file:line`` where it starts (Parquet: ``file:row``)."""

    text: str
    where: str


def corpus_files(paths: Sequence[Path]) -> list[Path]:
    """The files that ``paths`` stand for: a file for itself, a folder for all below it.

    Of a folder the files of supported formats are taken; hidden files and folders are left out.
    A file that is reached twice is taken once. The order of the result is that of the names.

    Raises:
        DataError: a path does not exist, is not of a supported format or holds prepared shards,
            or there is no file.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        if path.is_dir():
            chosen = _files_below(path)
        else:
            files.open_raw(path).close()  # missing or unreadable is told before hours of work
            files.format_of(path)
            chosen = [path]
        for file in chosen:
            found.setdefault(file.resolve(), file)
    if not found:
        raise DataError(
            f"There are no text files: looked for {', '.join(files.FORMATS)}.",
            where=", ".join(str(path) for path in paths) or None,
            fix="name a file, or a folder that holds some",
        )
    return sorted(found.values())


def _files_below(folder: Path) -> list[Path]:
    def stop(error: OSError) -> None:
        raise DataError(
            f"A folder cannot be read: {error.strerror}.",
            where=error.filename,
            fix=f"chmod u+rx {shlex.quote(str(error.filename))}",
        )

    found = []
    for where, folders, names in os.walk(folder, onerror=stop):
        if PREPARED in names:
            raise DataError(
                "This folder holds prepared shards, not text.",
                where=where,
                fix=f"train on them alone: bert pretrain {shlex.quote(where)} --minutes 60",
            )
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(where, name)
            if not name.startswith(".") and files.is_supported(path) and path.is_file():
                found.append(path)
    return sorted(found)


def documents(paths: Sequence[Path], text_column: str = "text") -> Iterator[Document]:
    """Stream the documents of files and folders, in order, in constant memory.

    In ``.txt`` files blank lines stand between documents; one longer than 4 Mi characters comes
    in pieces cut at line ends. In the other formats each row is one. Empty ones and nulls are
    left out.

    Args:
        paths: files and folders, as ``corpus_files`` takes them.
        text_column: the column of the text in files that have columns.

    Raises:
        DataError: as ``corpus_files``; while reading, a row without a string in that column,
            or anything wrong with a file.
    """
    chosen = corpus_files(paths)
    return (document for file in chosen for document in _documents_of(file, text_column))


def _documents_of(path: Path, text_column: str) -> Iterator[Document]:
    if files.format_of(path) == ".txt":
        return _blank_line_separated(path)
    return _row_texts(path, text_column)


def _blank_line_separated(path: Path) -> Iterator[Document]:
    start = size = 0
    held: list[str] = []
    for number, line in files.lines(path):
        blank = not line.strip()
        if held and (blank or size + len(line) > DOCUMENT_LIMIT):
            yield Document("\n".join(held), f"{path}:{start}")
            held, size = [], 0
        if not blank:
            start = start if held else number
            held.append(line)
            size += len(line) + 1
    if held:
        yield Document("\n".join(held), f"{path}:{start}")


def _row_texts(path: Path, text_column: str) -> Iterator[Document]:
    for row in files.rows(path):
        if text_column not in row.values:
            raise _no_column(text_column, list(row.values), row.where)
        text = row.values[text_column]
        if text is None:
            continue
        if not isinstance(text, str):
            raise DataError(
                f'Column "{text_column}" holds {type(text).__name__}, not text.',
                where=row.where,
                fix="text_column=NAME of a column of strings, or write this value as a string",
            )
        if text.strip():
            yield Document(text, row.where)


def _no_column(wanted: str, there_are: list[str], where: str) -> DataError:
    near = difflib.get_close_matches(wanted, there_are, n=1)
    if len(there_are) == 1:
        near = there_are
    return DataError(
        f'There is no column "{wanted}"; the columns are: {", ".join(there_are) or "none"}.',
        where=where,
        fix=f"text_column={near[0] if near else 'NAME'}",
    )


def content_hash(paths: Sequence[Path]) -> str:
    """SHA-256, in hex, of what the files hold, whatever their names but for the suffix.

    The files are taken in sorted order, each as its format and the bytes stored followed by
    their number, so that moving text from one file to the next changes the hash, and so does
    reading the same bytes as another format.

    Raises:
        DataError: as ``corpus_files``.
    """
    return hash_of_files(corpus_files(paths))


def hash_of_files(paths: Sequence[Path]) -> str:
    """``content_hash`` of files of any format, such as a task reads.

    Raises:
        DataError: a file cannot be opened.
    """
    digest = hashlib.sha256()
    for path in sorted(paths):
        size = 0
        digest.update(f"{' '.join(files.suffixes(path))}\n".encode())
        with files.open_raw(path) as file:
            while block := file.read(2**20):
                digest.update(block)
                size += len(block)
        digest.update(size.to_bytes(8, "big"))
    return digest.hexdigest()


def sample_texts(documents: Iterable[Document], characters: int) -> list[str]:
    """Texts of documents drawn evenly from a stream, at most so many characters, in order.

    A smaller stream is taken whole. The same documents give the same sample. Memory is that of
    the sample, however long the stream.
    """
    held: list[tuple[float, str]] = []
    size, share = 0, 1.0
    for number, document in enumerate(documents):
        # A number from 0 to 1 that depends on nothing but the document's place.
        digest = hashlib.blake2b(number.to_bytes(8, "big"), digest_size=8).digest()
        rank = int.from_bytes(digest, "big") / 2**64
        if rank >= share:
            continue
        held.append((rank, document.text))
        size += len(document.text)
        while size > characters and len(held) > 1:
            share /= 2
            held = [item for item in held if item[0] < share] or held[:1]
            size = sum(len(text) for _, text in held)
    return [text for _, text in held]
