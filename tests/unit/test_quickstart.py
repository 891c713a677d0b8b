"""The stages of the quickstart with tiny models: weights of earlier stages, and the report."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath
from rich.console import Console

from configs import quickstart, quickstart_clip
from data_pipelines.datasets import open_dataset
from data_pipelines.fields.text import Text
from m3djax import cli
from m3djax.evaluate.run import Results, evaluate
from m3djax.experiment import Experiment
from m3djax.runs.model import Model
from m3djax.training.train import train

ROOT = Path(__file__).parents[2]


def shrunk(config: Experiment, prepared: str, size: tuple[int, int, int], **changes: Any) -> Any:
    """Two steps of one layer on a batch of 8."""
    vision = config.task.vision  # type: ignore[attr-defined]
    layers = dataclasses.replace(vision.transformer, num_layers=1)
    vision = dataclasses.replace(vision, hidden_size=24, transformer=layers)
    sources = tuple(dataclasses.replace(s, path=prepared) for s in config.data.sources)
    data = dataclasses.replace(config.data, sources=sources, size=size, batch_size=8)
    task = dataclasses.replace(config.task, vision=vision)
    return dataclasses.replace(config, task=task, data=data, steps=2, log_every=1, **changes)


@pytest.fixture(scope="module")
def stages(
    prepared: str, sample_text_encoder: epath.Path, tmp_path_factory: pytest.TempPathFactory
) -> list[Results]:
    reconstruction = quickstart.get_config().evaluators["reconstruction"]
    retrieval = quickstart_clip.get_config().evaluators["retrieval"]
    measured = (
        {"reconstruction": dataclasses.replace(reconstruction, studies=("C",), draws=1)},
        {"retrieval": dataclasses.replace(retrieval, crops=16, batch_size=8, queries=2)},
    )
    mae = shrunk(quickstart.get_config(), prepared, (8, 16, 16), evaluators=measured[0])
    clip = shrunk(quickstart_clip.get_config(), prepared, (8, 48, 48), evaluators=measured[1])
    text = clip.data.field("text", Text)
    tokens = dataclasses.replace(text.tokens, tokenizer=str(sample_text_encoder))
    text = dataclasses.replace(text, tokens=tokens)
    clip = dataclasses.replace(clip, data=clip.data.with_fields(text=text))
    quiet = Console(quiet=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("quickstart"))
        results = [evaluate(train(experiment), quiet) for experiment in (mae, clip)]
        yield [dataclasses.replace(r, folder=r.folder.absolute()) for r in results]


def test_the_second_stage_starts_from_the_first(stages: list[Results]) -> None:
    first, second = (json.loads((r.folder / "config.json").read_text()) for r in stages)
    assert second["init_from"] == {"vision": f"runs/{first['name']}"}
    kernels = []
    for results in stages:
        model = Model.open(results.folder, step=results.step)
        kernels.append(model.params["vision"]["patch_embed"]["kernel"])
    difference = np.abs(np.asarray(kernels[0]) - np.asarray(kernels[1])).max()
    assert 0 < difference < 1e-2, "two steps move a little"


def test_one_page_shows_both(stages: list[Results]) -> None:
    page = (stages[1].folder / "report.html").read_text()
    for sentence in (stages[0].summary() + "\n" + stages[1].summary()).splitlines():
        assert sentence.split(":")[0] in page
    assert page.count('<span class="badge') == 2 and "Training: quickstart_clip" in page
    assert page.count("Data: sample_ct") == 1
    assert (stages[0].folder / "report.html").read_text().count('<span class="badge') == 1


def test_the_pools_stand_side_by_side(stages: list[Results], prepared: str) -> None:
    found = stages[1].found["retrieval"]
    assert list(found["pools"]) == ["train_organs", "test_organs"]
    assert found["passed"] in (True, False)
    for pool in found["pools"].values():
        assert pool["patients"] == 1 and pool["regions"] > 1 and pool["samples"] == 16
        assert set(pool["chance"]) == set(pool["image_to_text"]) - {"median_rank"}


def test_nothing_that_is_learned_from_is_asked_about(prepared: str) -> None:
    depth = open_dataset(prepared, "train_organs")[0]["image"].shape[0]
    low, high = (
        {n for n in range(depth) if round(part[0] * depth) <= n < round(part[1] * depth)}
        for part in (quickstart_clip.LEARNED, quickstart_clip.HELD_BACK)
    )
    assert not low & high and len(low | high) == depth
    assert min(len(low), len(high)) >= quickstart_clip.get_config().data.size[0]


@pytest.mark.parametrize("passed", [(True,) * 3, (True, True, False), (False, True, True)])
def test_the_exit_status_needs_all(
    passed: tuple[bool, ...], stages: list[Results], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    answers = iter(zip([*stages, stages[-1]], passed, strict=True))

    def decided(folder: object) -> Results:
        results, good = next(answers)
        return dataclasses.replace(results, found={"x": {**_said(results), "passed": good}})

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("m3djax.quickstart.prepare_scans", lambda: 0)
    monkeypatch.setattr("m3djax.quickstart._import_language_model", lambda: None)
    monkeypatch.setattr("m3djax.training.train.train", lambda experiment: experiment.name)
    monkeypatch.setattr("m3djax.evaluate.run.evaluate", decided)
    assert cli.main(["quickstart"]) == (0 if all(passed) else 1)
    said = capsys.readouterr().out
    assert all(line in said for r in stages for line in _said(r)["report"]["sentences"])
    assert ("FAILED" in said) is not all(passed)


def _said(results: Results) -> dict[str, Any]:
    return next(iter(results.found.values()))
