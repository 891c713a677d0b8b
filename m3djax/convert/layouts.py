"""The known layouts of weight files, and the function that recognises a file's layout."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from data_pipelines.errors import ConfigError, printable
from m3djax.convert import bert, lamed, llm, m3d, peft, vit
from m3djax.convert.name_map import Rule
from m3djax.experiment import Experiment
from m3djax.runs.checkpoint import CheckpointError
from m3djax.runs.state import abstract_params

_LAMED = ("vision", "projector", "llm")


@dataclasses.dataclass(frozen=True)
class Layout:
    """A layout of weight files: the names of its tensors and the parameters that they become.

    Attributes:
      what: the model that is stored in this layout, for messages.
      components: components of the task that the layout fills; () for all of them.
      rules: makes the map for a task without adapters; None: see `own_names`.
      aside: prefixes of published tensors that belong to no component of the task. An import keeps
        them unchanged, and an export of the same folder writes them again.
      adapted: whether adapters are stored apart, so that the experiment must have the same LoRA.
    """

    what: str
    components: tuple[str, ...]
    rules: Callable[[Any], tuple[Rule, ...]] | None
    aside: tuple[str, ...] = ()
    adapted: bool = False

    def stored(self, experiment: Experiment) -> Experiment:
        """Returns the experiment whose parameters this layout stores.

        It has no LoRA unless the layout stores adapters apart.
        """
        if self.adapted or experiment.adapters is None:
            return experiment
        return dataclasses.replace(experiment, adapters=None, trainable=".*", groups=())


LAYOUTS: dict[str, Layout] = {
    "m3d_clip": Layout(
        "M3D-CLIP (model.safetensors)",
        ("vision", "text", "vision_head", "text_head", "objective"),
        m3d.m3d_clip,
    ),
    "m3d_vit": Layout(
        "the vision tower of M3D-CLIP (pretrained_ViT.bin)",
        ("vision",),
        lambda task: vit.monai_vit(task.vision, ""),
    ),
    "bert": Layout(
        "BERT or RoBERTa without heads",
        ("text",),
        lambda task: bert.encoder(pooler=task.text.pooler),
    ),
    "m3d_lamed": Layout(
        "M3D-LaMed, adapters merged (M3D-LaMed-Llama-2-7B, -Phi-3-4B)",
        _LAMED,
        lamed.m3d_lamed,
        lamed.SEGMENTATION,
    ),
    "m3d_lamed_lora": Layout(
        "M3D-LaMed in training, adapters apart (model_with_lora.bin)",
        _LAMED,
        lamed.m3d_lamed,
        tuple(peft.PREFIX + prefix for prefix in lamed.SEGMENTATION),
        adapted=True,
    ),
    "llm": Layout(
        "a language model alone (a folder of Hugging Face's with its tokenizer, or .gguf)",
        ("llm",),
        lambda task: llm.rules(task.llm),
    ),
    "m3djax": Layout("any task: a tensor for each parameter, under its own name", (), None),
}
"""The layouts by name. The module of a config, or a package that it imports, may add its own."""


def layout_of(name: str) -> Layout:
    """Returns the layout with a name.

    Raises:
      ConfigError: there is no such layout.
    """
    if name not in LAYOUTS:
        raise ConfigError(f"layout {name!r} is not known. Cure: one of {', '.join(LAYOUTS)}.")
    return LAYOUTS[name]


def own_names(paths: Iterable[str]) -> tuple[Rule, ...]:
    """Returns the map of the project's own layout: paths with dots, layers stacked.

    Args:
      paths: our parameters' paths.
    """
    return tuple(Rule(path.replace("/", "."), path) for path in paths)


def rules_of(name: str, experiment: Experiment) -> tuple[Rule, ...]:
    """Returns the map of a layout for an experiment's task.

    Raises:
      ConfigError: there is no such layout; the task lacks a component of it, or has one with
        parameters that the layout does not know; or the layout has adapters and the experiment
        does not.
    """
    layout, task = layout_of(name), experiment.task
    if layout.adapted and experiment.adapters is None:
        raise ConfigError(
            f"layout {name} has adapters, and the config has none. Cure: a --config with "
            "adapters=LoRA(...)."
        )
    lacking = [part for part in layout.components if part not in task.components()]
    if lacking:
        raise ConfigError(
            f"layout {name} is that of {layout.what}, and {type(task).__name__} has no "
            f"{', '.join(lacking)}. Cure: another --config or --layout."
        )
    if layout.rules is None:
        return own_names(abstract_params(layout.stored(experiment)))
    rules = layout.rules(task)
    if layout.adapted and experiment.adapters is not None:
        return peft.with_adapters(rules, experiment.adapters)
    return rules


def recognise(names: Sequence[str], experiment: Experiment, source: object) -> str:
    """Returns the layout that knows every name of a file.

    Raises:
      CheckpointError: no layout knows every name, or several do. The message counts the known names
        per layout, and suggests a prefix to remove if that would help.
    """
    known = {name: _known(names, name, experiment) for name in LAYOUTS}
    found = [name for name, count in known.items() if count == len(names)]
    # All names of a language model occur in M3D-LaMed, too; the smaller layout comes first.
    found.sort(key=lambda name: len(LAYOUTS[name].components))
    if len(found) == 1 or found[:1] == ["llm"]:
        return found[0]
    prefix = _shared_prefix(names)
    bare = [name.removeprefix(prefix) for name in names]
    hint = "Cure: --layout, for a list of what does not fit"
    if prefix and any(_known(bare, name, experiment) == len(names) for name in LAYOUTS):
        hint = f"Cure: --prefix {printable(prefix)}, which all names start with"
    table = ", ".join(f"{name} {count}" for name, count in known.items())
    raise CheckpointError(
        f"{source}: no known layout has all of its {len(names)} names, such as "
        f"{printable(min(names))}. Known names per layout: {table}. {hint}."
    )


def _shared_prefix(names: Sequence[str]) -> str:
    """Returns the longest prefix of all names that ends with a dot."""
    prefix, rest = "", list(names)
    while all("." in name for name in rest) and len({n.partition(".")[0] for n in rest}) == 1:
        prefix += rest[0].partition(".")[0] + "."
        rest = [name.partition(".")[2] for name in rest]
    return prefix


def _known(names: Iterable[str], layout: str, experiment: Experiment) -> int:
    """Returns how many of the names a layout knows; 0 if the task lacks its components."""
    try:
        patterns = [rule.pattern for rule in rules_of(layout, experiment)]
    except ConfigError:
        return 0
    aside = LAYOUTS[layout].aside
    return sum(
        name.startswith(aside or ("\0",)) or any(pattern.match(name) for pattern in patterns)
        for name in names
    )
