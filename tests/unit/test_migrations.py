"""Configs as JSON: errors of their fields, round trips, and rules for earlier formats."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.errors import ConfigError
from m3djax.config import files, migrations, registry, serialize
from m3djax.config.serialize import dumps, from_json, to_json
from m3djax.optim import AdamW, Group
from tests import tiny

SHARE = st.floats(0, 1)
OPTIMIZERS = st.builds(
    AdamW,
    learning_rate=st.floats(1e-9, 10),
    schedule=st.sampled_from(("cosine", "linear", "constant")),
    warmup=SHARE,
    end=SHARE,
    weight_decay=SHARE,
    clip_norm=SHARE,
)
GROUPS = st.builds(Group, st.text(), SHARE, st.none() | SHARE)
# "class" and "format" are the keys of the format itself.
KEYS = st.text().filter(lambda key: key not in ("class", "format"))
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


@given(PLAIN)
def test_plain_values_come_back(value: Any) -> None:
    assert from_json(json.loads(json.dumps(to_json(value)))) == value


@given(OPTIMIZERS, st.lists(GROUPS, max_size=3).map(tuple), st.integers(1, 10**9))
def test_configs_come_back(optimizer: AdamW, groups: tuple[Group, ...], steps: int) -> None:
    config = dataclasses.replace(tiny.experiment(), optimizer=optimizer, groups=groups, steps=steps)
    assert from_json(json.loads(dumps(config))) == config


@given(PLAIN)
def test_upgrading_twice_changes_nothing_more(value: Any) -> None:
    once = migrations.upgrade(to_json(value))
    assert migrations.upgrade(once) == once


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"steps": 0}, "steps=0 is not positive. Cure: at least 1."),
        ({"log_every": -1}, "log_every=-1 is not positive. Cure: at least 1."),
        ({"save_every": 0}, "save_every=0 is not positive. Cure: at least 1."),
        ({"keep": 0}, "keep=0 is not positive. Cure: at least 1."),
        (
            {"gradient_accumulation_steps": 0},
            "gradient_accumulation_steps=0 is not positive. Cure: at least 1.",
        ),
        (
            {"gradient_accumulation_steps": 10**6},
            "gradient_accumulation_steps=1000000 does not divide batch_size=",
        ),
        (
            {"steps": 9, "profile": (3, 10)},
            "profile=(3, 10) is not a range of steps. Cure: two increasing steps between 0 and 9.",
        ),
        ({"profile": (3, 3)}, "profile=(3, 3) is not a range of steps."),
        ({"evaluators": ()}, 'evaluators is a tuple. Cure: a dict {"NAME": evaluator}.'),
    ],
)
def test_errors_of_fields_name_field_value_and_cure(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        dataclasses.replace(tiny.experiment(), **fields)
    assert message in str(error.value)


def saved(cls: str, module: str = "m3djax.anywhere", /, **fields: Any) -> dict[str, Any]:
    """An object of a config of format 1."""
    return {"class": f"{module}:{cls}", **fields}


@pytest.mark.parametrize(
    "old, new",
    [
        (
            saved("Window", low=-1000, high=1000, to=[-1, 1]),
            {
                "class": "ScaleIntensityRange",
                "a_min": -1000,
                "a_max": 1000,
                "b_min": -1,
                "b_max": 1,
            },
        ),
        (
            saved("Window", low=0, high=1),
            {"class": "ScaleIntensityRange", "a_min": 0, "a_max": 1, "b_min": 0.0, "b_max": 1.0},
        ),
        (
            saved("Data", "data_pipelines.pipeline", size=[8, 8, 8], text=saved("Text")),
            {
                "class": "Data",
                "size": [8, 8, 8],
                "fields": {"image": {"class": "Image"}, "text": {"class": "Text"}},
            },
        ),
        (
            saved("Data", "data_pipelines.pipeline", text=None),
            {"class": "Data", "fields": {"image": {"class": "Image"}}},
        ),
        (
            saved("Experiment", task=saved("MAE", intensity=saved("Intensity")), accumulate=2),
            {
                "class": "Experiment",
                "task": {"class": "MAE"},
                "inputs": {"class": "Inputs"},
                "gradient_accumulation_steps": 2,
            },
        ),
        (
            saved("Experiment", task=saved("LoRA", rank=4, task=saved("Language", chunk=7))),
            {
                "class": "Experiment",
                "task": {"class": "Language", "logits_chunk": 7},
                "adapters": {"class": "LoRA", "rank": 4},
            },
        ),
        (
            saved(
                "Experiment",
                name="llama2_7b",
                task=saved("Language"),
                data=saved("Data", size=[1, 8, 8]),
            ),
            {
                "class": "Experiment",
                "name": "llama2_7b",
                "task": {"class": "Language"},
                "data": {"class": "Data", "fields": {}},
            },
        ),
        (
            saved("VisionLanguage", llm=saved("Decoder", context=9, tie_embeddings=True), layer=-2),
            {
                "class": "VisionLanguage",
                "llm": {
                    "class": "Decoder",
                    "max_position_embeddings": 9,
                    "tie_word_embeddings": True,
                },
                "vision_feature_layer": -2,
            },
        ),
        (
            [saved("AdamW"), {"class": "mine.parts:Window", "low": 1}],
            [{"class": "AdamW"}, {"class": "mine.parts:Window", "low": 1}],
        ),
    ],
)
def test_every_rule_for_format_1(old: Any, new: Any) -> None:
    """The number of the format may be absent."""
    numbered = [{"format": 1, **old}] if isinstance(old, dict) else []
    for config in (*numbered, old):
        assert migrations.upgrade(json.loads(json.dumps(config))) == new


def test_a_config_of_today_is_not_touched() -> None:
    """An object of another package may have a class and fields with old names."""
    today = to_json(tiny.experiment())
    assert migrations.upgrade(json.loads(dumps(tiny.experiment()))) == today
    foreign = {"format": 2, "class": "mine:Window", "low": 1, "chunk": 2}
    assert migrations.upgrade(foreign) == {"class": "mine:Window", "low": 1, "chunk": 2}


@pytest.mark.parametrize("number", [0, 3, -1, "2", None])
def test_other_formats_are_refused(number: Any) -> None:
    with pytest.raises(ConfigError, match=f"has format {number}; .* up to 2. Cure: "):
        migrations.upgrade({"format": number, **to_json(AdamW())})


def test_saved_fields_get_their_defaults() -> None:
    assert from_json({"class": "AdamW", "warmup": 0.5}) == AdamW(warmup=0.5)
    upgraded = serialize.upgrade({"class": "m3djax.optim:AdamW", "warmup": 0.5})
    assert upgraded == to_json(AdamW(warmup=0.5))


def test_foreign_packages_are_found_at_any_depth() -> None:
    config = {
        "class": "Experiment",
        "task": {"class": "mine.shares:Shares", "parts": [{"class": "AdamW"}]},
        "evaluators": {"a": {"class": "theirs:Dice"}, "b": {"class": "mine:Other"}},
        "plain": ["not:a class", 3],
    }
    assert registry.foreign_packages(config) == {"mine", "theirs"}
    assert registry.foreign_packages(to_json(tiny.experiment())) == set()


def test_a_package_that_was_not_allowed_is_not_imported() -> None:
    with pytest.raises(ConfigError) as error:
        registry.find("never_allowed.parts:Task")
    assert "Cure: --allow never_allowed, or m3djax.allow('never_allowed')" in str(error.value)


def test_a_config_may_name_a_class_of_a_single_file(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the config was loaded, its own classes are trusted."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_allowed", {"flax"})
    pathlib.Path("single_file_parts.py").write_text(
        "from dataclasses import dataclass\n\n"
        "@dataclass(frozen=True)\nclass Part:\n    width: int = 1\n"
    )
    pathlib.Path("single_file_config.py").write_text(
        "from single_file_parts import Part\n\ndef get_config():\n    return Part(3)\n"
    )
    part = {"class": "single_file_parts:Part", "width": 3}
    with pytest.raises(ConfigError, match="--allow single_file_parts"):
        from_json(part)
    config = files.load_config("single_file_config.py")
    assert to_json(config) == part
    assert from_json(part) == config
