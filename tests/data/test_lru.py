"""The cache drops the value that was not used for the longest time, and no other."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.lru import LruCache


@given(size=st.integers(1, 4), keys=st.lists(st.integers(0, 6), max_size=40))
def test_it_keeps_the_keys_that_were_used_last(size: int, keys: list[int]) -> None:
    cache = LruCache[str](size)
    used: list[int] = []
    for key in keys:
        made = []
        assert cache.get(key, lambda key=key, made=made: made.append(key) or str(key)) == str(key)
        assert made == ([] if key in used[-size:] else [key])
        used = [other for other in used if other != key] + [key]


def test_a_value_of_none_is_kept() -> None:
    cache, made = LruCache[None](1), []
    for _ in range(3):
        cache.get("key", lambda: made.append(0))
    assert made == [0]


def test_threads_do_not_wait_for_each_other() -> None:
    cache, both = LruCache[int](4), threading.Barrier(2, timeout=20)

    def make() -> int:
        both.wait()  # passes only while both threads make a value
        return 7

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda key: cache.get(key, make), "ab")) == [7, 7]
