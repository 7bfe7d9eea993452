"""Distillation: the losses, what is trained and how a student begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bert.checkpoint import Checkpoint, write_model
from bert.data.batches import Batch, pack_sequences
from bert.errors import ModelError
from bert.families.family import load_family
from bert.model.heads import BertForMaskedLM
from bert.objectives.distill import Distillation, Student, soft_loss, student_of
from bert.objectives.mlm import MaskedLM

CPU = torch.device("cpu")
V, MASK = 40, 4
SIZES: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 24,
    "initializer_range": 0.2,
}
MASKED = MaskedLM(MASK, V, 1, 0.3)


def network(family: str = "bert", **changes: Any) -> BertForMaskedLM:
    torch.manual_seed(sum(map(len, changes)))
    table = load_family(family)
    model = table.build("masked_lm", table.size("tiny" if family != "distilbert" else "mini",
                                                **{**SIZES, **changes}))  # fmt: skip
    assert isinstance(model, BertForMaskedLM)
    return model


def batch(count: int = 6) -> Batch:
    draw = np.random.default_rng(0)
    rows = [[1, *draw.integers(5, V, draw.integers(1, 20)), 2] for _ in range(count)]
    result = pack_sequences(rows, [[0] * len(row) for row in rows], np.arange(count))
    result.targets["special"] = np.isin(result.input_ids, [1, 2]).astype(np.int64)
    return result


def test_a_student_like_its_teacher_has_nothing_to_learn_from_it() -> None:
    teacher = network()
    student = Student(network(), 16).eval()
    student.model.load_state_dict(teacher.state_dict())
    objective = Distillation(MASKED, teacher)
    ready = objective.prepare(batch())
    outcome = objective.losses(student, ready, CPU)
    counts = objective.counts(ready)
    hidden = len(ready.targets["masked_words"])
    assert counts == {"soft": hidden, "mlm": hidden, "cosine": len(ready.input_ids)}
    assert outcome.losses["soft"].item() == pytest.approx(0.0, abs=1e-4)
    assert outcome.losses["cosine"].item() == pytest.approx(0.0, abs=1e-3)
    assert outcome.losses["mlm"].item() > 1.0
    assert int(outcome.correct["soft"]) == hidden
    assert outcome.correct["cosine"].item() == pytest.approx(len(ready.input_ids), rel=1e-4)
    assert set(outcome.weights) == set(counts)


def test_losses_are_what_they_say() -> None:
    teacher, student = network(), Student(network(hidden_size=24), 16).eval()
    objective = Distillation(MASKED, teacher, temperature=3.0)
    ready = objective.prepare(batch())
    outcome = objective.losses(student, ready, CPU)
    expected = dict.fromkeys(outcome.losses, torch.zeros(()))
    end = 0
    for length in ready.lengths:
        start, end = end, end + int(length)
        mine = (ready.targets["masked_places"] >= start) & (ready.targets["masked_places"] < end)
        ids = torch.as_tensor(ready.input_ids[start:end])[None]
        at = torch.as_tensor(ready.targets["masked_places"][mine] - start)
        words = torch.as_tensor(ready.targets["masked_words"][mine])
        one, other = student.model(ids)[0, at], teacher(ids)[0, at]
        for a, b in zip((one / 3).softmax(-1), (other / 3).softmax(-1), strict=True):
            expected["soft"] = expected["soft"] + 9 * (b * (b / a).log()).sum()
        expected["mlm"] = expected["mlm"] + F.cross_entropy(one, words, reduction="sum")
        mapped = student.widen(student.model.bert(ids))[0]
        for a, b in zip(mapped, teacher.bert(ids)[0], strict=True):
            expected["cosine"] = expected["cosine"] + 1 - a @ b / a.norm() / b.norm()
    for name, value in expected.items():
        assert outcome.losses[name].item() == pytest.approx(value.item(), rel=1e-3), name


def test_the_teacher_is_neither_trained_nor_disturbed() -> None:
    teacher = network(dropout_rate=0.5).train()
    student = Student(network(), 16)
    objective = Distillation(MASKED, teacher)
    ready = objective.prepare(batch())
    student.eval()
    first = objective.losses(student, ready, CPU)
    second = objective.losses(student, ready, CPU)
    assert torch.equal(first.losses["soft"], second.losses["soft"])  # no dropout
    sum(first.losses.values()).backward()  # type: ignore[union-attr]
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert not [name for name in student.state_dict() if "widen" in name]


def test_nothing_hidden_is_still_a_part_of_the_graph() -> None:
    student = Student(network(hidden_size=24), 16)
    objective = Distillation(MASKED, network())
    empty = pack_sequences([[1, 2]], [[0, 0]], [0])
    empty.targets["special"] = np.ones(2, dtype=np.int64)
    ready = objective.prepare(empty)
    assert objective.counts(ready) == {"soft": 0, "mlm": 0, "cosine": 2}
    losses = objective.losses(student, ready, CPU).losses
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert losses["soft"].item() == losses["mlm"].item() == 0.0
    assert all(parameter.grad is not None for parameter in student.parameters())


def test_soft_loss_has_the_gradient_of_soft_cross_entropy() -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, 7, requires_grad=True, dtype=torch.float64)
    goal = torch.randn(5, 7, dtype=torch.float64)
    soft_loss(logits, goal, 2.0).backward()
    expected = 2.0 * ((logits / 2).softmax(-1) - (goal / 2).softmax(-1))
    torch.testing.assert_close(logits.grad, expected.detach())


def test_the_teacher_must_know_the_words() -> None:
    with pytest.raises(ModelError, match="30 words, the tokenizer 40"):
        Distillation(MASKED, network(vocab_size=30))


@pytest.mark.parametrize("layers", [2, 3, 4])
def test_a_student_takes_every_second_layer(layers: int) -> None:
    teacher = network(num_hidden_layers=layers)
    student, family = student_of(teacher, load_family("bert"))
    assert family.name == "distilbert"
    mine, its = student.state_dict(), teacher.state_dict()
    count = (layers + 1) // 2
    assert student.bert.config.num_hidden_layers == count == len(student.bert.layers)
    for i in range(count):
        name = "feed_forward.output.weight"
        assert torch.equal(mine[f"bert.layers.{i}.{name}"], its[f"bert.layers.{2 * i}.{name}"])
    for name in ("words.dense.weight", "words.bias", "bert.embeddings.word.weight"):
        assert torch.equal(mine[name], its[name])
    assert "bert.embeddings.segment.weight" not in mine
    # The embeddings of a text in one segment are the teacher's.
    ids = torch.randint(5, V, (2, 9))
    teacher.eval(), student.eval()
    torch.testing.assert_close(student.bert.embeddings(ids), teacher.bert.embeddings(ids))
    with torch.no_grad():  # a copy, not a view
        student.bert.layers[0].attention.qkv.weight.zero_()
    assert its["bert.layers.0.attention.qkv.weight"].any()


@pytest.mark.parametrize("family", ["roberta", "albert", "electra", "modernbert", "deberta_v2"])
def test_students_of_other_families(family: str) -> None:
    table = load_family(family)
    config = table.size(next(iter(table.sizes)), **{**SIZES, "embedding_size": None})
    teacher = table.build("masked_lm", config)
    student, same = student_of(teacher, table)  # type: ignore[arg-type]
    assert same is table
    assert student.bert.config.num_hidden_layers == 2
    ids = torch.randint(5, V, (1, 9))
    teacher.eval(), student.eval()
    torch.testing.assert_close(
        student.bert.embeddings(ids),
        teacher.bert.embeddings(ids),  # type: ignore[operator,union-attr]
    )


def test_a_teacher_of_one_layer() -> None:
    with pytest.raises(ModelError, match="one layer"):
        student_of(network(num_hidden_layers=1), load_family("bert"))


def test_the_student_is_what_transformers_reads(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    student, family = student_of(network(positions="sinusoidal"), load_family("bert"))
    write_model(tmp_path / "student", Checkpoint(student, "masked_lm", family))
    theirs = transformers.DistilBertForMaskedLM.from_pretrained(tmp_path / "student")
    ids = torch.randint(5, V, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(student.eval()(ids), theirs(ids).logits, atol=1e-5, rtol=1e-4)
