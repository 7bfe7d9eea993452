"""The loop: accumulation, budgets, rates, and losses that are not finite."""

from __future__ import annotations

import copy
import json
import math
import os
import signal
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bert import log
from bert.data.batches import Batch
from bert.data.instances import Spans, cut_spans, pair_batch
from bert.data.shards import Shards
from bert.errors import BertError, Interrupted, UsageError
from bert.model.encoder import BERT
from bert.model.heads import BertForPreTraining
from bert.objectives.mlm import MaskedLM
from bert.objectives.objective import Objective
from bert.objectives.pairs import NextSentence
from bert.training.loop import MOST_SKIPPED, LoopSettings, Outcome, Step, train
from bert.training.optim import OPTIMIZERS, SCHEDULES, Budget, build_optimizer, schedule
from bert.training.state import TrainingState

CPU = torch.device("cpu")
VOCABULARY, ROOM, BATCH = 60, 29, 16
SETTINGS: dict[str, Any] = {
    "learning_rate": 0.05,
    "warmup": 0.1,
    "clip_norm": 1.0,
    "seed": 1,
    "precision": "fp32",
    "log_every": 1,
    "evaluations": 0,
    "checkpoint_minutes": 60.0,
}


def corpus() -> Spans:
    """Documents of sentences of 1 to 20 tokens: ragged sequences, some without a B."""
    draw = np.random.default_rng(0)
    lengths = [draw.integers(1, 20, draw.integers(1, 9)) for _ in range(40)]
    flat = np.concatenate(lengths)
    shards = Shards(
        Path(),
        draw.integers(5, VOCABULARY, flat.sum()),
        np.cumsum([0, *flat]),
        np.cumsum([0, *map(len, lengths)]),
    )
    return cut_spans(shards, ROOM, np.arange(40))


SPANS = corpus()


def micro_batches(step: int, cuts: Sequence[int]) -> list[Batch]:
    samples = (np.arange(BATCH) + step * BATCH) % len(SPANS)
    return [
        pair_batch(SPANS, part, epoch=0, seed=1, room=ROOM, cls_id=1, sep_id=2)
        for part in np.split(samples, cuts)
    ]


def network(dropout_rate: float = 0.0) -> BertForPreTraining:
    torch.manual_seed(0)
    return BertForPreTraining(
        BERT(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=32,
            dropout_rate=dropout_rate,
        )
    )


OBJECTIVE = Objective([MaskedLM(4, VOCABULARY, 1), NextSentence()])


class Run:
    """A training run and what it left."""

    def __init__(self, folder: Path) -> None:
        self.state = TrainingState()
        self.metrics = log.MetricsFile(folder / "metrics.jsonl")
        self.saved: list[int] = []
        self.evaluated: list[int] = []

    def train(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        budget: Budget,
        cuts: Sequence[int] = (),
        objective: Any = OBJECTIVE,
        evaluate: Callable[[], dict[str, float]] = dict,
        **changes: Any,
    ) -> None:
        def measured() -> dict[str, float]:
            self.evaluated.append(self.state.step)
            return evaluate()

        train(
            Step(model, objective, CPU),
            objective,
            lambda step: micro_batches(step, cuts),
            optimizer,
            budget,
            LoopSettings(**{**SETTINGS, **changes}),
            self.state,
            self.metrics,
            save=lambda: self.saved.append(self.state.step),
            evaluate=measured,
            label="Test",
        )

    def column(self, name: str) -> list[float]:
        return [row[name] for row in self.metrics.read() if name in row]


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """Unlike Adam it forgets no scale: a gradient of double size moves twice as far."""
    return torch.optim.SGD(model.parameters(), lr=0.0)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return build_optimizer(model, "adamw", 0.0, 0.01)


@pytest.mark.parametrize("clip_norm", [1e9, 0.5])
def test_micro_batches_change_nothing(clip_norm: float, tmp_path: Path) -> None:
    results, lines = [], []
    for number, cuts in enumerate([(), (1, 3, 10)]):
        run, model = Run(tmp_path), network()
        run.metrics = log.MetricsFile(tmp_path / f"{number}.jsonl")
        run.train(model, sgd(model), Budget(steps=5), cuts, clip_norm=clip_norm, warmup=0.0)
        results.append(model.state_dict())
        lines.append(run.metrics.read())
    start = network().state_dict()
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], atol=2e-6, rtol=0, msg=name)
    assert any(not torch.equal(value, start[name]) for name, value in results[0].items())
    for one, other in zip(*lines, strict=True):
        for name in ("mlm_loss", "mlm_accuracy", "nsp_loss", "nsp_accuracy", "gradient_norm"):
            assert one[name] == pytest.approx(other[name], rel=1e-4), name


def test_a_step_is_the_gradient_of_the_mean_losses(tmp_path: Path) -> None:
    run, model = Run(tmp_path), network()
    expected = copy.deepcopy(model)
    run.train(
        model, sgd(model), Budget(steps=1), (5, 6), clip_norm=1e9, warmup=0.0, learning_rate=0.1
    )
    batch = OBJECTIVE.prepare(micro_batches(0, ())[0])
    counts, losses = OBJECTIVE.counts(batch), OBJECTIVE.losses(expected, batch, CPU).losses
    sum(losses[name] / counts[name] for name in losses).backward()  # type: ignore[union-attr]
    for (name, new), old in zip(model.named_parameters(), expected.parameters(), strict=True):
        moved = old - 0.1 * old.grad if old.grad is not None else old
        torch.testing.assert_close(new, moved, atol=1e-6, rtol=0, msg=name)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_dropout_depends_on_the_step_alone(name: str, tmp_path: Path) -> None:
    results = []
    for noise in (0, 5):
        run, model = Run(tmp_path), network(0.3)
        torch.manual_seed(noise)
        torch.rand(noise + 1)
        run.train(model, build_optimizer(model, name, 0.0, 0.01), Budget(steps=3))
        results.append(model.state_dict())
    for key, value in results[0].items():
        assert torch.equal(value, results[1][key]), key


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_learns_and_moves_every_weight(name: str, tmp_path: Path) -> None:
    run, model = Run(tmp_path), network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = build_optimizer(model, name, 0.0, 0.01)
    run.train(model, optimizer, Budget(steps=30), learning_rate=3e-3)
    for key, value in model.state_dict().items():
        assert not torch.equal(value, before[key]), key
    losses = run.column("mlm_loss")
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.05
    assert {group["lr"] for group in optimizer.param_groups} == {run.column("learning_rate")[-1]}


def test_biases_and_norms_do_not_decay() -> None:
    model = network()
    optimizer = build_optimizer(model, "adamw", 0.1, 0.5)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert (group["weight_decay"] == 0.0) == (parameter.dim() == 1)
    count = sum(len(group["params"]) for group in optimizer.param_groups)
    assert count == len(list(model.parameters()))
    with pytest.raises(UsageError):
        build_optimizer(model, "lion", 0.1, 0.5)


@pytest.mark.parametrize("steps", [1, 7])
def test_steps_are_counted_exactly(steps: int, tmp_path: Path) -> None:
    run, model = Run(tmp_path), network()
    run.train(model, sgd(model), Budget(steps=steps))
    assert run.state.step == steps
    assert run.column("step") == list(range(1, steps + 1))


def test_the_rate_rises_and_falls_to_zero(tmp_path: Path) -> None:
    run, model = Run(tmp_path), network()
    run.train(model, sgd(model), Budget(steps=20), warmup=0.25)
    rates = run.column("learning_rate")
    assert max(rates) == pytest.approx(0.05, rel=0.15)
    assert rates.index(max(rates)) in (4, 5)
    assert all(a < b for a, b in pairwise(rates[:5]))
    assert all(a > b for a, b in pairwise(rates[5:]))
    assert 0 <= rates[-1] <= 0.05 / 15 + 1e-9


def test_schedule() -> None:
    assert schedule("linear", 1.0, 0.1) == 0.0
    assert schedule("linear", 0.1, 0.1) == pytest.approx(1.0)
    assert schedule("linear", 0.55, 0.1) == pytest.approx(0.5)
    assert schedule("linear", 0.05, 0.1) == pytest.approx(0.5)
    assert schedule("linear", 0.0, 0.0) == 1.0
    assert schedule("cosine", 0.55, 0.1) == pytest.approx(0.5)
    assert schedule("cosine", 0.325, 0.1) == pytest.approx(0.5 + 0.5 * math.cos(math.pi / 4))
    assert schedule("trapezoidal", 0.75, 0.1) == 1.0
    assert schedule("trapezoidal", 0.9, 0.1) == pytest.approx(0.5)


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.9, 0.99])
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_rises_to_one_and_falls_to_zero(name: str, warmup: float) -> None:
    values = [schedule(name, step / 1000, warmup) for step in range(1001)]
    assert values[-1] == pytest.approx(0.0, abs=1e-9)
    assert max(values) == pytest.approx(1.0)
    assert all(0.0 <= value <= 1.0 for value in values)
    top = round(warmup * 1000)
    assert values[: top + 1] == sorted(values[: top + 1])
    assert values[top:] == sorted(values[top:], reverse=True)


@pytest.mark.parametrize(
    "values", [{}, {"steps": 1, "minutes": 1.0}, {"steps": 0}, {"minutes": -1.0}, {"steps": -3}]
)
def test_budgets_that_cannot_be(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Budget(**values)


def test_minutes_are_kept_and_evaluations_count(tmp_path: Path) -> None:
    def slow() -> dict[str, float]:
        time.sleep(0.2)
        return {"held_out": 1.0}

    run, model = Run(tmp_path), network()
    started = time.monotonic()
    run.train(
        model, adamw(model), Budget(minutes=0.05), evaluations=3, evaluate=slow,
        log_every=1,
    )  # fmt: skip
    taken = time.monotonic() - started
    # The machine may be busy; the last evaluation falls at the end of the budget.
    assert 3 * 0.85 < taken < 3 * 1.15 + 0.4
    assert run.state.seconds == pytest.approx(taken, abs=0.3)
    assert run.state.step > 10
    assert len(run.evaluated) >= 2
    rates = run.column("learning_rate")
    assert rates[-1] < 0.05 * 0.15  # close to zero
    assert max(rates) == pytest.approx(0.05, rel=0.1)


def test_evaluations_are_spread_evenly(tmp_path: Path) -> None:
    run, model = Run(tmp_path), network()
    run.train(model, sgd(model), Budget(steps=12), evaluations=4, evaluate=lambda: {"x": 2.5})
    assert run.evaluated == [3, 6, 9, 12]
    assert run.column("x") == [2.5] * 4
    assert run.saved == []


def test_evaluation_does_not_disturb_training(tmp_path: Path) -> None:
    results = []
    for evaluations in (0, 4):
        run, model = Run(tmp_path), network(0.3)

        def evaluate(model: nn.Module = model) -> dict[str, float]:
            model.eval()
            torch.rand(100)
            return {}

        run.train(
            model, adamw(model), Budget(steps=4),
            evaluations=evaluations, evaluate=evaluate,
        )  # fmt: skip
        results.append(model.state_dict())
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name]), name


def test_means_over_a_window(tmp_path: Path) -> None:
    runs = []
    for every in (1, 4):
        run, model = Run(tmp_path), network()
        run.metrics = log.MetricsFile(tmp_path / f"every-{every}.jsonl")
        run.train(model, sgd(model), Budget(steps=8), log_every=every)
        runs.append(run)
    one, four = runs
    assert four.column("step") == [4, 8]
    counts = [
        sum(OBJECTIVE.counts(OBJECTIVE.prepare(b))["mlm"] for b in micro_batches(step, ()))
        for step in range(8)
    ]
    expected = np.average(one.column("mlm_loss")[:4], weights=counts[:4])
    assert four.column("mlm_loss")[0] == pytest.approx(expected)


class Poisoned(Objective):
    """Its loss is no number at some steps."""

    def __init__(self, bad: Callable[[int], float | None]) -> None:
        super().__init__(OBJECTIVE.parts)
        object.__setattr__(self, "bad", bad)
        object.__setattr__(self, "calls", 0)

    def losses(self, model: Any, batch: Batch, device: torch.device) -> Outcome:
        outcome = super().losses(model, batch, device)
        factor = self.bad(self.calls)  # type: ignore[attr-defined]
        object.__setattr__(self, "calls", self.calls + 1)  # type: ignore[attr-defined]
        if factor is None:
            return outcome
        return Outcome({k: v * factor for k, v in outcome.losses.items()}, outcome.correct)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_step_that_is_not_finite_is_skipped_and_shown(poison: float, tmp_path: Path) -> None:
    run, model = Run(tmp_path), network()
    weights: list[dict[str, torch.Tensor]] = []

    def watch(call: int) -> float | None:
        weights.append({k: v.clone() for k, v in model.state_dict().items()})
        return poison if call in (3, 4) else None

    run.train(
        model, adamw(model), Budget(steps=8), objective=Poisoned(watch),
        log_every=100, warmup=0.0,
    )  # fmt: skip
    assert run.state.step == 8
    assert run.state.skipped == 0
    text = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8")
    assert "NaN" in text or "Infinity" in text
    assert run.column("step")[:2] == [4, 5]  # shown at once, not at the next 100th step
    for row in run.metrics.read()[:2]:
        assert not math.isfinite(row["mlm_loss"])
    for name in weights[3]:
        assert torch.equal(weights[3][name], weights[4][name]), name
        assert torch.equal(weights[3][name], weights[5][name]), name
    assert any(not torch.equal(weights[5][name], weights[6][name]) for name in weights[5])
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_ten_such_steps_in_a_row_stop_the_run(tmp_path: Path) -> None:
    run, model = Run(tmp_path), network()
    with pytest.raises(BertError) as caught:
        run.train(
            model,
            adamw(model),
            Budget(steps=100),
            objective=Poisoned(lambda call: math.nan if call >= 5 else None),
        )
    assert MOST_SKIPPED == 10
    assert run.state.step == 15
    assert caught.value.exit_code == 1
    assert "15" in (caught.value.where or "")
    assert "learning_rate" in (caught.value.fix or "")
    assert all(value.isfinite().all() for value in model.state_dict().values())
    # Nine, then a good one, then nine: goes on.
    run = Run(tmp_path / "..")
    run.metrics = log.MetricsFile(tmp_path / "other.jsonl")
    run.train(
        model,
        adamw(model),
        Budget(steps=25),
        objective=Poisoned(lambda call: None if call % 10 == 9 else math.nan),
    )
    assert run.state.step == 25


def test_no_checkpoint_is_written_of_a_run_gone_wrong(tmp_path: Path) -> None:
    run, model = Run(tmp_path), network()
    with pytest.raises(BertError):
        run.train(
            model, adamw(model), Budget(steps=100), log_every=1,
            objective=Poisoned(lambda call: math.nan), checkpoint_minutes=60.0,
        )  # fmt: skip
    assert run.saved == []


def test_checkpoints_come_by_the_clock(tmp_path: Path) -> None:
    run, model = Run(tmp_path), network()
    run.train(model, sgd(model), Budget(steps=6), checkpoint_minutes=1e-9)
    assert run.saved == [1, 2, 3, 4, 5, 6]


def test_the_data_of_a_step_that_fails_is_told(tmp_path: Path) -> None:
    def steps(step: int) -> list[Batch]:
        if step == 2:
            raise BertError("The file has gone.")
        return micro_batches(step, ())

    run, model = Run(tmp_path), network()
    with pytest.raises(BertError, match="has gone"):
        train(
            Step(model, OBJECTIVE, CPU), OBJECTIVE, steps, sgd(model), Budget(steps=5),
            LoopSettings(**SETTINGS), run.state, run.metrics, save=dict, evaluate=dict,
            label="Test",
        )  # fmt: skip
    assert run.state.step == 2


def test_a_last_line_cut_by_a_crash_is_left_out(tmp_path: Path) -> None:
    metrics = log.MetricsFile(tmp_path / "m.jsonl")
    for step in (1, 2, 3):
        metrics.write(step=step, loss=math.nan if step == 2 else 1.0)
    with metrics.path.open("a") as file:
        file.write('{"step": 4, "lo')
    assert [row["step"] for row in metrics.read()] == [1, 2, 3]
    metrics.keep_until(2)
    lines = metrics.path.read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    assert "NaN" in lines[1]


class Signalled(Objective):
    """Sends this process signals while it computes a step."""

    def __init__(self, numbers: dict[int, Sequence[int]]) -> None:
        super().__init__(OBJECTIVE.parts)
        object.__setattr__(self, "numbers", numbers)
        object.__setattr__(self, "calls", 0)

    def losses(self, model: Any, batch: Batch, device: torch.device) -> Outcome:
        for number in self.numbers.get(self.calls, ()):  # type: ignore[attr-defined]
            os.kill(os.getpid(), number)
        object.__setattr__(self, "calls", self.calls + 1)  # type: ignore[attr-defined]
        return super().losses(model, batch, device)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("step", [0, 3, 5])  # the first, one between and the last
def test_a_signal_ends_the_step_and_saves(
    number: int, code: int, step: int, tmp_path: Path
) -> None:
    run, model = Run(tmp_path), network()
    handler = signal.getsignal(number)
    with pytest.raises(Interrupted) as caught:
        run.train(model, sgd(model), Budget(steps=6), objective=Signalled({step: [number]}))
    assert caught.value.exit_code == code
    assert "--resume" in (caught.value.fix or "")
    assert run.state.step == step + 1
    assert run.saved == [step + 1]
    assert signal.getsignal(number) is handler


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    run, model = Run(tmp_path), network()
    with pytest.raises(Interrupted) as caught:
        run.train(
            model, sgd(model), Budget(steps=6),
            objective=Signalled({2: [signal.SIGINT, signal.SIGTERM]}),
        )  # fmt: skip
    assert caught.value.exit_code == 143
    assert run.saved == []
