from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bert.data import shards as module
from bert.data import workers
from bert.data.shards import Shards, build_shards, drop_documents, open_shards, write_tokens
from bert.data.workers import Job, chunks, encode_all
from bert.errors import BertError, DataError, OutOfMemoryError
from bert.text.corpus import Document, documents
from bert.text.sentences import sentences
from bert.text.tokenizer import Tokenizer
from bert.text.words import TextEncoder

ROOT = Path(module.__file__).parents[2]


def read(shards: Shards) -> list[list[list[int]]]:
    """Documents of sentences of token numbers."""
    starts, ends = shards.document_starts, shards.sentence_starts
    return [
        [
            shards.tokens[ends[n] : ends[n + 1]].tolist()
            for n in range(starts[number], starts[number + 1])
        ]
        for number in range(len(starts) - 1)
    ]


def expected(path: Path, tokenizer: Tokenizer) -> list[list[list[int]]]:
    return [tokenizer.pieces(sentences(document.text)) for document in documents([path])]


def test_shards_hold_the_sentences_of_documents(corpus: Path, tokenizer: Tokenizer) -> None:
    shards = build_shards([corpus], "text", tokenizer)
    assert read(shards) == expected(corpus, tokenizer)
    assert shards.facts["documents"] == 60
    assert shards.tokens.dtype == np.uint16
    assert build_shards([corpus], "text", tokenizer).directory == shards.directory
    assert shards.key == shards.directory.name
    left = {"tokens.bin", "sentences.bin", "documents.bin", "shards.json"}
    assert {path.name for path in shards.directory.iterdir()} == left


def test_what_has_no_tokens_is_left_out(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "x.txt"
    path.write_text("a bird.\n\u00ad\nthe stone\n\n\u00ad\n\na river\n", encoding="utf-8")
    with_tokens = [["a bird.", "the stone"], ["a river"]]
    built = read(build_shards([path], "text", tokenizer))
    assert built == [tokenizer.pieces(parts) for parts in with_tokens]


def test_no_text_is_an_error(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "x.txt"
    path.write_text("\u00ad\n", encoding="utf-8")
    with pytest.raises(DataError, match="holds no text"):
        build_shards([path], "text", tokenizer)


def test_chunks_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "CHUNK_CHARACTERS", 10)
    texts = ["a" * size for size in (3, 3, 4, 25, 1, 9, 2)]
    found = list(chunks(Document(text, "") for text in texts))
    assert [[len(document.text) for document in chunk] for chunk in found] == [
        [3, 3, 4],
        [25],
        [1, 9],
        [2],
    ]


def test_processes_give_the_same_in_the_same_order(
    corpus: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "CHUNK_CHARACTERS", 1000)
    job = Job(tokenizer, clean=True, compare=True)
    alone, together = (list(encode_all(documents([corpus]), job, number)) for number in (1, 3))
    assert len(alone) == len(together) > 10
    for one, two in zip(alone, together, strict=True):
        assert vars(one).keys() == vars(two).keys()
        for name, value in vars(one).items():
            other = getattr(two, name)
            assert np.array_equal(value, other) if isinstance(value, np.ndarray) else value == other


def test_an_error_while_reading_ends_the_processes(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "CHUNK_CHARACTERS", 10)

    def broken() -> object:
        yield from (Document("a small bird sings", "x:1") for _ in range(8))
        raise DataError("broken", where="x:9")

    with pytest.raises(DataError, match="broken"):
        list(encode_all(broken(), Job(tokenizer), 2))  # type: ignore[arg-type]


def _killed(chunk: list[Document]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_is_told(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "CHUNK_CHARACTERS", 10)
    monkeypatch.setattr(workers, "_work", _killed)
    source = (Document("a small bird sings", "x:1") for _ in range(8))
    with pytest.raises(OutOfMemoryError, match="was killed") as caught:
        list(encode_all(source, Job(tokenizer), 2))
    assert caught.value.fix
    assert "workers=1" in caught.value.fix


def test_workers_end_with_a_killed_parent(tmp_path: Path, tokenizer: Tokenizer) -> None:
    tokenizer.save(tmp_path / "tokenizer")
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from bert.data import workers\n"
        "from bert.text.corpus import Document\n"
        "from bert.text.tokenizer import Tokenizer\n"
        "def endless():\n"
        "    for n in range(10**9):\n"
        "        time.sleep(0.01)\n"
        "        yield Document('a small bird sings', str(n))\n"
        "if __name__ == '__main__':\n"
        "    workers.CHUNK_CHARACTERS = 10\n"
        "    job = workers.Job(Tokenizer.load(Path(sys.argv[1])))\n"
        "    for result in workers.encode_all(endless(), job, 2):\n"
        "        import multiprocessing\n"
        "        pids = [child.pid for child in multiprocessing.active_children()]\n"
        "        print(*pids, flush=True)\n"
    )
    script = tmp_path / "endless.py"
    script.write_text(code, encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, script, tmp_path / "tokenizer"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout
    pids = [int(word) for word in process.stdout.readline().split()]
    assert len(pids) == 2
    process.kill()
    process.stdout.close()
    process.wait()
    end = time.monotonic() + 20
    while any(_runs(pid) for pid in pids):
        assert time.monotonic() < end, "workers outlive their parent"
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("pattern", ["first", "last", "middle", "every second", "all but one"])
def test_dropping_documents_is_as_if_they_were_never_there(
    corpus: Path,
    tokenizer: Tokenizer,
    tmp_path: Path,
    pattern: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_BLOCK", 7)  # blocks that overlap their place
    counts, _ = write_tokens(tmp_path, encode_all(documents([corpus]), Job(tokenizer), 1))
    number = np.arange(counts["documents"])
    dropped = {
        "first": number < 1,
        "last": number > 57,
        "middle": (number > 10) & (number < 20),
        "every second": number % 2 == 1,
        "all but one": number != 33,
    }[pattern]
    drop_documents(tmp_path, tokenizer, dropped, counts)
    module.write_facts(tmp_path, tokenizer, counts)
    tokenizer.save(tmp_path)
    shards, _ = open_shards(tmp_path)
    whole = expected(corpus, tokenizer)
    assert read(shards) == [whole[n] for n in number if not dropped[n]]
    assert shards.facts == {name: counts[name] for name in shards.facts}


@pytest.fixture
def prepared(corpus: Path, tokenizer: Tokenizer, tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    shutil.copytree(build_shards([corpus], "text", tokenizer).directory, folder)
    tokenizer.save(folder)
    return folder


def test_opened_shards_have_their_tokenizer(prepared: Path, tokenizer: Tokenizer) -> None:
    shards, its = open_shards(prepared)
    assert its.backend.to_str() == tokenizer.backend.to_str()
    elsewhere = prepared.with_name("elsewhere")
    prepared.rename(elsewhere)
    assert open_shards(elsewhere)[0].key == shards.key != ""
    assert module.is_shards(elsewhere)
    assert not module.is_shards(prepared)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "tokens.bin").unlink(),
        lambda folder: os.truncate(folder / "tokens.bin", 100),
        lambda folder: os.truncate(folder / "tokens.bin", 101),
        lambda folder: os.truncate(folder / "tokens.bin", 0),
        lambda folder: os.truncate(folder / "sentences.bin", 80),
        lambda folder: os.truncate(folder / "documents.bin", 80),
        lambda folder: (folder / "shards.json").write_text("{"),
        lambda folder: (folder / "shards.json").write_text("[]"),
        lambda folder: _change(folder, dtype="object"),
        lambda folder: _change(folder, dtype="uint32"),
        lambda folder: _change(folder, version=1),
        lambda folder: _change(folder, tokens=7),
        lambda folder: (folder / "tokenizer.json").write_text("{"),
    ],
)
def test_damaged_shards_are_refused(prepared: Path, damage: object) -> None:
    assert callable(damage)
    damage(prepared)
    with pytest.raises(BertError) as caught:
        open_shards(prepared)
    assert caught.value.fix
    assert str(prepared) in str(caught.value)


def _change(folder: Path, **values: object) -> None:
    path = folder / "shards.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_encoder_and_tokens_have_one_type(tokenizer: Tokenizer) -> None:
    assert TextEncoder(tokenizer).dtype == np.uint16
