"""Programs that can be planned: the train step and the generation loop."""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.stages import Traced

from data_pipelines.errors import ConfigError
from m3djax.convert.pretrained import shapes
from m3djax.experiment import Experiment
from m3djax.generate import decode
from m3djax.generate.chooser import Chooser
from m3djax.generate.sampling import Sampling
from m3djax.mesh import sharding
from m3djax.models.llm.decoder import Decoder
from m3djax.params import FlatParams, unflatten
from m3djax.runs.state import abstract_batch, abstract_state, specification, trainer_of
from m3djax.step import compile_step
from m3djax.training import flops

# Fields that the train step depends on. Others, such as evaluators and workers, do not change it.
_STEP_FIELDS = (
    "task",
    "inputs",
    "adapters",
    "optimizer",
    "trainable",
    "groups",
    "steps",
    "gradient_accumulation_steps",
    "mesh",
)


class Target(abc.ABC):
    """A program to plan; one run of it is called a step.

    Attributes:
      kind: name of a step, for tables.
      looped: whether the program is a loop of unknown length, and a step one iteration of it.
      mesh: devices along (data, fsdp, tensor); -1 stands for all remaining devices.
      rows: samples or answers of one step.
      gradient_accumulation_steps: number of parts in which a step is computed.
    """

    kind: str
    looped: bool = False
    mesh: tuple[int, int, int]
    rows: int
    gradient_accumulation_steps: int = 1

    @abc.abstractmethod
    def fields(self) -> dict[str, Any]:
        """Returns all values that the program depends on, as `serialize.dumps` takes them."""

    @abc.abstractmethod
    def work(self, traced: Traced) -> int:
        """Returns the own FLOPs of the model in a traced step; see `flops.model_flops`."""

    @abc.abstractmethod
    def trace(self, mesh: Mesh) -> tuple[Traced, dict[str, int]]:
        """Traces the program for the current mesh; also returns the numbers of its parameters.

        Raises:
          ConfigError: the rows cannot be split over the mesh.
        """

    def split(self, mesh: Mesh) -> None:
        """Raises ConfigError if the rows cannot be split over a mesh."""
        shards = mesh.shape["data"] * mesh.shape["fsdp"]
        multiple = shards * self.gradient_accumulation_steps
        if self.rows % multiple:
            raise ConfigError(
                f"batch_size={self.rows} cannot be split over data x fsdp = {shards} devices and "
                f"gradient_accumulation_steps={self.gradient_accumulation_steps}. Cure: a multiple "
                f"of {multiple}."
            )


class TrainStep(Target):
    """The step that the verb `train` runs."""

    kind = "train step"

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.mesh, self.gradient_accumulation_steps = (
            experiment.mesh,
            experiment.gradient_accumulation_steps,
        )
        self.rows = experiment.data.batch_size

    def fields(self) -> dict[str, Any]:
        """Returns the values that the program depends on; see `Target.fields`."""
        spec = self.experiment.data.spec()
        batch = {name: [list(s.shape), str(s.dtype)] for name, s in spec.items()}
        return {name: getattr(self.experiment, name) for name in _STEP_FIELDS} | {"batch": batch}

    def work(self, traced: Traced) -> int:
        """Returns the FLOPs of a step; see `Target.work`."""
        e = self.experiment
        return flops.model_flops(e.adapted, specification(e), e.trainable, e.data.spatial())

    def trace(self, mesh: Mesh) -> tuple[Traced, dict[str, int]]:
        """Traces the program and counts its parameters; see `Target.trace`."""
        self.split(mesh)
        state = abstract_state(self.experiment, mesh)
        batch = abstract_batch(self.experiment, mesh)
        seed = jax.eval_shape(jax.random.key, 0)
        traced = compile_step(trainer_of(self.experiment), mesh).trace(state, batch, seed)
        counts = {"trained": _count(state.trainable), "frozen": _count(state.frozen)}
        return traced, counts


@dataclasses.dataclass(frozen=True)
class Decoding(Target):
    """The loop that generates text; a step is one token of each answer.

    Attributes:
      llm: the language model; its weights have the dtype of its computation.
      rows: number of answers in the batch.
      prompt: length of the prompts in tokens, padding included.
      answer: longest answer in tokens.
      mesh: see `Target`.
    """

    llm: Decoder = Decoder()
    rows: int = 16
    prompt: int = 768
    answer: int = 256
    mesh: tuple[int, int, int] = (1, 1, -1)

    kind = "token"
    looped = True

    def fields(self) -> dict[str, Any]:
        """Returns the values that the program depends on; see `Target.fields`."""
        return {"decoding": self}

    def work(self, traced: Traced) -> int:
        """Returns the FLOPs of a step; see `Target.work`."""
        return flops.count_jaxpr(traced.jaxpr.jaxpr)  # the loop's body once; nothing is recomputed

    def trace(self, mesh: Mesh) -> tuple[Traced, dict[str, int]]:
        """Traces the program and counts its parameters; see `Target.trace`."""
        self.split(mesh)
        sizes = shapes(self.llm)
        flat = {
            path: self._placed(
                shape, sharding.parameter_spec(path, shape, mesh, {"llm": self.llm}), mesh
            )
            for path, shape in sizes.items()
        }
        params = unflatten(flat)["llm"]
        chooser = jax.eval_shape(lambda: Chooser.of(Sampling(), self.llm.vocab_size))
        numbers = jax.ShapeDtypeStruct((1,), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32)
        traced = decode.decode.trace(
            self.llm, self._weights(params), self._state(mesh), chooser, *numbers, length=1
        )
        return traced, {"trained": 0, "frozen": sum(map(math.prod, sizes.values()))}

    def _placed(self, shape: tuple[int, ...], spec: PartitionSpec, mesh: Mesh) -> Any:
        dtype = jnp.dtype(self.llm.dtype)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    def _weights(self, params: dict[str, Any]) -> decode.Weights:
        """Returns the shapes of the weights that `decode.unstack` makes of parameters."""
        layers: list[Any] = []
        for number, stage in enumerate(self.llm.stages):
            stacked = params.pop(f"stages_{number}")["block"]
            one = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(
                    leaf.shape[1:], leaf.dtype, sharding=decode.without_first_axis(leaf)
                ),
                stacked,
            )
            layers += [one] * stage.num_layers
        return decode.Weights(params, tuple(layers))

    def _state(self, mesh: Mesh) -> decode.State:
        """Returns the shapes of the state of `decode.begin`, with one token chosen per answer."""
        rows = self.rows

        def state() -> decode.State:
            return decode.State(
                jnp.int32(1),
                jnp.zeros((rows, self.answer), jnp.int32),
                jnp.zeros(rows, bool),
                decode.empty_cache(self.llm, rows, self.prompt + self.answer),
                None,
                jax.random.split(jax.random.key(0), rows),
            )

        def placed(leaf: Any) -> Any:
            axes = {4: ("batch", "heads", None, None), 2: ("batch", None)}.get(leaf.ndim)
            spec = sharding.activation_spec(leaf.shape, axes) if axes else PartitionSpec()
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

        return jax.tree.map(placed, jax.eval_shape(state))


def _count(leaves: FlatParams) -> int:
    return sum(math.prod(leaf.shape) for leaf in leaves.values())


def target_of(config: Any) -> Target:
    """Returns the target of a config: the config itself, or the train step of an experiment."""
    return config if isinstance(config, Target) else TrainStep(config)
