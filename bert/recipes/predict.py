"""``bert predict`` and ``bert fill-mask``: answers for a file of rows, or for one text."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from bert import log
from bert.bulk import (
    ERRORS,
    Done,
    Shard,
    Source,
    Worker,
    answer_files,
    at_hand,
    bad_rows,
    facts_of,
    files_of,
    is_one_file,
    kept_answers,
    passing_over,
)
from bert.errors import DataError, UsageError
from bert.hub import find_model
from bert.predictor import Predictor
from bert.text.files import ROW_FORMATS

ROWS_TOLD = 256  # rows between two looks at the progress bar


def predict_files(
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
    """Write one answer a row, in order, with memory flat in the number of rows.

    A row without an answer has in its place what is wrong with it, which is written into a file
    of errors too. If the command is interrupted, the same command goes on from there.

    Args:
        name: a run folder, a model directory or a hub id.
        files: one file or its URL; or several, folders or patterns, which ``out`` has a file
            of answers for each of.
        out: a file, which appears whole, or a folder, in which the files do.
        text: the columns of texts, or none for those of training, or the usual ones.
        overwrite: whether what is there may be replaced.
        strict: whether the first bad row ends it.
        on_ray: whether several files are answered at once, by actors of Ray.
        precision: of the arithmetic: as of ``Predictor``.

    Returns:
        How many rows there were.

    Raises:
        DataError: some rows have no answer; or as its name says.
        ModelError, UsageError: as their names say.
    """
    directory = find_model(name).resolve()
    return answer_all(
        files,
        out,
        partial(answering, directory, tuple(text), precision, strict=strict),
        [facts_of(directory), list(text), precision],
        formats=ROW_FORMATS,
        ending=".jsonl",
        what="answers",
        overwrite=overwrite,
        strict=strict,
        on_ray=on_ray,
    )


def answering(directory: Path, text: Sequence[str], precision: str, *, strict: bool) -> Worker:
    """What writes the answers to the rows of a file.

    Args:
        directory: of the model.
        text: the columns of texts, or none for the usual ones.
        precision: of the arithmetic: as of ``Predictor``.
        strict: whether the first bad row ends it.

    Raises:
        ModelError, UsageError: as of ``Predictor``.
    """
    predictor = Predictor(directory, precision)

    def answer(shard: Shard, file: Path) -> Done:
        columns = text_columns(predictor, file, text)
        examples = predictor.task.read(file, columns, None, labelled=False)
        items = examples if strict else passing_over(examples, file, shard.source)
        key = [facts_of(shard.source), list(columns), predictor.precision]
        part = shard.beside("part")
        rows = bad = truncated = 0
        with (
            log.Progress("Rows") as progress,
            kept_answers(
                predictor, items, part, *key, strict=strict, patience=shard.patience
            ) as kept,
        ):
            with bad_rows(shard) as write_bad:
                for _, answer in kept.answered:
                    rows += 1
                    if "error" in answer:
                        write_bad(rows, answer)
                        bad += 1
                    else:
                        truncated += answer["truncated"]
                    if rows % ROWS_TOLD == 0:
                        progress.update(rows, f"{rows:,}")
            part.replace(shard.out)
        return Done(rows, bad, truncated)

    return answer


def answer_all(
    names: Sequence[str],
    out: Path,
    start: Callable[[], Worker],
    key: object,
    *,
    formats: Sequence[str],
    ending: str,
    what: str,
    overwrite: bool,
    strict: bool,
    on_ray: bool,
) -> int:
    """Answer one file into another, or several into a folder, and tell what came of it.

    Args:
        names: of the files.
        out: the file or folder.
        start: gives what answers a file.
        key: what the answers of a folder depend on, JSON-ready.
        formats: of the files that are taken from a folder.
        ending: of the answers in a folder.
        what: is written, in words.
        overwrite: whether what is there may be replaced.
        strict: whether the first bad row ends it.
        on_ray: whether several files are answered at once, by actors of Ray.

    Returns:
        How many rows there were.

    Raises:
        DataError, UsageError: as their names say.
    """
    failed = 0
    if is_one_file(names):
        (source,) = files_of(names, formats).values()
        if on_ray:
            raise UsageError(
                "Ray answers several files at once, and this is one.",
                where=names[0],
                fix="give a folder of files, or leave out --engine",
            )
        errors = out.with_suffix(f".{ERRORS}")
        check_output(source, out, overwrite=overwrite)
        check_output(source, errors, overwrite=True)
        with at_hand(source) as file:
            # A link stays, what it leads to is replaced.
            done = start()(Shard(source, out.resolve(), errors), file)
    else:
        check_folder(out)
        errors = out / ERRORS
        done, failed = answer_files(
            files_of(names, formats),
            out,
            ending,
            start,
            key,
            overwrite=overwrite,
            strict=strict,
            on_ray=on_ray,
        )
    if done.truncated:
        log.notice(
            f"Of {done.truncated:,} of {done.rows:,} rows both texts are longer than the model "
            "takes; it did not see all of one.",
            where=", ".join(names),
            fix='the rows with "truncated": true',
        )
    log.say(f"{done.rows:,} {what} in {out}")
    if done.bad or failed:
        rows = f"{done.bad:,} of {done.rows:,} rows have none" if done.bad else ""
        files = f"{failed:,} files could not be read" if failed else ""
        raise DataError(
            f"Not everything has {what}: {' and '.join(filter(None, (rows, files)))}.",
            where=str(errors),
            fix="mend them and repeat the command"
            + (" with --overwrite" if is_one_file(names) else ""),
        )
    return done.rows


def check_folder(out: Path) -> None:
    """Make sure that answers to several files may go into a folder.

    Raises:
        UsageError: it is a file, or there is no folder to make it in.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(
            "The answers to several files are a folder, and this is a file.",
            where=str(out),
            fix="choose another -o",
        )
    _check_parent(out)


def check_output(file: Source, out: Path, *, overwrite: bool) -> None:
    """Make sure that a file may be made, from another one, before anything is computed.

    Raises:
        UsageError: it is there, is no file or the one that is read, or has no folder.
    """
    # A device or pipe would be replaced by the file that is moved there.
    if out.exists() and not out.is_file():
        kind = "a folder" if out.is_dir() else "a device or pipe"
        raise UsageError(f"The output is {kind}, not a file.", where=str(out), fix="-o FILE")
    if out.exists() and isinstance(file, Path) and file.exists() and out.samefile(file):
        raise UsageError("The output is the input.", where=str(out), fix="choose another -o")
    if out.exists() and not overwrite:
        raise UsageError(
            "The output file exists.", where=str(out), fix="choose another -o, or --overwrite"
        )
    _check_parent(out)


def _check_parent(out: Path) -> None:
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
