"""Passages: begin token, text and end token; all but the begin token enter the loss."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from data_pipelines.errors import ConfigError, DataError, TextError
from data_pipelines.text.learned import learned_fields, learned_spec
from data_pipelines.text.passages import Passage
from data_pipelines.text.reports import clean_report, is_missing, says_nothing

WORDS = {"<s>": 0, "</s>": 1, "a": 2, "b": 3, "?": 4}


@pytest.fixture(scope="module")
def passage(tmp_path_factory: pytest.TempPathFactory) -> Passage:
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(str(folder / "tokenizer.json"))
    return Passage(str(folder), length=6, vocab_size=8)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from("ab"), min_size=1, max_size=9))
def test_all_but_the_begin_is_learned(passage: Passage, words: list[str]) -> None:
    fields = passage(" ".join(words))
    assert {name: (v.shape, v.dtype) for name, v in fields.items()} == {
        name: (s.shape, s.dtype) for name, s in passage.spec().items()
    }
    wanted = [0, *(WORDS[word] for word in words), 1][:6]
    assert fields["token_ids"].tolist() == wanted + [0] * (6 - len(wanted))
    assert (
        fields["attention_mask"].sum() == len(wanted)
        and fields["attention_mask"][: len(wanted)].all()
    )
    assert fields["spans"].tolist() == [[1, len(wanted)]]
    assert passage.decode(wanted) == " ".join(words[:5]), "special tokens are not text"


def test_a_model_without_a_begin_learns_all(passage: Passage) -> None:
    fields = dataclasses.replace(passage, begin="")("a b")
    assert fields["token_ids"].tolist() == [2, 3, 1, 0, 0, 0]
    assert fields["spans"].tolist() == [[0, 3]]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"end": "<eos>"}, "has no token '<eos>'. Cure: set begin and end"),
        ({"begin": "<bos>"}, "has no token '<bos>'"),
        (
            {"vocab_size": 4},
            "has 5 tokens, the token embedding has 4 rows. Cure: use the tokenizer",
        ),
    ],
)
def test_a_tokenizer_of_another_model_is_refused(
    passage: Passage, changes: dict[str, object], problem: str
) -> None:
    passage.check()
    other = dataclasses.replace(passage, **changes)
    with pytest.raises(DataError, match=problem):
        other.check()
    with pytest.raises(DataError, match=problem):
        other("a")


def test_there_must_be_room_and_words(passage: Passage, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="length=2 leaves no room for words. Cure: set 3 or more"):
        dataclasses.replace(passage, length=2)
    with pytest.raises(TextError, match="has no words"):
        passage(" . ")
    with pytest.raises(DataError, match="holds no tokenizer"):
        dataclasses.replace(passage, tokenizer=str(tmp_path)).check()


def test_several_spans_and_another_padding() -> None:
    fields = learned_fields([5, 6, 7, 8], [(1, 2), (3, 4)], length=6, pad=9, most=3)
    assert fields["token_ids"].tolist() == [5, 6, 7, 8, 9, 9]
    assert fields["spans"].tolist() == [[1, 2], [3, 4], [0, 0]], "spans left over are empty"
    for name, spec in learned_spec(6, 3).items():
        assert (fields[name].shape, fields[name].dtype) == (spec.shape, spec.dtype)
    with pytest.raises(ValueError):
        learned_fields([5] * 7, [], length=6)


@pytest.mark.parametrize("text", ["NaN", " not  given. ", "N/A", "...", "", "None.", "\n"])
def test_fillers_say_nothing(text: str) -> None:
    assert says_nothing(text)
    with pytest.raises(TextError, match="report: has no words. Cure: leave the report empty"):
        clean_report(text)


def test_an_answer_may_be_none_where_a_report_may_not() -> None:
    assert clean_report("None", empty=is_missing) == "None"
    assert [is_missing(cell) for cell in ("None", "0", " NA ", "", float("nan"), None)] == [
        False,
        False,
        True,
        True,
        True,
        True,
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "is None instead of a text"),
        (float("nan"), "is nan instead of a text"),
        (b"liver \xff", r"is not UTF-8 \(byte 6\)"),
        ("liver \udcff", "was not UTF-8 when it was read"),
    ],
)
def test_what_is_no_text_is_told_without_showing_it(text: object, problem: str) -> None:
    with pytest.raises(TextError, match=f"row 3: {problem}") as caught:
        clean_report(text, "row 3")
    assert "liver" not in str(caught.value)


def test_marks_of_files_are_not_read() -> None:
    assert clean_report("\ufeffA\x00liver".encode()) == "A liver"
    array = np.array(["A liver"], object)
    assert clean_report(array[0]) == "A liver"
