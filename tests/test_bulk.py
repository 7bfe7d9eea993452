"""Files of any size: killed at any moment every row is answered once, and bad rows stop nothing."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bert.bulk import files_of, is_one_file, passing_over
from bert.checkpoint import Checkpoint, write_model
from bert.cli import main
from bert.data.rows import Example, read_examples
from bert.errors import DataError, RowError
from bert.families.bert import FAMILY
from bert.model.config import BertConfig
from bert.text.tokenizer import train_wordpiece

WORDS = ["warm", "cold", "long", "film", "story", "sea", "the", "of"]
CHUNK = 64  # rows answered at once here
KILLS = 4
SMALL_CHUNKS = ("bert.bulk.TEXTS_AT_ONCE", "bert.recipes.embed.TEXTS_AT_ONCE")


def text_of(i: int) -> str:
    return f"{i} {' '.join(random.Random(i).choices(WORDS, k=3 + i % 5))}"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the classifiers ``one`` and ``other``, of one small layer."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = train_wordpiece(
        lambda: map(text_of, range(200)), vocab_size=120, lowercase=True, max_length=32
    )
    config = BertConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=32,
        max_position_embeddings=32,
        pad_token_id=tokenizer.pad_id,
    )
    facts = {"task": "classification", "max_length": 32}
    for seed, name in enumerate(("one", "other")):
        torch.manual_seed(seed)
        network = FAMILY.build("sequence", config, 2)
        for parameter in network.parameters():  # answers that differ
            torch.nn.init.normal_(parameter, std=0.5)
        labels = ["good", "bad"]
        write_model(
            folder / name, Checkpoint(network, "sequence", FAMILY, labels, tokenizer, facts)
        )
    return folder


@pytest.fixture
def here(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with a link to the models, in a process that answers in small chunks."""
    (tmp_path / "m").symlink_to(models)
    monkeypatch.chdir(tmp_path)
    for name in SMALL_CHUNKS:
        monkeypatch.setattr(name, CHUNK)
    before = signal.getsignal(signal.SIGTERM)
    yield tmp_path
    signal.signal(signal.SIGTERM, before)


def bert(command: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(shlex.split(command))
    return int(ended.value.code or 0)


def lines(path: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]


def write_rows(path: Path, numbers: Sequence[int], bad: Sequence[int] = ()) -> None:
    """Rows with the texts of these numbers; of some places the text is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [[] if place in bad else text_of(i) for place, i in enumerate(numbers)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# Kills --------------------------------------------------------------------------------------------


def bert_in_small_chunks(command: str, folder: Path) -> None:
    """``bert`` in a process of its own."""
    for name in SMALL_CHUNKS:
        module, _, attribute = name.rpartition(".")
        __import__(module)
        setattr(sys.modules[module], attribute, CHUNK)
    os.chdir(folder)
    sys.stderr = Path("said.txt").open("a", encoding="utf-8")  # noqa: SIM115
    main(shlex.split(command))


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Path], Any]:
    """Starts ``bert`` fast, from a process that has imported it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bert.recipes.predict", "bert.recipes.embed", "pyarrow"])

    def start(command: str, folder: Path) -> Any:
        process = context.Process(target=bert_in_small_chunks, args=(command, folder))
        process.start()
        return process

    ended(start("--version", tmp_path_factory.mktemp("nowhere")))  # so that the next is fast
    return start


def ended(process: Any) -> int | None:
    process.join(120)
    code: int | None = process.exitcode
    process.close()
    return code


@pytest.mark.parametrize("verb", ["predict", "embed"])
@pytest.mark.parametrize("several", [False, True], ids=["file", "folder"])
def test_killed_at_any_moment_every_row_is_answered_once(
    verb: str, several: bool, here: Path, start: Callable[[str, Path], Any]
) -> None:
    bad = {5, 300, 1199}
    if several:
        for number, count in enumerate((700, 1, 400, 100)):
            rows = range(1000 * number, 1000 * number + count)
            write_rows(here / f"rows/{'deep/' * (number % 2)}{number}.jsonl", rows, (5, 300))
        command, wanted = f"{verb} m/one rows -o", ("whole", "killed")
    else:
        write_rows(here / "rows.jsonl", range(1200), list(bad))
        ending = {"predict": "jsonl", "embed": "npy"}[verb]
        command, wanted = f"{verb} m/one rows.jsonl -o", (f"whole.{ending}", f"killed.{ending}")
    began = time.monotonic()
    assert ended(start(f"{command} {wanted[0]}", here)) == 3
    seconds = time.monotonic() - began
    draw = random.Random(verb)
    kills = 0
    while kills < KILLS:
        process = start(f"{command} {wanted[1]}", here)
        process.join(draw.uniform(0, seconds))
        process.kill()
        if ended(process) == -signal.SIGKILL:
            kills += 1
        else:  # it was done already
            shutil.rmtree(wanted[1]) if several else Path(wanted[1]).unlink()
            seconds /= 2
    if several or not Path(wanted[1]).exists():
        assert ended(start(f"{command} {wanted[1]}", here)) == 3
    if several:
        whole, other = tree(here / wanted[0]), tree(here / wanted[1])
        for name in [name for name in whole if name.endswith(".done")]:
            assert json.loads(whole.pop(name)) == json.loads(other.pop(name))
        assert whole == other
        assert not [name for name in whole if name.endswith((".part", ".key", ".lock"))]
        return
    assert Path(wanted[0]).read_bytes() == Path(wanted[1]).read_bytes()
    found = [tree(here)[Path(name).with_suffix(".errors.jsonl").name] for name in wanted]
    assert found[0] == found[1]
    assert found[0].count(b"\n") == 3
    assert not [name for name in tree(here) if name.startswith(".")]
    if verb == "predict":
        answers = lines(wanted[1])
        assert [i for i, answer in enumerate(answers) if "error" in answer] == sorted(bad)
        assert len(answers) == 1200


def test_what_was_answered_is_not_answered_again(
    here: Path, start: Callable[[str, Path], Any]
) -> None:
    write_rows(here / "rows.jsonl", range(40 * CHUNK))
    part = here / ".out.jsonl.part"
    process = start("predict m/one rows.jsonl -o out.jsonl", here)
    while not part.exists() or part.read_bytes().count(b"\n") < 2 * CHUNK:
        assert process.exitcode is None
        time.sleep(0.005)
    process.kill()
    ended(process)
    kept = part.read_bytes().count(b"\n") // CHUNK * CHUNK
    assert ended(start("predict m/one rows.jsonl -o out.jsonl", here)) == 0
    assert f"Going on after {kept:,} rows" in (here / "said.txt").read_text("utf-8")
    assert len(lines("out.jsonl")) == 40 * CHUNK


# Bad rows -----------------------------------------------------------------------------------------

BAD = {
    ".jsonl": ['{"text": 3}', '{"text": "x"', "[1]", "null", '{"text": "\\ud800"}', "\ufffe\0"],
    ".csv": ["a,b,c", 'x,"y"z', "", "alone"],
    ".tsv": ["a\tb\tc", "alone"],
}


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_reading_goes_on_after_a_bad_row(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    suffix = data.draw(st.sampled_from(sorted(BAD)))
    marks = data.draw(st.lists(st.none() | st.sampled_from(BAD[suffix]), max_size=12))
    marks.append(None)
    separator = {".csv": ",", ".tsv": "\t"}.get(suffix, "")
    head = [] if suffix == ".jsonl" else [f"text{separator}more"]
    good = [
        f"{text_of(i)}{separator}1" if separator else json.dumps({"text": text_of(i)})
        for i in range(len(marks))
    ]
    rows = [line if mark is None else mark for mark, line in zip(marks, good, strict=True)]
    table = [*head, *rows]
    path = tmp_path_factory.mktemp("rows") / f"rows{suffix}"
    path.write_text("\n".join(table) + "\n", "utf-8")
    found = list(passing_over(read_examples(path, ["text"], None, None), path, path))
    filled = [(i, mark) for i, mark in enumerate(marks) if mark != ""]
    assert len(found) == len(filled)
    for (i, mark), item in zip(filled, found, strict=True):
        assert (item.where or "").startswith(f"{path}:{i + 1 + len(head)}")
        assert isinstance(item, Example) == (mark is None)
        if isinstance(item, Example):
            assert item.texts == text_of(i)


def test_a_quote_that_swallows_rows_ends_the_reading(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text\nfine\n"so\nit\ngoes\n', "utf-8")
    items = passing_over(read_examples(path, ["text"], None, None), path, path)
    assert isinstance(next(items), Example)
    with pytest.raises(DataError, match="never closed") as caught:
        next(items)
    assert not isinstance(caught.value, RowError)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_bad_rows_have_their_place(suffix: str, here: Path) -> None:
    texts: list[Any] = [text_of(i) for i in range(150)]
    path = here / f"rows{suffix}"
    if suffix == ".parquet":
        texts[70] = "half\0"
        pq.write_table(pa.table({"text": texts}), path)
    else:
        between = {".csv": ",", ".tsv": "\t"}.get(suffix)
        rows = [f"{text}{between}1" if between else json.dumps({"text": text}) for text in texts]
        rows[70] = f"a{between}b{between}c" if between else "{"
        head = [f"text{between}more"] if between else []
        path.write_text("\n".join([*head, *rows]) + "\n", "utf-8")
    assert bert(f"predict m/one {path.name} -o out.jsonl --precision fp32") == 3
    answers = lines("out.jsonl")
    assert len(answers) == 150
    assert [i for i, answer in enumerate(answers) if "error" in answer] == [70]
    (error,) = lines("out.errors.jsonl")
    place = 71 + (suffix in (".csv", ".tsv"))
    assert (error["row"], error["file"]) == (71, path.name)
    assert error["message"] == answers[70]["error"]
    assert error["where"].startswith(f"{path.name}:{place}")
    # The others are what they are without it.
    write_rows(here / "good.jsonl", [i for i in range(150) if i != 70])
    assert bert("predict m/one good.jsonl -o good_out.jsonl --precision fp32") == 0
    for one, other in zip([*answers[:70], *answers[71:]], lines("good_out.jsonl"), strict=True):
        assert one["label"] == other["label"]
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)


def test_strict_stops_and_leaves_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(here / "rows.jsonl", range(200), [150])
    for verb, out in (("predict", "out.jsonl"), ("embed", "out.npy")):
        before = tree(here)
        assert bert(f"{verb} m/one rows.jsonl -o {out} --strict") == 3
        assert "rows.jsonl:151" in capsys.readouterr().err
        assert tree(here) == before


def test_vectors_of_bad_rows(here: Path) -> None:
    write_rows(here / "rows.jsonl", range(150), [3, 149])
    for ending in ("npy", "jsonl", "parquet"):
        assert bert(f"embed m/one rows.jsonl -o out.{ending}") == 3
        assert [line["row"] for line in lines("out.errors.jsonl")] == [4, 150]
    table = np.load("out.npy")
    assert table.shape == (150, 16)
    assert np.flatnonzero(np.isnan(table).any(axis=1)).tolist() == [3, 149]
    assert np.isnan(table[3]).all()
    columns = pq.read_table("out.parquet").to_pydict()
    for i, line in enumerate(lines("out.jsonl")):
        bad = i in (3, 149)
        assert line["text"] == columns["text"][i] == (None if bad else text_of(i))
        assert line["embedding"] == columns["embedding"][i]
        assert line["embedding"] is None if bad else np.array_equal(line["embedding"], table[i])


def test_rows_that_the_model_cannot_take(here: Path, models: Path) -> None:
    """Found in encoding, not in reading."""
    from bert.checkpoint import read_model

    known = read_model(models / "one")
    network = FAMILY.build("masked_lm", known.config)
    write_model(here / "words", Checkpoint(network, "masked_lm", FAMILY, [], known.tokenizer))
    texts = ["the [MASK]", "none", "[MASK] film"] * 50
    (here / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), "utf-8")
    assert bert("predict words a.jsonl -o out.jsonl") == 3
    answers = lines("out.jsonl")
    assert [i for i, answer in enumerate(answers) if "error" in answer] == [*range(1, 150, 3)]
    assert [error["where"] for error in lines("out.errors.jsonl")][:2] == ["a.jsonl:2", "a.jsonl:5"]


# Many files ---------------------------------------------------------------------------------------


@pytest.fixture
def rows(here: Path) -> Path:
    folder = here / "rows"
    write_rows(folder / "a.jsonl", range(100))
    write_rows(folder / "deep/b.jsonl", range(100, 130))
    (folder / "c.csv.gz").write_bytes(gzip.compress(b"text\none\ntwo\n"))
    (folder / "notes.txt").write_text("no rows\n", "utf-8")
    write_rows(folder / ".hidden.jsonl", range(3))
    return folder


NAMES = ["a.jsonl.jsonl", "c.csv.gz.jsonl", "deep/b.jsonl.jsonl"]


def visible(folder: Path) -> list[str]:
    return sorted(name for name in tree(folder) if not Path(name).name.startswith("."))


def times(folder: Path) -> dict[str, int]:
    return {name: (folder / name).stat().st_mtime_ns for name in visible(folder)}


def test_a_folder_of_files(rows: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bert("predict m/one rows -o out") == 0
    assert "132 answers in out" in capsys.readouterr().err
    assert visible(here / "out") == NAMES
    assert bert("predict m/one rows/a.jsonl -o alone.jsonl") == 0
    assert lines("alone.jsonl") == lines("out/a.jsonl.jsonl")
    assert bert("embed m/one rows -o vectors") == 0
    assert np.load("vectors/deep/b.jsonl.npy").shape == (30, 16)
    assert len(np.load("vectors/notes.txt.npy")) == 1


def test_patterns_and_several_files(rows: Path, here: Path) -> None:
    assert bert("predict m/one 'rows/**/*.jsonl' -o out") == 0
    assert visible(here / "out") == [NAMES[0], NAMES[2]]
    assert bert("predict m/one rows/a.jsonl rows/c.csv.gz -o two") == 0
    assert visible(here / "two") == NAMES[:2]
    assert is_one_file(["rows/a.jsonl"])
    assert not is_one_file(["rows/*.jsonl"])
    (rows / "[x].jsonl").write_text('{"text": "a"}\n', "utf-8")
    assert is_one_file(["rows/[x].jsonl"])
    assert list(files_of(["rows/[x].jsonl"], (".jsonl",))) == ["[x].jsonl"]


def test_only_what_is_new_is_answered(
    rows: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bert("predict m/one rows -o out") == 0
    before = times(here / "out")
    write_rows(rows / "deep/b.jsonl", range(7))
    write_rows(rows / "d.jsonl", range(3), [1])
    assert bert("predict m/one rows -o out") == 3
    assert "Going on: 2 of 4 files" in capsys.readouterr().err
    after = times(here / "out")
    assert visible(here / "out") == sorted([*NAMES, "d.jsonl.jsonl", "errors.jsonl"])
    assert {name for name in before if after[name] != before[name]} == {NAMES[2]}
    assert len(lines("out/deep/b.jsonl.jsonl")) == 7
    (error,) = lines("out/errors.jsonl")
    assert (error["row"], error["file"]) == (2, "rows/d.jsonl")
    # Nothing to do, but the bad row is still told; and once it is mended, no more.
    assert bert("predict m/one rows -o out") == 3
    assert times(here / "out").items() - {("errors.jsonl", 0)} >= {
        item for item in after.items() if item[0] != "errors.jsonl"
    }
    write_rows(rows / "d.jsonl", range(3))
    assert bert("predict m/one rows -o out") == 0
    assert visible(here / "out") == sorted([*NAMES, "d.jsonl.jsonl"])


def test_answers_of_another_model_are_kept(
    rows: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bert("predict m/one rows -o out") == 0
    before = tree(here / "out")
    assert bert("predict m/other rows -o out") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert bert("embed m/one rows -o out") == 2
    assert bert("predict m/one rows -o out --text text") == 2
    assert tree(here / "out") == before
    assert bert("predict m/other rows -o out --overwrite") == 0
    assert tree(here / "out").keys() == before.keys()
    assert lines("out/a.jsonl.jsonl") != [json.loads(x) for x in before[NAMES[0]].splitlines()]
    # The same command again has nothing left to overwrite.
    written = times(here / "out")
    assert bert("predict m/other rows -o out --overwrite") == 0
    assert times(here / "out") == written


def test_a_file_that_cannot_be_read_stops_no_other(rows: Path, here: Path) -> None:
    whole = (rows / "c.csv.gz").read_bytes()
    (rows / "c.csv.gz").write_bytes(whole[:-9])
    (rows / "empty.csv").write_text("text\n", "utf-8")
    assert bert("predict m/one rows -o out") == 3
    assert visible(here / "out") == [NAMES[0], NAMES[2], "errors.jsonl"]
    first, second = lines("out/errors.jsonl")
    assert (first["row"], first["file"]) == (None, "rows/c.csv.gz")
    assert "no rows" in second["message"]
    (rows / "c.csv.gz").write_bytes(whole)
    (rows / "empty.csv").unlink()
    assert bert("predict m/one rows -o out") == 0
    assert visible(here / "out") == NAMES
    (rows / "c.csv.gz").write_bytes(whole[:-9])
    assert bert("predict m/one rows -o strict --strict") == 3


def test_a_mistake_of_the_command_is_no_list_of_errors(
    rows: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bert("predict m/one rows -o out --text review") == 3
    assert "no column 'review'" in capsys.readouterr().err
    assert visible(here / "out") == []


# Elsewhere ----------------------------------------------------------------------------------------


@pytest.fixture
def remote_rows(rows: Path) -> Iterator[str]:
    import fsspec

    system = fsspec.filesystem("memory")
    system.put(str(rows), "/bulk/rows", recursive=True)
    yield "memory://bulk/rows"
    system.rm("/bulk", recursive=True)


def test_urls(remote_rows: str, rows: Path, here: Path) -> None:
    assert bert("predict m/one rows -o near") == 0
    assert bert(f"predict m/one {remote_rows} -o far") == 0
    assert visible(here / "far") == visible(here / "near") == NAMES
    for name in NAMES:
        assert (here / "far" / name).read_bytes() == (here / "near" / name).read_bytes()
    before = times(here / "far")
    assert bert(f"predict m/one {remote_rows} -o far") == 0
    assert times(here / "far") == before
    assert bert(f"predict m/one {remote_rows}/a.jsonl -o one.jsonl") == 0
    assert (here / "one.jsonl").read_bytes() == (here / "near" / NAMES[0]).read_bytes()
    assert bert(f"embed m/one '{remote_rows}/*.jsonl' -o vectors") == 0
    assert visible(here / "vectors") == ["a.jsonl.npy"]


def test_bad_rows_elsewhere(
    remote_rows: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import fsspec

    with fsspec.open(f"{remote_rows}/d.jsonl", "w") as file:
        file.write('{"text": "a"}\n{"text": 1}\n')
    assert bert(f"predict m/one {remote_rows}/d.jsonl -o out.jsonl") == 3
    (error,) = lines("out.errors.jsonl")
    assert error["file"] == f"{remote_rows}/d.jsonl"
    assert error["where"].endswith("bulk/rows/d.jsonl:2")
    assert error["where"].startswith("memory://")
    capsys.readouterr()
    assert bert(f"predict m/one {remote_rows}/d.jsonl -o strict.jsonl --strict") == 3
    assert "where: memory://" in capsys.readouterr().err
    assert bert(f"predict m/one {remote_rows}/none.jsonl -o none.jsonl") == 3
    assert bert("predict m/one memory://nowhere -o none") == 3


# Ray ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    ray.init(num_cpus=2, log_to_driver=False, configure_logging=False, include_dashboard=False)
    yield ray
    ray.shutdown()


@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_ray_gives_the_same_answers(
    ray: Any, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Ray's processes answer in chunks of the usual size."""
    for number in range(3):
        texts = [text_of(1000 * number + i) for i in range(50)]
        texts[7] = "half\0"
        (here / "rows").mkdir(exist_ok=True)
        pq.write_table(pa.table({"text": texts}), here / f"rows/{number}.parquet")
    (here / "rows/torn.parquet").write_bytes(b"PAR1")
    for verb in ("predict", "embed"):
        assert bert(f"{verb} m/one rows -o {verb}-plain") == 3
        assert bert(f"{verb} m/one rows -o {verb}-ray --engine ray") == 3
        plain, other = tree(here / f"{verb}-plain"), tree(here / f"{verb}-ray")
        assert plain == other
        assert len([name for name in plain if name.endswith(".done")]) == 3
        assert plain["errors.jsonl"].count(b"\n") == 4
    assert "INFO" not in capfd.readouterr().err
    assert bert("predict m/one rows -o predict-ray --engine ray") == 3
    assert tree(here / "predict-ray") == tree(here / "predict-plain")
    (here / "rows/torn.parquet").unlink()
    assert bert("predict m/one rows -o predict-ray --engine ray") == 3
    assert len(lines("predict-ray/errors.jsonl")) == 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_killed_on_ray(here: Path) -> None:
    """First the one who asked is killed, then one who works; each time another start goes on."""
    psutil = pytest.importorskip("psutil", reason="comes with Ray")
    pytest.importorskip("ray", reason="Ray is not installed")
    (here / "rows").mkdir()
    for number in range(6):
        texts = [text_of(100_000 * number + i) for i in range(20_000)]
        pq.write_table(pa.table({"text": texts}), here / f"rows/{number}.parquet")
    assert bert("predict m/one rows -o plain") == 0
    root = str(Path(__file__).parents[1])
    command = [sys.executable, "-m", "bert", "predict", "m/one", "rows", "-o", "out"]
    environment = {**os.environ, "PYTHONPATH": root, "RAY_NUM_CPUS": "2"}

    def begin(marks: int) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*command, "--engine", "ray"], env=environment, stderr=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + 300
        while len(list((here / "out").glob(".*.done"))) < marks:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return process

    with begin(1) as process:
        process.kill()
    done = times(here / "out")
    with begin(3) as process:
        workers = [
            child
            for child in psutil.Process(process.pid).children(recursive=True)
            if "MapWorker" in " ".join(child.cmdline())
        ]
        assert workers
        workers[0].kill()
        said = process.communicate(timeout=300)[1]
    if process.returncode:  # it may have had nothing left to do
        assert process.returncode == 1
        assert "repeat the command" in said
        assert "Traceback" not in said
    with begin(0) as process:
        said = process.communicate(timeout=300)[1]
    assert process.returncode == 0, said
    assert all(times(here / "out")[name] == written for name, written in done.items())
    plain, other = tree(here / "plain"), tree(here / "out")
    for name in [name for name in plain if name.endswith(".done")]:
        assert json.loads(plain.pop(name)) == json.loads(other.pop(name))
    for name, content in plain.items():
        if name.endswith(".jsonl"):
            assert len(content.splitlines()) == len(other[name].splitlines()) == 20_000
