"""Configs of optimizers. Their method `build` makes the optax transformation.

Optax is slow to import and the flags of a config do not need it, so methods import it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Literal

from data_pipelines.errors import ConfigError
from m3djax.params import FlatParams

if TYPE_CHECKING:
    import optax

_Update = Callable[[FlatParams, FlatParams], FlatParams]
"""A function of updates and parameters that returns changed updates."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Optimizer settings for some parameters. If several groups match a path, the last one counts.

    Attributes:
      pattern: regex that must match the start of a parameter's path, such as "vision/".
      lr_scale: factor on the learning rate.
      weight_decay: weight decay of these parameters; None keeps the optimizer's.
    """

    pattern: str
    lr_scale: float = 1.0
    weight_decay: float | None = None


@dataclasses.dataclass(frozen=True)
class AdamW:
    """AdamW (arXiv 1711.05101) with warm-up, a schedule and clipping by the global norm.

    Weight decay applies only to matrices (paths that end in `kernel`). It does not apply to biases,
    norms, tokens and positions.

    Attributes:
      learning_rate: peak learning rate.
      schedule: schedule after the warm-up; "cosine" and "linear" fall to `end` times the peak.
      warmup: share of all steps in which the rate rises from 0.
      end: last rate as a share of the peak.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.
      weight_decay: decoupled weight decay; it is multiplied by the learning rate.
      clip_norm: largest global norm of the gradients; 0 switches clipping off.
    """

    learning_rate: float = 1e-3
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = 0.05
    end: float = 0.0
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.05
    clip_norm: float = 1.0

    def rate(self, steps: int) -> optax.Schedule:
        """Returns the learning rate as a function of the step, for a run of `steps` steps."""
        import optax

        warmup = round(self.warmup * steps)
        rest = max(steps - warmup, 1)
        peak = self.learning_rate
        after = {
            "cosine": optax.cosine_decay_schedule(peak, rest, self.end),
            "linear": optax.linear_schedule(peak, peak * self.end, rest),
            "constant": optax.constant_schedule(peak),
        }[self.schedule]
        if not warmup:
            return after
        # Step 0 already trains: the rate starts at peak / warmup instead of 0.
        rise = optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1))
        return optax.join_schedules([rise, after], [warmup])

    def build(
        self, steps: int, paths: Iterable[str], groups: tuple[Group, ...] = ()
    ) -> optax.GradientTransformation:
        """Returns the optax transformation for a flat dict of parameters.

        Args:
          steps: optimizer steps of the run.
          paths: paths of the trainable parameters.
          groups: settings for some of the parameters.

        Raises:
          ConfigError: a group matches no parameter.
        """
        import optax

        paths = list(paths)
        for group in groups:
            if not any(re.match(group.pattern, path) for path in paths):
                raise ConfigError(
                    f"group {group.pattern!r} matches no trainable parameter. "
                    "Cure: a pattern that matches the start of a path."
                )
        settings = {path: _group_of(path, groups) for path in paths}
        scale = {path: group.lr_scale for path, group in settings.items()}
        decay = {path: self._decay(path, group) for path, group in settings.items()}
        return optax.chain(
            optax.clip_by_global_norm(self.clip_norm) if self.clip_norm else optax.identity(),
            optax.scale_by_adam(self.b1, self.b2, self.eps),
            optax.stateless(_add_decay(decay)),
            optax.stateless(_scale(scale)),
            optax.scale_by_learning_rate(self.rate(steps)),
        )

    def _decay(self, path: str, group: Group) -> float:
        if not path.endswith("kernel"):
            return 0.0
        return self.weight_decay if group.weight_decay is None else group.weight_decay


def _group_of(path: str, groups: tuple[Group, ...]) -> Group:
    """Returns the last group that matches a path; without one, a group that changes nothing."""
    matching = (group for group in reversed(groups) if re.match(group.pattern, path))
    return next(matching, Group(""))


def _add_decay(decay: Mapping[str, float]) -> _Update:
    return lambda updates, params: {p: u + decay[p] * params[p] for p, u in updates.items()}


def _scale(scale: Mapping[str, float]) -> _Update:
    return lambda updates, params: {p: u * scale[p] for p, u in updates.items()}
