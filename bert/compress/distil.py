"""Distillation of a fine-tuned model: a student learns its task from rows and from a teacher.

Beside the loss of the task itself the student is asked to say what the teacher says, at a raised
temperature (Hinton et al. 2015, section 2), and to hold the same hidden states at the same depth
(Sun et al. 2019; Sanh et al. 2019 for the cosine).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bert.checkpoint import Checkpoint
from bert.data.batches import Batch
from bert.errors import UsageError
from bert.inference.int8 import encoder_of
from bert.objectives.distill import TEMPERATURE, soft_loss
from bert.tasks.embedding import Embedding
from bert.tasks.few_shot import FewShot
from bert.tasks.tagging import IGNORED
from bert.tasks.task import Task, batch_tokens
from bert.training.loop import Outcome

# Of the mean losses: the teacher's answers, the rows' own, the hidden states.
SOFT, HARD, COSINE = 1.0, 0.5, 1.0


class _Said(nn.Module):
    """What a network has said of a batch, for a task that asks it once more."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.said = logits

    def logits(self, _: object) -> Tensor:
        """The same again."""
        return self.said


@dataclass(frozen=True, eq=False)
class TaskDistillation:
    """A task, learnt from its rows and from a teacher.

    ``soft``: of each choice that the head makes (a window's label, a word's tag, the place where
    an answer begins), ``T^2 KL(softmax(t / T) || softmax(s / T))``, t and s being the logits of
    teacher and student; of numbers the squared difference, of vectors 1 - cos. ``cosine``:
    1 - cos of the hidden states at every token, the mean over the student's layers; only where
    both are equally wide. The losses of the task keep their names; vectors need none.

    Args:
        task: of the student.
        teacher: on the student's device; set to evaluation, without gradients.
        temperature: T.
    """

    task: Task
    teacher: nn.Module
    temperature: float = TEMPERATURE

    def __post_init__(self) -> None:
        self.teacher.eval().requires_grad_(False)

    def prepare(self, batch: Batch) -> Batch:
        """As the task does it."""
        return self.task.prepare(batch)

    def tokens(self, batch: Batch) -> int:
        """Real tokens in the batch."""
        return self.task.tokens(batch)

    def counts(self, batch: Batch) -> dict[str, int]:
        """The task's, choices of which the teacher tells, and tokens."""
        own = {} if isinstance(self.task, Embedding) else self.task.counts(batch)
        return {**own, "soft": self._choices(batch), "cosine": len(batch.input_ids)}

    def _choices(self, batch: Batch) -> int:
        if self.task.kind == "token":
            return int((batch.targets["tag"] != IGNORED).sum())
        if self.task.kind == "span":
            return 2 * len(batch.lengths)
        return len(batch.samples) if self.task.kind == "choice" else len(batch.lengths)

    def losses(self, model: nn.Module, batch: Batch, device: torch.device) -> Outcome:
        """The sums of all of them."""
        tokens = batch_tokens(batch, device)
        embeds = isinstance(self.task, Embedding)

        def said(network: nn.Module) -> Tensor:
            if not embeds:
                return network.logits(tokens).float()  # type: ignore[operator, no-any-return]
            return self.task.of_windows(network, tokens)  # type: ignore[attr-defined, no-any-return]

        with torch.no_grad(), _states(self.teacher) as theirs:
            goal = said(self.teacher)
        with _states(model) as mine:
            logits = said(model)
        own = Outcome({}, {}) if embeds else self.task.losses(_Said(logits), batch, device)
        soft, agreed = self._soft(logits, goal, batch)
        cosine = logits.new_zeros(())
        if mine[0].shape == theirs[0].shape:
            aims = [theirs[(i + 1) * len(theirs) // len(mine) - 1] for i in range(len(mine))]
            for state, aim in zip(mine, aims, strict=True):
                alike = F.cosine_similarity(state.float(), aim.float(), dim=-1)  # [T]
                cosine = cosine + (1 - alike).sum() / len(mine)
        return Outcome(
            {**own.losses, "soft": soft, "cosine": cosine},
            {**own.correct, "soft": agreed, "cosine": len(batch.input_ids) - cosine.detach()},
            {
                **{name: HARD * own.weights.get(name, 1.0) for name in own.losses},
                "soft": SOFT,
                "cosine": COSINE,
            },
        )

    def _soft(self, logits: Tensor, goal: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """How far the student's answers are from the teacher's, summed; how often they agree."""
        task, heat = self.task, self.temperature
        if task.kind == "encoder":
            cosine = F.cosine_similarity(logits, goal, dim=-1)  # [W]
            return (1 - cosine).sum(), cosine.detach().sum()
        if task.problem_type == "regression":
            error = logits - goal
            return (error**2).sum(), (error.abs() < 0.5).sum()
        if task.problem_type == "multi_label_classification":
            # Yes and no of a label are two logits; all labels of a window are one choice.
            agreed = ((logits > 0) == (goal > 0)).all(dim=-1).sum()
            logits, goal = (torch.stack((z, torch.zeros_like(z)), dim=-1) for z in (logits, goal))
            return soft_loss(logits, goal, heat), agreed
        if task.kind in ("span", "choice"):
            owner = batch.targets["row"]
            if task.kind == "span":
                owner = np.repeat(np.arange(len(batch.lengths)), batch.lengths)
            groups = torch.as_tensor(owner).to(logits.device)
            return _grouped(logits, goal, groups, int(owner.max()) + 1, heat)
        if task.kind == "token":
            there = torch.as_tensor(batch.targets["tag"] != IGNORED).to(logits.device)
            logits, goal = logits[there], goal[there]
        agreed = (logits.argmax(dim=-1) == goal.argmax(dim=-1)).sum()
        return soft_loss(logits, goal, heat), agreed


def _grouped(
    logits: Tensor, goal: Tensor, owner: Tensor, groups: int, heat: float
) -> tuple[Tensor, Tensor]:
    """``soft_loss`` where a choice is among the rows of a group, in each column.

    Args:
        logits: and
        goal: [n, C].
        owner: the group of each row [n].
        groups: G of them.
        heat: T.

    Returns:
        The sum over groups and columns, and in how many both prefer the same row.
    """
    index = owner[:, None].expand_as(logits)

    def best(values: Tensor) -> Tensor:
        low = values.new_full((groups, values.shape[1]), -torch.inf)
        return low.scatter_reduce(0, index, values.detach(), "amax")[owner]  # [n, C]

    def log_shares(values: Tensor) -> Tensor:
        values = values / heat - best(values / heat)
        sums = values.new_zeros(groups, values.shape[1]).index_add(0, owner, values.exp())
        return values - sums[owner].log()

    mine, theirs = log_shares(logits), log_shares(goal)
    loss = (theirs.exp() * (theirs - mine)).sum() * heat**2
    return loss, ((logits >= best(logits)) & (goal >= best(goal))).sum()


@contextmanager
def _states(model: nn.Module) -> Iterator[list[Tensor]]:
    """The hidden states [T, H] that leave each layer while it lasts, in order."""
    found: list[Tensor] = []
    handles = [
        layer.register_forward_hook(lambda _, __, hidden: found.append(hidden))
        for layer in encoder_of(model).layers
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def check_teacher(task: Task, checkpoint: Checkpoint, teacher: Checkpoint, name: str) -> None:
    """Make sure that a student can learn from a teacher.

    Raises:
        UsageError: they do not read the same tokens, or do not answer with the same labels.
    """
    what = None
    if isinstance(task, FewShot):
        what = "Few-shot learning has no teacher"
        fix = "--task classification"
    elif teacher.kind != checkpoint.kind:
        what = f"The teacher has a {teacher.kind} head, the task {task.name} a {task.kind} head"
        fix = f"give a teacher of the task {task.name}"
    elif teacher.labels != checkpoint.labels:
        what = "The teacher has other labels than the rows"
        fix = f"its labels: {', '.join(teacher.labels)[:100]}"
    elif _words(teacher) != _words(checkpoint):
        what = "The teacher and the student have different tokenizers"
        fix = "take a student with the teacher's tokenizer: bert compress TEACHER --distil layers=3"
    if what is not None:
        raise UsageError(f"{what}.", where=f"teacher={name}", fix=fix)


def _words(checkpoint: Checkpoint) -> dict[str, int]:
    assert checkpoint.tokenizer is not None
    return checkpoint.tokenizer.backend.get_vocab()
