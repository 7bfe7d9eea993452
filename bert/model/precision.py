"""Number formats: which one a machine is fast in, and arithmetic in it."""

from __future__ import annotations

import torch

from bert.errors import UsageError

PRECISIONS = ("auto", "fp32", "bf16")


def default_device() -> torch.device:
    """The first GPU, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def resolve_precision(precision: str, device: torch.device) -> str:
    """``auto`` as fp32 or bf16: bf16 where the machine has instructions for it.

    Raises:
        UsageError: an unknown precision.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"precision is one of {', '.join(PRECISIONS)}, not {precision!r}.")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()
        return "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") else "fp32"
    return "fp32"


def arithmetic(precision: str, device: torch.device) -> torch.autocast:
    """A context in which matrix products run in ``precision``; weights stay in fp32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
