"""``bert compress``: a smaller or faster model of a trained one, if it is as good."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field

from bert import log
from bert.bulk import facts_of
from bert.cache import key_of
from bert.checkpoint import FACTS, Checkpoint, read_model, write_model
from bert.compress.onnx import FILE, OPSET, OnnxModel, write_onnx
from bert.compress.sensitivity import (
    WINDOWS_AT_ONCE,
    damages,
    keeps,
    read_batches,
    with_kept,
)
from bert.compress.shrink import importance, narrowed, smaller
from bert.config import Settings, read_yaml
from bert.data.rows import Example, training_examples
from bert.errors import DataError, UsageError
from bert.inference.int8 import is_int8, products, quantize
from bert.predictor import Predictor
from bert.recipes.finetune import FinetuneSettings, finetune, read_rows, usual_epochs
from bert.recipes.gate import (
    MAX_DROP,
    Contender,
    check,
    choose_precision,
    facts,
    judge,
    lost,
    table,
    time_all,
)
from bert.recipes.predict import text_columns
from bert.recipes.seeds import CARD
from bert.run import CONFIG, ENVIRONMENT, resumable
from bert.text.corpus import hash_of_files
from bert.untrusted import read_json

# Rows whose gradients tell which neurons matter, and whose texts calibrate int8.
ROWS_TO_LOOK_AT = 512
# Of which so many windows tell what each product in 8 bits changes.
SENSITIVE_ROWS = 128
# A student of a few layers has more to learn than the model it came from had.
MORE_EPOCHS = 2
# Settings of the training that decide whether one that is there is the same.
_TRAINING = ("model", "teacher", "train", "dev", "epochs", "batch_size", "learning_rate", "seed")


class CompressSettings(Settings):
    """All of ``bert compress``; ``layers`` is how many stay, shares are what is removed.

    ``epochs``, ``batch_size``, ``learning_rate`` and ``seed`` are of the training with
    ``--distil``; where they are not given, those of the run.
    """

    run: str
    data: str | None = None
    train: str | None = None
    text: list[str] = Field(default_factory=list)
    label: str | None = None
    to: Literal["int8"] | None = None
    distil: bool = False
    prune: bool = False
    onnx: bool = False
    max_drop: float = Field(MAX_DROP, ge=0)
    layers: int | None = Field(None, gt=0)
    ffn: float | None = Field(None, gt=0, lt=1)
    epochs: int | None = Field(None, gt=0)
    batch_size: int | None = Field(None, gt=0)
    learning_rate: float | None = Field(None, gt=0)
    seed: int | None = Field(None, ge=0, lt=2**32)

    @classmethod
    def of(cls, values: Mapping[str, Any], places: Mapping[str, str] | None = None) -> Self:
        """Settings from values; why there is none called ``heads`` is told."""
        if "heads" in values:
            raise UsageError(
                "Attention heads cannot be removed from a model that others can read: in "
                "config.json their number times their size is the width.",
                where=(places or {}).get("heads"),
                fix="remove neurons or layers: --prune ffn=0.25, --prune layers=4",
            )
        return super().of(values, places)


@dataclass(frozen=True)
class _Rows:
    """What a model is judged on, and what it may learn from.

    Args:
        held_out: with answers.
        train: none where the command was told none and the model does not know.
        settings: of the run that made the model, as it would be run again; None without a run.
    """

    held_out: list[Example]
    train: list[Example]
    settings: FinetuneSettings | None


@resumable()
def compress(settings: CompressSettings, out: Path, *, overwrite: bool = False) -> Path:
    """Write a smaller or faster model into a directory, unless it loses too much.

    Args:
        settings: which model, how, judged on what.
        out: the directory; with ``distil`` there is also ``OUT-training`` beside it.
        overwrite: a model that is there may be replaced.

    Returns:
        The directory.

    Raises:
        UsageError: what is asked for cannot be.
        DataError: there are no rows to judge by or to learn from.
        ModelError: the model cannot be compressed so, or loses more than it may.
        Interrupted: with ``distil`` the same command goes on.
    """
    how = _how(settings)
    _check_out(out, overwrite=overwrite)
    original = Predictor(settings.run)
    _check_model(original, settings)
    rows = _read_rows(settings, original)
    out.parent.mkdir(parents=True, exist_ok=True)
    log.say(f"{settings.run} is measured on {len(rows.held_out):,} rows.")
    first = Contender("original", original, _weights(original.directory))
    judge(first, rows.held_out)
    contenders = [first]
    stage = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        model = stage / "model"
        if how == "int8":
            contenders.append(_in_int8(settings, model, first, rows))
        elif how in ("distil", "prune"):
            if how == "distil":
                made = _distilled(settings, out, rows, original)
            else:
                made = _pruned(settings, original, rows)
            # A model that answers in bf16 is compared with one that may do so too.
            quick = original.precision == "bf16"
            contenders.append(_written(model, made, how, rows.held_out if quick else ()))
        else:
            write_model(model, _read(original))
        if settings.onnx:
            contenders.append(_as_onnx(model))
        for contender in contenders[1:]:
            if not contender.figures:
                judge(contender, rows.held_out)
            check(first, contender, settings.max_drop, settings.run, _FIXES[how])
        time_all(contenders, rows.held_out)
        _note_down(settings, model, contenders, rows)
        _move(model, out)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    _print(table(contenders))
    log.say(f"Model: {out}")
    return out


_NAMES = {"distil": "distillation", "prune": "pruning"}
_FIXES = {
    "int8": "use the model as it is, or allow more: --max-drop POINTS",
    "distil": "keep more layers, train longer (epochs=), or allow more: --max-drop POINTS",
    "prune": "train what is left (--distil in place of --prune), cut less, or allow more: "
    "--max-drop POINTS",
    "onnx": "use the model as it is, and report it",
}


def _how(settings: CompressSettings) -> str:
    """int8, distil, prune or onnx.

    Raises:
        UsageError: none is asked for, or two that do not go together.
    """
    asked = [name for name in ("distil", "prune") if getattr(settings, name)]
    asked += [settings.to] if settings.to else []
    if len(asked) > 1:
        raise UsageError(
            f"{' and '.join(asked)} are two steps.",
            fix="give one, then compress what it has written with the other",
        )
    if settings.to and settings.onnx:
        raise UsageError(
            "The ONNX file holds fp32, not int8.", fix="leave out --to int8, or --onnx"
        )
    cuts = settings.layers is not None or settings.ffn is not None
    if asked and asked[0] in ("distil", "prune"):
        if not cuts:
            raise UsageError(
                "How small the model shall be is not said.",
                where=f"--{asked[0]}",
                fix=f"--{asked[0]} layers=3, or --{asked[0]} ffn=0.25, or both",
            )
        return asked[0]
    if cuts:
        raise UsageError(
            "layers= and ffn= go with --distil, which trains, or --prune, which only cuts.",
            fix="add one of them",
        )
    if not asked and not settings.onnx:
        raise UsageError(
            "How to compress is not said.",
            fix="--to int8, --distil layers=3, --prune ffn=0.25 or --onnx",
        )
    return asked[0] if asked else "onnx"


def _check_out(out: Path, *, overwrite: bool) -> None:
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UsageError(
            "The output is a file, not a folder.", where=str(there), fix="choose another --out"
        )
    if out.is_dir() and any(out.iterdir()):
        model = (out / "config.json").is_file()
        if not (overwrite and model):
            raise UsageError(
                "The output folder is not empty.",
                where=str(out),
                fix="choose another --out, or --overwrite"
                if model
                else "choose another --out: this folder holds no model, so it is left alone",
            )


def _check_model(predictor: Predictor, settings: CompressSettings) -> None:
    if not predictor.task.primary_metric:
        raise UsageError(
            f"A model for {predictor.task.name} cannot be judged on labelled rows.",
            where=str(predictor.directory),
            fix="fine-tune it first, or distil it in pretraining: objective=distill",
        )
    if settings.distil and predictor.task.name == "few_shot":
        raise UsageError(
            "A few-shot model has no student: its head is fitted, not trained.",
            where=str(predictor.directory),
            fix="fine-tune with --task classification first, or --to int8",
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            "bert compress runs as one process.",
            fix="torchrun ... -m bert finetune TRAIN --model STUDENT teacher=RUN",
        )


def _read_rows(settings: CompressSettings, predictor: Predictor) -> _Rows:
    """The rows that the options name, else those of the run that made the model.

    Raises:
        DataError: the run's rows are not what they were, or there is no run and no option.
    """
    run = _run_of(settings.run, predictor)
    kind = type(predictor.task)

    def of(file: str) -> list[Example]:
        text = text_columns(predictor, Path(file), settings.text)
        label = settings.label or predictor.facts.get("label_column")
        return training_examples(
            kind.read(Path(file), text, label, labelled=True), kind.names, file
        )[0]

    if settings.train is not None and settings.data is None:
        raise UsageError(
            "With --train the rows to judge by must be named too.",
            fix="--data FILE: labelled rows that are not in the other file",
        )
    told = {name: of(file) for name in ("data", "train") if (file := getattr(settings, name))}
    train, held_out = told.get("train", []), told.get("data", [])
    run_settings = None
    if run is not None and "data" not in told:
        run_settings = _settings_of(run)
        rows = read_rows(run_settings, kind)
        if rows.hash != predictor.facts.get("data"):
            raise DataError(
                "The rows have changed since the model was trained, so that it may have been "
                "trained on those held out now.",
                where=str(run / CONFIG),
                fix="put them back as they were, or name rows it has not seen: --data FILE",
            )
        train, held_out = train or rows.train, rows.held_out
    elif run is not None and not train:
        run_settings = _settings_of(run)
        if (path := Path(run_settings.train)).is_file():  # which has columns of its own
            examples = kind.read(path, run_settings.text, run_settings.label, labelled=True)
            train = training_examples(examples, kind.names, str(path))[0]
    if not held_out:
        raise DataError(
            "There are no rows to judge the model by.",
            where=str(predictor.directory),
            fix="name labelled rows that it has not seen: --data FILE",
        )
    for example in (*held_out, *train):
        predictor.task.check(example)
    return _Rows(held_out, train, run_settings)


def _run_of(name: str, predictor: Predictor) -> Path | None:
    """The folder of the run that made a model, or that made what it was compressed from."""
    made_of = predictor.facts.get("compressed") or {}
    places = [Path(name), predictor.directory.parent, Path(str(made_of.get("run") or name))]
    found = (path for path in places if (path / CONFIG).is_file() and (path / "model").is_dir())
    return next(found, None)


def _settings_of(run: Path) -> FinetuneSettings:
    return FinetuneSettings.of(read_yaml(run / CONFIG))


def _pruned(settings: CompressSettings, original: Predictor, rows: _Rows) -> Checkpoint:
    """The model with neurons or layers cut away, not trained since."""
    checkpoint = _read(original)
    if is_int8(checkpoint.model):
        raise UsageError(
            "A model in int8 is not cut: its numbers are no longer trained or chosen from.",
            where=str(original.directory),
            fix="cut the one it was made of, and then --to int8",
        )
    if settings.ffn is None:
        return smaller(checkpoint, settings.layers, None)
    looked_at = _read(original)  # of which a task may prepare the head for training
    task = type(original.task)(looked_at)
    samples = task.samples(_some(rows.train or rows.held_out))
    model = looked_at.model.to(original.device)
    scores = importance(task, model, samples, original.device)
    width = narrowed(checkpoint.config.intermediate_size, settings.ffn)
    return smaller(checkpoint, settings.layers, width, scores)


def _read(original: Predictor) -> Checkpoint:
    """The original once more, to be changed."""
    checkpoint = read_model(original.directory, kind=type(original.task).kind)
    checkpoint.facts.setdefault("task", original.task.name)
    return checkpoint


def _some(examples: Sequence[Example]) -> list[Example]:
    """So many rows as are looked at, evenly drawn."""
    return list(examples[:: -(-len(examples) // ROWS_TO_LOOK_AT)])


def _distilled(
    settings: CompressSettings, out: Path, rows: _Rows, original: Predictor
) -> Checkpoint:
    """The cut model after it has learnt from the original and from rows.

    Raises:
        DataError: there are no rows to learn from.
        UsageError: another training has been begun beside this directory.
    """
    if not rows.train:
        raise DataError(
            "There are no rows for the student to learn from.",
            where=settings.run,
            fix="name labelled rows: --train FILE",
        )
    work = out.with_name(out.name + "-training")
    shape = [f"{name}={v:g}" for name in ("layers", "ffn") if (v := getattr(settings, name))]
    # Of this very teacher, whatever lay there before.
    start = work / "-".join(("start", *shape, key_of(facts_of(original.directory))[:8]))
    given = {
        "model": str(start),
        "teacher": str(original.directory),
        "train": settings.train,
        "dev": settings.data,
        "batch_size": settings.batch_size,
        "learning_rate": settings.learning_rate,
        "seed": settings.seed,
    }
    usual: FinetuneSettings
    if rows.settings is not None:
        usual = rows.settings
    else:
        known = original.facts
        usual = FinetuneSettings.of(
            {
                "train": settings.train,
                "model": str(start),
                "task": original.task.name,
                "text": settings.text or known.get("text_columns") or [],
                "label": settings.label or known.get("label_column"),
                "max_length": original.max_length,
                **original.task.options.model_dump(mode="json"),
            }
        )
    changes = {name: value for name, value in given.items() if value is not None}
    if settings.epochs is not None:
        changes["epochs"] = settings.epochs
    else:
        few = usual.epochs or usual_epochs(len(rows.train), usual.batch_size)
        changes["epochs"] = MORE_EPOCHS * few
    training = usual.model_copy(
        update={"test": None, "evaluations": None, "teacher": None, **changes}
    )
    run = work / "run"
    if (run / CARD).is_file():
        before = read_yaml(run / CONFIG)
        now = training.model_dump(mode="json")
        if changed := [name for name in _TRAINING if now[name] not in (None, before.get(name))]:
            raise UsageError(
                f"Another student has been trained here, with {changed[0]}="
                f"{before.get(changed[0])}, not {now[changed[0]]}.",
                where=str(run),
                fix=f"choose another --out, or remove {work}",
            )
        files = [Path(file) for file in (training.train, training.dev) if file]
        if read_json(run / ENVIRONMENT)["data"] != hash_of_files(files):
            raise UsageError(
                "The student that has been trained here learnt from other rows.",
                where=str(run),
                fix=f"choose another --out, or remove {work}",
            )
        log.say(f"The student has been trained already: {run}")
    else:
        if not start.is_dir():
            write_model(start, _pruned(settings, original, rows))
        finetune(training, run, resume=(run / CONFIG).is_file())
    made = read_model(run / "model")
    made.facts["base_model"] = settings.run
    return made


def _weights(directory: Path) -> int:
    """Bytes of a model's weights on the disk."""
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))


def _as_onnx(model: Path) -> Contender:
    """Write a model directory's ONNX file into it."""
    path = model / FILE
    checkpoint = read_model(model, kind=type(Predictor(model).task).kind)
    worst = write_onnx(path, checkpoint)
    log.say(f"The ONNX file (opset {OPSET}) differs from the model by at most {worst:.1e}.")
    predictor = Predictor(model, "fp32")
    predictor.model = OnnxModel(path, predictor.model)
    predictor.device = torch.device("cpu")
    return Contender("ONNX", predictor, path.stat().st_size)


def _written(
    model: Path, made: Checkpoint, how: str, examples: Sequence[Example] = ()
) -> Contender:
    """A model in a directory, as it will be used; in bf16 where it is as good on examples."""
    for name in ("calibration", "precision"):  # they were measured of the original
        made.facts.pop(name, None)
    write_model(model, made)
    if examples:
        choose_precision(model, examples)
    return Contender(_NAMES.get(how, how), Predictor(model), _weights(model))


def _in_int8(
    settings: CompressSettings, model: Path, original: Contender, rows: _Rows
) -> Contender:
    """The model in 8 bits; where it loses too much, with the worst products left as they were.

    The last attempt is returned whether it has lost too much or not.
    """
    predictor = original.predictor
    checkpoint = _read(predictor)
    if is_int8(checkpoint.model):
        raise UsageError(
            "The model is in int8 already.",
            where=str(predictor.directory),
            fix="compress the one it was made of",
        )
    plain = checkpoint.model.to(predictor.device)
    looked_at = [example.texts for example in _some(rows.train or rows.held_out)]
    batches = read_batches(predictor.task, looked_at, predictor.device)
    rounded = quantize(plain, batches)

    def attempts() -> Iterator[list[str]]:
        yield []
        log.say("In int8 the model loses too much; its most sensitive products are left out.")
        few = batches[: -(-SENSITIVE_ROWS // WINDOWS_AT_ONCE)]
        yield from keeps(damages(predictor.task, plain, rounded, few))

    for kept in attempts():
        checkpoint.model = with_kept(plain, rounded, kept)
        made = _written(model, checkpoint, "int8")
        judge(made, rows.held_out)
        if kept:
            made.name = f"int8 without {len(kept)} of {len(products(plain))} products"
            made.kept = kept
        if lost(original, made) <= settings.max_drop:
            break
        log.say(f"{made.name}: {-lost(original, made):+.2f} points")
    if kept:
        log.say(f"Left as they were: {', '.join(kept)}")
    return made


def _note_down(
    settings: CompressSettings, model: Path, contenders: Sequence[Contender], rows: _Rows
) -> None:
    """What was done and measured, and what the rows told of the answers, into ``bert.json``."""
    made = contenders[-1]
    run = _run_of(settings.run, contenders[0].predictor)
    noted = {
        **read_json(model / FACTS),
        "compressed": {
            "of": settings.run,
            **({"run": str(run)} if run else {}),
            "by": [contender.name for contender in contenders[1:]],
            **{name: v for name in ("layers", "ffn") if (v := getattr(settings, name)) is not None},
            **({"kept": made.kept} if made.kept else {}),
            "figures": {contender.name: facts(contender) for contender in contenders},
        },
    }
    if made.calibration:
        noted["calibration"] = made.calibration
    log.write_json(model / FACTS, noted)


def _move(model: Path, out: Path) -> None:
    """Put the finished directory into its place; one that was there goes last."""
    if not out.exists():
        model.rename(out)
        return
    old = model.with_name("old")
    out.rename(old)
    try:
        model.rename(out)
    except OSError:
        old.rename(out)
        raise


def _print(lines: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = Table(*lines[0])
    for line in lines[1:]:
        shown.add_row(*line)
    Console().print(shown)
