"""Which matrix products a model cannot afford in 8 bits, and int8 with those left as they were."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from bert.data.batches import pack_sequences
from bert.inference.int8 import products, replace_product
from bert.model.packing import Tokens
from bert.tasks.task import Task, batch_tokens
from bert.text.tokenizer import Texts

WINDOWS_AT_ONCE = 32
# Of all products; where more must stay, int8 is not worth it.
MOST_KEPT = 0.5


def read_batches(
    task: Task, texts: Sequence[Texts | tuple[str, ...]], device: torch.device
) -> list[Tokens]:
    """Texts as the network reads them, some windows at a time."""
    windows = [window for row in task.encode(texts) for window in row.windows]
    found = []
    for begin in range(0, len(windows), WINDOWS_AT_ONCE):
        part = windows[begin : begin + WINDOWS_AT_ONCE]
        ids, types = [w.input_ids for w in part], [w.token_type_ids for w in part]
        found.append(batch_tokens(pack_sequences(ids, types, range(len(part))), device))
    return found


def damages(
    task: Task, model: nn.Module, rounded: nn.Module, batches: Sequence[Tokens]
) -> dict[str, float]:
    """What each product in 8 bits, all others being as they were, changes in the answers.

    Args:
        task: of the model.
        model: in fp32.
        rounded: the same with all products in 8 bits.
        batches: texts that are answered.

    Returns:
        Mean squared difference of what the network says, by the name of the product.
    """
    wanted = _said(task, model, batches)
    found = {}
    for name, product in products(rounded).items():
        one = copy.deepcopy(model)
        replace_product(one, name, product)
        found[name] = float(np.square(_said(task, one, batches) - wanted).mean())
    return found


def _said(task: Task, model: nn.Module, batches: Sequence[Tokens]) -> np.ndarray:
    with torch.inference_mode():
        return np.concatenate(
            [np.ravel(said) for tokens in batches for said in task.scores(model, tokens)]
        )


def keeps(damage: Mapping[str, float]) -> Iterator[list[str]]:
    """Which products to leave as they were, the most damaged ones: 1, 2, 4 ... of them."""
    worst = sorted(damage, key=lambda name: -damage[name])
    count = 1
    while count <= MOST_KEPT * len(worst):
        yield worst[:count]
        count *= 2


def with_kept(model: nn.Module, rounded: nn.Module, keep: Sequence[str]) -> nn.Module:
    """The model with all products in 8 bits but these."""
    made = copy.deepcopy(rounded)
    for name in keep:
        replace_product(made, name, copy.deepcopy(products(model)[name]))
    return made
