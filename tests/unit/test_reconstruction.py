"""Errors on hidden patches: an oracle, the baselines by hand, padding, and error messages."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image

from data_pipelines.pipeline import Data, Source
from m3djax.contracts.findings import EvaluationError
from m3djax.contracts.scores import OWN, Scores
from m3djax.evaluate import Reconstruction
from m3djax.evaluate.loop import measure
from m3djax.evaluate.reconstruction import evaluator as module
from m3djax.evaluate.reconstruction.masked import METHODS, fill
from m3djax.evaluate.tiles import cut
from m3djax.inputs.inputs import IMAGE, Inputs
from m3djax.models.patches import patchify
from m3djax.tasks.mae import MAE
from tests import tiny
from tests.unit.fakes import SIZE, Records, init, record, scan, subject

DATA = Data((Source("data/x"),), SIZE)


class Oracle(MAE):
    """Predicts the truth."""

    def reconstruct(self, params, images, noise):
        result = super().reconstruct(params, images, noise)
        return result.replace(prediction=result.target)


def oracle(**changes):
    task = tiny.mae(**changes)
    return Oracle(**{f.name: getattr(task, f.name) for f in dataclasses.fields(task)})


@pytest.fixture(scope="module")
def params():
    return init(tiny.mae())


@pytest.fixture
def evaluate(monkeypatch, tmp_path, params):
    def run(task, records, **fields):
        monkeypatch.setattr(module, "open_dataset", lambda path, split: Records(records))
        evaluator = Reconstruction(**({"batch_size": 8} | fields))
        return measure(evaluator, subject(task, params, DATA, tmp_path))

    return run


@pytest.mark.parametrize("norm_pix", [False, True])
def test_a_model_that_knows_the_truth_makes_no_error_and_passes(evaluate, norm_pix, tmp_path):
    results = evaluate(oracle(norm_pix=norm_pix), [record(scan((12, 20, 24)))])
    assert results["mse_model"] < 1e-9
    scores = Scores.read(epath.Path(tmp_path))
    for method, name in (("mean", "mean"), (OWN, "model")):
        column = scores.column("study S (patient P-S)", "mse", method)
        mean = np.average(column.value, weights=column.weight)
        assert mean == pytest.approx(results[f"mse_{name}"], rel=1e-9)
    assert results["mse_fill_in"] > 1e-4
    assert results["passed"] is True
    caveats = " ".join(results["report"]["caveats"])
    assert ("normalised patches" in caveats) is norm_pix


def test_an_untrained_model_does_not_pass_and_its_results_are_whole(evaluate, tmp_path):
    results = evaluate(tiny.mae(), [record(scan((12, 20, 24)))])
    assert results["passed"] is False
    assert "worse than the mean" in results["report"]["sentences"][0]
    assert json.loads(json.dumps(results, allow_nan=False))["report"]["tables"]
    (picture,) = results["report"]["pictures"]
    assert Image.open(tmp_path / picture["file"]).width > 1000


def test_errors_are_those_computed_by_hand(params):
    batch, volumes, sums = _fill(params, scan((8, 32, 16)))
    counted = volumes["hidden"] & batch["scored"]
    np.testing.assert_array_equal(sums["count"], counted.sum((1, 2, 3)))
    for method in METHODS:
        expected = (np.square(volumes[method] - volumes["truth"]) * counted).sum((1, 2, 3))
        np.testing.assert_allclose(sums[method], expected, rtol=1e-4)
    truth = (np.clip(batch["image"][..., 0].astype(float), -1000, 1000) + 1000) / 2000
    np.testing.assert_allclose(volumes["truth"], truth, atol=1e-6)
    for row, hidden in enumerate(volumes["hidden"]):
        mean = truth[row][~hidden].mean()
        np.testing.assert_allclose(volumes["mean"][row][hidden], mean, rtol=1e-5)


def test_visible_voxels_stay_and_a_quarter_of_the_patches_is_visible(params):
    _, volumes, _ = _fill(params, scan((8, 32, 16)))
    visible = ~volumes["hidden"]
    for method in METHODS:
        np.testing.assert_array_equal(volumes[method][visible], volumes["truth"][visible])
    patches = np.asarray(patchify(visible[..., None], (4, 4, 4)))
    assert set(patches.mean(-1).ravel()) == {0.0, 1.0}
    np.testing.assert_array_equal(patches[..., 0].sum(1), 8)


def test_padding_neither_counts_nor_informs_the_baselines(params):
    image = np.full((6, 16, 32), 500, np.int16)
    batch, volumes, sums = _fill(params, image, padding=-1000)
    inside = batch["inside"]
    assert not inside.all()
    np.testing.assert_array_equal(sums["count"], (volumes["hidden"] & inside).sum((1, 2, 3)))
    for method in ("mean", "fill_in"):
        np.testing.assert_allclose(volumes[method][inside], 0.75, atol=1e-6)
        np.testing.assert_allclose(sums[method], 0, atol=1e-8)


def test_results_do_not_depend_on_the_batch_size_or_on_other_studies(evaluate):
    one, two = record(scan((8, 32, 32)), "one"), record(scan((8, 32, 32), seed=1), "two")
    alone = evaluate(tiny.mae(), [one, two], studies=("two",), pictures=0)
    both = evaluate(tiny.mae(), [one, two], studies=("one", "two"), batch_size=5, pictures=0)
    name = "study two (patient P-two)"
    assert alone["decides"] == name
    assert both["decides"] == "study one (patient P-one)"
    for method in METHODS:
        values = (run["groups"][name]["mse"][method]["value"] for run in (alone, both))
        assert next(values) == pytest.approx(next(values), rel=1e-5)


def test_all_studies_together_have_intervals_over_studies(evaluate):
    records = [record(scan((8, 32, 16), seed), str(seed)) for seed in range(3)]
    results = evaluate(tiny.mae(), records, pictures=1)
    ((name, numbers),) = results["groups"].items()
    assert (name, numbers["units"]) == ("all 3 studies", 3)
    assert len(results["report"]["pictures"]) == 1


def test_another_task_is_refused():
    with pytest.raises(EvaluationError, match="such as MAE, and object does not"):
        Reconstruction().check_task(object())


def test_an_unknown_study_is_named(evaluate):
    with pytest.raises(EvaluationError, match="no study 'nobody'"):
        evaluate(tiny.mae(), [record(scan(SIZE))], studies=("nobody",))


def test_a_single_crop_has_no_interval(evaluate):
    with pytest.raises(EvaluationError, match="has only one crop"):
        evaluate(tiny.mae(), [record(scan(SIZE))], pictures=0)


def _fill(params, image, padding=None):
    """The batch, volumes and sums of one draw."""
    tiles = cut(image, SIZE)
    images = tiles.images if padding is None else np.where(tiles.inside, tiles.images, padding)
    count = len(tiles)
    batch = {
        "image": images[..., None],
        "inside": tiles.inside,
        "scored": tiles.first,
        "scale": np.ones(count, np.float32),
        "offset": np.zeros(count, np.float32),
        "key": np.asarray(jax.random.key_data(jax.random.split(jax.random.key(5), count))),
    }
    filled = jax.tree.map(np.asarray, fill(tiny.mae(), Inputs().bound(IMAGE), params, batch))
    return batch, filled.volumes, filled.sums
