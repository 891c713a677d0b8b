"""A user's convolutional encoder in every task and verb that reads volumes."""

from __future__ import annotations

import dataclasses
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file

from data_pipelines.errors import ConfigError
from m3djax.cli import main
from m3djax.config import registry
from m3djax.convert import llm, vit
from m3djax.convert.run import Convert
from m3djax.evaluate.run import evaluate
from m3djax.experiment import Experiment
from m3djax.models.mlp import Mlp
from m3djax.models.projectors import Projector
from m3djax.models.transformer import Stages, Transformer
from m3djax.runs import run_folder
from m3djax.tasks.vision_language import VisionLanguage
from m3djax.training import flops
from m3djax.training.train import specification, train
from tests import tiny
from tests.pyramid import Pyramid

SIZE = (8, 16, 16)
ENCODER = Pyramid(stem=(1, 1, 1))  # of a crop, four tokens of 8 x 8 x 8 voxels
SAVED = Path(__file__).parents[1] / "saved/v1.tar.xz"
CONFIG = "from tests.unit.test_pyramid import {} as get_config\n"


def clip() -> Experiment:
    """The saved run of two towers, with another encoder."""
    old = run_folder.read_experiment("runs/clip")
    head = dataclasses.replace(old.task.vision_head, pooling="mean")
    return dataclasses.replace(
        old,
        name="pyramid_clip",
        task=dataclasses.replace(old.task, vision=ENCODER, vision_head=head),
        init_from={"text": "weights/bert"},
        evaluators={"retrieval": old.evaluators["retrieval"]},
        steps=3,
    )


def vision_language(layer: int = -1) -> Experiment:
    """The saved run that answers questions, with another encoder and without adapters."""
    old = run_folder.read_experiment("runs/vision_language")
    projector = Projector(32, "none")
    return dataclasses.replace(
        old,
        name="pyramid_answers",
        task=dataclasses.replace(
            old.task, vision=ENCODER, projector=projector, vision_feature_layer=layer
        ),
        adapters=None,
        trainable="vision/|projector/",
        init_from={"llm": "weights/llm"},
        evaluators={"answers": dataclasses.replace(old.evaluators["answers"], beside={})},
        steps=3,
    )


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("pyramid")
    with tarfile.open(SAVED) as file:
        file.extractall(folder, filter="data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        registry.allow("tests")
        yield folder


@pytest.fixture(scope="module")
def towers(home: Path) -> Path:
    return home / train(clip())


@pytest.fixture(scope="module")
def answers(home: Path) -> Path:
    return home / train(vision_language())


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_two_towers_are_trained_measured_and_reported(towers: Path) -> None:
    assert len(losses(towers)) == 3 and np.isfinite(losses(towers)).all()
    found = evaluate(towers, Console(quiet=True)).found
    assert 0 <= found["retrieval"]["image_to_text_R@1"] <= 1
    assert "Pyramid" in (towers / "report.html").read_text()


def test_answers_are_trained_and_measured(answers: Path) -> None:
    assert len(losses(answers)) == 3 and np.isfinite(losses(answers)).all()
    found = evaluate(answers, Console(quiet=True)).found
    assert found["answers"]["kinds"]


def test_a_scan_is_asked_about(
    answers: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jax.local_devices", lambda *_, **__: jax.devices()[:1])
    options = ["--units", "HU", "--picture", "None", "--sampling.max-new-tokens", "4"]
    assert main(["ask", str(answers), "scan.nii.gz", "Is the liver there?", *options]) == 0
    out = capsys.readouterr().out
    assert "> Is the liver there?" in out and "4 layers see, 2 speak" in out


@pytest.mark.parametrize("layer", [-2, 2])
def test_an_inner_layer_of_another_stride_and_width_is_projected(layer: int) -> None:
    task = vision_language(layer).task
    assert isinstance(task, VisionLanguage)
    pairs = dataclasses.replace(task, projector=Projector(32, "concat", (2, 2, 2)))
    assert (task.tokens_per_volume(SIZE), pairs.tokens_per_volume(SIZE)) == (32, 4)
    image = jax.ShapeDtypeStruct((2, *SIZE, 1), np.int16)
    params = jax.eval_shape(pairs.init, jax.random.key(0), {"image": image})
    assert params["projector"]["linear_0"]["kernel"].shape == (8 * 8, 32)
    images = jax.ShapeDtypeStruct((2, 1, *SIZE, 1), np.float32)
    assert jax.eval_shape(pairs.encode, params, images).shape == (2, 4, 32)


# The test session keeps compiled programs; libtpu cannot read its own back without a TPU.
@pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache")
def test_a_step_is_planned_with_fields_of_the_encoder_as_flags(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("libtpu")
    (home / "config.py").write_text(CONFIG.format("clip"))
    widths = ["--task.vision.widths", *"2468", "--mesh", "4", "1", "1"]
    plan = ["plan", "config.py", "--topology", "v5e:2x2", "--json", "plan.json"]
    assert main([*plan, *widths]) == 0
    planned = json.loads((home / "plan.json").read_text())
    task = dataclasses.replace(clip().task, vision=ENCODER.clone(widths=(2, 4, 6, 8)))
    wanted = dataclasses.replace(clip(), task=task)
    work = flops.model_flops(task, specification(wanted), wanted.trainable)
    assert planned["flops"]["model"] == work // 4
    with pytest.raises(SystemExit):
        main([*plan, "--task.vision.patch-size", "4", "4", "4"])
    assert "unrecognized" in capsys.readouterr().err.lower()


def test_weights_go_out_under_our_names_and_come_back(towers: Path) -> None:
    said = Convert(str(towers), "out.safetensors", layout="m3djax").export()
    assert "as m3djax names them" in said
    tensors = load_file("out.safetensors")
    assert tensors["vision.stage_3.kernel"].shape == (2, 2, 2, 8, 12)
    said = Convert("out.safetensors", "imported").load(clip())
    assert "layout m3djax" in said and "of objective, text, text_head, vision, vision_head" in said
    Convert("imported", "again.safetensors", layout="m3djax").export()
    for name, tensor in load_file("again.safetensors").items():
        np.testing.assert_array_equal(tensor, tensors[name], err_msg=name)


def test_published_layouts_say_that_they_do_not_know_the_encoder(towers: Path) -> None:
    with pytest.raises(ConfigError, match="vision=Pyramid: .*ViT3D .*Cure: --layout m3djax"):
        Convert(str(towers), "x.safetensors", layout="m3d_clip").export()


def test_published_layouts_say_that_they_do_not_know_the_blocks() -> None:
    task = tiny.vision_language()
    (stage,) = task.llm.stages
    other = stage.clone(block=stage.block.clone(mlp=Mlp(8)))
    with pytest.raises(ConfigError, match="mlp=Mlp: .*GatedMlp only. Cure: --layout m3djax"):
        llm.rules(task.llm.clone(stages=(other,)))
    stages = task.vision.clone(transformer=Stages((Transformer(2), Transformer(2))))
    with pytest.raises(ConfigError, match="one Transformer only. Cure: --layout m3djax"):
        vit.monai_vit(stages, "")


def test_flags_are_those_of_the_encoder_in_a_config(capsys: pytest.CaptureFixture[str]) -> None:
    import tyro

    default: Any = tiny.vision_language(vision=Pyramid(), projector=Projector(32, "none"))
    arguments = ["--vision.widths", "2", "4", "--vision.stem", "4", "4", "4"]
    found = tyro.cli(VisionLanguage, default=default, args=arguments)
    assert found.vision == Pyramid(widths=(2, 4), stem=(4, 4, 4))
    assert found.vision.strides == ((4, 4, 4), (8, 8, 8))
