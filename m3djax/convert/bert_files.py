"""Reader and writer of text encoders in folders with Hugging Face's layout."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from etils import epath
from safetensors import SafetensorError

from data_pipelines.errors import DataError
from data_pipelines.files import write_whole
from m3djax.convert import bert, name_map
from m3djax.convert.name_map import Tensor
from m3djax.models.bert import Bert, MaskedLanguageHead
from m3djax.params import Params, flatten, unflatten

_CONFIG, _WEIGHTS = "config.json", "model.safetensors"


@dataclasses.dataclass(frozen=True)
class TextCheckpoint:
    """A text encoder with its parameters.

    Attributes:
      model: the encoder.
      params: {"text": ..., "mlm_head": ... if there is a head}, NumPy arrays in float32.
      head: the masked-language head, if the file has one.
    """

    model: Bert
    params: Params
    head: MaskedLanguageHead | None = None


def read_bert(
    folder: epath.PathLike, *, prefix: str | None = None, pooler: bool | None = None
) -> TextCheckpoint:
    """Reads config.json and model.safetensors of a BERT or RoBERTa checkpoint.

    Args:
      folder: local or gs://.
      prefix: start of the encoder's names; all other tensors are ignored. With None the prefix is
        found, and all tensors are read, also those of a masked-language head.
      pooler: whether to read the pooler; None reads it if there is one.

    Raises:
      DataError: a file is missing or not readable, or describes another kind of model; or the
        tensors are not exactly those that the config asks for.
    """
    root = epath.Path(folder)
    path = root / _WEIGHTS
    config = _read_config(root / _CONFIG)
    tensors = modern_names(_read_tensors(path))
    if prefix is None:
        prefix = _find_prefix(tensors, path)
    else:
        tensors = {k: v for k, v in tensors.items() if k.startswith(prefix)}
    if pooler is None:
        pooler = f"{prefix}pooler.dense.weight" in tensors
    model = bert.model_of(config, root / _CONFIG, pooler=pooler)
    rules, head = bert.encoder(prefix, pooler=pooler), None
    transform, _, top = bert.HEADS[config["model_type"]]
    if f"{transform}.weight" in tensors:
        _check_tied(tensors, prefix, top, path)
        head = MaskedLanguageHead(model.embeddings.vocab_size, model.embeddings.norm_eps)
        rules = (*rules, *bert.masked_language_head(config["model_type"]))
    try:
        flat = name_map.load(tensors, rules, expected_shapes(model, head))
    except ValueError as error:
        cure = "take the config.json that was published with these weights"
        raise DataError(path, str(error), cure) from error
    return TextCheckpoint(model, unflatten(flat), head)


def write_bert(folder: epath.PathLike, checkpoint: TextCheckpoint) -> None:
    """Writes config.json and model.safetensors with the names of transformers' `save_pretrained`.

    With a head, the names are those of BertForMaskedLM or RobertaForMaskedLM. Without one, they are
    those of the model alone. Tied matrices are left out, as transformers does.
    """
    model, root = checkpoint.model, epath.Path(folder)
    layout = model.embeddings.positions
    prefix = f"{layout}." if checkpoint.head else ""
    rules = bert.encoder(prefix, pooler=model.pooler)
    if checkpoint.head:
        rules = (*rules, *bert.masked_language_head(layout))
    flat = {path: np.asarray(leaf) for path, leaf in flatten(checkpoint.params).items()}
    tensors = {
        name: np.ascontiguousarray(tensor) for name, tensor in name_map.save(flat, rules).items()
    }
    root.mkdir(parents=True, exist_ok=True)
    write_whole(root / _CONFIG, json.dumps(bert.config_of(model), indent=2))
    write_whole(root / _WEIGHTS, safetensors.numpy.save(tensors, metadata={"format": "pt"}))


def expected_shapes(
    model: Bert, head: MaskedLanguageHead | None = None
) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each path below "text" and "mlm_head"; allocates nothing."""
    ids = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    shapes = {"text": jax.eval_shape(model.init, jax.random.key(0), ids)["params"]}
    if head:
        width = model.embeddings.hidden_size
        tokens = jax.ShapeDtypeStruct((1, 2, width), jnp.float32)
        table = jax.ShapeDtypeStruct((head.vocab_size, width), jnp.float32)
        shapes["mlm_head"] = jax.eval_shape(head.init, jax.random.key(0), tokens, table)["params"]
    return {path: leaf.shape for path, leaf in flatten(shapes).items()}


def _read_config(path: epath.Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        cure = "name a folder in Hugging Face's layout: config.json beside model.safetensors"
        raise DataError(path, "there is no such file", cure) from None
    except (OSError, ValueError) as error:
        raise DataError(path, f"is not readable JSON ({error})", "fetch it again") from None
    if not isinstance(config, dict):
        raise DataError(path, "does not hold a JSON object", "fetch it again")
    return config


def _read_tensors(path: epath.Path) -> dict[str, np.ndarray]:
    if not path.exists():
        cure = "save the weights as safetensors (`save_pretrained` of transformers does)"
        raise DataError(path, "there is no such file", cure)
    try:
        tensors = safetensors.numpy.load(path.read_bytes())
    except (SafetensorError, ValueError, KeyError, OSError) as error:
        problem = f"is not a whole safetensors file ({error})"
        raise DataError(path, problem, "fetch it again") from None
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}


def modern_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors with a norm's "gamma" and "beta" renamed to "weight" and "bias".

    Old checkpoints, such as bert-base-uncased, use TensorFlow's names.
    """
    old = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        end = ".".join(name.split(".")[-2:])
        renamed[name.removesuffix(end) + old.get(end, end)] = tensor
    return renamed


def _find_prefix(names: Iterable[str], path: epath.Path) -> str:
    found = sorted(name.removesuffix(bert.WORDS) for name in names if name.endswith(bert.WORDS))
    if len(found) != 1:
        problem = f"has {len(found)} tensors that end with {bert.WORDS}: {found}"
        raise DataError(path, problem, "take a BERT or RoBERTa checkpoint, or name the prefix")
    return found[0]


def _check_tied(tensors: Mapping[str, np.ndarray], prefix: str, top: str, path: epath.Path) -> None:
    ties = {f"{top}.decoder.weight": f"{prefix}{bert.WORDS}", f"{top}.decoder.bias": f"{top}.bias"}
    for name, other in ties.items():
        if name in tensors and not np.array_equal(tensors[name], tensors.get(other, np.nan)):
            problem = f"{name} differs from {other}: the head is not tied to the words"
            raise DataError(path, problem, "take a checkpoint with a tied head, or remove the head")
