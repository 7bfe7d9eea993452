"""The training loop: one function, the same for pretraining, fine-tuning and distillation."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from bert import log
from bert.distributed import ALONE, World, unsynchronised, whole
from bert.errors import BertError, Interrupted
from bert.heap import keep_freed_memory
from bert.model.precision import arithmetic
from bert.training.interrupt import deferred_signals
from bert.training.optim import Budget, schedule
from bert.training.state import TrainingState, keep_batches

# A loss that is not finite is skipped and shown; this many in a row stop the run.
MOST_SKIPPED = 10
# A loss this many times the mean of the last hundred steps or so is told as a spike.
SPIKE = 1.5

B = TypeVar("B")


class Outcome(NamedTuple):
    """What a batch gave, by the name of the loss.

    Args:
        losses: sums over all answers.
        correct: how many answers were right.
        weights: of the mean losses in their sum, 1 where nothing is said.
    """

    losses: Mapping[str, Tensor]
    correct: Mapping[str, Tensor]
    weights: Mapping[str, float] = MappingProxyType({})


class Trainable(Protocol[B]):
    """What the loop needs of an objective or a task."""

    def prepare(self, batch: B) -> B:
        """The batch as the model sees it; runs beside the step before."""
        ...

    def counts(self, batch: B) -> dict[str, int]:
        """How many answers of each name the batch asks for; the names are always the same."""
        ...

    def losses(self, model: nn.Module, batch: B, device: torch.device) -> Outcome:
        """Loss sums over those answers."""
        ...

    def tokens(self, batch: B) -> int:
        """Real tokens in the batch."""
        ...


class Step(nn.Module):
    """A model under its objective, as the one module that several processes train."""

    def __init__(self, model: nn.Module, objective: Trainable[Any], device: torch.device) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.device = device

    def forward(self, batch: Any) -> Outcome:
        """A batch -> loss sums and right answers."""
        return self.objective.losses(self.model, batch, self.device)


@dataclass(frozen=True)
class LoopSettings:
    """How to take a step.

    Args:
        learning_rate: the peak rate.
        warmup: share of the budget in which the rate rises to it.
        schedule: how it falls again: a name in ``optim.SCHEDULES``.
        clip_norm: the largest norm of the gradient over all weights.
        seed: of dropout, together with the step and the rank.
        precision: fp32 or bf16.
        log_every: steps between lines in ``metrics.jsonl``.
        evaluations: evaluations on held-out data, evenly over the budget.
        checkpoint_minutes: minutes between checkpoints.
        patience: evaluations in a row without a better one after which training ends.
    """

    learning_rate: float
    warmup: float
    clip_norm: float
    seed: int
    precision: str
    log_every: int
    evaluations: int
    checkpoint_minutes: float
    schedule: str = "linear"
    patience: int | None = None


def train(
    module: nn.Module,
    objective: Trainable[B],
    steps: Callable[[int], Sequence[B]],
    optimizer: torch.optim.Optimizer,
    budget: Budget,
    settings: LoopSettings,
    state: TrainingState,
    metrics: log.MetricsFile,
    *,
    save: Callable[[], object],
    evaluate: Callable[[], Mapping[str, float]],
    world: World = ALONE,
    label: str,
) -> None:
    """Train until the budget is spent.

    Losses are sums and batches know their counts, so that the mean over all answers of a
    step is exact however the step is divided into micro-batches and among processes.

    Args:
        module: a ``Step``, wrapped for several processes if there are; trained in place.
        objective: prepares batches and counts what they ask.
        steps: this process's micro-batches of each optimiser step, equally many in every
            process; a function of the step's number alone, which makes resuming exact.
        optimizer: over the module's parameters.
        budget: steps or minutes.
        settings: how to take a step.
        state: where to start; kept up to date.
        metrics: where figures go.
        save: writes a checkpoint of the state.
        evaluate: figures on held-out data, without changing the model.
        world: the processes that train together.
        label: shown beside the progress bar.

    Raises:
        Interrupted: Ctrl-C or SIGTERM arrived at any process; the checkpoint is saved.
        BertError: the loss was not finite several times in a row; the checkpoint before
            that is kept.
    """
    keep_freed_memory()
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    started = time.monotonic() - state.seconds
    saved_at = state.seconds
    step_seconds = 0.0
    # DDP lays gradients out anew after they were first exchanged, which with more than two
    # ranks changes the order in which they are added. One exchange before the first step makes
    # that order the same wherever a run goes on.
    unsettled = world.size > 2 and isinstance(module, nn.parallel.DistributedDataParallel)

    def prepared(step: int) -> list[B]:
        return [objective.prepare(batch) for batch in steps(step)]

    with (
        deferred_signals() as stop,
        ThreadPoolExecutor(1) as ahead,
        log.Progress(label, total=1.0) as progress,
    ):
        upcoming = ahead.submit(prepared, state.step)
        while True:
            batches = upcoming.result()
            mine = sum((Counter(objective.counts(batch)) for batch in batches), Counter())
            names = list(objective.counts(batches[0]))
            tokens = sum(objective.tokens(batch) for batch in batches)
            # What all processes must agree on: rank 0's clock, anyone's signal, all counts.
            rows = world.gathered(
                [
                    budget.progress(state.step, state.seconds),
                    budget.spent(state.step, state.seconds, step_seconds),
                    state.seconds - saved_at >= 60 * settings.checkpoint_minutes,
                    stop.signal_number or 0,
                    tokens,
                    *(mine[name] for name in names),
                ]
            )
            share, spent, save_due = rows[0][:3]
            # Before any save, which must know that the line of this step is written.
            # 15/22 of 22 evaluations are a little less than 15.
            if (due := int(share * settings.evaluations + 1e-9)) > state.evaluations:
                state.evaluations = due
                metrics.write(step=state.step, seconds=round(state.seconds, 3), **evaluate())
                state.seconds = time.monotonic() - started
            if number := int(max(row[3] for row in rows)):
                save()
                raise Interrupted(number, fix="add --resume to go on from here")
            if save_due:
                save()
                state.seconds = saved_at = time.monotonic() - started
            tired = settings.patience is not None and state.stale >= settings.patience
            if spent or tired:
                break
            upcoming = ahead.submit(prepared, state.step + 1)
            counts = {name: sum(row[5 + i] for row in rows) for i, name in enumerate(names)}
            if unsettled:
                with arithmetic(settings.precision, world.device):
                    outcome = module(batches[0])
                torch.autograd.backward(list(outcome.losses.values()))
                optimizer.zero_grad(set_to_none=True)
                unsettled = False

            rate = settings.learning_rate * schedule(settings.schedule, share, settings.warmup)
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("scale", 1.0)
            # Dropout depends on the step and the rank alone, not on what was drawn before.
            torch.manual_seed((settings.seed * 1_000_003 + state.step) * world.size + world.rank)
            module.train()
            sums = torch.zeros(2, len(names), device=world.device)
            for i, batch in enumerate(batches):
                last = i == len(batches) - 1
                with nullcontext() if last else unsynchronised(module):
                    with arithmetic(settings.precision, world.device):
                        outcome = module(batch)
                    # The gradients of the ranks are averaged, so each counts its own in full.
                    loss = world.size * sum(
                        outcome.weights.get(name, 1.0) * value / max(counts[name], 1)
                        for name, value in outcome.losses.items()
                    )
                    loss.backward()
                for row, values in enumerate((outcome.losses, outcome.correct)):
                    sums[row] += torch.stack([values[name].detach().float() for name in names])
            norm = whole(nn.utils.clip_grad_norm_(parameters, settings.clip_norm))
            # The only time that the processor waits for the accelerator.
            everyone = world.gathered(torch.cat((norm[None], sums.flatten())).tolist())
            totals = [sum(column) for column in zip(*everyone, strict=True)][1:]
            figures = {f"{name}_count": counts[name] for name in names}
            figures |= {f"{name}_loss": totals[i] for i, name in enumerate(names)}
            figures |= {f"{name}_correct": totals[len(names) + i] for i, name in enumerate(names)}
            figures["tokens"] = sum(row[4] for row in rows)
            if finite := all(math.isfinite(value) for row in everyone for value in row):
                optimizer.step()
                state.skipped = 0
            else:
                state.skipped += 1
            optimizer.zero_grad(set_to_none=True)

            state.step += 1
            before, state.seconds = state.seconds, time.monotonic() - started
            step_seconds = state.seconds - before
            for name, value in {**figures, "seconds": step_seconds, "steps": 1}.items():
                state.window[name] = state.window.get(name, 0.0) + value
            line = _means(state.window)
            progress.update(budget.progress(state.step, state.seconds), _short(line))
            if state.step % settings.log_every == 0 or not finite:
                metrics.write(
                    step=state.step,
                    seconds=round(state.seconds, 3),
                    learning_rate=rate,
                    gradient_norm=everyone[0][0],
                    **line,
                )
                state.window = {}
            loss_now = sum(figures[f"{name}_loss"] / max(counts[name], 1) for name in names)
            if finite and _spike(state, loss_now):
                metrics.write(step=state.step, spike=loss_now, usual=state.usual_loss)
            if state.skipped >= MOST_SKIPPED:
                folder = metrics.path.parent
                raise BertError(
                    f"The loss was not finite {MOST_SKIPPED} steps in a row.",
                    where=f"step {state.step}, its batches: {keep_batches(folder, batches)}",
                    fix=f"start again with a lower rate: learning_rate={rate / 4:.1e}",
                )
        upcoming.cancel()


def _spike(state: TrainingState, loss: float) -> bool:
    """Whether a loss is far above what it was of late, which is kept up to date."""
    usual = state.usual_loss
    state.usual_loss = loss if usual is None else usual + (loss - usual) / 100
    return usual is not None and loss > SPIKE * usual


def _means(window: Mapping[str, float]) -> dict[str, float]:
    """Means over a window of steps, from its sums."""
    line: dict[str, float] = {}
    for name, value in window.items():
        if name.endswith("_count"):
            loss = name.removesuffix("_count")
            line[f"{loss}_loss"] = window[f"{loss}_loss"] / max(value, 1)
            line[f"{loss}_accuracy"] = window[f"{loss}_correct"] / max(value, 1)
    line["tokens_per_second"] = window["tokens"] / max(window["seconds"], 1e-9)
    return line


def _short(line: Mapping[str, float]) -> str:
    losses = [f"{name} {value:.3f}" for name, value in line.items() if name.endswith("_loss")]
    return "  ".join([*losses, f"{line['tokens_per_second']:,.0f} tokens/s"])
