"""Where a model lies: a directory, a run folder, or a model of the Hugging Face hub.

The hub's cache, offline mode, mirror and token are those of ``huggingface_hub``: ``HF_HOME``,
``HF_HUB_CACHE``, ``HF_HUB_OFFLINE``, ``HF_ENDPOINT`` and ``HF_TOKEN``. It reads all but the
token when it is imported, which happens here at the first hub id.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from bert import log
from bert.errors import ModelError
from bert.pooling import FILES as POOLING_FILES
from bert.text.tokenizer import TOKENIZER_FILES

CONFIG = "config.json"
# What reading a model needs. A model of the hub holds much else: the same weights for other
# programs, images, training states.
_FILES = {
    CONFIG,
    "bert.json",
    "model.safetensors.index.json",
    *TOKENIZER_FILES,
    *POOLING_FILES,
}
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
_PICKLES = re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin|pytorch_model\.bin\.index\.json")
# The names become names of files in the cache, so that nothing but these may stand in them.
_HUB_ID = re.compile(
    r"(?P<id>[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)?)"
    r"(@(?P<revision>[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*))?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


def find_model(name: str | Path, *, pickles: bool = False) -> Path:
    """The model directory that a person means.

    Args:
        name: a model directory, a run folder with ``model`` in it, or a hub id such as
            ``google-bert/bert-base-uncased``, with ``@`` and a branch, tag or commit if
            another than the newest state is meant.
        pickles: of a model of the hub that has no safetensors, fetch the pickles instead.

    Returns:
        A directory with ``config.json`` in it; that of a hub id lies in the hub's cache.

    Raises:
        ModelError: there is none, or it cannot be downloaded.
    """
    path = Path(name)
    for candidate in (path, path / "model"):
        if (candidate / CONFIG).is_file():
            return candidate
    if path.is_dir():
        if any(file.name.endswith(".ckpt.index") for file in path.iterdir()):
            from bert.weights import tensorflow_only

            raise tensorflow_only(path)
        checkpoints = list(path.glob("checkpoints/step-*"))
        raise ModelError(
            f"There is no {CONFIG} in this directory or in model/ below it.",
            where=str(path),
            fix="the run has not finished: repeat its command with --resume"
            if checkpoints
            else "give the folder of a run, or a directory with config.json and model.safetensors",
        )
    match = _HUB_ID.fullmatch(str(name))
    if path.exists() or match is None:
        raise ModelError(
            "There is no such model directory.",
            where=str(name),
            fix="give a run folder, a model directory, or a hub id such as "
            "google-bert/bert-base-uncased, with @ and a branch, tag or commit if need be",
        )
    hub_id, revision = match["id"], match["revision"]
    try:
        return _download(hub_id, revision, pickles)
    except ModelError:
        raise
    # The library lets through what its HTTP library, the JSON parser and the file system raise,
    # and these differ between its versions.
    except Exception as error:
        raise _explain(error, hub_id, revision) from None


def _download(hub_id: str, revision: str | None, pickles: bool) -> Path:
    """The directory in the cache, with all files that reading needs, each of the right size."""
    # Without this, versions of what is installed go along with each request.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import constants, is_offline_mode, resolve_revision
    from huggingface_hub.errors import LocalEntryNotFoundError

    where, offline = _where(hub_id, revision), is_offline_mode()
    commit = resolve_revision(hub_id, revision=revision, local_files_only=offline).resolved
    if not _COMMIT.fullmatch(commit):
        raise ValueError(f"{commit[:60]!r} is no commit")
    sizes = _sizes(hub_id, commit)
    wanted = _wanted(list(sizes), hub_id, where, pickles)
    try:
        directory = _fetch(hub_id, commit, wanted, local_files_only=True)
    except LocalEntryNotFoundError:
        if not offline:
            size = sum(sizes[name] or 0 for name in wanted)
            _check_space(size, Path(constants.HF_HUB_CACHE), where)
            log.say(f"Downloading {where} ({size / 1e6:,.1f} MB) from {constants.ENDPOINT}.")
        directory = _fetch(hub_id, commit, wanted)
    damaged = _damaged(directory, wanted, sizes)
    if damaged and not offline:
        log.say(f"Downloading {where} again: the size of {', '.join(damaged)} is wrong.")
        for name in damaged:
            (directory / name).unlink()
        _fetch(hub_id, commit, damaged, force_download=True)
        damaged = _damaged(directory, damaged, sizes)
    if damaged:
        raise ModelError(
            f"{damaged[0]} in the cache does not have the {sizes[damaged[0]]:,} bytes that it "
            "has on the hub.",
            where=str(directory),
            fix="repeat without HF_HUB_OFFLINE to download it again"
            if offline
            else f"repeat; if it stays so, delete {directory.parent.parent} first",
        )
    return directory


def _fetch(
    hub_id: str,
    commit: str,
    names: list[str],
    *,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path:
    """The directory in the cache with at least these files; progress only on a terminal."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import tqdm

    class Hidden(tqdm):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(  # type: ignore[no-untyped-call]
                *arguments, **{**settings, "disable": True}
            )

    directory = snapshot_download(
        hub_id,
        revision=commit,
        allow_patterns=names,
        local_files_only=local_files_only,
        force_download=force_download,
        tqdm_class=None if sys.stderr.isatty() and names != [CONFIG] else Hidden,
    )
    return Path(directory)


def _sizes(hub_id: str, commit: str) -> dict[str, int | None]:
    """The files of a model at a commit, and their bytes; None where the cache does not tell."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        tree = get_cached_repo_tree(hub_id, revision=commit)
    except CachedRepoTreeNotFoundError:
        # Asks for the list, and keeps it, before it fetches the one file.
        directory = _fetch(hub_id, commit, [CONFIG])
        try:
            tree = get_cached_repo_tree(hub_id, revision=commit)
        except CachedRepoTreeNotFoundError:  # without a network: what an older version fetched
            return {path.name: None for path in directory.iterdir()}
    return {file.path: file.size for file in tree}


def _wanted(names: list[str], hub_id: str, where: str, pickles: bool) -> list[str]:
    """Those of the files that reading needs."""
    if CONFIG not in names:
        raise ModelError(
            f"This model of the hub has no {CONFIG}.",
            where=where,
            fix="give the id of a BERT model; adapters and tokenizers alone are none",
        )
    weights = [name for name in names if _WEIGHTS.fullmatch(name)]
    if not weights:
        weights = [name for name in names if _PICKLES.fullmatch(name)]
        if not weights:
            raise ModelError(
                "This model of the hub has no model.safetensors.",
                where=where,
                fix="give the id of a model that has: a search on the hub can be limited to "
                "safetensors",
            )
        if not pickles:
            raise ModelError(
                "This model of the hub has its weights only as pickles, which can run code "
                "and are not opened here.",
                where=where,
                fix=f"bert convert {where} {hub_id.split('/')[-1]}",
            )
    return [name for name in names if name in _FILES] + weights


def _damaged(directory: Path, names: list[str], sizes: dict[str, int | None]) -> list[str]:
    """Those of the files whose size is not that on the hub."""
    return [name for name in names if sizes[name] not in (None, (directory / name).stat().st_size)]


def _check_space(size: int, cache: Path, where: str) -> None:
    """Refuse a download that the disk has no room for, before its first byte."""
    while not cache.is_dir():
        cache = cache.parent
    free = shutil.disk_usage(cache).free
    if size > free:
        raise ModelError(
            f"The model has {size / 1e9:,.1f} GB, the disk of the cache has "
            f"{free / 1e9:,.1f} GB left.",
            where=f"{where}, to be kept in {cache}",
            fix="free some space, or set HF_HOME to a folder on another disk",
        )


def _where(hub_id: str, revision: str | None) -> str:
    return f"{hub_id}@{revision}" if revision else hub_id


def _explain(error: Exception, hub_id: str, revision: str | None) -> ModelError:
    """What went wrong with the hub, and what can be done about it."""
    from huggingface_hub import constants, errors, is_offline_mode

    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) and len(chain) < 20:
        chain.append(cause)

    def first(*kinds: type[BaseException]) -> BaseException | None:
        return next((link for link in chain if isinstance(link, kinds)), None)

    where, hub = _where(hub_id, revision), constants.ENDPOINT
    answer = first(errors.HfHubHTTPError)
    status = answer.response.status_code if isinstance(answer, errors.HfHubHTTPError) else None
    number = next((link.errno for link in chain if isinstance(link, OSError) and link.errno), None)
    start = f"{where!r} is no directory here, and it cannot be downloaded: "
    if first(errors.HFValidationError):
        what = "the hub has no names like this."
        fix = "give a directory, or a hub id such as google-bert/bert-base-uncased"
    elif is_offline_mode():
        hub = str(constants.HF_HUB_CACHE)
        what = "HF_HUB_OFFLINE is set, and the cache has no whole copy of it."
        fix = (
            "unset HF_HUB_OFFLINE once to download it, or copy config.json, model.safetensors "
            "and tokenizer.json into a directory and give its path"
        )
    elif first(errors.GatedRepoError):
        what = "its owners ask for an agreement first, or have not answered yet."
        fix = f"agree on {hub}/{hub_id}, then set HF_TOKEN to a token of your account"
    elif first(errors.RevisionNotFoundError):
        what = "the hub has this model, but not this revision of it."
        fix = f"give a branch, a tag or a whole commit of {hub}/{hub_id}/commits/main"
    elif first(errors.RepositoryNotFoundError):
        what = "the hub has no such model, or it is private."
        fix = "check the spelling; for a private model set HF_TOKEN to a token of your account"
    elif first(errors.RemoteEntryNotFoundError):
        what = "the hub lists a file of it that it does not have."
        fix = f"look at {hub}/{hub_id}, or give another revision: {hub_id}@COMMIT"
    elif status in (401, 403):
        what = "the hub does not let you read it."
        fix = "set HF_TOKEN to a token of your account that is still valid"
    elif status == 429:
        what = "the hub asks for fewer requests."
        fix = "wait a few minutes and repeat; with HF_TOKEN set more are allowed"
    elif status is not None and status >= 500:
        what = f"the hub answers with error {status}."
        fix = "repeat in a minute"
    elif number in (errno.ENOSPC, errno.EDQUOT):
        what = f"the disk of the cache, {constants.HF_HUB_CACHE}, is full."
        fix = "free some space, or set HF_HOME to a folder on another disk"
    elif number in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
        what = f"the cache, {constants.HF_HUB_CACHE}, cannot be written."
        fix = "set HF_HOME to a folder that you can write"
    elif "Consistency check failed" in str(error):
        what = "a file arrives shorter or longer than the hub says."
        fix = "repeat; if it stays so, a proxy or mirror on the way is at fault"
    elif (
        status is not None
        or first(errors.FileMetadataError)
        or isinstance(error, ValueError | KeyError | TypeError | AssertionError)
    ):
        what = f"{hub} does not answer as a hub does."
        fix = (
            "check HF_ENDPOINT"
            if hub != "https://huggingface.co"
            else "open it in a browser: a login page or a proxy may stand in between"
        )
    else:
        what = f"{hub} cannot be reached."
        fix = (
            "check the network; without one, copy config.json, model.safetensors and "
            "tokenizer.json into a directory and give its path"
        )
    return ModelError(start + what, where=hub, fix=fix)
