"""Rules that upgrade configs of earlier formats, so that old runs stay readable.

A saved config has the number of its format. Configs of format 1 have none: they name classes by
module, such as "m3djax.optim:AdamW".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from data_pipelines.errors import ConfigError

FORMAT = 2
_KEY = "format"

Node = dict[str, Any]
"""A config object as JSON: its class under "class", and its fields."""


# Classes of format 1 that have another name today.
RENAMED: dict[str, str] = {"Intensity": "Inputs", "Window": "ScaleIntensityRange"}


# Fields of classes of format 1 that have another name today: those of transformers.
RENAMED_FIELDS: dict[str, dict[str, str]] = {
    "Decoder": {"context": "max_position_embeddings", "tie_embeddings": "tie_word_embeddings"},
    "CausalAttention": {"num_kv_heads": "num_key_value_heads"},
    "GatedMlp": {"mlp_dim": "intermediate_size"},
    "Language": {"chunk": "logits_chunk"},
    "VisionLanguage": {
        "chunk": "logits_chunk",
        "image_token": "image_token_id",
        "layer": "vision_feature_layer",
    },
    "Experiment": {"accumulate": "gradient_accumulation_steps"},
}


def _data(node: Node) -> Node:
    """Moves `text` into `fields`, beside the image that every batch had."""
    text = node.pop("text", None)
    fields = {"image": {"class": "Image"}, **({"text": text} if text else {})}
    return {**node, "fields": fields}


def _window(node: Node) -> Node:
    """Renames the bounds of a window to MONAI's names."""
    names = {"low": "a_min", "high": "a_max"}
    low, high = node.pop("to", (0.0, 1.0))
    fields = {names.get(key, key): value for key, value in node.items()}
    return {**fields, "b_min": low, "b_max": high}


def _experiment(node: Node) -> Node:
    return _without_voxels(_inputs(_adapters(node)))


def _adapters(node: Node) -> Node:
    """Moves adapters, which were a task around the task, into a field of the experiment."""
    task = node["task"]
    if task["class"] != "LoRA":
        return node
    adapters = {key: value for key, value in task.items() if key != "task"}
    return {**node, "task": task["task"], "adapters": adapters}


def _inputs(node: Node) -> Node:
    """Moves window and augmentation from `intensity` of the task to `inputs` of the experiment."""
    task = dict(node["task"])
    inputs = {"inputs": task.pop("intensity")} if "intensity" in task else {}
    return {**node, "task": task, **inputs}


def _without_voxels(node: Node) -> Node:
    """Removes the image from the shipped text-only configs.

    They cut the smallest crops possible, which their task did not use. Their texts use no random
    numbers, so the texts of their batches stay the same.
    """
    data = node.get("data") or {}
    if node.get("name") in ("llama2_7b", "llama2_7b_lora") and data.get("size") == [1, 8, 8]:
        del data["size"], data["fields"]["image"]
    return node


# Changes of the fields of a class of format 1, by its old name. Inner objects are changed first.
RULES: dict[str, Callable[[Node], Node]] = {
    "Data": _data,
    "Experiment": _experiment,
    "Window": _window,
}


def stamp(config: Any) -> Any:
    """Returns a config as JSON with the number of its format."""
    return {_KEY: FORMAT, **config} if isinstance(config, dict) else config


def upgrade(config: Any) -> Any:
    """Returns a config of any format in today's format, without the number.

    Raises:
      ConfigError: a later version saved the config.
    """
    if not isinstance(config, dict):
        return [upgrade(item) for item in config] if isinstance(config, list) else config
    written = config.get(_KEY, 1 if _has_places(config) else FORMAT)
    if written not in range(1, FORMAT + 1):
        raise ConfigError(
            f"the config has format {written}; this version reads formats up to {FORMAT}. Cure: "
            "use the version that saved the config, or a later one."
        )
    config = {key: value for key, value in config.items() if key != _KEY}
    return _from_1(config) if written == 1 else config


def _from_1(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_1(item) for item in value]
    if not isinstance(value, dict):
        return value
    value = {key: _from_1(item) for key, item in value.items()}
    if not _is_place(value.get("class")):
        return value
    name = value["class"].partition(":")[2]
    fields = RENAMED_FIELDS.get(name, {})
    value = {fields.get(key, key): item for key, item in value.items()}
    return RULES.get(name, dict)({**value, "class": RENAMED.get(name, name)})


def _has_places(value: Any) -> bool:
    """Returns whether a config names a class of this project by module, as format 1 does."""
    if isinstance(value, dict):
        return _is_place(value.get("class")) or any(map(_has_places, value.values()))
    return isinstance(value, list) and any(map(_has_places, value))


def _is_place(name: Any) -> bool:
    return isinstance(name, str) and ":" in name and name.startswith(("m3djax.", "data_pipelines."))
