"""Our kernels beside torch's, forward and backward on the CPU.

python benchmarks/kernels.py
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from bert.model.dropout import dropout
from bert.objectives.mlm import word_loss

SHAPES = ((32, 4, 128, 128), (4096, 256), (4096, 768))
HIDDEN_WORDS, WORDS = 600, 8000
REPEATS = 10


def torch_dropout(hidden: Tensor) -> Tensor:
    return F.dropout(hidden, 0.1)


def own_dropout(hidden: Tensor) -> Tensor:
    return dropout(hidden, 0.1)


def milliseconds(kernel: Callable[[Tensor], Tensor], hidden: Tensor) -> float:
    times = []
    for _ in range(REPEATS + 2):
        start = time.perf_counter()
        kernel(hidden).sum().backward()  # type: ignore[no-untyped-call]
        times.append(time.perf_counter() - start)
    return sorted(times[2:])[REPEATS // 2] * 1e3


def torch_loss(logits: Tensor, words: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), words, reduction="sum")


def told(name: str, kind: torch.dtype, theirs: float, ours: float) -> None:
    print(f"{name:>30} {kind!s:15} torch {theirs:6.1f} ms  ours {ours:6.1f} ms")


def main() -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for shape in SHAPES:
        for kind in (torch.float32, torch.bfloat16):
            hidden = torch.randn(shape, dtype=kind, requires_grad=True)
            ours, theirs = milliseconds(own_dropout, hidden), milliseconds(torch_dropout, hidden)
            told(f"dropout {shape}", kind, theirs, ours)
    words = torch.randint(0, WORDS, (HIDDEN_WORDS,))
    for kind in (torch.float32, torch.bfloat16):
        logits = torch.randn(HIDDEN_WORDS, WORDS, dtype=kind, requires_grad=True)
        theirs = milliseconds(lambda logits: torch_loss(logits, words), logits)
        ours = milliseconds(lambda logits: word_loss(logits, words)[0], logits)
        told(f"word loss ({HIDDEN_WORDS}, {WORDS})", kind, theirs, ours)


if __name__ == "__main__":
    main()
