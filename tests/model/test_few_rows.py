"""Embeddings of which few rows are trained: as if all were, and nothing shows from outside."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from bert.model.config import BertConfig
from bert.model.embeddings import FewRowsEmbedding
from bert.model.encoder import BERT
from bert.model.heads import BertForSequenceClassification
from bert.training.optim import build_optimizer

USED = torch.tensor([0, 3, 5, 8, 21])
CONFIG = BertConfig(
    vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
    intermediate_size=32, max_position_embeddings=16, dropout_rate=0, attention_dropout_rate=0,
)  # fmt: skip


def trained(model: nn.Module, weight_decay: float, steps: int = 6) -> None:
    optimizer = build_optimizer(model, "adamw", 1e-2, weight_decay)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        ids = USED[torch.randint(len(USED), (4, 7), generator=generator)]
        loss = nn.functional.cross_entropy(model(ids), torch.tensor([0, 1, 0, 1]))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def pair() -> tuple[BertForSequenceClassification, BertForSequenceClassification]:
    torch.manual_seed(0)
    whole = BertForSequenceClassification(BERT(CONFIG), 2)
    few = copy.deepcopy(whole)
    embeddings = few.bert.embeddings
    embeddings.word = FewRowsEmbedding(embeddings.word, USED)  # type: ignore[assignment]
    return whole, few


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_they_learn_what_all_would_have_learnt(weight_decay: float) -> None:
    whole, few = pair()
    before = whole.bert.embeddings.word.weight.detach().clone()
    for model in (whole, few):
        trained(model, weight_decay)
    expected, found = whole.state_dict(), few.state_dict()
    assert list(found) == list(expected)
    name = "bert.embeddings.word.weight"
    unused = torch.tensor([i for i in range(40) if i not in USED])
    assert torch.equal(found[name][unused], before[unused])  # without weight decay too
    expected[name][unused] = before[unused]
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, atol=2e-6, rtol=1e-5)
    assert not torch.equal(found[name][USED], before[USED])


def test_every_word_is_answered_with_what_was_learnt() -> None:
    whole, few = pair()
    trained(few, 0.0)
    whole.load_state_dict(few.state_dict())
    ids = torch.arange(40).view(4, 10)
    assert torch.equal(few.eval()(ids), whole.eval()(ids))


def test_it_goes_on_from_a_state() -> None:
    _, few = pair()
    trained(few, 0.0)
    _, again = pair()
    again.load_state_dict(few.state_dict())
    ids = USED[:4].view(1, 4)
    assert torch.equal(again(ids), few(ids))
    assert torch.equal(again.eval()(ids), few.eval()(ids))


def test_a_word_that_was_not_announced_is_an_error() -> None:
    _, few = pair()
    with pytest.raises(IndexError):
        few(torch.tensor([[0, 4]]))
