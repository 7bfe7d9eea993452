"""Distillation: a small student learns what a teacher says of masked words (Sanh et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bert.data.batches import Batch
from bert.errors import ModelError
from bert.families.family import Family, load_family
from bert.model.config import BertConfig
from bert.model.heads import BertForMaskedLM
from bert.model.packing import Tokens
from bert.objectives.mlm import MaskedLM
from bert.training.loop import Outcome

TEMPERATURE = 2.0
# Of the mean losses, as in the code that the paper's authors published.
WEIGHTS = MappingProxyType({"soft": 5.0, "mlm": 2.0, "cosine": 1.0})


class Student(nn.Module):
    """A student, and a linear map to the teacher's width where that is another.

    The map serves the loss of the hidden states only; ``model`` is what is kept in the end.
    """

    def __init__(self, model: BertForMaskedLM, teacher_width: int) -> None:
        super().__init__()
        self.model = model
        width = model.bert.config.hidden_size
        self.widen: nn.Module = nn.Identity()
        if width != teacher_width:
            self.widen = nn.Linear(width, teacher_width)


@dataclass(frozen=True, eq=False)
class Distillation:
    """What a ``Student`` is asked beside a teacher, both reading the same masked text.

    ``soft``: ``T^2 KL(softmax(t / T) || softmax(s / T))`` over hidden words, t and s being the
    logits of teacher and student and T the temperature (Hinton et al. 2015); right is the same
    first guess. ``mlm``: cross-entropy of the hidden words. ``cosine``: 1 - cos of the last
    hidden states at every token; the sum of the cosines stands for what is right.

    Args:
        masked: which words are hidden.
        teacher: of the same vocabulary, on the device of the student; set to evaluation,
            without gradients.
        temperature: T.
        weights: of the three mean losses.

    Raises:
        ModelError: the teacher has another vocabulary than the masks.
    """

    masked: MaskedLM
    teacher: BertForMaskedLM
    temperature: float = TEMPERATURE
    weights: Mapping[str, float] = field(default_factory=lambda: WEIGHTS)

    def __post_init__(self) -> None:
        words = self.teacher.bert.config.vocab_size
        if words < self.masked.vocab_size:
            raise ModelError(
                f"The teacher has {words:,} words, the tokenizer {self.masked.vocab_size:,}.",
                fix="take the teacher's own tokenizer",
            )
        self.teacher.eval().requires_grad_(False)

    def prepare(self, batch: Batch) -> Batch:
        """Hide words."""
        return self.masked.prepare(batch)

    def counts(self, batch: Batch) -> dict[str, int]:
        """Hidden words twice, and all tokens."""
        words = self.masked.count(batch)
        return {"soft": words, "mlm": words, "cosine": len(batch.input_ids)}

    def tokens(self, batch: Batch) -> int:
        """Real tokens in the batch."""
        return len(batch.input_ids)

    def losses(self, model: Any, batch: Batch, device: torch.device) -> Outcome:
        """The three sums."""
        tokens = Tokens.of(
            batch.input_ids, batch.token_type_ids, batch.position_ids, batch.lengths, device
        )
        places, words = (
            torch.as_tensor(batch.targets[name]).to(device, non_blocking=True)
            for name in ("masked_places", "masked_words")
        )
        with torch.no_grad():
            aim = self.teacher.bert.encode(tokens)  # [T, H of the teacher]
            goal = self.teacher.word_logits(aim[places]).float()  # [M, V]
        student = model.model
        hidden = student.bert.encode(tokens)
        logits = student.word_logits(hidden[places]).float()  # [M, V]
        cosine = F.cosine_similarity(model.widen(hidden).float(), aim.float(), dim=-1)  # [T]
        guesses = logits.argmax(dim=-1)
        return Outcome(
            {
                "soft": soft_loss(logits, goal, self.temperature),
                "mlm": F.cross_entropy(logits, words, reduction="sum"),
                "cosine": (1 - cosine).sum(),
            },
            {
                "soft": (guesses == goal.argmax(dim=-1)).sum(),
                "mlm": (guesses == words).sum(),
                "cosine": cosine.detach().sum(),
            },
            self.weights,
        )


def soft_loss(logits: Tensor, goal: Tensor, temperature: float) -> Tensor:
    """``T^2 KL(softmax(goal / T) || softmax(logits / T))``: twice [M, V] -> the sum over M."""
    mine = F.log_softmax(logits / temperature, dim=-1)
    theirs = F.log_softmax(goal / temperature, dim=-1)
    divergence = F.kl_div(mine, theirs, reduction="sum", log_target=True)
    return divergence * temperature**2


def student_of(teacher: BertForMaskedLM, family: Family) -> tuple[BertForMaskedLM, Family]:
    """A student of a teacher's width with every second of its layers, begun with its weights.

    The student of a BERT is a DistilBERT: its first segment becomes a part of the positions.
    Of another family it is of the same family.

    Args:
        teacher: the student copies from it.
        family: the teacher's.

    Returns:
        The student and its family.

    Raises:
        ModelError: the teacher has a single layer.
    """
    config = teacher.bert.config
    if config.num_hidden_layers < 2:
        raise ModelError(
            "A teacher of one layer has no student of fewer.", fix="take a teacher of two or more"
        )
    changed: dict[str, Any] = {"num_hidden_layers": (config.num_hidden_layers + 1) // 2}
    state = dict(teacher.state_dict())
    if family.name == "bert" and config.layer_norm_eps == BertConfig.layer_norm_eps:
        family = load_family("distilbert")
        changed |= {"type_vocab_size": 0, "positions": "learned"}
        segments = state.pop("bert.embeddings.segment.weight")
        positions = "bert.embeddings.position.weight"
        state[positions] = state[positions] + segments[0]
    student = family.build("masked_lm", replace(config, **changed))
    assert isinstance(student, BertForMaskedLM)
    layers = "bert.layers."
    for name in student.state_dict():
        if name.startswith(layers) and not config.shared_layers:
            number, rest = name.removeprefix(layers).split(".", 1)
            state[name] = teacher.state_dict()[f"{layers}{2 * int(number)}.{rest}"]
    wanted = student.state_dict()
    student.load_state_dict({name: state[name] for name in wanted})
    return student, family
