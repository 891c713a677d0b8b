"""M3D-LaMed's layouts: shards, separate adapters, tensors that are put aside, plans."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import pathlib
import struct

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from configs.m3d import instruct_released, instruct_released_phi3
from m3djax.adapters import LoRA
from m3djax.convert import layouts, name_map
from m3djax.convert.run import Convert, expected_shapes
from m3djax.convert.safetensors_files import INDEX, open_checkpoint, write_checkpoint
from m3djax.mesh import sharding
from m3djax.runs.checkpoint import CheckpointError
from m3djax.runs.state import initial_state
from tests import tiny

KEYS = pathlib.Path(__file__).parent / "keys"
TASK = tiny.vision_language(vision=tiny.clip().vision)
PLAIN = tiny.experiment(task=TASK)
TRAINED = r".*lora_[ab]|vision/|projector/"
ADAPTED = tiny.experiment(task=TASK, adapters=LoRA(2, 4.0), trainable=TRAINED)
SEGMENTATION = {
    "model.seg_projector.0.weight": (3, 3),
    "model.seg_module.mask_decoder.iou_token.weight": (1, 4),
}


def published(layout: str) -> dict[str, np.ndarray]:
    """Random weights under the published names, the mask decoder's among them."""
    rng = np.random.default_rng(0)
    experiment = ADAPTED if layout == "m3d_lamed_lora" else PLAIN
    shapes = expected_shapes(experiment, layouts.LAYOUTS[layout].components)
    ours = {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}
    theirs = name_map.save(ours, layouts.rules_of(layout, experiment))
    prefix = "base_model.model." if layout == "m3d_lamed_lora" else ""
    more = {prefix + k: rng.normal(size=s).astype(np.float32) for k, s in SEGMENTATION.items()}
    return theirs | more


def shards(folder: pathlib.Path, tensors: dict[str, np.ndarray]) -> pathlib.Path:
    sized = {name: (a.nbytes, lambda a=a: a) for name, a in tensors.items()}
    write_checkpoint(folder, sized, shard_bytes=20_000)
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


def test_shards_there_and_back_are_bit_equal(tmp_path: pathlib.Path) -> None:
    """Whatever the config's adapters; the mask decoder's tensors are put aside, and put back."""
    theirs, out = published("m3d_lamed"), tmp_path / "imported"
    said = Convert(str(shards(tmp_path / "theirs", theirs)), str(out)).load(ADAPTED)
    assert "layout m3d_lamed" in said and "put aside" in said and "2 tensors" in said
    assert json.loads((out / "origin.json").read_text())["dtypes"] == {"F32": len(theirs) - 2}
    again = tmp_path / "again"
    said = Convert(str(out), str(again), layout="m3d_lamed").export()
    assert f"{len(theirs)} tensors" in said
    back = {name: tensor[...] for name, tensor in open_checkpoint(again).items()}
    assert back.keys() == theirs.keys()
    assert all(np.array_equal(back[name], theirs[name]) for name in theirs)


def test_adapters_apart_there_and_back_and_merged(tmp_path: pathlib.Path) -> None:
    theirs, out = published("m3d_lamed_lora"), tmp_path / "imported"
    save_file({k: np.array(v, order="C") for k, v in theirs.items()}, tmp_path / "w.safetensors")
    assert "layout m3d_lamed_lora" in Convert(str(tmp_path / "w.safetensors"), str(out)).load(
        ADAPTED
    )
    again = tmp_path / "again.safetensors"
    Convert(str(out), str(again), layout="m3d_lamed_lora").export()
    back = load_file(again)
    assert back.keys() == theirs.keys()
    assert all(np.array_equal(back[name], theirs[name]) for name in theirs)
    merged = tmp_path / "merged.safetensors"
    Convert(str(out), str(merged), layout="m3d_lamed").export()
    found = load_file(merged)
    assert found.keys() == published("m3d_lamed").keys()
    name, before = "model.layers.1.self_attn.q_proj", "base_model.model.model.layers.1.self_attn."
    a, b = (theirs[f"{before}q_proj.lora_{x}.default.weight"] for x in "AB")
    wanted = theirs[f"{before}q_proj.base_layer.weight"] + 2 * b @ a
    np.testing.assert_allclose(found[f"{name}.weight"], wanted, atol=1e-5)


def test_a_run_with_adapters_starts_from_it(tmp_path: pathlib.Path) -> None:
    """By the names of components; its adapters are fresh."""
    out = tmp_path / "imported"
    Convert(str(shards(tmp_path / "theirs", published("m3d_lamed"))), str(out)).load(PLAIN)
    parts = dict.fromkeys(("vision", "projector", "llm"), str(out))
    experiment = dataclasses.replace(ADAPTED, init_from=parts)
    mesh = sharding.make_mesh((1, 1, 1), jax.devices()[:1])
    state = initial_state(experiment, mesh)
    shapes = expected_shapes(PLAIN, ("vision", "projector", "llm"))
    rules = layouts.rules_of("m3d_lamed", PLAIN)
    theirs = {k: v for k, v in published("m3d_lamed").items() if "seg_" not in k}
    for path, value in name_map.load(theirs, rules, shapes).items():
        np.testing.assert_array_equal((state.trainable | state.frozen)[path], value, err_msg=path)


def test_left_out_and_left_over_are_named(tmp_path: pathlib.Path) -> None:
    theirs = published("m3d_lamed")
    del theirs["model.mm_projector.projector.2.bias"]
    source = shards(tmp_path / "theirs", theirs)
    with pytest.raises(CheckpointError, match=r"missing \(1\):\n    projector/linear_1/bias"):
        Convert(str(source), str(tmp_path / "out")).load(PLAIN)
    assert not (tmp_path / "out").exists()
    with pytest.raises(Exception, match="adapters"):
        Convert(str(source), str(tmp_path / "out"), layout="m3d_lamed_lora").load(PLAIN)


@pytest.mark.parametrize(
    ("name", "config", "count", "numbers"),
    [
        ("m3d_lamed_llama2", instruct_released, 713, 6_983_027_792),
        ("m3d_lamed_phi3", instruct_released_phi3, 617, 4_049_101_904),
    ],
)
def test_plan_of_the_published_sizes(
    name: str, config: object, count: int, numbers: int, tmp_path: pathlib.Path
) -> None:
    """Every published name and shape, in a file that is all hole: nothing of it is read."""
    rows = csv.reader((KEYS / f"{name}.tsv").open(), delimiter="\t")
    table = {key: [int(n) for n in shape.split("x") if n] for key, shape in rows}
    assert len(table) == count
    assert sum(math.prod(shape) for shape in table.values()) == numbers
    header, at = {}, 0
    for key, shape in table.items():
        size = 4 * math.prod(shape)
        header[key] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with (tmp_path / "model-00001-of-00001.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)
    where = dict.fromkeys(table, "model-00001-of-00001.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": where}))
    experiment = dataclasses.replace(config.get_config(), mesh=(1, 16, 1))  # type: ignore[attr-defined]
    said = Convert(str(tmp_path), str(tmp_path / "out"), plan=True).load(experiment)
    tensors = {k: t for k, t in open_checkpoint(tmp_path).items() if ".seg_" not in k}
    ours = sum(math.prod(tensor.shape) for tensor in tensors.values())
    assert f"{ours:,} numbers" in said and "fsdp 16" in said and "nothing was loaded" in said
    print(said)
    assert not (tmp_path / "out").exists()
