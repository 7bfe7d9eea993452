"""How the vectors of tokens become one vector of a text, as sentence-transformers writes it down.

A directory of an embedding model holds beside the encoder::

    modules.json                 the steps, in order: Transformer, Pooling, perhaps Normalize
    1_Pooling/config.json        which pooling
    sentence_bert_config.json    the longest text in tokens
    config_sentence_transformers.json

The classes that ``modules.json`` names are compared with those that are known; none is run.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert import log
from bert.errors import ModelError
from bert.untrusted import parse_table, read_bytes, read_json

MODULES = "modules.json"
POOLING = "1_Pooling"
LENGTH = "sentence_bert_config.json"
PROMPTS = "config_sentence_transformers.json"
FILES = (MODULES, f"{POOLING}/config.json", LENGTH, PROMPTS)  # of which a model is made up
NORMALIZE = "2_Normalize"  # which has no settings and mostly no file

MODES = ("mean", "cls", "max")
# Before sentence-transformers 5.3 each had a switch of its own.
_SWITCHES = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_FOLDER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,100}")
_MOST_BYTES = 2**20
_COPY = "copy the model again from where it came from"


@dataclass(frozen=True)
class Pooling:
    """What a text's vector is made by.

    Args:
        mode: ``mean`` of all tokens' vectors, special ones too; ``cls``, the first token's;
            ``max``, the largest of each number.
        normalize: whether vectors are scaled to length 1.
        max_length: the longest text in tokens; None where nothing is said.
    """

    mode: str = "mean"
    normalize: bool = True
    max_length: int | None = None


def read_pooling(directory: Path) -> Pooling | None:
    """What the files in a model directory say; None where there is no ``modules.json``.

    Raises:
        ModelError: they are damaged, or ask for what is not known here.
    """
    path = directory / MODULES
    if not os.path.lexists(path):
        return None
    steps = _steps(path)
    kinds = [kind for kind, _ in steps]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise ModelError(
            f"The model makes its vectors by {', '.join(kinds)!r:.100}; known are Transformer, "
            "Pooling and, last, Normalize.",
            where=str(path),
            fix="use a model without further steps",
        )
    first, second = steps[0][1], steps[1][1]
    lengths = _table(directory / first / LENGTH)
    if lengths.get("do_lower_case") is True:
        raise ModelError(
            "do_lower_case asks for text in lower case beside the tokenizer, which is not known.",
            where=str(directory / LENGTH),
            fix="set it to false if the tokenizer does so itself",
        )
    longest = lengths.get("max_seq_length")
    if longest is None:  # since sentence-transformers 5.3 the tokenizer says it
        longest = _table(directory / first / "tokenizer_config.json").get("model_max_length")
        longest = longest if type(longest) is int else None  # or a float that means no limit
    if longest is not None and (type(longest) is not int or longest < 3):
        raise ModelError(
            f"max_seq_length is {longest!r:.60}, which is no length.",
            where=str(directory / first / LENGTH),
            fix=_COPY,
        )
    prompts = _table(directory / PROMPTS)
    if name := prompts.get("default_prompt_name"):
        log.notice(
            f"The model expects its prompt {name!r:.60} before each text; it is not put there.",
            where=str(directory / PROMPTS),
            fix="write it at the beginning of your texts",
        )
    return Pooling(_mode(directory / second / "config.json"), len(steps) == 3, longest)


def write_pooling(directory: Path, pooling: Pooling, width: int) -> None:
    """Write the files, in the words that every version of sentence-transformers reads."""
    steps = [("Transformer", ""), ("Pooling", POOLING)]
    steps += [("Normalize", NORMALIZE)] if pooling.normalize else []
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(steps)
    ]
    log.write_json(directory / MODULES, modules)
    for _, path in steps[1:]:
        (directory / path).mkdir()
    modes = {switch: mode == pooling.mode for switch, mode in _SWITCHES.items()}
    pooled = {"word_embedding_dimension": width, **modes}
    log.write_json(directory / POOLING / "config.json", pooled)
    if pooling.normalize:
        log.write_json(directory / NORMALIZE / "config.json", {})
    lengths = {"max_seq_length": pooling.max_length, "do_lower_case": False}
    log.write_json(directory / LENGTH, lengths)
    log.write_json(directory / PROMPTS, {"prompts": {}, "default_prompt_name": None})


def _steps(path: Path) -> list[tuple[str, str]]:
    """The class and the folder of each step."""
    try:
        # The file is a list; what reads hostile JSON takes tables.
        table = parse_table(b'{"steps": ' + read_bytes(path, _MOST_BYTES) + b"}")
        steps = sorted(table["steps"], key=lambda step: int(step["idx"]))
        found = [(str(step["type"]).rpartition(".")[2], str(step["path"])) for step in steps]
    except (ValueError, TypeError, KeyError, LookupError):
        raise ModelError(f"{MODULES} is no list of steps.", where=str(path), fix=_COPY) from None
    for number, (_, folder) in enumerate(found):
        # The first may lie in the directory itself, as it mostly does; elsewhere it has no model.
        if folder if number == 0 else not _FOLDER.fullmatch(folder):
            raise ModelError(
                f"Step {number} lies in {folder!r:.60}, where it is not looked for.",
                where=str(path),
                fix="put the encoder's files into the directory itself, the others in a folder",
            )
    return found


def _table(path: Path) -> dict[str, Any]:
    """The table in a file, empty where there is none."""
    return read_json(path, _MOST_BYTES) if os.path.lexists(path) else {}


def _mode(path: Path) -> str:
    stored = read_json(path, _MOST_BYTES)
    modes = stored.get("pooling_mode")
    if modes is None:
        modes = [mode for switch, mode in _SWITCHES.items() if stored.get(switch) is True]
        modes = modes or ["mean"]
    modes = modes if isinstance(modes, list) else [modes]
    if len(modes) != 1 or modes[0] not in MODES:
        raise ModelError(
            f"The model pools by {' and '.join(map(str, modes))!r:.60}; known are "
            f"{', '.join(MODES)}, one at a time.",
            where=str(path),
            fix="use a model with one of these",
        )
    return str(modes[0])
