"""PEFT's layout of LoRA: state dicts of whole models with adapters, and folders of adapters."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from data_pipelines import files
from data_pipelines.errors import DataError
from m3djax.adapters import A, B, LoRA
from m3djax.convert import name_map
from m3djax.convert.name_map import Linear, Rule
from m3djax.convert.safetensors_files import open_checkpoint, write_checkpoint
from m3djax.params import FlatParams

PREFIX = "base_model.model."
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_OTHER_KINDS = ("use_rslora", "use_dora", "fan_in_fan_out", "alpha_pattern", "rank_pattern")


def with_adapters(rules: Sequence[Rule], lora: LoRA, name: str = "default") -> tuple[Rule, ...]:
    """Returns the map of the state dict of a model with adapters (M3D's model_with_lora.bin).

    Args:
      rules: the map of the model without adapters.
      lora: the adapters, which name the adapted layers.
      name: the adapter's name in PEFT.
    """
    adapted = {_layer(rule) for rule in rules if _adapted(rule, lora)}
    found = []
    for rule in rules:
        theirs = rule.theirs
        if _layer(rule) in adapted:  # its kernel, and its bias if it has one
            layer, _, leaf = theirs.rpartition(".")
            theirs = f"{layer}.base_layer.{leaf}"
        found.append(Rule(PREFIX + theirs, rule.ours, rule.via, rule.layers))
    return (*found, *adapters(rules, lora, name))


def adapters(rules: Sequence[Rule], lora: LoRA, name: str = "") -> tuple[Rule, ...]:
    """Returns the map of the adapters alone; in a folder of adapters the name is empty."""
    middle = f".{name}" if name else ""
    return tuple(
        Rule(
            f"{PREFIX}{rule.theirs.removesuffix('.weight')}.{theirs}{middle}.weight",
            rule.paths[0].removesuffix("kernel") + ours,
            Linear(),
            rule.layers,
        )
        for rule in rules
        if _adapted(rule, lora)
        for theirs, ours in (("lora_A", A), ("lora_B", B))
    )


def save(path: epath.PathLike, ours: Mapping[str, Any], rules: Sequence[Rule], lora: LoRA) -> None:
    """Writes adapters as PEFT's `save_pretrained` does.

    Args:
      path: the folder.
      ours: parameters by path; only the adapters are written.
      rules: the map of the model without adapters.
      lora: rank, alpha, dropout and target layers.
    """
    root = epath.Path(path)
    arrays = name_map.save({k: np.asarray(v) for k, v in ours.items()}, adapters(rules, lora))
    tensors = {name: (array.nbytes, lambda array=array: array) for name, array in arrays.items()}
    write_checkpoint(root, tensors, single=WEIGHTS)
    modules = {rule.theirs.split(".")[-2] for rule in rules if _adapted(rule, lora)}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": sorted(modules),
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
    }
    files.write_whole(root / CONFIG, json.dumps(config, indent=2, sort_keys=True))


def load(
    path: epath.PathLike,
    rules: Sequence[Rule],
    lora: LoRA,
    expected: Mapping[str, tuple[int, ...]],
) -> FlatParams:
    """Reads a folder of adapters; returns them by path in float32.

    Args:
      path: the folder.
      rules: the map of the model without adapters.
      lora: the expected rank, alpha and target layers.
      expected: paths and shapes of all parameters, adapters included.

    Raises:
      DataError: the folder has another rank, alpha or kind of adapters, or tensors do not fit.
    """
    root = epath.Path(path)
    try:
        config = json.loads((root / CONFIG).read_text())
        rank, alpha = config["r"], config["lora_alpha"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(root, f"no readable {CONFIG} ({error!r})", "fetch it again") from error
    if other := [k for k in _OTHER_KINDS if config.get(k)]:
        raise DataError(root, f"{other[0]} is not supported", "use plain LoRA adapters")
    if (rank, alpha) != (lora.rank, lora.alpha):
        problem = f"its rank and alpha are {rank} and {alpha}, not {lora.rank} and {lora.alpha}"
        raise DataError(root, problem, f"use LoRA(rank={rank}, alpha={alpha})")
    tensors = {name: lazy[...] for name, lazy in open_checkpoint(root / WEIGHTS).items()}
    wanted = {k: s for k, s in expected.items() if k.endswith((f"/{A}", f"/{B}"))}
    try:
        found = name_map.load(tensors, adapters(rules, lora), wanted)
    except ValueError as error:
        raise DataError(root, str(error), "check which layers are adapted") from error
    return {name: jnp.asarray(array, jnp.float32) for name, array in found.items()}


def _adapted(rule: Rule, lora: LoRA) -> bool:
    layer = _layer(rule)
    return rule.paths == (f"{layer}/kernel",) and bool(re.fullmatch(lora.targets, layer))


def _layer(rule: Rule) -> str:
    """Returns the path of the layer of a rule with one parameter; "" for other rules."""
    return rule.paths[0].rpartition("/")[0] if len(rule.paths) == 1 else ""
