"""Fields of batches from prepared records, and places of crops."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import tyro

from data_pipelines.around import Candidates, Foreground
from data_pipelines.caption import Caption, Question
from data_pipelines.captions.questions import MaskQuestions
from data_pipelines.crops import Crop
from data_pipelines.datasets import codec, open_dataset
from data_pipelines.datasets.points import of_record
from data_pipelines.errors import ConfigError, DataError
from data_pipelines.fields.base import Field
from data_pipelines.fields.image import Image
from data_pipelines.fields.labels import Labels
from data_pipelines.fields.mask import AskedMask, Mask
from data_pipelines.fields.points import Points
from data_pipelines.fields.slice import Slice
from data_pipelines.fields.text import Text
from data_pipelines.pipeline import Data, Source
from data_pipelines.placement import Placement, Uniform, Whole
from data_pipelines.prepare import Prepare
from data_pipelines.text.passages import Passage
from m3djax.config import serialize
from tests.data.organ_scans import SIZE, data, scan, take
from tests.data.words import WordLengths

GROUPS = {"liver": ("liver", "tumour"), "tumour": ("tumour",)}
BATCH: dict[str, Field] = {
    "image": Image(),
    "mask": Mask(),
    "groups": Mask(GROUPS),
    "findings": Labels(("cyst", "nodule")),
}


def of_placement(
    organ_data: str, at: Placement, count: int = 8, **changes: Any
) -> dict[str, np.ndarray]:
    """Samples of crops that are placed in one way, stacked."""
    made = data(organ_data, BATCH, crops=(Crop(at=at),), **changes)
    taken = take(made, count)
    return {name: np.concatenate([batch[name] for batch in taken]) for name in taken[0]}


def test_batches_are_what_the_spec_says_and_pure(organ_data: str) -> None:
    fields = BATCH | {"points": Points(count=3), "slice": Slice(("H", "W"), (6, 5))}
    made = data(organ_data, fields, crops=(Crop(), Crop(1.5, at=Foreground(share=0.7))))
    made.check()
    spec = {name: (s.shape, s.dtype) for name, s in made.spec().items()}
    batches = take(made, 3)
    for batch in batches:
        assert {name: (array.shape, array.dtype) for name, array in batch.items()} == spec
    later = take(dataclasses.replace(made, workers=1), start=2, rows=(1, 3))[0]
    for name, array in later.items():
        np.testing.assert_array_equal(array, batches[2][name][[1, 3]], err_msg=name)
    kinds = {name: one.kind for name, one in made.spatial().items()}
    voxels = {"image": "image", "mask": "mask", "groups": "mask"}
    assert kinds == voxels | {"points": "points", "slice": "slice", "slice_at": "slice_at"}


def test_masks_lie_on_the_image_and_groups_may_overlap(organ_data: str) -> None:
    records = {r["study_id"]: r for r in open_dataset(organ_data, "train")}
    whole = {study: (r["image"], r["mask"]) for study, r in records.items()}
    for sample in data(organ_data, BATCH).eval_batches(Source(organ_data), crops=4):
        for row in range(4):
            image, mask = whole[list(whole)[sample["record"][row]]]
            around = tuple(
                slice(m - s // 2, m + s // 2)
                for m, s in zip(sample["place"][row], SIZE, strict=True)
            )
            np.testing.assert_array_equal(sample["image"][row, ..., 0], image[around])
            np.testing.assert_array_equal(sample["mask"][row], mask[around])
    assert open_dataset(organ_data, "train").mask_names == {1: "liver", 2: "tumour"}
    np.testing.assert_array_equal(sample["groups"][..., 0] == 1, sample["mask"] > 0)
    np.testing.assert_array_equal(sample["groups"][..., 1] == 1, sample["mask"] == 2)
    assert sample["groups_known"].all() and sample["mask_known"][:, 1:3].all()
    (without,) = data(organ_data, BATCH).eval_batches(Source(organ_data, "test"))
    assert not without["groups"].any() and not without["groups_known"].any()


def test_a_zoomed_mask_follows_the_zoomed_image(organ_data: str) -> None:
    """The mask of bright voxels is made before and after the resampling."""
    made = data(organ_data, {"image": Image(), "mask": Mask()}, crops=(Crop(0.5),))
    record = open_dataset(organ_data, "train")[0]
    bright = np.repeat(np.repeat(np.repeat(record["mask"], 2, 0), 2, 1), 2, 2)
    for sample, _ in made.eval_crops(Source(organ_data), crops=6):
        if sample["record"] == 0:
            starts = sample["place"] - np.array(SIZE) // 4
            there = tuple(slice(2 * a, 2 * a + s) for a, s in zip(starts, SIZE, strict=True))
            np.testing.assert_array_equal(sample["mask"], bright[there])


def test_labels_are_known_absent_or_missing(organ_data: str) -> None:
    found = {}
    for split in ("train", "test"):
        for sample, view in data(organ_data, BATCH).eval_crops(Source(organ_data, split)):
            found[view.record["study_id"]] = sample["findings"]
    np.testing.assert_array_equal(found["0/ct"], np.array([np.nan, 1], np.float32))
    np.testing.assert_array_equal(found["1/ct"], np.array([1, 0], np.float32))
    assert np.isnan(found["2/ct"]).all()


def test_points_are_voxels_of_the_sample(organ_data: str) -> None:
    record = open_dataset(organ_data, "train")[0]
    # As LPS (10, 8, 40) mm, the voxel (5, 4, 20) of the file.
    d, h, w = of_record(record, "candidates")[0].round().astype(int)
    assert record["image"][d, h, w] == scan(0)[5, 4, 20]
    d, h, w = of_record(record, "corner")[0].round().astype(int)
    assert record["image"][d, h, w] == scan(0)[0, 0, 0]
    fields: dict[str, Field] = {"image": Image(), "points": Points(count=2)}
    seen = 0
    for sample, _ in data(organ_data, fields).eval_crops(Source(organ_data), crops=60):
        there = sample["points"][np.isfinite(sample["points"][:, 0])]
        for d, h, w in there.round().astype(int):
            assert sample["image"][d, h, w, 0] in (scan(0)[5, 4, 20], scan(0)[18, 22, 25])
        seen += len(there)
    assert seen > 2
    halved = data(organ_data, fields, crops=(Crop(2.0, at=Candidates()),), size=(4, 4, 4))
    sample, _ = next(halved.eval_crops(Source(organ_data)))
    assert (np.abs(sample["points"][np.isfinite(sample["points"])] - 1.5) < 2.5).all()


def test_a_slice_is_one_of_the_sample(organ_data: str) -> None:
    made = data(
        organ_data, {"image": Image(), "slice": Slice(("D", "H", "W"), (10, 10))}, size=(10,) * 3
    )
    batch = {k: np.concatenate([b[k] for b in take(made, 8)]) for k in made.spec()}
    for image, plane, (axis, index) in zip(
        batch["image"], batch["slice"], batch["slice_at"], strict=True
    ):
        np.testing.assert_array_equal(np.take(image, index, axis), plane)
    assert set(batch["slice_at"][:, 0]) == {0, 1, 2} and len(set(batch["slice_at"][:, 1])) > 5
    (fixed,) = made.eval_batches(Source(organ_data))
    assert (fixed["slice_at"] == (0, 5)).all()
    small = data(organ_data, {"image": Image(), "slice": Slice(("H",), (3, 7))})
    assert take(small)[0]["slice"].shape == (4, 3, 7, 1)


@dataclasses.dataclass(frozen=True)
class Asked(WordLengths):
    """The label that a question is about, as the length of its name."""

    def of(self, caption: Caption, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        assert isinstance(caption, Question)
        return self(caption.label)


def test_the_mask_of_the_question_that_was_drawn(organ_data: str) -> None:
    ask = MaskQuestions(yes_no=0, choice=0, rec=0, reg=0, seg=1, absent=0.5, least=1)
    fields: dict[str, Field] = {"text": Text(Asked(), ask), "mask": Mask(), "asked": AskedMask()}
    samples = take(data(organ_data, fields), 12)
    batch = {name: np.concatenate([b[name] for b in samples]) for name in samples[0]}
    assert batch["asked_valid"].all() and "image" not in batch
    kinds = set()
    for ids, mask, asked in zip(batch["token_ids"], batch["mask"], batch["asked"], strict=True):
        value = {len("liver"): 1, len("tumour"): 2}[int(ids[0])]
        np.testing.assert_array_equal(asked, mask == value)
        kinds.add((value, bool(asked.any())))
    assert {(1, True), (2, True), (2, False)} <= kinds


def test_foreground_gets_its_share_and_uniform_less(organ_data: str) -> None:
    middles = [
        of_placement(organ_data, at, size=(3, 3, 3), batch_size=16)["mask"][:, 1, 1, 1]
        for at in (Uniform(), Foreground(("tumour",), 1.0), Foreground(("tumour",), 0.5))
    ]
    shares = [float((middle == 2).mean()) for middle in middles]
    assert shares[0] < 0.1 and shares[1] == 1.0 and 0.35 < shares[2] < 0.65
    both = of_placement(organ_data, Foreground((), 1.0), size=(3, 3, 3), batch_size=16)["mask"]
    share = float((both[:, 1, 1, 1] == 2).mean())
    assert 0.35 < share < 0.65  # small structures as often as large ones
    without = of_placement(organ_data, Foreground((), 1.0), sources=(Source(organ_data, "test"),))
    assert without["image"].shape == (32, *SIZE, 1)


def test_crops_lie_around_candidates(organ_data: str) -> None:
    at = Crop(at=Candidates())
    made = data(organ_data, {"image": Image(), "points": Points()}, crops=(at,), size=(4, 4, 4))
    middles = set()
    for sample, view in made.eval_crops(Source(organ_data), crops=8):
        if view.record["study_id"] == "0/ct":
            found = sample["points"][0]
            assert (np.abs(found - 1.5) <= 1).all()
            middles.add(int(sample["image"][tuple(found.round().astype(int))][0]))
    assert middles == {scan(0)[5, 4, 20], scan(0)[18, 22, 25]}


def test_the_whole_volume_is_resized(organ_data: str) -> None:
    batch = of_placement(organ_data, Whole(), count=1, size=(7, 6, 10))
    records = list(open_dataset(organ_data, "train"))
    shape = np.array(records[0]["image"].shape)
    np.testing.assert_allclose(batch["spacing"], [2 * shape / (7, 6, 10)] * 4, rtol=1e-6)
    # All of the liver is in the crop, at the share of the volume that it has.
    share = (records[0]["mask"] > 0).mean()
    np.testing.assert_allclose((batch["mask"] > 0).mean((1, 2, 3)), share, rtol=0.3)
    upper = Source(organ_data, part=(0.5, 1.0))
    made = data(
        organ_data, BATCH, crops=(Crop(at=Whole()),), size=tuple((shape // (2, 1, 1)).tolist())
    )
    for sample, view in made.eval_crops(upper):
        np.testing.assert_array_equal(
            sample["image"][..., 0], view.record["image"][shape[0] // 2 :, :, :]
        )


def test_without_voxels_nothing_is_decoded(organ_data: str, m3d: Path, monkeypatch: Any) -> None:
    source = (Source(str(m3d), "test"),)

    def refuse(*_: Any) -> Any:
        raise AssertionError("voxels were decoded")

    monkeypatch.setattr(codec, "decompress", refuse)
    made = data(str(m3d), {"text": Text(WordLengths())}, sources=source, units="unit")
    made.check()
    for batch in take(made, 2):
        assert batch["token_ids"].any() and "image" not in batch
    labels = take(data(organ_data, {"findings": Labels(("nodule",))}))[0]
    assert set(labels["findings"].ravel()) <= {0, 1}
    with pytest.raises(AssertionError, match="voxels were decoded"):
        data(str(m3d), {"image": Image()}, sources=source, units="unit").check()


def test_texts_are_the_same_with_and_without_voxels(m3d: Path) -> None:
    source = (Source(str(m3d), "test"),)
    text = Text(WordLengths(6))
    made = data(str(m3d), {"image": Image(), "text": text}, sources=source, units="unit")
    alone = dataclasses.replace(made, fields={"text": text})
    for one, other in zip(take(made, 3), take(alone, 3), strict=True):
        assert set(one) - set(other) == {"image", "scale", "offset", "spacing"}
        for name, array in other.items():
            np.testing.assert_array_equal(array, one[name])


def test_what_cannot_be_made_is_an_error(organ_data: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no dataset has the label 'cist'.*cyst, nodule"):
        data(organ_data, {"findings": Labels(("cist",))}).check()
    with pytest.raises(ConfigError, match="'lung' matches no label of the datasets"):
        data(organ_data, {"mask": Mask({"lungs": ("lung",)})}).check()
    with pytest.raises(ConfigError, match=r"'\(' is not a regular expression"):
        Mask({"lungs": ("(",)})
    with pytest.raises(ConfigError, match="both make the array 'image'"):
        data(organ_data, {"image": Image(), "other": Image()})
    with pytest.raises(ConfigError, match="fields is empty"):
        data(organ_data, {})
    with pytest.raises(ConfigError, match="has no field 'text' of the class Text; it has 'image'"):
        data(organ_data, {"image": Image()}).field("text", Text)


@pytest.mark.parametrize(
    "column, cell, message",
    [
        ("points:a", "1 2 3", "must be points:NAME:SPACE"),
        ("points:a:mm", "1 2 3", "must be points:NAME:SPACE"),
        ("points:a:ras", "1 2", "three finite numbers"),
        ("points:a:ras", "1 2 nan", "three finite numbers"),
        ("points:a:ras", "here", "row 2: .* cannot be read"),
    ],
)
def test_points_of_a_table_that_cannot_be_read(
    tmp_path: Path, column: str, cell: str, message: str
) -> None:
    nib.save(nib.Nifti1Image(scan(0), np.eye(4)), tmp_path / "ct.nii.gz")
    table = tmp_path / "table.csv"
    table.write_text(f"image,{column}\nct.nii.gz,{cell}\n")
    options: dict[str, Any] = {"out": str(tmp_path / "out"), "units": "HU", "workers": 0}
    with pytest.raises(DataError, match=message):
        Prepare("folder", str(tmp_path), str(table), **options).prepare()


def test_every_option_of_a_field_and_a_placement_is_a_flag() -> None:
    fields = BATCH | {"points": Points(), "slice": Slice(), "text": Text(Passage("nowhere"))}
    made = data("nowhere", fields, crops=(Crop(at=Foreground(("liver",))),))
    arguments = ["--fields.points.count", "5", "--fields.groups.groups.liver", "liver"]
    arguments += ["--fields.slice.axes", "H", "D", "--fields.text.tokens.length", "3"]
    changed: Data = tyro.cli(Data, default=made, args=[*arguments, "--crops.0.at.share", "0.9"])
    assert changed == dataclasses.replace(
        made.with_fields(
            points=Points(count=5),
            groups=Mask({**GROUPS, "liver": ("liver",)}),
            slice=Slice(("H", "D")),
            text=Text(Passage("nowhere", 3)),
        ),
        crops=(Crop(at=Foreground(("liver",), 0.9)),),
    )
    assert serialize.from_json(serialize.to_json(changed)) == changed
