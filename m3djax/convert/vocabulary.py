"""Check that weights of a text encoder or a language model fit the config's vocabulary."""

from __future__ import annotations

from pathlib import Path

from data_pipelines.errors import printable
from data_pipelines.fields.text import Text
from data_pipelines.text import llm_tokenizer
from data_pipelines.text.dialogue import DialogueTokens
from data_pipelines.text.tokenizer_files import load_tokenizer
from data_pipelines.text.tokens import ReportTokens
from m3djax.experiment import Experiment
from m3djax.runs.checkpoint import CheckpointError


def check_vocabulary(path: Path, experiment: Experiment) -> str:
    """Compares the config's tokenizer with the one beside the weights, if both exist.

    Another vocabulary of the same size fits the same table, but each row would stand for another
    word.

    Returns:
      A note if the weights have a tokenizer and the config's does not exist; else "".

    Raises:
      CheckpointError: the two vocabularies differ.
      DataError: one of them is damaged.
    """
    text = experiment.data.find("text", Text)
    beside = any((path.parent / n).is_file() for n in ("tokenizer.json", "vocab.txt", "vocab.json"))
    if text is None or not isinstance(text.tokens, ReportTokens | DialogueTokens) or not beside:
        return ""
    tokenizer = text.tokens.tokenizer
    load = load_tokenizer if isinstance(text.tokens, ReportTokens) else llm_tokenizer.load
    if not Path(tokenizer).exists():
        return f"vocabulary not compared: the config's tokenizer {tokenizer} does not exist"
    theirs = load(str(path.parent)).get_vocab()
    ours = load(tokenizer).get_vocab()
    differ = sorted(
        word for word in theirs.keys() | ours.keys() if theirs.get(word) != ours.get(word)
    )
    if differ:
        raise CheckpointError(
            f"{path.parent}: its vocabulary is not that of {tokenizer}: {len(differ)} "
            f"words have another number or none, such as {printable(differ[0])!r}. Cure: set "
            "data.fields.text.tokens.tokenizer to the tokenizer that belongs to the weights."
        )
    return ""
