"""Which attention kernel is faster where: the measurements behind ``bert/model/attention.py``.

    python benchmarks/attention.py

Prints the matrix-multiply ceiling of the machine, then forward and forward+backward times of
plain matmul-softmax-matmul and of ``scaled_dot_product_attention`` in fp32 and bf16.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

SHAPES = ((64, 4, 64, 64), (32, 4, 128, 64), (32, 12, 128, 64), (16, 12, 256, 64), (8, 12, 512, 64))
REPEATS = 5


def seconds(work: Callable[[], object]) -> float:
    """The median time of a call, after two to warm up."""
    times = []
    for _ in range(REPEATS + 2):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return sorted(times[2:])[REPEATS // 2]


def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    return scores.softmax(dim=-1) @ value


def sdpa(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value)


def times(kernel: Callable[[Tensor, Tensor, Tensor], Tensor], *inputs: Tensor) -> str:
    def forward() -> None:
        with torch.no_grad():
            kernel(*inputs)

    def both() -> None:
        kernel(*inputs).sum().backward()

    return f"{seconds(forward) * 1e3:8.1f} / {seconds(both) * 1e3:8.1f}"


def main() -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for kind in (torch.float32, torch.bfloat16):
        square = torch.randn(2048, 2048, dtype=kind)
        rate = 2 * 2048**3 / seconds(lambda square=square: square @ square)
        print(f"matrix ceiling, {kind}: {rate / 1e9:,.0f} GFLOP/s")
    print(
        f"{'B x N x S x D':>20} {'':9} {'plain, ms':>20} {'SDPA, ms':>20}   forward / with backward"
    )
    for batch, heads, length, size in SHAPES:
        for kind in (torch.float32, torch.bfloat16):
            query, key, value = (
                torch.randn(batch, length, heads, size, dtype=kind).transpose(1, 2).requires_grad_()
                for _ in range(3)
            )
            cells = [times(kernel, query, key, value) for kernel in (plain, sdpa)]
            shape = f"{batch} x {heads} x {length} x {size}"
            print(f"{shape:>20} {str(kind).removeprefix('torch.'):9} {cells[0]:>20} {cells[1]:>20}")


if __name__ == "__main__":
    main()
