"""The pictures, the report and the model card of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bert.config import Settings
from bert.metrics import plots
from bert.report import Card, Report, write_card

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
    facts: Mapping[str, Any],
    figures: Mapping[str, Any],
    most_wrong: Rows,
    rows: Rows,
    lengths: Sequence[int],
) -> None:
    """Pictures, ``report.html`` and ``README.md`` of a fine-tuning run."""
    pictures = run / "plots"
    pictures.mkdir(exist_ok=True)
    names = list(figures["per_label"])
    plots.curves(
        pictures / "loss.png",
        {"training": _line(rows, "label_loss")},
        title="Loss",
        x_label="optimiser steps",
        y_label="cross-entropy (nats)",
    )
    _rate_picture(pictures, rows)
    plots.confusion(pictures / "confusion.png", figures["confusion"], names, title="Held-out rows")
    plots.intervals(
        pictures / "f1.png",
        {
            name: (score["f1"]["value"], score["f1"]["low"], score["f1"]["high"])
            for name, score in figures["per_label"].items()
        },
        title="F1 by label",
        x_label="F1",
    )
    plots.histogram(
        pictures / "lengths.png",
        lengths,
        title="Length of the training texts",
        x_label="tokens",
        mark=facts["tokens"]["limit"],
    )
    overall = [
        ("accuracy", figures["accuracy"]),
        *((f"{mean} {name}", figures[mean][name])
          for mean in ("macro", "weighted") for name in ("precision", "recall", "f1")),
    ]  # fmt: skip
    table = [(name, score["value"], score["low"], score["high"]) for name, score in overall]
    majority = figures["majority_accuracy"]
    report = Report("Fine-tuning", f"{run}: {figures['rows']:,} held-out rows")
    report.heading("On held-out rows")
    report.table(["figure", "value", "95% from", "to"], table)
    report.paragraph(
        f"Always answering {majority['label']} would reach an accuracy of {majority['value']:.3f}."
    )
    report.picture(pictures / "f1.png", "F1 by label")
    report.table(
        ["label", "precision", "recall", "F1", "rows"],
        [
            (
                name,
                *(score[part]["value"] for part in ("precision", "recall", "f1")),
                score["support"],
            )
            for name, score in figures["per_label"].items()
        ],
    )
    report.heading("What is taken for what")
    report.confusion(figures["confusion"], names)
    report.heading("Surest and wrong")
    report.texts(
        (
            str(row["truth"]),
            row["label"],
            row["probabilities"][row["label"]],
            row["texts"] if isinstance(row["texts"], str) else "\n".join(row["texts"]),
        )
        for row in most_wrong[:30]
    )
    report.heading("The data")
    report.table(["label", "rows read"], list(facts["train"]["labels"].items()))
    report.picture(pictures / "lengths.png", "length of the training texts")
    report.heading("Training")
    for name in ("loss", "learning_rate"):
        report.picture(pictures / f"{name}.png", name.replace("_", " "))
    report.table(["setting", "value"], _settings(settings))
    report.write(run / "report.html")
    card = Card(
        name=run.name,
        summary=f"Tells {len(names)} labels apart: {', '.join(names[:20])}.",
        library="bertsmith",
        usage=f'import bert\n\nbert.Predictor("{run}/model")(["..."])',
        base_model=str(getattr(settings, "model", "")) or None,
        training_data={
            "rows trained on": f"{facts['rows_to_train_on']:,}",
            "rows held out": f"{facts['rows_held_out']:,}",
            "texts cut at the limit": f"{facts['tokens']['truncated']:,}",
        },
        settings=settings.model_dump(mode="json"),
        metrics=table,
        limits=[
            "The figures hold for text like the held-out rows.",
            f"Texts beyond {facts['tokens']['limit']} tokens are cut.",
        ],
    )
    write_card(run / "README.md", card)


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
