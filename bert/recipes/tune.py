"""``bert tune``: a search for the learning rate, batch size and epochs that suit the rows.

Each trial is an ordinary run of ``bert finetune``. The first has the usual settings, the next
few are drawn at random, and from then on the tree-structured Parzen estimator (Bergstra et al.
2011) proposes what past trials speak for. What it proposes depends on the seed and on those
trials alone, so that an interrupted search goes on as if nothing had been.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bert import log
from bert.checkpoint import read_model
from bert.config import Settings
from bert.distributed import World, joined
from bert.errors import BertError, UsageError
from bert.evaluation import primary, primary_name
from bert.hub import find_model
from bert.metrics import plots
from bert.model.precision import default_device
from bert.predictor import Predictor
from bert.recipes.finetune import FinetuneSettings, finetune, read_rows, usual_epochs, usual_rate
from bert.recipes.reporting import example_row
from bert.recipes.seeds import CARD, copy_model
from bert.report import Card, Report, write_card
from bert.run import CONFIG, choose_folder, open_run, resumable
from bert.tasks.task import Task, load_task

TRIALS = 20
RANDOM_TRIALS = 5
# What is searched. The rate: from a quarter to four times the usual one.
RATE_RANGE = 4.0
BATCH_SIZES = (16, 32, 64)
EPOCHS = (2, 10)
_OPTIONS = ("model", "dev", "test", "task", "text", "label")  # of the command, not key=value


@resumable()
def tune(
    settings: FinetuneSettings,
    out: Path | None,
    *,
    trials: int | None = None,
    minutes: float | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Path:
    """Search for settings by the primary metric on held-out rows.

    Learning rate, batch size and epochs are searched, without those that ``settings`` were
    given explicitly.

    Args:
        settings: of every trial.
        out: the folder, or None for the first free ``runs/tune-N``.
        trials: how many, over all sittings; 20 where neither this nor ``minutes`` is given.
        minutes: of this sitting, after which no trial is begun.
        resume: go on in such a folder, with more trials than before if there are to be.
        overwrite: empty the folder first.

    Returns:
        The folder: ``trial-N/`` for each trial, ``model/``, that of the best one,
        ``metrics.json`` with all trials and the best one's command, and ``trials.log``, the
        record of the search.

    Raises:
        UsageError: optuna is not installed, or there is nothing to search.
        DataError, ModelError: as their names say.
        BertError: no trial has learnt anything.
        Interrupted: ``resume`` goes on.
    """
    if trials is None and minutes is None:
        trials = TRIALS
    kind = load_task(settings.task)
    with joined(default_device()) as world:
        run: Path = world.told(
            choose_folder(out, "tune", resume=resume, overwrite=overwrite) if world.first else None
        )
        rows = read_rows(settings, kind)
        width = read_model(find_model(settings.model), tokenizer=False).config.hidden_size
        usual = {
            name: value
            for name, value in _usual(kind, width, len(rows.train)).items()
            if name not in settings.model_fields_set
        }
        if not usual:
            raise UsageError(
                "Learning rate, batch size and epochs are all given; there is nothing to search.",
                fix="leave one of them out",
            )
        _optuna()
        with world.first_before_others():
            if world.first:
                open_run(run, "tune", settings, rows.hash, resume=resume, overwrite=overwrite)
        _search(run, settings, kind, usual, trials, minutes, world)
        if world.first:
            _summarise(run, settings, kind, list(usual))
        world.told(None)
    return run


def _usual(kind: type[Task], width: int, rows: int) -> dict[str, float]:
    """What is searched, as it is without a search, for rows to train on."""
    batch_size = FinetuneSettings.model_fields["batch_size"].default
    return {
        "learning_rate": kind.rate_share * usual_rate(width),
        "batch_size": batch_size,
        "epochs": kind.epochs or usual_epochs(rows, batch_size),
    }


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise UsageError(
            "The search needs optuna, which is not installed.",
            fix="pip install 'bertsmith[tune]'",
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _study(run: Path, kind: type[Task]) -> Any:
    """The record of the search, as it lies on the disk."""
    optuna = _optuna()
    from optuna.storages.journal import JournalFileBackend, JournalStorage

    return optuna.create_study(
        study_name="tune",
        storage=JournalStorage(JournalFileBackend(str(run / "trials.log"))),
        direction="maximize" if kind.greater_is_better else "minimize",
        load_if_exists=True,
    )


def _search(
    run: Path,
    settings: FinetuneSettings,
    kind: type[Task],
    usual: Mapping[str, float],
    trials: int | None,
    minutes: float | None,
    world: World,
) -> None:
    """Run trials until there are enough."""
    study = _study(run, kind) if world.first else None
    until = None if minutes is None else time.monotonic() + 60 * minutes
    while True:
        asked = None
        if study is not None and (until is None or time.monotonic() < until):
            asked = _ask(study, settings.seed, usual, trials)
        asked = world.told(asked)
        if asked is None:
            return
        number, searched = asked
        folder = run / f"trial-{number + 1}"
        told = ", ".join(f"{name}={value}" for name, value in searched.items())
        log.say(f"Trial {number + 1}{f' of {trials}' if trials else ''}: {told}")
        value: float | None = None
        try:
            if not world.told((folder / CARD).is_file()):
                begun = world.told((folder / CONFIG).is_file())
                finetune(settings.model_copy(update=searched), folder, resume=begun, restarts=0)
            value = primary(kind, _figures(folder))["value"]
        except BertError as error:
            if type(error) is not BertError:  # what another rate cannot mend
                raise
            log.notice(f"The trial failed: {error.what}", where=str(folder))
        if study is not None:
            if value is None:
                study.tell(number, state=_optuna().trial.TrialState.FAIL)
            else:
                study.tell(number, value)


def _ask(
    study: Any, seed: int, usual: Mapping[str, float], trials: int | None
) -> tuple[int, dict[str, Any]] | None:
    """The next trial: that which was interrupted, or a new one; None where there are enough."""
    optuna = _optuna()
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    spaces = {
        "batch_size": CategoricalDistribution(BATCH_SIZES),
        "epochs": IntDistribution(*EPOCHS),
    }
    if rate := usual.get("learning_rate"):
        spaces["learning_rate"] = FloatDistribution(rate / RATE_RANGE, rate * RATE_RANGE, log=True)
    spaces = {name: spaces[name] for name in usual}
    state = optuna.trial.TrialState
    for trial in study.get_trials(states=[state.RUNNING]):
        if trial.params.keys() == spaces.keys():
            return trial.number, _rounded(trial.params)
        study.tell(trial.number, state=state.FAIL)  # interrupted before it had all its settings
    done = len(study.get_trials(states=[state.COMPLETE, state.FAIL]))
    if trials is not None and done >= trials:
        return None
    if not study.trials:
        study.enqueue_trial(dict(usual))
    study.sampler = optuna.samplers.TPESampler(
        n_startup_trials=RANDOM_TRIALS, seed=(seed * 1_000_003 + done) % 2**32
    )
    new = study.ask(spaces)
    return new.number, _rounded(new.params)


def _rounded(searched: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as a person would write them."""
    return {
        name: float(f"{value:.3g}") if isinstance(value, float) else value
        for name, value in searched.items()
    }


def _figures(folder: Path) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return figures


def finetune_command(settings: Settings) -> str:
    """The ``bert finetune`` that does what these settings say, without what they leave open."""
    given = {
        name: value
        for name, value in settings.model_dump(
            mode="json", include=settings.model_fields_set
        ).items()
        if value not in (None, [])
    }
    words = ["bert", "finetune", str(given.pop("train"))]
    for name in _OPTIONS:
        values = given.pop(name, [])
        for value in values if isinstance(values, list) else [values]:
            words += [f"--{name}", str(value)]
    words += [
        f"{name}={str(value).lower() if isinstance(value, bool) else value}"
        for name, value in given.items()
    ]
    return shlex.join(words)


def _summarise(
    run: Path, settings: FinetuneSettings, kind: type[Task], searched: Sequence[str]
) -> None:
    """The best trial's model and command, all trials as figures, the report and the card.

    Raises:
        BertError: there is no best one.
    """
    name = ""
    rows: list[dict[str, Any]] = []
    for trial in _study(run, kind).trials:
        row: dict[str, Any] = {"trial": trial.number + 1, **_rounded(trial.params)}
        if trial.value is not None:
            figures = _figures(run / f"trial-{trial.number + 1}")
            row |= primary(kind, figures)
            name = primary_name(kind, figures)
            row |= {key: figures[key] for key in ("learnt", "seconds")}
        rows.append(row)
    sign = 1 if kind.greater_is_better else -1
    good = [row for row in rows if row.get("learnt")]
    if not good:
        raise BertError(
            f"None of the {len(rows)} trials has learnt anything.",
            where=str(run),
            fix="look at the data with bert check, or give more rows",
        )
    best = max(good, key=lambda row: sign * row["value"])
    folder = run / f"trial-{best['trial']}"
    command = finetune_command(settings.model_copy(update={key: best[key] for key in searched}))
    copy_model(folder, run)
    summary = {
        "primary_metric": name,
        "best": best["trial"],
        "command": command,
        "trials": rows,
        "figures": _figures(folder),
    }
    log.write_json(run / "metrics.json", summary)
    _report(run, settings, name, rows, best, command, sign, list(searched))
    log.say(
        f"Best of {len(rows)} trials: {best['trial']}, held-out {name} {best['value']:.4f} "
        f"[{best['low']:.4f}, {best['high']:.4f}]"
    )
    log.say(f"Model: {run / 'model'}   Report: {run / 'report.html'}")
    log.say("The same again:")
    print(command)


def _report(
    run: Path,
    settings: FinetuneSettings,
    name: str,
    rows: Sequence[Mapping[str, Any]],
    best: Mapping[str, Any],
    command: str,
    sign: int,
    searched: Sequence[str],
) -> None:
    """``report.html`` and the model card."""
    numbers = [float(row["trial"]) for row in rows if "value" in row]
    values = [row["value"] for row in rows if "value" in row]
    so_far = [sign * max(sign * value for value in values[: i + 1]) for i in range(len(values))]
    plots.curves(
        run / "plots" / "trials.png",
        {"trial": (numbers, values), "best so far": (numbers, so_far)},
        title="The search",
        x_label="trial",
        y_label=f"held-out {name}",
    )
    report = Report("Search for settings", f"{run}: {settings.task}, {len(rows)} trials")
    report.heading("The best trial")
    report.paragraph(
        f"Trial {best['trial']}: {name} {best['value']:.4f} on held-out rows (95% from "
        f"{best['low']:.4f} to {best['high']:.4f}). It is the best of {len(rows)} on these very "
        "rows, so the figure flatters; rows given with --test had no part in it."
    )
    report.paragraph(command)
    report.heading("All trials")
    report.picture(run / "plots" / "trials.png", "the score of each trial")
    columns = ["trial", *searched, "value", "low", "high", "learnt", "seconds"]
    order = sorted(rows, key=lambda row: -sign * row.get("value", -sign * float("inf")))
    report.table(
        ["trial", *searched, name, "95% from", "to", "learnt", "seconds"],
        [[row.get(column) for column in columns] for row in order],
    )
    report.write(run / "report.html")
    task = Predictor(run / "model").task
    card = Card(
        name=run.name,
        summary=f"A model for {settings.task.replace('_', ' ')}: the best of {len(rows)} trials.",
        library="bertsmith",
        usage=f'import bert\n\nbert.Predictor("{run}/model")([{example_row(task)}])',
        base_model=settings.model,
        settings={**settings.model_dump(mode="json"), **{key: best[key] for key in searched}},
        metrics=[(name, best["value"], best["low"], best["high"])],
        limits=["The figure is the best of all trials on the rows they were chosen by."],
    )
    write_card(run / CARD, card)
