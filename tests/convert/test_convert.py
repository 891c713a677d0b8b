"""`run.py convert`: import, export, and errors about weights that do not fit."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from configs.m3d import clip_released
from data_pipelines.errors import ConfigError
from data_pipelines.fields.text import Text
from data_pipelines.text.tokens import ReportTokens
from m3djax import cli, params
from m3djax.convert import layouts, name_map
from m3djax.convert.run import Convert, expected_shapes
from m3djax.experiment import Experiment
from m3djax.mesh import sharding
from m3djax.models.positions import resize_table
from m3djax.runs import weights
from m3djax.runs.checkpoint import CheckpointError
from m3djax.runs.model import read_params
from m3djax.runs.run_folder import RunError, open_for_training
from m3djax.runs.state import initial_state, trainer_of
from tests import tiny
from tests.convert.test_files import torch_zip

KEYS = pathlib.Path(__file__).parent / "keys"
CLIP = tiny.experiment(task=tiny.clip(), name="clip")


@pytest.fixture(scope="module")
def published() -> dict[str, np.ndarray]:
    """Random weights of the tiny model under the published names."""
    rng = np.random.default_rng(0)
    shapes = expected_shapes(CLIP, layouts.LAYOUTS["m3d_clip"].components)
    ours = {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}
    return name_map.save(ours, layouts.rules_of("m3d_clip", CLIP))


@pytest.fixture
def source(published: dict[str, np.ndarray], tmp_path: pathlib.Path) -> pathlib.Path:
    return write(tmp_path / "model.safetensors", published)


def write(path: pathlib.Path, tensors: dict[str, Any]) -> pathlib.Path:
    path.parent.mkdir(exist_ok=True)
    save_file({k: np.array(v, order="C") for k, v in tensors.items() if v is not None}, path)
    return path


def read(folder: Any, experiment: Experiment) -> Any:
    """The parameters, as `evaluate` reads them."""
    return params.unflatten(read_params(folder, experiment))


def read_table(name: str) -> dict[str, tuple[int, ...]]:
    """Published names and shapes; no sizes is a scalar."""
    rows = csv.reader((KEYS / f"{name}.tsv").open(), delimiter="\t")
    return {key: tuple(int(n) for n in shape.split("x") if n) for key, shape in rows}


@pytest.mark.parametrize("layout", ["m3d_clip", "m3d_vit"])
def test_the_published_names_and_sizes_fit_the_released_config(layout: str) -> None:
    """Every one of the 342 (138) names, in and out again, in its own shape."""
    experiment, table = clip_released.get_config(), read_table(layout)
    assert len(table) == {"m3d_clip": 342, "m3d_vit": 138}[layout]
    tensors = {name: np.broadcast_to(np.int8(0), shape) for name, shape in table.items()}
    assert layouts.recognise(list(tensors), experiment, "file") == layout
    rules = layouts.rules_of(layout, experiment)
    expected = expected_shapes(experiment, layouts.LAYOUTS[layout].components)
    ours = name_map.load(tensors, rules, expected)
    count = sum(math.prod(shape) for shape in expected.values())
    assert count == {"m3d_clip": 198_052_609, "m3d_vit": 87_389_184}[layout]
    back = {name: value.shape for name, value in name_map.save(ours, rules).items()}
    assert back == table


def test_there_and_back_is_bit_equal(
    source: pathlib.Path, published: dict[str, np.ndarray], tmp_path: pathlib.Path
) -> None:
    out, again = tmp_path / "imported", tmp_path / "again.safetensors"
    said = Convert(str(source), str(out)).load(CLIP)
    assert "layout m3d_clip" in said and f"{len(published)} tensors" in said
    origin = json.loads((out / "origin.json").read_text())
    assert origin["layout"] == "m3d_clip" and origin["dtypes"] == {"float32": len(published)}
    Convert(str(out), str(again), layout="m3d_clip").export()
    back = load_file(again)
    assert back.keys() == published.keys()
    for name, value in published.items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)


def test_bfloat16_views_there_and_back(
    published: dict[str, np.ndarray], tmp_path: pathlib.Path
) -> None:
    """pretrained_ViT.bin: all tensors lie in one bfloat16 storage; nothing is rounded again."""
    prefix, words = "vision_encoder.", []
    vision = {k.removeprefix(prefix): v for k, v in published.items() if k.startswith(prefix)}
    flat = b"".join(v.astype(jnp.bfloat16).tobytes() for v in vision.values())
    offset = 0
    for name, value in vision.items():
        words.append((name, offset, value.shape, np.empty(value.shape, np.int8).strides))
        offset += value.size
    path = torch_zip(tmp_path / "pretrained_ViT.bin", views(words, offset), s0=flat)
    out, again = tmp_path / "vit", tmp_path / "vit.safetensors"
    assert "layout m3d_vit" in Convert(str(path), str(out)).load(CLIP)
    assert json.loads((out / "origin.json").read_text())["dtypes"] == {"bfloat16": len(vision)}
    Convert(str(out), str(again), layout="m3d_vit", dtype="bfloat16").export()
    back = load_file(again)
    assert back.keys() == vision.keys()
    for name, value in vision.items():
        np.testing.assert_array_equal(back[name], value.astype(jnp.bfloat16), err_msg=name)


def views(words: list[tuple[str, int, tuple, tuple]], count: int) -> bytes:
    """The pickle of a dict of views into one bfloat16 storage."""
    import pickle

    def plain(value: object) -> bytes:
        return pickle.dumps(value, 2)[2:-1]

    storage = b"(" + plain("storage") + b"ctorch\nBFloat16Storage\n" + plain("0") + plain("cpu")
    storage += plain(count) + b"tQ"
    items = b"".join(
        plain(name)
        + b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + plain(offset)
        + plain(shape)
        + plain(stride)
        + b"\x89ccollections\nOrderedDict\n)RtR"
        for name, offset, shape, stride in words
    )
    return b"\x80\x02ccollections\nOrderedDict\n)R(" + items + b"u."


def test_evaluators_read_imported_weights(
    source: pathlib.Path, published: dict[str, np.ndarray], tmp_path: pathlib.Path
) -> None:
    Convert(str(source), str(tmp_path / "out")).load(CLIP)
    assert weights.newest_readable(tmp_path / "out") == 0
    found = read(tmp_path / "out", CLIP)
    np.testing.assert_array_equal(
        found["vision"]["cls"], published["vision_encoder.cls_token"][0, 0]
    )
    np.testing.assert_array_equal(found["objective"]["scale"], published["logit_scale"])


def test_training_starts_from_a_component(source: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """One line of config takes the vision tower; the rest stays fresh."""
    Convert(str(source), str(tmp_path / "out")).load(CLIP)
    experiment = dataclasses.replace(CLIP, init_from={"vision": str(tmp_path / "out")})
    mesh = sharding.make_mesh((2, 2, 2))
    fresh = sharding.sharded(mesh, CLIP.task, trainer_of(CLIP).init, jax.random.key(CLIP.seed))
    with jax.set_mesh(mesh):
        state = initial_state(experiment, mesh)
    imported = params.flatten(read(tmp_path / "out", CLIP))
    for path, leaf in state.trainable.items():
        wanted = imported[path] if path.startswith("vision/") else fresh.trainable[path]
        np.testing.assert_array_equal(leaf, wanted, err_msg=path)
        assert leaf.sharding == fresh.trainable[path].sharding


def test_a_folder_of_weights_is_no_run(
    source: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training in it, or writing to it twice, is an error."""
    monkeypatch.chdir(tmp_path)
    Convert(str(source), "runs/clip").load(CLIP)
    with pytest.raises(RunError, match="holds weights without a run.*init_from"):
        open_for_training(CLIP)
    with pytest.raises(CheckpointError, match="exists. Cure: another name, or delete it"):
        Convert(str(source), "runs/clip").load(CLIP)
    (tmp_path / "runs/clip/weights/manifest.json").unlink()
    with pytest.raises(CheckpointError, match="never finished"):
        weights.newest_readable("runs/clip")
    Convert(str(source), "runs/clip").load(CLIP)  # what an interrupted one left is replaced
    damaged = max((tmp_path / "runs/clip/weights").rglob("*"), key=lambda p: p.stat().st_size)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="files missing or changed.*convert the weights"):
        read("runs/clip", CLIP)


@pytest.mark.parametrize(
    "change, layout, message",
    [
        ({"logit_scale": None}, "auto", r"missing \(1\):\n    objective/scale \(\), published as"),
        (
            {"head.weight": np.zeros(3)},
            "m3d_clip",
            r"unknown tensor \(1\):\n    head.weight \(3,\)",
        ),
        ({"head.weight": np.zeros(3)}, "auto", r"no known layout.*m3d_clip \d+, m3d_vit 0, bert 0"),
        (
            {"language_encoder.embeddings.word_embeddings.weight": np.zeros((60, 24))},
            "auto",
            r"wrong shape \(1\):\n    text/embeddings/words/table: the file has \(60, 24\), "
            r"the model \(50, 24\)",
        ),
        (
            {"vision_encoder.patch_embedding.position_embeddings": np.zeros((1, 64, 16))},
            "auto",
            r"vision/positions/table: the file has \(64, 16\), the model \(32, 16\)",
        ),
        (
            {"vision_encoder.blocks.0.norm1.weight": None},
            "auto",
            r"layers of vision_encoder.blocks.\{i\}.norm1.weight are not 0..0",
        ),
    ],
)
def test_what_does_not_fit_is_named(
    change: dict[str, Any],
    layout: Any,
    message: str,
    published: dict[str, np.ndarray],
    tmp_path: pathlib.Path,
) -> None:
    other = write(tmp_path / "other.safetensors", published | change)
    convert = Convert(str(other), str(tmp_path / "out"), layout=layout)
    with pytest.raises(CheckpointError, match=message):
        convert.load(CLIP)
    assert not (tmp_path / "out").exists()


def test_an_unknown_layout_is_refused_with_the_known_ones(
    source: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(ConfigError, match="layout 'clip' is not known. Cure: one of m3d_clip, "):
        Convert(str(source), str(tmp_path / "out"), layout="clip").load(CLIP)
    assert not (tmp_path / "out").exists()


def test_a_package_adds_a_layout(
    published: dict[str, np.ndarray], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its names start with another word; it is recognised, imported and exported."""
    known = layouts.LAYOUTS["m3d_clip"]

    def rules(task: Any) -> tuple[name_map.Rule, ...]:
        assert known.rules
        return tuple(
            dataclasses.replace(rule, theirs=f"mine_{rule.theirs}") for rule in known.rules(task)
        )

    own = dataclasses.replace(known, what="my CLIP", rules=rules)
    monkeypatch.setitem(layouts.LAYOUTS, "mine", own)
    file = write(tmp_path / "mine", {f"mine_{name}": value for name, value in published.items()})
    folder, back = tmp_path / "runs/mine", tmp_path / "back.safetensors"
    folder.parent.mkdir()
    assert "layout mine" in Convert(str(file), str(folder)).load(CLIP)
    assert "as mine names them" in Convert(str(folder), str(back), layout="mine").export()
    stored = load_file(back)
    assert stored.keys() == {f"mine_{name}" for name in published}
    for name, value in published.items():
        np.testing.assert_array_equal(stored[f"mine_{name}"], value)


def test_long_reports_are_cut(published: dict[str, np.ndarray], tmp_path: pathlib.Path) -> None:
    """For another model size, the error has one line per kind of problem and a few examples."""
    write(tmp_path / "w", published)
    wide = tiny.clip(vision=dataclasses.replace(tiny.clip().vision, hidden_size=32))
    with pytest.raises(CheckpointError) as error:
        Convert(str(tmp_path / "w"), str(tmp_path / "out")).load(tiny.experiment(task=wide))
    lines = str(error.value).splitlines()
    assert "wrong shape (" in lines[1] and "more" in lines[-2] and len(lines) < 15


def test_prefixes(published: dict[str, np.ndarray], tmp_path: pathlib.Path) -> None:
    ddp = write(tmp_path / "ddp.safetensors", {f"module.{k}": v for k, v in published.items()})
    convert = Convert(str(ddp), str(tmp_path / "out"))
    with pytest.raises(CheckpointError, match=r"Cure: --prefix module., which all names start"):
        convert.load(CLIP)
    dataclasses.replace(convert, prefix="module.").load(CLIP)
    tower = dataclasses.replace(convert, prefix="module.vision_encoder.", out=str(tmp_path / "vit"))
    assert "layout m3d_vit" in tower.load(CLIP)
    with pytest.raises(ValueError, match=r"no tensor's name starts with 'nothing.'"):
        dataclasses.replace(convert, prefix="nothing.").load(CLIP)


def test_positions_move_to_another_grid(
    source: pathlib.Path, published: dict[str, np.ndarray], tmp_path: pathlib.Path
) -> None:
    """Only if `positions_from` is set; other parameters do not change."""
    positions = dataclasses.replace(tiny.clip().vision.positions, grid=(4, 4, 2))
    vision = dataclasses.replace(tiny.clip().vision, positions=positions)
    experiment = tiny.experiment(task=tiny.clip(vision=vision))
    convert = Convert(str(source), str(tmp_path / "out"), positions_from=(2, 4, 4))
    assert "interpolated from (2, 4, 4) to (4, 4, 2)" in convert.load(experiment)
    table = published["vision_encoder.patch_embedding.position_embeddings"][0]
    ours = read(tmp_path / "out", experiment)["vision"]["positions"]["table"]
    np.testing.assert_allclose(ours, resize_table(table, (2, 4, 4), (4, 4, 2)), atol=1e-6)
    np.testing.assert_allclose(  # halves of a column are averaged, planes are drawn out
        ours.reshape(4, 4, 2, -1)[0, 0, 0], table.reshape(2, 4, 4, -1)[0, 0, :2].mean(0), atol=0.5
    )
    same = dataclasses.replace(convert, out=str(tmp_path / "same"))
    assert "interpolated" not in same.load(CLIP)


def test_another_vocabulary_is_found_out(source: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Of the same size, so that every shape fits; line ends of Windows do not count."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefgh"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/vocab.txt").write_text("\n".join(words) + "\n")
    text = Text(ReportTokens(str(tmp_path / "mine"), vocab_size=50, length=8))
    experiment = dataclasses.replace(CLIP, data=CLIP.data.with_fields(text=text))
    vocabulary = source.parent / "vocab.txt"
    vocabulary.write_bytes("\r\n".join(words).encode() + b"\r\n")
    Convert(str(source), str(tmp_path / "same")).load(experiment)
    other = write(tmp_path / "swapped" / source.name, load_file(source))
    (other.parent / "vocab.txt").write_text("\n".join([*words[:-2], "h", "g"]) + "\n")
    with pytest.raises(CheckpointError, match="2 words have another number or none, such as 'g'"):
        Convert(str(other), str(tmp_path / "other")).load(experiment)
    assert not (tmp_path / "other").exists()
    absent = Text(ReportTokens(str(tmp_path / "absent"), vocab_size=50, length=8))
    experiment = dataclasses.replace(CLIP, data=CLIP.data.with_fields(text=absent))
    said = Convert(str(other), str(tmp_path / "other")).load(experiment)
    assert "vocabulary not compared" in said


def test_the_verb(
    source: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Import with a config and a flag of it, and export, from the command line."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.py").write_text(
        "from tests import tiny\n"
        "def get_config():\n"
        "    return tiny.experiment(task=tiny.clip(), name='clip')\n"
    )
    arguments = ["convert", str(source), "out", "--config", "config.py"]
    assert cli.main([*arguments, "--task.text.embeddings.vocab-size", "51"]) == 1
    assert "the file has (50, 24), the model (51, 24)" in capsys.readouterr().err
    assert cli.main([*arguments, "--steps", "7"]) == 0
    assert (
        "parameters of objective, text, text_head, vision, vision_head" in capsys.readouterr().out
    )
    assert json.loads((tmp_path / "out/config.json").read_text())["steps"] == 7
    assert cli.main(["convert", "out", "back.safetensors"]) == 1
    assert "export needs --layout: one of m3d_clip" in capsys.readouterr().err
    assert cli.main(["convert", "out", "back.safetensors", "--layout", "m3d_clip"]) == 0
    np.testing.assert_array_equal(
        load_file("back.safetensors")["logit_scale"], load_file(source)["logit_scale"]
    )
    assert cli.main(["convert", "nowhere", "x", "--config", "config.py"]) == 1
    assert "nowhere: there is no such file" in capsys.readouterr().err


def test_a_task_without_the_component_is_named(
    source: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    mae: Experiment = tiny.experiment()
    with pytest.raises(ValueError, match="m3d_clip is that of M3D-CLIP.*MAE has no text"):
        Convert(str(source), str(tmp_path / "out"), layout="m3d_clip").load(mae)
