"""Published layouts by name, and how to recognise them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from data_pipelines.errors import ConfigError, printable
from m3djax.checkpoint import CheckpointError
from m3djax.convert import bert, m3d, vit
from m3djax.convert.name_map import Rule

Name = Literal["auto", "m3d_clip", "m3d_vit", "bert"]


@dataclasses.dataclass(frozen=True)
class Layout:
    """A published layout.

    Attributes:
      what: it is.
      components: of ours that it fills.
      rules: the map, for a task.
    """

    what: str
    components: tuple[str, ...]
    rules: Callable[[Any], tuple[Rule, ...]]


LAYOUTS: Mapping[str, Layout] = {
    "m3d_clip": Layout(
        "M3D-CLIP (model.safetensors)",
        ("vision", "text", "vision_head", "text_head", "objective"),
        m3d.m3d_clip,
    ),
    "m3d_vit": Layout(
        "the vision tower of M3D-CLIP (pretrained_ViT.bin)",
        ("vision",),
        lambda task: vit.monai_vit(""),
    ),
    "bert": Layout(
        "BERT or RoBERTa without heads",
        ("text",),
        lambda task: bert.encoder(pooler=task.text.pooler),
    ),
}


def rules_of(name: str, task: Any) -> tuple[Rule, ...]:
    """The map of a layout for a task.

    Raises:
      ConfigError: the task lacks a component of the layout.
    """
    lacking = [part for part in LAYOUTS[name].components if not hasattr(task, part)]
    if lacking:
        raise ConfigError(
            f"layout {name} is of {LAYOUTS[name].what}, and {type(task).__name__} has no "
            f"{', '.join(lacking)}. Cure: another --config or --layout."
        )
    return LAYOUTS[name].rules(task)


def recognise(names: Sequence[str], task: Any, source: object) -> str:
    """The one layout that knows every name.

    Raises:
      CheckpointError: none does, or several; says how many names each knows, and which prefix to
        take off if that would help.
    """
    known = {name: _known(names, name, task) for name in LAYOUTS}
    found = [name for name, count in known.items() if count == len(names)]
    if len(found) == 1:
        return found[0]
    prefix = _shared_prefix(names)
    bare = [name.removeprefix(prefix) for name in names]
    hint = "Cure: --layout, for a list of what does not fit"
    if prefix and any(_known(bare, name, task) == len(names) for name in LAYOUTS):
        hint = f"Cure: --prefix {printable(prefix)}, which all names start with"
    table = ", ".join(f"{name} {count}" for name, count in known.items())
    raise CheckpointError(
        f"{source}: its {len(names)} names, such as {printable(min(names))}, are of no layout that "
        f"is known here. Of them are known: {table}. {hint}."
    )


def _shared_prefix(names: Sequence[str]) -> str:
    """What all names start with, up to a dot."""
    prefix, rest = "", list(names)
    while all("." in name for name in rest) and len({n.partition(".")[0] for n in rest}) == 1:
        prefix += rest[0].partition(".")[0] + "."
        rest = [name.partition(".")[2] for name in rest]
    return prefix


def _known(names: Iterable[str], layout: str, task: Any) -> int:
    """How many of the names a layout knows; none, if the task has not its components."""
    try:
        patterns = [rule.pattern for rule in rules_of(layout, task)]
    except ConfigError:
        return 0
    return sum(any(pattern.match(name) for pattern in patterns) for name in names)
