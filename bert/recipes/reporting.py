"""The pictures, the report and the model card of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bert.config import Settings
from bert.evaluation import scores
from bert.metrics import plots
from bert.report import Card, Report, write_card
from bert.tasks.task import Task

Rows = Sequence[Mapping[str, Any]]
Line = tuple[list[float], list[float]]


def pretraining_report(
    run: Path,
    settings: Settings,
    facts: Mapping[str, Any],
    summary: Mapping[str, Any],
    rows: Rows,
    titles: Mapping[str, str],
) -> None:
    """Curves, ``report.html`` and ``README.md`` of a pretraining run.

    ``titles``: name of a figure -> what it is called.
    """
    pictures = run / "plots"
    pictures.mkdir(exist_ok=True)
    for kind in ("loss", "accuracy"):
        for name, title in titles.items():
            plots.curves(
                pictures / f"{name}_{kind}.png",
                {
                    "training": _line(rows, f"{name}_{kind}"),
                    "held out": _line(rows, f"held_out_{name}_{kind}"),
                },
                title=f"{title.capitalize()}: {kind}",
                x_label="optimiser steps",
                y_label="loss" if kind == "loss" else "share right",
            )
    _rate_picture(pictures, rows)
    figures = [
        (title, summary[f"held_out_{name}_loss"], summary[f"held_out_{name}_accuracy"],
         summary[f"held_out_{name}_answers"])
        for name, title in titles.items()
    ]  # fmt: skip
    report = Report("Pretraining", f"{run}: {summary['steps']:,} steps")
    report.heading("On held-out text")
    report.table(["task", "loss", "share right", "answers"], figures)
    for kind in ("loss", "accuracy"):
        for name, title in titles.items():
            report.picture(pictures / f"{name}_{kind}.png", f"{title}: {kind}")
    report.heading("The corpus")
    report.table(["fact", "count"], [(name.replace("_", " "), n) for name, n in facts.items()])
    report.heading("Settings")
    report.picture(pictures / "learning_rate.png", "learning rate")
    report.table(["setting", "value"], _settings(settings))
    report.write(run / "report.html")
    card = Card(
        name=run.name,
        summary=f"An encoder, pretrained on {', '.join(titles.values())}.",
        library="bertsmith",
        # A discriminator guesses no words.
        usage=f'import bert\n\nbert.load("{run}/model")'
        if "rtd" in titles
        else f'import bert\n\nbert.Predictor("{run}/model")("The [MASK] is here.")',
        training_data={name.replace("_", " "): f"{n:,}" for name, n in facts.items()},
        settings=settings.model_dump(mode="json"),
        metrics=[
            (f"{title}, {what}", value, None, None)
            for title, loss, accuracy, _ in figures
            for what, value in (("loss", loss), ("share right", accuracy))
        ],
        limits=[
            "It has read only the text above and repeats what that text says.",
            "It gives words and vectors; for labels it must be fine-tuned.",
        ],
    )
    write_card(run / "README.md", card)


def finetuning_report(
    run: Path,
    settings: Settings,
    task: Task,
    facts: Mapping[str, Any],
    figures: Mapping[str, Any],
    most_wrong: Rows,
    rows: Rows,
    lengths: Sequence[int],
) -> None:
    """Pictures, ``report.html`` and ``README.md`` of a fine-tuning run."""
    pictures = run / "plots"
    pictures.mkdir(exist_ok=True)
    metric = f"held_out_{task.primary_metric}"
    losses = sorted({key for row in rows for key in row if key.endswith("_loss")})
    plots.curves(
        pictures / "loss.png",
        {f"training, {name.removesuffix('_loss')}": _line(rows, name) for name in losses},
        title="Loss",
        x_label="optimiser steps",
        y_label="loss",
    )
    plots.curves(
        pictures / "score.png",
        {"held out": _line(rows, metric)},
        title=f"Held-out {task.primary_metric.replace('.', ' ')}",
        x_label="optimiser steps",
        y_label=task.primary_metric.replace(".", " "),
    )
    _rate_picture(pictures, rows)
    plots.histogram(
        pictures / "lengths.png",
        lengths,
        title="Length of the training texts",
        x_label="tokens",
        mark=facts["tokens"]["limit"],
    )
    table = [(name, f["value"], f["low"], f["high"]) for name, f in scores(figures)]
    report = Report("Fine-tuning", f"{run}: {task.name}, {figures['rows']:,} held-out rows")
    report.heading("On held-out rows")
    report.paragraph(
        f"The model is the best of {figures['evaluations']} evaluations by "
        f"{task.primary_metric.replace('.', ' ')} on held-out rows, so the figures on these "
        "rows flatter it a little; rows given with --test had no part in it."
    )
    report.table(["figure", "value", "95% from", "to"], table)
    if "test" in figures:
        report.heading("On the test rows")
        report.table(
            ["figure", "value", "95% from", "to"],
            [(name, f["value"], f["low"], f["high"]) for name, f in scores(figures["test"])],
        )
    if majority := figures.get("majority_accuracy"):
        report.paragraph(
            f"Always answering {majority['label']} would reach an accuracy of "
            f"{majority['value']:.3f}."
        )
    for path, caption in task.pictures(figures, pictures):
        report.picture(path, caption)
    if labels := figures.get("per_label"):
        kinds = list(next(iter(labels.values())))
        report.table(
            ["label", *kinds],
            [
                (name, *(v["value"] if isinstance(v, Mapping) else v for v in row.values()))
                for name, row in labels.items()
            ],
        )
    for kind, parts in figures["parts"].items():
        if len(parts) > 1:
            report.heading(f"By {kind}")
            report.table(
                [kind, task.primary_metric.replace(".", " "), "95% from", "to", "rows"],
                [(name, p["value"], p["low"], p["high"], p["rows"]) for name, p in parts.items()],
            )
    if "confusion" in figures:
        report.heading("What is taken for what")
        report.confusion(figures["confusion"], list(labels or ()))
    report.heading("The worst mistakes")
    report.mistakes(most_wrong[:30])
    report.heading("The data")
    if counts := facts["train"]["labels"]:
        report.table(["label", "times in the rows read"], list(counts.items()))
    report.picture(pictures / "lengths.png", "length of the training texts")
    report.heading("Training")
    for name in ("loss", "score", "learning_rate"):
        report.picture(pictures / f"{name}.png", name.replace("_", " "))
    report.table(["setting", "value"], _settings(settings))
    report.write(run / "report.html")
    card = Card(
        name=run.name,
        summary=f"A model for {task.name.replace('_', ' ')}"
        + (f" with {len(task.labels)} labels: {', '.join(task.labels[:20])}" if labels else "")
        + ".",
        library="bertsmith",
        usage=f'import bert\n\nbert.Predictor("{run}/model")([{example_row(task)}])',
        base_model=str(getattr(settings, "model", "")) or None,
        training_data={
            "rows trained on": f"{facts['rows_to_train_on']:,}",
            "rows held out": f"{facts['rows_held_out']:,}",
            "texts read in windows": f"{facts['tokens']['in_windows']:,}",
            "rows not read whole": f"{facts['tokens']['truncated']:,}",
        },
        settings=settings.model_dump(mode="json"),
        metrics=table,
        limits=["The figures hold for text like the held-out rows."],
    )
    write_card(run / "README.md", card)


def example_row(task: Task) -> str:
    """A row as one writes it in Python."""
    return repr("...") if task.texts_per_row == 1 else repr(("...",) * task.texts_per_row)


def _rate_picture(pictures: Path, rows: Rows) -> None:
    plots.curves(
        pictures / "learning_rate.png",
        {"learning rate": _line(rows, "learning_rate")},
        title="Learning rate",
        x_label="optimiser steps",
        y_label="learning rate",
    )


def _line(rows: Rows, name: str) -> Line:
    """The steps at which a figure was written, and its values."""
    found = [row for row in rows if name in row]
    return (
        [row["step"] for row in found],
        [value if math.isfinite(value := float(row[name])) else math.nan for row in found],
    )


def _settings(settings: Settings) -> list[tuple[str, str]]:
    return [(name, str(value)) for name, value in settings.model_dump(mode="json").items()]
