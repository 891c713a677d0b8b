"""The organ probe: choice of patches, and its scores on separable and equal features."""

import json

import numpy as np
import pytest
from etils import epath

from data_pipelines.pipeline import Data, Source
from m3djax.contracts.findings import EvaluationError
from m3djax.contracts.scores import OWN, Scores
from m3djax.evaluate import OrganProbe
from m3djax.evaluate.loop import measure
from m3djax.evaluate.probe import evaluator
from m3djax.evaluate.probe import sides as sides_module
from m3djax.evaluate.probe.linear import fit_linear
from m3djax.evaluate.probe.organs import group_names, label_patches
from m3djax.models.embedding_head import EmbeddingHead
from m3djax.tasks.language import Language
from tests import tiny
from tests.pyramid import Pyramid
from tests.unit.fakes import SIZE, Records, init, record, scan, subject

DATA = Data((Source("data/x"),), SIZE)

NAMES = {1: "liver", 2: "lung_left", 3: "lung_right", 4: "spleen"}
GROUPS = (("lung_.*", "lung"),)
ORGANS = ["liver", "lung", "spleen"]
PATCH = (4, 4, 4)


@pytest.fixture(scope="module")
def params():
    return init(tiny.mae())


@pytest.fixture
def evaluate(monkeypatch, tmp_path, params):
    def run(train, test, task=None, weights=None, **fields):
        sides = {"train": Records(train, NAMES), "test": Records(test, NAMES)}
        for module in (evaluator, sides_module):
            monkeypatch.setattr(module, "open_dataset", lambda path, split: sides[split])
        probe = OrganProbe(groups=GROUPS, untrained=2, **fields)
        return measure(probe, subject(task or tiny.mae(), weights or params, DATA, tmp_path))

    return run


def _organs(seed, *, tell=True, spleen=False, study="S"):
    """Slabs of liver and lung; only `tell` makes them look different."""
    noise = np.random.default_rng(seed).normal(0, 50, (12, 40, 40))
    image = np.rint(noise).astype(np.int16)
    mask = np.zeros(image.shape, np.uint8)
    mask[:, :, :20], mask[:, :20, 20:], mask[:, 20:, 20:] = 1, 2, 3
    if tell:
        image += np.where(mask == 1, 100, -700).astype(np.int16)
    if spleen:
        mask[:, 32:, :16] = 4
    return record(image, study, mask)


def test_it_tells_apart_what_looks_different(evaluate, tmp_path):
    results = evaluate([_organs(0, spleen=True)], [_organs(1)])
    # The held-out scan has no spleen, so the probe does not learn it.
    assert list(results["organs"]) == ["liver", "lung"]
    assert results["chance"] == 0.5
    for features in ("pretrained", "untrained", "raw"):
        assert results[f"accuracy_{features}"] > 0.9
        low, high = results["accuracy"][features]["interval"]
        assert low <= results[f"accuracy_{features}"] <= high
    assert results["passed"] is None
    scores = Scores.read(epath.Path(tmp_path))
    for method, name in ((OWN, "pretrained"), ("untrained", "untrained"), ("raw", "raw")):
        for organ, numbers in results["organs"].items():
            column = scores.column(organ, "accuracy", method)
            assert len(column.value) == numbers["asked"]
            assert column.value.mean() == pytest.approx(numbers["recall"][name])
    assert json.loads(json.dumps(results, allow_nan=False))["report"]["tables"]


def test_tokens_of_any_encoder_are_probed(evaluate):
    head = EmbeddingHead(12, "mean")
    task = tiny.clip(vision=Pyramid((4, 6, 8), (1, 1, 1)), vision_head=head, text_head=head)
    results = evaluate([_organs(0)], [_organs(1)], task, init(task))
    assert results["accuracy_pretrained"] > 0.9


def test_it_finds_nothing_where_there_is_nothing(evaluate):
    results = evaluate([_organs(0, tell=False)], [_organs(1, tell=False)], caveats=("Beware.",))
    for features in ("pretrained", "untrained", "raw"):
        assert results[f"accuracy_{features}"] == pytest.approx(0.5, abs=0.1)
    assert results["report"]["caveats"] == ("Beware.",)


def test_it_is_fitted_on_no_more_patches_than_asked_for(evaluate):
    results = evaluate([_organs(0)], [_organs(1)], most=30)
    assert {organ["fitted"] for organ in results["organs"].values()} == {30}


def test_scans_without_common_organs_are_refused(evaluate):
    with pytest.raises(EvaluationError, match=r"share 0 organs.*Cure"):
        evaluate([_organs(0)], [_organs(1)], least=10**6)


def test_an_organ_in_one_place_only_is_left_out(evaluate):
    train, test = _organs(0), _organs(1)
    mask = test["mask"].copy()
    mask[:8, :8, :8] = 4  # much spleen, but all in one block
    train, test = train | {"mask": mask}, test | {"mask": mask}
    results = evaluate([train], [test], least=1)
    assert list(results["organs"]) == ["liver", "lung"]


def test_scans_without_masks_are_refused(evaluate):
    with pytest.raises(EvaluationError, match="'test' has no mask for any study"):
        evaluate([_organs(0)], [record(scan((12, 40, 40)))])
    with pytest.raises(EvaluationError, match="no mask for nobody.*have one: S"):
        evaluate([_organs(0)], [_organs(1)], test_studies=("nobody",))


def test_a_task_without_an_encoder_is_refused():
    with pytest.raises(EvaluationError, match="vision encoder"):
        OrganProbe().check_task(Language())


def test_names_are_grouped_and_background_has_none():
    names = group_names({0: "background"} | NAMES, GROUPS)
    assert names == {1: "liver", 2: "lung", 3: "lung", 4: "spleen"}


def test_an_organ_needs_more_than_half_of_a_patch():
    mask = np.zeros(SIZE, np.uint8)
    mask[:2, :4, :4] = 1  # half of patch 0
    mask[:3, :4, 4:8] = 1  # three quarters of patch 1
    mask[:2, :4, 8:12], mask[2:4, :4, 8:12] = 2, 3  # both lungs fill patch 2
    found = _labelled(mask)
    assert dict(zip(found.row.tolist(), found.organ.tolist(), strict=True)) == {1: 0, 2: 1}


def test_labels_that_nobody_drew_do_not_count():
    mask = np.full(SIZE, 4, np.uint8)
    mask[:4] = 255
    assert len(_labelled(mask).row) == 16
    assert len(_labelled(mask, annotated=[1]).row) == 0


def test_padding_is_no_organ():
    mask = np.full((5, 16, 16), 1, np.uint8)
    found = _labelled(mask)  # the second layer of patches has one slice of four
    assert sorted(found.row) == list(range(16))


def test_blocks_are_regions_of_the_volume():
    mask = np.ones((8, 32, 16), np.uint8)
    found = _labelled(mask)
    assert set(found.block) == {"S 0 0 0", "S 0 1 0"}
    starts = found.tiles.starts[found.crop]
    centre = starts[:, 1] + 4 * (found.row // 4 % 4) + 2
    np.testing.assert_array_equal(found.block == "S 0 1 0", centre >= 16)


def test_regularisation_is_chosen_without_the_block_that_is_asked_about():
    # Within a block everything is alike, so a split through blocks would look perfect.
    rng = np.random.default_rng(0)
    blocks = np.repeat([f"b{n}" for n in range(12)], 20)
    labels = np.repeat(np.arange(12) % 2, 20)
    features = np.repeat(rng.normal(size=(12, 5)), 20, axis=0)
    fitted = fit_linear(features, labels, blocks)
    assert fitted.best_score_ < 0.9
    assert (fitted.predict(features) == labels).mean() > 0.5


def _labelled(mask, annotated=None):
    names = group_names(NAMES, GROUPS)
    item = record(scan(mask.shape), mask=mask, annotated=annotated)
    return label_patches(item, names, ORGANS, SIZE, PATCH)
