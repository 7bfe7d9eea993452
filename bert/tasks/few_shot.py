"""Few-shot classification: labels learnt from about eight rows each, on top of an embedding model.

Tunstall et al. 2022 (SetFit) first teach the encoder that texts of one label are alike, then fit
a linear classifier to its vectors. So it is here, but all in one ordinary classification model,
which ``transformers`` loads::

    layers of the model -> one more layer, which averages the tokens -> pooler -> linear

The vector of an embedding model is the mean over its tokens, while a classification head reads
the first token only. A layer of attention whose queries and keys are zero looks at all tokens
alike, so that what it gives to the first one is that mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bert.checkpoint import Checkpoint
from bert.config import Settings
from bert.data.batches import Batch
from bert.data.rows import Example
from bert.errors import UsageError
from bert.model.encoder import BERT
from bert.model.heads import BertForSequenceClassification
from bert.model.layer import TransformerBlock
from bert.tasks.classification import Classification
from bert.tasks.embedding import SCALE
from bert.tasks.task import Sample, batch_tokens
from bert.training.loop import Outcome

# How often each row is shown in an epoch.
SHOWN = 20
# The mean over the tokens outweighs the first one by this.
WEIGHT = 1000.0
# So small a part of its range is nearly straight: tanh(0.02 x) = 0.02 x.
STRAIGHT = 0.02
PENALTY = 1.0  # of logistic regression, as C: the larger, the freer


class FewShot(Classification):
    """As ``classification`` in all but the way it learns.

    The encoder: of all pairs of rows of a batch those of one label shall have a higher cosine
    than those of two, ``log(1 + sum exp(20 (cos_other - cos_same)))`` (CoSENT, Su 2022). The
    head: logistic regression on the vectors of all rows, each time the model is measured.
    """

    rate_share = 0.4
    epochs = 3  # each row is shown many times in one
    whole_batches = True

    def __init__(self, checkpoint: Checkpoint, options: Settings | None = None) -> None:
        super().__init__(checkpoint, options)
        if self.options.focal or self.options.label_smoothing:
            raise UsageError(
                "Few-shot learning knows no focal loss and no label smoothing.",
                fix="leave out focal= and label_smoothing=, or --task classification",
            )
        self.rows: list[Sample] = []
        if not checkpoint.facts.get("few_shot"):  # else it was built and written by us
            assert isinstance(checkpoint.model, BertForSequenceClassification)
            checkpoint.facts["few_shot"] = True
            read_mean(checkpoint.model)

    def samples(self, examples: Sequence[Example]) -> list[Sample]:
        """Rows as they are trained on, each of them several times."""
        self.rows = super().samples(examples)
        return self.rows * SHOWN

    def losses(self, model: nn.Module, batch: Batch, device: torch.device) -> Outcome:
        """How far pairs of one label are from being nearer than others, times the rows."""
        assert isinstance(model, BertForSequenceClassification)
        labels = torch.as_tensor(batch.targets["label"]).to(device)  # [R]
        tokens = batch_tokens(batch, device)
        hidden = model.bert.summary(model.bert.encode(tokens), tokens)
        vectors = nn.functional.normalize(_means(hidden.float(), batch), dim=-1)
        loss, right = alike_by_label(vectors, labels)
        return Outcome({"label": len(labels) * loss}, {"label": len(labels) * right})

    def settle(self, model: nn.Module, device: torch.device) -> None:
        """Fit the head to the vectors of all rows."""
        from sklearn.linear_model import LogisticRegression

        assert isinstance(model, BertForSequenceClassification)
        features, labels = [], []
        model.eval()
        with torch.no_grad():
            for begin in range(0, len(self.rows), 32):
                part = self.rows[begin : begin + 32]
                batch = self.batch(part, np.arange(len(part)), 0, 0)
                read = model.features(batch_tokens(batch, device)).float()
                features.append(_means(read, batch).cpu().double().numpy())
                labels.append(batch.targets["label"])
        table, truth = np.concatenate(features), np.concatenate(labels)
        # Without the mean, and 1 long on average, so that the regression's penalty is apt.
        middle = table.mean(axis=0)
        length = np.linalg.norm(table - middle, axis=1).mean() or 1.0
        balance = "balanced" if self.options.class_weights == "balanced" else None
        fitted = LogisticRegression(C=PENALTY, max_iter=1000, class_weight=balance)
        fitted.fit((table - middle) / length, truth)
        weight, bias = fitted.coef_ / length, fitted.intercept_
        if len(fitted.classes_) == 2:  # one line parts two labels; half of it for each
            weight, bias = np.stack((-weight[0], weight[0])) / 2, np.array((-bias[0], bias[0])) / 2
        bias = bias - weight @ middle
        with torch.no_grad():
            model.classifier.weight.zero_()
            model.classifier.bias.fill_(-100.0)  # of a label without rows
            at = torch.as_tensor(fitted.classes_, device=device)
            model.classifier.weight[at] = torch.as_tensor(weight).to(model.classifier.weight)
            model.classifier.bias[at] = torch.as_tensor(bias).to(model.classifier.bias)


def alike_by_label(vectors: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """CoSENT over all pairs of rows, and the share of pairs of pairs in the right order.

    Args:
        vectors: [R, H] of length 1.
        labels: [R].
    """
    first, second = torch.triu_indices(len(labels), len(labels), 1, device=vectors.device)
    cosines = (vectors @ vectors.T)[first, second]
    same = labels[first] == labels[second]
    near, far = cosines[same], cosines[~same]
    if not len(near) or not len(far):
        return 0 * cosines.sum(), cosines.new_ones(())
    # The sum over pairs of pairs is a product of two sums.
    worst = (SCALE * far).logsumexp(dim=0) + (-SCALE * near).logsumexp(dim=0)
    right = torch.searchsorted(far.detach().sort().values, near.detach()).float().mean() / len(far)
    return nn.functional.softplus(worst), right


def read_mean(model: BertForSequenceClassification) -> None:
    """Have a head read the mean over all tokens, as embedding models do, and keep it so.

    What is there to do depends on the family. Where layers can be added, one is, as the file's
    docstring says; where the pooling can be chosen, it is. Else the first token stays. Its dense
    layer becomes nearly the identity. None of this learns.
    """
    encoder = model.bert
    config = encoder.config
    if type(encoder) is BERT and not config.norm_first and not config.shared_layers:
        layer = mean_layer(encoder).to(next(model.parameters()).device).train(model.training)
        encoder.layers.append(layer)
        encoder.config = replace(config, num_hidden_layers=config.num_hidden_layers + 1)
        layer.requires_grad_(False)
    elif config.norm_first:
        encoder.config = replace(config, pooling="mean")
    dense = encoder.pooler if model.transform is None else model.transform.dense
    activation = "tanh" if model.transform is None else model.transform.activation
    with torch.no_grad():
        if dense is not None:
            straight = activation in ("tanh", torch.tanh)
            nn.init.eye_(dense.weight).mul_(STRAIGHT if straight else 1.0)
            if dense.bias is not None:
                # Above this no entry of a normed vector is negative, which relu would cut off.
                dense.bias.fill_(0.0 if straight else math.sqrt(config.hidden_size))
    for name, parameter in model.named_parameters():
        if not name.startswith(("bert.embeddings.", "bert.layers.", "bert.norm")):
            parameter.requires_grad_(False)


def mean_layer(encoder: BERT) -> TransformerBlock:
    """A layer that gives every token the mean over all, normed."""
    config = encoder.config
    layer = TransformerBlock(
        config.hidden_size,
        config.num_attention_heads,
        config.intermediate_size,
        config.dropout_rate,
        config.attention_dropout_rate,
        config.activation,
        config.layer_norm_eps,
        bias=config.bias,
    )
    width = config.hidden_size
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
        attention: Any = layer.attention
        attention.qkv.weight[2 * width :] = torch.eye(width)  # of the values
        attention.output.weight.copy_(WEIGHT * torch.eye(width))
    return layer


def _means(windows: Tensor, batch: Batch) -> Tensor:
    """The mean over each row's windows: [W, H] -> [R, H]."""
    rows = torch.as_tensor(batch.targets["row"]).to(windows.device)
    sums = windows.new_zeros(len(batch.samples), windows.shape[-1]).index_add(0, rows, windows)
    return sums / rows.bincount(minlength=len(sums))[:, None]


TASK = FewShot
