"""What a session says: replies with places, drafts, and lines of the terminal."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from data_pipelines.text.prompts import Turn
from data_pipelines.volume import Volume
from m3djax.ask import draft, terminal
from m3djax.ask.describe import about_places, counted, describe
from m3djax.ask.field_of_view import FieldOfView
from m3djax.ask.picture import NOTICE
from m3djax.ask.places import PlacedBox
from m3djax.ask.session import Exchange, Reply, Session
from m3djax.generate.generator import Answer
from m3djax.generate.sampling import Sampling

BOX = "[0.0, 0.0, 0.0, 0.5, 1.0, 1.0]"
BAD = "[0.0, 0.0, 0.0, 0.5"


def view(number: int = 0, source: str = "scan.nrrd") -> FieldOfView:
    """The first 4 x 2 x 2 of 4 x 4 x 4 voxels, in millimetres of 1 x 2 x 2."""
    scan = Volume(np.zeros((4, 4, 4)), "HU", np.diag([1.0, 2, 2, 1]), source=source)
    seen = Volume(np.zeros((4, 2, 2)), "HU", source_shape=(4, 4, 4))
    image = np.full((4, 2, 2, 1), number, np.int16)
    return FieldOfView(scan, seen, image, 1.0 + number, -number)


@dataclasses.dataclass
class Reader:
    """A model that says one text, in pieces, and remembers what reaches it."""

    text: str
    ended: Any = "eos"
    tokens: tuple[int, ...] = (7, 8)
    batches: list[Any] = dataclasses.field(default_factory=list)
    calls: list[Any] = dataclasses.field(default_factory=list)

    def read(self, batch: Any) -> str:
        self.batches.append(batch)
        return "encoded"

    def answer(
        self,
        encoded: str,
        prompts: Sequence[Any],
        sampling: Sampling,
        on_text: Callable[[int, str], None] | None,
    ) -> list[Answer]:
        self.calls.append((encoded, prompts, sampling))
        if on_text is not None:
            for piece in self.text.split("|"):
                on_text(0, piece)
        return [Answer(self.tokens, self.text.replace("|", ""), self.ended)]


def session_of(reader: Reader, scans: int = 1, released: bool = False, turns: int = 1) -> Session:
    def prompt(count: int) -> Callable[..., Any]:
        return lambda _tokenizer, question, form, turns: (count, question, form, turns)

    tokenizer = SimpleNamespace(decode=lambda ids: f"decoded {ids}")
    tokens = SimpleNamespace(turns=turns)
    run = SimpleNamespace(prompt=prompt, released_boxes=released, tokens=tokens)
    model: Any = SimpleNamespace(run=run, reader=reader, tokenizer=tokenizer)
    return Session(model, [view(number) for number in range(scans)], Sampling(max_new_tokens=3))


def test_a_reply_has_its_places_and_what_has_none() -> None:
    reply = session_of(Reader(f"{BOX} {BAD}")).ask((), "Where?")
    [place] = reply.places
    assert place.voxels.tolist() == [0, 0, 0, 2, 2, 2] and place.text == BOX
    assert place.mm is not None and place.mm.tolist() == [-0.5, -1, -1, 1.5, 3, 3]
    assert reply.unreadable == (BAD,) and not reply.outside and not reply.unplaced
    assert (reply.tokens, reply.ended) == ((7, 8), "eos")


def test_a_run_with_released_boxes_places_their_end() -> None:
    [place] = session_of(Reader(BOX), released=True).ask((), "Where?").places
    assert place.voxels.tolist() == [0, 0, 0, 3, 2, 2]


def test_boxes_of_several_scans_have_no_place() -> None:
    reply = session_of(Reader(f"{BOX} {BAD}", ended="length"), scans=2).ask((), "Where?")
    assert reply.unplaced == (BOX,) and reply.unreadable == (BAD,)
    assert not reply.places and not reply.outside and reply.ended == "length"


def test_all_scans_are_encoded_together_and_once() -> None:
    reader = Reader("Yes.")
    session = session_of(reader, scans=3)
    for question in ("One?", "Two?"):
        session.ask((), question)
    assert session.encode() == "encoded"
    [batch] = reader.batches
    assert batch["image"].shape == (1, 3, 4, 2, 2, 1) and batch["image"].dtype == np.int16
    assert batch["image"][0, :, 0, 0, 0, 0].tolist() == [0, 1, 2]
    assert batch["scale"].tolist() == [[1, 2, 3]] and batch["offset"].tolist() == [[0, -1, -2]]
    assert batch["scale"].dtype == batch["offset"].dtype == np.float32
    assert [prompts[0][0] for _, prompts, _ in reader.calls] == [3, 3]


@pytest.mark.parametrize(
    "reply, said",
    [
        (Reply("Yes.", tokens=(4, 5)), "decoded [4, 5]"),  # as in training, with special tokens
        (Reply("Yes.", tokens=(4, 5), ended="length"), "decoded [4, 5]"),
        (Reply("Yes.", tokens=(4, 5), ended="stop"), "Yes."),
        (Reply("Yes."), "Yes."),
    ],
)
def test_earlier_replies_reach_the_prompt(reply: Reply, said: str) -> None:
    reader = Reader("No.")
    session_of(reader).ask([Exchange("Is it?", reply, "closed")], "Sure?", form="open")
    turns = [Turn("Is it?", said, "closed")]
    assert reader.calls == [("encoded", [(1, "Sure?", "open", turns)], Sampling(max_new_tokens=3))]


@pytest.mark.parametrize(
    ("turns", "seen"), [(1, [[], [], [], []]), (2, [[], [0], [], [2]]), (9, [[], [0], [], [2]])]
)
def test_a_question_sees_the_conversation_so_far(turns: int, seen: list[list[int]]) -> None:
    """As many exchanges as training had; none before a new start."""
    reader = Reader("Yes.")
    talk = terminal.Conversation(session_of(reader, turns=turns))
    talk.ask("0")
    talk.ask("1")
    talk.restart()
    talk.ask("2")
    talk.ask("3")
    histories = [[int(turn.question) for turn in prompts[0][3]] for _, prompts, _ in reader.calls]
    assert histories == seen and [one.question for one in talk.said] == ["0", "1", "2", "3"]


def test_a_long_conversation_forgets_its_start() -> None:
    reader = Reader("Yes.")
    talk = terminal.Conversation(session_of(reader, turns=3))
    for number in range(5):
        talk.ask(str(number))
    assert [turn.question for turn in reader.calls[-1][1][0][3]] == ["2", "3"]


def test_the_terminal_streams_a_reply_and_lists_its_boxes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    session = session_of(Reader(f"At |{BOX}\x1b|.", ended="length"))
    talk = terminal.Conversation(session)
    talk.ask("Where?", "open")
    [exchange] = talk.said
    assert exchange == Exchange("Where?", exchange.reply, "open")
    assert capsys.readouterr().out == (
        f"At {BOX}\ufffd. ...\n"
        f"  box {BOX}: voxels [0:2, 0:2, 0:2] of the file; "
        "RAS+ mm x -0.5 to 1.5, y -1.0 to 3.0, z -1.0 to 3.0\n"
    )


def test_questions_and_names_cannot_move_the_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.show_question("Is it\x1b[2J\nthere?")
    terminal.show_scans([view(source="a\rb")])
    out = capsys.readouterr().out
    assert out.startswith("\n> Is it\\x1b[2J\\nthere?\na\\rb: 4 x 4 x 4 voxels along RAS of 1 x 2")
    assert "\x1b" not in out and "\r" not in out


def test_a_scan_and_what_is_seen_of_it() -> None:
    whole = dataclasses.replace(view(), whole=True)
    assert describe(view()) == [
        "scan.nrrd: 4 x 4 x 4 voxels along RAS of 1 x 2 x 2 mm, HU",
        "looked at: voxels [0:4, 0:2, 0:2], 25% of the scan, cut as in training, as 4 x 2 x 2 "
        "voxels; RAS+ mm x -0.5 to 3.5, y -1.0 to 3.0, z -1.0 to 3.0",
    ]
    assert "25% of the scan, resampled as a whole, unlike in training, as" in describe(whole)[1]


def test_every_box_of_a_reply_is_a_line_and_is_counted() -> None:
    place = PlacedBox(BOX, np.array([0.0, 0, 0, 1, 1, 1]), None)
    reply = Reply("", (place,), ("[1\n",), ("[out]", "[too]"), ("[which]",))
    assert [*about_places(reply)] == [
        f"box {BOX}: {place}",
        "not a readable box, left out: [1\\n",
        "box [out] lies outside of the scan, left out",
        "box [too] lies outside of the scan, left out",
        "box [which] is not placed: the answer does not say in which scan",
    ]
    assert counted([reply, reply]) == "boxes: 2 placed, 2 unreadable, 4 outside of the scan"
    assert counted([Reply("Yes.")]) == counted([]) == ""


@pytest.mark.parametrize("ended", ["eos", "stop", "length"])
@pytest.mark.parametrize("boxes", [(), (BAD,)])
def test_a_draft_says_where_it_is_from(ended: Any, boxes: tuple[str, ...], tmp_path: Path) -> None:
    reply = Reply(" Nothing.\n", unreadable=boxes, ended=ended)
    fovs = [view(), view(source="other.nrrd")]
    draft.write(tmp_path / "draft.md", Exchange("Report\nit.", reply), fovs, "my\trun")
    parts = (tmp_path / "draft.md").read_text().split("\n\n")
    cut = "[The answer was cut off here. Increase --sampling.max-new-tokens for more.]"
    assert parts == [
        "# DRAFT of findings, written by a model",
        f"{NOTICE} No person has checked this text.",
        "\n".join(f"- {line}" for fov in fovs for line in describe(fov)),
        "- model: my\\trun\n- asked: Report\\nit.",
        "## Findings",
        "Nothing.",
        *([cut] if ended == "length" else []),
        *(["## Boxes", f"- not a readable box, left out: {BAD}"] if boxes else []),
        f"{NOTICE}\n",
    ]
