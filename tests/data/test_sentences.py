"""The sentence splitter on typical parts of radiology reports."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.text.sentences import sentence_spans, split_sentences

CASES = [
    # plain, decimals, sizes, dates
    ["The lungs are clear.", "A 3.5 cm mass is seen in segment 4.", "No effusion."],
    ["The aorta measures 3. 5 cm."],
    ["Compared with 12.03.2021.", "There is no change since 2020.", "2 new nodules."],
    ["CT of Jan. 5, 2020 is compared.", "The T12. vertebra is fractured."],
    ["A 13x9.3 mm node.", "1-2 calcified nodes.", "It was 5.6 mm."],
    # abbreviations, titles, initials, lettered names
    ["Several nodules, e.g. in the lingula, i.e. segment 5, are seen."],
    ["Seen by Dr. J. Smith and Prof. Jones.", "H. pylori was found."],
    ["No. 4 is normal.", "Is there an embolism?", "No.", "Effusion is present."],
    ["Hepatitis B.", "The liver is normal."],
    ["Scanned at 1.5 T.", "The sequences are complete.", "Approx. 4 cm vs. 3 cm."],
    ["Operated colon ca.", "Clinical and lab. correlation is needed."],
    # questions and remarks in brackets
    ["Mosaic attenuation (small airway disease? small vessel disease?)."],
    ["Nodules (cyst? see image 4. Series 3) in the liver.", "The spleen is normal."],
    ["Bronchopneumonia? small effusion.", "Atelectasis?", "It cannot be told."],
    # quotation marks
    ['"Hiatal hernia."', "The rest is normal.", 'The "halo" sign is absent.'],
]
EXACT = [
    (
        "FINDINGS:\nThe lungs are\nclear. Heart normal.\n\nIMPRESSION: 1. No PE. 2. Nodule in "
        "segment 6. 3. Effusion.",
        ["FINDINGS:\nThe lungs are\nclear.", "Heart normal.", "IMPRESSION: 1. No PE.",
         "2. Nodule in segment 6.", "3. Effusion."],
    ),
    (
        "1. Stable\n2. Clear\n- small cyst\n• Large cyst • Hernia",
        ["1. Stable", "2. Clear", "- small cyst", "• Large cyst", "• Hernia"],
    ),
    ("Lungs clear IMPRESSION: normal.", ["Lungs clear", "IMPRESSION: normal."]),
    ("Clinical History: cough. Findings: none.", ["Clinical History: cough.", "Findings: none."]),
    ('Normal. " Hernia " Old fracture', ["Normal.", '" Hernia', '" Old fracture']),
    ("The heart is normal.The aorta too.", ["The heart is normal.", "The aorta too."]),
    ("First line\r\nSecond line\r\n", ["First line", "Second line"]),
    ("Preserved. \"\" ... Thorax CT", ['Preserved. "" ...', "Thorax CT"]),
    ("", []), (" \n\t ", []), ("...", ["..."]), ("no end", ["no end"]),
]  # fmt: skip


@pytest.mark.parametrize("sentences", CASES, ids=lambda case: case[0][:30])
def test_sentences_that_are_joined_come_apart(sentences: list[str]) -> None:
    assert split_sentences(" ".join(sentences)) == sentences
    assert split_sentences("\n\n".join(sentences)) == sentences


@pytest.mark.parametrize("text, sentences", EXACT, ids=range(len(EXACT)))
def test_layout(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


@given(
    st.lists(st.sampled_from([sentence for case in CASES[:6] for sentence in case]), max_size=12)
)
def test_any_order_of_sentences(sentences: list[str]) -> None:
    # Whatever follows, plain sentences come apart but for "No." before a number.
    text = " ".join(s for s in sentences if s[0].isupper())
    assert split_sentences(text) == [s for s in sentences if s[0].isupper()]


PARTS = st.sampled_from(
    ["e.g", "Dr", "1", "3.5", "no", "The", "cm", "FINDINGS:", "(", ")", '"', "•"]
)


@given(st.text() | st.lists(PARTS | st.sampled_from(list(" .?!\n,")), max_size=60).map("".join))
def test_nothing_is_lost_and_nothing_twice(text: str) -> None:
    spans = sentence_spans(text)
    at = 0
    for start, end in spans:
        assert at <= start < end and not text[at:start].strip()
        assert text[start:end] == text[start:end].strip()
        at = end
    assert not text[at:].strip()


def test_long_texts_without_an_end_are_done_in_a_moment() -> None:
    for part in ("(a. b? ", ".", "A. ", " ", "1.\n", "a,\n", '" ', "AA "):
        text = part * (100_000 // len(part)) + "b"
        assert sentence_spans(text)[-1][1] == len(text)
