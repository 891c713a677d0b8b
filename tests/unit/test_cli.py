"""The verbs of the command line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from data_pipelines.errors import ConfigError
from m3djax.cli import VERBS, main
from m3djax.config import files

ROOT = Path(__file__).parents[2]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_usage_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert main(["--help"]) == 0
    usage = capsys.readouterr().out
    assert all(verb in usage for verb in VERBS)
    assert main(["trian"]) == 2
    assert "no verb 'trian'" in capsys.readouterr().err
    for verb in ("quickstart", "train", "plan", "evaluate", "compare"):
        assert main([verb, "--help"]) == 0
        assert capsys.readouterr().out.startswith(f"usage: python run.py {verb} ")


@pytest.mark.parametrize("verb", ["evaluate", "convert", "ask"])
def test_help_of_verbs_that_read_saved_configs_shows_allow(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        assert main([verb, "--help"]) == 0
    except SystemExit as end:  # tyro's way to end
        assert end.code == 0
    assert "--allow PACKAGE: load the classes of your own package" in capsys.readouterr().out


def test_allow_needs_a_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "runs/own", "--allow"]) == 1
    assert "--allow names no package. Cure: --allow PACKAGE." in capsys.readouterr().err


@pytest.mark.parametrize("unbuffered", ["1", ""])
@pytest.mark.parametrize("closed", ["stdout", "stderr"])
@pytest.mark.parametrize("arguments, status", [(["--help"], 0), (["evaluate"], 2)])
def test_a_verb_ends_quietly_when_its_reader_is_gone(
    arguments: list[str], status: int, closed: str, unbuffered: str
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, closed: writer}
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    command = [sys.executable, str(ROOT / "run.py"), *arguments]
    done = subprocess.run(command, **streams, env=environment, text=True)
    os.close(writer)
    writes_there = closed == ("stderr" if status else "stdout")
    assert done.returncode == (128 + signal.SIGPIPE if writes_there else status)
    assert "Traceback" not in f"{done.stdout}{done.stderr}"
    assert "Exception ignored" not in f"{done.stdout}{done.stderr}"


def test_another_broken_pipe_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def send(arguments: list[str]) -> int:
        raise BrokenPipeError("a server hung up")

    monkeypatch.setitem(VERBS, "send", send)
    with tempfile.TemporaryFile("w") as out, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", out)
        with pytest.raises(BrokenPipeError, match="a server hung up"):
            main(["send"])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["train", "configs/nothing.py"], "there is no such config"),
        (["evaluate", "runs/nothing"], "is not a run"),
        (["prepare", "folder", "--source", "nowhere"], "nowhere"),
        (["inspect", "nowhere.nii.gz"], "nowhere.nii.gz"),
        (
            ["train", str(ROOT / "configs/quickstart.py")],
            "data/sample_ct: there is no such dataset",
        ),
    ],
)
def test_errors_are_one_line_with_a_cure(
    arguments: list[str], message: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 1
    error = capsys.readouterr().err.strip()
    assert message in error and "Cure: " in error and "Traceback" not in error


def test_a_config_is_found_by_path_or_by_the_name_of_a_shipped_one(home: Path) -> None:
    shipped = ROOT / "configs/quickstart.py"
    assert files.find("quickstart") == files.find("configs/quickstart.py") == shipped
    assert files.find("m3d/clip") == ROOT / "configs/m3d/clip.py"
    (home / "configs").mkdir()
    own = Path("configs/quickstart.py")
    own.write_text("")
    assert files.find(own) == own
    with pytest.raises(ConfigError, match="clips: .* one of .*m3d/clip, .*quickstart,"):
        files.find("clips")


def test_messages_name_the_command_that_was_called(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for called, shown in (("/env/bin/m3djax", "m3djax"), ("run.py", "python run.py")):
        monkeypatch.setattr(sys, "argv", [called, "evaluate"])
        assert main() == 2
        assert f"usage: {shown} evaluate RUN" in capsys.readouterr().err


def test_a_config_without_get_config_is_named(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "empty.py").write_text("")
    assert main(["train", "empty.py"]) == 1
    assert "empty.py: has no get_config()" in capsys.readouterr().err


def test_the_sharding_table_needs_no_data(capsys: pytest.CaptureFixture[str]) -> None:
    config = str(ROOT / "configs/e3d_gpt/mae.py")
    assert main(["train", config, "--print-sharding", "--mesh", "2", "4", "1"]) == 0
    printed = capsys.readouterr().out
    assert "data 2, fsdp 4, tensor 1" in printed
    row = next(line for line in printed.splitlines() if "12 x 768 x 3072" in line)
    assert "-, fsdp, -" in row


SMALL = (
    *("--steps", "2", "--data.batch-size", "8"),
    *("--task.vision.hidden-size", "48", "--task.vision.transformer.num-layers", "1"),
    *("--task.mae-decoder.transformer.num-layers", "1"),
    *("--evaluators.reconstruction.draws", "1", "--evaluators.reconstruction.pictures", "1"),
    *("--evaluators.probe.untrained", "1", "--evaluators.probe.most", "60"),
)


def test_prepare_train_evaluate(sample_scans: Path, home: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        # A process of its own: one device, and the compiler's optimisations on.
        environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
        environment["JAX_PLATFORMS"] = "cpu"
        command = [sys.executable, str(ROOT / "run.py"), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    assert main(["prepare", "sample_ct", "--source", str(sample_scans), "--workers", "0"]) == 0
    trained = run("train", str(ROOT / "configs/quickstart.py"), *SMALL)
    assert trained.returncode == 0, trained.stderr
    assert "next: python run.py evaluate runs/quickstart" in trained.stdout
    # After two steps the test fails: the exit status says so, and the report is written.
    evaluated = run("evaluate", "runs/quickstart")
    assert evaluated.returncode == 1, evaluated.stderr
    page = (home / "runs/quickstart/report.html").read_text()
    assert "<img" in page and "mean of the crop" in page
