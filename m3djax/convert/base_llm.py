"""A published language model as the component "llm" of a task, new tokens included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_pipelines.errors import ConfigError
from data_pipelines.text import llm_tokenizer
from m3djax import params, sharding, weights
from m3djax.checkpoint import CheckpointError
from m3djax.convert import pretrained
from m3djax.convert.new_tokens import grow
from m3djax.experiment import Experiment
from m3djax.lora import LoRA
from m3djax.tasks.vision_language import VisionLanguage


def load(path: Path, out: str, experiment: Experiment) -> str:
    """Reads a language model, gives it rows for the new tokens and writes it with its tokenizer.

    Args:
      path: the model's .gguf file, or a file beside its config.json.
      out: the folder.
      experiment: of a `VisionLanguage`; its `llm` says how many rows there are to be.

    Returns:
      What was done.

    Raises:
      DataError: the model cannot be read.
      CheckpointError: it is not the model of the config.
      ConfigError: the task has no language model, or the model no tokenizer.
    """
    task: Any = experiment.task.task if isinstance(experiment.task, LoRA) else experiment.task
    if not hasattr(task, "llm"):
        raise ConfigError(f"{type(task).__name__} has no language model. Cure: another --config.")
    source = path if path.suffix == ".gguf" else path.parent
    found = pretrained.load(source, sharding.make_mesh((1, -1, 1)))
    if found.tokenizer is None:
        raise ConfigError(f"{source}: has no tokenizer. Cure: put its tokenizer.json there.")
    lacking = [
        [token for token in tokens if token not in found.tokenizer.get_vocab()]
        for tokens in (llm_tokenizer.SPECIAL, llm_tokenizer.PLAIN)
    ]
    # As many rows as the config has, unless that is too few.
    grown = grow(found, *lacking, multiple=task.llm.vocab_size)
    image = grown.tokenizer.convert_tokens_to_ids(llm_tokenizer.IMAGE)
    flat = params.flatten(grown.params)
    wanted = pretrained.shapes(task.llm)
    given = {name: leaf.shape for name, leaf in flat.items()}
    differing = sorted(
        f"{name}: {given.get(name)} there, {wanted.get(name)} in the config"
        for name in given.keys() | wanted.keys()
        if given.get(name) != wanted.get(name)
    )
    if isinstance(task, VisionLanguage) and task.image_token != image:
        differing.append(f"<im_patch> is token {image}, and task.image_token={task.image_token}")
    if differing:
        shown = "\n  ".join(differing[:8])
        raise CheckpointError(
            f"{source}: is not the language model of the config:\n  {shown}\n"
            "Nothing was written. Cure: another --config, or its fields as flags."
        )
    origin = {"file": path.name, "layout": "llm", "new_tokens": [*lacking[0], *lacking[1]]}
    weights.save(out, experiment, flat, origin)
    grown.tokenizer.save_pretrained(out)
    count = sum(leaf.size for leaf in flat.values())
    return f"{out}: {len(flat)} parameters of llm: {count:,} numbers, float32, and the tokenizer"
