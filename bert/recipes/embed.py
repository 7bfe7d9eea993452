"""``bert embed``: a vector for each text of a file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np

from bert import log
from bert.bulk import (
    Done,
    Item,
    Shard,
    Worker,
    answer_chunk,
    bad_rows,
    facts_of,
    is_one_file,
    keeping,
    passing_over,
    say_kept,
    told,
)
from bert.data.rows import Example, Examples, choose_columns, read_examples
from bert.errors import DataError, RowError, UsageError
from bert.hub import find_model
from bert.model.encoder import BERT
from bert.predictor import TEXTS_AT_ONCE, Predictor
from bert.recipes.predict import answer_all
from bert.tasks.task import Answer
from bert.text.files import FORMATS, Row, each, format_of, lines
from bert.text.remote import is_remote


def embed_files(
    name: str,
    files: Sequence[str],
    out: Path,
    text: Sequence[str],
    *,
    overwrite: bool,
    strict: bool = False,
    on_ray: bool = False,
    precision: str = "auto",
) -> int:
    """Write a vector for each row, in order, with memory flat in the number of rows.

    A row without a text has a vector of not-a-number (in JSON and Parquet null), and is written
    into a file of errors. If the command is interrupted, the same command goes on from there.

    Args:
        name: a run folder, a model directory or a hub id; of a model with a head the encoder.
        files: one file of rows, or a .txt file with a text on each line, or its URL; or several,
            folders or patterns.
        out: for one file ``.npy``, an array [rows, H] in fp32; ``.parquet``, columns ``text``
            and ``embedding``; ``.jsonl``, an object of these a line. For several a folder of
            ``.npy``.
        text: the column of texts, or none for the usual ones.
        overwrite: whether what is there may be replaced.
        strict: whether the first bad row ends it.
        on_ray: whether several files are answered at once, by actors of Ray.
        precision: of the arithmetic: as of ``Predictor``.

    Returns:
        How many rows there were.

    Raises:
        DataError: some rows have no vector; or as its name says.
        ModelError, UsageError: as their names say.
    """
    if is_one_file(files):
        if out.suffix not in WRITERS:
            raise UsageError(
                f"Vectors are not written as {out.suffix or 'a file without a suffix'}.",
                where=str(out),
                fix=f"-o {out.stem or 'vectors'}.npy, or {' or '.join(list(WRITERS)[1:])}",
            )
        if not is_remote(files[0]):
            text_column(Path(files[0]), text)  # before the model is read
    directory = find_model(name).resolve()
    return answer_all(
        files,
        out,
        partial(embedding, directory, tuple(text), precision, strict=strict),
        [facts_of(directory), list(text), "embedding", precision],
        formats=FORMATS,
        ending=".npy",
        what="vectors",
        overwrite=overwrite,
        strict=strict,
        on_ray=on_ray,
    )


def embedding(directory: Path, text: Sequence[str], precision: str, *, strict: bool) -> Worker:
    """What writes the vectors of the rows of a file.

    Args:
        directory: of the model.
        text: the column of texts, or none for the usual ones.
        precision: of the arithmetic: as of ``Predictor``.
        strict: whether the first bad row ends it.

    Raises:
        ModelError, UsageError: as of ``Predictor``.
    """
    predictor = Predictor(directory, precision, task="embedding")

    def embed(shard: Shard, file: Path) -> Done:
        column = text_column(file, text)

        def items() -> Iterator[Item]:
            examples = texts_of(file, column)
            return examples if strict else passing_over(examples, file, shard.source)

        part, whole = shard.beside("part"), shard.beside("whole")
        facts = [facts_of(directory), facts_of(shard.source)]
        key = [*facts, column, "embedding", predictor.precision]
        with keeping(part, *key, patience=shard.patience):
            with bad_rows(shard) as write_bad:
                done = append_vectors(predictor, items(), part, write_bad)
            write = WRITERS[shard.out.suffix]
            try:
                write(part, whole, items())
                whole.replace(shard.out)
            finally:
                whole.unlink(missing_ok=True)
        return done

    return embed


def text_column(file: Path, text: Sequence[str]) -> str | None:
    """The one column of texts, or None for a file whose lines are the texts.

    Raises:
        DataError: the file has no such column.
        UsageError: several are named.
    """
    if len(text) > 1:
        raise UsageError("A vector is that of one text.", fix="give --text once")
    if format_of(file) == ".txt":
        return None
    names = choose_columns(file, text, None, labelled=False)[0]
    if len(names) > 1:
        raise DataError(
            f"The rows have several texts: {', '.join(names)}.",
            where=str(file),
            fix=f"--text {names[0]}",
        )
    return names[0]


def texts_of(file: Path, column: str | None) -> Iterator[Example]:
    """The texts of a file; of a .txt file the lines that are not blank.

    Raises:
        DataError: the file cannot be read, or has none.
    """
    if column is not None:
        return read_examples(file, [column], None, None)
    filled = filter(lambda line: line[1].strip(), lines(file))
    found = each(lambda line: Row({"text": line[1]}, f"{file}:{line[0]}"), filled)
    return Examples(file, found, lambda row: Example(row.values["text"], None, row.where))


def width_of(predictor: Predictor) -> int:
    """How many numbers a vector has."""
    encoder = predictor.model
    assert isinstance(encoder, BERT)
    return encoder.config.hidden_size


def append_vectors(
    predictor: Predictor,
    items: Iterator[Item],
    path: Path,
    write_bad: Callable[[int, Answer], None] | None = None,
) -> Done:
    """Write the vectors of rows behind those that a file has, as an array [rows, H] of fp32.

    numpy can map it into memory. A row without a text has a vector of not-a-number.

    Args:
        predictor: of vectors.
        items: all rows, from the first on.
        path: what an interrupted start left, or an empty file.
        write_bad: is told the number of a row without a text, and why; None if there is none.

    Raises:
        DataError: as ``answer_chunk``.
    """
    width = width_of(predictor)
    rows = bad = 0
    with path.open("r+b") as file, log.Progress("Texts") as progress:
        begin = _write_header(file, 0, width)
        size = 4 * width * TEXTS_AT_ONCE  # bytes of a chunk
        kept = max(path.stat().st_size - begin, 0) // size
        file.truncate(begin + kept * size)
        file.seek(0, os.SEEK_END)
        say_kept(kept * TEXTS_AT_ONCE)
        while chunk := list(islice(items, TEXTS_AT_ONCE)):
            if rows < kept * TEXTS_AT_ONCE:
                answers = [told(item) if isinstance(item, RowError) else {} for item in chunk]
            else:
                answers = answer_chunk(predictor, chunk, rows, strict=True)
                table = np.full((len(chunk), width), np.nan, dtype="<f4")
                for row, answer in zip(table, answers, strict=True):
                    row[:] = answer.get("embedding", np.nan)
                file.write(table.tobytes())
                file.flush()
            for number, answer in enumerate(answers, start=rows + 1):
                if write_bad and "error" in answer:
                    write_bad(number, answer)
                    bad += 1
            rows += len(chunk)
            progress.update(rows, f"{rows:,}")
        file.seek(0)
        _write_header(file, rows, width)
    return Done(rows, bad)


def _write_header(file: BinaryIO, rows: int, width: int) -> int:
    """Write what numpy begins a file with, which leaves room for more rows; its bytes."""
    np.lib.format.write_array_header_1_0(
        file, {"descr": "<f4", "fortran_order": False, "shape": (rows, width)}
    )
    return file.tell()


def _write_npy(part: Path, whole: Path, items: Iterator[Item]) -> None:
    part.replace(whole)


def _write_jsonl(part: Path, whole: Path, items: Iterator[Item]) -> None:
    with whole.open("w", encoding="utf-8") as file:
        for item, vector in zip(items, np.load(part, mmap_mode="r"), strict=True):
            known = isinstance(item, Example)
            line = {
                "text": item.parts[0] if isinstance(item, Example) else None,
                "embedding": vector.tolist() if known else None,
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _write_parquet(part: Path, whole: Path, items: Iterator[Item]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    table = np.load(part, mmap_mode="r")
    width = table.shape[1]
    schema = pa.schema([("text", pa.string()), ("embedding", pa.list_(pa.float32(), width))])
    with parquet.ParquetWriter(whole, schema) as writer:
        begin = 0
        while chunk := list(islice(items, TEXTS_AT_ONCE)):
            flat = pa.array(table[begin : begin + len(chunk)].reshape(-1))
            bad = pa.array([isinstance(item, RowError) for item in chunk])
            texts = [item.parts[0] if isinstance(item, Example) else None for item in chunk]
            columns = [
                pa.array(texts, pa.string()),
                pa.FixedSizeListArray.from_arrays(flat, width, mask=bad),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
            begin += len(chunk)


# What makes a file of an array of vectors and the rows.
WRITERS: dict[str, Callable[[Path, Path, Iterator[Item]], None]] = {
    ".npy": _write_npy,
    ".parquet": _write_parquet,
    ".jsonl": _write_jsonl,
}
