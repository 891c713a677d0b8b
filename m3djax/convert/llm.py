"""Key layout of Hugging Face's Llama, Phi-3 and Qwen checkpoints."""

from __future__ import annotations

from data_pipelines.errors import ConfigError
from m3djax.convert.name_map import Linear, Rule, Same, Transform
from m3djax.models.llm.decoder import Decoder, DecoderBlock, block_of
from m3djax.models.mlp import GatedMlp


def rules(model: Decoder, prefix: str = "", ours: str = "llm") -> tuple[Rule, ...]:
    """Returns the map of a model's parameters.

    Args:
      model: the decoder.
      prefix: start of the published names, such as "base_model.model.".
      ours: our component.

    Raises:
      ConfigError: the decoder has MLPs of another kind, whose parameters have no published names.
    """
    head: str | tuple[()] = () if model.tie_word_embeddings else f"{ours}/head/kernel"
    found = [
        Rule(f"{prefix}model.embed_tokens.weight", f"{ours}/token_embed/embedding"),
        Rule(f"{prefix}model.norm.weight", f"{ours}/norm/scale"),
        # Some files store a tied head, too.
        Rule(f"{prefix}lm_head.weight", head, Linear()),
        # Files of the first Llama hold the rotary frequencies, which follow from the config.
        Rule(f"{prefix}model.layers.{{i}}.self_attn.rotary_emb.inv_freq", ()),
    ]
    first = 0
    for number, stage in enumerate(model.stages):
        layers = (first, first + stage.num_layers)
        block = f"{ours}/stages_{number}/block"
        found += [
            Rule(f"{prefix}model.layers.{{i}}.{theirs}", f"{block}/{path}", via, layers)
            for theirs, path, via in _block(block_of(stage))
        ]
        first = layers[1]
    return tuple(found)


def _block(block: DecoderBlock) -> list[tuple[str, str, Transform]]:
    """Returns (published name, our path, transform) for each tensor of a block."""
    attention, mlp = block.attention, block.mlp
    if not isinstance(mlp, GatedMlp):
        raise ConfigError(
            f"mlp={type(mlp).__name__}: this layout has published names for a GatedMlp only. "
            "Cure: --layout m3djax, which stores any task under its own names."
        )
    same = Same()
    found: list[tuple[str, str, Transform]] = []

    def linear(theirs: str, ours: str, use_bias: bool) -> None:
        found.append((f"{theirs}.weight", f"{ours}/kernel", Linear()))
        if use_bias:
            found.append((f"{theirs}.bias", f"{ours}/bias", same))

    inputs = {"qkv_proj": "qkv"} if attention.fused else _QKV
    for theirs, ours in inputs.items():
        linear(f"self_attn.{theirs}", f"attention/{ours}", attention.qkv_bias)
    linear("self_attn.o_proj", "attention/out", attention.out_bias)
    for theirs, ours in ({"gate_up_proj": "gate_up"} if mlp.fused else _GATE_UP).items():
        linear(f"mlp.{theirs}", f"mlp/{ours}", mlp.use_bias)
    linear("mlp.down_proj", "mlp/down", mlp.use_bias)
    norms = {"input_layernorm": "norm1", "post_attention_layernorm": "norm2"}
    if attention.qk_norm:
        norms |= {"self_attn.q_norm": "attention/query_norm"}
        norms |= {"self_attn.k_norm": "attention/key_norm"}
    found += [(f"{theirs}.weight", f"{ours}/scale", same) for theirs, ours in norms.items()]
    return found


_QKV = {"q_proj": "query", "k_proj": "key", "v_proj": "value"}
_GATE_UP = {"gate_proj": "gate", "up_proj": "up"}
