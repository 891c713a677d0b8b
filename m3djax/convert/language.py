"""A published language model as the component `llm` of an experiment."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from data_pipelines import fetch
from data_pipelines.text import llm_tokenizer
from m3djax import experiment as experiment_lib
from m3djax.checkpoint import CheckpointError
from m3djax.convert import llm_config, new_tokens, pretrained
from m3djax.convert.pretrained import Pretrained
from m3djax.lora import LoRA
from m3djax.models.llm.decoder import Decoder
from m3djax.params import flatten

# What changes nothing about the numbers, and is up to whoever trains.
_FREE = ("dtype", "remat", "unroll", "implementation", "num_tokens")


def is_language_model(source: Path) -> bool:
    """Whether it is a language model and nothing else: a GGUF file, or a folder with its config."""
    if str(source) == fetch.SMOLLM2_NAME or source.suffix == ".gguf":
        return True
    try:
        config = json.loads((source / llm_config.CONFIG).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("model_type") in llm_config.FAMILIES


def load(source: Path, task: Any) -> tuple[dict[str, Any], list[str]]:
    """Parameters of the component `llm`, with rows for M3D's new tokens where the task has them.

    Args:
      source: a folder as Hugging Face keeps it, a GGUF file, or "SmolLM2-135M-Instruct".
      task: has `llm`, or is LoRA around a task that has.

    Returns:
      {path: float32 array}, and what there is to say.

    Raises:
      DataError: it cannot be read.
      CheckpointError: it is another model than `task.llm`: says in which fields.
    """
    wanted: Decoder = (task.task if isinstance(task, LoRA) else task).llm
    path = fetch.sample_llm() if str(source) == fetch.SMOLLM2_NAME else source
    loaded = pretrained.load(path)
    notes = []
    if wanted.vocab_size != loaded.model.vocab_size and loaded.tokenizer is not None:
        loaded, added = _grown(loaded, wanted.vocab_size)
        notes.append(f"new tokens, as means of all others: {', '.join(added)}")
    theirs, ours = experiment_lib.to_json(loaded.model), experiment_lib.to_json(wanted)
    if problems := list(_differences("llm", theirs, ours)):
        raise CheckpointError(
            f"{source}: is another language model than the config's:\n  "
            + "\n  ".join(problems)
            + "\nNothing was written. Cure: a --config with these values, or its fields as flags."
        )
    return dict(flatten(loaded.params)), notes


def _grown(loaded: Pretrained, rows: int) -> tuple[Pretrained, list[str]]:
    """With rows for new tokens; the table gets `rows` rows, if it has not more tokens than that."""
    known = loaded.tokenizer.get_vocab()
    special, plain = (
        [token for token in some if token not in known]
        for some in (llm_tokenizer.SPECIAL, llm_tokenizer.PLAIN)
    )
    return new_tokens.grow(loaded, special, plain, multiple=rows), [*special, *plain]


def _differences(place: str, theirs: Any, ours: Any) -> list[str]:
    """Fields with other values, a line each."""
    if isinstance(theirs, dict) and isinstance(ours, dict) and theirs.keys() == ours.keys():
        return [
            line
            for name in theirs
            if name not in _FREE
            for line in _differences(f"{place}.{name}", theirs[name], ours[name])
        ]
    if isinstance(theirs, list) and isinstance(ours, list) and len(theirs) == len(ours):
        return [
            line
            for number, pair in enumerate(zip(theirs, ours, strict=True))
            for line in _differences(f"{place}[{number}]", *pair)
        ]
    # Files round: GGUF keeps 1e-5 as the float32 9.9999997e-6.
    if isinstance(theirs, float) and isinstance(ours, float):
        return [] if math.isclose(theirs, ours, rel_tol=1e-6) else [_line(place, theirs, ours)]
    return [] if theirs == ours else [_line(place, theirs, ours)]


def _line(place: str, theirs: Any, ours: Any) -> str:
    return f"{place}: {theirs} in the file, {ours} in the config"
