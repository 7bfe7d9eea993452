from __future__ import annotations

import errno
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bert import cli
from bert.data import workers
from bert.data.shards import open_shards
from bert.errors import DataError, UsageError
from bert.recipes import prepare as module
from bert.recipes.prepare import PrepareSettings, prepare
from bert.text.corpus import documents, sample_texts
from bert.text.tokenizer import train_wordpiece

ROOT = Path(module.__file__).parents[2]


@pytest.fixture(scope="session")
def tokenizer_folder(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tokenizer that knows every character of these tests: unknown ones would look alike."""
    folder = tmp_path_factory.mktemp("tokenizer")
    texts = [corpus.read_text(encoding="utf-8"), document(0, 300), "今天天气很好，我们去公园。"]
    train_wordpiece(lambda: texts, vocab_size=300, lowercase=True).save(folder)
    return str(folder)


def report_of(out: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((out / "data_report.json").read_text("utf-8"))
    return report


def files_of(out: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in out.iterdir() if p.name != "data_report.json"}


def sentence(number: int) -> str:
    return f"The small bird {number} sings near the river {number * 7} and the stone {number * 3}."


def document(first: int, count: int = 12) -> str:
    return "\n".join(sentence(number) for number in range(first, first + count))


def test_every_document_is_accounted_for(tmp_path: Path, tokenizer_folder: str) -> None:
    first, near = document(0, 40), document(0, 40).replace("bird 7 ", "tree 7 ")
    texts = [
        first,
        document(100),
        first,  # exact
        "\u200b" + document(100).replace(" ", "  "),  # exact once it is clean
        near,
        "too short",
        "1234567890 " * 10 + "a" * 30,
        "the old bird sings near the tree\n" * 5,
        "今天天气很好，我们去公园。" * 5,
    ]
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    out = tmp_path / "out"
    settings = PrepareSettings(corpus=[str(path)], tokenizer=tokenizer_folder)
    assert prepare(settings, out) == out
    report = report_of(out)
    assert report["documents_read"] == len(texts)
    assert report["characters_read"] == sum(map(len, texts))
    assert report["documents_changed_by_cleaning"] == 2
    assert report["dropped"] == {
        "too_short": 1,
        "few_letters": 1,
        "repeated_lines": 1,
        "duplicates": 2,
        "near_duplicates": 1,
    }
    assert report["dropped_at"] == {
        "too_short": [f"{path}:6"],
        "few_letters": [f"{path}:7"],
        "repeated_lines": [f"{path}:8"],
        "duplicates": [[f"{path}:3", f"{path}:1"], [f"{path}:4", f"{path}:2"]],
        "near_duplicates": [[f"{path}:5", f"{path}:1"]],
    }
    assert report["documents"] == 3
    assert report["documents_by_script"] == {"latin": 5, "han": 1}
    shards, _ = open_shards(out)
    assert shards.facts == {name: report[name] for name in ("documents", "sentences", "tokens")}
    assert shards.facts["sentences"] == 40 + 12 + 5


def test_both_steps_can_be_left_out(tmp_path: Path, tokenizer_folder: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a bird"}\n' * 2)
    settings = PrepareSettings(
        corpus=[str(path)], tokenizer=tokenizer_folder, clean=False, deduplicate=False
    )
    report = report_of(prepare(settings, tmp_path / "out"))
    assert (report["documents"], report["dropped"]) == (2, {})
    with pytest.raises(DataError, match=r"None of 2 documents .* too_short 2") as caught:
        prepare(PrepareSettings(corpus=[str(path)], tokenizer=tokenizer_folder), tmp_path / "none")
    assert caught.value.fix
    assert "clean=false" in caught.value.fix
    assert not (tmp_path / "none").exists()
    assert not list(tmp_path.glob(".*"))


def test_the_number_of_processes_changes_nothing(
    tmp_path: Path, corpus: Path, tokenizer_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "CHUNK_CHARACTERS", 2000)
    found = []
    for number in (1, 2, 3):
        settings = PrepareSettings(corpus=[str(corpus)], tokenizer=tokenizer_folder, workers=number)
        out = prepare(settings, tmp_path / f"out{number}")
        found.append(files_of(out))
    assert found[0] == found[1] == found[2]


def test_a_file_may_have_a_name_that_is_no_text(tmp_path: Path, tokenizer_folder: str) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    name = os.fsdecode(b"\xff.txt")
    (folder / name).write_text(document(0, 40) + "\n\n" + document(0, 40) + "\n", "utf-8")
    out = tmp_path / "shards"
    prepare(PrepareSettings(corpus=[str(folder)], tokenizer=tokenizer_folder), out)
    assert report_of(out)["dropped"] == {"duplicates": 1}


def test_a_tokenizer_is_learnt_if_none_is_named(tmp_path: Path, corpus: Path) -> None:
    settings = PrepareSettings(corpus=[str(corpus)], vocab_size=100)
    one, two = (prepare(settings, tmp_path / name) for name in ("one", "two"))
    assert files_of(one) == files_of(two)
    assert 50 < open_shards(one)[1].vocab_size <= 100


def test_a_sample_is_even_and_bounded(corpus: Path) -> None:
    texts = [document.text for document in documents([corpus])]
    assert sample_texts(documents([corpus]), 10**9) == texts
    limit = sum(map(len, texts)) // 3
    sample = sample_texts(documents([corpus]), limit)
    assert limit / 4 < sum(map(len, sample)) <= limit
    numbers = [texts.index(text) for text in sample]
    assert numbers == sorted(numbers)
    assert max(numbers) > 40
    assert min(numbers) < 20
    assert sample == sample_texts(documents([corpus]), limit)
    assert len(sample_texts(documents([corpus]), 1)) == 1


# Elsewhere --------------------------------------------------------------------------------------


@pytest.fixture
def memory() -> Any:
    import fsspec

    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


def test_urls_are_read_like_files(
    tmp_path: Path, corpus: Path, tokenizer_folder: str, memory: Any
) -> None:
    text = corpus.read_bytes()
    memory.pipe("/b/2.txt.gz", gzip.compress(text))
    memory.pipe("/b/deep/1.txt", document(500).encode())
    memory.pipe("/b/notes.md", b"not read")
    (tmp_path / "b/deep").mkdir(parents=True)
    (tmp_path / "b/2.txt.gz").write_bytes(gzip.compress(text))
    (tmp_path / "b/deep/1.txt").write_text(document(500))
    outs = []
    for number, corpus_names in enumerate(
        [
            [str(tmp_path / "b")],
            ["memory://b"],
            ["memory://b/2.txt.gz", "memory://b/deep/*.txt"],
            ["memory://b/*.gz", str(tmp_path / "b/deep/1.txt"), "memory://b/2.txt.gz"],
        ]
    ):
        settings = PrepareSettings(corpus=corpus_names, tokenizer=tokenizer_folder)
        outs.append(prepare(settings, tmp_path / f"out{number}"))
    first, *others = map(files_of, outs)
    assert first == others[0] == others[1]
    assert first["tokens.bin"] != others[2]["tokens.bin"]  # local files come first
    assert len(first["tokens.bin"]) == len(others[2]["tokens.bin"])
    assert not list(tmp_path.glob(".*"))


def test_places_in_fetched_files_are_urls(
    tmp_path: Path, tokenizer_folder: str, memory: Any
) -> None:
    memory.pipe("/b/1.jsonl", b'{"text": "a bird"}\n' + b'{"text": "' + b"the bird " * 9 + b'"}\n')
    settings = PrepareSettings(corpus=["memory://b"], tokenizer=tokenizer_folder)
    report = report_of(prepare(settings, tmp_path / "out"))
    assert report["dropped_at"] == {"too_short": ["memory:///b/1.jsonl:1"]}
    memory.pipe("/b/1.jsonl", b'{"text": 5}\n')
    with pytest.raises(DataError, match="holds int") as caught:
        prepare(settings, tmp_path / "other")
    assert caught.value.where == "memory:///b/1.jsonl:1"
    assert caught.value.fix


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("memory://", UsageError),
        ("memory://nowhere", DataError),
        ("memory://nowhere/x.txt", DataError),
        ("nosuch://x/y.txt", UsageError),
        ("hub:", UsageError),
        ("hub:a:b:c:d", UsageError),
        ("hub:a::d", UsageError),
    ],
)
def test_wrong_urls(
    name: str, kind: type[Exception], tmp_path: Path, tokenizer_folder: str, memory: Any
) -> None:
    settings = PrepareSettings(corpus=[name], tokenizer=tokenizer_folder)
    with pytest.raises(kind) as caught:
        prepare(settings, tmp_path / "out")
    assert name.rstrip("/") in str(caught.value)
    assert getattr(caught.value, "fix", None)


def test_a_file_that_goes_away(
    tmp_path: Path, tokenizer_folder: str, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.pipe("/b/1.txt", b"text")

    def gone(self: object, path: str, target: str) -> None:
        raise OSError(errno.ECONNRESET, "Connection reset by peer")

    monkeypatch.setattr(type(memory), "get_file", gone)
    settings = PrepareSettings(corpus=["memory://b"], tokenizer=tokenizer_folder)
    with pytest.raises(DataError, match="Connection reset"):
        prepare(settings, tmp_path / "out")


def test_data_sets_of_the_hub(tmp_path: Path, tokenizer_folder: str) -> None:
    pytest.importorskip("datasets")
    folder = tmp_path / "set"
    folder.mkdir()
    rows = [{"text": document(n * 100), "n": n} for n in range(5)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in (f"hub:{folder}", f"hub:{folder}:train", f"hub:{folder}:default:train"):
        out = tmp_path / f"out{len(name)}"
        settings = PrepareSettings(corpus=[name], tokenizer=tokenizer_folder)
        assert report_of(prepare(settings, out))["documents"] == 5
    for name, column, what in (
        (f"hub:{folder}:nosplit", "text", "cannot be read"),
        (f"hub:{folder}", "body", 'no column "body"'),
        (f"hub:{folder}", "n", "holds int"),
    ):
        settings = PrepareSettings(corpus=[name], tokenizer=tokenizer_folder, text_column=column)
        with pytest.raises(DataError, match=what):
            prepare(settings, tmp_path / "none")


@pytest.mark.slow
def test_ray_gives_the_same_files(
    tmp_path: Path, corpus: Path, tokenizer_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    folder = tmp_path / "b"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.txt").write_text(document(number * 100, 50))
    settings = PrepareSettings(corpus=[str(folder), str(corpus)], tokenizer=tokenizer_folder)
    here = prepare(settings, tmp_path / "here")
    there = prepare(settings, tmp_path / "there", on_ray=True)
    assert files_of(here) == files_of(there)
    (folder / "1.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match="Not UTF-8") as caught:
        prepare(settings, tmp_path / "bad", on_ray=True)
    assert caught.value.where == f"{folder}/1.txt:1:4"


# All or nothing ---------------------------------------------------------------------------------


def test_a_folder_in_use_is_left_alone(tmp_path: Path, corpus: Path, tokenizer_folder: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "x").write_text("mine")
    settings = PrepareSettings(corpus=[str(corpus)], tokenizer=tokenizer_folder)
    with pytest.raises(UsageError, match="in use"):
        prepare(settings, out)
    assert (out / "x").read_text() == "mine"
    (out / "x").unlink()
    prepare(settings, out)  # an empty one is taken


def test_two_at_once(tmp_path: Path, corpus: Path, tokenizer_folder: str) -> None:
    settings = PrepareSettings(corpus=[str(corpus)], tokenizer=tokenizer_folder)
    with module._stage(tmp_path / "out"), pytest.raises(UsageError, match="Another process"):
        prepare(settings, tmp_path / "out")


def test_after_a_kill_it_starts_anew(tmp_path: Path, corpus: Path, tokenizer_folder: str) -> None:
    (tmp_path / "long").mkdir()
    with (tmp_path / "long/x.jsonl").open("w") as file:
        for number in range(8_000):
            file.write(json.dumps({"text": document(number * 50)}) + "\n")
    command = [sys.executable, "-m", "bert", "prepare", "--tokenizer", tokenizer_folder]
    command += ["--out", str(tmp_path / "out"), "workers=2"]
    stage = tmp_path / ".out.partial/tokens.bin"
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        began = time.time()
        process = subprocess.Popen(
            [*command, str(tmp_path / "long")], cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        while not (stage.exists() and stage.stat().st_size and stage.stat().st_mtime > began):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(number)
        said = process.communicate(timeout=60)[1]
        assert process.returncode == {9: -9, 15: 143, 2: 130}[number]
        assert "Traceback" not in said
        assert stage.parent.exists() == (number == signal.SIGKILL)
        assert not (tmp_path / "out").exists()
    settings = PrepareSettings(corpus=[str(corpus)], tokenizer=tokenizer_folder)
    prepare(settings, tmp_path / "out")
    assert not stage.parent.exists()


def test_the_command(
    tmp_path: Path, corpus: Path, tokenizer_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def run(*words: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["prepare", *words])
        return int(ended.value.code or 0), capsys.readouterr().err

    try:
        out = str(tmp_path / "out")
        code, said = run(str(corpus), "--out", out, "--tokenizer", tokenizer_folder, "workers=1")
        assert code == 0
        assert "60 read" in said
        assert f"bert pretrain {out}" in said
        code, said = run(str(corpus), "--out", out)
        assert (code, "in use" in said) == (2, True)
        code, said = run(out, str(corpus), "--out", out + "2")
        assert (code, f"bert pretrain {out}" in said) == (3, True)
        code, said = run("memory://no=thing/x.txt", "--out", out + "2", "similarity=0.9")
        assert (code, "no=thing" in said) == (3, True)
        code, said = run(str(corpus), "--out", out + "2", "similarity=0.1")
        assert (code, "similarity" in said) == (2, True)
        code, said = run(str(corpus), "--out", out + "2", "--tokenizer", str(tmp_path))
        assert code == 4
        code, said = run(str(corpus), "--out", str(corpus) + "/x", "--tokenizer", tokenizer_folder)
        assert code == 2
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_full_disk(tmp_path: Path, tokenizer_folder: str, corpus: Path) -> None:
    limit = "ulimit -f 8; trap '' XFSZ; exec "  # blocks of 1 KiB
    command = f"{sys.executable} -m bert prepare {corpus} --tokenizer {tokenizer_folder} --out "
    result = subprocess.run(
        ["bash", "-c", limit + command + str(tmp_path / "out")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert result.returncode == 1
    assert "larger than this system allows" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / ".out.partial").exists()
