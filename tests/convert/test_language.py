"""`run.py convert` of language models: rows for new tokens, and errors for other models."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np
import pytest

from configs.m3d import align, align_released, align_released_phi3
from data_pipelines.text.dialogue import DialogueTokens
from m3djax.adapters import LoRA
from m3djax.convert import pretrained
from m3djax.convert.run import Convert
from m3djax.experiment import Experiment
from m3djax.runs.checkpoint import CheckpointError
from m3djax.runs.model import Model, read_params
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
    adapted = dataclasses.replace(wanted, adapters=LoRA())
    said = Convert(str(folder), str(out)).load(adapted)
    assert "<im_patch>, <bx_start>, <bx_end>, [SEG]" in said
    Convert(str(folder), str(tmp_path / "plain")).load(wanted)
    llm = Model.open(tmp_path / "plain").params["llm"]
    table = np.asarray(llm["token_embed"]["embedding"])
    before = np.asarray(tiny_llm.pretrained().params["llm"]["token_embed"]["embedding"])
    np.testing.assert_array_equal(table[:258], before[:258])
    np.testing.assert_allclose(table[258:262], before[:258].mean(0)[None].repeat(4, 0), atol=1e-6)
    assert not table[262:].any(), "rows of padding"


def test_the_same_vocabulary_stays_as_it_is(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    wanted, out = experiment(), tmp_path / "out"
    assert "new tokens" not in Convert(str(folder), str(out)).load(wanted)
    llm = Model.open(out, components=["llm"]).params["llm"]
    before = tiny_llm.pretrained().params["llm"]
    np.testing.assert_array_equal(llm["head"]["kernel"], before["head"]["kernel"])


@pytest.mark.parametrize(
    ("config", "family", "published"),
    [
        (align, "llama", {}),
        (align_released, "llama", {}),
        (align_released_phi3, "phi3", {"sliding_window": 2047}),
    ],
)
def test_what_the_first_stages_start_from_can_be_read(
    config: Any, family: str, published: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    """All but the sizes is as in the published config.json, and in the shipped config."""
    theirs = tiny_llm.pretrained(family, max_position_embeddings=4096, **published)
    pretrained.save(tmp_path / "published", theirs)
    task = config.get_config().task
    stage = task.llm.stages[0]
    attention = stage.block.attention.clone(**_sizes(theirs.model))
    block = stage.block.clone(attention=attention, mlp=stage.block.mlp.clone(intermediate_size=48))
    tokens = len(theirs.tokenizer) + 4
    rows = 384 if task.llm.vocab_size % 128 == 0 else tokens
    llm = task.llm.clone(
        vocab_size=rows,
        num_tokens=tokens if task.llm.num_tokens else None,
        hidden_size=32,
        stages=(stage.clone(num_layers=2, block=block),),
    )
    parts = {"llm": llm, "projector": task.projector.clone(features=32), "image_token_id": 258}
    wanted = tiny.experiment(task=dataclasses.replace(task, **parts))
    out = tmp_path / "out"
    said = Convert(str(tmp_path / "published"), str(out), layout="llm").load(wanted)
    assert "[SEG]" in said
    alone = tiny.experiment(task=Language(llm))
    assert read_params(out, alone)["llm/token_embed/embedding"].shape == (rows, 32)
    assert DialogueTokens(str(out), 4, length=64, vocab_size=rows).load()


def _sizes(model: Any) -> dict[str, int]:
    attention = model.stages[0].block.attention
    return {
        name: getattr(attention, name) for name in ("num_heads", "num_key_value_heads", "head_dim")
    }


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hidden_size": 48}, "llm.hidden_size: 32 in the file, 48 in the config"),
        ({"vocab_size": 261}, "llm.vocab_size: 522 in the file, 261 in the config"),
        (
            {"max_position_embeddings": 128},
            "llm.max_position_embeddings: 256 in the file, 128 in the config",
        ),
    ],
)
def test_another_model_is_named(
    folder: pathlib.Path, tmp_path: pathlib.Path, changes: dict[str, int], named: str
) -> None:
    with pytest.raises(CheckpointError) as error:
        Convert(str(folder), str(tmp_path / "out")).load(experiment(**changes))
    assert named in str(error.value)
    assert not (tmp_path / "out").exists()
