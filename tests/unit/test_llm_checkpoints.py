"""Checkpoints of language models: shards, shardings, GGUF, and what is wrong with them."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Callable

import gguf
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from data_pipelines.errors import ConfigError, DataError
from m3djax.convert import gguf_files, llm, pretrained, safetensors_files, stream
from m3djax.convert.pretrained import Pretrained
from m3djax.mesh import sharding
from m3djax.params import flatten, unflatten
from tests import tiny_llm

MAPPED = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def tiny() -> Pretrained:
    return tiny_llm.pretrained()


@pytest.fixture(scope="module")
def saved(tiny: Pretrained, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Three shards in bfloat16, config, tokenizer."""
    folder = tmp_path_factory.mktemp("llm")
    pretrained.save(folder, tiny, dtype=ml_dtypes.bfloat16)
    (folder / "model.safetensors").unlink()
    flat, rules = flatten(tiny.params), llm.rules(tiny.model)
    stream.save(folder, flat, rules, dtype=ml_dtypes.bfloat16, shard_bytes=25_000)
    return folder


def test_loads_into_shardings_and_exports_bit_for_bit(
    tiny: Pretrained, saved: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    assert len(list(saved.glob("model-0000?-of-00003.safetensors"))) == 3
    mesh = sharding.make_mesh((2, 2, 2))
    loaded = pretrained.load(saved, mesh)
    for path, leaf in flatten(loaded.params).items():
        assert leaf.dtype == jnp.float32
        spec = sharding.parameter_spec(path, leaf.shape, mesh, {"llm": loaded.model})
        assert leaf.sharding.spec == spec, path
        expected = np.asarray(flatten(tiny.params)[path]).astype(ml_dtypes.bfloat16)
        np.testing.assert_array_equal(np.asarray(leaf), expected.astype(np.float32), err_msg=path)
    assert (loaded.model.num_tokens, loaded.model.vocab_size) == (258, 264)
    assert loaded.eos_ids == (257,)
    pretrained.save(tmp_path, loaded, dtype=ml_dtypes.bfloat16)
    theirs = load_file(tmp_path / "model.safetensors")
    ours = {k: v for file in saved.glob("*.safetensors") for k, v in load_file(file).items()}
    assert theirs.keys() == ours.keys()
    for name, tensor in ours.items():
        assert tensor.tobytes() == theirs[name].tobytes(), name
    again = pretrained.load(tmp_path)
    assert again.model == loaded.model
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert again.tokenizer("a b")["input_ids"] == tiny.tokenizer("a b")["input_ids"]


def test_only_slices_are_read(saved: pathlib.Path) -> None:
    """A device that holds a part reads that part, and no other."""
    tensors, read = safetensors_files.open_checkpoint(saved), []

    def spy(name: str) -> safetensors_files.LazyTensor:
        def note(index: object) -> np.ndarray:
            part = tensors[name][index]
            read.append((name, part.shape))
            return part

        return safetensors_files.LazyTensor(tensors[name].shape, note)

    model = pretrained.load(saved).model
    spies = {name: spy(name) for name in tensors}
    mesh = sharding.make_mesh((1, 4, 2))
    expected = pretrained.shapes(model)
    stream.load(spies, llm.rules(model), expected, mesh, {"llm": model}, source=saved)
    assert {shape for name, shape in read if name == MAPPED} == {(48 // 2, 32 // 4)}
    table = {shape for name, shape in read if name == "model.embed_tokens.weight"}
    assert table == {(264 // 8, 32)}


def _edit_index(change: Callable[[dict], None]) -> Callable[[pathlib.Path], None]:
    def edit(folder: pathlib.Path) -> None:
        file = folder / safetensors_files.INDEX
        index = json.loads(file.read_text())
        change(index["weight_map"])
        file.write_text(json.dumps(index))

    return edit


def _edit_tensors(change: Callable[[dict], None]) -> Callable[[pathlib.Path], None]:
    def edit(folder: pathlib.Path) -> None:
        index = json.loads((folder / safetensors_files.INDEX).read_text())["weight_map"]
        file = folder / index[MAPPED]
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)

    return edit


def _edit_config(**values: object) -> Callable[[pathlib.Path], None]:
    def edit(folder: pathlib.Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return edit


def _truncate(folder: pathlib.Path) -> None:
    file = folder / "model-00002-of-00003.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


BROKEN: dict[str, tuple[Callable[[pathlib.Path], object], str]] = {
    "shard gone": (
        lambda f: (f / "model-00002-of-00003.safetensors").unlink(),
        "shards of the index are not there: model-00002",
    ),
    "shard not in the index": (
        lambda f: shutil.copy(
            f / "model-00001-of-00003.safetensors", f / "model-00004-of-00004.safetensors"
        ),
        "shards are missing from the index: model-00004",
    ),
    "tensor not in the index": (
        _edit_index(lambda where: where.pop(MAPPED)),
        f"and the index disagree about {MAPPED}",
    ),
    "index leads out": (
        _edit_index(lambda where: where.update({MAPPED: "../x.safetensors"})),
        "points outside its folder",
    ),
    "index is no JSON": (
        lambda f: (f / safetensors_files.INDEX).write_text("{"),
        "no readable index",
    ),
    "cut file": (_truncate, "no readable safetensors file"),
    "unknown dtype": (
        _edit_tensors(lambda t: t.update({MAPPED: t[MAPPED].astype(np.int8)})),
        f"{MAPPED} has dtype I8.*Cure: use a checkpoint in one of F64, F32, F16, BF16",
    ),
    "another size": (
        _edit_tensors(lambda t: t.update({MAPPED: t[MAPPED][:, :16]})),
        r"wrong shape: llm/stages_0/block/mlp/up/kernel: the file has \(2, 16, 48\)",
    ),
    "another number of layers": (
        _edit_config(num_hidden_layers=1),
        f"unknown tensor: {MAPPED}",
    ),
    "another family": (_edit_config(model_type="gpt2"), "model_type 'gpt2' is not supported"),
    "no config": (lambda f: (f / "config.json").unlink(), "it has no config.json"),
    "bad config": (_edit_config(num_attention_heads="four"), "transformers refuses the config"),
    "too small a vocabulary": (
        _edit_config(vocab_size=200),
        "its tokenizer has 258 tokens, its table 200 rows",
    ),
    "bad tokenizer": (
        lambda f: (f / "tokenizer.json").write_text("{}"),
        "its tokenizer is not readable",
    ),
    "no weights": (
        lambda f: [file.unlink() for file in f.glob("model*")],
        "neither model.safetensors nor",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_wrong_is_said(kind: str, saved: pathlib.Path, tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    damage, message = BROKEN[kind]
    damage(folder)
    with pytest.raises(DataError, match=message):
        pretrained.load(folder)


def test_an_activation_that_no_model_has(saved: pathlib.Path, tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    _edit_config(hidden_act="gelu")(folder)
    with pytest.raises(ConfigError, match="hidden_act='gelu' is not supported"):
        pretrained.load(folder)


def _write_gguf(path: pathlib.Path, tiny: Pretrained, kinds: dict[str, str]) -> None:
    """The tiny model as llama.cpp's converter writes it: rows of q and k interleaved."""
    writer = gguf.GGUFWriter(path, "llama")
    v = tiny_llm.VALUES
    writer.add_block_count(v["num_hidden_layers"])
    writer.add_context_length(v["max_position_embeddings"])
    writer.add_embedding_length(v["hidden_size"])
    writer.add_feed_forward_length(v["intermediate_size"])
    writer.add_head_count(v["num_attention_heads"])
    writer.add_head_count_kv(v["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(v["rms_norm_eps"])
    alphabet = tiny.tokenizer.convert_ids_to_tokens(range(258))
    tokens = [*alphabet, "hi", *(f"<unused{i}>" for i in range(5))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 256 + [3, 3, 1] + [3] * 5)
    writer.add_token_merges(["h i"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    writer.add_add_bos_token(True)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, v["num_hidden_layers"])
    flat = {path: np.asarray(leaf) for path, leaf in flatten(tiny.params).items()}
    from m3djax.convert import name_map

    for name, tensor in name_map.save(flat, llm.rules(tiny.model)).items():
        for part, heads in (("q_proj", 4), ("k_proj", 2)):
            if part in name:
                tensor = tensor.reshape(heads, 2, 4, -1).swapaxes(1, 2).reshape(tensor.shape)
        tensor = np.ascontiguousarray(tensor, np.float32)
        kind = next((k for word, k in kinds.items() if word in name), "F32")
        kind_id = gguf.GGMLQuantizationType[kind]
        data = gguf.quantize(tensor, kind_id)
        own = names.get_name(name, try_suffixes=(".weight",))
        writer.add_tensor(own, data, raw_dtype=kind_id)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


KINDS = {"up_proj": "F16", "q_proj": "Q8_0", "k_proj": "Q4_1", "gate_proj": "Q4_0"}


def test_gguf(tmp_path: pathlib.Path) -> None:
    """Each type as exact as it is, rows of q and k in our order, the tokenizer inside."""
    tiny = tiny_llm.pretrained()
    file = tmp_path / "tiny.gguf"
    _write_gguf(file, tiny, KINDS)
    loaded = pretrained.load(file)
    expected = dataclasses.replace(tiny.model, num_tokens=None)
    expected = dataclasses.replace(expected, norm_eps=loaded.model.norm_eps)
    assert loaded.model.head_dim == expected.head_dim
    ours, theirs = flatten(tiny.params), flatten(loaded.params)
    assert ours.keys() == theirs.keys()
    bounds = {"up": 1e-3, "query": 1e-2, "key": 0.15, "gate": 0.15}
    for path, leaf in theirs.items():
        bound = next((b for word, b in bounds.items() if f"{word}/kernel" in path), 0)
        scale = float(jnp.abs(ours[path]).max())
        difference = float(jnp.abs(leaf - ours[path]).max())
        assert difference <= bound * scale, (path, difference / scale)
    assert loaded.tokenizer("hi")["input_ids"] == [256, 258]
    assert loaded.tokenizer("hu 1")["input_ids"] == [256, *tiny.tokenizer("hu 1")["input_ids"]]
    assert loaded.eos_ids == (257,)


def test_gguf_that_cannot_be_read(tmp_path: pathlib.Path) -> None:
    tiny = tiny_llm.pretrained()
    file = tmp_path / "tiny.gguf"
    _write_gguf(file, tiny, {"up_proj": "Q5_1"})
    with pytest.raises(DataError, match="ffn_up.weight has type Q5_1.*Cure: use a file in one of"):
        pretrained.load(file)
    whole = file.read_bytes()
    file.write_bytes(whole[:2000])
    with pytest.raises(DataError, match="no readable GGUF file"):
        pretrained.load(file)
    file.write_bytes(b"GARB" + whole[4:])
    with pytest.raises(DataError, match="no readable GGUF file"):
        pretrained.load(file)
    with pytest.raises(DataError, match="there is no such file"):
        gguf_files.GgufFile(tmp_path / "absent.gguf")


def test_k_quants_are_read_as_gguf_reads_them() -> None:
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 255, (4, 144), np.uint8)
    blocks[:, :4] = np.array([0.5, 0.25], np.float16).view(np.uint8)
    kind = gguf.GGMLQuantizationType.Q4_K
    tensor = gguf.ReaderTensor("t", kind, np.array([256, 4], np.uint32), 1024, 576, 0, blocks, None)
    lazy = gguf_files._lazy(tensor, 0, pathlib.Path("x.gguf"))
    assert lazy.shape == (4, 256)
    np.testing.assert_array_equal(lazy[1:3, 8:16], gguf.dequantize(blocks, kind)[1:3, 8:16])


def test_two_stages_have_their_own_layers() -> None:
    """Layers with and without a window are two stacks here, one list of layers there."""
    changes = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    tiny = tiny_llm.pretrained("qwen2", num_hidden_layers=3, **changes)
    assert [stage.num_layers for stage in tiny.model.stages] == [1, 2]
    from m3djax.convert import name_map

    flat, rules = flatten(tiny.params), llm.rules(tiny.model)
    theirs = name_map.save(flat, rules)
    assert f"model.layers.{2}.mlp.up_proj.weight" in theirs
    back = name_map.load(theirs, rules, pretrained.shapes(tiny.model))
    assert jax.tree.all(jax.tree.map(np.array_equal, unflatten(back), tiny.params))
    theirs.pop("model.layers.2.mlp.up_proj.weight")
    with pytest.raises(ValueError, match="layers of .*up_proj.weight are not 0..1"):
        name_map.load(theirs, rules, pretrained.shapes(tiny.model))
