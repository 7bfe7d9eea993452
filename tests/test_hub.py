"""Models of the hub, fetched from a small hub on the loopback, with everything that goes wrong.

The hub's settings are read when a process starts, so each case is a process of its own; most
of them call ``find_model`` alone, which imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from bert.errors import ModelError
from bert.hub import _FILES, find_model
from bert.text.tokenizer import Tokenizer

COMMIT, OLD = "c0ffee" + "0" * 34, "01d" + "0" * 37
ID = "maker/tiny"
CONFIG = b'{"model_type": "bert"}'
WEIGHTS = bytes(range(256)) * 800  # what lies in them is not looked at by find_model
FIND = (
    "import sys\n"
    "from bert.errors import BertError\n"
    "from bert.hub import find_model\n"
    "try:\n"
    "    print(find_model(sys.argv[1], pickles='pickles' in sys.argv))\n"
    "except BertError as error:\n"
    "    print(error, file=sys.stderr)\n"
    "    sys.exit(error.exit_code)\n"
)


@dataclass
class Hub:
    """What the server has, what it does wrong, and what it was asked.

    Args:
        commits: commit -> name -> content.
        sizes: sizes in the listing that are not those of the contents.
        faults: what goes wrong at the next requests for a file, ``api`` or ``storage``.
        token: what a reader must send, or None where everyone may read.
        commit: what ``main`` points to.
    """

    commits: dict[str, dict[str, bytes]]
    sizes: dict[str, int] = field(default_factory=dict)
    faults: dict[str, list[str]] = field(default_factory=dict)
    token: str | None = None
    commit: str = COMMIT
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    url: str = ""
    storage: str = ""

    def fault(self, name: str) -> str:
        waiting = self.faults.get(name)
        return waiting.pop(0) if waiting else ""

    def fetched(self) -> list[str]:
        """Names of the files that were asked for, each once."""
        paths = {unquote(path) for _, path, _ in self.asked if "/resolve/" in path}
        return sorted(path.split("/resolve/")[1].partition("/")[2] for path in paths)


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def send(
        self, status: int, content: bytes = b"", length: int | None = None, **headers: str
    ) -> None:
        """An answer; with a ``length`` beyond the content the connection closes too early."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)
            self.close_connection = length is not None

    def send_json(self, value: object) -> None:
        self.send(200, json.dumps(value).encode(), Content_Type="application/json")

    def answer(self) -> None:
        hub, path = self.hub, urlsplit(self.path).path
        hub.asked.append((self.command, path, sent(self.headers)))
        if path.startswith("/api/models/"):
            self.answer_api(path)
        elif "/resolve/" in path:
            self.answer_file(path)
        else:
            self.send(404)

    def answer_api(self, path: str) -> None:
        hub = self.hub
        fault = hub.fault("api")
        parts = path.split("/")
        name, rest = "/".join(parts[3:5]), parts[5:]
        revision = unquote(rest[1]) if rest else "main"
        commit = {"main": hub.commit, "branch/old": OLD}.get(revision, revision)
        if fault == "html":
            self.send(200, b"<html>Please log in</html>", Content_Type="text/html")
        elif fault:
            self.send(int(fault))
        elif name != ID:
            self.send(401, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
        elif rest[:1] == ["tree"]:
            self.send_json([self.entry(*item) for item in hub.commits[commit].items()])
        elif commit not in (*hub.commits, hub.commit):
            self.send(404, X_Error_Code="RevisionNotFound", X_Error_Message="Invalid rev id")
        else:
            self.send_json({"id": ID, "sha": commit, "siblings": []})

    def entry(self, name: str, content: bytes) -> dict[str, object]:
        size = self.hub.sizes.get(name, len(content))
        found: dict[str, object] = {"type": "file", "path": name, "size": size, "oid": "0" * 40}
        if is_large(name):
            digest = hashlib.sha256(content).hexdigest()
            found["lfs"] = {"oid": digest, "size": size, "pointerSize": 134}
        return found

    def answer_file(self, path: str) -> None:
        hub = self.hub
        commit, _, name = unquote(path.split("/resolve/")[1]).partition("/")
        content = hub.commits.get(commit, {}).get(name)
        fault = hub.fault(name)
        if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
            self.send(403, X_Error_Code="GatedRepo", X_Error_Message="Access is restricted")
        elif content is None or fault == "gone":
            self.send(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        elif fault == "html":
            self.send(200, b"<html>Please log in</html>", Content_Type="text/html")
        elif fault.isdecimal():
            self.send(int(fault))
        elif is_large(name):
            digest = hashlib.sha256(content).hexdigest()
            self.send(
                302,
                Location=f"{hub.storage}/blobs/{name}",
                X_Repo_Commit=commit,
                X_Linked_Size=str(len(content)),
                X_Linked_ETag=f'"{digest}"',
            )
        else:
            digest = hashlib.sha1(content).hexdigest()
            self.send(200, content, ETag=f'"{digest}"', X_Repo_Commit=commit)


class Storage(Answer):
    """The other place, to which the hub sends for large files."""

    def answer(self) -> None:
        hub, name = self.hub, self.path.removeprefix("/blobs/")
        hub.asked.append((self.command, self.path, sent(self.headers)))
        content = hub.commits[COMMIT][name]
        fault = hub.fault("storage")
        wanted = self.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        rest = content[start:]
        headers = {"Content_Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        if fault == "cut":
            self.send(200, rest[: len(rest) // 3], length=len(rest))
        elif fault == "short":
            self.send(200, rest[: len(rest) // 3])
        else:
            self.send(206 if wanted else 200, rest, **(headers if wanted else {}))


def sent(headers: Message) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".bin"))


def serve(handler: type[Answer], hub: Hub) -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type(handler.__name__, (handler,), {"hub": hub}))
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return server


@pytest.fixture
def hub() -> Iterator[Hub]:
    files = {
        "config.json": CONFIG,
        "model.safetensors": WEIGHTS,
        "vocab.txt": b"[PAD]\n[UNK]\n",
        "pytorch_model.bin": b"a pickle",
        "README.md": b"# tiny",
        "onnx/model.safetensors": b"elsewhere",
    }
    hub = Hub({COMMIT: files, OLD: {**files, "config.json": b'{"model_type": "old"}'}})
    servers = [serve(Answer, hub), serve(Storage, hub)]
    hub.url, hub.storage = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    yield hub
    for server in servers:
        server.shutdown()
        server.server_close()


def run(hub: Hub, home: Path, *command: str, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
        **settings,
    }
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=environment, timeout=60
    )


def find(hub: Hub, home: Path, *words: str, **settings: str) -> Path:
    """The directory that another process finds for these words."""
    result = run(hub, home, "-c", FIND, *(words or (ID,)), **settings)
    assert result.returncode == 0, result.stderr
    return Path(result.stdout.strip())


def refused(hub: Hub, home: Path, *words: str, **settings: str) -> str:
    """The message with which another process fails: what, where and fix, a line each."""
    result = run(hub, home, "-c", FIND, *(words or (ID,)), **settings)
    assert result.returncode == 4, result.stderr
    assert "Traceback" not in result.stderr
    lines = result.stderr.splitlines()[-3:]
    assert lines[1].startswith("  where: ")
    assert lines[2].startswith("  fix:   ")
    return "\n".join(lines)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_only_what_reading_needs(hub: Hub, tmp_path: Path) -> None:
    directory = find(hub, tmp_path)
    needed = ["config.json", "model.safetensors", "vocab.txt"]
    assert hub.fetched() == needed
    # The hub learns what is wanted, and of this machine the versions of Python and its client.
    assert all("/maker/tiny" in path or "/blobs/" in path for _, path, _ in hub.asked)
    agents = {headers["user-agent"] for _, _, headers in hub.asked}
    assert not any("torch" in agent for agent in agents)
    assert contents(directory) == {name: hub.commits[COMMIT][name] for name in needed}
    assert directory.is_relative_to(tmp_path / "hub")
    hub.asked.clear()
    assert find(hub, tmp_path) == directory
    # Whether main has moved is asked once; nothing is fetched again.
    assert [path for _, path, _ in hub.asked] == [f"/api/models/{ID}"]


def test_the_files_are_as_told() -> None:
    page = Path(__file__).parents[1] / "docs" / "models.md"
    (told,) = (
        line for line in page.read_text("utf-8").splitlines() if line.startswith("Only what")
    )
    assert set(re.findall(r"`([\w./]+)`", told)) == _FILES | {"model.safetensors"}


def test_shards(hub: Hub, tmp_path: Path) -> None:
    files = hub.commits[COMMIT]
    del files["model.safetensors"]
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    files |= {name: name.encode() for name in names}
    files["model.safetensors.index.json"] = b"{}"
    find(hub, tmp_path)
    assert hub.fetched() == [
        "config.json",
        *names,
        "model.safetensors.index.json",
        "vocab.txt",
    ]


def test_revisions(hub: Hub, tmp_path: Path) -> None:
    old = find(hub, tmp_path, f"{ID}@branch/old")
    assert old.name == OLD
    assert b"old" in (old / "config.json").read_bytes()
    assert find(hub, tmp_path).name == COMMIT
    # A commit cannot change, so the hub is not asked.
    hub.asked.clear()
    assert find(hub, tmp_path, f"{ID}@{OLD}") == old
    assert hub.asked == []
    said = refused(hub, tmp_path, f"{ID}@v9")
    assert "not this revision" in said
    assert f"{hub.url}/{ID}/commits/main" in said


def test_offline(hub: Hub, tmp_path: Path) -> None:
    cache = tmp_path / "elsewhere"
    said = refused(hub, tmp_path, HF_HUB_OFFLINE="1", HF_HUB_CACHE=str(cache))
    assert "HF_HUB_OFFLINE is set" in said
    assert str(cache) in said
    assert hub.asked == []
    directory = find(hub, tmp_path, HF_HUB_CACHE=str(cache))
    assert directory.is_relative_to(cache)
    hub.asked.clear()
    again = run(hub, tmp_path, "-c", FIND, ID, HF_HUB_OFFLINE="1", HF_HUB_CACHE=str(cache))
    assert again.stdout.strip() == str(directory)
    assert again.stderr == ""
    assert hub.asked == []
    (directory / "vocab.txt").unlink()
    said = refused(hub, tmp_path, HF_HUB_OFFLINE="1", HF_HUB_CACHE=str(cache))
    assert "no whole copy" in said


def test_no_network(hub: Hub, tmp_path: Path) -> None:
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    said = refused(hub, tmp_path, **nowhere)
    assert "http://127.0.0.1:9 cannot be reached" in said
    directory = find(hub, tmp_path)
    cached = run(hub, tmp_path, "-c", FIND, ID, **nowhere)
    assert cached.stdout.strip() == str(directory)
    (line,) = cached.stderr.splitlines()
    assert "Could not reach the Hub" in line


def test_a_download_cut_in_the_middle_is_resumed(hub: Hub, tmp_path: Path) -> None:
    whole = random.Random(1).randbytes(36 * 2**20)  # what arrives is kept in pieces of 10 MiB
    hub.commits[COMMIT]["model.safetensors"] = whole
    hub.faults["storage"] = ["cut"]
    directory = find(hub, tmp_path)
    ranges = [headers.get("range") for _, path, headers in hub.asked if "/blobs/" in path]
    assert ranges == [None, f"bytes={10 * 2**20}-"]
    assert (directory / "model.safetensors").read_bytes() == whole


@pytest.mark.parametrize(
    ("fault", "file"),
    [("short", "model.safetensors"), ("listing", "model.safetensors"), ("listing", "vocab.txt")],
)
def test_a_truncated_file_is_never_used(hub: Hub, tmp_path: Path, fault: str, file: str) -> None:
    whole = hub.commits[COMMIT][file]
    if fault == "short":  # the storage has less than the hub says
        hub.faults["storage"] = ["short"]
    else:  # the hub has less than it lists
        hub.sizes[file] = len(whole)
        hub.commits[COMMIT][file] = whole[:-1]
    said = refused(hub, tmp_path)
    assert ("shorter or longer" if fault == "short" else f"{file} in the cache") in said
    # Mended, the same command fetches it again.
    hub.commits[COMMIT][file] = whole
    assert (find(hub, tmp_path) / file).read_bytes() == whole


def test_a_file_damaged_in_the_cache(hub: Hub, tmp_path: Path) -> None:
    path = find(hub, tmp_path) / "model.safetensors"
    path.write_bytes(WEIGHTS[:1000])  # through the link, into the blob
    said = refused(hub, tmp_path, HF_HUB_OFFLINE="1")
    assert f"{len(WEIGHTS):,} bytes" in said
    assert "repeat without HF_HUB_OFFLINE" in said
    assert find(hub, tmp_path) == path.parent
    assert path.read_bytes() == WEIGHTS


def test_an_error_that_passes(hub: Hub, tmp_path: Path) -> None:
    hub.faults["config.json"] = ["503"]
    assert find(hub, tmp_path).name == COMMIT


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        ({"api": ["500"]}, "answers with error 500"),
        ({"api": ["429"] * 9}, "fewer requests"),
        ({"api": ["403"]}, "does not let you read it"),
        ({"api": ["html"]}, "does not answer as a hub does"),
        ({"api": ["", "html"]}, "does not answer as a hub does"),
        ({"config.json": ["html"]}, "does not answer as a hub does"),
        ({"vocab.txt": ["gone"]}, "lists a file of it that it does not have"),
    ],
)
def test_errors_of_the_hub(
    hub: Hub, tmp_path: Path, faults: dict[str, list[str]], words: str
) -> None:
    hub.faults = faults
    assert words in refused(hub, tmp_path)


def test_a_gated_model_and_the_token(hub: Hub, tmp_path: Path) -> None:
    hub.token = "hf_secret"
    said = refused(hub, tmp_path)
    assert f"agree on {hub.url}/{ID}, then set HF_TOKEN" in said
    assert find(hub, tmp_path, HF_TOKEN=hub.token).name == COMMIT
    # The token is the hub's alone: the storage, another server, never sees it.
    seen = [headers for _, path, headers in hub.asked if "/blobs/" in path]
    assert seen
    assert not any("authorization" in headers for headers in seen)


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        (["config.json"], "has no config.json"),
        (["model.safetensors", "pytorch_model.bin"], "has no model.safetensors"),
    ],
)
def test_a_model_without(hub: Hub, tmp_path: Path, lost: list[str], words: str) -> None:
    for name in lost:
        del hub.commits[COMMIT][name]
    assert words in refused(hub, tmp_path)
    assert "model.safetensors" not in hub.fetched()


def test_a_model_of_pickles(hub: Hub, tmp_path: Path) -> None:
    del hub.commits[COMMIT]["model.safetensors"]
    said = refused(hub, tmp_path, f"{ID}@main")
    assert f"fix:   bert convert {ID}@main tiny" in said
    assert "pytorch_model.bin" not in hub.fetched()
    directory = find(hub, tmp_path, ID, "pickles")
    assert sorted(contents(directory)) == ["config.json", "pytorch_model.bin", "vocab.txt"]


def test_pickles_are_left_where_there_are_safetensors(hub: Hub, tmp_path: Path) -> None:
    assert "pytorch_model.bin" not in contents(find(hub, tmp_path, ID, "pickles"))


def test_no_room(hub: Hub, tmp_path: Path) -> None:
    hub.sizes["model.safetensors"] = 10**16
    said = refused(hub, tmp_path)
    assert "10,000,000.0 GB" in said
    assert "model.safetensors" not in hub.fetched()


def test_a_commit_that_is_a_path(hub: Hub, tmp_path: Path) -> None:
    hub.commit = "../../../../outside"
    home = tmp_path / "a" / "home"
    assert "does not answer as a hub does" in refused(hub, home)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert [path.name for path in home.parent.iterdir()] == ["home"]


def test_the_cache_is_a_file(hub: Hub, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.write_text("not a directory")
    said = refused(hub, home)
    assert "cannot be written" in said
    assert "HF_HOME" in said


@pytest.mark.parametrize(
    "name",
    [
        "../maker/tiny",
        "maker/../tiny",
        "/maker/tiny",
        "maker//tiny",
        "maker/tiny/more",
        "maker/tiny@",
        "maker/tiny@../../x",
        "maker/tiny@a/../b",
        "maker/tiny@-v",
        "maker/tiny?x",
        "maker/tiny\n",
        "maker\\tiny",
        ".hidden",
        "-v",
        "a--b/c",
        "a" * 200,
        "模型/小",
        "C:\\models\\tiny",
    ],
)
def test_names_that_are_no_hub_ids(name: str) -> None:
    with pytest.raises(ModelError) as caught:
        find_model(name)
    assert caught.value.exit_code == 4
    assert caught.value.fix is not None
    assert "google-bert/bert-base-uncased" in caught.value.fix


def test_the_command(hub: Hub, tmp_path: Path, tokenizer: Tokenizer) -> None:
    """``bert info`` on a model as ``transformers`` uploads it; then without the network."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=64,
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path / "model")
    tokenizer.save(tmp_path / "model")
    hub.commits[COMMIT] = contents(tmp_path / "model")
    command = ("-m", "bert", "info", f"{ID}@main", "--json")
    result = run(hub, tmp_path, *command)
    assert result.returncode == 0, result.stderr
    assert f"Downloading {ID}@main" in result.stderr
    facts = json.loads(result.stdout)
    assert (facts["family"], facts["head"]) == ("bert", "sequence")
    again = run(hub, tmp_path, *command, HF_HUB_OFFLINE="1")
    assert (again.stdout, again.stderr) == (result.stdout, "")
    wrong = run(hub, tmp_path, "-m", "bert", "info", f"{ID}@v9")
    assert wrong.returncode == 4
    assert wrong.stdout == ""
    assert len(wrong.stderr.splitlines()) == 3
