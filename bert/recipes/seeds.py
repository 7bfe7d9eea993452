"""``bert finetune --seeds``: the same training from several seeds, and how far its figures spread.

A seed draws the new head, the order of the rows and dropout. Which rows are held out does not
depend on it, so that all figures are of the same rows.
"""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bert import log
from bert.distributed import joined
from bert.errors import UsageError
from bert.evaluation import primary, primary_name, scores
from bert.hub import find_model
from bert.metrics import plots
from bert.metrics.intervals import mean_interval
from bert.model.precision import default_device
from bert.predictor import Predictor
from bert.recipes.finetune import FinetuneSettings, finetune, read_rows
from bert.recipes.reporting import example_row
from bert.report import Card, Report, write_card
from bert.run import CONFIG, choose_folder, open_run, resumable
from bert.tasks.task import Task, load_task

CARD = "README.md"  # what a run writes last


@resumable()
def finetune_seeds(
    settings: FinetuneSettings,
    seeds: int,
    out: Path | None,
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> Path:
    """Fine-tune from ``settings.seed`` and the seeds after it, and leave a folder of run folders.

    Args:
        settings: of every run but for the seed.
        seeds: how many, at least two.
        out: the folder, or None for the first free ``runs/finetune-N``.
        resume: go on in such a folder; runs that are there are not trained again, and there may
            be more seeds than before.
        overwrite: empty the folder first.

    Returns:
        The folder: ``seed-N/`` for each seed, ``model/``, the best by the primary metric, and
        ``metrics.json`` with mean, standard deviation and Student's 95% interval of every figure
        over the runs that have learnt something.

    Raises:
        UsageError, DataError, ModelError: as their names say.
        Interrupted: ``resume`` goes on.
    """
    if seeds < 2:
        raise UsageError(
            f"The spread over seeds needs two or more, not {seeds}.",
            fix="--seeds 5, or leave it out",
        )
    numbers = range(settings.seed, settings.seed + seeds)
    FinetuneSettings.of({**settings.model_dump(), "seed": numbers[-1]})
    kind = load_task(settings.task)
    with joined(default_device()) as world:
        run: Path = world.told(
            choose_folder(out, "finetune", resume=resume, overwrite=overwrite)
            if world.first
            else None
        )
        # What cannot be read is told before anything is written.
        data = read_rows(settings, kind).hash
        find_model(settings.model)
        with world.first_before_others():
            if world.first:
                open_run(run, "finetune", settings, data, resume=resume, overwrite=overwrite)
        for seed in numbers:
            folder = run / f"seed-{seed}"
            if world.told((folder / CARD).is_file()):
                continue
            log.say(f"Seed {seed}, {seed - numbers[0] + 1} of {seeds}")
            begun = world.told((folder / CONFIG).is_file())
            finetune(settings.model_copy(update={"seed": seed}), folder, resume=begun)
        if world.first:
            _summarise(run, settings, kind, numbers)
    return run


def _summarise(
    run: Path, settings: FinetuneSettings, kind: type[Task], seeds: Sequence[int]
) -> None:
    """Figures over the seeds, the best model, the report and the card."""
    figures = {
        seed: json.loads((run / f"seed-{seed}" / "metrics.json").read_text(encoding="utf-8"))
        for seed in seeds
    }
    summary = over_seeds(kind, figures)
    copy_model(run / f"seed-{summary['best']}", run)
    log.write_json(run / "metrics.json", summary)
    _report(run, settings, summary)
    for seed in summary["restarted"]:
        log.say(f"Seed {seed} was started again because it had learnt nothing at first.")
    if nothing := summary["learnt_nothing"]:
        log.notice(
            f"{_seeds(nothing)} learnt nothing and count for no mean.",
            where=", ".join(str(run / f"seed-{seed}") for seed in nothing),
            fix="look at the data with bert check, or give more rows or epochs",
        )
    name = summary["primary_metric"]
    if found := summary["mean"].get(name):
        log.say(
            f"Held out, {name} of {summary['counted']} seeds: {found['value']:.4f} "
            f"[{found['low']:.4f}, {found['high']:.4f}], standard deviation "
            f"{found['standard_deviation']:.4f}"
        )
    log.say(f"Model: {run / 'model'}, of seed {summary['best']}   Report: {run / 'report.html'}")


def copy_model(source: Path, run: Path) -> None:
    """Give a run the model of another one, whole or not at all."""
    model, stage = run / "model", run / "model.partial"
    shutil.rmtree(stage, ignore_errors=True)
    shutil.copytree(source / "model", stage)
    shutil.rmtree(model, ignore_errors=True)
    stage.rename(model)


def over_seeds(kind: type[Task], figures: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """What the figures of several seeds say together.

    Args:
        kind: of task.
        figures: seed -> ``metrics.json`` of its run.

    Returns:
        ``primary_metric``, its name; ``seeds`` and ``counted``, how many there are and how many
        have learnt something; ``learnt_nothing`` and ``restarted``, which; ``mean``, and
        ``test`` where there are test rows: name -> value, low, high and standard_deviation over
        the counted ones, empty where there are fewer than two; ``best``, the seed with the best
        primary metric, a counted one if there is one; ``runs``, each with its primary metric.
    """
    name = primary_name(kind, next(iter(figures.values())))
    counted = [seed for seed in figures if figures[seed]["learnt"]]
    sign = 1 if kind.greater_is_better else -1
    values = {seed: primary(kind, figures[seed]) for seed in figures}
    summary: dict[str, Any] = {
        "primary_metric": name,
        "seeds": len(figures),
        "counted": len(counted),
        "learnt_nothing": [seed for seed in figures if seed not in counted],
        "restarted": [seed for seed in figures if figures[seed]["restarts"]],
        "best": max(counted or figures, key=lambda seed: sign * values[seed]["value"]),
        "mean": _means([figures[seed] for seed in counted]),
        "runs": [
            {
                "seed": seed,
                **values[seed],
                **{key: figures[seed][key] for key in ("restarts", "learnt", "steps", "seconds")},
            }
            for seed in figures
        ],
    }
    if all("test" in figures[seed] for seed in figures):
        summary["test"] = _means([figures[seed]["test"] for seed in counted])
    return summary


def _means(figures: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean, its interval and the standard deviation of every figure that all have."""
    if len(figures) < 2:
        return {}
    found = [dict(scores(each)) for each in figures]
    means = {}
    for name in found[0]:
        if all(name in each for each in found):
            values = [each[name]["value"] for each in found]
            means[name] = {
                **mean_interval(values),
                "standard_deviation": statistics.stdev(values),
            }
    return means


def _seeds(numbers: Sequence[int]) -> str:
    return ("Seed " if len(numbers) == 1 else "Seeds ") + ", ".join(map(str, numbers))


def _report(run: Path, settings: FinetuneSettings, summary: Mapping[str, Any]) -> None:
    """``report.html`` and the model card."""
    name, counted = summary["primary_metric"], summary["counted"]
    report = Report("Fine-tuning", f"{run}: {settings.task}, {summary['seeds']} seeds")
    report.heading("On held-out rows")
    if nothing := summary["learnt_nothing"]:
        report.paragraph(
            f"{_seeds(nothing)} learnt nothing, the answer to every row was the same. The means "
            f"are over the other {counted}."
        )
    if again := summary["restarted"]:
        report.paragraph(
            f"{_seeds(again)} learnt nothing at first and trained again, from another seed and "
            "with a longer warm-up."
        )
    columns = ["figure", "mean", "95% from", "to", "standard deviation"]
    if summary["mean"]:
        report.table(columns, [(key, *row.values()) for key, row in summary["mean"].items()])
        report.paragraph(
            f"The interval is Student's, of the mean over {counted} seeds: it tells the noise of "
            "training. That of the held-out rows comes on top: the bars below tell it."
        )
    else:
        report.paragraph("Fewer than two seeds have learnt something: there is no mean.")
    dots = {
        f"seed {row['seed']}": (row["value"], row["low"], row["high"]) for row in summary["runs"]
    }
    if mean := summary["mean"].get(name):
        dots["mean"] = (mean["value"], mean["low"], mean["high"])
    plots.intervals(run / "plots" / "seeds.png", dots, title=f"Held-out {name}", x_label=name)
    report.picture(
        run / "plots" / "seeds.png",
        "bars of a seed: noise of the held-out rows; bar of the mean: noise of the seeds",
    )
    if summary.get("test"):
        report.heading("On the test rows")
        report.table(columns, [(key, *row.values()) for key, row in summary["test"].items()])
    report.heading("The runs")
    report.table(
        ["seed", name, "95% from", "to", "restarts", "learnt", "steps", "seconds"],
        [tuple(row.values()) for row in summary["runs"]],
    )
    report.paragraph(
        f"The model is that of seed {summary['best']}, the best on the held-out rows, whose "
        "own figures flatter it therefore; expect the mean."
    )
    report.heading("Settings")
    report.table(
        ["setting", "value"],
        [(key, str(value)) for key, value in settings.model_dump(mode="json").items()],
    )
    report.write(run / "report.html")
    task = Predictor(run / "model").task
    card = Card(
        name=run.name,
        summary=f"A model for {settings.task.replace('_', ' ')}: the best of {counted} seeds.",
        library="bertsmith",
        usage=f'import bert\n\nbert.Predictor("{run}/model")([{example_row(task)}])',
        base_model=settings.model,
        settings=settings.model_dump(mode="json"),
        metrics=[
            (f"{key}, mean of {counted} seeds", row["value"], row["low"], row["high"])
            for key, row in summary["mean"].items()
        ],
        limits=["The figures hold for text like the held-out rows."],
    )
    write_card(run / CARD, card)
