"""Does pretraining help, and which objective most? From one corpus and one budget to three tasks.

BERT_DATA=DIR python benchmarks/learning.py CORPUS... --out DIR [--minutes 10] [--seeds 5]
                                            [--size tiny] [--vocabulary 8000] [--rows 2000]
                                            [--pretrain KEY=VALUE...]

Every objective pretrains the same size on the same text for the same minutes of one core, with
the settings of --pretrain (those of ``bert demo`` where none are given); what is distilled
spends half of them on its teacher, a model of masked words, and half on itself. ``none`` has
random weights. Then each start is fine-tuned from several seeds on the same rows of SST-2, MRPC
and CoNLL-2003. Runs go side by side, one to a core.
What is there already is not run again. The table has means with 95% intervals over seeds, and
for every pair of start and task the difference to ``none``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from finetune import SETS, files_of

from bert.metrics.intervals import mean_interval
from bert.recipes.demo import PRETRAINING

OBJECTIVES = ("mlm", "mlm+nsp", "mlm+sop", "rtd", "distill")
STARTS = ("none", *OBJECTIVES)
TASKS = ("sst2", "mrpc", "conll2003")
# The demo learns in minutes what takes hours at the defaults of bert pretrain.
DEMO = [f"{key}={PRETRAINING[key]}" for key in PRETRAINING.keys() - {"size", "vocab_size"}]
EPOCHS = {"sst2": 4, "mrpc": 4, "conll2003": 8}


def bert(core: int, *words: object) -> None:
    """A command of bert on one core; what it says is kept only where it fails."""
    command = ["taskset", "-c", str(core), sys.executable, "-m", "bert", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    told = subprocess.run(command, capture_output=True, text=True, env=environment)
    if told.returncode:
        raise SystemExit(f"{' '.join(command)}\n{told.stderr[-2000:]}")


def pretrained(objective: str, core: int, arguments: argparse.Namespace) -> None:
    """The starting model of an objective."""
    run = arguments.out / objective.replace("+", "-")
    if (run / "model").is_dir():
        return
    # The network of ``none`` has taken one step at a rate of nothing.
    whole: list[object] = ["--minutes", arguments.minutes]
    settings: list[str] = [f"sequence_length={arguments.length}", *arguments.pretrain]
    common = [*arguments.corpus, "--tokenizer", arguments.out / "tokenizer", "--overwrite"]
    sized = [*common, "--size", arguments.size, *settings]
    if objective == "none":
        slow = [word for word in sized if not str(word).startswith("learning_rate=")]
        bert(core, "pretrain", *slow, "--steps", 1, "--out", run, "learning_rate=1e-12")
        return
    if objective == "distill":
        teacher = arguments.out / "teacher"
        half = ["--minutes", arguments.minutes / 2]
        if not (teacher / "model").is_dir():
            bert(core, "pretrain", *sized, *half, "--out", teacher, "objective=mlm")
        chosen = ["objective=distill", f"teacher={teacher}"]
        # The student is made of its teacher, dropout and all.
        kept = [word for word in settings if not word.startswith("dropout_rate=")]
        bert(core, "pretrain", *common, *kept, *half, "--out", run, *chosen)
        return
    bert(core, "pretrain", *sized, *whole, "--out", run, f"objective={objective}")


def tuned(start: str, task: str, seed: int, core: int, arguments: argparse.Namespace) -> float:
    """The score of a fine-tuned model, in points."""
    run = arguments.out / f"{start.replace('+', '-')}-{task}-{seed}"
    if not (run / "metrics.json").is_file():
        train, dev = files_of(task, arguments.rows, arguments.out)
        model = arguments.out / start.replace("+", "-") / "model"
        bert(
            core, "finetune", train, "--dev", dev, "--model", model, "--task", SETS[task][0],
            "--out", run, "--overwrite", f"seed={seed}", f"epochs={EPOCHS[task]}", "evaluations=1",
            "max_length=128",
        )  # fmt: skip
    figures = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    metric = {"conll2003": ("micro", "f1")}.get(task, ("accuracy",))
    for step in metric:
        figures = figures[step]
    return 100 * float(figures["value"])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("corpus", nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--vocabulary", type=int, default=8000)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--pretrain", nargs="+", default=DEMO)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    cores: SimpleQueue[int] = SimpleQueue()
    for core in sorted(os.sched_getaffinity(0)):
        cores.put(core)
    if not (arguments.out / "tokenizer").is_dir():
        words = [*arguments.corpus, "--out", arguments.out / "tokenizer"]
        bert(0, "tokenizer", *words, "--vocab-size", arguments.vocabulary)
    for task in TASKS:
        files_of(task, arguments.rows, arguments.out)

    def pretrain(objective: str) -> None:
        core = cores.get()
        try:
            pretrained(objective, core, arguments)
        finally:
            cores.put(core)

    def tune(job: tuple[str, str, int]) -> float:
        core = cores.get()
        try:
            return tuned(*job, core, arguments)
        finally:
            cores.put(core)

    pretrain("none")  # which encodes the corpus for all
    jobs = [(s, t, n) for t in TASKS for n in range(1, arguments.seeds + 1) for s in STARTS]
    with ThreadPoolExecutor(cores.qsize()) as pool:
        list(pool.map(pretrain, OBJECTIVES))
        scores = dict(zip(jobs, pool.map(tune, jobs), strict=True))
    print(
        f"{arguments.size}, {arguments.minutes:g} minutes of one core, {arguments.rows} rows, "
        + " ".join(arguments.pretrain)
    )
    for task in TASKS:
        columns = {s: [scores[s, task, n] for n in range(1, arguments.seeds + 1)] for s in STARTS}
        for start, column in columns.items():
            gain = [own - bare for own, bare in zip(column, columns["none"], strict=True)]
            told = f"{task:>10} {start:>8}: {shown(column)}"
            print(told if start == "none" else f"{told}, above none by {shown(gain)}")


def shown(values: Sequence[float]) -> str:
    """A mean with its interval over seeds."""
    mean = mean_interval(values)
    return f"{mean['value']:.1f} [{mean['low']:.1f}, {mean['high']:.1f}]"


if __name__ == "__main__":
    main()
