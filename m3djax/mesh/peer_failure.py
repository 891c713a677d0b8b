"""Detection and report of the failure of another process of the run."""

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
    "Cure: remove the cause, then start all processes again with the same command: training "
    "resumes from the last checkpoint."
)


class Watch:
    """Watch over the other processes: ends this one soon after another one reports a failure.

    It also prints an explanation if this process ends in another way.

    Args:
      client: client of the key-value store.
      who: name of this process in messages.
      first: whether the store runs in this process, which must then end last.
    """

    def __init__(self, client: Any, who: str, *, first: bool) -> None:
        self._client, self._who, self._first = client, who, first
        self._last_words = LastWords(
            f"{who}: ended without an error of its own. Either it was killed (memory? a preempted "
            "machine?), or JAX ended it because another process is gone. Lines above about the "
            f"coordination service or about heartbeats mean the latter. {CURE}"
        )
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops watching, after success or after an error that all processes have raised."""
        self._stop()
        self._last_words.cancel()

    def leave(self, error: str) -> NoReturn:
        """Reports an error to the other processes, waits until they have read it, and exits.

        The shutdown of JAX would wait for processes that wait for this one.
        """
        self._stop()
        try:
            self._client.key_value_set(_KEY, f"{self._who} failed: {error}")
            # Without this time, the others would see a broken connection before the message.
            time.sleep(2 * _EVERY_SECONDS)
        except Exception:  # another process was first, or the store is gone: nothing to add
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
            except Exception:  # no failure so far; or the store is gone, then JAX ends this process
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
    """Message about an end of the process that Python cannot catch.

    Such an end is a kill, or an exit by JAX after it has lost the other processes. A shell reads
    from a pipe, and prints the message if the pipe closes before a word arrives.

    Args:
      message: the text to print.
    """

    def __init__(self, message: str) -> None:
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", 'trap "" INT TERM HUP; read -r word || echo "$0" >&2', message],
            stdin=subprocess.PIPE,
            start_new_session=True,  # so that it survives a kill of the process group
        )

    def cancel(self) -> None:
        """Drops the message; may be called twice."""
        if self._shell.stdin and not self._shell.stdin.closed:
            self._shell.stdin.write(b"ended in order\n")
            self._shell.stdin.close()
            self._shell.wait()
