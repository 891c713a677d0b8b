"""The evaluation of a run as a whole: results.json, the page, and errors a user can act on."""

import dataclasses
import html.parser
import json
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from m3djax import cli
from m3djax.adapters import LoRA
from m3djax.config import serialize
from m3djax.evaluate import Reconstruction, loop
from m3djax.evaluate.run import evaluate
from m3djax.mesh import sharding
from m3djax.params import flatten
from m3djax.runs import report, run_folder, training_curves
from m3djax.runs.checkpoint import CheckpointError
from m3djax.runs.metrics import read_metrics
from m3djax.runs.model import Model
from m3djax.runs.run_folder import RunError
from m3djax.runs.training_curves import Curve
from m3djax.training.train import train
from tests import tiny
from tests.unit.fakes import SIZE

NASTY = "<script>alert('x')</script>&\""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("report")
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def config(prepared):
    measured = Reconstruction(prepared, SIZE, studies=("C",), draws=1, every=3)
    evaluators = {"reconstruction": measured}
    return tiny.experiment(prepared, name="evaluated", evaluators=evaluators)


@pytest.fixture(scope="module")
def results(config, home):
    """A trained and evaluated run."""
    return evaluate(train(config), Console(quiet=True))


def test_results_are_whole(results):
    folder = Path(results.folder)
    stored = json.loads((folder / "evaluation/results.json").read_text())
    assert stored["step"] == results.step == 6
    assert stored["passed"] is results.passed
    assert stored["found"]["reconstruction"]["mse_model"] > 0
    assert (folder / "evaluation/reconstruction/0.png").stat().st_size > 10_000
    assert results.summary() == "\n".join(stored["found"]["reconstruction"]["report"]["sentences"])
    assert not list(folder.rglob("*.partial"))


def test_the_run_decides_about_the_exit_status(results, monkeypatch):
    passes = dataclasses.replace(results, found={"x": {"passed": True}, "y": {"passed": None}})
    fails = dataclasses.replace(results, found={"x": {"passed": True}, "y": {"passed": False}})
    assert passes.passed
    assert not fails.passed
    for answer in (passes, fails):
        monkeypatch.setattr("m3djax.evaluate.run.evaluate", lambda folder, a=answer: a)
        assert cli.main(["evaluate", "runs/evaluated"]) == (0 if answer.passed else 1)


def test_parameters_are_those_that_were_saved(results, config):
    params = Model.open(results.folder, step=results.step).params
    kernel = params["vision"]["patch_embed"]["kernel"]
    assert kernel.dtype == np.float32
    assert len(kernel.devices()) == 1
    assert np.abs(np.asarray(kernel)).sum() > 0


def test_parameters_go_straight_to_an_evaluators_mesh(results, monkeypatch):
    mesh, found = loop.own_mesh(Reconstruction(mesh=(1, -1, 2))), {}

    def measure(evaluator, subject):
        found.update(flatten(subject.params))
        return dict(results.found["reconstruction"])

    monkeypatch.setattr(loop, "own_mesh", lambda evaluator: mesh)
    monkeypatch.setattr(loop, "measure", measure)
    evaluate(results.folder, Console(quiet=True))
    assert dict(mesh.shape) == {"data": 1, "fsdp": 4, "tensor": 2}
    where = {path: leaf.sharding for path, leaf in found.items()}
    assert where == sharding.state_shardings(found, mesh, tiny.mae())


def test_training_measures_too(results):
    """On the mesh of the training, with the parameters of that step."""
    name = "reconstruction/mse_model"
    measured = [row for row in read_metrics(results.folder) if name in row]
    assert [row["step"] for row in measured] == [2, 5]
    assert measured[-1][name] == pytest.approx(
        results.found["reconstruction"]["mse_model"], rel=1e-4
    )


class _Page(html.parser.HTMLParser):
    """Collects tags and checks that they are closed."""

    VOID = ("meta", "img")

    def __init__(self):
        super().__init__()
        self.tags, self.open, self.links = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [v for k, v in attributes if k in ("src", "href", "srcset", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_holds_everything_and_refers_to_nothing(results):
    text = results.report.read_text()
    page = _Page()
    page.feed(text)
    assert page.open == []
    assert page.tags.count("img") == 1
    assert page.tags.count("svg") == 4
    assert "script" not in page.tags
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not re.search(r"https?://|url\(|@import", text)
    assert text.index("not for clinical use") < text.index("In short")
    for sentence in results.summary().splitlines():
        assert sentence.split(":")[0] in text
    for word in ("evaluated", "sample_ct", "tensorboard", "Not a medical device", "Learning rate"):
        assert word in text


def test_what_files_say_is_escaped(results, config, tmp_path):
    run = tmp_path / "run"
    (run / "evaluation/x").mkdir(parents=True)
    nasty = dataclasses.replace(config, name=NASTY)
    (run / "config.json").write_text(serialize.dumps(nasty))
    (run / "command.txt").write_text("python run.py train '<script>alert(1)</script>'\n")
    (run / "environment.json").write_text(json.dumps({NASTY: NASTY}))
    table = {"title": NASTY, "columns": [NASTY], "rows": [[NASTY]], "note": NASTY}
    text = {"title": NASTY, "sentences": [NASTY], "caveats": [NASTY], "tables": [table]}
    found = {"x": {"passed": None, "report": text | {"pictures": []}}}
    stored = {"step": 1, "passed": True, "found": found}
    (run / "evaluation/results.json").write_text(json.dumps(stored))
    page = report.write(run).read_text()
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 8
    body = page.split("</style>")[1]
    assert "measured, no test to pass" in body and "badge" not in body


def test_a_run_without_metrics_or_results_has_a_page(config, tmp_path):
    (tmp_path / "config.json").write_text(serialize.dumps(config))
    page = report.write(tmp_path).read_text()
    assert "No metrics were recorded" in page
    assert "badge" not in page.split("</style>")[1]


def test_pictures_that_nobody_described_are_shown_too(results, tmp_path):
    folder = Path(results.folder)
    extra = folder / "evaluation/reconstruction/extra.png"
    extra.write_bytes((folder / "evaluation/reconstruction/0.png").read_bytes())
    try:
        assert report.render(results.folder).count("<img") == 2
    finally:
        extra.unlink()


@pytest.fixture
def replace_evaluators(results, config):
    """Changes the run's config for one test."""
    path = Path(results.folder) / run_folder.CONFIG
    before = path.read_text()
    yield lambda **new: path.write_text(
        serialize.dumps(dataclasses.replace(config, evaluators=new))
    )
    path.write_text(before)


def test_a_run_without_evaluators_says_how_to_add_some(results, replace_evaluators):
    replace_evaluators()
    with pytest.raises(RunError, match=r"no evaluators.*configs/quickstart.py"):
        evaluate(results.folder, Console(quiet=True))


def test_a_missing_dataset_names_the_command_that_makes_it(results, replace_evaluators, capsys):
    replace_evaluators(lost=Reconstruction("data/lost", SIZE))
    assert cli.main(["evaluate", str(results.folder)]) == 1
    assert "run.py prepare" in capsys.readouterr().err


def test_a_run_that_never_saved_cannot_be_evaluated(config, tmp_path):
    (tmp_path / "config.json").write_text(serialize.dumps(config))
    with pytest.raises(CheckpointError, match="nothing was saved"):
        evaluate(tmp_path, Console(quiet=True))


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    assert cli.main(["evaluate", str(tmp_path)]) == 1
    assert "is not a run" in capsys.readouterr().err
    assert cli.main(["evaluate"]) == 2


def test_curves_show_every_point_and_their_last_value():
    rows = [{"step": step, "loss": 10.0**-step} for step in range(5)]
    svg = str(training_curves.draw(Curve("loss", "Loss <1>", log=True), rows))
    assert "Loss &lt;1&gt;" in svg
    assert "last value 0.0001" in svg
    raw = re.search(r'class="raw" points="([^"]*)"', svg)[1].split()
    x, y = np.array([point.split(",") for point in raw], float).T
    np.testing.assert_allclose(np.diff(x), np.diff(x)[0], atol=0.11)
    np.testing.assert_allclose(np.diff(y), np.diff(y)[0], atol=0.11)  # a line on a log axis
    assert (np.diff(y) > 0).all()  # downwards


@pytest.mark.parametrize("values", [[], [1.0], [float("nan")] * 3, [0.0, -1.0, 0.0]])
def test_curves_without_points_are_left_out(values):
    rows = [{"step": step, "loss": value} for step, value in enumerate(values)]
    assert training_curves.draw(Curve("loss", "Loss", log=True), rows) is None


def test_a_constant_is_a_flat_line():
    svg = str(training_curves.draw(Curve("lr", "Rate"), [{"step": s, "lr": 0.5} for s in (0, 10)]))
    raw = re.search(r'class="raw" points="([^"]*)"', svg)[1]
    assert len({point.split(",")[1] for point in raw.split()}) == 1


def test_parameters_of_adapters_are_counted():
    adapters = LoRA(rank=2, targets="vision/.*fc1")
    plain, adapted = (
        int(report.summary(tiny.experiment(adapters=each), [])["parameters"].replace(",", ""))
        for each in (None, adapters)
    )
    block = tiny.mae().vision.transformer.block
    assert adapted - plain == 2 * 2 * (tiny.mae().vision.hidden_size + block.mlp.mlp_dim)
