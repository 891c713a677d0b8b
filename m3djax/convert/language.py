"""Import of a published language model as the component `llm` of an experiment."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from data_pipelines import fetch
from data_pipelines.errors import ConfigError
from data_pipelines.text import llm_tokenizer
from m3djax.config import serialize
from m3djax.convert import llm_config, new_tokens, pretrained
from m3djax.convert.layouts import LAYOUTS
from m3djax.convert.pretrained import Pretrained
from m3djax.experiment import Experiment
from m3djax.mesh import sharding
from m3djax.params import flatten
from m3djax.runs import weights
from m3djax.runs.checkpoint import CheckpointError

# Fields that do not change the weights; the config may choose them freely.
_FREE = ("dtype", "remat", "unroll", "implementation", "num_tokens")


def is_language_model(source: Path) -> bool:
    """Returns whether a path holds only a language model: a GGUF file or a folder with a config."""
    if str(source) == fetch.SMOLLM2_NAME or source.suffix == ".gguf":
        return True
    try:
        config = json.loads((source / llm_config.CONFIG).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("model_type") in llm_config.FAMILIES


def load(source: Path, out: str, experiment: Experiment) -> str:
    """Reads a language model, adds rows for M3D's new tokens and writes it with its tokenizer.

    Args:
      source: a folder in Hugging Face's layout, a GGUF file, or "SmolLM2-135M-Instruct".
      out: the folder to write.
      experiment: an experiment whose task has the component "llm"; its `vocab_size` is the number
        of rows of the result.

    Returns:
      A summary for the terminal.

    Raises:
      DataError: the model cannot be read.
      CheckpointError: the model differs from `task.llm`; names the fields that differ.
      ConfigError: the task has no language model.
    """
    task: Any = experiment.task
    if "llm" not in task.components():
        raise ConfigError(f"{type(task).__name__} has no language model. Cure: another --config.")
    path = fetch.sample_llm() if str(source) == fetch.SMOLLM2_NAME else source
    loaded = pretrained.load(path, sharding.make_mesh((1, -1, 1)))
    added: list[str] = []
    if task.llm.vocab_size != loaded.model.vocab_size and loaded.tokenizer is not None:
        loaded, added = _grown(loaded, task.llm.vocab_size)
    _check(source, task, loaded)
    flat = flatten(loaded.params)
    experiment = LAYOUTS["llm"].stored(experiment)
    weights.save(out, experiment, flat, {"source": str(source), "new_tokens": added})
    if loaded.tokenizer is not None:
        loaded.tokenizer.save_pretrained(out)
    count = sum(leaf.size for leaf in flat.values())
    lines = [f"new tokens, as means of all others: {', '.join(added)}"] if added else []
    return "\n".join([*lines, f"{out}: language model, {count:,} numbers, float32"])


def _grown(loaded: Pretrained, rows: int) -> tuple[Pretrained, list[str]]:
    """Returns the model with rows for new tokens, and the tokens.

    The table gets `rows` rows, or a multiple of that if there are more tokens.
    """
    known = loaded.tokenizer.get_vocab()
    special, plain = (
        [token for token in some if token not in known]
        for some in (llm_tokenizer.SPECIAL, llm_tokenizer.PLAIN)
    )
    return new_tokens.grow(loaded, special, plain, multiple=rows), [*special, *plain]


def _check(source: Path, task: Any, loaded: Pretrained) -> None:
    theirs, ours = serialize.to_json(loaded.model), serialize.to_json(task.llm)
    problems = list(_differences("llm", theirs, ours))
    if loaded.tokenizer is not None:
        problems += task.token_problems(loaded.tokenizer)
    if problems:
        raise CheckpointError(
            f"{source}: it is not the language model of the config:\n  "
            + "\n  ".join(problems)
            + "\nNothing was written. Cure: a --config with these values, or its fields as flags."
        )


def _differences(place: str, theirs: Any, ours: Any) -> list[str]:
    """Yields a line for each field that differs."""
    if isinstance(theirs, dict) and isinstance(ours, dict) and theirs.keys() == ours.keys():
        # Without norms of queries and keys, their epsilon does not matter.
        free = _FREE if theirs.get("qk_norm") is not False else (*_FREE, "norm_eps")
        return [
            line
            for name in theirs
            if name not in free
            for line in _differences(f"{place}.{name}", theirs[name], ours[name])
        ]
    if isinstance(theirs, list) and isinstance(ours, list) and len(theirs) == len(ours):
        return [
            line
            for number, pair in enumerate(zip(theirs, ours, strict=True))
            for line in _differences(f"{place}[{number}]", *pair)
        ]
    # Files round numbers: GGUF stores 1e-5 as float32, 9.9999997e-6.
    if isinstance(theirs, float) and isinstance(ours, float):
        return [] if math.isclose(theirs, ours, rel_tol=1e-6) else [_line(place, theirs, ours)]
    return [] if theirs == ours else [_line(place, theirs, ours)]


def _line(place: str, theirs: Any, ours: Any) -> str:
    return f"{place}: {theirs} in the file, {ours} in the config"
