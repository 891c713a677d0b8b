"""Training curves as inline SVG; the CSS of the page sets their colours."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import LogLocator, MaxNLocator

WIDTH, HEIGHT = 440, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 12, 24
_PARTS = 30  # the moving average covers two of these parts of the run


@dataclasses.dataclass(frozen=True)
class Curve:
    """A metric over training steps.

    Attributes:
      key: its name in `metrics.jsonl`.
      title: the title for readers.
      log: whether the vertical axis is logarithmic.
    """

    key: str
    title: str
    log: bool = False


CURVES = (
    Curve("image_to_text", "Volumes whose own text is the nearest of the batch"),
    Curve("text_to_image", "Texts whose own volume is the nearest of the batch"),
    Curve("lr", "Learning rate"),
    Curve("grad_norm", "Gradient norm", log=True),
    Curve("volumes_per_second", "Crops per second"),
)
TERM = "loss/"
"""Prefix of the names of loss terms in `metrics.jsonl`."""


def of(rows: Sequence[Mapping[str, float]]) -> tuple[Curve, ...]:
    """Returns the curves of a run: the loss, each of its terms, and `CURVES`.

    A loss with a single term is one curve with the name of the term.

    Args:
      rows: lines of `metrics.jsonl`.
    """
    names = terms(rows)
    if len(names) == 1:
        return Curve("loss", f"Loss: {names[0]}", log=True), *CURVES
    parts = (Curve(TERM + name, f"Loss: {name}", _positive(rows, name)) for name in names)
    return Curve("loss", "Loss", log=True), *parts, *CURVES


def terms(rows: Sequence[Mapping[str, float]]) -> list[str]:
    """Returns the names of the terms of the loss, sorted."""
    trained = [row for row in rows if "loss" in row]  # not a line of an evaluator
    keys = {key for row in trained for key in row if key.startswith(TERM)}
    return sorted(key.removeprefix(TERM) for key in keys)


def _positive(rows: Sequence[Mapping[str, float]], term: str) -> bool:
    return all(row[TERM + term] > 0 for row in rows if TERM + term in row)


def draw(curve: Curve, rows: Sequence[Mapping[str, float]]) -> Markup | None:
    """Draws a curve as an <svg>: a faint line as measured and a strong smoothed line.

    Returns None if there are fewer than two points.

    Args:
      curve: the curve.
      rows: lines of `metrics.jsonl`.
    """
    points = [(row["step"], row[curve.key]) for row in rows if _usable(row.get(curve.key), curve)]
    if len(points) < 2:
        return None
    steps, values = np.array(points, float).T
    axis = _Axis(values.min(), values.max(), curve.log)
    x = _LEFT + (steps - steps[0]) / (steps[-1] - steps[0]) * (WIDTH - _LEFT - _RIGHT)
    y = axis.place(values)
    last = f"{values[-1]:.3g}"
    parts = [Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
        WIDTH, HEIGHT, f"{curve.title} over training steps; last value {last}")]  # fmt: skip
    for tick in axis.ticks:
        place = float(axis.place(np.array(tick)))
        parts.append(_line(place))
        parts.append(_text(_LEFT - 6, place + 3.5, f"{tick:g}", "end"))
    for tick in MaxNLocator(5, integer=True).tick_values(steps[0], steps[-1]):
        if steps[0] <= tick <= steps[-1]:
            place = float(np.interp(tick, steps, x))
            parts.append(_text(place, HEIGHT - 6, f"{tick:,.0f}", "middle"))
    parts += [_path(x, y, "raw"), _path(x, _smooth(y), "smooth")]
    parts.append(Markup("</svg>"))
    return Markup("").join(parts)


class _Axis:
    """The vertical axis: its ticks, and its map from values to pixels."""

    def __init__(self, low: float, high: float, log: bool) -> None:
        self._log = log
        low, high = (math.log10(low), math.log10(high)) if log else (low, high)
        margin = 0.05 * (high - low) or 0.1 * abs(high) or 1.0
        self._low, self._high = low - margin, high + margin
        if log:
            ends = 10**self._low, 10**self._high
            subs = (1.0,) if self._high - self._low > 3 else (1.0, 2.0, 5.0)
            ticks = LogLocator(subs=subs, numticks=8).tick_values(*ends)
        else:
            ends = self._low, self._high
            ticks = MaxNLocator(5).tick_values(*ends)
        self.ticks = [float(tick) for tick in ticks if ends[0] <= tick <= ends[1]]

    def place(self, values: np.ndarray) -> np.ndarray:
        """Returns the places of values, in pixels from the top."""
        scaled = np.log10(values) if self._log else values
        share = (scaled - self._low) / (self._high - self._low)
        return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)


def _usable(value: float | None, curve: Curve) -> bool:
    return value is not None and math.isfinite(value) and (value > 0 or not curve.log)


def _smooth(places: np.ndarray) -> np.ndarray:
    """Returns the moving average of pixels: on a logarithmic axis, a geometric average."""
    width = max(len(places) // _PARTS, 1)
    padded = np.pad(places, width, mode="edge")
    return np.convolve(padded, np.full(2 * width + 1, 1 / (2 * width + 1)), mode="valid")


def _line(y: float) -> Markup:
    shape = '<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>'
    return Markup(shape).format(_LEFT, WIDTH - _RIGHT, y, y)


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    shape = '<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>'
    return Markup(shape).format(x, y, anchor, text)


def _path(x: np.ndarray, y: np.ndarray, kind: str) -> Markup:
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    return Markup('<polyline class="{}" points="{}"/>').format(kind, points)
