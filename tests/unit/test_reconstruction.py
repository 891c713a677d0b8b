"""Errors on hidden patches: an oracle, the baselines by hand, padding, and what is refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

from m3djax.evaluate import reconstruction
from m3djax.evaluate.findings import EvaluationError
from m3djax.evaluate.masked import fill
from m3djax.evaluate.reconstruction import Reconstruction
from m3djax.evaluate.tiles import cut
from m3djax.models.patches import patchify
from m3djax.tasks.mae import MAE
from tests.unit.fakes import PATCH, SIZE, Records, record, scan, tiny_mae, tiny_params


class Oracle(MAE):
    """Predicts the truth."""

    def reconstruct(self, params, images, noise):
        result = super().reconstruct(params, images, noise)
        return result.replace(prediction=result.target)


@pytest.fixture
def evaluate(monkeypatch, tmp_path):
    def run(task, records, **fields):
        monkeypatch.setattr(reconstruction, "open_dataset", lambda path, split: Records(records))
        evaluator = Reconstruction("data/x", SIZE, batch_size=4, **fields)
        return evaluator.run(task, tiny_params(task), tmp_path)

    return run


@pytest.mark.parametrize("norm_pix", [False, True])
def test_a_model_that_knows_the_truth_makes_no_error_and_passes(evaluate, norm_pix):
    results = evaluate(tiny_mae(Oracle, norm_pix=norm_pix), [record(scan((8, 20, 24)))])
    assert results["mse_model"] < 1e-9
    assert results["mse_fill_in"] > 1e-4
    assert results["passed"] is True
    caveats = " ".join(results["report"]["caveats"])
    assert ("normalised patches" in caveats) is norm_pix


def test_an_untrained_model_does_not_pass(evaluate):
    results = evaluate(tiny_mae(), [record(scan((8, 20, 24)))])
    assert results["passed"] is False
    assert "worse than the mean" in results["report"]["sentences"][0]


def test_the_mean_baseline_is_the_mean_of_the_visible_voxels(evaluate):
    task = tiny_mae()
    image = scan((4, 32, 16))
    results = evaluate(task, [record(image)], draws=1)
    _batch, volumes = _filled(task, image)
    total = count = 0
    for truth, hidden in zip(volumes["truth"], volumes["hidden"], strict=True):
        total += np.square(truth[hidden] - truth[~hidden].mean()).sum()
        count += hidden.sum()
    (numbers,) = results["groups"].values()
    # The crops' masks here come from other keys, but their share and the image are the same.
    assert numbers["hidden_voxels"] == count
    for number, volume in enumerate(volumes["mean"]):
        hidden = volumes["hidden"][number]
        expected = volumes["truth"][number][~hidden].mean()
        np.testing.assert_allclose(volume[hidden], expected, rtol=1e-5)


def test_visible_voxels_stay_and_a_quarter_of_the_patches_is_visible():
    task = tiny_mae()
    _, volumes = _filled(task, scan((4, 32, 16)))
    visible = ~volumes["hidden"]
    for method in ("model", "mean", "fill_in"):
        np.testing.assert_array_equal(volumes[method][visible], volumes["truth"][visible])
    patches = np.asarray(patchify(visible[..., None], PATCH))
    assert set(patches.mean(-1).ravel()) == {0.0, 1.0}
    np.testing.assert_array_equal(patches[..., 0].sum(1), 8)


def test_padding_neither_counts_nor_informs_the_baselines():
    task = tiny_mae()
    image = np.full((3, 16, 32), 500, np.int16)
    image[0, 0, 0] = -1000  # so that the padding is air
    batch, volumes = _filled(task, image)
    inside = batch["inside"]
    assert (~inside).any()
    for method in ("mean", "fill_in"):
        hidden = volumes["hidden"] & inside
        hidden[:, 0, :4, :4] = False
        np.testing.assert_allclose(volumes[method][hidden], 0.75, atol=0.02)
    sums = fill(task, tiny_params(task), batch).sums
    np.testing.assert_array_equal(
        sums["count"], (volumes["hidden"] & inside & batch["counts"]).sum((1, 2, 3))
    )


def test_results_do_not_depend_on_the_batch_size_or_on_other_studies(evaluate):
    task = tiny_mae()
    one, two = record(scan((4, 32, 32)), "one"), record(scan((4, 32, 32), seed=1), "two")
    alone = evaluate(task, [one, two], studies=("two",))
    both = evaluate(task, [one, two], studies=("one", "two"))
    again = dataclasses.asdict(Reconstruction("data/x", SIZE))
    assert again["batch_size"] != 4
    name = "study two (patient P-two)"
    assert alone["decides"] == name
    assert both["decides"] == "study one (patient P-one)"
    assert alone["groups"][name]["mse"] == both["groups"][name]["mse"]


def test_all_studies_together_have_intervals_over_studies(evaluate):
    records = [record(scan((4, 32, 16), seed), str(seed)) for seed in range(3)]
    results = evaluate(tiny_mae(), records, pictures=1)
    ((name, numbers),) = results["groups"].items()
    assert (name, numbers["units"]) == ("all 3 studies", 3)
    assert len(results["report"]["pictures"]) == 1


def test_results_are_json_and_pictures_are_written(evaluate, tmp_path):
    results = evaluate(tiny_mae(), [record(scan((8, 20, 24)), "S")])
    assert json.loads(json.dumps(results, allow_nan=False))["report"]["tables"]
    (picture,) = results["report"]["pictures"]
    assert Image.open(tmp_path / picture["file"]).width > 1000


def test_another_task_is_refused(tmp_path):
    with pytest.raises(EvaluationError, match="measures MAE runs"):
        Reconstruction("data/x", SIZE).run(object(), {}, tmp_path)


def test_an_unknown_study_is_named(evaluate):
    with pytest.raises(EvaluationError, match="no study 'nobody'"):
        evaluate(tiny_mae(), [record(scan(SIZE))], studies=("nobody",))


def test_a_single_crop_has_no_interval(evaluate):
    with pytest.raises(EvaluationError, match="one single crop"):
        evaluate(tiny_mae(), [record(scan(SIZE))])


def _filled(task, image):
    """Batch and volumes of one draw, as `Reconstruction` makes them but for the keys."""
    tiles = cut(image, SIZE)
    count = len(tiles)
    batch = {
        "image": tiles.images[..., None],
        "inside": tiles.inside,
        "counts": tiles.first,
        "scale": np.ones(count, np.float32),
        "offset": np.zeros(count, np.float32),
        "key": np.asarray(jax.random.key_data(jax.random.split(jax.random.key(5), count))),
    }
    volumes = fill(task, tiny_params(task), batch).volumes
    return batch, {name: np.asarray(volume) for name, volume in volumes.items()}
