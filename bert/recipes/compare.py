"""``bert compare``: models beside the baselines before them, on the same rows, in one table."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bert import log
from bert.baselines import BASELINES, SEEDED, Fitted
from bert.config import Settings, read_yaml
from bert.data.rows import Example
from bert.distributed import joined
from bert.errors import UsageError
from bert.evaluation import measure, primary
from bert.hub import find_model
from bert.metrics import plots
from bert.metrics.intervals import mean_interval
from bert.model.precision import default_device
from bert.predictor import Predictor
from bert.recipes.finetune import FinetuneSettings, Rows, finetune, read_rows
from bert.recipes.seeds import CARD, finetune_seeds
from bert.report import Report, markdown_table
from bert.run import CONFIG, choose_folder, open_run, resumable
from bert.tasks.task import Answer, Task, load_task

# Texts answered one at a time for the latency, and together for the rate.
ALONE, TOGETHER = 100, 1000
WARM_UP = 3
COLUMNS = ("95% from", "to", "training s", "MB", "ms a text", "rows/s")


@resumable()
def compare(
    settings: FinetuneSettings,
    models: Sequence[str],
    out: Path | None,
    *,
    seeds: int = 1,
    resume: bool = False,
    overwrite: bool = False,
) -> Path:
    """Fine-tune each model, train the baselines beside them, and print one table.

    Args:
        settings: of every model's run; ``settings.model`` has no effect.
        models: run folders, model directories or hub ids.
        out: the folder, or None for the first free ``runs/compare-N``.
        seeds: how many runs of each whose figures depend on the seed.
        resume: go on in such a folder; what is there is not trained again, and there may be
            other models and more seeds.
        overwrite: empty the folder first.

    Returns:
        The folder: the run of each model, ``measured/`` with the figures of each contender,
        and ``metrics.json``, ``README.md`` and ``report.html`` with the table.

    Raises:
        UsageError, DataError, ModelError: as their names say.
        Interrupted: ``resume`` goes on.
    """
    names = _names(models)
    settings = settings.model_copy(update={"model": "of --models"})
    kind = load_task(settings.task)
    with joined(default_device()) as world:
        run: Path = world.told(
            choose_folder(out, "compare", resume=resume, overwrite=overwrite)
            if world.first
            else None
        )
        for model in models:
            find_model(model)
        rows = read_rows(settings, kind)
        with world.first_before_others():
            if world.first:
                open_run(run, "compare", settings, rows.hash, resume=resume, overwrite=overwrite)
                (run / "measured").mkdir(exist_ok=True)
        contenders = []
        for name, model in names.items():
            folder = run / (name if seeds == 1 else f"{name}-seeds")
            log.say(f"{name}:")
            _train(settings.model_copy(update={"model": model}), folder, seeds, world.told)
            if world.first:
                contenders.append(_of_model(run, folder, name, kind, rows, seeds))
        if world.first:
            task = Predictor(contenders[0]["folder"]).task
            contenders += _baselines(run, settings, task, rows, seeds)
            _summarise(run, settings, kind, contenders, seeds)
        world.told(None)
    return run


def _names(models: Sequence[str]) -> dict[str, str]:
    """What each model is called: the last part of its name that says something.

    Raises:
        UsageError: there are none, or one is named twice.
    """
    if not models or not all(models):
        raise UsageError("No models are named.", fix="--models A,B")
    names: dict[str, str] = {}
    for model in models:
        if model in names.values():
            raise UsageError(f"The model {model} is named twice.", fix="name it once")
        parts = [part for part in Path(model).parts if part not in ("/", "model", "..")]
        name = first = parts[-1] if parts else "model"
        number = 1
        while name in names or name in (*BASELINES, "measured", "plots"):
            number += 1
            name = f"{first}-{number}"
        names[name] = model
    return names


def _train(
    settings: FinetuneSettings, folder: Path, seeds: int, told: Callable[[Any], Any]
) -> None:
    """Fine-tune one model, as far as that is not done.

    Raises:
        UsageError: it was done of another model with such a name.
    """
    if told((folder / CARD).is_file()):
        if (before := read_yaml(folder / CONFIG).get("model")) != settings.model:
            raise UsageError(
                f"{folder.name} is the name of another model here, {before}.",
                where=str(folder),
                fix="give the models folders of different names, or choose another --out",
            )
        if seeds == 1 or told(_read(folder / "metrics.json")["seeds"] == seeds):
            return
    begun = told((folder / CONFIG).is_file())
    if seeds == 1:
        finetune(settings, folder, resume=begun)
    else:
        finetune_seeds(settings, seeds, folder, resume=begun)


def _of_model(
    run: Path, folder: Path, name: str, kind: type[Task], rows: Rows, seeds: int
) -> dict[str, Any]:
    """The line of a fine-tuned model."""
    kept = run / "measured" / (f"{name}.json" if seeds == 1 else f"{name}-{seeds}-seeds.json")
    if kept.is_file():
        return _read(kept)
    figures = _read(folder / "metrics.json")
    if seeds == 1:
        score = _score(kind, figures)
        seconds, learnt = figures["seconds"], int(figures["learnt"])
    else:
        score = figures["mean"].get(kind.primary_metric.replace(".", " "))
        seconds = statistics.mean(row["seconds"] for row in figures["runs"])
        learnt = figures["counted"]
    predictor = Predictor(folder)
    weights = predictor.directory.glob("*.safetensors")
    return _keep(
        kept,
        {
            "name": name,
            "baseline": False,
            "folder": str(folder),
            "score": score,
            "runs": seeds,
            "learnt": learnt,
            "seconds": seconds,
            "megabytes": sum(path.stat().st_size for path in weights) / 1e6,
            **_speed(predictor, rows.held_out),
        },
    )


def _score(kind: type[Task], figures: Mapping[str, Any]) -> dict[str, Any]:
    """All contenders by the same figure, whatever the options."""
    return primary(kind, {**figures, "primary_metric": kind.primary_metric})


def _baselines(
    run: Path, settings: FinetuneSettings, task: Task, rows: Rows, seeds: int
) -> list[dict[str, Any]]:
    """The lines of the baselines, which are trained here."""
    if task.problem_type != "single_label_classification":
        log.notice(
            f"There are no baselines for {task.name}; the models are compared with each other."
        )
        return []
    lines = []
    for name in BASELINES:
        times = seeds if name in SEEDED else 1
        found = [_of_baseline(run, name, settings.seed + i, task, rows) for i in range(times)]
        line = {**found[0], "runs": times, "learnt": times}
        if times > 1:
            line["score"] = mean_interval([each["score"]["value"] for each in found])
            line["seconds"] = statistics.mean(each["seconds"] for each in found)
        lines.append(line)
    return lines


def _of_baseline(run: Path, name: str, seed: int, task: Task, rows: Rows) -> dict[str, Any]:
    """What one baseline reaches from one seed."""
    kept = run / "measured" / f"{name}-seed-{seed}.json"
    if kept.is_file():
        return _read(kept)
    log.say(f"{name}:" + (f" seed {seed}" if name in SEEDED else ""))
    number = {label: i for i, label in enumerate(task.labels)}
    truth = np.array([number[example.truth] for example in rows.train])
    started = time.perf_counter()
    fitted = BASELINES[name]([e.parts for e in rows.train], truth, len(number), seed)
    seconds = time.perf_counter() - started

    def answers(texts: Sequence[Any]) -> list[Answer]:
        return _answers(fitted, texts, task.labels)

    given = answers([example.texts for example in rows.held_out])
    figures = measure(task, zip(rows.held_out, given, strict=True))
    return _keep(
        kept,
        {
            "name": name,
            "baseline": True,
            "score": _score(type(task), figures),
            "seconds": seconds,
            "megabytes": fitted.bytes / 1e6,
            **_speed(answers, rows.held_out),
        },
    )


def _answers(fitted: Fitted, texts: Sequence[Any], labels: Sequence[str]) -> list[Answer]:
    """Answers of a baseline, in the form of the task's."""
    shares = fitted.answer([(text,) if isinstance(text, str) else text for text in texts])
    return [
        {
            "label": labels[int(row.argmax())],
            "probabilities": dict(zip(labels, row.tolist(), strict=True)),
            "windows": 1,
            "truncated": False,
        }
        for row in shares
    ]


def _speed(
    answers: Callable[[Sequence[Any]], Sequence[Answer]], examples: Sequence[Example]
) -> dict[str, float]:
    """Latency and rate on held-out rows."""
    texts = [example.texts for example in examples[:TOGETHER]]
    for text in texts[:WARM_UP]:
        answers([text])
    times = []
    for text in texts[:ALONE]:
        started = time.perf_counter()
        answers([text])
        times.append(time.perf_counter() - started)
    started = time.perf_counter()
    answers(texts)
    together = time.perf_counter() - started
    return {
        "milliseconds_a_text": 1e3 * statistics.median(times),
        "rows_per_second": len(texts) / together,
    }


def _read(path: Path) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return figures


def _keep(path: Path, line: dict[str, Any]) -> dict[str, Any]:
    """Write the figures of a contender, whole or not at all."""
    stage = path.with_suffix(".partial")
    log.write_json(stage, line)
    stage.replace(path)
    return line


def _summarise(
    run: Path,
    settings: Settings,
    kind: type[Task],
    contenders: list[dict[str, Any]],
    seeds: int,
) -> None:
    """Print the table and write it down."""
    name = kind.primary_metric.replace(".", " ")
    sign = 1 if kind.greater_is_better else -1
    lines = sorted(
        contenders,
        key=lambda line: -sign * line["score"]["value"] if line["score"] else float("inf"),
    )
    notes = _notes(lines, name, sign, seeds)
    log.write_json(
        run / "metrics.json", {"primary_metric": name, "notes": notes, "contenders": lines}
    )
    cells = [_cells(line) for line in lines]
    columns = ["contender", name, *COLUMNS]
    (run / CARD).write_text(
        f"# {run.name}\n\n{markdown_table(columns, cells)}\n\n" + "\n\n".join(notes) + "\n",
        encoding="utf-8",
    )
    report = Report("Comparison", f"{run}: {kind.name}")
    report.table(columns, cells)
    for note in notes:
        report.paragraph(note)
    picture = run / "plots" / "contenders.png"
    plots.intervals(
        picture,
        {
            line["name"]: tuple(line["score"][key] for key in ("value", "low", "high"))
            for line in lines
            if line["score"]
        },
        title=f"Held-out {name}",
        x_label=name,
    )
    report.picture(picture, f"{name} with 95% intervals")
    report.heading("Settings")
    report.table(
        ["setting", "value"],
        [(key, str(value)) for key, value in settings.model_dump(mode="json").items()],
    )
    report.write(run / "report.html")
    _print(columns, cells)
    for note in notes:
        log.say(note)
    log.say(f"Report: {run / 'report.html'}")


def _cells(line: Mapping[str, Any]) -> list[str]:
    score = line["score"]
    return [
        line["name"],
        *(f"{score[key]:.4f}" if score else "–" for key in ("value", "low", "high")),
        f"{line['seconds']:,.1f}",
        f"{line['megabytes']:,.1f}",
        f"{line['milliseconds_a_text']:,.2f}",
        f"{line['rows_per_second']:,.0f}",
    ]


def _notes(lines: Sequence[Mapping[str, Any]], name: str, sign: int, seeds: int) -> list[str]:
    """What the table means, and whether a model is worth it."""
    notes = []
    scored = [line for line in lines if line["score"]]
    model = next((line for line in scored if not line["baseline"]), None)
    baseline = next((line for line in scored if line["baseline"]), None)
    if model and baseline:
        gap = sign * (model["score"]["value"] - baseline["score"]["value"])
        apart = (
            model["score"]["low"] > baseline["score"]["high"]
            if sign > 0
            else model["score"]["high"] < baseline["score"]["low"]
        )
        if gap <= 0:
            told = "is no better than the best baseline"
        elif apart:
            told = "is better than the best baseline"
        else:
            told = "is better than the best baseline, but by no more than the noise"
        notes.append(
            f"The best model, {model['name']}, {told}, {baseline['name']}: {name} "
            f"{model['score']['value']:.4f} to {baseline['score']['value']:.4f}."
        )
    for line in lines:
        if line["learnt"] < line["runs"]:
            notes.append(
                f"{line['name']} learnt nothing in {line['runs'] - line['learnt']} of "
                f"{line['runs']} runs, which count for no mean."
                if line["runs"] > 1
                else f"{line['name']} learnt nothing: its answer to every row is the same."
            )
    spread = (
        f"The intervals of what depends on the seed are Student's over {seeds} seeds; the others "
        "are of the held-out rows."
        if seeds > 1
        else "The intervals are of the held-out rows; --seeds N tells the noise of training."
    )
    notes.append(
        f"{spread} Times are of this machine ({default_device().type}, "
        f"{torch.get_num_threads()} threads): training of one run, the median of one text "
        "alone, and many rows together."
    )
    return notes


def _print(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(columns[0])
    for column in columns[1:]:
        table.add_column(column, justify="right")
    for row in cells:
        table.add_row(*row)
    Console().print(table)
