"""Reports to token ids, sentence numbers and masks."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipelines.captions import MaskCaption
from data_pipelines.errors import ConfigError, DataError
from data_pipelines.fields.text import Text
from data_pipelines.pipeline import Data, Source
from data_pipelines.text.sentences import split_sentences
from data_pipelines.text.tokenizer_files import load_tokenizer
from data_pipelines.text.tokens import ReportTokens

WORDS = ["the", "lung", "heart", "liver", "is", "are", "clear", "normal", "large", "no"]
WORDS += ["effusion", "seen", *"abcd.,123"]
REPORT = "The lung is clear. The heart is large. No effusion seen. Liver normal. A b c d."


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A BERT vocabulary of a few words, with Windows line ends."""
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_bytes("\r\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]).encode())
    return str(path)


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A RoBERTa vocabulary of bytes and two merges."""
    from tokenizers.pre_tokenizers import ByteLevel

    folder = tmp_path_factory.mktemp("byte_level")
    names = ["<s>", "<pad>", "</s>", "<unk>", *sorted(ByteLevel.alphabet()), "th", "the", "<mask>"]
    (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    (folder / "merges.txt").write_text("#version: 0.2\nt h\nth e\n")
    return str(folder)


def tokens(vocabulary: str, length: int = 16, **changes: object) -> ReportTokens:
    return ReportTokens(vocabulary, length, len(WORDS) + 5, **changes)


def words(vocabulary: str, fields: dict) -> str:
    return load_tokenizer(vocabulary).decode(fields["token_ids"][fields["attention_mask"]].tolist())


def test_a_short_report_is_kept_whole(vocabulary: str) -> None:
    fields = tokens(vocabulary)("The lung is clear. No effusion.")
    assert words(vocabulary, fields) == "the lung is clear. no effusion."
    np.testing.assert_array_equal(
        fields["sentence_ids"], [0, 1, 1, 1, 1, 1, 2, 2, 2, 0, 0, 0, 0, 0, 0, 0]
    )
    np.testing.assert_array_equal(fields["attention_mask"], [1] * 10 + [0] * 6)
    assert fields["token_ids"][0] == 2 and fields["token_ids"][9] == 3


def test_fields_are_as_the_spec_says_and_travel_to_workers(vocabulary: str) -> None:
    copy = pickle.loads(pickle.dumps(tokens(vocabulary)))
    fields = copy(REPORT)
    assert {k: (v.shape, v.dtype) for k, v in fields.items()} == {
        k: (s.shape, s.dtype) for k, s in copy.spec().items()
    }


def test_a_long_report_keeps_its_first_sentence_and_whole_others(vocabulary: str) -> None:
    text = tokens(vocabulary)
    seen = set()
    for seed in range(20):
        fields = text(REPORT, np.random.default_rng(seed))
        again = text(REPORT, np.random.default_rng(seed))
        for name in fields:
            np.testing.assert_array_equal(fields[name], again[name])
        kept = split_sentences(words(vocabulary, fields))
        whole = [sentence.lower() for sentence in split_sentences(REPORT)]
        assert kept[0] == whole[0]
        assert [whole.index(sentence) for sentence in kept] == sorted(map(whole.index, kept))
        assert fields["sentence_ids"].max() == len(kept)
        seen.add(tuple(kept))
    assert len(seen) > 2


def test_without_a_generator_the_choice_is_fixed(vocabulary: str) -> None:
    one, two = tokens(vocabulary)(REPORT), tokens(vocabulary)(REPORT)
    np.testing.assert_array_equal(one["token_ids"], two["token_ids"])


def test_a_first_sentence_that_is_too_long_is_cut(vocabulary: str) -> None:
    fields = tokens(vocabulary, 6)("The lung is large, normal, clear. No effusion.")
    assert words(vocabulary, fields) == "the lung is large" and fields["attention_mask"].all()
    fields = tokens(vocabulary, 6, shorten="head")("The lung. The heart is normal.")
    assert words(vocabulary, fields) == "the lung. the"
    np.testing.assert_array_equal(fields["sentence_ids"], [0, 1, 1, 1, 2, 0])


def test_released_shortening_splits_decimals_and_shuffles(vocabulary: str) -> None:
    released = tokens(vocabulary, 12, shorten="released")
    text = "The lung is 1.2 large. The heart. A b c. No effusion. 3."
    seen = {words(vocabulary, released(text, np.random.default_rng(i))) for i in range(30)}
    assert all(chosen.startswith("the lung is 1.") for chosen in seen)
    assert any("no effusion. the heart" in chosen for chosen in seen), "the order is drawn"
    assert len(seen) > 4
    short = released("The lung is 1.2 large.")
    assert words(vocabulary, short) == "the lung is 1. 2 large."


def test_byte_level_tokens_begin_with_the_blank_before_them(byte_level: str) -> None:
    text = ReportTokens(byte_level, 24, 263)
    fields = text("the. The the?")
    assert fields["token_ids"][0] == 0 and fields["token_ids"][-1] == 1
    count = fields["attention_mask"].sum()
    assert (
        load_tokenizer(byte_level).decode(fields["token_ids"][:count].tolist()) == "the. The the?"
    )
    # "the" "." | " " "T" "h" "e" " " "the" "?": a blank belongs to the word that it precedes.
    np.testing.assert_array_equal(fields["sentence_ids"][:count], [0, 1, 1, *[2] * 7, 0])


def test_special_tokens_in_a_report_are_text(vocabulary: str) -> None:
    fields = tokens(vocabulary)("The lung [SEP] clear [MASK].")
    assert (fields["token_ids"] == 3).sum() == 1 and not (fields["token_ids"] == 4).any()


def test_the_case_of_a_vocabulary_is_found(tmp_path: Path, vocabulary: str) -> None:
    cased = Path(vocabulary).read_bytes() + b"\r\nThe"
    (tmp_path / "vocab.txt").write_bytes(cased)
    ids = load_tokenizer(str(tmp_path)).encode("The the").ids
    assert ids[1] != ids[2]
    ids = load_tokenizer(vocabulary).encode("The the").ids
    assert ids[1] == ids[2]


def test_real_files_agree(sample_text_encoder: epath.Path) -> None:
    """tokenizer.json and vocab.txt of one model make the same ids, without padding."""
    text = REPORT + " A 3.5 cm cyst; Atelectasis? Naïve café."
    one = load_tokenizer(str(sample_text_encoder))
    two = load_tokenizer(str(sample_text_encoder / "vocab.txt"))
    assert one.encode(text).ids == two.encode(text).ids
    ReportTokens(str(sample_text_encoder)).check()


@pytest.mark.parametrize(
    "text, problem",
    [
        ("", "has no words"),
        (" \n. - ", "has no words"),
        ("NaN", "has no words"),
        ("N/A", "has no words"),
        (float("nan"), "is nan instead of a text"),
        (None, "is None instead of a text"),
        (b"\xff\xfe1", "is not UTF-8 \\(byte 0\\)"),
        ("caf\udce9", "was not UTF-8"),
    ],
)
def test_what_is_no_report_is_an_error(vocabulary: str, text: object, problem: str) -> None:
    with pytest.raises(DataError, match=f"{problem}.*Cure: ."):
        tokens(vocabulary)(text)


def test_bytes_and_marks_are_read(vocabulary: str) -> None:
    fields = tokens(vocabulary)("\ufeffThe lung\x00 is clear.".encode())
    assert words(vocabulary, fields) == "the lung is clear."


def test_a_tokenizer_that_cannot_be_used_is_an_error(tmp_path: Path, vocabulary: str) -> None:
    with pytest.raises(DataError, match="holds no tokenizer.*tokenizer.json, vocab.txt"):
        ReportTokens(str(tmp_path)).check()
    with pytest.raises(DataError, match="nowhere.json: holds no tokenizer"):
        ReportTokens(str(tmp_path / "nowhere.json")).check()
    with pytest.raises(DataError, match="has 26 tokens, but the text .* has 30522 rows"):
        ReportTokens(vocabulary).check()
    with pytest.raises(DataError, match="embedding has 20 rows.*of the same model"):
        ReportTokens(vocabulary, vocab_size=20)("The lung.")
    ReportTokens(vocabulary, vocab_size=64).check()  # padded weights
    for name, content, problem in (
        ("tokenizer.json", '{"model": 3}', "is not a tokenizer"),
        ("vocab.txt", "the\nlung", r"lacks \[PAD\], \[UNK\], \[CLS\], \[SEP\]"),
        ("vocab.json", '{"<s>": 0}', "merges.txt: there is no such file"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(DataError, match=problem):
            load_tokenizer(str(tmp_path / name))
    (tmp_path / "vocab.txt").write_bytes(b"\xff\xff")
    with pytest.raises(DataError, match="is not a tokenizer"):
        load_tokenizer(str(tmp_path / "vocab.txt"))


def test_a_length_without_room_is_an_error() -> None:
    with pytest.raises(ConfigError, match="length=3 leaves no room"):
        ReportTokens("anywhere", 3)


def test_workers_of_the_pipeline_make_the_same(
    prepared: str, sample_text_encoder: epath.Path
) -> None:
    text = Text(
        ReportTokens(str(sample_text_encoder), 12), MaskCaption(("liver", "spleen", "aorta"))
    )
    here = Data((Source(prepared, "train_organs"),), (16, 32, 32), batch_size=2)
    here = here.with_fields(text=text)
    here.check()
    with contextlib.closing(here.batches(0)) as batches:
        expected = next(batches)
    with contextlib.closing(dataclasses.replace(here, workers=1).batches(0)) as batches:
        batch = next(batches)
    spec = {name: (s.shape, s.dtype) for name, s in here.spec().items()}
    assert {name: (v.shape, v.dtype) for name, v in batch.items()} == spec
    for name, value in expected.items():
        np.testing.assert_array_equal(batch[name], value)
    assert (batch["token_ids"][:, 0] == 101).all() and (batch["sentence_ids"] > 0).any()
    lost = dataclasses.replace(text, tokens=ReportTokens("nowhere"))
    with pytest.raises(DataError, match="nowhere: holds no tokenizer"):
        here.with_fields(text=lost).check()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from([*WORDS, "\n", "(", '"', "e.g.", "Zz"]), max_size=60),
    st.integers(4, 24),
    st.sampled_from(["sentences", "released", "head"]),
    st.integers(0, 9),
)
def test_every_text_keeps_the_contract(
    vocabulary: str, parts: list[str], length: int, shorten: str, seed: int
) -> None:
    text = "The " + " ".join(parts)
    fields = tokens(vocabulary, length, shorten=shorten)(text, np.random.default_rng(seed))
    ids, sentences, mask = (fields[k] for k in ("token_ids", "sentence_ids", "attention_mask"))
    count = int(mask.sum())
    assert mask[:count].all() and 3 <= count <= length
    assert ids[0] == 2 and ids[count - 1] == 3 and not ids[count:].any()
    inner = sentences[1 : count - 1]
    assert sentences[0] == 0 and not sentences[count - 1 :].any()
    assert inner[0] == 1 and set(np.diff(inner)) <= {0, 1}
