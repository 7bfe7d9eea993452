"""Weights on disk: safetensors, whose headers are checked in full before a byte of data is read.

A safetensors file is eight bytes that give the length of a header, the header (JSON: name ->
dtype, shape and where the data begin and end) and the data. Nothing in it can be run. What
can lie in it is checked here: lengths, sizes, overlaps, holes, links and file names.
"""

from __future__ import annotations

import math
import os
import re
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bert.errors import ModelError, OutOfMemoryError
from bert.untrusted import PICKLES, begins_as_pickle, parse_table, read_json, regular_file

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

# Far above what any encoder has, and low enough for a hostile header to cost little.
MOST_TENSORS = 20_000
MOST_SHARDS = 256
MOST_DIMENSIONS = 8
_MOST_HEADER_BYTES = 4 * 2**20
_MOST_NAME = 256

# Those that are no weights are known in order to be passed over.
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_FLOATS = ("F64", "F32", "F16", "BF16")

_SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}\.safetensors")
TENSORFLOW = ".ckpt.index"
_COPY = "copy the model again from where it came from"


class Stored(NamedTuple):
    """One tensor as the header of its file describes it.

    Args:
        file: in which it lies.
        dtype: as safetensors calls it: ``F32``, ``I64``.
        shape: its sizes.
        begin: where its bytes begin, from the start of the file.
        end: the byte after its last.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_headers(directory: Path) -> dict[str, Stored]:
    """Every tensor in the weights of a model directory, by name; no data are read.

    The weights are ``model.safetensors``, or else the shards that
    ``model.safetensors.index.json`` names.

    Raises:
        ModelError: there are no weights, only a pickle, or a file is damaged, says what cannot
            be, or lies elsewhere.
    """
    if os.path.lexists(directory / WEIGHTS):
        return _read_header(directory / WEIGHTS)
    if os.path.lexists(directory / INDEX):
        return _read_shards(directory)
    raise _no_weights(directory)


def read_tensors(stored: Mapping[str, Stored], int8: Collection[str] = ()) -> dict[str, Tensor]:
    """These tensors, in fp32, each file being opened once.

    Args:
        stored: some of what ``read_headers`` found.
        int8: names of those that are of 8-bit whole numbers and stay so.

    Raises:
        ModelError: one is not of floating-point numbers, holds NaN or infinity, or its file has
            changed.
        OutOfMemoryError: together they are larger than the machine's memory.
    """
    for name, item in stored.items():
        if name in int8 and item.dtype != "I8":
            raise ModelError(
                f"{name} holds {_DTYPES[item.dtype]}, but by the configuration 8-bit numbers.",
                where=str(item.file),
                fix="config.json and the weights belong to different models",
            )
        if name not in int8 and item.dtype not in _FLOATS:
            raise ModelError(
                f"{name} holds {_DTYPES[item.dtype]}, not floating-point numbers.",
                where=str(item.file),
                fix="give the model as it was before it was quantised",
            )
    needed = 4 * sum(math.prod(item.shape) for item in stored.values())
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > memory:
        raise OutOfMemoryError(
            f"The weights take {needed / 1e9:,.1f} GB in fp32; this machine has "
            f"{memory / 1e9:,.1f} GB of memory.",
            where=str(next(iter(stored.values())).file),
            fix="use a smaller model, or a machine with more memory",
        )
    tensors: dict[str, Tensor] = {}
    for path in dict.fromkeys(item.file for item in stored.values()):
        items = [(name, item) for name, item in stored.items() if item.file == path]
        try:
            with regular_file(path).open("rb") as file:
                for name, item in sorted(items, key=lambda pair: pair[1].begin):
                    data = torch.empty(item.end - item.begin, dtype=torch.uint8)
                    file.seek(item.begin)
                    if file.readinto(data.numpy().data) != data.numel():
                        raise _damaged(path, "it became shorter while it was read")
                    tensors[name] = data.view(_DTYPES[item.dtype]).view(item.shape)
                    if name not in int8:
                        tensors[name] = tensors[name].float()
                        _check_finite(name, tensors[name], path)
        except OSError as error:
            raise _damaged(path, error.strerror or str(error)) from None
    return {name: tensors[name] for name in stored}


def _check_finite(name: str, tensor: Tensor, path: Path) -> None:
    """One pass over the numbers, without a copy of them."""
    if tensor.numel() and not all(torch.isfinite(edge) for edge in torch.aminmax(tensor)):
        what = "NaN" if torch.isnan(tensor).any() else "infinity"
        raise ModelError(
            f"{name} holds {what}.",
            where=str(path),
            fix="take an earlier checkpoint: the training of this one had failed",
        )


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file that everyone may read; the same bytes for the same tensors."""
    from safetensors.torch import save_file

    save_file(dict(tensors), path, metadata={"format": "pt"})
    path.chmod(0o644)  # the library leaves it to its owner alone


def _damaged(path: Path, reason: str, fix: str = _COPY) -> ModelError:
    return ModelError(f"{path.name} is damaged: {reason}.", where=str(path), fix=fix)


def _read_header(path: Path) -> dict[str, Stored]:
    """The tensors of one file: contiguous, without overlap, and filling it to the last byte."""
    try:
        with regular_file(path).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            first = file.read(8)
            length = int.from_bytes(first, "little")
            wrong = len(first) < 8 or length > size - 8
            # A brace comes first in every header, so other files are known without parsing.
            start = first + file.read(40)
            if wrong or start[8:9] != b"{":
                raise _foreign(path, start)
            if length > _MOST_HEADER_BYTES:
                raise _damaged(
                    path, f"its header of {length:,} bytes is longer than that of any encoder"
                )
            file.seek(8)
            table = parse_table(file.read(length))
    except OSError as error:
        raise _damaged(path, error.strerror or str(error)) from None
    except ModelError:
        raise
    except ValueError as error:
        raise _damaged(path, f"its header cannot be read: {error}") from None
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _damaged(path, "its metadata are not texts")
    if len(table) > MOST_TENSORS:
        raise _damaged(path, f"it names {len(table):,} tensors; {MOST_TENSORS:,} are read at most")
    data = 8 + length
    found = {name: _stored(path, name, value, data) for name, value in table.items()}
    at = data
    for name, item in sorted(found.items(), key=lambda pair: pair[1][3:]):
        if item.begin != at:
            how = "overlaps another tensor" if item.begin < at else "comes after unused bytes"
            raise _damaged(path, f"{name} {how}")
        at = item.end
    if at != size:
        short = at > size
        count = f"{abs(at - size):,} byte{'' if abs(at - size) == 1 else 's'}"
        raise _damaged(
            path,
            f"it is {count} too {'short' if short else 'long'}",
            "copy the file again; it was not copied to its end" if short else _COPY,
        )
    return found


def _stored(path: Path, name: str, value: Any, data: int) -> Stored:
    """One entry of a header, whose data begin at byte ``data`` of the file."""
    if not 0 < len(name) <= _MOST_NAME or not name.isprintable():
        raise _damaged(path, "a tensor has a name that cannot be printed")
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise _damaged(path, f"{name} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise _damaged(path, f"{name} is of an unknown dtype")
    if not _sizes(shape) or len(shape) > MOST_DIMENSIONS:
        raise _damaged(path, f"the shape of {name} is not a list of sizes")
    if not _sizes(offsets) or len(offsets) != 2:
        raise _damaged(path, f"the data_offsets of {name} are not two positions")
    begin, end = offsets
    if end - begin != math.prod(shape) * _DTYPES[dtype].itemsize:
        raise _damaged(path, f"{name} does not have as many bytes as its shape and dtype need")
    return Stored(path, dtype, tuple(shape), data + begin, data + end)


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(x) is int and 0 <= x < 2**63 for x in value)


def _foreign(path: Path, start: bytes) -> ModelError:
    """What a file is that calls itself safetensors and is not."""
    if begins_as_pickle(start):
        return ModelError(
            f"{path.name} is a pickle, which can run code, and is not opened.",
            where=str(path),
            fix="do not use this model: a pickle under this name is a mistake or a trap",
        )
    if start.startswith(b"version https://git-lfs"):
        return _damaged(path, "it is only a pointer of Git LFS", "fetch the file: git lfs pull")
    return _damaged(path, "it does not begin with a header of safetensors that fits into it")


def _read_shards(directory: Path) -> dict[str, Stored]:
    """The tensors of all shards, each in exactly the file that the index says."""
    path = directory / INDEX
    index = read_json(path)
    where = index.get("weight_map")
    if (
        not isinstance(where, dict)
        or not where
        or not all(isinstance(shard, str) for shard in where.values())
    ):
        raise _damaged(path, "weight_map does not give the file of each tensor")
    shards = sorted(set(where.values()))
    if len(shards) > MOST_SHARDS or len(where) > MOST_TENSORS:
        raise _damaged(
            path,
            f"it names {len(where):,} tensors in {len(shards):,} files; {MOST_TENSORS:,} in "
            f"{MOST_SHARDS} are read at most",
        )
    for shard in shards:
        if not _SHARD.fullmatch(shard):
            raise _damaged(path, f"{shard[:100]!r} is not the name of a safetensors file here")
    found: dict[str, Stored] = {}
    for shard in shards:
        if not os.path.lexists(directory / shard):
            raise ModelError(
                f"{shard} is missing, in which {INDEX} says that weights are.",
                where=str(directory),
                fix="copy it too from where the model came from",
            )
        for name, item in _read_header(directory / shard).items():
            if where.get(name) != shard:
                raise _damaged(path, f"it does not say that {name} is in {shard}")
            found[name] = item
    if absent := next((name for name in where if name not in found), None):
        raise _damaged(path, f"{absent[:100]!r} is not in the file that it names")
    metadata = index.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    size = sum(item.end - item.begin for item in found.values())
    if total is not None and total != size:
        raise _damaged(path, f"its total_size is not the {size:,} bytes that the weights have")
    return found


def _no_weights(directory: Path) -> ModelError:
    """There is nothing that can be read; what there is instead decides the way out."""
    where = str(directory)
    names = sorted(path.name for path in directory.iterdir())
    pickles = [name for name in names if name.endswith(PICKLES)]
    pickles.sort(key=lambda name: not name.startswith("pytorch_model"))
    if pickles:
        return ModelError(
            f"There is no {WEIGHTS} here; {pickles[0]} is a pickle, which can run code, and is not "
            "opened.",
            where=where,
            fix=f"bert convert {shlex.quote(where)} {shlex.quote(where.rstrip('/') + '-converted')}"
            ", which rewrites it as safetensors in a process of its own",
        )
    if any(name.endswith(TENSORFLOW) for name in names):
        return tensorflow_only(directory)
    return ModelError(
        f"There is no {WEIGHTS} here.",
        where=where,
        fix="copy it too from where the model came from, or save the model as safetensors: "
        "model.save_pretrained(DIR) in transformers",
    )


def tensorflow_only(directory: Path) -> ModelError:
    """The weights are those of a TensorFlow checkpoint, which is not read."""
    return ModelError(
        "The weights here are a TensorFlow checkpoint, which is not read.",
        where=str(directory),
        fix="use the same weights from the hub, where they are safetensors: "
        "google-bert/bert-base-uncased, or google/bert_uncased_L-2_H-128_A-2 for a small one",
    )
