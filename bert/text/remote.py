"""The post office: corpora that lie elsewhere are fetched and read like those at hand. Layer 1.

A URL of any kind that fsspec knows (``s3://``, ``gs://``, ``https://``, ``hf://``) stands for a
file, for all files below a folder, or with ``*`` for all that match. Each file is fetched whole
while the one before it is read, and removed after reading. ``hub:NAME``, ``hub:NAME:SPLIT`` or
``hub:NAME:CONFIGURATION:SPLIT`` is a data set of the Hugging Face hub, streamed through the
library ``datasets``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from bert.errors import BertError, DataError, UsageError
from bert.text import files
from bert.text.corpus import Document, corpus_files, documents

HUB = "hub:"
_EXTRA = "pip install 'bertsmith[hub]'"

Source = Path | str  # a local file, the URL of a file, or a data set of the hub


def is_remote(name: str) -> bool:
    """Whether a corpus of this name is a URL or a data set of the hub."""
    return "://" in name or name.startswith(HUB)


def sources_of(names: Sequence[str]) -> list[Source]:
    """The files and data sets that names stand for: local ones by name, then the others.

    Raises:
        DataError: there is no such file or folder, or none of a supported format in it.
        UsageError: the kind of URL is not known, or what reads it is not installed.
    """
    local = [Path(name) for name in names if not is_remote(name)]
    found: list[Source] = list(corpus_files(local)) if local else []
    for name in names:
        if name.startswith(HUB):
            _data_set_name(name)
            found.append(name)
        elif is_remote(name):
            found.extend(_files_behind(name))
    return list(dict.fromkeys(found))


def read_sources(
    sources: Sequence[Source], text_column: str, workspace: Path | None = None
) -> Iterator[Document]:
    """Stream the documents of sources, in order; local ones as ``documents`` does.

    Args:
        sources: what ``sources_of`` gave.
        text_column: the column of the text in files and data sets that have columns.
        workspace: where remote files are kept while they are read; the system's folder for
            temporary files without.

    Raises:
        DataError: while reading, anything wrong with a source.
        UsageError: a library that reads it is not installed.
    """
    remote = [item for item in sources if isinstance(item, str) and not item.startswith(HUB)]
    with (
        tempfile.TemporaryDirectory(dir=workspace, prefix="fetched-") as folder,
        ThreadPoolExecutor(1) as fetcher,
    ):
        following = iter(remote)

        def fetch_next() -> Any:
            url = next(following, None)
            return fetcher.submit(fetch, url, Path(folder)) if url else None

        fetched = fetch_next()
        for source in sources:
            if isinstance(source, Path):
                yield from documents([source], text_column)
            elif source.startswith(HUB):
                yield from _rows_of_data_set(source, text_column)
            else:
                path = fetched.result()
                fetched = fetch_next()
                yield from _under_its_own_name(path, source, text_column)
                path.unlink()


def _under_its_own_name(path: Path, url: str, text_column: str) -> Iterator[Document]:
    """The documents of a fetched file, in whose places and errors stands the URL."""
    try:
        for document in documents([path], text_column):
            yield Document(document.text, document.where.replace(str(path), url, 1))
    except DataError as error:
        where = (error.where or url).replace(str(path), url)
        fix = error.fix if error.fix and str(path) not in error.fix else "mend the file there"
        raise DataError(error.what, where=where, fix=fix) from None


def is_file(url: str) -> bool:
    """Whether a URL is that of one file by its name, which need not exist.

    Raises:
        UsageError: the kind of URL is not known, or what reads it is not installed.
    """
    _, path = _file_system(url)
    return "*" not in path and _readable(path)


def files_below(url: str) -> dict[str, str]:
    """The URLs of the files in a folder or of a pattern, by their names below the folder.

    Raises:
        DataError: there are none.
        UsageError: the kind of URL is not known, or what reads it is not installed.
    """
    file_system, path = _file_system(url)
    folder = path.partition("*")[0].rpartition("/")[0] if "*" in path else path.rstrip("/")
    return {
        file_system._strip_protocol(found).removeprefix(folder).lstrip("/"): found
        for found in _files_behind(url)
    }


def mark_of(url: str) -> str:
    """What changes when a remote file does: its size, time or tag.

    Raises:
        DataError: it cannot be reached.
        UsageError: the kind of URL is not known, or what reads it is not installed.
    """
    file_system, path = _file_system(url)
    try:
        return str(file_system.ukey(path))
    except Exception as error:
        raise _unreachable(url, error) from None


def fetch(url: str, folder: Path) -> Path:
    """Copy a remote file into a folder of its own, under the name it has there.

    Raises:
        DataError: it cannot be fetched.
    """
    file_system, path = _file_system(url)
    target = Path(tempfile.mkdtemp(dir=folder), PurePosixPath(path).name.partition("?")[0])
    try:
        file_system.get_file(path, str(target))
    except Exception as error:
        raise _unreachable(url, error) from None
    return target


def _files_behind(url: str) -> list[str]:
    file_system, path = _file_system(url)
    if not path.strip("/"):
        raise UsageError("The URL names no file.", where=url, fix="name a file or folder in it")
    try:
        if "*" in path:
            there = file_system.glob(path)
        elif _readable(path):
            there = [path] if file_system.exists(path) else []
        else:
            there = file_system.find(path)
    except Exception as error:
        raise _unreachable(url, error) from None
    chosen = sorted(name for name in there if _readable(name))
    if not chosen:
        raise DataError(
            f"There are no text files: looked for {', '.join(files.FORMATS)}.",
            where=url,
            fix="check the URL; name a file, or a folder that holds some",
        )
    return [str(file_system.unstrip_protocol(name)) for name in chosen]


def _readable(path: str) -> bool:
    return files.is_supported(Path(PurePosixPath(path).name.partition("?")[0]))


def _file_system(url: str) -> tuple[Any, str]:
    try:
        import fsspec

        file_system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        kind = url.partition("://")[0]
        package = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}
        fix = f"pip install {package[kind]}" if kind in package else _EXTRA
        raise UsageError(f"What reads {kind}:// is missing: {error}.", where=url, fix=fix) from None
    except ValueError as error:
        raise UsageError(f"The URL cannot be read: {error}.", where=url, fix="check it") from None
    except Exception as error:
        raise _unreachable(url, error) from None
    return file_system, str(path)


def _unreachable(url: str, error: Exception) -> BertError:
    if isinstance(error, OSError) and error.errno is not None and error.filename is None:
        return DataError(f"The file cannot be fetched: {error.strerror}.", where=url)
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, FileNotFoundError):
        return DataError("There is no such file.", where=url, fix="check the URL")
    if isinstance(error, PermissionError):
        return DataError(
            f"The file may not be read: {reason}.", where=url, fix="check your credentials"
        )
    return DataError(
        f"The file cannot be fetched: {reason}.", where=url, fix="check the URL and the network"
    )


def _data_set_name(source: str) -> tuple[str, str | None, str]:
    """Name, configuration and split."""
    name, *rest = source.removeprefix(HUB).split(":")
    if not name or len(rest) > 2 or not all(rest):
        raise UsageError(
            "This names no data set of the hub.",
            where=source,
            fix="write hub:NAME, hub:NAME:SPLIT or hub:NAME:CONFIGURATION:SPLIT",
        )
    return name, rest[0] if len(rest) == 2 else None, rest[-1] if rest else "train"


def _rows_of_data_set(source: str, text_column: str) -> Iterator[Document]:
    name, configuration, split = _data_set_name(source)
    try:
        from datasets import load_dataset
    except ImportError:
        raise UsageError(
            "Data sets of the hub are read through a library that is missing.",
            where=source,
            fix=_EXTRA,
        ) from None
    number = 0
    try:
        for number, row in enumerate(
            load_dataset(name, configuration, split=split, streaming=True)
        ):
            if text_column not in row:
                raise DataError(
                    f'There is no column "{text_column}"; the columns are: {", ".join(row)}.',
                    where=source,
                    fix="text_column=NAME",
                )
            text = row[text_column]
            if isinstance(text, str) and text.strip():
                yield Document(text, f"{source}:{number + 1}")
            elif text is not None and not isinstance(text, str):
                raise DataError(
                    f'Column "{text_column}" holds {type(text).__name__}, not text.',
                    where=f"{source}:{number + 1}",
                    fix="text_column=NAME of a column of strings",
                )
    except (BertError, GeneratorExit):
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"The data set cannot be read: {reason}.",
            where=f"{source}:{number + 1}" if number else source,
            fix="check name, configuration and split, and the network",
        ) from None
