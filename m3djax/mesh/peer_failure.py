"""How a process of many learns that another one failed, and says so."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from typing import Any, NoReturn

_KEY = "m3djax/failed"
_EVERY_SECONDS = 2.0
CURE = (
    "Cure: see to that, then start all processes again with the same command: training goes on "
    "from the last checkpoint."
)


class Watch:
    """Ends this process soon after another one has told that it failed, and explains other ends.

    Args:
      client: of the key-value store.
      who: what this process is called in messages.
      first: whether the store runs in this process: it must outlast the others.
    """

    def __init__(self, client: Any, who: str, *, first: bool) -> None:
        self._client, self._who, self._first = client, who, first
        self._last_words = LastWords(
            f"{who}: ended without a word of its own. Either it was killed (memory? a preempted "
            "machine?), or JAX ended it because another process is gone: lines above that speak of "
            f"the coordination service or of heartbeats mean the latter. {CURE}"
        )
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops watching, as everything went well or is known to all."""
        self._stop()
        self._last_words.cancel()

    def leave(self, error: str) -> NoReturn:
        """Tells the others what happened here, leaves them time to hear it, and ends the process.

        JAX's own end would wait for processes that wait for this one.
        """
        self._stop()
        try:
            self._client.key_value_set(_KEY, f"{self._who} failed: {error}")
            # If this process went at once, the others would meet a broken connection first.
            time.sleep(2 * _EVERY_SECONDS)
        except Exception:  # another one was first, or the store is gone: nothing to add
            pass
        self._last_words.cancel()
        _end()

    def _stop(self) -> None:
        self._closed.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._closed.wait(_EVERY_SECONDS):
            try:
                found = self._client.key_value_try_get(_KEY)
            except Exception:  # nobody failed, or the store is gone: JAX ends the process then
                continue
            self._last_words.cancel()
            print(f"{self._who}: ends, because {found}\n{CURE}", file=sys.stderr, flush=True)
            time.sleep(4 * _EVERY_SECONDS if self._first else 0)
            _end()


def _end() -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


class LastWords:
    """Explains an end that Python does not see: a kill, or JAX ending who has lost the others.

    A shell waits at the other end of a pipe, and speaks when the pipe closes without a word.

    Args:
      message: what it says.
    """

    def __init__(self, message: str) -> None:
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", 'trap "" INT TERM HUP; read -r word || echo "$0" >&2', message],
            stdin=subprocess.PIPE,
            start_new_session=True,  # a kill of the whole group leaves it
        )

    def cancel(self) -> None:
        """Nothing needs to be said; may be called twice."""
        if self._shell.stdin and not self._shell.stdin.closed:
            self._shell.stdin.write(b"ended in order\n")
            self._shell.stdin.close()
            self._shell.wait()
