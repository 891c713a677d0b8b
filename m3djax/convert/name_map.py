"""Declarative, two-way maps between published checkpoints and our parameters.

A map is a tuple of `Rule`s. Each rule names tensors of the published layout, paths of ours, and
how one becomes the other; `{i}` in a published name runs over layers, which ours keeps stacked
along the first axis. The same map imports, exports and translates gradients.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

import numpy as np

Arrays = Mapping[str, np.ndarray]


class MapError(ValueError):
    """Weights that do not fit a model.

    Attributes:
      problems: a line each, such as "missing: PATH SHAPE".
    """

    def __init__(self, problems: Sequence[str]) -> None:
        """Keeps the lines; the message lists them all."""
        self.problems = tuple(problems)
        super().__init__("these weights belong to another model:\n  " + "\n  ".join(problems))


class Shaped(Protocol):
    """An array, or what stands for one that is still in its file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""


Tensor = TypeVar("Tensor", bound=Shaped)


class Transform(abc.ABC):
    """How one published tensor becomes one or several of ours, and back."""

    @abc.abstractmethod
    def load(self, theirs: np.ndarray) -> tuple[np.ndarray, ...]:
        """Published tensor to ours, one per path of the rule."""

    @abc.abstractmethod
    def save(self, ours: Sequence[np.ndarray]) -> np.ndarray:
        """The inverse of `load`."""


@dataclasses.dataclass(frozen=True)
class Same(Transform):
    """Equal values; `lead` counts axes of length 1 that the published tensor has in front."""

    lead: int = 0

    def load(self, theirs: np.ndarray) -> tuple[np.ndarray, ...]:
        """Drops the leading axes."""
        if theirs.shape[: self.lead] != (1,) * self.lead:
            raise ValueError(f"expected {self.lead} leading axes of length 1, got {theirs.shape}")
        return (theirs.reshape(theirs.shape[self.lead :]),)

    def save(self, ours: Sequence[np.ndarray]) -> np.ndarray:
        """Adds them."""
        return ours[0].reshape((1,) * self.lead + ours[0].shape)


@dataclasses.dataclass(frozen=True)
class Linear(Transform):
    """torch keeps (out, in), Flax (in, out)."""

    def load(self, theirs: np.ndarray) -> tuple[np.ndarray, ...]:
        """Transposes."""
        return (theirs.T,)

    def save(self, ours: Sequence[np.ndarray]) -> np.ndarray:
        """Transposes."""
        return ours[0].T


@dataclasses.dataclass(frozen=True)
class Fused(Transform):
    """`parts` equal blocks of rows in one tensor, such as (q | k | v); ours keeps them apart."""

    parts: int = 3

    def load(self, theirs: np.ndarray) -> tuple[np.ndarray, ...]:
        """Splits along the outputs, and transposes matrices."""
        return tuple(part.T for part in np.split(theirs, self.parts))

    def save(self, ours: Sequence[np.ndarray]) -> np.ndarray:
        """Joins them."""
        return np.concatenate([part.T for part in ours])


@dataclasses.dataclass(frozen=True)
class PatchConv(Transform):
    """A strided convolution (out, in, kD, kH, kW) is a matrix over patches (kD*kH*kW*in, out)."""

    patch_size: tuple[int, int, int]

    def load(self, theirs: np.ndarray) -> tuple[np.ndarray, ...]:
        """To a matrix; raises ValueError if the kernel has another size."""
        if theirs.shape[2:] != tuple(self.patch_size):
            raise ValueError(f"expected a kernel of {self.patch_size}, got {theirs.shape[2:]}")
        return (theirs.transpose(2, 3, 4, 1, 0).reshape(-1, theirs.shape[0]),)

    def save(self, ours: Sequence[np.ndarray]) -> np.ndarray:
        """To a kernel."""
        kernel = ours[0].reshape(*self.patch_size, -1, ours[0].shape[1])
        return kernel.transpose(4, 3, 0, 1, 2)


@dataclasses.dataclass(frozen=True)
class HeadRow(Transform):
    """A table (1, 1 + N, C) whose first row is the class token's: ours are (C,) and (N, C)."""

    def load(self, theirs: np.ndarray) -> tuple[np.ndarray, ...]:
        """Splits off the first row."""
        return theirs[0, 0], theirs[0, 1:]

    def save(self, ours: Sequence[np.ndarray]) -> np.ndarray:
        """Puts it back."""
        return np.concatenate([ours[0][None], ours[1]])[None]


@dataclasses.dataclass(frozen=True)
class Rule:
    """One row of a map.

    Attributes:
      theirs: published name; `{i}` stands for the layer.
      ours: our path or paths; () for tensors that are known and not needed.
      via: how values change.
      layers: first and past-the-last published layer that the rule is about; None: all of them.
    """

    theirs: str
    ours: str | tuple[str, ...]
    via: Transform = Same()
    layers: tuple[int, int] | None = None

    @property
    def paths(self) -> tuple[str, ...]:
        """Our paths, as a tuple."""
        return (self.ours,) if isinstance(self.ours, str) else self.ours

    @functools.cached_property
    def pattern(self) -> re.Pattern[str]:
        """Matches the published names, with group `i` for the layer."""
        return re.compile(re.escape(self.theirs).replace(r"\{i\}", r"(?P<i>\d+)") + r"\Z")

    def layer(self, name: str) -> int | None:
        """Which layer of the rule a published name is (0 if it has none); None: it is not."""
        match = self.pattern.match(name)
        if not match:
            return None
        layer = int(match.groupdict().get("i") or 0)
        first, end = self.layers or (0, layer + 1)
        return layer - first if first <= layer < end else None


def load(
    theirs: Arrays, rules: Sequence[Rule], expected: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Published tensors to our parameters.

    Args:
      theirs: all tensors of the file.
      rules: the map.
      expected: our paths and shapes.

    Raises:
      MapError: lists every tensor that no rule or several rules know, every path that stays
        empty, and every shape that differs. Nothing is loaded in part.
    """
    problems: list[str] = []
    ours: dict[str, np.ndarray] = {}
    for rule, tensors in assign(theirs, rules, problems).items():
        try:
            loaded = [rule.via.load(tensor) for tensor in tensors] if rule.paths else []
        except ValueError as error:
            problems.append(f"wrong shape: {rule.theirs}: {error}")
            continue
        for index, path in enumerate(rule.paths if loaded else ()):
            parts = [part[index] for part in loaded]
            ours[path] = np.stack(parts) if "{i}" in rule.theirs else parts[0]
    names = {path: rule.theirs for rule in rules for path in rule.paths}
    problems += [
        f"missing: {path} {tuple(shape)}, published as {names.get(path, '(no rule)')}"
        for path, shape in expected.items()
        if path not in ours
    ]
    problems += [f"not in this model: {path}" for path in ours if path not in expected]
    problems += [
        f"wrong shape: {path}: the file has {value.shape}, the model {tuple(expected[path])}"
        for path, value in ours.items()
        if path in expected and value.shape != tuple(expected[path])
    ]
    if problems:
        raise MapError(problems)
    return ours


def save(ours: Arrays, rules: Sequence[Rule]) -> dict[str, np.ndarray]:
    """Our parameters (or their gradients) in the published layout; the inverse of `load`.

    Raises:
      KeyError: if a path of the map is absent.
    """
    theirs = {}
    for rule in rules:
        if not rule.paths:
            continue
        parts = [np.asarray(ours[path]) for path in rule.paths]
        if "{i}" not in rule.theirs:
            theirs[rule.theirs] = rule.via.save(parts)
            continue
        first = rule.layers[0] if rule.layers else 0
        for i in range(len(parts[0])):
            name = rule.theirs.replace("{i}", str(first + i))
            theirs[name] = rule.via.save([part[i] for part in parts])
    return theirs


def assign(
    theirs: Mapping[str, Tensor], rules: Sequence[Rule], problems: list[str]
) -> dict[Rule, list[Tensor]]:
    """The tensors of every rule, in the order of layers.

    Args:
      theirs: anything with a shape, by published name.
      rules: the map.
      problems: gets a line for every tensor that no rule or several rules know, and for every rule
        some of whose layers are absent.
    """
    found: dict[Rule, dict[int, Tensor]] = {}
    for name, tensor in theirs.items():
        matches = [(rule, i) for rule in rules if (i := rule.layer(name)) is not None]
        if len(matches) != 1:
            problems.append(
                f"{'ambiguous' if matches else 'unknown'} tensor: {name} {tensor.shape}"
            )
            continue
        rule, layer = matches[0]
        found.setdefault(rule, {})[layer] = tensor
    for rule, layers in found.items():
        count = rule.layers[1] - rule.layers[0] if rule.layers else len(layers)
        if sorted(layers) != list(range(count)):
            problems.append(f"layers of {rule.theirs} are not 0..{count - 1}: {sorted(layers)}")
    return {rule: [layers[i] for i in sorted(layers)] for rule, layers in found.items()}
