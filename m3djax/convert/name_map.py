"""Declarative, two-way maps between published checkpoints and our parameters.

A map is a tuple of `Rule`s. Each rule has a published name, our paths, and the transform between
them. `{i}` in a published name runs over layers; our parameters stack all layers along the first
axis. The same map imports weights, exports weights and translates gradients.
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
    """An error that lists why weights do not fit a model.

    Attributes:
      problems: one line per problem, such as "missing: PATH SHAPE".
    """

    def __init__(self, problems: Sequence[str]) -> None:
        """Stores the problems and lists all of them in the message."""
        self.problems = tuple(problems)
        super().__init__("these weights belong to another model:\n  " + "\n  ".join(problems))


class Shaped(Protocol):
    """An array, or a handle of an array that is not read yet."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Returns the sizes of the axes."""


Tensor = TypeVar("Tensor", bound=Shaped)


class Transform(abc.ABC):
    """A two-way conversion between one published tensor and one or several of our parameters."""

    @abc.abstractmethod
    def load(self, theirs: np.ndarray) -> tuple[np.ndarray, ...]:
        """Converts a published tensor to our parameters, one per path of the rule."""

    @abc.abstractmethod
    def save(self, ours: Sequence[np.ndarray]) -> np.ndarray:
        """Converts our parameters to the published tensor; the inverse of `load`."""


@dataclasses.dataclass(frozen=True)
class Same(Transform):
    """The identity, except for leading axes of length 1.

    Attributes:
      lead: number of leading axes of length 1 in the published tensor, which ours lacks.
    """

    lead: int = 0

    def load(self, theirs: np.ndarray) -> tuple[np.ndarray, ...]:
        """Drops the leading axes; raises ValueError if their length is not 1."""
        if theirs.shape[: self.lead] != (1,) * self.lead:
            raise ValueError(f"expected {self.lead} leading axes of length 1, got {theirs.shape}")
        return (theirs.reshape(theirs.shape[self.lead :]),)

    def save(self, ours: Sequence[np.ndarray]) -> np.ndarray:
        """Adds the leading axes."""
        return ours[0].reshape((1,) * self.lead + ours[0].shape)


@dataclasses.dataclass(frozen=True)
class Linear(Transform):
    """The transposition between torch's matrices (out, in) and Flax's (in, out)."""

    def load(self, theirs: np.ndarray) -> tuple[np.ndarray, ...]:
        """Transposes the matrix."""
        return (theirs.T,)

    def save(self, ours: Sequence[np.ndarray]) -> np.ndarray:
        """Transposes the matrix."""
        return ours[0].T


@dataclasses.dataclass(frozen=True)
class Fused(Transform):
    """A split of one published tensor into equal blocks of rows, such as (q | k | v).

    Attributes:
      parts: number of blocks.
    """

    parts: int = 3

    def load(self, theirs: np.ndarray) -> tuple[np.ndarray, ...]:
        """Splits the tensor along the outputs and transposes matrices."""
        return tuple(part.T for part in np.split(theirs, self.parts))

    def save(self, ours: Sequence[np.ndarray]) -> np.ndarray:
        """Joins the blocks."""
        return np.concatenate([part.T for part in ours])


@dataclasses.dataclass(frozen=True)
class PatchConv(Transform):
    """The conversion of a convolution kernel to a matrix over patches.

    The kernel has shape (out, in, kD, kH, kW), and the matrix (kD*kH*kW*in, out). The stride of the
    convolution is its kernel size.

    Attributes:
      patch_size: (kD, kH, kW) in voxels.
    """

    patch_size: tuple[int, int, int]

    def load(self, theirs: np.ndarray) -> tuple[np.ndarray, ...]:
        """Converts the kernel to a matrix; raises ValueError if the kernel has another size."""
        if theirs.shape[2:] != tuple(self.patch_size):
            raise ValueError(f"expected a kernel of {self.patch_size}, got {theirs.shape[2:]}")
        return (theirs.transpose(2, 3, 4, 1, 0).reshape(-1, theirs.shape[0]),)

    def save(self, ours: Sequence[np.ndarray]) -> np.ndarray:
        """Converts the matrix to a kernel."""
        kernel = ours[0].reshape(*self.patch_size, -1, ours[0].shape[1])
        return kernel.transpose(4, 3, 0, 1, 2)


@dataclasses.dataclass(frozen=True)
class HeadRow(Transform):
    """A split of a table (1, 1 + N, C) into the class token's row (C,) and the rest (N, C)."""

    def load(self, theirs: np.ndarray) -> tuple[np.ndarray, ...]:
        """Splits off the first row."""
        return theirs[0, 0], theirs[0, 1:]

    def save(self, ours: Sequence[np.ndarray]) -> np.ndarray:
        """Joins the first row and the rest."""
        return np.concatenate([ours[0][None], ours[1]])[None]


@dataclasses.dataclass(frozen=True)
class Rule:
    """One row of a map.

    Attributes:
      theirs: published name; `{i}` stands for the layer.
      ours: our path or paths; () for known tensors that are ignored.
      via: conversion of the values.
      layers: first and past-the-last published layer of the rule; None for all layers.
    """

    theirs: str
    ours: str | tuple[str, ...]
    via: Transform = Same()
    layers: tuple[int, int] | None = None

    @property
    def paths(self) -> tuple[str, ...]:
        """Returns our paths as a tuple."""
        return (self.ours,) if isinstance(self.ours, str) else self.ours

    @functools.cached_property
    def pattern(self) -> re.Pattern[str]:
        """Returns the pattern of the published names, with group `i` for the layer."""
        return re.compile(re.escape(self.theirs).replace(r"\{i\}", r"(?P<i>\d+)") + r"\Z")

    def layer(self, name: str) -> int | None:
        """Returns the layer of a published name, counted from the rule's first layer.

        It is 0 if the rule has no layers, and None if the name does not belong to the rule.
        """
        match = self.pattern.match(name)
        if not match:
            return None
        layer = int(match.groupdict().get("i") or 0)
        first, end = self.layers or (0, layer + 1)
        return layer - first if first <= layer < end else None


def linear(theirs: str, ours: str) -> tuple[Rule, ...]:
    """Returns the rules of a linear layer of torch: a matrix (out, in), and a bias (out,)."""
    return (
        Rule(f"{theirs}.weight", f"{ours}/kernel", Linear()),
        Rule(f"{theirs}.bias", f"{ours}/bias"),
    )


def norm(theirs: str, ours: str) -> tuple[Rule, ...]:
    """Returns the rules of a layer norm of torch: scale and bias."""
    return Rule(f"{theirs}.weight", f"{ours}/scale"), Rule(f"{theirs}.bias", f"{ours}/bias")


def load(
    theirs: Arrays, rules: Sequence[Rule], expected: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Converts published tensors to our parameters.

    Args:
      theirs: all tensors of the file.
      rules: the map.
      expected: our paths and shapes.

    Raises:
      MapError: the tensors do not fit. It lists each tensor with no rule or several rules, each
        path without a tensor, and each shape that differs. Nothing is loaded then.
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
    """Converts our parameters (or their gradients) to the published layout; inverse of `load`.

    Raises:
      KeyError: a path of the map is absent.
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
    """Returns the tensors of each rule, in the order of layers.

    Args:
      theirs: arrays or handles by published name.
      rules: the map.
      problems: list to which problems are added: a line for each tensor with no rule or several
        rules, and for each rule with absent layers.
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
