"""The command ``bert``: one verb for each recipe; nothing heavy is imported before it is needed."""

from __future__ import annotations

import difflib
import errno
import os
import re
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer
import typer.main
from typer.core import TyperCommand

from bert.errors import BertError, Interrupted, OutOfMemoryError, UsageError

if TYPE_CHECKING:
    from bert.config import Settings

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no room for what is written

app = typer.Typer(
    name="bert",
    help="Your own BERT from your own text and labels.",
    epilog="Every setting of a command can be given as key=value; --debug shows tracebacks.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Out = Annotated[Path | None, typer.Option(help="Run folder; runs/COMMAND-N without it.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Empty the run folder first.")]
ConfigFile = Annotated[Path | None, typer.Option(help="YAML file with settings.")]
Assignments = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")]
Text = Annotated[list[str] | None, typer.Option(help="Column of texts; twice for pairs.")]
Label = Annotated[str | None, typer.Option(help="Column of labels.")]
TaskOption = Annotated[str | None, typer.Option(help="classification tagging ...")]
ReplaceOut = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first bad row.")]
Precision = Annotated[str, typer.Option(help="fp32 bf16 int8; auto: the fastest measured.")]
Engine = Annotated[Literal["plain", "ray"], typer.Option(help="Several files on a Ray cluster.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Run folder or model directory.")]
CorpusArgument = Annotated[
    list[str], typer.Argument(metavar="CORPUS... [KEY=VALUE]...", help="Files or folders of text.")
]


S = TypeVar("S", bound="Settings")


def _settings(
    kind: type[S], config: Path | None, assignments: list[str] | None, **options: Any
) -> S:
    """Settings from a file, over which go key=value and options."""
    from bert.config import parse_assignments, read_yaml

    values = read_yaml(config) if config else {}
    places = dict.fromkeys(values, str(config))
    assigned = parse_assignments(assignments or [])
    places |= {item.partition("=")[0]: item for item in assignments or []}
    given = {name: value for name, value in options.items() if value is not None}
    for name in assigned.keys() & given.keys():
        raise UsageError(f"{name} is given twice.", where=places[name], fix="give it only once")
    places |= {name: f"--{name.replace('_', '-')}" for name in given}
    return kind.of(values | assigned | given, places)


def _settings_of(command: str) -> type[Settings] | None:
    """The class of a command's settings, for its help and its messages."""
    if command == "tokenizer":
        from bert.recipes.tokenizer import TokenizerSettings

        return TokenizerSettings
    if command == "tokenizer extend":
        from bert.recipes.extend import ExtendSettings

        return ExtendSettings
    if command == "prepare":
        from bert.recipes.prepare import PrepareSettings

        return PrepareSettings
    if command == "pretrain":
        from bert.recipes.pretrain import PretrainSettings

        return PretrainSettings
    if command in ("finetune", "tune", "compare"):
        from bert.recipes.finetune import FinetuneSettings

        return FinetuneSettings
    if command == "compress":
        from bert.recipes.compress import CompressSettings

        return CompressSettings
    return None


class CommandWithSettings(TyperCommand):
    """A command whose help ends with its settings and their defaults."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write those settings for which there is no option."""
        kind = _settings_of(self.name or "")
        assert kind is not None
        own = {parameter.name for parameter in self.params}
        with formatter.section("Settings, as KEY=VALUE, and what they are without"):
            formatter.write_dl(_defaults(kind, own))
        if "task" not in kind.model_fields:
            return
        from bert.tasks.task import load_task, task_names

        for task in task_names():
            if rows := _defaults(load_task(task).Options, own):
                with formatter.section(f"Further settings with --task {task}"):
                    formatter.write_dl(rows)


def _defaults(kind: type[Settings], own: set[Any]) -> list[tuple[str, str]]:
    """The settings for which there is no option, and what they are without being told."""
    return [
        (name, "automatic" if field.default is None else _written(field.default) or "none")
        for name, field in kind.model_fields.items()
        if name not in own and not field.is_required()
    ]


def _written(value: Any) -> str:
    """A value as one writes it after ``key=``."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _corpus_and_assignments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Paths and URLs apart from key=value; a path with "=" in it is one where it exists."""
    corpus = [
        item
        for item in arguments
        if "=" not in item or "://" in item.partition("=")[0] or Path(item).exists()
    ]
    if not all(corpus):  # Path("") would be the current folder
        raise UsageError("The name of a corpus is empty.", fix="is a variable of the shell unset?")
    if not corpus:
        raise UsageError("No corpus is given.", fix="name a file or folder of text")
    return corpus, [item for item in arguments if item not in corpus]


@app.command(cls=CommandWithSettings)
def tokenizer(
    corpus: CorpusArgument,
    out: Annotated[Path, typer.Option(help="Folder for the tokenizer's files.")],
    vocab_size: Annotated[int | None, typer.Option(help="Tokens in the vocabulary.")] = None,
    cased: Annotated[bool, typer.Option("--cased", help="Keep upper case.")] = False,
    text_column: Annotated[str | None, typer.Option(help="Column of text in tables.")] = None,
) -> None:
    """Train a WordPiece tokenizer."""
    from bert.recipes.tokenizer import TokenizerSettings, train_tokenizer

    paths, assignments = _corpus_and_assignments(corpus)
    settings = _settings(
        TokenizerSettings,
        None,
        assignments,
        vocab_size=vocab_size,
        lowercase=False if cased else None,
        text_column=text_column,
    )
    train_tokenizer([Path(path) for path in paths], settings, out)


@app.command(name="tokenizer extend")
def extend_tokenizer(
    model: Annotated[str, typer.Argument(help="Run folder, model directory or hub id.")],
    corpus: CorpusArgument,
    out: Annotated[Path, typer.Option(help="Folder for the larger model.")],
    add: Annotated[int | None, typer.Option(help="Words to add at most.")] = None,
    text_column: Annotated[str | None, typer.Option(help="Column of text in tables.")] = None,
) -> None:
    """Add the words of your domain to a model and its tokenizer."""
    from bert.recipes.extend import ExtendSettings, extend_model

    paths, assignments = _corpus_and_assignments(corpus)
    settings = _settings(ExtendSettings, None, assignments, add=add, text_column=text_column)
    extend_model(model, [Path(path) for path in paths], settings, out)


@app.command(cls=CommandWithSettings)
def prepare(
    corpus: CorpusArgument,
    out: Annotated[Path, typer.Option(help="Folder for the shards.")],
    tokenizer: Annotated[Path | None, typer.Option(help="Folder of a tokenizer.")] = None,
    text_column: Annotated[str | None, typer.Option(help="Column of text in tables.")] = None,
    ray: Annotated[bool, typer.Option("--ray", help="Work on a Ray cluster.")] = False,
) -> None:
    """Clean text, drop duplicates and write tokens ready for pretraining."""
    from bert.recipes.prepare import PrepareSettings
    from bert.recipes.prepare import prepare as run

    paths, assignments = _corpus_and_assignments(corpus)
    settings = _settings(
        PrepareSettings,
        None,
        assignments,
        corpus=paths,
        tokenizer=str(tokenizer) if tokenizer else None,
        text_column=text_column,
    )
    run(settings, out, on_ray=ray)


@app.command(cls=CommandWithSettings)
def pretrain(
    corpus: CorpusArgument,
    size: Annotated[str | None, typer.Option(help="tiny mini small medium base large ...")] = None,
    minutes: Annotated[float | None, typer.Option(help="Train this long.")] = None,
    steps: Annotated[int | None, typer.Option(help="Or this many steps.")] = None,
    start: Annotated[
        str | None, typer.Option("--from", help="Go on from a run folder, model or hub id.")
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Folder of a tokenizer.")] = None,
    out: Out = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    config: ConfigFile = None,
) -> None:
    """Pretrain on your own text, without labels."""
    from bert.recipes.pretrain import PretrainSettings
    from bert.recipes.pretrain import pretrain as run

    paths, assignments = _corpus_and_assignments(corpus)
    settings = _settings(
        PretrainSettings,
        config,
        assignments,
        corpus=paths,
        size=size,
        minutes=minutes,
        steps=steps,
        start=start,
        tokenizer=tokenizer,
    )
    run(settings, out, resume=resume, overwrite=overwrite)


@app.command(cls=CommandWithSettings)
def finetune(
    train: Annotated[str, typer.Argument(help="File of rows to learn from.")],
    model: Annotated[str, typer.Option(help="Run folder, model directory or hub id.")],
    assignments: Assignments = None,
    dev: Annotated[str | None, typer.Option(help="File of rows to choose and measure by.")] = None,
    test: Annotated[str | None, typer.Option(help="File of rows only to measure on.")] = None,
    task: TaskOption = None,
    text: Text = None,
    label: Label = None,
    seeds: Annotated[int | None, typer.Option(help="Train from so many seeds.", min=2)] = None,
    out: Out = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    config: ConfigFile = None,
) -> None:
    """Fine-tune on your own labels."""
    from bert.recipes.finetune import FinetuneSettings
    from bert.recipes.finetune import finetune as run
    from bert.recipes.seeds import finetune_seeds

    settings = _settings(
        FinetuneSettings,
        config,
        assignments,
        train=train,
        model=model,
        dev=dev,
        test=test,
        task=task,
        text=text or None,
        label=label,
    )
    if seeds is not None:
        finetune_seeds(settings, seeds, out, resume=resume, overwrite=overwrite)
    else:
        run(settings, out, resume=resume, overwrite=overwrite)


@app.command(cls=CommandWithSettings)
def tune(
    train: Annotated[str, typer.Argument(help="File of rows to learn from.")],
    model: Annotated[str, typer.Option(help="Run folder, model directory or hub id.")],
    assignments: Assignments = None,
    trials: Annotated[int | None, typer.Option(help="Trials in all; 20 without.", min=1)] = None,
    minutes: Annotated[float | None, typer.Option(help="Begin no trial after these.")] = None,
    dev: Annotated[str | None, typer.Option(help="File of rows to choose by.")] = None,
    test: Annotated[str | None, typer.Option(help="File of rows only to measure on.")] = None,
    task: TaskOption = None,
    text: Text = None,
    label: Label = None,
    out: Out = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    config: ConfigFile = None,
) -> None:
    """Search for the rate, batch size and epochs that suit your rows."""
    from bert.recipes.finetune import FinetuneSettings
    from bert.recipes.tune import tune as run

    options = {"dev": dev, "test": test, "task": task, "text": text or None, "label": label}
    settings = _settings(FinetuneSettings, config, assignments, train=train, model=model, **options)
    run(settings, out, trials=trials, minutes=minutes, resume=resume, overwrite=overwrite)


@app.command(cls=CommandWithSettings)
def compare(
    train: Annotated[str, typer.Argument(help="File of rows to learn from.")],
    model: Annotated[str, typer.Option("--models", help="Models, with commas between them.")],
    assignments: Assignments = None,
    seeds: Annotated[int, typer.Option(help="Train from so many seeds.", min=1)] = 1,
    dev: Annotated[str | None, typer.Option(help="File of rows to measure by.")] = None,
    task: TaskOption = None,
    text: Text = None,
    label: Label = None,
    out: Out = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    config: ConfigFile = None,
) -> None:
    """Measure models beside simple baselines: quality, time, size, speed."""
    from bert.recipes.compare import compare as run
    from bert.recipes.finetune import FinetuneSettings

    options = {"dev": dev, "task": task, "text": text or None, "label": label}
    settings = _settings(FinetuneSettings, config, assignments, train=train, model=model, **options)
    run(settings, model.split(","), out, seeds=seeds, resume=resume, overwrite=overwrite)


@app.command()
def evaluate(
    run: RunArgument,
    file: Annotated[Path, typer.Argument(help="File of labelled rows.")],
    text: Text = None,
    label: Label = None,
    by: Annotated[str, typer.Option(help="Column by whose values to measure too.")] = "",
    precision: Precision = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Figures as JSON.")] = False,
) -> None:
    """Measure a fine-tuned model on labelled rows."""
    from bert.recipes.evaluate import evaluate_file

    evaluate_file(run, file, text or [], label, by, as_json=as_json, precision=precision)


@app.command()
def predict(
    run: RunArgument,
    files: Annotated[list[str], typer.Argument(help="File of rows; or folder, URL, several.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Answers, one JSON object a row.")],
    text: Text = None,
    overwrite: ReplaceOut = False,
    strict: Strict = False,
    engine: Engine = "plain",
    precision: Precision = "auto",
) -> None:
    """Answer every row of a file, or of many."""
    from bert.recipes.predict import predict_files

    predict_files(
        run, files, out, text or [], overwrite=overwrite, strict=strict, on_ray=engine == "ray",
        precision=precision,
    )  # fmt: skip


@app.command()
def embed(
    run: RunArgument,
    files: Annotated[list[str], typer.Argument(help="File of rows, or .txt with a text a line.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Vectors: .npy, .parquet or .jsonl.")],
    text: Text = None,
    overwrite: ReplaceOut = False,
    strict: Strict = False,
    engine: Engine = "plain",
    precision: Precision = "auto",
) -> None:
    """Write a vector for every text of a file, or of many."""
    from bert.recipes.embed import embed_files

    embed_files(
        run, files, out, text or [], overwrite=overwrite, strict=strict, on_ray=engine == "ray",
        precision=precision,
    )  # fmt: skip


@app.command()
def search(
    run: RunArgument,
    file: Annotated[Path, typer.Argument(help="File of rows, or .txt with a text a line.")],
    query: Annotated[str, typer.Argument(help='Such as "how do I return a parcel?"')],
    top: Annotated[int, typer.Option(help="Rows to show.", min=1)] = 10,
    text: Text = None,
    as_json: Annotated[bool, typer.Option("--json", help="Rows as JSON.")] = False,
) -> None:
    """Find the rows of a file that are nearest in meaning."""
    from bert.recipes.search import search_file

    search_file(run, file, query, text or [], top, as_json=as_json)


@app.command()
def summarize(
    run: RunArgument,
    file: Annotated[str, typer.Argument(help="A text, or - for standard input.")],
    sentences: Annotated[int, typer.Option(help="Sentences to print.", min=1)] = 3,
) -> None:
    """Print the sentences that say most of a text."""
    from bert.recipes.summarize import summarize_file

    summarize_file(run, file, sentences)


@app.command(name="fill-mask")
def fill_mask(
    run: RunArgument,
    text: Annotated[str, typer.Argument(help='Such as "Paris is the [MASK] of France."')],
    as_json: Annotated[bool, typer.Option("--json", help="Suggestions as JSON.")] = False,
) -> None:
    """Guess the masked words of a text."""
    from bert.recipes.predict import fill_masks

    fill_masks(run, text, as_json=as_json)


@app.command(cls=CommandWithSettings)
def compress(
    run: RunArgument,
    out: Annotated[Path, typer.Option(help="Directory for the smaller model.")],
    assignments: Assignments = None,
    to: Annotated[str | None, typer.Option(help="int8")] = None,
    distil: Annotated[
        bool, typer.Option("--distil", help="Train a smaller student: layers=3 ffn=0.25.")
    ] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Only cut: ffn=0.25 (share), layers=5 (kept).")
    ] = False,
    onnx: Annotated[bool, typer.Option("--onnx", help="Write model.onnx too.")] = False,
    data: Annotated[
        str | None, typer.Option(help="Labelled rows to judge by; held-out ones without.")
    ] = None,
    train: Annotated[
        str | None, typer.Option(help="Rows for the student; those of the run without.")
    ] = None,
    max_drop: Annotated[
        float | None, typer.Option(help="Points of the metric that may be lost; 0.5 without.")
    ] = None,
    text: Text = None,
    label: Label = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model.")] = False,
) -> None:
    """Make a smaller or faster model, unless it is much worse."""
    from bert.recipes.compress import CompressSettings
    from bert.recipes.compress import compress as run_it

    options = {"to": to, "data": data, "train": train, "max_drop": max_drop, "label": label}
    given = [part for item in assignments or [] for part in re.split(r",(?=[a-z_]+=)", item)]
    settings = _settings(
        CompressSettings, None, given, run=run, distil=distil or None, prune=prune or None,
        onnx=onnx or None, text=text or None, **options,
    )  # fmt: skip
    run_it(settings, out, overwrite=overwrite)


@app.command()
def serve(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Run folders or model directories.")
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen on.", envvar="BERT_HOST")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="Port to listen on.", min=0, max=65535, envvar="BERT_PORT")
    ] = 8000,
    precision: Annotated[
        str | None, typer.Option(help="fp32 bf16 int8 auto", envvar="BERT_PRECISION")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(help="Asked for; better set BERT_API_KEY.", envvar="BERT_API_KEY")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Other machines need no key.", envvar="BERT_INSECURE")
    ] = False,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(help="Further name that requests may use.", envvar="BERT_ALLOWED_HOST"),
    ] = None,
    max_concurrent_requests: Annotated[
        int | None,
        typer.Option(help="Requests at once; 512 without.", envvar="BERT_MAX_CONCURRENT_REQUESTS"),
    ] = None,
    max_client_batch_size: Annotated[
        int | None,
        typer.Option(help="Texts in a request; 32 without.", envvar="BERT_MAX_CLIENT_BATCH_SIZE"),
    ] = None,
    max_text_chars: Annotated[
        int | None,
        typer.Option(help="Characters of a text; 100000 without.", envvar="BERT_MAX_TEXT_CHARS"),
    ] = None,
    max_body_bytes: Annotated[
        int | None,
        typer.Option(help="Bytes of a request; 2000000 without.", envvar="BERT_MAX_BODY_BYTES"),
    ] = None,
    max_batch_tokens: Annotated[
        int | None, typer.Option(help="Tokens computed at once.", envvar="BERT_MAX_BATCH_TOKENS")
    ] = None,
    max_batch_requests: Annotated[
        int | None,
        typer.Option(help="Requests computed at once.", envvar="BERT_MAX_BATCH_REQUESTS"),
    ] = None,
    max_queue_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens admitted; 65536 without.", envvar="BERT_MAX_QUEUE_TOKENS"),
    ] = None,
    queue_timeout_ms: Annotated[
        int | None, typer.Option(help="Longest wait; 2000 without.", envvar="BERT_QUEUE_TIMEOUT_MS")
    ] = None,
    request_timeout_ms: Annotated[
        int | None,
        typer.Option(help="Longest request; 30000 without.", envvar="BERT_REQUEST_TIMEOUT_MS"),
    ] = None,
    on_too_long: Annotated[
        str | None, typer.Option(help="split, truncate or error.", envvar="BERT_ON_TOO_LONG")
    ] = None,
    drain_seconds: Annotated[
        float | None,
        typer.Option(help="To finish at the end; 30 without.", envvar="BERT_DRAIN_SECONDS"),
    ] = None,
    stuck_seconds: Annotated[
        float | None,
        typer.Option(help="Then the process ends; 120 without.", envvar="BERT_STUCK_SECONDS"),
    ] = None,
    log_format: Annotated[
        str | None, typer.Option(help="text or json.", envvar="BERT_LOG_FORMAT")
    ] = None,
) -> None:
    """Serve models over HTTP, with a page to try them."""
    from bert.recipes.serve import serve_models

    serve_models(
        runs,
        host,
        port,
        precision,
        insecure=insecure,
        allowed_hosts=allowed_host or (),
        api_key=api_key,
        max_concurrent_requests=max_concurrent_requests,
        max_client_batch_size=max_client_batch_size,
        max_text_chars=max_text_chars,
        max_body_bytes=max_body_bytes,
        max_batch_tokens=max_batch_tokens,
        max_batch_requests=max_batch_requests,
        max_queue_tokens=max_queue_tokens,
        queue_timeout_ms=queue_timeout_ms,
        request_timeout_ms=request_timeout_ms,
        on_too_long=on_too_long,
        drain_seconds=drain_seconds,
        stuck_seconds=stuck_seconds,
        log_format=log_format,
    )


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="File of rows.")],
    task: TaskOption = "classification",
    text: Text = None,
    label: Label = None,
    as_json: Annotated[bool, typer.Option("--json", help="The report as JSON.")] = False,
) -> None:
    """Look over a file of rows before training."""
    from bert.recipes.check import check_file

    check_file(file, task or "classification", text or [], label, as_json=as_json)


@app.command()
def info(
    directory: Annotated[str, typer.Argument(help="Run folder, model directory or hub id.")],
    as_json: Annotated[bool, typer.Option("--json", help="Facts as JSON.")] = False,
) -> None:
    """Tell what a model is."""
    from bert.recipes.info import describe

    describe(directory, as_json=as_json)


@app.command()
def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Directory with pickle, or hub id.")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="New directory.")],
) -> None:
    """Rewrite pickled weights as safetensors."""
    from bert.recipes.convert import convert_model

    convert_model(source, destination)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the demo's runs.")] = Path("runs/demo"),
    minutes: Annotated[float | None, typer.Option(help="Minutes of pretraining.")] = None,
) -> None:
    """The whole path in a few minutes, on the documentation that Python carries."""
    from bert.recipes.demo import MINUTES, run_demo

    run_demo(out, MINUTES if minutes is None else minutes)


def _show_version(value: bool) -> None:
    if value:
        from bert import __version__

        print(f"bertsmith {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it.")
    ] = False,
) -> None:
    pass


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with the code of what happened."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    signal.signal(signal.SIGTERM, _interrupted)
    try:
        code = _run([item for item in arguments if item != "--debug"])
        _flush()
    except BertError as error:
        if debug:
            raise
        print(f"Error: {error}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        code = _interrupted_code(signal.SIGINT)
    except Exception as error:
        if debug:
            raise
        known = _known(error)
        if known is None:
            known = BertError(
                f"Something unforeseen went wrong: {type(error).__name__}: {error}",
                fix="repeat the command with --debug for a traceback, and report it",
            )
        print(f"Error: {known}", file=sys.stderr)
        code = known.exit_code
    signal.signal(signal.SIGTERM, _ended)
    sys.exit(code)


def _flush() -> None:
    """Write what is left for standard output while a failure can still be told."""
    try:
        sys.stdout.flush()
    except OSError:
        # Python would try the same text again when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _run(arguments: list[str]) -> int:
    """The exit code of a command; usage errors of the parser become ours."""
    if arguments[:2] == ["tokenizer", "extend"]:  # a corpus of this name is ./extend
        arguments = [" ".join(arguments[:2]), *arguments[2:]]
    # The parser's base error is public only through its subclasses.
    parser_error: type[Any] = typer.BadParameter.__mro__[2]
    try:
        result = app(args=arguments, prog_name="bert", standalone_mode=False)
    except parser_error as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message())
            return UsageError.exit_code
        raise _usage_error(error, arguments) from None
    except typer.Abort:
        raise KeyboardInterrupt from None
    if result == Interrupted(signal.SIGINT).exit_code:  # what the parser makes of Ctrl-C
        raise KeyboardInterrupt
    return result if isinstance(result, int) else 0


def _usage_error(error: Any, arguments: list[str]) -> UsageError:
    """What the parser refuses, in our words."""
    parser: Any = typer.main.get_command(app)
    commands = parser.commands
    command = arguments[0] if arguments and arguments[0] in commands else None
    if command is None and arguments and not arguments[0].startswith("-"):
        near = difflib.get_close_matches(arguments[0], commands, n=1)
        return UsageError(
            f"There is no command {arguments[0]!r}.",
            fix=f"did you mean {near[0]}?" if near else "bert --help",
        )
    help_command = f"bert {command} --help" if command else "bert --help"
    what: str = error.format_message()
    option: str = getattr(error, "option_name", None) or ""
    if type(error).__name__ != "NoSuchOption":
        parameter = getattr(error, "param", None)
        for option in getattr(parameter, "opts", ()):
            if what.startswith("Invalid") and (value := _value_of(option, arguments)):
                what = f"{what.removesuffix('.')} (got {value!r})."
        return UsageError(what, fix=help_command)
    if not option.startswith("--"):  # -epochs 3: the parser saw only -e
        option = next((s for s in arguments if s.startswith(option)), option).partition("=")[0]
    name = option.lstrip("-").replace("-", "_")
    fix = help_command
    kind = _settings_of(command or "")
    parser = commands[command] if command else parser
    options = {
        opt.lstrip("-").replace("-", "_"): opt
        for parameter in parser.params
        for opt in parameter.opts
        if opt.startswith("--")
    }
    near = difflib.get_close_matches(name, [*options, *(kind.model_fields if kind else ())], n=1)
    if near and near[0] in options:
        fix = f"did you mean {options[near[0]]}?"
    elif near:
        fix = f"write it as a setting: {near[0]}={_value_of(option, arguments) or 'true'}"
    return UsageError(f"There is no option {option}.", fix=fix)


def _value_of(option: str, arguments: list[str]) -> str | None:
    """What stands after an option, if anything does."""
    for item, following in zip(arguments, [*arguments[1:], "-"], strict=True):
        if item == option:
            return None if following.startswith("-") and not following[1:2].isdigit() else following
        if item.startswith(option + "="):
            return item.removeprefix(option + "=")
    return None


def _known(error: Exception) -> BertError | None:
    """Failures of the machine, in words."""
    text = str(error)
    if isinstance(error, MemoryError) or re.search(
        "(not enough|out of|can(no|')t allocate) memory", text, re.IGNORECASE
    ):
        return OutOfMemoryError(
            "The memory is used up.",
            fix="lower micro_batch_tokens=, batch_size= or --size",
        )
    if isinstance(error, BrokenPipeError):
        return BertError("The reader of the output has gone.", fix="let it read to the end")
    if isinstance(error, OSError):
        name = str(error.filename) if error.filename else None
        if error.errno in FULL or "requested and" in text:  # numpy tells no reason
            return _full(error.errno or errno.ENOSPC, name)
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return UsageError(
                "That may not be written or read.", where=name, fix="choose another folder"
            )
        if name is not None:
            return UsageError(f"{error.strerror or text}.", where=name, fix="check the name")
    if found := re.search(r"I/?O error.*\(os error (\d+)\)", text):  # safetensors, in Rust
        number = int(found[1])
        return _full(number, None) if number in FULL else BertError(f"{os.strerror(number)}.")
    return None


def _full(number: int, name: str | None) -> BertError:
    what = {
        errno.EFBIG: "The file is larger than this system allows (ulimit -f).",
        errno.EDQUOT: "Your quota of disk space is used up.",
    }.get(number, "The disk is full.")
    return BertError(
        what, where=name, fix="make room and repeat the command; a run goes on with --resume"
    )


def _interrupted(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number)


def _ended(number: int, frame: FrameType | None) -> None:
    """There is nothing left to interrupt; an exception would only stop Python's own ending."""


def _interrupted_code(number: int) -> int:
    print(f"Error: {Interrupted(number)}", file=sys.stderr)
    return Interrupted(number).exit_code
