"""Reader of GGUF files (llama.cpp); gives Hugging Face's config and names of tensors."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import gguf
import numpy as np
from etils import epath

from data_pipelines import files
from data_pipelines.errors import DataError
from m3djax.convert.llm_config import FAMILIES, make_config
from m3djax.convert.name_map import Rule
from m3djax.convert.safetensors_files import LazyTensor

QUANTIZED = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K")
"""The supported types of tensors."""

_ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "phi3": gguf.MODEL_ARCH.PHI3,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}
_FACTORS = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")


class GgufFile:
    """An open GGUF file.

    Attributes:
      path: the file.
      fields: its metadata by name.
      tensors: its tensors by their own names.
    """

    def __init__(self, path: epath.PathLike):
        """Opens a file and reads only its header.

        Raises:
          DataError: it is not a GGUF file, or is damaged, or its architecture is not supported.
        """
        self.path = epath.Path(path)
        if not files.is_local(self.path):
            raise DataError(path, "weights are read from local disks only", "copy the file first")
        with _readable(self.path):
            reader = gguf.GGUFReader(os.fspath(self.path))
            self.fields = {name: field.contents() for name, field in reader.fields.items()}
            self.tensors = {tensor.name: tensor for tensor in reader.tensors}
        self.family = self.fields.get("general.architecture")
        if self.family not in FAMILIES:
            cure = f"use a model of one of {', '.join(FAMILIES)}"
            raise DataError(path, f"architecture {self.family!r} is not supported", cure)

    def config(self) -> Any:
        """Returns the transformers config of the model.

        Raises:
          DataError: a required value is absent.
        """
        with _readable(self.path):
            heads = self._value("attention.head_count")
            values = {
                "vocab_size": self.tensors["token_embd.weight"].data.shape[0],
                "hidden_size": self._value("embedding_length"),
                "intermediate_size": self._value("feed_forward_length"),
                "num_hidden_layers": self._value("block_count"),
                "num_attention_heads": heads,
                "num_key_value_heads": self._value("attention.head_count_kv", heads),
                "rms_norm_eps": self._value("attention.layer_norm_rms_epsilon"),
                "max_position_embeddings": self._value("context_length"),
                "rope_theta": self._value("rope.freq_base", 10000.0),
                "tie_word_embeddings": "output.weight" not in self.tensors,
                "bos_token_id": self.fields.get("tokenizer.ggml.bos_token_id"),
                "eos_token_id": self.fields.get("tokenizer.ggml.eos_token_id"),
                "pad_token_id": self.fields.get("tokenizer.ggml.padding_token_id"),
            }
            values |= self._optional(values["hidden_size"] // heads)
            if scaling := self._scaling(values["max_position_embeddings"]):
                values["rope_scaling"] = scaling
        return make_config(str(self.family), values, self.path)

    def renamed(self, rules: Sequence[Rule]) -> dict[str, LazyTensor]:
        """Returns the tensors under the published names of `rules`; others keep their names."""
        config = self.config()
        layers = config.num_hidden_layers
        names = gguf.get_tensor_name_map(_ARCHITECTURES[str(self.family)], layers)
        left = {name: t for name, t in self.tensors.items() if name not in _FACTORS}
        found: dict[str, LazyTensor] = {}
        for theirs in _published(rules, layers):
            own = names.get_name(theirs, try_suffixes=(".weight", ".bias"))
            if own in left:
                found[theirs] = _lazy(left.pop(own), self._interleaved(theirs, config), self.path)
        return found | {name: _lazy(tensor, 0, self.path) for name, tensor in left.items()}

    def _interleaved(self, name: str, config: Any) -> int:
        """Returns the number of heads stored for interleaved rotary pairs; 0 if not interleaved."""
        if self.family != "llama":
            return 0
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        return next((count for part, count in heads.items() if f".{part}." in name), 0)

    def _value(self, name: str, default: Any = None) -> Any:
        key = f"{self.family}.{name}"
        return self.fields[key] if default is None else self.fields.get(key, default)

    def _optional(self, head_dim: int) -> dict[str, Any]:
        """Returns the config values that only some of the families have."""
        size = self._value("attention.key_length", head_dim)
        match self.family:
            case "phi3":
                window = self._value("attention.sliding_window", 0) or None
                partial = self._value("rope.dimension_count", head_dim) / head_dim
                return {"sliding_window": window, "partial_rotary_factor": partial}
            case "llama" | "qwen3":
                return {"head_dim": size}
        return {}

    def _scaling(self, context: int) -> dict[str, Any] | None:
        """Returns Hugging Face's `rope_scaling`, from tensors of divisors or from metadata."""
        trained = self._value("rope.scaling.original_context_length", context)
        held = [np.array(self.tensors[n].data).tolist() for n in _FACTORS if n in self.tensors]
        if held:
            return {
                "rope_type": "longrope",
                "short_factor": held[0],
                "long_factor": held[-1],
                "original_max_position_embeddings": trained,
                "attention_factor": float(self._value("rope.scaling.attn_factor", 1.0)),
            }
        kind = self._value("rope.scaling.type", "none")
        if kind == "none":
            return None
        factor = self._value("rope.scaling.factor")
        extra = {"original_max_position_embeddings": trained} if kind == "yarn" else {}
        return {"rope_type": kind, "factor": factor} | extra


def _published(rules: Sequence[Rule], layers: int) -> Iterator[str]:
    """Yields every published name that a rule maps to a parameter."""
    for rule in rules:
        if not rule.paths:
            continue
        if "{i}" not in rule.theirs:
            yield rule.theirs
            continue
        for layer in range(*(rule.layers or (0, layers))):
            yield rule.theirs.replace("{i}", str(layer))


def _lazy(tensor: gguf.ReaderTensor, interleaved: int, path: epath.Path) -> LazyTensor:
    kind = tensor.tensor_type.name
    if kind not in QUANTIZED:
        cure = f"use a file in one of {', '.join(QUANTIZED)}"
        raise DataError(path, f"{tensor.name} has type {kind}", cure)

    def read(index: Any) -> np.ndarray:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        values = np.asarray(values, np.float32).reshape(shape)
        if interleaved:  # rows (pair, half) of every head to rows (half, pair)
            halves = values.reshape(interleaved, -1, 2, *shape[1:])
            values = halves.swapaxes(1, 2).reshape(shape)
        return values[index]

    shape = tuple(int(side) for side in reversed(tensor.shape))
    return LazyTensor(shape, read)


@contextlib.contextmanager
def _readable(path: epath.Path) -> Iterator[None]:
    """Turns the exceptions of the GGUF reader on damaged files into DataError."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(path, "there is no such file", "check the path") from error
    except (ValueError, KeyError, IndexError, TypeError, OSError, OverflowError) as error:
        raise DataError(path, f"no readable GGUF file ({error!r})", "fetch it again") from error
