"""M3D-VQA's tables beside M3D-Cap, and M3D-Seg's prepared layout, made of the sample scans."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath

from configs.m3d import align, instruct
from data_pipelines.boxes import START, mask_to_box, text_to_boxes
from data_pipelines.captions import View, templates
from data_pipelines.captions.descriptions import describe
from data_pipelines.captions.instructions import Stored
from data_pipelines.captions.questions import MaskQuestions
from data_pipelines.datasets import open_dataset
from data_pipelines.datasets.qa import with_choices
from data_pipelines.errors import DataError
from data_pipelines.fields.image import Image
from data_pipelines.fields.text import Text
from data_pipelines.pipeline import Data, Source
from data_pipelines.placement import Ground, PlacedCropMasks
from data_pipelines.prepare import QUARANTINED, Prepare
from data_pipelines.text.dialogue import DialogueTokens
from data_pipelines.text.llm_tokenizer import PLAIN, SPECIAL
from m3djax.adapters import LoRA
from m3djax.cli import main
from m3djax.convert.new_tokens import grow
from m3djax.evaluate import Answers
from m3djax.evaluate.answers.asking import asked
from m3djax.evaluate.run import evaluate
from m3djax.experiment import Experiment
from m3djax.generate.sampling import Sampling
from m3djax.mesh import sharding
from m3djax.params import flatten
from m3djax.runs import weights
from m3djax.runs.model import read_params
from m3djax.runs.run_folder import read_experiment
from m3djax.runs.state import initial_state
from m3djax.tasks.language import Language
from m3djax.training.train import train
from tests import tiny, tiny_llm
from tests.data import m3d_tree

_WORD = re.compile(r"\w+")
HEAD = ["Image Path", "Text", "Question Type", "Question"]
HEAD += [*(f"Choice {letter}" for letter in "ABCD"), "Answer", "Answer Choice"]
FIRST, SECOND = "ct_case/000001/Axial_non_contrast", "ct_case/000003/Axial_Poschl"
FAR = "M3D_Cap_npy/../../secret.npy"
PLANE = ("axial", "coronal", "sagittal", "NA")


def line(
    series: str, topic: str, question: str, choices: Any, answer: str, letter: str
) -> list[str]:
    path = f"M3D_Cap_npy/{series}.npy"
    return [path, f"M3D_Cap_npy/{series}.txt", topic, question, *choices, answer, letter]


TABLES = {
    "train": [
        line(SECOND, "3", "Which organ is normal?", ("Lung", "NA", "Liver", "Bone"), "liver", "C"),
        line(SECOND, "2", "Which phase?", ("NA",) * 4, "Arterial", "NA"),
        line(SECOND, "1", "Which plane?", PLANE, "NA", "A"),
        line(SECOND, "1", "", PLANE, "axial", "A"),
        line(SECOND, "1", "Which plane?", PLANE, "axial", "B"),
        line(SECOND, "1", "Which plane?", PLANE, "axial", "D"),
        line(SECOND, "5", "Where?", ("NaN", "left kidney", "nan", "lung"), "left kidney", "B"),
        line(SECOND, "3.0", "Which organ?", ("nan",) * 4, "NaN", "nan"),
        line(SECOND, "5", "NaN", PLANE, "axial", "A"),
        line("../../secret", "1", "Which plane?", PLANE, "axial", "A"),
        line("ct_case/000009/Axial", "1", "Which plane?", PLANE, "axial", "A"),
    ],
    "test": [
        line(FIRST, "1", "Which plane?", PLANE, "axial", "A"),
        line(FIRST, "4", "What is seen?", ("cyst", "None", "stone", "clot"), "None", "B"),
    ],
    "test5k": [line(FIRST, "1", "Which plane?", PLANE, "axial", "A")],
}


def write(folder: Path, name: str, head: list[str], lines: list[list[str]]) -> None:
    folder.mkdir(exist_ok=True)
    with (folder / name).open("w", newline="") as file:
        csv.writer(file).writerows([head, *lines])


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tables") / "M3D_VQA"
    for name, lines in TABLES.items():
        write(folder, f"M3D_VQA_{name}.csv", HEAD, lines)
    asked = [f"M3D_Cap_npy/{SECOND}.npy", "4", "Is there a mass?"]
    head = [HEAD[0], HEAD[2], HEAD[3], "Answer"]
    write(folder, "M3D_VQA_yn_train.csv", head, [[*asked, "No"], [*asked, "Perhaps"]])
    return folder


@pytest.fixture(scope="module")
def dataset(m3d: Path, tables: Path) -> Path:
    out = tables.parent / "data"
    scans = str(m3d.parent / "M3D_Cap")
    prepare = Prepare("m3d_vqa", scans, str(tables), out=str(out), workers=0)
    assert prepare.run() == QUARANTINED
    return out


def view(dataset: Path, split: str, series: str) -> View:
    records = {r["study_id"].replace("ö", "o"): r for r in open_dataset(dataset, split)}
    return View(records[series], None, {})


def test_questions_lie_beside_reports_in_splits_by_case(dataset: Path) -> None:
    ids = {
        s: {r["study_id"] for r in open_dataset(dataset, s)} for s in ("train", "test", "vqa_test")
    }
    # Its own series is in M3D-Cap's training set; the case is in both test sets.
    assert ids["vqa_test"] == {FIRST} and FIRST in ids["test"]
    second = view(dataset, "train", SECOND)
    assert second.record["report_valid"] and second.record["qa_valid"]
    for split, name in (("vqa_test5k", FIRST), ("vqa_yn_train", SECOND), ("vqa_train", SECOND)):
        assert view(dataset, split, name)
    others = [r for r in open_dataset(dataset, "test") if r["study_id"] != FIRST]
    assert others and not any(r["qa_valid"] or r["qa"] for r in others)
    assert "Questions: 6." in (dataset / "card.md").read_text()


def test_every_kind_of_question_as_m3d_puts_it(dataset: Path) -> None:
    second = view(dataset, "train", SECOND)
    asked = [(q.kind, q.label, q.question, q.text) for q in Stored().every(second)]
    choices = "Which organ is normal? Choices: A. Lung B. Liver C. Bone"
    assert asked == [
        ("closed", "organ", choices, "B. Liver"),
        ("open", "organ", "Which organ is normal?", "Liver"),
        ("open", "phase", "Which phase?", "Arterial"),
        ("closed", "location", "Where? Choices: A. left kidney B. lung", "A. left kidney"),
        ("open", "location", "Where?", "left kidney"),
        ("yes_no", "abnormality", "Is there a mass?", "No"),
    ]
    first = view(dataset, "test", FIRST)
    assert [q.text for q in Stored(open=0.0).every(first)] == ["A. axial", "B. None"]
    assert [q.text for q in Stored(closed=0.0, split="vqa_test5k").every(first)] == ["axial"]
    assert {q.label for q in Stored(topics=("plane",)).every(first)} == {"plane"}
    for question in (*Stored().every(first), *Stored().every(second)):
        assert not {"na", "nan"} & set(
            _WORD.findall(f"{question.question} {question.text}".lower())
        )
    drawn = [Stored(yes_no=0.0)(second, np.random.default_rng(seed)) for seed in range(30)]
    assert {q.kind for q in drawn if q} == {"closed", "open"}
    assert Stored()(second, None) == Stored()(second, None)
    with pytest.raises(ValueError, match="a choice is missing"):
        with_choices("Which?", ("liver", "NA"))


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> DialogueTokens:
    words = str(tmp_path_factory.mktemp("tokenizer"))
    tiny_llm.tokenizer().save_pretrained(words)
    return DialogueTokens(words, 4, length=500, vocab_size=262, joined=("report",))


def test_a_batch_to_tune_on_has_all_kinds_and_no_empty_cells(
    dataset: Path, masks: Path, tokens: DialogueTokens
) -> None:
    """From the released layouts to what the model is given, as configs/m3d/instruct.py mixes it."""
    data = Data(
        (Source(str(dataset)), Source(str(masks))),
        size=(32, 64, 64),
        batch_size=64,
        units="unit",
        fields={"image": Image(), "text": Text(tokens, instruct.asked(released=True))},
    )
    data.check()
    batch = next(data.batches(0))
    spec = {name: (s.shape, s.dtype) for name, s in data.spec().items()}
    assert {name: (v.shape, v.dtype) for name, v in batch.items()} == spec
    assert batch["report_valid"].all() and batch["image"].std((1, 2, 3, 4)).all()
    tokenizer, found = tokens.load(), set()
    records = [r for path in (dataset, masks) for r in open_dataset(path, "train")]
    known = {
        (question.question, question.text): question.form
        for record in records
        for question in Stored().every(View(record, None, {}))
    }
    reports = {record["report"] for record in records if record["report_valid"]}
    for ids, (start, end) in zip(batch["token_ids"], batch["spans"][:, 0], strict=True):
        put = tokenizer.decode(ids[:start]).removeprefix("<bos>")
        text = tokenizer.decode(ids[start:end]).strip().removesuffix("<eos>")
        assert put.startswith("<im_patch>" * 4)
        question = put.removeprefix("<im_patch>" * 4)
        assert not {"na", "nan"} & set(_WORD.findall(f"{question} {text}".lower()))
        if text in reports:
            assert question in templates.REPORT
            found.add("report")
            continue
        assert question[0] == " "
        inside = "question" if START in question else "answer" if START in text else ""
        found.add(inside or known.get((question[1:], text), "absent"))
    assert found >= {"report", "choice", "open", "yes_no", "question", "answer"}


def test_what_the_shipped_config_measures_is_there(
    dataset: Path, masks: Path, tokens: DialogueTokens
) -> None:
    config = instruct.get_config()
    folders = {"data/m3d_cap": dataset, "data/m3d_seg": masks}
    assert [source.path for source in config.data.sources] == list(folders)
    found = {}
    for name, evaluator in config.evaluators.items():
        assert isinstance(evaluator, Answers)
        reading = evaluator.reading(config.data)
        source = Source(str(folders[reading.sources[0].path]), evaluator.split)
        data = reading.with_fields(text=Text(tokens, reading.field("text", Text).source))
        found[name] = [row for one in asked(data, source) for row in one.rows]
    kinds = {name: sorted({row.kind for row in rows}) for name, rows in found.items()}
    assert kinds.pop("boxes") == ["rec", "rec_described", "reg", "reg_described"]
    assert kinds == {"reports": ["report"], "closed": ["choice"], "open": ["open"]}
    assert [row.truth for row in found["closed"]] == ["A. axial", "B. None"]
    assert [row.truth for row in found["open"]] == ["axial"]  # vqa_test5k
    assert len(found["reports"]) == len(open_dataset(dataset, "test"))
    assert {row.truth for row in found["boxes"] if row.kind == "reg"} == {"The aorta."}


def test_rows_and_pictures_that_are_missing_are_named(dataset: Path) -> None:
    rows = list(csv.DictReader((dataset / "quarantine.csv").open()))
    assert [(row["file"], row["reason"]) for row in rows] == [
        ("M3D_VQA_train.csv", "row 4: the answer is missing"),
        ("M3D_VQA_train.csv", "row 5: the question is missing"),
        ("M3D_VQA_train.csv", "row 6: choice 'B' and the answer differ"),
        ("M3D_VQA_train.csv", "row 7: choice 'D' and the answer differ"),
        ("M3D_VQA_train.csv", "row 9: the answer is missing"),
        ("M3D_VQA_train.csv", "row 10: the question is missing"),
        (
            "M3D_VQA_train.csv",
            f"row 11: Image Path {FAR!r} is outside of the folder, or not a plain path",
        ),
        ("M3D_VQA_yn_train.csv", "row 3: the answer is neither yes nor no"),
        ("ct_case/000009/Axial.npy", "no such file"),
    ]
    assert all(row["cure"] for row in rows)


def test_tables_of_another_form_stop_it(m3d: Path, tmp_path: Path) -> None:
    scans = str(m3d.parent / "M3D_Cap")
    with pytest.raises(DataError, match="holds no table of M3D-VQA"):
        Prepare("m3d_vqa", scans, str(tmp_path)).collection()
    with pytest.raises(DataError, match="--table: it is not given"):
        Prepare("m3d_vqa", scans).collection()
    write(tmp_path, "M3D_VQA_val.csv", HEAD[:-1], [])
    with pytest.raises(DataError, match="has no column 'Answer Choice'"):
        Prepare("m3d_vqa", scans, str(tmp_path)).collection()


@pytest.fixture(scope="module")
def seg(sample_scans: epath.Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return m3d_tree.make_seg(tmp_path_factory.mktemp("seg"), sample_scans)


@pytest.fixture(scope="module")
def masks(seg: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset that is prepared from `seg`."""
    out = tmp_path_factory.mktemp("masks") / "data"
    assert Prepare("m3d_seg", str(seg), out=str(out), workers=0).run() == 0
    return out


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Two sets with a case each, as M3D's script leaves them."""
    root = tmp_path / "M3D_Seg_npy"
    rng = np.random.default_rng(0)
    for code, masks in {"0001": [(2, 9), None], "0020": [(4, 12), (5, 7)]}.items():
        case = root / code / "7"
        (case / "masks").mkdir(parents=True)
        np.save(case / "image.npy", rng.random((1, 16, 20, 24), np.float32))
        entries = []
        for number, bounds in enumerate(masks):
            mask = np.zeros((1, 16, 20, 24) if bounds else (1, 1, 1, 1), bool)
            mask[..., slice(*bounds) if bounds else slice(0)] = True
            path = case / "masks" / f"mask_{number}.npy"
            np.save(path, mask)
            relative = path.relative_to(root).as_posix()
            entries.append({"image": f"{code}/7/image.npy", "label": relative})
        split = "train" if code == "0001" else "test"
        index = {"train": [], "test": [], split: entries}
        (root / code / f"{code}.json").write_text(json.dumps(index))
    names = {"0001": ["liver", "spleen"], "0020": ["liver", "liver tumor"], "0025": ["lung"]}
    (root / "dataset_info.json").write_text(json.dumps(names))
    return root


def test_positioning_on_m3d_segs_layout(seg: Path, masks: Path) -> None:
    records = open_dataset(masks, "train")
    (train,), (test,) = records, open_dataset(masks, "test")
    names = {name: value for value, name in records.mask_names.items()}
    assert set(names) == {name for *_, classes in m3d_tree.SEG.values() for name in classes}
    assert train["image"].shape == train["mask"].shape == m3d_tree.SEG_SIZE
    # B-top has no bladder, and the aorta was not drawn there.
    assert {records.mask_names[v] for v in np.flatnonzero(train["annotated"])} == {
        *m3d_tree.SEG["0011"][3]
    }
    assert np.unique(test["mask"]).tolist() == [0, names["aorta"]]
    ask = MaskQuestions(yes_no=0, choice=0, rec_described=1, reg_described=1)
    others = PlacedCropMasks(Ground(train), train["mask"].shape)
    seen = View(train, train["mask"], records.mask_names, others)
    asked = ask.every(seen)
    for kind in ("rec", "rec_described"):
        some = [question for question in asked if question.kind == kind]
        assert {question.label for question in some} == {
            "liver", "left kidney", "spleen", "left adrenal gland"
        }  # fmt: skip
        for question in some:
            (box,) = text_to_boxes(question.text)
            drawn = np.load(
                seg
                / f"0011/s0004/masks/mask_{[*m3d_tree.SEG['0011'][3]].index(question.label)}.npy"
            )
            assert box == pytest.approx(mask_to_box(drawn[0]), abs=0.04)  # later classes win
    (text,) = [q.text for q in asked if q.kind == "reg_described" and q.label == "spleen"]
    assert text == f"That is the spleen: {describe('spleen')[0]}."
    lost = dataclasses.replace(ask, absent=1.0, reg=0, reg_described=0)
    answer = lost(seen, np.random.default_rng(0))
    assert answer is not None and answer.label == "urinary bladder"


def test_small_arrays_of_m3d_segs_layout(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "data"
    assert Prepare("m3d_seg", str(small), out=str(out), workers=0).run() == 0
    assert "configs/m3d/instruct.py --data.sources.1.path" in capsys.readouterr().out
    records = open_dataset(out, "train")
    (train,), (test,) = records, open_dataset(out, "test")
    assert records.mask_names == {1: "liver", 2: "liver tumor", 3: "spleen"}
    assert np.flatnonzero(train["annotated"]).tolist() == [1, 3] and train["units"] == "unit"
    assert np.unique(train["mask"]).tolist() == [0, 1]
    assert np.unique(test["mask"]).tolist() == [0, 1, 2]  # the tumour is not hidden
    ask = MaskQuestions(absent=1.0, yes_no=0, choice=0, reg=0)
    others = PlacedCropMasks(Ground(train), train["mask"].shape)
    seen = View(train, train["mask"], records.mask_names, others)
    lost = ask(seen, np.random.default_rng(0))
    assert lost is not None and lost.label == "spleen"
    found, absent = ask.every(seen)
    assert absent.label == "spleen"
    assert found.text.lower() == "<bx_start>[0.0, 0.0, 0.083, 1.0, 1.0, 0.375]<bx_end>."


@pytest.mark.parametrize(
    "index, problem",
    [
        (
            {"train": [{"image": "0001/7/image.npy", "label": "0001/7/masks/mask_5.npy"}]},
            "is not one of the . classes",
        ),
        ({"train": [{"image": "/etc/x.npy", "label": "a"}]}, "is outside of the folder"),
        ({"other": []}, "is not a split"),
        ({"train": [7]}, r"train\[0\] is not an entry"),
    ],
)
def test_an_index_that_cannot_be_used_is_told(small: Path, index: Any, problem: str) -> None:
    (small / "0001/0001.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=problem):
        Prepare("m3d_seg", str(small)).collection()


def test_both_stages_as_shipped_on_tiny_parts(
    dataset: Path,
    seg: Path,
    masks: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """configs/m3d/align.py and instruct.py, from the released layouts to an answer to a scan.

    Only sizes and paths differ from the shipped configs: modules, crops, steps, batch and texts.
    """
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("data/m3d_seg").symlink_to(masks)
    Path("data/m3d_cap").symlink_to(dataset)
    grown = grow(tiny_llm.pretrained(), SPECIAL, PLAIN, multiple=8)
    small = tiny.vision_language(llm=grown.model, image_token_id=258)
    tokens = DialogueTokens("weights/llama2_7b", 4, 230, vocab_size=264)

    def data(shipped: Data) -> Data:
        text = Text(tokens, shipped.field("text", Text).source)
        small = dataclasses.replace(shipped, size=(8, 16, 16), batch_size=8, workers=0)
        return small.with_fields(text=text)

    llm = Experiment("llm", Language(grown.model), data(align.get_config().data))
    weights.save("weights/llama2_7b", llm, flatten(grown.params), {})
    tiny_llm.tokenizer().save_pretrained("weights/llama2_7b")

    def experiment(shipped: Experiment, **changes: Any) -> Experiment:
        return dataclasses.replace(shipped, data=data(shipped.data), steps=2, **changes)

    first = train(
        experiment(align.get_config(), task=small, init_from={"llm": "weights/llama2_7b"})
    )
    shipped = instruct.get_config()
    # The others ask about one place only here, where no interval is possible.
    reports = shipped.evaluators["reports"]
    assert isinstance(reports, Answers) and reports.data is not None
    reports = dataclasses.replace(reports, data=data(reports.data), sampling=Sampling(8))
    assert isinstance(shipped.adapters, LoRA)
    run = train(experiment(shipped, task=small, evaluators={"reports": reports}))

    learned, tuned = (
        read_params(folder, read_experiment(folder), step=2) for folder in (first, run)
    )
    start = grown.params["llm"]["token_embed"]["embedding"]
    table = "llm/token_embed/embedding"
    assert np.abs(learned[table] - start).max() > 0
    assert 0 < np.abs(tuned[table] - learned[table]).max() < np.abs(tuned[table] - start).max()
    # A third stage would go on from the adapters, too.
    parts = dict.fromkeys(("vision", "projector", "llm"), str(run))
    third = dataclasses.replace(read_experiment(run), init_from=parts)
    mesh = sharding.make_mesh((1, 1, 1), jax.devices()[:1])
    begun = flatten(initial_state(third, mesh).params)
    assert begun.keys() == tuned.keys() and any("lora_b" in path for path in begun)
    for path, value in begun.items():
        np.testing.assert_array_equal(value, tuned[path], err_msg=path)
    found = evaluate(run).found
    assert found["reports"]["seconds"] > 0
    assert set(found["reports"]["kinds"]) == {"report"}
    scan = next((seg / "0007").glob("*/image.npy"))
    how = ("--units", "unit", "--recipe", "m3d_seg", "--sampling.max-new-tokens", "8")
    assert main(["ask", str(run), str(scan), "Which plane is this?", *how]) == 0
    assert "not for clinical use" in capsys.readouterr().out.lower()
