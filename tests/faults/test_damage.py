"""Every kind of damage to a checkpoint is detected and named; the step before it is used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from m3djax.runs import checkpoint, run_folder
from m3djax.runs.checkpoint import Checkpointer, CheckpointError
from m3djax.training.train import train
from tests import tiny


@pytest.fixture(scope="module")
def trained(prepared: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs with a frozen encoder and checkpoints at 3 and 6; the second has another seed."""
    home = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        for name, seed in (("own", 0), ("stranger", 1)):
            train(tiny.experiment(prepared, name=name, seed=seed, trainable="mae_decoder/"))
    return home / "runs"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained / "own", tmp_path / "own"))


def largest(folder: Path) -> Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip(path: Path, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1 << bit
    path.write_bytes(content)


def cut(path: Path, left: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * left)])


def swap(step: Path, other: Path) -> None:
    shutil.rmtree(step)
    shutil.copytree(other, step)


def forge(step: Path, **changes: object) -> None:
    """A manifest that agrees with the files and says something else."""
    path = step / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


CHANGED, NEVER = "files missing or changed: ", "it was never finished"
MANIFEST = "its manifest is damaged, or of another version"
# What is done to the folder of a step (of which run 3 is another step), and what is said of it.
DAMAGES: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "a bit of the largest file": (lambda f, _: flip(largest(f)), CHANGED),
    "its last bit": (lambda f, _: flip(largest(f), 7), CHANGED),
    "a bit of Orbax's metadata": (lambda f, _: flip(f / "_CHECKPOINT_METADATA"), CHANGED),
    # The bit may fall into a hash, the syntax, or the config that is noted beside them.
    "a bit of the manifest": (
        lambda f, _: flip(f / "manifest.json"),
        f"{CHANGED}|{MANIFEST}|belongs to a run with another",
    ),
    "a file cut in half": (lambda f, _: cut(largest(f), 0.5), CHANGED),
    "a file without its last bytes": (lambda f, _: cut(largest(f), 0.999), CHANGED),
    "an empty file": (lambda f, _: cut(largest(f), 0), CHANGED),
    "a lost file": (lambda f, _: largest(f).unlink(), CHANGED),
    "two files exchanged": (lambda f, _: exchange(f), CHANGED),
    "a file of another step": (lambda f, o: shutil.copy(largest(o), largest(f)), CHANGED),
    "all files lost": (lambda f, _: [p.unlink() for p in payload(f)], CHANGED),
    "no manifest": (lambda f, _: (f / "manifest.json").unlink(), NEVER),
    "half a manifest": (lambda f, _: cut(f / "manifest.json", 0.5), MANIFEST),
    "an empty manifest": (lambda f, _: cut(f / "manifest.json", 0), MANIFEST),
    "a manifest that is a list": (lambda f, _: (f / "manifest.json").write_text("[]"), MANIFEST),
    "a manifest without files": (lambda f, _: forge(f, files={}), "lists no files"),
    "a manifest without a config": (lambda f, _: forge(f, about={}), "with another config"),
}
OF_A_STEP: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "another step under this name": (lambda f, o: swap(f, o), "it is step 3 under another name"),
}


def payload(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json"]


def exchange(folder: Path) -> None:
    one, *_, two = sorted(payload(folder), key=lambda p: p.stat().st_size)
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second), two.write_bytes(first)


@pytest.mark.parametrize("kind", DAMAGES | OF_A_STEP)
def test_a_damaged_step_is_passed_over(
    kind: str, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage, reason = (DAMAGES | OF_A_STEP)[kind]
    damage(run / "checkpoints/6", run / "checkpoints/3")
    assert checkpoint.newest_readable(run) == 3
    assert any(part in caplog.text for part in reason.split("|")), caplog.text
    assert "checkpoint skipped: step 6" in caplog.text
    shutil.rmtree(run / "checkpoints/3")
    (run / "checkpoints/3").mkdir()
    with pytest.raises(CheckpointError, match=r"no readable checkpoint \(step 6: .*Cure: "):
        checkpoint.newest_readable(run)


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_to_frozen_parameters_is_an_error(kind: str, run: Path) -> None:
    damage, reason = DAMAGES[kind]
    damage(run / "frozen", run / "checkpoints/3")
    with pytest.raises(CheckpointError, match=rf"frozen: .*({reason}).*Cure: restore the folder"):
        checkpoint.newest_readable(run)


def test_a_step_of_another_run_is_passed_over(
    run: Path, trained: Path, caplog: pytest.LogCaptureFixture
) -> None:
    swap(run / "checkpoints/6", trained / "stranger/checkpoints/6")
    assert checkpoint.newest_readable(run) == 3
    assert "step 6: it belongs to a run with another seed" in caplog.text


def test_frozen_parameters_of_another_run_are_an_error(run: Path, trained: Path) -> None:
    swap(run / "frozen", trained / "stranger/frozen")
    with pytest.raises(CheckpointError, match="frozen: it belongs to a run with another seed"):
        checkpoint.newest_readable(run)


def test_what_is_passed_over_goes_aside_and_nothing_is_deleted(run: Path) -> None:
    flip(largest(run / "checkpoints/6"))
    Checkpointer(run).close()
    assert run_folder.steps_in(run) == [3]
    assert len(list(run.glob("damaged-6-*"))) == 1


def test_a_run_whose_first_save_was_cut_off_starts_anew(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(run / "checkpoints/6")
    (run / "checkpoints/3/manifest.json").unlink()
    Checkpointer(run).close()
    assert run_folder.steps_in(run) == [] and len(list(run.glob("damaged-3-*"))) == 1
    assert "its first checkpoint was never finished: starts from step 0" in caplog.text
