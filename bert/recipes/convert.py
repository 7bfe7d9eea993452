"""``bert convert``: the weights of a pickle as safetensors, rewritten by a process of its own.

A pickle can name any function for whoever opens it to call. Here it is opened once, by a child
process that has neither the person's environment nor more memory, disk and time than the
weights need, and by PyTorch's reader that knows tensors and nothing else. What the child leaves
is a safetensors file, which is checked like one from a stranger.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from bert import log
from bert.errors import BertError, ModelError, UsageError
from bert.families.family import family_names, load_family
from bert.hub import CONFIG, find_model
from bert.untrusted import PICKLES, carry_files, read_json, regular_file
from bert.weights import (
    INDEX,
    TENSORFLOW,
    WEIGHTS,
    read_headers,
    tensorflow_only,
    write_tensors,
)

MOST_BYTES = 16 * 2**30  # of pickles; the largest encoders of their kind have 7 GB
_PICKLE, _PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
# Pickles that trainers leave beside the weights, by how their names begin.
_NOT_WEIGHTS = ("training_args", "optimizer", "scheduler", "scaler", "rng_state", "random_states")
_INNER = ("state_dict", "model_state_dict", "model")  # where training checkpoints keep weights
_SPARE = 2**30  # bytes of address space for the child beyond the weights


def convert_model(source: str | Path, destination: Path) -> None:
    """Write a model directory anew, with its pickled weights as safetensors.

    Weights keep the names they have. Tensors that share their memory are written once, under
    the first name. The other files are copied as they are, except code and pickles, which are
    named. The result is read before it is put in place.

    Args:
        source: a directory with ``config.json`` and a pickle, a folder with it in ``model``, or
            a hub id.
        destination: a directory that is not there yet, or is empty.

    Raises:
        UsageError: there is nothing to convert, or the destination is in use.
        ModelError: the source cannot be read, holds more than weights, or is no model of ours.
    """
    from bert.checkpoint import read_model

    if destination.exists() and not (destination.is_dir() and not any(destination.iterdir())):
        raise UsageError(
            "The destination is in use.", where=str(destination), fix="name a new directory"
        )
    source = _directory(source)
    pickles, names = _pickles(source)
    read_json(source / CONFIG)
    size = sum(file.stat().st_size for file in pickles)
    if size > MOST_BYTES:
        raise ModelError(
            f"The pickles have {size:,} bytes; {MOST_BYTES:,} are opened at most.",
            where=str(source),
            fix="save the model as safetensors: model.save_pretrained(DIR) in transformers",
        )
    destination.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{destination.name}-", dir=destination.parent))
    try:
        report = _in_another_process(pickles, stage / WEIGHTS, size, source)
        found = read_headers(stage)
        if absent := sorted(names - found.keys() - report["shared"].keys()):
            raise ModelError(
                f"The pickles lack {len(absent)} of the weights that {_PICKLE_INDEX} names, the "
                f"first being {absent[0][:100]!r}.",
                where=str(source),
                fix="copy all of its parts from where the model came from",
            )
        converted = {_PICKLE_INDEX, *(file.name for file in pickles)}
        left = carry_files(source, stage, {path.name for path in source.iterdir()} - converted)
        try:
            checkpoint = read_model(stage, tokenizer=False)
        except ModelError as error:
            raise ModelError(error.what, where=str(source), fix=error.fix) from None
        stage.chmod(0o755)
        stage.rename(destination)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    if report["shared"]:
        log.say(f"Written once, being the same as another: {_some(report['shared'])}.")
    if report["left"]:
        log.say(f"Not carried over, being no weights: {_some(report['left'])}.")
    if left:
        log.say(f"Not copied: {_some(left)}.")
    log.say(
        f"Converted {len(found)} weights of family {checkpoint.family.name}, "
        f"head {checkpoint.kind}: {destination}"
    )


def _directory(source: str | Path) -> Path:
    path = Path(source)
    names = [file.name for file in path.iterdir()] if path.is_dir() else []
    if CONFIG not in names and any(name.endswith(TENSORFLOW) for name in names):
        raise tensorflow_only(path)  # its configuration is bert_config.json
    return find_model(source, pickles=True)


def _pickles(source: Path) -> tuple[list[Path], set[str]]:
    """The files that hold the weights, and the names that an index says are in them."""
    for name in (WEIGHTS, INDEX):
        if os.path.lexists(source / name):
            raise UsageError(
                f"There is nothing to convert: the weights are {name}.",
                where=str(source),
                fix=f"use it as it is: bert info {shlex.quote(str(source))}",
            )
    present = sorted(path.name for path in source.iterdir())
    found = [name for name in present if name.endswith(PICKLES)]
    found = [name for name in found if not name.startswith(_NOT_WEIGHTS)]
    names: set[str] = set()
    if _PICKLE in found:
        found = [_PICKLE]
    elif _PICKLE_INDEX in present:
        index = read_json(source / _PICKLE_INDEX).get("weight_map")
        names = set(index) if isinstance(index, dict) else set()
        shards = {str(index[name]) for name in names} if isinstance(index, dict) else set()
        if not shards or not shards <= set(found):
            raise ModelError(
                "The index names files that are not here.",
                where=str(source / _PICKLE_INDEX),
                fix="copy all parts of the weights from where the model came from",
            )
        found = sorted(shards)
    elif len(found) > 1:
        raise ModelError(
            f"There are several pickles: {_some(found)}.",
            where=str(source),
            fix=f"name the one with the weights {_PICKLE}",
        )
    if not found:
        if any(name.endswith(TENSORFLOW) for name in present):
            raise tensorflow_only(source)
        raise ModelError(
            "There are no weights here.",
            where=str(source),
            fix=f"copy {_PICKLE} too from where the model came from",
        )
    for name in found:
        regular_file(source / name)
    return [source / name for name in found], names


def _some(names: Any) -> str:
    """Up to five names that come from a file, so that they can be printed."""
    names = [name if name.isprintable() else ascii(name) for name in names]
    shown = ", ".join(name[:100] for name in names[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _in_another_process(
    pickles: list[Path], target: Path, size: int, source: Path
) -> dict[str, Any]:
    """Have a child write the weights as safetensors; returns what it has to tell.

    The child is given no environment but what Python needs, and this many seconds: a minute,
    and one for each 20 MB.
    """
    kept = ("PATH", "LD_LIBRARY_PATH", "TMPDIR", "LANG")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    environment["PYTHONPATH"] = os.pathsep.join(str(Path(path).resolve()) for path in sys.path)
    environment["OMP_NUM_THREADS"] = "1"
    arguments = [str(path.absolute()) for path in (target, *pickles)]
    seconds = 60 + size // 20_000_000
    try:
        child = subprocess.run(
            [sys.executable, "-P", "-m", __name__, *arguments],
            env=environment,
            cwd=target.parent,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        what = f"Reading the pickle took longer than {seconds:,} seconds, and was ended."
    else:
        if child.returncode == 0:
            report: dict[str, Any] = json.loads(child.stdout)
            return report
        said = child.stdout if child.returncode == ModelError.exit_code else child.stderr
        reason = said.decode("utf-8", "replace").strip().splitlines() or ["it ended without a word"]
        what = f"The weights cannot be taken from the pickle: {reason[-1]}"
    raise ModelError(
        "".join(letter if letter.isprintable() else " " for letter in what)[:300],
        where=str(source),
        fix="get the model as safetensors: many are, on the hub, or under refs/pr",
    )


def _rewrite(target: Path, pickles: list[Path]) -> dict[str, Any]:
    """In the child: the tensors of pickles as safetensors.

    Returns:
        ``shared``: names of tensors left out -> the name of the same one that was written;
        ``left``: names of what is not a tensor.

    Raises:
        ModelError: a file holds more than weights, or not what it says.
    """
    import torch

    # Of several names of one matrix the one is written that reading looks for.
    tied = {
        name
        for family in family_names()
        for head in load_family(family).heads.values()
        for name in head.tied
    }
    room = 2 * sum(file.stat().st_size for file in pickles)
    tensors: dict[str, torch.Tensor] = {}
    first: dict[tuple[Any, ...], str] = {}
    shared: dict[str, str] = {}
    left: list[str] = []
    for file in pickles:
        table = _open(file)
        inner = next((name for name in _INNER if isinstance(table.get(name), dict)), None)
        if inner is not None and not any(torch.is_tensor(value) for value in table.values()):
            left += [str(name) for name in table if name != inner]
            table = table[inner]
        for name, value in sorted(table.items(), key=lambda item: item[0] in tied):
            if not isinstance(name, str):
                raise ModelError(f"{file.name} has a name that is not text.")
            if not torch.is_tensor(value):
                left.append(name)
                continue
            if name in tensors or name in shared:
                raise ModelError(f"{name} is in two files.")
            if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
                raise ModelError(f"{name} is not a plain matrix of numbers.")
            memory = value.untyped_storage()
            if value.nbytes > memory.nbytes():  # a few bytes that pose as terabytes
                raise ModelError(f"{name} claims to be larger than what is stored of it.")
            place = (memory.data_ptr(), value.storage_offset(), value.dtype)
            key = (*place, value.shape, value.stride())
            if value.numel() and key in first:
                shared[name] = first[key]
                continue
            first[key] = name
            room -= value.nbytes
            if room < 0:
                raise ModelError("the tensors overlap so much that they would become far larger.")
            # A part of a larger matrix becomes one of its own.
            own = value.is_contiguous() and value.nbytes == memory.nbytes()
            tensors[name] = value.detach() if own else value.detach().clone().contiguous()
    if not tensors:
        raise ModelError("there are no weights in it.")
    write_tensors(target, tensors)
    return {"shared": shared, "left": left}


def _open(file: Path) -> dict[Any, Any]:
    """The table in a pickle, by the reader that knows only tensors."""
    import torch

    zipped = zipfile.is_zipfile(file)  # else from before PyTorch 1.6, which cannot be mapped
    if zipped:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
        # PyTorch never compresses; what is compressed may unfold to any size.
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ModelError(f"{file.name} is compressed, which PyTorch never does.")
    try:
        table = torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except MemoryError:
        raise
    except Exception as error:
        if found := re.search(r"GLOBAL (\S+) (?:was not|whose module)", str(error)):
            raise ModelError(
                f"{file.name} holds more than weights ({found[1]}); it is refused."
            ) from None
        # What the library says further is how to open it unsafely.
        if isinstance(error, pickle.UnpicklingError):
            raise ModelError(f"{file.name} is no pickle of weights; it is refused.") from None
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0]
        raise ModelError(f"{file.name} cannot be read: {reason}") from None
    if not isinstance(table, dict):
        raise ModelError(f"{file.name} is not a table of names and weights.")
    return table


def _limit(size: int) -> None:
    """Take from this process the means to use more than weights of this size need."""
    import resource

    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: 2 * size + _SPARE}
    pages = Path("/proc/self/statm")
    if pages.exists():  # elsewhere than on Linux the system does not tell, nor keep to, a limit
        used = int(pages.read_text(encoding="ascii").split()[0]) * os.sysconf("SC_PAGE_SIZE")
        limits[resource.RLIMIT_AS] = used + 4 * size + _SPARE
    for kind, most in limits.items():
        before = resource.getrlimit(kind)[1]
        if before == resource.RLIM_INFINITY or most < before:
            resource.setrlimit(kind, (most, most))


def _child(arguments: list[str]) -> int:
    try:
        import torch  # noqa: F401  # before the limit, which counts from what it takes

        target, *pickles = [Path(name) for name in arguments]
        _limit(sum(file.stat().st_size for file in pickles))
        report = _rewrite(target, pickles)
    except BertError as error:
        print(error.what)
        return error.exit_code
    except Exception as error:
        print((str(error).strip() or "it needs more memory than its size").splitlines()[0])
        return ModelError.exit_code
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(_child(sys.argv[1:]))
