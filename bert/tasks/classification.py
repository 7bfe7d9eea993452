"""Classification: one of L labels for a text or a pair of texts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from bert.data.batches import Batch
from bert.model.packing import Tokens
from bert.tasks.task import Answer, Task, batch_tokens
from bert.training.loop import Outcome


class Classification(Task):
    """Devlin et al. 2018, section 4.1: softmax over a linear map of the pooled first token."""

    kind = "sequence"
    primary_metric = "accuracy"
    demo_rows = (
        {"text": "a warm and funny film", "label": "good"},
        {"text": "I would gladly see it again", "label": "good"},
        {"text": "the best evening of the year", "label": "good"},
        {"text": "这部电影很好看", "label": "good"},
        {"text": "dull from start to end", "label": "bad"},
        {"text": "a waste of two hours", "label": "bad"},
        {"text": "nobody laughed", "label": "bad"},
        {"text": "剧情很无聊", "label": "bad"},
    )

    def prepare(self, batch: Batch) -> Batch:
        """Nothing is hidden from the model."""
        return batch

    def counts(self, batch: Batch) -> dict[str, int]:
        """Rows."""
        return {"label": len(batch.lengths)}

    def tokens(self, batch: Batch) -> int:
        """Real tokens in the batch."""
        return len(batch.input_ids)

    def losses(self, model: nn.Module, batch: Batch, device: torch.device) -> Outcome:
        """Cross-entropy over labels, summed over rows; the target is ``label`` [B]."""
        labels = torch.as_tensor(batch.targets["label"]).to(device)
        logits = self._logits(model, batch_tokens(batch, device))
        loss = F.cross_entropy(logits, labels, reduction="sum")
        return Outcome({"label": loss}, {"label": (logits.argmax(dim=-1) == labels).sum()})

    def answer(self, model: nn.Module, tokens: Tokens) -> list[Answer]:
        """``{"label": name, "probabilities": {name: probability}}`` for each sequence."""
        rows = self._logits(model, tokens).softmax(dim=-1).tolist()
        return [
            {
                "label": self.labels[max(range(len(row)), key=row.__getitem__)],
                "probabilities": dict(zip(self.labels, row, strict=True)),
            }
            for row in rows
        ]

    def _logits(self, model: nn.Module, tokens: Tokens) -> torch.Tensor:
        """[T] -> [B, L] in fp32."""
        logits: torch.Tensor = model.logits(tokens)  # type: ignore[operator]
        return logits.float()


TASK = Classification
