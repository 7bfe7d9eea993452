"""The training loop: one function, the same for pretraining, fine-tuning and distillation."""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from bert import log
from bert.errors import BertError, Interrupted
from bert.model.precision import arithmetic
from bert.training.interrupt import deferred_signals
from bert.training.optim import Budget, linear_schedule
from bert.training.state import TrainingState

# A loss that is not finite is skipped and shown; this many in a row stop the run.
MOST_SKIPPED = 10

B = TypeVar("B")


class Outcome(NamedTuple):
    """What a batch gave, by the name of the loss: loss sums and numbers of right answers."""

    losses: Mapping[str, Tensor]
    correct: Mapping[str, Tensor]


class Trainable(Protocol[B]):
    """What the loop needs of an objective or a task."""

    def prepare(self, batch: B) -> B:
        """The batch as the model sees it; runs beside the step before."""
        ...

    def counts(self, batch: B) -> dict[str, int]:
        """How many answers of each name the batch asks for."""
        ...

    def losses(self, model: nn.Module, batch: B, device: torch.device) -> Outcome:
        """Loss sums over those answers."""
        ...

    def tokens(self, batch: B) -> int:
        """Real tokens in the batch."""
        ...


@dataclass(frozen=True)
class LoopSettings:
    """How to take a step.

    Args:
        learning_rate: the peak rate.
        warmup: share of the budget in which the rate rises to it.
        clip_norm: the largest norm of the gradient over all weights.
        seed: of dropout, together with the step.
        precision: fp32 or bf16.
        log_every: steps between lines in ``metrics.jsonl``.
        evaluations: evaluations on held-out data, evenly over the budget.
        checkpoint_minutes: minutes between checkpoints.
    """

    learning_rate: float
    warmup: float
    clip_norm: float
    seed: int
    precision: str
    log_every: int
    evaluations: int
    checkpoint_minutes: float


def train(
    model: nn.Module,
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
    device: torch.device,
    label: str,
) -> None:
    """Train until the budget is spent.

    Losses are sums and batches know their counts, so that the mean over all answers of a
    step is exact however the step is divided into micro-batches.

    Args:
        model: trained in place.
        objective: gives the losses.
        steps: the micro-batches of each optimiser step; a function of the step's number
            alone, which is what makes resuming exact.
        optimizer: over the model's parameters.
        budget: steps or minutes.
        settings: how to take a step.
        state: where to start; kept up to date.
        metrics: where figures go.
        save: writes a checkpoint of the state.
        evaluate: figures on held-out data, without changing the model.
        device: where the model is.
        label: shown beside the progress bar.

    Raises:
        Interrupted: Ctrl-C or SIGTERM arrived; the checkpoint is saved.
        BertError: the loss was not finite several times in a row; the checkpoint before
            that is kept.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    started = time.monotonic() - state.seconds
    saved_at = state.seconds
    step_seconds = 0.0

    def prepared(step: int) -> list[B]:
        return [objective.prepare(batch) for batch in steps(step)]

    with (
        deferred_signals() as stop,
        ThreadPoolExecutor(1) as ahead,
        log.Progress(label, total=1.0) as progress,
    ):

        def leave_if_asked() -> None:
            if stop.signal_number is not None:
                save()
                raise Interrupted(stop.signal_number, fix="add --resume to go on from here")

        upcoming = ahead.submit(prepared, state.step)
        while not budget.spent(state.step, state.seconds, step_seconds):
            leave_if_asked()
            batches = upcoming.result()
            upcoming = ahead.submit(prepared, state.step + 1)
            counts = sum((Counter(objective.counts(batch)) for batch in batches), Counter())

            share = budget.progress(state.step, state.seconds)
            rate = settings.learning_rate * linear_schedule(share, settings.warmup)
            for group in optimizer.param_groups:
                group["lr"] = rate
            # Dropout depends on the step alone, not on what was drawn before.
            torch.manual_seed(settings.seed * 1_000_003 + state.step)
            model.train()
            figures: dict[str, float] = defaultdict(float)
            figures.update({f"{name}_count": n for name, n in counts.items()})
            for batch in batches:
                with arithmetic(settings.precision, device):
                    outcome = objective.losses(model, batch, device)
                loss = sum(
                    (value / max(counts[name], 1) for name, value in outcome.losses.items()),
                    torch.zeros((), device=device),
                )
                loss.backward()  # type: ignore[no-untyped-call]
                figures["tokens"] += objective.tokens(batch)
                for name in outcome.losses:
                    figures[f"{name}_loss"] += outcome.losses[name].item()
                    figures[f"{name}_correct"] += int(outcome.correct[name].item())
            norm = float(nn.utils.clip_grad_norm_(parameters, settings.clip_norm))
            if math.isfinite(norm) and all(map(math.isfinite, figures.values())):
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
            if state.step % settings.log_every == 0 or state.skipped:
                metrics.write(
                    step=state.step,
                    seconds=round(state.seconds, 3),
                    learning_rate=rate,
                    gradient_norm=norm,
                    **line,
                )
                state.window = {}
            if state.skipped >= MOST_SKIPPED:
                raise BertError(
                    f"The loss was not finite {MOST_SKIPPED} steps in a row.",
                    where=f"step {state.step}, {metrics.path}",
                    fix=f"start again with a lower rate: learning_rate={rate / 4:.1e}",
                )
            due = int(budget.progress(state.step, state.seconds) * settings.evaluations)
            if due > state.evaluations:
                state.evaluations = due
                figures_held_out = evaluate()
                metrics.write(step=state.step, seconds=round(state.seconds, 3), **figures_held_out)
                state.seconds = time.monotonic() - started
            if state.seconds - saved_at >= 60 * settings.checkpoint_minutes:
                save()
                state.seconds = saved_at = time.monotonic() - started
        leave_if_asked()  # during the last step
        upcoming.cancel()


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
