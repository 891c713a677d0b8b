"""`run.py convert` of language models: their rows for new tokens, and models that are not meant."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np
import pytest

from m3djax.checkpoint import CheckpointError
from m3djax.convert import pretrained
from m3djax.convert.run import Convert
from m3djax.evaluate.run import read_params
from m3djax.experiment import Experiment
from m3djax.lora import LoRA
from m3djax.tasks.language import Language
from tests import tiny, tiny_llm


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A published model: 258 tokens, and six rows of padding."""
    out = tmp_path_factory.mktemp("published")
    pretrained.save(out, tiny_llm.pretrained())
    return out


def experiment(**changes: Any) -> Experiment:
    llm = dataclasses.replace(tiny_llm.pretrained().model, num_tokens=None, **changes)
    return tiny.experiment(task=Language(llm), name="language")


def test_new_tokens_get_the_mean_row(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    wanted, out = experiment(vocab_size=270), tmp_path / "out"
    adapted = dataclasses.replace(wanted, task=LoRA(wanted.task))
    said = Convert(str(folder), str(out)).load(adapted)
    assert "<im_patch>, <bx_start>, <bx_end>, [SEG]" in said
    Convert(str(folder), str(tmp_path / "plain")).load(wanted)
    llm = read_params(tmp_path / "plain", wanted, 0)["llm"]
    table = np.asarray(llm["token_embed"]["embedding"])
    before = np.asarray(tiny_llm.pretrained().params["llm"]["token_embed"]["embedding"])
    np.testing.assert_array_equal(table[:258], before[:258])
    np.testing.assert_allclose(table[258:262], before[:258].mean(0)[None].repeat(4, 0), atol=1e-6)
    assert not table[262:].any(), "rows of padding"


def test_the_same_vocabulary_stays_as_it_is(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    wanted, out = experiment(), tmp_path / "out"
    assert "new tokens" not in Convert(str(folder), str(out)).load(wanted)
    llm = read_params(out, wanted, 0)["llm"]
    before = tiny_llm.pretrained().params["llm"]
    np.testing.assert_array_equal(llm["head"]["kernel"], before["head"]["kernel"])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hidden_size": 48}, "llm.hidden_size: 32 in the file, 48 in the config"),
        ({"vocab_size": 261}, "llm.vocab_size: 522 in the file, 261 in the config"),
        ({"context": 128}, "llm.context: 256 in the file, 128 in the config"),
    ],
)
def test_another_model_is_named(
    folder: pathlib.Path, tmp_path: pathlib.Path, changes: dict[str, int], named: str
) -> None:
    with pytest.raises(CheckpointError) as error:
        Convert(str(folder), str(tmp_path / "out")).load(experiment(**changes))
    assert named in str(error.value)
    assert not (tmp_path / "out").exists()
