"""The text of answers during generation: stop strings and streaming."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

_INCOMPLETE = "\ufffd"


@dataclasses.dataclass
class RowText:
    """The text of one answer during generation.

    Attributes:
      decode: function from token ids to text.
      stop: texts that end the answer; the answer does not include them.
      emit: function that gets each piece of text, after later tokens can no longer change it.
      text: the answer so far, without a stop string.
      stopped: whether a stop string was found.
    """

    decode: Callable[[Sequence[int]], str]
    stop: tuple[str, ...] = ()
    emit: Callable[[str], None] | None = None
    text: str = ""
    stopped: bool = False
    _sent: int = 0

    def feed(self, tokens: Sequence[int], *, last: bool) -> None:
        """Updates the text from all tokens so far; `last`: no more will follow."""
        if self.stopped:
            return
        self.text = self.decode(tokens)
        found = [at for word in self.stop if (at := self.text.find(word)) >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True
        if self.emit is None:
            return
        certain = len(self.text) if last or self.stopped else self._certain()
        if certain > self._sent:
            self.emit(self.text[self._sent : certain])
            self._sent = certain

    def _certain(self) -> int:
        """Counts the characters that later tokens can neither change nor make a stop string."""
        # A token may end within a character; the next token has the rest of it.
        end = len(self.text.rstrip(_INCOMPLETE))
        for word in self.stop:
            for size in range(min(len(word) - 1, end), 0, -1):
                if self.text[:end].endswith(word[:size]):
                    end -= size
                    break
        return end
