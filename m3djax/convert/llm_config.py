"""Conversion of Hugging Face's configs of language models to our modules."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any, Literal

from etils import epath

from data_pipelines.errors import ConfigError, DataError
from m3djax.models import rotary
from m3djax.models.llm.decoder import CausalAttention, Decoder, DecoderBlock
from m3djax.models.mlp import GatedMlp
from m3djax.models.transformer import Remat, Transformer

FAMILIES = ("llama", "phi3", "qwen2", "qwen3")
CONFIG = "config.json"


def read_config(path: epath.PathLike, family: str | None = None) -> Any:
    """Reads a checkpoint's config.json as a transformers config.

    Args:
      path: the checkpoint's folder.
      family: one of `FAMILIES`, for checkpoints with a `model_type` of their own, such as models
        that are built around a language model.

    Raises:
      DataError: there is no readable config, or its family is not one of `FAMILIES`.
    """
    file = epath.Path(path) / CONFIG
    try:
        values = json.loads(file.read_text())
        family = family or values["model_type"]
    except FileNotFoundError as error:
        raise DataError(path, f"it has no {CONFIG}", "name the folder of a checkpoint") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(file, f"no readable config ({error!r})", "fetch the file again") from error
    if family not in FAMILIES:
        cure = f"use a model of one of {', '.join(FAMILIES)}"
        raise DataError(file, f"model_type {family!r} is not supported", cure)
    return make_config(family, values, file)


def make_config(family: str, values: dict[str, Any], source: epath.PathLike) -> Any:
    """Makes a transformers config from its values; `source` is named in the error.

    Raises:
      DataError: transformers refuses the values.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.for_model(
            family, **{k: v for k, v in values.items() if k != "model_type"}
        )
    except Exception as error:  # each class of config raises its own
        problem = f"transformers refuses the config ({error})"
        raise DataError(source, problem, "correct the file") from error


def decoder(
    config: Any,
    *,
    dtype: Literal["float32", "bfloat16"] = "float32",
    remat: Remat = "none",
    num_tokens: int | None = None,
) -> Decoder:
    """Returns the module that a transformers config describes.

    Args:
      config: a config of one of `FAMILIES`.
      dtype: dtype of the computation.
      remat: activations that the backward pass computes again.
      num_tokens: number of tokens in the tokenizer, if the table has more rows.

    Raises:
      ConfigError: the config has a value that is not supported.
    """
    if config.hidden_act not in ("silu", "swish"):
        raise ConfigError(
            f"hidden_act={config.hidden_act!r} is not supported. Cure: a model with silu."
        )
    stages = tuple(
        Transformer(len(list(layers)), _block(config, window), remat)
        for window, layers in itertools.groupby(_windows(config))
    )
    return Decoder(
        vocab_size=config.vocab_size,
        num_tokens=None if num_tokens == config.vocab_size else num_tokens,
        hidden_size=config.hidden_size,
        stages=stages,
        rotary=_rotary(config),
        tie_word_embeddings=bool(config.tie_word_embeddings),
        norm_eps=config.rms_norm_eps,
        max_position_embeddings=_context(config),
        dtype=dtype,
    )


def _context(config: Any) -> int:
    """Returns the longest text in tokens.

    With dynamic scaling, `max_position_embeddings` is the length at which the scaling begins, so it
    is multiplied by the factor.
    """
    values = config.rope_parameters
    stretch = values["factor"] if values.get("rope_type") == "dynamic" else 1
    return int(config.max_position_embeddings * stretch)


def _block(config: Any, window: int | None) -> DecoderBlock:
    family = config.model_type
    bias = bool(getattr(config, "attention_bias", False))
    attention = CausalAttention(
        num_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads or config.num_attention_heads,
        head_dim=_head_dim(config),
        fused=family == "phi3",
        qkv_bias=bias or family == "qwen2",
        out_bias=bias,
        qk_norm=family == "qwen3",
        norm_eps=config.rms_norm_eps,
        window=window,
    )
    mlp = GatedMlp(
        config.intermediate_size,
        fused=family == "phi3",
        use_bias=bool(getattr(config, "mlp_bias", False)),
    )
    return DecoderBlock(attention, mlp, config.rms_norm_eps)


def _head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _windows(config: Any) -> list[int | None]:
    """Returns the attention window of each layer in tokens; None for full attention."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return [window] * config.num_hidden_layers
    return [window if kind == "sliding_attention" else None for kind in kinds]


def _rotary(config: Any) -> rotary.Rotary:
    values = dict(config.rope_parameters)
    theta, fraction = values["rope_theta"], values.get("partial_rotary_factor") or 1.0
    return rotary.Rotary(theta, fraction, _scaling(values, config.max_position_embeddings))


def _scaling(values: dict[str, Any], context: int) -> rotary.Scaling | None:
    kind = values.get("rope_type", "default")
    trained = values.get("original_max_position_embeddings") or context
    factor = values.get("factor") or context / trained
    match kind:
        case "default":
            return None
        case "linear":
            return rotary.LinearScaling(factor)
        case "dynamic":
            return rotary.DynamicScaling(factor, context)
        case "llama3":
            return rotary.Llama3Scaling(
                factor, values["low_freq_factor"], values["high_freq_factor"], trained
            )
        case "yarn":
            return rotary.YarnScaling(
                factor,
                trained,
                values.get("beta_fast") or 32.0,
                values.get("beta_slow") or 1.0,
                _yarn_amplitude(values, factor),
                values.get("truncate", True),
            )
        case "longrope":
            amplitude = values.get("attention_factor")
            if amplitude is None:
                long = math.log(factor) / math.log(trained)
                amplitude = math.sqrt(1 + long) if factor > 1 else 1.0
            return rotary.LongRopeScaling(
                tuple(values["short_factor"]), tuple(values["long_factor"]), trained, amplitude
            )
    raise ConfigError(
        f"rope_type={kind!r} is not supported. Cure: default, linear, dynamic, llama3, yarn or "
        "longrope."
    )


def _yarn_amplitude(values: dict[str, Any], factor: float) -> float:
    if values.get("attention_factor") is not None:
        return values["attention_factor"]

    def warmth(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1 if factor > 1 else 1.0

    top, bottom = values.get("mscale"), values.get("mscale_all_dim")
    return warmth(top) / warmth(bottom) if top and bottom else warmth(1.0)
