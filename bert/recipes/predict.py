"""``bert predict`` and ``bert fill-mask``: answers for a file of rows, or for one text."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from bert import log
from bert.bulk import kept_answers
from bert.errors import DataError, UsageError
from bert.predictor import Predictor

ROWS_TOLD = 256  # rows between two looks at the progress bar


def predict_file(name: str, file: Path, out: Path, text: Sequence[str], *, overwrite: bool) -> int:
    """Write one answer a row, in order, with memory flat in the number of rows.

    The file appears whole: answers are kept beside its place and moved there at the end. If the
    command is interrupted, the same command goes on from there.

    Returns:
        How many rows there were.

    Raises:
        ModelError, DataError, UsageError: as their names say.
    """
    check_output(file, out, overwrite=overwrite)
    predictor = Predictor(name)
    text = text_columns(predictor, file, text)
    source = predictor.task.read(file, text, None, labelled=False)
    target = out.resolve()  # a link stays, what it leads to is replaced
    part = target.with_name(f".{target.name}.part")
    count = truncated = 0
    with (
        log.Progress("Rows") as progress,
        kept_answers(predictor, file, source, part, list(text)) as kept,
    ):
        for _, answer in kept.answered:
            truncated += answer["truncated"]
            count += 1
            if count % ROWS_TOLD == 0:
                progress.update(count, f"{count:,}")
        part.replace(target)
    if truncated:
        log.notice(
            f"Of {truncated:,} of {count:,} rows both texts are longer than the "
            f"{predictor.max_length} tokens that the model takes; it did not see all of one.",
            where=str(file),
            fix='the rows with "truncated": true',
        )
    log.say(f"{count:,} answers in {out}")
    return count


def check_output(file: Path, out: Path, *, overwrite: bool) -> None:
    """Make sure that a file may be made, from another one, before anything is computed.

    Raises:
        UsageError: it is there, is no file or the one that is read, or has no folder.
    """
    # A device or pipe would be replaced by the file that is moved there.
    if out.exists() and not out.is_file():
        kind = "a folder" if out.is_dir() else "a device or pipe"
        raise UsageError(f"The output is {kind}, not a file.", where=str(out), fix="-o FILE")
    if out.exists() and file.exists() and out.samefile(file):
        raise UsageError("The output is the input.", where=str(out), fix="choose another -o")
    if out.exists() and not overwrite:
        raise UsageError(
            "The output file exists.", where=str(out), fix="choose another -o, or --overwrite"
        )
    if not out.parent.is_dir():
        raise UsageError(
            "There is no such folder.",
            where=str(out.parent),
            fix=f"mkdir -p {shlex.quote(str(out.parent))}",
        )


def text_columns(predictor: Predictor, file: Path, text: Sequence[str]) -> tuple[str, ...]:
    """The columns of texts: those named, or else those that the model was fine-tuned on.

    Raises:
        DataError: the file has no such columns, or the model takes another number of them.
    """
    text = text or predictor.facts.get("text_columns") or []
    chosen = predictor.task.text_columns(file, text)
    if len(chosen) == 2 and not predictor.facts:
        predictor.take_pairs()  # a model of others does not say what it was trained on
    if chosen and not predictor.task.takes(len(chosen)):
        pair = predictor.texts_per_row == 2
        raise DataError(
            f"The model takes {'a pair of texts' if pair else 'one text'} a row, not the columns "
            f"{', '.join(chosen)}.",
            where=str(file),
            fix="--text COLUMN --text COLUMN" if pair else "name one column: --text COLUMN",
        )
    return chosen


def fill_masks(name: str, text: str, *, as_json: bool) -> None:
    """Print the likeliest words for each mask.

    Raises:
        ModelError: the model cannot guess words.
        DataError: the text has no mask.
    """
    predictor = Predictor(name)
    if predictor.task.name != "fill_mask":
        raise UsageError(
            f"This model was fine-tuned for {predictor.task.name}; it guesses no words.",
            where=str(predictor.directory),
            fix="give a pretrained model",
        )
    answer = predictor(text)
    if as_json:
        print(json.dumps(answer, ensure_ascii=False))
        return
    for number, words in enumerate(answer["masks"], start=1):
        for word in words:
            print(f"{number}  {word['probability']:6.1%}  {word['token']}")
