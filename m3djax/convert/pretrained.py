"""Reader and writer of whole published language models: module, parameters, tokenizer."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh

from data_pipelines import files
from data_pipelines.errors import DataError
from data_pipelines.text import llm_tokenizer
from m3djax.convert import llm, llm_config, safetensors_files, stream
from m3djax.mesh import sharding
from m3djax.models.llm.decoder import Decoder
from m3djax.models.transformer import Remat
from m3djax.params import Dtype, Params, flatten, unflatten

_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A language model with parameters, config and tokenizer.

    Attributes:
      model: the module.
      params: its parameters, under the component "llm".
      config: the transformers config.
      tokenizer: the transformers tokenizer; None if the checkpoint has none.
      eos_ids: ids of the tokens that end an answer.
    """

    model: Decoder
    params: Params
    config: Any
    tokenizer: Any
    eos_ids: tuple[int, ...]


def load(
    path: epath.PathLike,
    mesh: Mesh | None = None,
    *,
    dtype: Dtype = "float32",
    param_dtype: Dtype | None = None,
    remat: Remat = "none",
) -> Pretrained:
    """Reads a language model.

    Args:
      path: a folder in Hugging Face's layout, or a .gguf file.
      mesh: devices of the parameters; None: the first device.
      dtype: dtype of the computation.
      param_dtype: dtype of the parameters; None: `dtype`.
      remat: activations that the backward pass computes again.

    Raises:
      DataError: a file is missing, damaged or unsupported, or the files do not fit together.
    """
    mesh = mesh or sharding.make_mesh((1, 1, 1), jax.local_devices()[:1])
    if str(path).endswith(".gguf"):
        from data_pipelines.text import gguf_tokenizer
        from m3djax.convert.gguf_files import GgufFile

        file = GgufFile(path)
        config, tokenizer = file.config(), gguf_tokenizer.build(file.fields, path)
    else:
        config, tokenizer = llm_config.read_config(path), llm_tokenizer.read(path)
    count = None if tokenizer is None else len(tokenizer)
    if count is not None and count > config.vocab_size:
        problem = f"its tokenizer has {count} tokens, its table {config.vocab_size} rows"
        raise DataError(path, problem, "use the tokenizer that the weights were trained with")
    model = llm_config.decoder(config, dtype=dtype, remat=remat, num_tokens=count)
    rules = llm.rules(model)
    if str(path).endswith(".gguf"):
        tensors = file.renamed(rules)
    else:
        tensors = safetensors_files.open_checkpoint(path)
    flat = stream.load(
        tensors,
        rules,
        shapes(model),
        mesh,
        {"llm": model},
        source=path,
        dtype=jnp.dtype(param_dtype or dtype),
    )
    eos = _eos_ids(path, config, tokenizer)
    return Pretrained(model, unflatten(flat), config, tokenizer, eos)


def save(path: epath.PathLike, pretrained: Pretrained, *, dtype: Any = None) -> None:
    """Writes a model in Hugging Face's layout: weights, config.json and tokenizer.

    Args:
      path: the folder.
      pretrained: the model.
      dtype: dtype of the written weights; None: that of the parameters.
    """
    root = epath.Path(path)
    flat = flatten(pretrained.params)
    stream.save(root, flat, llm.rules(pretrained.model), dtype=dtype)
    kept = dtype or next(iter(flat.values())).dtype
    values = pretrained.config.to_dict() | {
        "vocab_size": pretrained.model.vocab_size,
        "dtype": np.dtype(kept).name,
        "architectures": [_ARCHITECTURES[pretrained.config.model_type]],
    }
    text = json.dumps(values, indent=2, sort_keys=True, default=str)
    files.write_whole(root / llm_config.CONFIG, text)
    if pretrained.tokenizer is not None:
        pretrained.tokenizer.save_pretrained(str(root))


def shapes(model: Decoder, ours: str = "llm") -> dict[str, tuple[int, ...]]:
    """Returns the shape of each parameter of a model, by path."""
    tree = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 1), int)))["params"]
    return {path: leaf.shape for path, leaf in flatten({ours: tree}).items()}


def _eos_ids(path: epath.PathLike, config: Any, tokenizer: Any) -> tuple[int, ...]:
    """Returns the end tokens of the config, generation_config.json and the tokenizer."""
    file = epath.Path(path) / "generation_config.json"
    found = [config.eos_token_id, getattr(tokenizer, "eos_token_id", None)]
    if file.is_file():
        try:
            found.append(json.loads(file.read_text()).get("eos_token_id"))
        except (ValueError, AttributeError) as error:
            raise DataError(file, f"it is not readable ({error})", "fetch it again") from error
    flat = (x for ids in found for x in (ids if isinstance(ids, Iterable) else (ids,)))
    return tuple(sorted({int(x) for x in flat if x is not None}))
