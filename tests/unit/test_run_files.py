"""Files of a run: manifests, lines of metrics, results, and curves; and overlap of masks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st

from m3djax.evaluate.dice import dice, iou, soft_dice_released
from m3djax.runs import manifest, metrics, results, training_curves
from m3djax.runs.metrics import METRICS, MetricsWriter, SilentWriter, read_metrics
from m3djax.runs.results import Results
from m3djax.runs.training_curves import CURVES, Curve, draw


@pytest.fixture
def folder(tmp_path: Path) -> epath.Path:
    """Returns a folder of two files with a manifest."""
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "z.bin").write_bytes(b"\x00\x01")
    (tmp_path / "deep" / "er" / "b.txt").write_text("b")
    manifest.write(epath.Path(tmp_path), {"step": 7})
    return epath.Path(tmp_path)


def test_a_manifest_lists_every_file_with_its_hash(folder: epath.Path) -> None:
    assert manifest.damage(folder) == ""
    assert manifest.about(folder) == {"step": 7}
    files = json.loads((folder / manifest.NAME).read_text())["files"]
    assert sorted(files) == ["deep/er/b.txt", "z.bin"]
    # sha256 of the letter b, from `printf b | sha256sum`
    assert files["deep/er/b.txt"].startswith("3e23e8160039594a33894f6564e1b134")


def test_a_file_that_was_added_later_is_no_damage(folder: epath.Path) -> None:
    (folder / "note.txt").write_text("mine")
    assert manifest.damage(folder) == ""


def test_changed_and_lost_files_are_named_in_order(folder: epath.Path) -> None:
    (folder / "deep" / "er" / "b.txt").write_text("c")
    assert manifest.damage(folder) == "files missing or changed: deep/er/b.txt"
    (folder / "z.bin").unlink()
    assert manifest.damage(folder) == "files missing or changed: deep/er/b.txt, z.bin"


@pytest.mark.parametrize(
    "content, problem",
    [
        (None, "it was never finished (no manifest)"),
        ("", "its manifest is damaged, or of another version"),
        ('{"about": {}', "its manifest is damaged, or of another version"),
        ("[]", "its manifest is damaged, or of another version"),
        ('{"files": {}}', "its manifest is damaged, or of another version"),
        ('{"about": 3, "files": {}}', "its manifest is damaged, or of another version"),
        ('{"about": {}, "files": {}}', "its manifest lists no files"),
    ],
)
def test_manifests_that_cannot_be_used(
    folder: epath.Path, content: str | None, problem: str
) -> None:
    path = folder / manifest.NAME
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    assert manifest.damage(folder) == problem


def write_steps(folder: Path, start: int, steps: range) -> None:
    """Writes one line of metrics for each step."""
    with MetricsWriter(epath.Path(folder), start, 10) as writer:
        for step in steps:
            writer.advance(step)
            writer.write(step, {"loss": float(start + step)})


def test_a_resumed_run_has_one_line_for_each_step(tmp_path: Path) -> None:
    write_steps(tmp_path, 0, range(5))
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 5, "lo')  # the process was killed here
    assert [row["step"] for row in read_metrics(tmp_path)] == [0, 1, 2, 3, 4]
    write_steps(tmp_path, 3, range(3, 6))
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4, 5]
    assert [row["loss"] for row in rows] == [0, 1, 2, 6, 7, 8]


def test_a_run_from_the_start_forgets_old_lines(tmp_path: Path) -> None:
    write_steps(tmp_path, 0, range(3))
    write_steps(tmp_path, 0, range(1))
    assert read_metrics(tmp_path) == [{"step": 0, "loss": 0.0}]


def test_only_the_first_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics.distributed, "is_first", lambda: False)
    with metrics.open_writer(epath.Path(tmp_path), 0, 3) as writer:
        writer.advance(1)
        writer.write(1, {"loss": 1.0})
    assert isinstance(writer, SilentWriter)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "verdicts, passed",
    [([], True), ([None], True), ([True, None], True), ([True, False], False), ([False], False)],
)
def test_a_run_passes_if_no_test_fails(
    tmp_path: Path, verdicts: list[bool | None], passed: bool
) -> None:
    found: dict[str, Any] = {
        f"e{n}": {"passed": verdict, "report": {"sentences": [f"First {n}.", f"Second {n}."]}}
        for n, verdict in enumerate(verdicts)
    }
    assert Results.read(tmp_path) is None
    (tmp_path / results.FOLDER).mkdir()
    page = json.dumps({"step": 12, "found": found})
    (tmp_path / results.FOLDER / results.RESULTS).write_text(page)
    read = Results.read(tmp_path)
    assert read is not None
    assert (read.step, read.found, read.passed) == (12, found, passed)
    assert read.report == epath.Path(tmp_path) / "report.html"
    lines = [f"{word} {n}." for n in range(len(verdicts)) for word in ("First", "Second")]
    assert read.summary().splitlines() == lines


def test_curves_of_one_term_and_of_several() -> None:
    one = [{"step": 0, "loss": 2.0, "loss/clip": 2.0}, {"step": 1, "loss/other": 9.0}]
    assert training_curves.of(one) == (Curve("loss", "Loss: clip", log=True), *CURVES)
    several = [{"step": 0, "loss": 1.0, "loss/b": -1.0, "loss/a": 2.0}]
    assert training_curves.of(several)[:3] == (
        Curve("loss", "Loss", log=True),
        Curve("loss/a", "Loss: a", log=True),
        Curve("loss/b", "Loss: b", log=False),  # a value below 0 has no logarithm
    )
    assert training_curves.terms([]) == []


values = st.lists(st.floats(2**-10, 2**10, width=32), min_size=2, max_size=80)


@settings(deadline=None, max_examples=40)
@given(values, st.booleans())
def test_curves_stay_in_their_frame_and_keep_order(some: list[float], log: bool) -> None:
    rows = [{"step": 10 * n, "x": value} for n, value in enumerate(some)]
    svg = draw(Curve("x", "X", log=log), rows)
    assert svg is not None
    for kind in ("raw", "smooth"):
        (line,) = re.findall(rf'class="{kind}" points="([^"]*)"', svg)
        x, y = np.array([pair.split(",") for pair in line.split()], float).T
        assert len(x) == len(some)
        assert (x[0], x[-1]) == (52, 430)
        assert np.all((y >= 12) & (y <= 186))
        if kind == "raw":  # larger values are higher, so their pixel numbers are smaller
            assert np.all(np.diff(y[np.argsort(some, kind="stable")]) <= 0)
    assert f"last value {some[-1]:.3g}" in svg


def test_values_without_a_place_are_left_out() -> None:
    rows = [{"step": n, "x": v} for n, v in enumerate([1.0, 0.0, -1.0, np.nan, np.inf, 2.0])]
    for log, count in ((True, 2), (False, 4)):
        svg = draw(Curve("x", "X", log=log), [*rows, {"step": 9.0, "other": 1.0}])
        assert svg is not None
        (line,) = re.findall(r'class="raw" points="([^"]*)"', svg)
        assert len(line.split()) == count


masks = st.lists(st.booleans(), min_size=8, max_size=8).map(lambda m: np.reshape(m, (2, 2, 2)))


@given(masks, masks)
def test_overlap_counts_voxels(mask: np.ndarray, truth: np.ndarray) -> None:
    ours, theirs = ({*map(tuple, np.argwhere(one))} for one in (mask, truth))
    if not ours | theirs:
        assert np.isnan(dice(mask, truth))
        assert np.isnan(iou(mask, truth))
        return
    assert dice(mask, truth) == 2 * len(ours & theirs) / (len(ours) + len(theirs))
    assert iou(mask, truth) == len(ours & theirs) / len(ours | theirs)
    overlap = iou(mask, truth)
    assert dice(mask, truth) == pytest.approx(2 * overlap / (1 + overlap))


@pytest.mark.filterwarnings("error")
def test_the_released_dice_is_soft_and_adds_one() -> None:
    truth = np.array([True, True, False, False])
    assert soft_dice_released(np.zeros(4), truth) == pytest.approx(2 * 1 / (2 + 2 + 1))
    sure = np.array([1e5, 1e5, -1e5, -1e5], np.float32)
    assert soft_dice_released(sure, truth) == pytest.approx(4 / 5)
    assert soft_dice_released(-sure, truth) == 0
    assert soft_dice_released(-np.abs(sure), np.zeros(4, bool)) == 0
