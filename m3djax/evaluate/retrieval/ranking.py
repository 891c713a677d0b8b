"""Ranks in retrieval; equal captions are equally right."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Int

_ROWS = 1024
Features = Float[np.ndarray, "n f"]
Ids = Int[np.ndarray, " n"]


def ranks(
    queries: Features, candidates: Features, query_ids: Ids, candidate_ids: Ids
) -> Int[np.ndarray, " n"]:
    """Returns the rank of the best right candidate of every query, from 1 up; see `ranks_of`.

    It is computed for some rows at a time, so that the whole similarity matrix never exists.

    Args:
      queries: unit vectors.
      candidates: unit vectors.
      query_ids: id of each query.
      candidate_ids: id of each candidate; every query needs a candidate with its own id.
    """
    parts = [
        ranks_of(queries[start : start + _ROWS] @ candidates.T, ids, candidate_ids)
        for start in range(0, len(queries), _ROWS)
        for ids in [query_ids[start : start + _ROWS]]
    ]
    return np.concatenate(parts)


def ranks_of(
    similarity: Float[np.ndarray, "n m"], query_ids: Ids, candidate_ids: Ids
) -> Int[np.ndarray, " n"]:
    """Returns 1 + the number of wrong candidates at least as similar as the best right one.

    All candidates with the query's id are right. Ties count against the model: with equal
    similarities everywhere, the right candidate is last. NaN is last, too.
    """
    similarity = np.nan_to_num(similarity, nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    right = query_ids[:, None] == candidate_ids[None, :]
    best = np.max(similarity, axis=1, where=right, initial=-np.inf)
    return 1 + np.sum((similarity >= best[:, None]) & ~right, axis=1)


def chance(query_ids: Ids, candidate_ids: Ids, k: int) -> float:
    """Returns the recall at k of a random order, by the hypergeometric distribution."""
    count = len(candidate_ids)
    values, right = np.unique(candidate_ids, return_counts=True)
    right = right[np.searchsorted(values, query_ids)]
    numbers, queries = np.unique(right, return_counts=True)
    missed = [
        math.comb(count - int(n), k) / math.comb(count, k) if k <= count - n else 0.0
        for n in numbers
    ]
    return 1 - float(np.dot(missed, queries)) / len(query_ids)
