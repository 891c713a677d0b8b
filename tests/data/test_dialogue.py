"""Questions and answers as tokens: training and inference share a prompt; no sentence is cut."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipelines.caption import Caption, Question
from data_pipelines.captions import Report, View
from data_pipelines.errors import ConfigError, DataError
from data_pipelines.fields.text import Text
from data_pipelines.text.dialogue import DialogueTokens
from data_pipelines.text.directions import Allowed, allowed
from data_pipelines.text.prompts import Prompt, Turn
from data_pipelines.text.tokens import ReportTokens
from m3djax.convert import new_tokens
from tests import tiny_llm

TEMPLATE = (
    "{% for m in messages %}<bos>{{ m['role'] }}:{{ m['content'] }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<bos>assistant:{% endif %}"
)
ROWS = 262
IMAGE = 258
BOX = "<bx_start>[0.0, 0.5, 0.25, 1.0, 1.0, 0.75]<bx_end>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    tokenizer = tiny_llm.tokenizer()
    tokenizer.chat_template = TEMPLATE
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(str(path))
    return str(path)


def tokens(folder: str, **changes: Any) -> DialogueTokens:
    return DialogueTokens(
        folder, **{"image_tokens": 3, "length": 120, "vocab_size": ROWS} | changes
    )


@pytest.mark.parametrize("form", ["m3d", "chat"])
def test_the_prompt_of_training_is_the_prompt_of_asking(folder: str, form: Any) -> None:
    made = tokens(folder, format=form)
    made.check()
    fields = pickle.loads(pickle.dumps(made))("It is large.", None, f"What fills {BOX}?")
    spec = {name: (s.shape, s.dtype) for name, s in made.spec().items()}
    assert {name: (v.shape, v.dtype) for name, v in fields.items()} == spec
    tokenizer, ids = made.load(), fields["token_ids"]
    (start, end) = fields["spans"][0]
    assert ids[:start].tolist() == made.prompt(tokenizer, f"What fills {BOX}?")
    assert made.decode(ids[start:end]).strip() == "It is large."
    assert ids[end - 1] == tokenizer.eos_token_id == made.prompt.end(tokenizer)
    assert fields["attention_mask"].sum() == end and fields["attention_mask"][:end].all()
    assert (ids == IMAGE).sum() == 3
    if form == "m3d":
        assert ids[0] == tokenizer.bos_token_id and (ids[1:4] == IMAGE).all()
        assert tokenizer.decode(ids[4:start]) == f" What fills {BOX}?"
        assert tokenizer.decode(ids[start:end]) == " It is large.<eos>"
    else:
        shown = tokenizer.decode(ids[:end])
        assert shown == (
            f"<bos>user:{'<im_patch>' * 3} What fills {BOX}?<eos>\n<bos>assistant:It is large.<eos>"
        )


@pytest.mark.parametrize("form", ["m3d", "chat"])
def test_a_conversation_continues_its_first_question(folder: str, form: Any) -> None:
    asked = Question(
        "Yes.", "", "Liver?", later=(Question("No.", "", "Lung?"), Question("It is.", "", "Big?"))
    )
    made = tokens(folder, format=form, turns=4)
    fields, alone = made.of(asked, None), made("Yes.", None, "Liver?")
    end = alone["spans"][0, 1]
    assert (fields["token_ids"][:end] == alone["token_ids"][:end]).all()
    assert fields["spans"].shape == (4, 2) and (fields["spans"][3] == 0).all()
    said = [made.decode(fields["token_ids"][slice(*span)]).strip() for span in fields["spans"][:3]]
    assert said == ["Yes.", "No.", "It is."]
    ends = fields["spans"][:3, 1] - 1
    assert (fields["token_ids"][ends] == made.prompt.end(made.load())).all()
    between = made.decode(fields["token_ids"][end : fields["spans"][1, 0]])
    assert "Lung?" in between and "No." not in between
    shorter = tokens(folder, format=form, turns=4, length=int(fields["spans"][1, 1]))
    assert (shorter.of(asked, None)["spans"][:3, 1] > 0).tolist() == [True, True, False]
    assert (tokens(folder, format=form).of(asked, None)["spans"] == alone["spans"][:1]).all()


@pytest.mark.parametrize("form", ["m3d", "chat"])
def test_a_question_with_a_history_is_the_prompt_of_a_conversation(folder: str, form: Any) -> None:
    made = tokens(folder, format=form)
    tokenizer, history = made.load(), [Turn("Liver?", f"At {BOX}."), Turn("Lung?", "No.")]
    found = made.prompt(tokenizer, "Big?", history=history)
    ids, spans = made.prompt.conversation(tokenizer, [*history, Turn("Big?", "It is.")])
    assert found == ids[: spans[2][0]]
    assert made.prompt(tokenizer, "Big?", history=[]) == made.prompt(tokenizer, "Big?")
    said = [*zip(("user", "assistant") * 2, ("<im_patch>" * 3 + " Liver?", f"At {BOX}.",
                                             " Lung?", "No."), strict=True)]  # fmt: skip
    if form == "m3d":
        texts = ["<bos><im_patch><im_patch><im_patch> Liver?", f" At {BOX}.<eos>", " Lung?"]
        text = "".join([*texts, " No.<eos>", " Big?"])
    else:
        messages = [{"role": role, "content": text} for role, text in [*said, ("user", " Big?")]]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert found == tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("form", ["m3d", "chat"])
def test_forms_of_questions_may_have_no_separator(folder: str, form: Any) -> None:
    made = tokens(folder, format=form, joined=("report", "choice"), turns=2)
    tokenizer, mark = made.load(), "<im_patch>" * 3
    for kind, choices, blank in (
        ("report", (), ""),
        ("", (), ""),
        ("closed", ("cyst", "clot"), ""),
        ("open", (), " "),
    ):
        asked = Question("Yes.", "", "Liver?", kind, choices=choices)
        fields = made.of(dataclasses.replace(asked, later=(asked,)), None)
        (start, end), (_, last) = fields["spans"]
        ids = fields["token_ids"]
        assert ids[:start].tolist() == made.prompt(tokenizer, asked.question, asked.form)
        assert f"{mark}{blank}Liver?" in tokenizer.decode(ids[:start])
        assert (" Liver?" in tokenizer.decode(ids[end:last])) == bool(blank)
    assert (made.of(Caption("Yes.", "", "Liver?"), None)["token_ids"] == ids).sum() > 3
    assert f"{mark} Liver?" in tokenizer.decode(made.prompt(tokenizer, "Liver?"))


def test_new_tokens_have_the_numbers_of_their_rows(folder: str) -> None:
    grown = new_tokens.grow(
        tiny_llm.pretrained(), ("<im_patch>", "<bx_start>", "<bx_end>"), ("[SEG]",)
    )
    assert tokens(folder).load().get_vocab() == grown.tokenizer.get_vocab()
    assert grown.model.vocab_size == ROWS


def test_special_tokens_in_a_text_are_text(folder: str) -> None:
    made = tokens(folder)
    fields = made("A <eos> b <im_patch>.", None, "Is <im_patch> a <bos>?")
    (_start, end) = fields["spans"][0]
    ids = fields["token_ids"][:end]
    assert (ids == IMAGE).sum() == 3 and (ids == made.load().eos_token_id).sum() == 1
    assert "< im_patch>" in made.decode(ids)


def test_a_long_answer_keeps_whole_sentences_and_others_are_refused(folder: str) -> None:
    made = tokens(folder, length=60)
    report = "The liver is large. No stones. Spleen is normal. A cyst was seen. Aorta is wide."
    kept = set()
    for seed in range(10):
        fields = made(report, np.random.default_rng(seed), "Findings?")
        (start, end) = fields["spans"][0]
        text = made.decode(fields["token_ids"][start:end]).strip()
        sentences = [f"{sentence}." for sentence in text.removesuffix(".").split(". ")]
        assert sentences[0] == "The liver is large."
        assert all(sentence in report for sentence in sentences) and end <= 60
        kept.add(text)
    assert len(kept) > 1
    assert (
        made(report, None, "Why?")["token_ids"] == made(report, None, "Why?")["token_ids"]
    ).all()
    with pytest.raises(
        DataError, match="the answer's first sentence is too long, prompt 14 and answer"
    ):
        made("word " * 20, None, "Findings?")
    with pytest.raises(DataError, match="does not fit: the question is too long"):
        made("Yes.", None, "Is it so? " * 9)


@pytest.mark.parametrize("nothing", ["", " ", "NA", "nan", "<NA>"])
def test_cells_without_a_value_never_reach_a_prompt(folder: str, nothing: str) -> None:
    for answer, question in ((nothing, "Why?"), ("None.", nothing)):
        with pytest.raises(DataError, match="has no words"):
            tokens(folder)(answer, None, question)
    assert tokens(folder)("None.", None, "Which stones?")["attention_mask"].any()


def test_a_tokenizer_of_another_vocabulary_is_refused(folder: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="262 tokens with the new ones.*embedding has 261 rows"):
        tokens(folder, vocab_size=261).check()
    with pytest.raises(DataError, match="262 tokens with the new ones.*embedding has 32004 rows"):
        tokens(folder, vocab_size=32004).check()
    with pytest.raises(DataError, match="holds no tokenizer of a language model"):
        tokens(str(tmp_path)).check()
    bad = tmp_path / "x.gguf"
    bad.write_bytes(b"GGUF")
    with pytest.raises(DataError, match="not a readable GGUF file"):
        tokens(str(bad)).check()
    with pytest.raises(ConfigError, match="leaves no room"):
        tokens(folder, length=6)


def test_a_template_that_changes_the_prompt_is_refused(folder: str) -> None:
    tokenizer = tiny_llm.tokenizer()
    with pytest.raises(ConfigError, match="is not a token of this tokenizer"):
        Prompt(3)(tokenizer, "Why?")
    plain = tokens(folder).load()
    template, plain.chat_template = plain.chat_template, "{{ messages[0]['content'][:10] }}"
    try:
        with pytest.raises(ConfigError, match="has 1 image tokens instead of 3"):
            Prompt(3, "chat")(plain, "Why?")
        plain.chat_template = "{% if messages|length > 1 %}Go on. {% endif %}" + TEMPLATE
        with pytest.raises(ConfigError, match="a conversation cannot go on"):
            Prompt(3, "chat")(plain, "Why?", history=[Turn("Liver?", "Yes.")])
    finally:
        plain.chat_template = template


def test_fields_of_a_question_and_what_a_box_forbids(folder: str) -> None:
    record = {"source": "s", "affine": np.eye(4), "affine_valid": True}
    text = Text(tokens(folder), Report())
    assert allowed(f"It is at {BOX}.", np.eye(4)) == Allowed((False,) * 3, False)
    for asked, answer, still in (
        (f"What fills {BOX}?", "The liver.", True),
        ("Is it?", "Yes.", False),
    ):
        fields = text.arrays(record, Question(answer, "m", asked, "reg"), None)
        assert fields["allowed_flips"].any() != still and fields["allowed_turns"] != still
        assert fields["report_valid"] and fields["spans"].any()
    nothing = text.arrays(record, None, None)
    assert not nothing["attention_mask"].any() and not nothing["spans"].any()
    with pytest.raises(ConfigError, match="ReportTokens does not support questions"):
        Text(ReportTokens(folder)).arrays(record, Question("Yes.", "m", "Is it?"), None)
    with pytest.raises(DataError, match="its text question has no words|its text has no words"):
        text.arrays(
            record, Report()(View({"report_valid": True, "report": "A."}, None, {}), None), None
        )
