"""Text of growing answers: stop strings and streaming."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

_INCOMPLETE = "\ufffd"


@dataclasses.dataclass
class RowText:
    """The text of one answer while its tokens come.

    Attributes:
      decode: token ids to text.
      stop: texts that end the answer and are cut off.
      emit: gets every further piece of text once nothing that follows can change it.
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
        """Takes all tokens so far; with `last`, none will follow."""
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
        """Counts the characters that no further token can change or make a stop string of."""
        # A token may end within a character; the rest of it comes with the next one.
        end = len(self.text.rstrip(_INCOMPLETE))
        for word in self.stop:
            for size in range(min(len(word) - 1, end), 0, -1):
                if self.text[:end].endswith(word[:size]):
                    end -= size
                    break
        return end
