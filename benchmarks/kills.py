"""Kill runs of ``bert pretrain`` again and again: each must end as if nothing had been.

    OMP_NUM_THREADS=1 python benchmarks/kills.py [--kills 100] [--seed 1]

Tiny runs over {accumulation 1, 4} x {1, 2 ranks over gloo} x {mlm+nsp, rtd} that save after
every step and start with an empty cache. Printed, and an exit code of 1 where any fails:

- kills: SIGKILL at random moments, half of them inside saving (those that fall beside it are
  repeated), of all ranks or of one; then ``--resume``, which may be killed too. Weights, loss
  curve and figures must be bit for bit those of a run that was never stopped.
- resuming: seconds from looking for the checkpoint to the end of the first step; below 2.
- operations: a run is killed at the very moment of each operation on files in its folder
  (some of them, drawn: ``--operations``), where it begins a file with a part of it.
- signals: SIGTERM in each phase; every rank ends by itself with 143 or 0, and what is resumed
  is what it would have been.
- torchrun: one rank of real ``torchrun`` processes is killed.
- worlds: a run of 2 ranks, killed, goes on with 1 and then with 4; the same samples in each
  step, and losses within 1e-4 (without dropout, which depends on the rank). And 4 ranks, whose
  gradients add up to other bits in another order, are killed as above.

Ranks are real processes, forked from this one, which has imported everything and computed
nothing, so that a run takes a second or two instead of ten. A rank tells of the phases that it
enters through a pipe; the pipe's end is the end of the rank. Needs Linux or macOS.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import importlib
import json
import os
import platform
import random
import select
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
STEPS = 8
EVALUATIONS = 2
BATCH, LENGTH = 16, 32
LIMIT = 60.0  # seconds in which every run must end
TIMING = ("seconds", "tokens_per_second")
SLOWEST_RESUME = 2.0
TERMINATED = 128 + signal.SIGTERM

ELSEWHERE = "elsewhere"
# What a run imports on its way.
PRELOADED = (
    "bert.cli", "bert.families.bert", "bert.families.electra", "matplotlib.figure",
    "matplotlib.backends.backend_agg", "safetensors.torch", "tokenizers", "torch.distributed.fsdp",
)  # fmt: skip
_RECIPE = "bert.recipes.pretrain"
# Phase -> the function in whose first moments it is.
PHASES = {
    "tokenizer": (_RECIPE, "corpus_tokenizer"),
    "corpus": (_RECIPE, "build_shards"),
    "opening": (_RECIPE, "open_run"),
    "loading": (_RECIPE, "latest_checkpoint"),
    "probe": (_RECIPE, "fitting_tokens"),
    "step": ("bert.training.loop", "schedule"),
    "evaluating": (_RECIPE, "_evaluate"),
    "saving": ("bert.training.state", "_write"),
    "model": (_RECIPE, "write_model"),
    "report": (_RECIPE, "pretraining_report"),
    "leaving": ("torch.distributed", "destroy_process_group"),
}
# When it is sent SIGTERM: a phase, and how often it is entered before.
TERMINATIONS = {
    "tokenizer": 0, "corpus": 0, "opening": 0, "probe": 0, "step": 3, "evaluating": 0,
    "saving": 2, "final evaluating": EVALUATIONS, "model": 0, "report": 0, "leaving": 0,
}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """One cell of the matrix."""

    accumulation: int
    ranks: int
    objective: str

    def __str__(self) -> str:
        return f"accumulation {self.accumulation}, {self.ranks} ranks, {self.objective}"

    def arguments(self, corpus: Path, out: Path) -> list[str]:
        micro_batch_tokens = BATCH * LENGTH // self.ranks // self.accumulation
        return [
            "pretrain", str(corpus), "--out", str(out), "--size", "tiny", "--steps", str(STEPS),
            f"objective={self.objective}", "vocab_size=80", f"sequence_length={LENGTH}",
            f"batch_size={BATCH}", f"micro_batch_tokens={micro_batch_tokens}", "log_every=1",
            f"evaluations={EVALUATIONS}", "held_out_samples=64", "precision=fp32",
            "checkpoint_minutes=1e-6",
        ]  # fmt: skip


_ACCUMULATION, _RANKS, _OBJECTIVES = (1, 4), (1, 2), ("mlm+nsp", "rtd")
# The first four hold every pair of values.
KINDS = [
    Kind(_ACCUMULATION[i], _RANKS[k], _OBJECTIVES[i ^ k ^ turned])
    for turned, i, k in product((0, 1), repeat=3)
]
# By ranks: what is sent SIGTERM.
STOPPED = {1: KINDS[0], 2: KINDS[1]}
MORE = Kind(1, 4, "mlm+nsp")


def write_corpus(path: Path) -> Path:
    """60 documents of 5 to 20 sentences, the same every time."""
    draw = random.Random(1)
    words = ["".join(draw.choices("abdeiklmnorst", k=draw.randint(2, 7))) for _ in range(25)]
    documents = (
        "\n".join(
            " ".join(draw.choices(words, k=draw.randint(4, 10))) + "."
            for _ in range(draw.randint(5, 20))
        )
        for _ in range(60)
    )
    path.write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    return path


# In the rank.


def tell_phases(pipe: int) -> None:
    """Write a line with the time into a pipe wherever a phase begins or ends."""

    def tell(*words: object) -> None:
        line = " ".join(map(str, (time.monotonic(), *words)))
        with suppress(BrokenPipeError):
            os.write(pipe, f"{line}\n".encode())

    def telling(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def told(*args: Any, **more: Any) -> Any:
            tell(name)
            try:
                return function(*args, **more)
            finally:
                tell("/" + name)

        return told

    for phase, (module, name) in PHASES.items():
        place = importlib.import_module(module)
        setattr(place, name, telling(phase, getattr(place, name)))

    from bert import log

    write = log.MetricsFile.write

    def written(self: log.MetricsFile, **values: Any) -> None:
        write(self, **values)
        if "gradient_norm" in values:
            tell("stepped", values["step"])

    log.MetricsFile.write = written  # type: ignore[method-assign]
    recipe: Any = importlib.import_module(_RECIPE)
    train = recipe.train

    def trained(module: Any, objective: Any, steps: Any, *args: Any, **more: Any) -> None:
        def drawn(step: int) -> Any:
            batches = steps(step)
            tell("samples", step, *(n for batch in batches for n in batch.samples.tolist()))
            return batches

        train(module, objective, drawn, *args, **more)

    recipe.train = trained


OPERATIONS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")


def die_at(number: int, folder: str, pipe: int) -> None:
    """Count operations on files of a folder, and be killed at the one of this number."""
    count = 0

    def operation(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event not in OPERATIONS:
            return
        path, mode = str(arguments[0]), str(arguments[1]) if event == "open" else "w"
        below = event in ("os.remove", "os.rmdir") and arguments[1] != -1  # of rmtree
        if not set(mode) & set("wxa") or not (path.startswith(folder) or below):
            return
        count += 1
        os.write(pipe, f"{time.monotonic()} operation {event}\n".encode())
        if count == number:
            if event == "open" and mode != "x":
                with open(path, mode[0] + "b") as file:  # noqa: PTH123
                    file.write(b'{"st')
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(operation)


# In the parent.


@dataclass
class Rank:
    """A process that was started, and what it told: (seconds, words)."""

    pid: int
    pipe: int
    told: list[tuple[float, list[str]]] = field(default_factory=list)
    code: int | None = None
    rest: bytes = b""

    def read(self) -> None:
        """Take what lies in the pipe; at its end the process is over."""
        block = os.read(self.pipe, 65536)
        if not block:
            os.close(self.pipe)
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            return
        *lines, self.rest = (self.rest + block).split(b"\n")
        for line in lines:
            seconds, *words = line.decode().split()
            self.told.append((float(seconds), words))

    def send(self, number: int) -> None:
        if self.code is None:  # a process that nobody has waited for keeps its number
            os.kill(self.pid, number)

    def when(self, *words: str) -> list[float]:
        """The moments at which it told this."""
        return [seconds for seconds, line in self.told if line[: len(words)] == list(words)]


class Ranks:
    """The processes of one sitting of a run."""

    def __init__(self, arguments: Sequence[str], size: int, folder: Path, fatal: int) -> None:
        self.began = time.monotonic()
        self.resumes = "--resume" in arguments
        self.log = folder / "log.txt"
        sys.stdout.flush()
        port = str(free_port())
        more = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        more["BERT_CACHE"] = str(folder / "cache")
        self.all: list[Rank] = []
        for rank in range(size):
            read, write = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.environ.update(more, RANK=str(rank), LOCAL_RANK=str(rank))
                if fatal >= 0:
                    die_at(fatal, str(folder / "run"), write)
                self._become(arguments, write)
            os.close(write)
            self.all.append(Rank(pid, read))

    def _become(self, arguments: Sequence[str], pipe: int) -> None:
        """Be ``bert`` with these arguments, to the last line of the interpreter."""
        handle = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        faulthandler.enable(2)
        sys.argv = ["bert", *arguments]
        tell_phases(pipe)
        from bert.cli import main

        main(list(arguments))

    @property
    def over(self) -> bool:
        return all(rank.code is not None for rank in self.all)

    def listen(self, until: float) -> None:
        """Hear what the ranks tell next, or nothing until that time."""
        pipes = {rank.pipe: rank for rank in self.all if rank.code is None}
        for pipe in select.select(list(pipes), [], [], max(until - time.monotonic(), 0))[0]:
            pipes[pipe].read()

    def wait_for(self, phase: str, number: int) -> bool:
        """Until rank 0 has entered a phase once more than so often; False where it ends before."""
        limit = self.began + LIMIT
        while len(self.all[0].when(phase)) <= number:
            if self.over or time.monotonic() > limit:
                return False
            self.listen(limit)
        return True

    def pause(self, seconds: float) -> None:
        """Listen for so long."""
        until = time.monotonic() + seconds
        while not self.over and time.monotonic() < until:
            self.listen(until)

    def end(self, patience: float = LIMIT) -> list[int]:
        """The exit codes; when one rank fails, the others are ended as torchrun does it.

        Raises:
            Failure: it has not ended in time.
        """
        limit = time.monotonic() + patience
        while not self.over:
            self.listen(limit if not self._failed() else time.monotonic() + 0.1)
            if self._failed() and not self.over:
                for rank in self.all:
                    rank.send(signal.SIGTERM)
                while not self.over and time.monotonic() < limit:
                    self.listen(limit)
            if not self.over and time.monotonic() >= limit:
                for rank in self.all:
                    rank.send(signal.SIGABRT)  # which writes down where it stood
                while not self.over:
                    self.listen(time.monotonic() + LIMIT)
                raise Failure(f"hung for {patience:.0f} s\n{self.output()}")
        return [rank.code for rank in self.all if rank.code is not None]

    def _failed(self) -> bool:
        return any(rank.code for rank in self.all)

    def output(self) -> str:
        """The last lines that it printed."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(f"    {line}" for line in lines[-30:])


class Failure(Exception):
    """What must hold does not."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rows(out: Path) -> list[dict[str, Any]]:
    """The loss curve, without what the clock says."""
    text = (out / "metrics.jsonl").read_text(encoding="utf-8")
    return [
        {key: value for key, value in json.loads(line).items() if key not in TIMING}
        for line in text.splitlines()
    ]


def results(out: Path) -> dict[str, Any]:
    """All that must be the same: weights, curve and figures."""
    weights = {
        path.parent.name: path.read_bytes() for path in sorted(out.glob("[!.]*/model.safetensors"))
    }
    figures = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    return {"weights": weights, "curve": rows(out), "figures": {**figures, "seconds": 0}}


def check(out: Path, wanted: dict[str, Any]) -> None:
    """Raise a Failure where a finished run is not what it would have been."""
    found = results(out)
    for name, value in wanted.items():
        if found[name] != value:
            told = "" if name == "weights" else f"\n    {found[name]}\n    {value}"
            raise Failure(f"other {name} than the run that was never stopped{told}")
    newest = sorted(path.name for path in (out / "checkpoints").glob("step-*"))[-2:]
    if newest != [f"step-{STEPS - 1:08d}", f"step-{STEPS:08d}"]:
        raise Failure(f"the newest checkpoints are {newest}")
    if unfinished := [*out.glob(".*"), *out.glob("*.partial"), *out.glob("checkpoints/.*")]:
        raise Failure(f"left behind: {unfinished}")


def begin(
    kind: Kind, corpus: Path, folder: Path, ranks: int = 0, *more: str, fatal: int = -1
) -> Ranks:
    """Start the run of a folder, or go on with it, as its messages say.

    ``fatal``: the number of the operation on files at which it is killed, 0 to count them.
    """
    out = folder / "run"
    resume = ["--resume"] if (out / "config.yaml").exists() else []
    arguments = [*kind.arguments(corpus, out), *more, *resume]
    return Ranks(arguments, ranks or kind.ranks, folder, fatal)


def finish(process: Ranks) -> Ranks:
    """Wait for a run that nobody stops."""
    codes = process.end()
    if any(codes):
        raise Failure(f"ended with {codes}\n{process.output()}")
    return process


def inside_saving(out: Path) -> str:
    """How far a save had come when it was cut, or nothing where none was."""
    folder = out / "checkpoints"
    if not folder.is_dir():
        return ""
    for stage in folder.glob(".step-*"):
        names = {path.name for path in stage.iterdir()}
        if "manifest.json" in names:
            return "manifest there"
        return "weights there" if "state.json" in names else "before or in the weights"
    found = sorted(folder.glob("step-*"))
    whole = [path for path in found if len(list(path.iterdir())) == 3]
    return "removing the oldest" if len(found) > 2 or len(whole) < len(found) else ""


@dataclass(frozen=True)
class Whole:
    """A run that was never stopped: what it left, and the seconds of all of it and of a save."""

    left: dict[str, Any]
    seconds: float
    save: float


@dataclass
class Tally:
    """What was seen so far."""

    kills: dict[Kind, list[str]] = field(default_factory=dict)
    one_of_two: int = 0
    resume_seconds: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def resumed(self, process: Ranks) -> None:
        """Note what going on from a checkpoint took."""
        looked, stepped = (process.all[0].when(word) for word in ("loading", "stepped"))
        if process.resumes and looked and stepped:
            self.resume_seconds.append(stepped[0] - looked[0])

    def failed(self, what: str, error: Failure) -> None:
        self.failures.append(what)
        print(f"FAILED  {what}: {error}", flush=True)


def run_whole(kind: Kind, corpus: Path, folder: Path, *more: str) -> Whole:
    """A run without a stop."""
    folder.mkdir()
    process = finish(begin(kind, corpus, folder, 0, *more))
    seconds = time.monotonic() - process.began
    first = process.all[0]
    saves = [b - a for a, b in zip(first.when("saving"), first.when("/saving"), strict=True)]
    return Whole(results(folder / "run"), seconds, statistics.median(saves))


def cut(
    process: Ranks, out: Path, draw: random.Random, aimed: bool, whole: Whole, tally: Tally
) -> str:
    """Kill at a random moment: where it struck, or nothing where the run was over before."""
    if not aimed:
        process.pause(draw.uniform(0, whole.seconds))
    elif process.wait_for("saving", draw.randint(0, 2)):
        process.pause(draw.uniform(0, whole.save))
    victims = [draw.choice(process.all)] if draw.random() < 0.4 else process.all
    struck = [rank for rank in victims if rank.code is None]
    for rank in struck:
        rank.send(signal.SIGKILL)
    codes = process.end()
    tally.resumed(process)
    if {code for code in codes if code < 0} - {-signal.SIGKILL, -signal.SIGTERM}:
        raise Failure(f"a rank whose other was killed ended with {codes}\n{process.output()}")
    if -signal.SIGKILL not in codes:
        if any(codes):
            raise Failure(f"ended with {codes}\n{process.output()}")
        return ""
    tally.one_of_two += len(struck) < len(process.all)
    for path in out.glob("[!.]*/model.safetensors"):
        if path.read_bytes() != whole.left["weights"][path.parent.name]:
            raise Failure(f"{path.parent.name} is there, but not as it must be")
    return inside_saving(out) or ELSEWHERE


def kill_runs(
    kind: Kind,
    aims: Sequence[bool],
    corpus: Path,
    folder: Path,
    draw: random.Random,
    whole: Whole,
    tally: Tally,
) -> None:
    """Kill runs of a kind, each up to four times; an aim at saving that missed is repeated."""
    left = list(aims)
    killed = tally.kills.setdefault(kind, [])
    while left:
        work = Path(tempfile.mkdtemp(dir=folder))
        try:
            for _ in range(draw.randint(1, 4)):
                where = cut(begin(kind, corpus, work), work / "run", draw, left[0], whole, tally)
                if not where:
                    break
                killed.append(where)
                if not left[0] or where != ELSEWHERE:
                    left.pop(0)
                if not left:
                    break
            if where:
                tally.resumed(finish(begin(kind, corpus, work)))
            check(work / "run", whole.left)
            shutil.rmtree(work)
        except Failure as error:
            tally.failed(f"{kind}, after {killed[-3:]}, {work}", error)
            left = left[1:]


def kill_at_operations(
    kind: Kind, corpus: Path, folder: Path, wanted: int, draw: random.Random, tally: Tally
) -> None:
    """Kill a run of one rank at its operations on files, from the start and after a kill."""
    whole = run_whole(kind, corpus, folder / "operations")
    start, middle = folder / "start", folder / "middle"
    start.mkdir()
    middle.mkdir()
    process = begin(kind, corpus, middle)
    process.wait_for("stepped", STEPS - 3)
    process.all[0].send(signal.SIGKILL)
    process.end()
    places: list[tuple[Path, int, str]] = []
    for source in (start, middle):
        work = folder / f"counted-{source.name}"
        shutil.copytree(source, work)
        process = finish(begin(kind, corpus, work, fatal=0))
        told = [words[1] for _, words in process.all[0].told if words[0] == "operation"]
        places += [(source, number, event) for number, event in enumerate(told, start=1)]
    found = len(places)
    for source, number, event in draw.sample(places, min(wanted, found)):
        work = Path(tempfile.mkdtemp(dir=folder)) / "copy"
        shutil.copytree(source, work)
        try:
            codes = begin(kind, corpus, work, fatal=number).end()
            if codes != [-signal.SIGKILL]:
                raise Failure(f"ended with {codes}")
            finish(begin(kind, corpus, work))
            check(work / "run", whole.left)
            shutil.rmtree(work.parent)
        except Failure as error:
            tally.failed(f"operation {number} ({event}) from the {source.name}, {work}", error)
    print(f"killed at operations on files: {min(wanted, found)} of {found}", flush=True)


def terminate(
    phase: str, who: int | None, kind: Kind, corpus: Path, folder: Path, whole: Whole
) -> list[int]:
    """SIGTERM to all ranks or to one once rank 0 has entered a phase; the exit codes."""
    work = Path(tempfile.mkdtemp(dir=folder))
    process = begin(kind, corpus, work)
    name = phase.removeprefix("final ")
    if not process.wait_for(name, TERMINATIONS[phase]):
        raise Failure(f"never came there\n{process.output()}")
    for rank in process.all if who is None else [process.all[who]]:
        rank.send(signal.SIGTERM)
    codes = process.end()
    # Python that is about to end takes signals no more, and dies of them: 143 in a shell.
    codes = [TERMINATED if code == -signal.SIGTERM else code for code in codes]
    # One that was left alone by another says so.
    allowed = [(0, TERMINATED) if who in (None, i) else (0, 1, TERMINATED) for i in (0, 1)]
    if any(code not in good for code, good in zip(codes, allowed, strict=False)):
        raise Failure(f"ended with {codes}\n{process.output()}")
    if "Traceback" in process.output():
        raise Failure(f"a traceback\n{process.output()}")
    if any(codes) or not (work / "run" / "metrics.json").exists():
        finish(begin(kind, corpus, work))
    check(work / "run", whole.left)
    shutil.rmtree(work)
    return codes


def children(pid: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout
    return [int(line) for line in found.split()]


def kill_under_torchrun(
    kind: Kind, corpus: Path, folder: Path, draw: random.Random, whole: Whole
) -> None:
    """Kill one rank of real torchrun, which must end the other and itself; then resume."""
    work = Path(tempfile.mkdtemp(dir=folder))
    out = work / "run"
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        f"--nproc-per-node={kind.ranks}", "-m", "bert", *kind.arguments(corpus, out),
    ]  # fmt: skip
    environment = {**os.environ, "BERT_CACHE": str(work / "cache")}
    step = f"step-{draw.randint(1, STEPS - 4):08d}"
    with (work / "log.txt").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=ROOT)
        limit = time.monotonic() + LIMIT
        while not any(path.name >= step for path in out.glob("checkpoints/step-*")):
            if process.poll() is not None or time.monotonic() > limit:
                process.kill()
                raise Failure(f"no checkpoint\n{(work / 'log.txt').read_text()}")
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.05))
        if ranks := children(process.pid):
            os.kill(draw.choice(ranks), signal.SIGKILL)
        try:
            code = process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            raise Failure("torchrun hung") from None
    if code == 0:
        raise Failure("torchrun says that nothing happened")
    again = subprocess.run(
        [*command, "--resume"], capture_output=True, text=True, env=environment, cwd=ROOT
    )
    if again.returncode:
        raise Failure(f"resuming ended with {again.returncode}\n{again.stderr}")
    check(out, whole.left)
    shutil.rmtree(work)


def samples(process: Ranks) -> dict[int, list[int]]:
    """Which samples each step took, where every rank told."""
    mine: list[dict[int, list[int]]] = []
    for rank in process.all:
        lines = [list(map(int, words[1:])) for _, words in rank.told if words[0] == "samples"]
        mine.append({step: numbers for step, *numbers in lines})
    steps = set.intersection(*map(set, mine))
    return {step: sorted(number for part in mine for number in part[step]) for step in steps}


def change_worlds(objective: str, corpus: Path, folder: Path) -> float:
    """2 ranks, then 1, then 4: the largest difference of a loss from that of one rank."""
    kind, work = Kind(1, 1, objective), folder / f"worlds-{objective}"
    (work / "whole").mkdir(parents=True)
    (work / "moved").mkdir()
    wanted = samples(finish(begin(kind, corpus, work / "whole", 1, "dropout_rate=0")))
    seen = set()
    for ranks, steps in ((2, 3), (1, 2), (4, None)):
        process = begin(kind, corpus, work / "moved", ranks, "dropout_rate=0")
        if steps is None:
            finish(process)
        else:
            process.wait_for("stepped", steps - 1)
            for rank in process.all:
                rank.send(signal.SIGKILL)
            process.end()
        taken = samples(process)
        seen |= set(taken)
        if other := [step for step in taken if taken[step] != wanted[step]]:
            raise Failure(f"{ranks} ranks took other samples in the steps {other}")
    if not set(range(STEPS)) <= seen:
        raise Failure(f"only the steps {sorted(seen)} were seen")
    difference = 0.0
    curves = (rows(work / name / "run") for name in ("whole", "moved"))
    for one, other in zip(*curves, strict=True):
        if one.keys() != other.keys() or one["step"] != other["step"]:
            raise Failure(f"other lines: {one} and {other}")
        losses = [name for name in one if name.endswith("_loss")]
        difference = max([difference, *(abs(one[name] - other[name]) for name in losses)])
    if difference > 1e-4:
        raise Failure(f"a loss differs by {difference:.1e}")
    return difference


def measure(options: argparse.Namespace, folder: Path) -> bool:
    """All of it; whether everything held."""
    draw = random.Random(options.seed)
    tally = Tally()
    corpus = write_corpus(folder / "corpus.txt")
    began = time.monotonic()
    aims: dict[Kind, list[bool]] = {}
    for i in range(options.kills):
        aims.setdefault(KINDS[i % len(KINDS)], []).append((i + i // len(KINDS)) % 2 == 0)
    needed = {*aims, *(STOPPED.values() if options.signals or options.torchrun else ())}
    wholes = {}
    for number, kind in enumerate(sorted(needed, key=KINDS.index)):
        wholes[kind] = run_whole(kind, corpus, folder / f"whole-{number}")
        print(
            f"never stopped  {kind}: {wholes[kind].seconds:.1f} s, "
            f"a save {1000 * wholes[kind].save:.1f} ms",
            flush=True,
        )

    if options.four_ranks:
        aims[MORE] = [i % 2 == 0 for i in range(options.four_ranks)]
        wholes[MORE] = run_whole(MORE, corpus, folder / "whole-more")
    for kind, mine in aims.items():
        kill_runs(kind, mine, corpus, folder, draw, wholes[kind], tally)
        killed = tally.kills[kind]
        inside = sum(where != ELSEWHERE for where in killed)
        print(f"killed  {kind}: {len(killed)} times, {inside} inside saving", flush=True)
    struck = [where for killed in tally.kills.values() for where in killed]
    for where in sorted(set(struck)):
        print(f"    {struck.count(where):3} {where}")
    print(f"kills: {len(struck)}, of one of two ranks {tally.one_of_two}")
    if times := sorted(tally.resume_seconds):
        print(
            f"resuming to the first step: median {statistics.median(times):.2f} s, "
            f"slowest {times[-1]:.2f} s of {len(times)}",
            flush=True,
        )
        if times[-1] >= SLOWEST_RESUME:
            tally.failures.append("resuming is slow")

    if options.operations:
        kill_at_operations(KINDS[0], corpus, folder, options.operations, draw, tally)
    victims: list[tuple[int, int | None]] = [(1, None), (2, None)]
    victims += [] if options.all_only else [(2, 0), (2, 1)]
    for phase, (ranks, who) in product(options.signals, victims):
        if phase == "leaving" and ranks == 1:
            continue
        kind = STOPPED[ranks]
        told = f"SIGTERM  {phase}: {ranks} ranks, {'all' if who is None else f'rank {who}'}"
        try:
            codes = terminate(phase, who, kind, corpus, folder, wholes[kind])
            print(f"{told}: {codes}", flush=True)
        except Failure as error:
            tally.failed(told, error)

    for number in range(options.torchrun):
        kind = STOPPED[2]
        told = f"torchrun  {kind}, one rank killed, number {number + 1}"
        try:
            kill_under_torchrun(kind, corpus, folder, draw, wholes[kind])
            print(told, flush=True)
        except Failure as error:
            tally.failed(told, error)

    for objective in options.worlds:
        try:
            difference = change_worlds(objective, corpus, folder)
            print(f"2, 1 and 4 ranks  {objective}: losses differ by at most {difference:.1e}")
        except Failure as error:
            tally.failed(f"2, 1 and 4 ranks  {objective}", error)
    print(f"{len(tally.failures)} failures, {time.monotonic() - began:.0f} s")
    return not tally.failures


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--four-ranks", type=int, default=2, help="kills of 4 ranks besides")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--operations", type=int, default=40, help="on files, to be killed at")
    parser.add_argument("--signals", nargs="*", choices=TERMINATIONS, default=list(TERMINATIONS))
    parser.add_argument("--all-only", action="store_true", help="SIGTERM to no rank alone")
    parser.add_argument("--torchrun", type=int, default=4, help="ranks of torchrun to kill")
    parser.add_argument("--worlds", nargs="*", default=["mlm+nsp", "rtd"], metavar="OBJECTIVE")
    options = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.path.insert(0, str(ROOT))
    for module in (*PRELOADED, *(module for module, _ in PHASES.values())):
        importlib.import_module(module)
    gc.freeze()  # a rank that ends need not look through all of that
    import torch

    print(f"{platform.platform()}, torch {torch.__version__}, {os.cpu_count()} cores")
    owner = os.getpid()
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    held = False
    try:
        held = measure(options, folder)
    finally:  # a rank that was forked comes through here too
        if os.getpid() == owner and held:
            shutil.rmtree(folder)
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()
