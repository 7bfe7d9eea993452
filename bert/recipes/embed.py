"""``bert embed``: a vector for each text of a file."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bert import log
from bert.data.rows import Example, choose_columns, no_rows, read_examples
from bert.errors import DataError, UsageError
from bert.model.encoder import BERT
from bert.predictor import TEXTS_AT_ONCE, Predictor
from bert.recipes.predict import check_output
from bert.text.files import format_of, lines

Vector = NDArray[np.float32]  # [H]
Rows = Iterator[tuple[str, Vector]]


def embed_file(name: str, file: Path, out: Path, text: Sequence[str], *, overwrite: bool) -> int:
    """Write a vector for each row, in order, with memory flat in the number of rows.

    The file appears whole: it is written beside its place and moved there at the end.

    Args:
        name: a run folder, a model directory or a hub id; of a model with a head the encoder.
        file: rows, or a .txt file with a text on each line.
        out: ``.npy``, an array [rows, H] in fp32; ``.parquet``, columns ``text`` and
            ``embedding``; ``.jsonl``, an object of these a line.
        text: the column of texts, or none for the usual ones.
        overwrite: whether a file may be replaced.

    Returns:
        How many rows there were.

    Raises:
        ModelError, DataError, UsageError: as their names say.
    """
    if out.suffix not in _WRITERS:
        raise UsageError(
            f"Vectors are not written as {out.suffix or 'a file without a suffix'}.",
            where=str(out),
            fix=f"-o {out.stem or 'vectors'}.npy, or {' or '.join(list(_WRITERS)[1:])}",
        )
    check_output(file, out, overwrite=overwrite)
    column = text_column(file, text)
    predictor = Predictor(name, task="embedding")
    target = out.resolve()  # a link stays, what it leads to is replaced
    handle, stage = tempfile.mkstemp(prefix=f".{target.name}-", dir=target.parent)
    os.close(handle)
    try:
        width = width_of(predictor)
        count = _WRITERS[out.suffix](Path(stage), width, vectors(predictor, file, column))
        Path(stage).chmod(0o644)
        Path(stage).replace(target)
    finally:
        Path(stage).unlink(missing_ok=True)
    log.say(f"{count:,} vectors of {width} numbers in {out}")
    return count


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
        yield from read_examples(file, [column], None, None)
        return
    found = False
    for number, line in lines(file):
        if line.strip():
            found = True
            yield Example(line, None, f"{file}:{number}")
    if not found:
        raise no_rows(file)


def width_of(predictor: Predictor) -> int:
    """How many numbers a vector has."""
    encoder = predictor.model
    assert isinstance(encoder, BERT)
    return encoder.config.hidden_size


def vectors(predictor: Predictor, file: Path, column: str | None) -> Rows:
    """The texts of a file with their vectors, read as they are asked for."""
    source = texts_of(file, column)
    count = 0
    with log.Progress("Texts") as progress:
        while chunk := list(islice(source, TEXTS_AT_ONCE)):
            texts = [example.parts[0] for example in chunk]
            for text, answer in zip(texts, predictor(texts), strict=True):
                yield text, np.array(answer["embedding"], dtype=np.float32)
            count += len(chunk)
            progress.update(count, f"{count:,}")


def write_npy(path: Path, width: int, rows: Rows) -> int:
    """Vectors as an array [rows, width] of fp32, which numpy can map into memory."""
    count = 0

    def header(file: Any) -> int:
        # numpy leaves room for more rows, so that the header can be written again.
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f4", "fortran_order": False, "shape": (count, width)}
        )
        return int(file.tell())

    with path.open("wb") as file:
        begin = header(file)
        for _, vector in rows:
            file.write(vector.astype("<f4").tobytes())
            count += 1
        file.seek(0)
        assert header(file) == begin
    return count


def _write_jsonl(path: Path, width: int, rows: Rows) -> int:
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for text, vector in rows:
            line = {"text": text, "embedding": vector.tolist()}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            count += 1
    return count


def _write_parquet(path: Path, width: int, rows: Rows) -> int:
    import pyarrow as pa
    from pyarrow import parquet

    schema = pa.schema([("text", pa.string()), ("embedding", pa.list_(pa.float32(), width))])
    count = 0
    with parquet.ParquetWriter(path, schema) as writer:
        while chunk := list(islice(rows, TEXTS_AT_ONCE)):
            flat = pa.array(np.concatenate([vector for _, vector in chunk]))
            columns = [
                pa.array([text for text, _ in chunk], pa.string()),
                pa.FixedSizeListArray.from_arrays(flat, width),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
            count += len(chunk)
    return count


_WRITERS: dict[str, Callable[[Path, int, Rows], int]] = {
    ".npy": write_npy,
    ".parquet": _write_parquet,
    ".jsonl": _write_jsonl,
}
