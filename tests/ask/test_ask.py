"""The verb `ask` with a tiny random model."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.image import imread

from data_pipelines.fields.image import Image
from m3djax import params as params_lib
from m3djax.ask.describe import measured
from m3djax.ask.picture import NOTICE
from m3djax.ask.session import Session
from m3djax.cli import main
from m3djax.config import serialize
from m3djax.generate.generator import Answer
from m3djax.generate.volumes import VolumeReader
from m3djax.runs import weights
from tests import tiny

LENGTH = ("--sampling.max-new-tokens", "10")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    # One device: collectives of simulated ones wait for each other on few cores.
    monkeypatch.setattr("jax.local_devices", lambda *_, **__: jax.devices()[:1])
    return tmp_path


def says(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Makes every model answer with this text."""

    def answer(self: VolumeReader, encoded, prompts, options, *, on_text) -> list[Answer]:
        on_text(0, text)
        return [Answer((), text, "eos")]

    monkeypatch.setattr(VolumeReader, "answer", answer)


def test_questions_are_answered(
    run: Path, scan: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["ask", str(run), str(scan), "Is it there?", "And now?", "--units", "HU", *LENGTH]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "> Is it there?\n" in out and "> And now?\n" in out and out.count(NOTICE) == 2
    assert (
        "36 x 30 x 24 voxels along LIP (oblique: mm are of upright boxes around) of 3 x 3 x 3"
        in out
    )
    assert "looked at: voxels [10:26, " in out and "cut as in training" in out
    assert "measured: nothing" in out
    assert imread(home / "ask.png").shape[1] > 500
    answers = out.split("> Is it there?\n")[1]
    assert main([*arguments, "--at", "whole", "--picture", "None"]) == 0
    other = capsys.readouterr().out
    assert "resampled as a whole, unlike in training" in other
    assert answers.split("picture")[0] != other.split("> Is it there?\n")[1].split("picture")[0]


def test_what_was_measured_is_said_before_the_answers(run: Path) -> None:
    found = {"passed": None, "report": {"sentences": ["Half is right.", "No box is."]}}
    file = run / "evaluation/results.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"step": 1, "passed": True, "found": {"answers": found}}))
    assert measured(run) == ["measured: Half is right.", "measured: No box is."]
    shutil.rmtree(file.parent)


def test_boxes_are_placed_drawn_and_counted(
    run: Path,
    scan: Path,
    home: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    says(monkeypatch, "At [0.0, 0.0, 0.0, 1.0, 1.0, 1.0] $x$, not [0.1, 0.2].")
    arguments = ["ask", str(run), str(scan), "--units", "HU"]
    assert main([*arguments, "Where?"]) == 0
    out = capsys.readouterr().out
    frame = out.split("looked at: ")[1].split("]")[0] + "]"
    assert f"box [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]: {frame} of the file; RAS+ mm x" in out
    assert "not a readable box, left out: [0.1, 0.2]" in out
    assert "boxes: 1 placed, 1 unreadable, 0 outside of the scan" in out
    yellow = imread(home / "ask.png")[..., :3] @ [1, 1, -1.5]
    says(monkeypatch, "Nothing.")
    assert main([*arguments, "--picture", "plain.png", "Where?"]) == 0
    none = imread(home / "plain.png")[..., :3] @ [1, 1, -1.5]
    assert np.mean(yellow > 0.9) > 2 * np.mean(none > 0.9)


def test_the_picture_names_slices_of_the_file(
    run: Path, scan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The axes of the file run to left, inferior and posterior: axial slices count downwards."""
    written: list[str] = []
    text = Axes.text
    monkeypatch.setattr(
        Axes, "text", lambda axes, x, y, s, **how: written.append(s) or text(axes, x, y, s, **how)
    )
    says(monkeypatch, "Nothing.")
    place = ["--at=16,9,13", "--units", "HU"]
    assert main(["ask", str(run), str(scan), "Where?", *place]) == 0
    found = dict(name.split(" ", 1) for name in written if "[" in name)
    assert set(found) == {"axial", "coronal", "sagittal"}
    for plane, axis, middle in (("axial", 1, 9), ("coronal", 2, 13), ("sagittal", 0, 16)):
        numbers = found[plane].strip("[]").split(", ")
        assert [n == ":" for n in numbers] == [i != axis for i in range(3)]
        assert abs(int(numbers[axis]) - middle) <= 1


def test_several_scans_of_a_prompt(
    run: Path, scan: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["ask", str(run), str(scan), "Is it there?", "--units", "HU", *LENGTH]
    assert main([*arguments, "--also", str(scan), "--picture", "two.png"]) == 0
    assert capsys.readouterr().out.count("looked at") == 2
    titles: list[str] = []
    monkeypatch.setattr(
        "m3djax.ask.picture.draw",
        lambda _, rows, window: titles.extend(row.title for row in rows),
    )
    says(monkeypatch, "At [0.0, 0.0, 0.0, 1.0, 1.0, 1.0].")
    assert main([*arguments, "--also", str(scan)]) == 0
    assert "is not placed: the answer does not say in which" in capsys.readouterr().out
    assert len(titles) == 2 and all(title.startswith(f"{scan}: Is it") for title in titles)


def test_talking(
    run: Path, scan: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    long = "why " * 80
    monkeypatch.setattr("sys.stdin", io.StringIO(f"Is it there?\n{long}\nAnd now?\n\nnever\n"))
    asked = []
    ask = Session.ask

    def noting(self: Session, history, question: str, on_text, *, form: str):
        asked.append(question)
        return ask(self, history, question, on_text, form=form)

    monkeypatch.setattr(Session, "ask", noting)
    assert main(["ask", str(run), str(scan), "--units", "HU", *LENGTH]) == 0
    printed = capsys.readouterr()
    assert asked == ["Is it there?", long.strip(), "And now?"]
    assert "do not fit the context of 256. Cure: a shorter prompt" in printed.err
    assert printed.out.count(NOTICE) == 2
    monkeypatch.setattr("sys.stdin", None)  # closed
    assert main(["ask", str(run), str(scan), "--units", "HU", "--picture", "None"]) == 0
    assert capsys.readouterr().out.count(NOTICE) == 2


def test_a_draft_is_written_whole_or_not_at_all(
    run: Path,
    scan: Path,
    home: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = ["ask", str(run), str(scan), "--units", "HU", "--report", "draft.md", *LENGTH]
    assert main(arguments) == 0
    draft = (home / "draft.md").read_text()
    assert draft.count(NOTICE) == 2 and "patient.nii.gz" in draft
    assert "cut off here" in draft or "..." not in capsys.readouterr().out
    (home / "draft.md").unlink()
    says(monkeypatch, " ")
    assert main(arguments) == 1
    assert "the model said nothing" in capsys.readouterr().err
    assert not (home / "draft.md").exists()


def test_a_disk_that_fills_up_is_no_trace(
    run: Path, scan: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    says(monkeypatch, "Nothing.")
    monkeypatch.setattr("m3djax.ask.picture.write_whole", full)
    assert main(["ask", str(run), str(scan), "Where?", "--units", "HU"]) == 1
    printed = capsys.readouterr()
    assert "Nothing." in printed.out
    assert "ask.png: cannot be written (No space left on device). Cure: " in printed.err


def test_what_cannot_be_asked_says_why(
    run: Path, scan: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*arguments: str) -> str:
        assert main(["ask", *arguments]) == 1
        message = capsys.readouterr().err
        assert "Cure: " in message and "Traceback" not in message
        return message

    def changed(name: str, **changes: object) -> str:
        config = serialize.from_json(json.loads((run / "config.json").read_text()))
        (home / name).mkdir()
        (home / name / "weights").symlink_to(run / "weights")
        made = dataclasses.replace(config, **changes)
        (home / name / "config.json").write_text(serialize.dumps(made))
        return name

    path, config = (
        str(scan),
        serialize.from_json(json.loads((run / "config.json").read_text())),
    )
    assert "--units HU" in fails(str(run), path, "Why?")
    for option in ("--picture", "--report"):
        assert "its folder is not there" in fails(str(run), path, "Why?", option, "no/where.x")
        assert "is a folder" in fails(str(run), path, "Why?", option, str(home))
    units = ("--units", "HU")
    assert "a name in .png" in fails(str(run), path, "Why?", "--picture", "ask.jpg", *units)
    for zoom in ("0", "nan", "inf"):
        assert "positive and finite" in fails(str(run), path, "Why?", "--zoom", zoom, *units)
    assert "a smaller zoom" in fails(str(run), path, "Why?", "--zoom", "1e9", *units)
    assert "a question is empty" in fails(str(run), path, "Why?", " ", "--units", "HU")
    assert "is not a run" in fails("nowhere", path, "Why?")
    assert "nowhere.nii" in fails(str(run), "nowhere.nii", "Why?")
    assert "answers no questions" in fails(changed("mae", task=tiny.mae()), path, "Why?")
    data = dataclasses.replace(config.data, fields={"image": Image()})
    assert "data.fields.text.tokens is" in fails(changed("mute", data=data), path, "Why?")
    gone = dataclasses.replace(
        config.data, sources=(dataclasses.replace(config.data.sources[0], path="gone"),)
    )
    elsewhere = changed("elsewhere", data=gone)
    message = fails(elsewhere, path, "Why?", "--units", "HU")
    assert "data.sources" in message and "--recipe" in message
    assert main(["ask", elsewhere, path, "Why?", "--units", "HU", "--recipe", "ct", *LENGTH]) == 0
    capsys.readouterr()
    assert "--recipe 'cat' is unknown" in fails(str(run), path, "--recipe", "cat")
    assert "do not fit the context" in fails(str(run), path, "why " * 80, "--units", "HU")
    wider = dataclasses.replace(config.task, vision=config.task.vision.clone(hidden_size=32))
    assert "weights" in fails(changed("odd", task=wider), path, "Why?", "--units", "HU")
    flat = params_lib.flatten(
        config.task.init(jax.random.key(0), {"image": np.zeros((1, 8, 16, 16, 1))})
    )
    weights.save("half", config, {p: leaf for p, leaf in flat.items() if p.startswith("llm/")}, {})
    message = fails("half", path, "Why?", *units)
    assert "holds no weights of projector, vision, only of llm" in message
