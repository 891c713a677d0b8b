"""Text fields of batches, and the augmentation that a text allows."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.captions import MaskCaption, Report, View
from data_pipelines.captions.anatomy import phrases, spoken
from data_pipelines.datasets import open_dataset
from data_pipelines.errors import ConfigError, DataError, TextError
from data_pipelines.fields.image import Image
from data_pipelines.fields.text import Text
from data_pipelines.pipeline import Data, Source
from data_pipelines.text.directions import Allowed, allowed
from m3djax.inputs.augment import Augment
from m3djax.inputs.inputs import IMAGE as SPATIAL
from m3djax.inputs.inputs import Inputs, ScaleIntensityRange
from tests.data.words import WordLengths

SIZE = (16, 32, 32)
SPL = np.array([[0, 0, -1, 0], [0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])
"""D runs to Superior, H to Posterior, W to Left."""
ORGANS = MaskCaption(("liver", "spleen", "stomach", "aorta", "autochthon_.*", "vertebrae_T.*"))
SIDES = ("left", "Right-sided", "LEFT", "rightward", "dextrocardia", "Rt", "contralateral")
OTHERS = ("cyst", "no", "kidney", "lung", "2.5", "mm", "the", "lobe.", "brightness", "cleft")


def reports(path: Path, split: str = "test", **changes: Any) -> Data:
    data = Data((Source(str(path), split),), (32, 64, 64), batch_size=4, units="unit")
    fields = {"image": Image(), "text": Text(WordLengths())}
    return dataclasses.replace(data, **{"fields": fields, **changes})


def organs(path: str, **changes: Any) -> Data:
    sources = (Source(path, "train_organs"),)
    data = Data(sources, SIZE, batch_size=4).with_fields(text=Text(WordLengths(40), ORGANS))
    return dataclasses.replace(data, **changes)


def take(data: Data, count: int, **where: Any) -> list[dict[str, np.ndarray]]:
    batches = data.batches(0, **where)
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def same(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> bool:
    return one.keys() == two.keys() and all(np.array_equal(one[k], two[k]) for k in one)


@pytest.mark.parametrize("source", ["reports", "organs"])
def test_batches_with_text_follow_the_spec_and_are_pure(
    source: str, prepared: str, m3d: Path
) -> None:
    data = organs(prepared) if source == "organs" else reports(m3d)
    data.check()
    expected = take(data, 3)
    spec = {name: (s.shape, s.dtype) for name, s in data.spec().items()}
    for batch in expected:
        assert {name: (v.shape, v.dtype) for name, v in batch.items()} == spec
        assert batch["report_valid"].all() and batch["attention_mask"].any(1).all()
    workers = int(source == "organs")
    parts = [
        take(dataclasses.replace(data, workers=workers * half), 1, start=2, rows=rows)[0]
        for half, rows in enumerate([(0, 1), (2, 3)])
    ]
    assert same({k: np.concatenate([p[k] for p in parts]) for k in spec}, expected[2])


def test_crops_and_their_order_do_not_depend_on_the_text(m3d: Path) -> None:
    with_text, without = reports(m3d), reports(m3d, fields={"image": Image()})
    assert "token_ids" not in without.spec()
    for one, two in zip(take(with_text, 2), take(without, 2), strict=True):
        np.testing.assert_array_equal(one["image"], two["image"])


def test_equal_captions_are_recognised_in_any_wording(prepared: str, m3d: Path) -> None:
    batch = next(reports(m3d, batch_size=5).eval_batches(Source(str(m3d), "test")))
    ids = [record["report"] for record in open_dataset(m3d, "test")]
    assert ids[0] == ids[1] != ids[2] and ids[3] == ids[4]
    equal = np.array(ids)[:, None] == np.array(ids)
    np.testing.assert_array_equal(batch["text_id"][:, None] == batch["text_id"], equal)
    source = open_dataset(prepared, "train_organs")
    view = View(source[0], source[0]["mask"], source.mask_names)
    said = [ORGANS(view, np.random.default_rng(seed)) for seed in range(20)]
    assert len({caption.meaning for caption in said if caption}) == 1
    assert len({caption.text for caption in said if caption}) > 10
    record = {"report": "No  Abnormality.\n", "report_valid": True}
    other = Report()(View({**record, "report": "no abnormality."}, None, {}), None)
    spaced = Report()(View(record, None, {}), None)
    assert spaced is not None and other is not None and spaced.meaning == other.meaning


def test_a_record_without_a_report_gives_zeros_and_no_restrictions(prepared: str) -> None:
    data = organs(prepared).with_fields(text=Text(WordLengths()))
    (batch,) = take(data, 1)
    assert not batch["report_valid"].any() and batch["allowed_flips"].all()
    for name in ("token_ids", "sentence_ids", "attention_mask", "text_id"):
        assert not batch[name].any()


class Refusing(WordLengths):
    def __call__(self, text: str, rng: np.random.Generator | None = None) -> Any:
        raise TextError("report", "has no words", "leave it empty")


def test_a_text_that_cannot_be_used_names_its_record(m3d: Path) -> None:
    data = reports(m3d, split="train").with_fields(text=Text(Refusing()))
    with pytest.raises(DataError, match="ct_case/000003/.*: its text has no words. Cure: leave it"):
        data.check()


@dataclasses.dataclass(frozen=True)
class RefusingOne(WordLengths):
    refused: str = ""

    def __call__(self, text: str, rng: np.random.Generator | None = None) -> Any:
        if text == self.refused:
            raise TextError("report", "does not fit", "a greater length")
        return super().__call__(text, rng)


def test_training_leaves_out_a_text_that_cannot_be_used_and_says_so(
    m3d: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = open_dataset(str(m3d), "test")
    texts = [records[n]["report"] for n in range(len(records))]
    refused = next(text for text in texts if text not in ("", texts[0]))
    data = reports(m3d).with_fields(text=Text(RefusingOne(refused=refused)))
    data.check()
    wanted = take(reports(m3d), 8)
    caplog.clear()
    found = take(data, 8)
    without = np.concatenate([~batch["report_valid"] for batch in found])
    assert without.any() and not without.all()
    for batch, full in zip(found, wanted, strict=True):
        gone = ~batch["report_valid"]
        np.testing.assert_array_equal(batch["image"], full["image"])
        np.testing.assert_array_equal(batch["token_ids"][~gone], full["token_ids"][~gone])
        assert not batch["token_ids"][gone].any()
    (said,) = {r.message for r in caplog.records if r.levelname == "WARNING"}
    assert "its text does not fit. Cure: a greater length. It is left out" in said


def test_a_pass_over_a_split_is_in_order_and_always_the_same(prepared: str, m3d: Path) -> None:
    data = reports(m3d)
    batches = list(data.eval_batches(Source(str(m3d), "test"), crops=2))
    assert [b["record"].tolist() for b in batches] == [[0, 0, 1, 1], [2, 2, 3, 3], [4, 4, 0, 0]]
    assert [b["counts"].tolist() for b in batches] == [[True] * 4] * 2 + [
        [True, True] + [False] * 2
    ]
    again = list(data.eval_batches(Source(str(m3d), "test"), crops=2))
    assert all(map(same, batches, again))
    halves = [
        list(data.eval_batches(Source(str(m3d), "test"), 2, rows=rows)) for rows in ((0, 1), (2, 3))
    ]
    for number, batch in enumerate(batches):
        joined = {k: np.concatenate([half[number][k] for half in halves]) for k in batch}
        assert same(joined, batch)
    one, two = (
        next(organs(prepared).eval_batches(Source(prepared, "test_organs"), crops=4, seed=seed))
        for seed in (0, 1)
    )
    assert not np.array_equal(one["image"], two["image"])


def test_captions_name_what_the_crop_shows_and_nothing_else(prepared: str) -> None:
    source = open_dataset(prepared, "train_organs")
    record, names = source[0], source.mask_names
    value = {name: number for number, name in names.items()}
    mask = np.zeros((4, 10, 10), np.uint8)
    mask[0, :3] = value["liver"]  # 30 voxels
    mask[1, :2] = value["spleen"]  # 20: too few
    mask[2] = value["autochthon_left"]
    mask[3, :5], mask[3, 5:] = value["vertebrae_T12"], value["colon"]  # not asked for
    caption = ORGANS(View(record, mask, names), None)
    assert caption is not None
    assert caption.text == (
        "This part of the body shows the liver, the left deep muscles of the back and the "
        "vertebra T12."
    )
    assert caption.meaning == "autochthon_left, liver, vertebrae_T12"
    assert ORGANS(View(record, mask * 0, names), None) is None


def test_what_a_mask_was_not_drawn_for_is_never_spoken_of(prepared: str) -> None:
    source = open_dataset(prepared, "train")
    spine = next(record for record in source if record["study_id"] == "B")
    value = {name: number for number, name in source.mask_names.items()}
    mask = np.full((4, 10, 10), value["liver"], np.uint8)
    mask[:2] = value["vertebrae_T12"]
    view = View(spine, mask, source.mask_names)
    assert ORGANS(view, None) is None
    caption = dataclasses.replace(ORGANS, complete=False)(view, None)
    assert caption is not None and caption.meaning == "vertebrae_T12"


def test_labels_that_match_nothing_are_an_error(prepared: str) -> None:
    data = organs(prepared)
    wrong = data.with_fields(text=Text(WordLengths(), MaskCaption(("livr",))))
    with pytest.raises(ConfigError, match="'livr' matches no label of the dataset"):
        wrong.check()
    with pytest.raises(ConfigError, match="not a regular expression"):
        MaskCaption(("(",))


def test_labels_in_words() -> None:
    names = ["liver", "kidney_left", "kidney_right", "lung_upper_lobe_left", "rib_left_7"]
    names += ["rib_left_8", "rib_left_11", "vertebrae_L1", "vertebrae_T12", "vertebrae_T13"]
    assert phrases(names) == [
        "the liver",
        "the left and right kidney",
        "the left upper lobe of the lung",
        "the vertebrae T13",
        "the left ribs 7 to 8",
        "the left rib 11",
        "the vertebrae T12 to L1",
    ]
    assert spoken(["a"]) == "a" and spoken(["a", "b"]) == "a and b"
    assert spoken(["a", "b", "c"]) == "a, b and c"
    assert spoken(["the left and right a", "b", "c"]) == "the left and right a; b and c"


@pytest.mark.parametrize(
    "text, flips, turns",
    [
        ("Cyst in the left kidney.", (True, True, False), False),
        ("RIGHT-SIDED effusion", (True, True, False), False),
        ("Upper lobe nodule", (False, True, True), True),
        ("Anterior wall", (True, False, True), False),
        ("axial slices", (True, True, True), True),
        ("seen on sagittal reformats", (True, True, True), False),
        ("the coronal plane", (True, True, True), False),
        ("Situs inversus", (True, True, False), False),
        ("Cyst of the R kidney, 2 cm; L1 to L5 are normal.", (True, True, False), False),
        ("L1 to L5 are normal.", (True, True, True), True),
        ("segment_left", (True, True, False), False),
        ("A bright cleft of 3 mm, copyright", (True, True, True), True),
        ("", (True, True, True), True),
    ],
)
def test_words_forbid_what_would_make_them_false(
    text: str, flips: tuple[bool, ...], turns: bool
) -> None:
    assert allowed(text, SPL) == Allowed(flips, turns)  # type: ignore[arg-type]
    # Axes in another order: those that run from side to side and so on are found by the affine.
    turned = SPL[:, [2, 0, 1, 3]]
    assert allowed(text, turned).flips == (flips[2], flips[0], flips[1])
    stack = allowed(text, None)  # the axes are unknown
    assert stack.flips == (all(flips),) * 3
    assert not stack.turns or stack == Allowed()


AUGMENT = Inputs(ScaleIntensityRange(0, 1000), Augment(flip=(1.0, 1.0, 1.0), rotate90=0.5))
IMAGE = np.random.default_rng(0).integers(0, 1000, (8, 3, 4, 4, 1)).astype(np.int16)
augment = jax.jit(lambda batch, keys: AUGMENT(batch, keys, SPATIAL)["image"])


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.sampled_from(OTHERS)), st.none() | st.sampled_from(SIDES)),
        min_size=8,
        max_size=8,
    ),
    st.integers(0, 2**31 - 1),
)
def test_no_volume_whose_text_names_a_side_is_mirrored(
    texts: list[tuple[list[str], str | None]], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    may = []
    for words, side in texts:
        said = [*words, *([side] if side else [])]
        may.append(allowed(" ".join(said[i] for i in rng.permutation(len(said))), SPL))
    batch = {
        "image": IMAGE,
        "scale": np.ones(8, np.float32),
        "offset": np.zeros(8, np.float32),
        "allowed_flips": np.array([one.flips for one in may]),
        "allowed_turns": np.array([one.turns for one in may]),
    }
    images = np.asarray(augment(batch, jax.random.split(jax.random.key(seed), 8)))
    for (_, side), image, stored in zip(texts, images, IMAGE, strict=True):
        plain = stored.astype(np.float32) / 1000
        # Flips are certain here: without a named side, all three axes are reversed, then turned.
        upright = plain[::-1, ::-1] if side else plain[::-1, ::-1, ::-1]
        turns = [np.rot90(upright, k, (1, 2)) for k in range(1 if side else 4)]
        assert any(np.allclose(image, turned, atol=1e-5) for turned in turns)


def test_the_pipelines_flags_reach_the_augmentation(m3d: Path) -> None:
    batch = next(reports(m3d, batch_size=5).eval_batches(Source(str(m3d), "test")))
    inputs = Inputs(ScaleIntensityRange(0, 1), Augment(flip=(0.0, 0.0, 1.0)))
    keys = jax.random.split(jax.random.key(0), 5)
    plain, flipped = (np.asarray(inputs(batch, each, SPATIAL)["image"]) for each in (None, keys))
    texts = [record["report"] for record in open_dataset(m3d, "test")]
    for text, one, two in zip(texts, plain, flipped, strict=True):
        named = "left" in text or "descending" in text
        np.testing.assert_array_equal(two, one if named else one[:, :, ::-1])
