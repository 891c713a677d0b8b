"""Key layouts of published 3D vision transformers."""

from __future__ import annotations

from data_pipelines.errors import ConfigError
from m3djax.convert.name_map import Fused, HeadRow, PatchConv, Rule, Same, linear, norm
from m3djax.models.encoder import Encoder
from m3djax.models.patches import Size
from m3djax.models.transformer import Transformer
from m3djax.models.vit import ViT3D

_QKV = ("query", "key", "value")


def monai_vit(vision: Encoder, prefix: str, ours: str = "vision") -> tuple[Rule, ...]:
    """Returns the map of MONAI's ViT with "perceptron" patches: M3D-CLIP, M3D-LaMed, SegVol.

    Args:
      vision: the encoder.
      prefix: start of the published names, such as "vision_encoder.".
      ours: name of our component.

    Raises:
      ConfigError: the encoder is not a ViT3D with one Transformer, so its parameters have no
        published names.
    """
    if not (isinstance(vision, ViT3D) and isinstance(vision.transformer, Transformer)):
        raise ConfigError(
            f"{ours}={type(vision).__name__}: this layout has published names for a ViT3D with one "
            "Transformer only. Cure: --layout m3djax, which stores any task under its own names."
        )
    block = f"{ours}/transformer/block"
    return (
        Rule(f"{prefix}cls_token", f"{ours}/cls", Same(lead=2)),
        Rule(
            f"{prefix}patch_embedding.position_embeddings", f"{ours}/positions/table", Same(lead=1)
        ),
        *linear(f"{prefix}patch_embedding.patch_embeddings.1", f"{ours}/patch_embed"),
        *norm(f"{prefix}blocks.{{i}}.norm1", f"{block}/norm1"),
        *norm(f"{prefix}blocks.{{i}}.norm2", f"{block}/norm2"),
        _qkv(f"{prefix}blocks.{{i}}.attn.qkv", f"{block}/attention", "weight"),
        *linear(f"{prefix}blocks.{{i}}.attn.out_proj", f"{block}/attention/out"),
        *linear(f"{prefix}blocks.{{i}}.mlp.linear1", f"{block}/mlp/fc1"),
        *linear(f"{prefix}blocks.{{i}}.mlp.linear2", f"{block}/mlp/fc2"),
        *norm(f"{prefix}norm", f"{ours}/norm"),
    )


def timm_vit(patch_size: Size, prefix: str = "", ours: str = "vision") -> tuple[Rule, ...]:
    """Returns the map of timm's ViT over 3D patches with a class token.

    The later code of E3D-GPT's author (Med3D-R1) has this layout.
    """
    return (
        Rule(f"{prefix}cls_token", f"{ours}/cls", Same(lead=2)),
        Rule(f"{prefix}pos_embed", (f"{ours}/cls_position", f"{ours}/positions/table"), HeadRow()),
        Rule(
            f"{prefix}patch_embed.proj.weight",
            f"{ours}/patch_embed/kernel",
            PatchConv(patch_size),
        ),
        Rule(f"{prefix}patch_embed.proj.bias", f"{ours}/patch_embed/bias"),
        *_timm_blocks(f"{prefix}blocks", f"{ours}/transformer/block"),
        *norm(f"{prefix}norm", f"{ours}/norm"),
    )


def timm_mae(patch_size: Size) -> tuple[Rule, ...]:
    """Returns the map of a masked autoencoder (fixed decoder positions) with timm's names."""
    return (
        *timm_vit(patch_size),
        *linear("decoder_embed", "mae_decoder/embed"),
        Rule("mask_token", "mae_decoder/mask_token", Same(lead=2)),
        Rule("decoder_pos_embed", ()),  # a fixed sin-cos table, computed here
        *_timm_blocks("decoder_blocks", "mae_decoder/transformer/block"),
        *norm("decoder_norm", "mae_decoder/norm"),
        *linear("decoder_pred", "mae_decoder/predict"),
    )


def _timm_blocks(theirs: str, ours: str) -> tuple[Rule, ...]:
    return (
        *norm(f"{theirs}.{{i}}.norm1", f"{ours}/norm1"),
        *norm(f"{theirs}.{{i}}.norm2", f"{ours}/norm2"),
        _qkv(f"{theirs}.{{i}}.attn.qkv", f"{ours}/attention", "weight"),
        _qkv(f"{theirs}.{{i}}.attn.qkv", f"{ours}/attention", "bias"),
        *linear(f"{theirs}.{{i}}.attn.proj", f"{ours}/attention/out"),
        *linear(f"{theirs}.{{i}}.mlp.fc1", f"{ours}/mlp/fc1"),
        *linear(f"{theirs}.{{i}}.mlp.fc2", f"{ours}/mlp/fc2"),
    )


def _qkv(theirs: str, ours: str, leaf: str) -> Rule:
    name = "kernel" if leaf == "weight" else "bias"
    return Rule(f"{theirs}.{leaf}", tuple(f"{ours}/{part}/{name}" for part in _QKV), Fused(3))
