"""Baselines of a run: the run itself, another run, and the untrained model."""

from __future__ import annotations

import pathlib

import jax
import numpy as np
import pytest
from etils import epath
from jax.sharding import Mesh

from data_pipelines.fields.image import Image
from data_pipelines.fields.text import Text
from data_pipelines.pipeline import Data, Source
from data_pipelines.text.dialogue import DialogueTokens
from m3djax.adapters import Adapted, LoRA
from m3djax.contracts.evaluator import Subject
from m3djax.evaluate import Beside
from m3djax.experiment import Experiment
from m3djax.inputs.inputs import Inputs
from m3djax.mesh import sharding
from m3djax.params import Params, flatten
from m3djax.runs import weights
from m3djax.runs.run_folder import RunError
from m3djax.tasks.vision_language import VisionLanguage
from tests import tiny
from tests.unit.fakes import SIZE

TASK = tiny.vision_language()
FIELDS = {"image": Image(), "text": Text(DialogueTokens("nowhere", 4, 64, 64))}
DATA = Data((Source("data/x"),), SIZE, fields=FIELDS)


def mesh() -> Mesh:
    """Parameters split over it."""
    return sharding.make_mesh((2, 2, 2))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> epath.Path:
    """Weights of a task with adapters, trained until every number is 1."""
    folder = epath.Path(tmp_path_factory.mktemp("runs") / "run")
    experiment = Experiment("run", TASK, DATA, adapters=LoRA(rank=2), seed=3)
    shapes = jax.eval_shape(experiment.adapted.init, jax.random.key(0), tiny.dialogue_batch())
    ones = {path: np.ones(leaf.shape, np.float32) for path, leaf in flatten(shapes).items()}
    weights.save(folder, experiment, ones, {})
    return folder


def leaves(params: Params) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in flatten(params).items()}


def own(run: epath.Path) -> Subject:
    """A run that is measured; its parameters do not matter."""
    return Subject(
        TASK, Inputs().bound(DATA.spatial()), {}, DATA, mesh(), run, run / "evaluation" / "answers"
    )


def test_the_run_itself(tmp_path: pathlib.Path) -> None:
    measured = own(epath.Path(tmp_path))
    assert Beside(blind=True).open(measured) is measured


def test_another_run_is_merged(run: epath.Path, tmp_path: pathlib.Path) -> None:
    other = Beside(str(run)).open(own(epath.Path(tmp_path)))
    assert isinstance(other.task, VisionLanguage) and other.data == DATA
    params = leaves(other.params)
    where = flatten(other.params)["llm/token_embed/embedding"].sharding
    assert where.spec == sharding.parameter_spec(
        "llm/token_embed/embedding", (64, 32), mesh(), TASK
    )
    assert not any("lora" in path for path in params)
    assert params["projector/linear_0/kernel"].min() == 1
    # alpha / rank times the product of ones of rank 2, on top of 1
    (kernel,) = (p for path, p in params.items() if path.endswith("attention/query/kernel")
                 and path.startswith("llm"))  # fmt: skip
    np.testing.assert_array_equal(kernel, 1 + 32 / 2 * 2)


@pytest.mark.parametrize("named", [True, False])
def test_before_training(run: epath.Path, named: bool) -> None:
    other = Beside(str(run) if named else "", untrained=True)
    found = leaves(other.open(own(run)).params)
    adapted = Adapted(TASK, LoRA(rank=2))
    fresh = jax.jit(adapted.init)(jax.random.key(3), tiny.dialogue_batch(rows=1))
    expected = leaves(adapted.adapters.merged(fresh))
    assert set(found) == set(expected)
    kernel = found["projector/linear_0/kernel"]
    assert kernel.shape == expected["projector/linear_0/kernel"].shape and kernel.std() > 0


def test_no_such_run(tmp_path: pathlib.Path) -> None:
    with pytest.raises(RunError, match="is not a run"):
        Beside(str(tmp_path / "nothing")).open(own(epath.Path(tmp_path)))
