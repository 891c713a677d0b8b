"""Real weights: SmolLM2-135M-Instruct speaks English."""

from __future__ import annotations

import io
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from m3djax import cli
from m3djax.convert import pretrained
from m3djax.convert.pretrained import Pretrained

TEXT = (
    "The heart is a muscular organ that pumps blood through the blood vessels of the circulatory "
    "system. Blood provides the body with oxygen and nutrients, and carries metabolic waste such "
    "as carbon dioxide to the lungs. In humans, the heart is about the size of a closed fist and "
    "is located between the lungs, in the middle compartment of the chest."
)


@pytest.fixture(scope="module")
def smollm2(sample_llm: epath.Path) -> Pretrained:
    return pretrained.load(sample_llm)


def test_likelihood_of_english(smollm2: Pretrained) -> None:
    """What transformers has in torch; with rows of q and k paired wrongly it has 3.1975."""
    ids = jnp.asarray([smollm2.tokenizer(TEXT)["input_ids"]])
    logits = jax.jit(smollm2.model.apply)({"params": smollm2.params["llm"]}, ids)
    likelihood = jax.nn.log_softmax(logits[0, :-1])[np.arange(ids.shape[1] - 1), ids[0, 1:]]
    np.testing.assert_allclose(-likelihood.mean(), 1.7939, atol=1e-3)


def test_the_tokenizer_gives_text_back(smollm2: Pretrained) -> None:
    for text in (TEXT, "déjà vu 123,45\n\n  x", "<|im_start|>user\n肺"):
        assert smollm2.tokenizer.decode(smollm2.tokenizer(text)["input_ids"]) == text
    assert smollm2.tokenizer("12 <|im_end|>")["input_ids"][-1] == 2
    assert len(smollm2.tokenizer("2025")["input_ids"]) == 4  # digit by digit


def test_it_answers_in_the_terminal(
    sample_llm: epath.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("What is the capital of France?\n"))
    assert cli.main(["chat", str(sample_llm), "--sampling.max-new-tokens", "12"]) == 0
    assert "Paris" in capsys.readouterr().out


def test_a_model_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["chat", "nowhere"]) == 1
    assert "nowhere: it has no config.json. Cure:" in capsys.readouterr().err
