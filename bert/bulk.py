"""Answers to files of any size, kept as they come, so that a second start goes on from the first.

What is made of a file lies beside its place while it is being made::

    .NAME.part       the answers so far, chunk after chunk
    .NAME.part.key   what they are answers to; of another model or file they are made anew
    .NAME.errors     the rows that have none, and why

and is moved to its place when it is whole. A line or vector that a kill cut in two does not
count. Of a folder of files each is answered like this, and then gets a mark::

    OUT/.job          what the answers of this folder depend on
    OUT/.NAME.done    the file of which NAME is the answers, and how many rows it has
    OUT/errors.jsonl  the rows of all files that have no answer

so that a second start answers those that have none, or have changed.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from filelock import FileLock, Timeout

from bert import __version__, log
from bert.cache import key_of
from bert.cluster import ray_cluster
from bert.data.rows import Example
from bert.errors import BertError, DataError, Interrupted, RowError, UsageError
from bert.predictor import TEXTS_AT_ONCE, Predictor
from bert.tasks.task import Answer
from bert.text import remote
from bert.text.files import is_supported, suffixes

ERRORS = "errors.jsonl"

_BLOCK = 2**20  # bytes looked through at once

Source = Path | str  # a file at hand, or the URL of one
Item = Example | RowError  # a row, or why there is none
SomeItem = TypeVar("SomeItem", bound=Item)


# One file ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kept(Generic[SomeItem]):
    """Answers that are being made.

    Args:
        path: the file of them, one JSON object a line.
        rows: how many rows already had theirs.
        answered: every row with its answer, from the first on. It must be read to its end.
    """

    path: Path
    rows: int
    answered: Iterator[tuple[SomeItem, Answer]]


@contextmanager
def keeping(path: Path, *key: object, patience: float = 0.0) -> Iterator[None]:
    """While a file is made bit by bit: it is there, with what an interrupted start left of it.

    It is removed when the block ends well (it should have been moved by then) or with an error of
    ours, and stays when it is interrupted.

    Args:
        path: of what is made; its folder is there.
        key: what it depends on, JSON-ready.
        patience: seconds to wait for another process that is at work on it.

    Raises:
        UsageError: another process is at work on this path.
    """
    beside = path.with_name(path.name + ".key")
    wanted = key_of(__version__, *key)
    with _alone(path.with_name(path.name + ".lock"), patience):
        try:
            known = path.is_file() and beside.is_file()
            if not (known and beside.read_text(encoding="utf-8") == wanted):
                path.unlink(missing_ok=True)
                path.touch()
                beside.write_text(wanted, encoding="utf-8")
            yield
        except Interrupted:  # a second start goes on from here
            raise
        except (BertError, OSError):  # a second start would end like this one, or has no room
            _remove(path, beside)
            raise
        else:
            _remove(path, beside)


@contextmanager
def _alone(path: Path, patience: float = 0.0) -> Iterator[None]:
    """No other process is in a block with this lock."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=patience)
    except Timeout:
        raise UsageError(
            "Another process is writing these answers.", where=str(path), fix="wait for it"
        ) from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before it is another's
        lock.release()


@contextmanager
def kept_answers(
    predictor: Predictor,
    items: Iterator[SomeItem],
    path: Path,
    *key: object,
    strict: bool,
    patience: float = 0.0,
) -> Iterator[Kept[SomeItem]]:
    """The answers to the rows of a file, going on where an earlier start was interrupted.

    Args:
        predictor: answers.
        items: the rows, which may come through ``passing_over``.
        path: where the answers are kept, as ``keeping`` does.
        key: what else the answers depend on, JSON-ready: ``facts_of`` the file and more.
        strict: whether a row that the model cannot take is an error; else its answer says so.
        patience: as of ``keeping``.

    Raises:
        UsageError: another process is at work on this path.
        DataError: a row that cannot be read or answered.
    """
    with keeping(path, facts_of(predictor.directory), *key, patience=patience):
        size, rows = _whole_chunks(path)
        with path.open("r+b") as done:
            done.truncate(size)
        say_kept(rows)
        yield Kept(path, rows, _answered(predictor, items, path, rows, strict))


def say_kept(rows: int) -> None:
    """Tell that a start goes on from an earlier one."""
    if rows:
        log.say(f"Going on after {rows:,} rows that have their answers.")


def _remove(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def facts_of(source: Source) -> list[Any]:
    """What changes when a file, or one in a folder, does; JSON-ready.

    Raises:
        DataError: there is no such file.
    """
    if not isinstance(source, Path):
        return [source, remote.mark_of(source)]
    files = sorted(source.rglob("*")) if source.is_dir() else [source]
    try:
        found = [(item, item.stat()) for item in files]
    except OSError:
        return [str(source)]  # whoever reads it says what is wrong
    return [[str(item.resolve()), stat.st_size, stat.st_mtime_ns] for item, stat in found]


def _whole_chunks(path: Path) -> tuple[int, int]:
    """Bytes and rows of the answers at the start of a file that are whole chunks.

    Rows are answered in the chunks of the first start, so that their numbers are the same.
    """
    size = rows = whole = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            place = -1
            while (place := block.find(b"\n", place + 1)) >= 0:
                rows += 1
                if rows % TEXTS_AT_ONCE == 0:
                    whole = size + place + 1
            size += len(block)
    return whole, rows // TEXTS_AT_ONCE * TEXTS_AT_ONCE


def _answered(
    predictor: Predictor, items: Iterator[SomeItem], path: Path, rows: int, strict: bool
) -> Iterator[tuple[SomeItem, Answer]]:
    """Rows with the answers that are there, then with those that are made."""
    with path.open(encoding="utf-8") as done:
        for item, line in zip(islice(items, rows), done, strict=False):
            yield item, json.loads(line)
    with path.open("a", encoding="utf-8") as file:
        begin = rows
        while chunk := list(islice(items, TEXTS_AT_ONCE)):
            answers = answer_chunk(predictor, chunk, begin, strict=strict)
            begin += len(chunk)
            file.writelines(
                json.dumps(answer, ensure_ascii=False, default=_listed) + "\n" for answer in answers
            )
            file.flush()
            yield from zip(chunk, answers, strict=True)


def _listed(value: Any) -> Any:
    """An array as JSON has it."""
    return value.tolist()


# Bad rows ---------------------------------------------------------------------------------------


def passing_over(examples: Iterator[Example], path: Path, source: Source) -> Iterator[Item]:
    """Rows, with a ``RowError`` in place of each that cannot be read.

    Args:
        examples: the rows.
        path: the file that they are read from.
        source: the name of that file in their places.

    Raises:
        DataError: the file cannot be read any further.
    """
    while True:
        try:
            example = next(examples)
        except StopIteration:
            return
        except RowError as error:
            _name(error, path, source)
            yield error
        else:
            if path == source:
                yield example
            else:
                yield replace(example, where=example.where.replace(str(path), str(source), 1))


def answer_chunk(
    predictor: Predictor, chunk: Sequence[Item], begin: int, *, strict: bool
) -> list[Answer]:
    """An answer for every row; that of a row without one is ``error``, ``where`` and ``fix``.

    Args:
        predictor: answers.
        chunk: rows of a file.
        begin: how many rows come before them.
        strict: whether a row that the model cannot take is an error.

    Raises:
        DataError: it is; or none of the first rows of the file has an answer, so that it is
            hardly the rows that are wrong.
    """
    texts = {place: item.texts for place, item in enumerate(chunk) if isinstance(item, Example)}
    wrong = {place: item for place, item in enumerate(chunk) if isinstance(item, RowError)}
    try:
        found = iter(predictor(list(texts.values())))
    except DataError:
        for place in list(texts):
            try:
                predictor.encode([texts[place]])
            except DataError as error:
                # The predictor counts texts; a person looks for the row.
                where = chunk[place].where
                wrong[place] = RowError(error.what, where=where, fix=error.fix)
                del texts[place]
                if strict:
                    raise wrong[place] from None
        found = iter(predictor(list(texts.values())))
    if begin == 0 and not texts:
        raise wrong[0]
    return [told(wrong[i]) if i in wrong else next(found) for i in range(len(chunk))]


def told(error: DataError) -> Answer:
    """What is wrong, in place of an answer."""
    return {"error": error.what, "where": error.where, "fix": error.fix}


class Done(NamedTuple):
    """What came of a file, or of several.

    Args:
        rows: how many there are.
        bad: how many of them have no answer.
        truncated: of how many the model did not see all.
    """

    rows: int = 0
    bad: int = 0
    truncated: int = 0

    def and_of(self, other: Done) -> Done:
        """Of both."""
        return Done(*(mine + its for mine, its in zip(self, other, strict=True)))


@contextmanager
def bad_rows(shard: Shard) -> Iterator[Callable[[int | None, Answer], None]]:
    """What writes down, while the block lasts, the number of a bad row and what is wrong with it.

    Rows count from 1; None is the whole file. Without any, or with an error, there is no file.
    """
    path = shard.errors

    def write(row: int | None, error: Answer) -> None:
        line = {"row": row, "file": str(shard.source), "message": error["error"]}
        line |= {name: error[name] for name in ("where", "fix")}
        file.write(json.dumps(line, ensure_ascii=False) + "\n")

    try:
        with path.open("w", encoding="utf-8") as file:
            yield write
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    if not path.stat().st_size:
        path.unlink()


# Files and where their answers go ---------------------------------------------------------------


@dataclass(frozen=True)
class Shard:
    """A file whose answers are one.

    Args:
        source: the file.
        out: of the answers; never a link.
        errors: of the rows that have none.
        patience: seconds to wait for another process that is at work on it.
    """

    source: Source
    out: Path
    errors: Path
    patience: float = 0.0

    def beside(self, kind: str) -> Path:
        """A hidden file beside the answers: ``part`` or ``done``."""
        return self.out.with_name(f".{self.out.name}.{kind}")


# Answers the rows of a shard's file, of which a copy is at hand, as one that is strict or not.
Worker = Callable[[Shard, Path], Done]


def is_one_file(names: Sequence[str]) -> bool:
    """Whether names stand for one file, whose answers are one file too."""
    if len(names) != 1:
        return False
    if remote.is_remote(names[0]):
        return remote.is_file(names[0])
    return not (Path(names[0]).is_dir() or _is_pattern(names[0]))


def _is_pattern(name: str) -> bool:
    return any(sign in name for sign in "*?[") and not Path(name).exists()


def files_of(names: Sequence[str], formats: Sequence[str]) -> dict[str, Source]:
    """The files that names stand for, each under the name it has below its folder.

    A folder, here or behind a URL, stands for the files of some formats below it, a pattern such
    as ``rows/*.csv`` for those that match, a file for itself.

    Raises:
        DataError: there is no such file, or none of these formats.
        UsageError: two would have the same name, or a URL cannot be read.
    """
    found: dict[str, Source] = {}
    for name in names:
        below: dict[str, Source] = {}
        if is_one_file([name]):
            below[_name_of(name)] = name if remote.is_remote(name) else Path(name)
        elif remote.is_remote(name):
            below |= remote.files_below(name)
        else:
            parts = Path(name).parts
            fixed = next((i for i, part in enumerate(parts) if _is_pattern(part)), len(parts))
            folder = Path(*parts[:fixed])
            paths = folder.glob(str(Path(*parts[fixed:]) if fixed < len(parts) else "**/*"))
            below |= {str(path.relative_to(folder)): path for path in paths if path.is_file()}
        for key in sorted(below):
            hidden = any(part.startswith(".") for part in Path(key).parts)
            if not is_one_file([name]) and (hidden or _format(key) not in formats):
                continue
            if found.setdefault(key, below[key]) != below[key]:
                raise UsageError(
                    "The answers of two files would have the same name.",
                    where=f"{found[key]} and {below[key]}",
                    fix="give a folder above them, or one of them at a time",
                )
    if not found:
        raise DataError(
            f"There are no files of rows: looked for {', '.join(formats)}.",
            where=", ".join(names),
            fix="name a file, or a folder that holds some",
        )
    return found


def _name_of(name: str) -> str:
    return Path(name.partition("?")[0]).name if remote.is_remote(name) else Path(name).name


def _format(name: str) -> str:
    return suffixes(Path(name))[0] if is_supported(Path(name)) else ""


@contextmanager
def at_hand(source: Source) -> Iterator[Path]:
    """A file, fetched while the block lasts if it lies elsewhere; in errors stands its own name.

    Raises:
        DataError: it cannot be fetched.
    """
    if isinstance(source, Path):
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="fetched-") as folder:
        path = remote.fetch(source, Path(folder))
        try:
            yield path
        except DataError as error:
            _name(error, path, source)
            raise


def _name(error: DataError, path: Path, source: Source) -> None:
    """Say in an error where a file came from, instead of where it is for now."""
    if path != source:
        error.where = error.where.replace(str(path), str(source), 1) if error.where else None
        if error.fix and str(path) in error.fix:
            error.fix = "mend the file there"


# Many files -------------------------------------------------------------------------------------


def answer_files(
    files: Mapping[str, Source],
    out: Path,
    ending: str,
    start: Callable[[], Worker],
    *key: object,
    overwrite: bool,
    strict: bool,
    on_ray: bool,
) -> tuple[Done, int]:
    """Answer file after file into a folder, going on where an earlier start was interrupted.

    Args:
        files: by their names.
        out: the folder. The answers of a file lie in it under its name and ``ending``.
        ending: such as ``.jsonl``.
        start: gives what answers a file. It is called once in every process that works.
        key: what all answers depend on, JSON-ready.
        overwrite: whether answers that depend on something else may be replaced.
        strict: whether the first bad row ends it.
        on_ray: whether the files are answered by actors of Ray, several at once.

    Returns:
        What came of all files, also of those that were answered before, and how many could not
        be answered.

    Raises:
        UsageError: the folder holds something else.
        DataError: no file can be answered; or, if strict, one of them cannot.
    """
    out.mkdir(exist_ok=True)
    out = out.resolve()
    with _alone(out / ".lock"):
        shards = [_shard(source, out / (name + ending)) for name, source in files.items()]
        wanted = {shard.out for shard in shards}
        _claim(out, key_of(__version__, *key), wanted, overwrite=overwrite)
        facts = {shard: facts_of(shard.source) for shard in shards}
        known = {shard: done for shard in shards if (done := _mark_of(shard, facts[shard]))}
        waiting = [shard for shard in shards if shard not in known]
        if known:
            log.say(f"Going on: {len(known):,} of {len(shards):,} files have their answers.")
        failed: list[DataError] = []
        outcomes = _on_ray(start, waiting) if on_ray else _one_by_one(start, waiting)
        with log.Progress("Files", len(shards)) as progress:
            for number, (shard, outcome) in enumerate(outcomes, start=len(known) + 1):
                if isinstance(outcome, Done):
                    known[shard] = outcome
                elif strict or not isinstance(outcome, DataError):
                    raise outcome
                else:
                    failed.append(outcome)
                    shard.out.unlink(missing_ok=True)  # what it said when it could be read
                    with bad_rows(shard) as write_bad:
                        write_bad(None, told(outcome))
                progress.update(number, f"{number:,} of {len(shards):,}")
        if failed and not known:
            for shard in waiting:
                shard.errors.unlink(missing_ok=True)
            raise failed[0]
        _gather_errors(shards, out)
    total = Done()
    for done in known.values():
        total = total.and_of(done)
    return total, len(failed)


def _shard(source: Source, out: Path) -> Shard:
    # A process on a cluster may outlive the one that started it for a while.
    return Shard(source, out, out.with_name(f".{out.name}.errors"), patience=60.0)


def _claim(out: Path, job: str, wanted: Set[Path], *, overwrite: bool) -> None:
    """Make sure that what lies in a folder are answers of this kind, or may be replaced."""
    told = out / ".job"
    if told.is_file() and told.read_text(encoding="utf-8") == job:
        return
    if not overwrite and any(path.name != ".lock" for path in out.iterdir()):
        raise UsageError(
            "The output folder holds something else than answers of this model and these columns.",
            where=str(out),
            fix="choose another -o, or --overwrite",
        )
    for mark in out.rglob(".*.done"):
        answers = mark.with_name(mark.name[1 : -len(".done")])
        if answers not in wanted:  # to a file that is gone; the others are replaced
            answers.unlink(missing_ok=True)
        mark.unlink()
    stage = out / ".job.part"
    stage.write_text(job, encoding="utf-8")
    stage.replace(told)


def answer_shard(shard: Shard, worker: Worker, facts: list[Any]) -> Done:
    """Answer one file and mark it as done.

    Raises:
        BertError: as the worker does.
    """
    shard.beside("done").unlink(missing_ok=True)
    shard.out.parent.mkdir(parents=True, exist_ok=True)
    with at_hand(shard.source) as file:
        done = worker(shard, file)
    stage = shard.beside("done.part")
    stage.write_text(json.dumps({"facts": facts, **done._asdict()}), encoding="utf-8")
    stage.replace(shard.beside("done"))
    return done


def _mark_of(shard: Shard, facts: list[Any]) -> Done | None:
    """What came of a file, if it has been answered as it is now."""
    try:
        mark = json.loads(shard.beside("done").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    if mark.pop("facts") != facts or not shard.out.is_file():
        return None
    return Done(**mark)


def _gather_errors(shards: Sequence[Shard], out: Path) -> None:
    """Put the bad rows of all files into one, which is not there if there are none."""
    stage, target = out / f".{ERRORS}.part", out / ERRORS
    with stage.open("wb") as file:
        for shard in shards:
            if shard.errors.is_file():
                with shard.errors.open("rb") as part:
                    shutil.copyfileobj(part, file)
    if stage.stat().st_size:
        stage.replace(target)
    else:
        _remove(stage, target)


Outcome = tuple[Shard, Done | BertError]


def _one_by_one(start: Callable[[], Worker], shards: Sequence[Shard]) -> Iterator[Outcome]:
    worker = start() if shards else None
    for shard in shards:
        assert worker is not None
        yield shard, _outcome(shard, worker)


def _outcome(shard: Shard, worker: Worker) -> Done | BertError:
    try:
        return answer_shard(shard, worker, facts_of(shard.source))
    except DataError as error:
        return error


def _on_ray(start: Callable[[], Worker], shards: Sequence[Shard]) -> Iterator[Outcome]:
    """Files by actors of Ray Data, as they are finished.

    An actor answers one file at a time and marks it itself, so that what is done stays done
    whatever becomes of the cluster. If a process of it dies, all end: a second start goes on,
    where waiting for a cluster to mend itself may have no end.

    Raises:
        BertError: a process of the cluster died.
    """
    if not shards:
        return
    with ray_cluster() as ray:
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        ray.data.DataContext.get_current().enable_progress_bars = False
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        size = min(gpus or int(resources.get("CPU", 1)), len(shards))
        items = ray.data.from_items(
            [{"place": place} for place in range(len(shards))], override_num_blocks=len(shards)
        )
        answered = items.map_batches(
            _Actor,
            fn_constructor_args=(start, list(shards), str(Path.cwd())),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=size),
            num_cpus=0 if gpus else 1,
            num_gpus=1 if gpus else 0,
            ray_remote_args_fn=_without_restarts,
        )
        try:
            for row in answered.iter_rows():
                yield shards[int(row["place"])], pickle.loads(row["outcome"])
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1]
            raise BertError(
                f"A process of the Ray cluster failed: {reason:.200}.",
                fix="repeat the command: it goes on from here",
            ) from error


def _without_restarts() -> dict[str, int]:
    return {"max_restarts": 0, "max_task_retries": 0}


class _Actor:
    """A process of a cluster that answers files."""

    def __init__(self, start: Callable[[], Worker], shards: list[Shard], folder: str) -> None:
        with suppress(OSError):
            os.chdir(folder)  # from which the paths of the files are told
        self.start = start
        self.shards = shards
        self.worker: Worker | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        outcomes = [pickle.dumps(self._outcome(self.shards[int(i)])) for i in batch["place"]]
        return {"place": batch["place"], "outcome": outcomes}

    def _outcome(self, shard: Shard) -> Done | BertError:
        # What goes wrong is told to the one who asked: an actor that fails is started again.
        try:
            self.worker = self.worker or self.start()
            return answer_shard(shard, self.worker, facts_of(shard.source))
        except BertError as error:
            return error
