"""Low-rank adaptation (LoRA, arXiv 2106.09685) of the linear layers of any task.

Each adapted kernel W has two small matrices beside it: `lora_a` (in, r) and `lora_b` (r, out). The
layer computes x W + (alpha / r) (dropout(x) A) B. Model code does not contain LoRA: a Flax
interceptor adds the second term to every linear layer that has the two matrices.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from data_pipelines.errors import ConfigError
from m3djax.contracts.task import Batch, Task
from m3djax.contracts.terms import Loss
from m3djax.mesh.sharding import gather
from m3djax.params import Params, flatten, unflatten

A, B = "lora_a", "lora_b"
_SALT = "lora_salt"
DECODER = r"llm/.*block/(attention|mlp)/\w+"
"""Regex for all linear layers in the blocks of a language model, as in M3D-LaMed's PEFT config."""


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Settings of low-rank adapters: `Experiment.adapters`.

    If `Experiment.trainable` is a pattern such as `.*lora_[ab]`, the base parameters have neither
    gradients nor moments. Evaluators and `ask` use merged parameters.

    Attributes:
      rank: number of columns of A.
      alpha: numerator of the scale, which is alpha / rank.
      dropout: dropout rate of the adapter's inputs in training.
      targets: regex for the full paths of the linear layers to adapt; a path starts with the
        component.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.05
    targets: str = DECODER

    def __post_init__(self) -> None:
        """Raises ConfigError for values out of range."""
        if self.rank < 1 or not 0 <= self.dropout < 1:
            raise ConfigError(
                f"rank={self.rank} must be at least 1, and dropout={self.dropout} must lie in 0..1."
            )

    @property
    def scale(self) -> float:
        """Returns the factor on the outputs of the adapters."""
        return self.alpha / self.rank

    def init(self, rng: Key[Array, ""], params: Params) -> Params:
        """Returns the parameters with fresh adapters beside the kernels of the targets.

        A is random and B is zero, so fresh adapters change no output.

        Raises:
          ConfigError: `targets` matches no linear layer.
        """
        flat = flatten(params)
        for layer in self.layers(flat):
            *stack, wide, out = flat[f"{layer}/kernel"].shape
            key = jax.random.fold_in(rng, zlib.crc32(layer.encode()) & 0x7FFFFFFF)
            # PEFT initialises A as torch initialises linear layers.
            bound = wide**-0.5
            shape = (*stack, wide, self.rank)
            flat[f"{layer}/{A}"] = jax.random.uniform(key, shape, jnp.float32, -bound, bound)
            flat[f"{layer}/{B}"] = jnp.zeros((*stack, self.rank, out))
        return unflatten(flat)

    def layers(self, flat: Mapping[str, Any]) -> list[str]:
        """Returns the paths of the layers to adapt.

        Raises:
          ConfigError: `targets` matches no linear layer.
        """
        kernels = (path.removesuffix("/kernel") for path in flat if path.endswith("/kernel"))
        found = [layer for layer in kernels if re.fullmatch(self.targets, layer)]
        if not found:
            raise ConfigError(
                f"adapters: targets={self.targets!r} match no linear layer of this task. "
                "Cure: a regex that matches the whole path of a layer."
            )
        return found

    def merged(self, params: Params) -> Params:
        """Returns the parameters without adapters. Each adapted kernel is W + (alpha / r) A B."""
        flat = flatten(params)
        for path in [path for path in flat if path.endswith(f"/{A}")]:
            layer = path.removesuffix(f"/{A}")
            a, b = flat.pop(f"{layer}/{A}"), flat.pop(f"{layer}/{B}")
            kernel = flat[f"{layer}/kernel"]
            update = self.scale * jnp.matmul(a, b, precision="highest")
            flat[f"{layer}/kernel"] = (kernel.astype(jnp.float32) + update).astype(kernel.dtype)
        return unflatten(flat)


@dataclasses.dataclass(frozen=True)
class Adapted:
    """A task with adapters, as training uses it.

    Attributes:
      task: the task; its code does not contain adapters.
      adapters: settings of the adapters.
    """

    task: Task
    adapters: LoRA

    def init(self, rng: Key[Array, ""], batch: Batch) -> Params:
        """Returns the task's fresh parameters with fresh adapters."""
        task_key, adapters_key = jax.random.split(rng)
        return self.adapters.init(adapters_key, self.task.init(task_key, batch))

    def loss(self, params: Params, batch: Batch, keys: Key[Array, " b"], *, train: bool) -> Loss:
        """Returns the loss of the task with adapters; see `Task.loss`."""
        dropout = self.adapters.dropout if train else 0.0
        if dropout:
            params = _salted(params)
        with applied(self.adapters.scale, dropout, keys):
            return self.task.loss(params, batch, keys, train=train)


@contextlib.contextmanager
def applied(
    scale: float, dropout: float = 0.0, keys: Key[Array, " b"] | None = None
) -> Iterator[None]:
    """Applies the adapters of linear layers inside the `with` block.

    Args:
      scale: alpha / rank.
      dropout: dropout rate of the adapters' inputs; needs the numbers that `_salted` adds.
      keys: one key per sample, for dropout.
    """

    def intercept(
        call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        out = call(*args, **kwargs)
        layer = context.module
        if context.method_name != "__call__" or not isinstance(layer, nn.Dense):
            return out
        if not layer.has_variable("params", A):
            return out
        x = args[0].astype(out.dtype)
        if dropout:
            x = _drop(x, dropout, keys, layer.get_variable("params", _SALT))
        a, b = (
            gather(layer, name, layer.get_variable("params", name).astype(x.dtype))
            for name in (A, B)
        )
        return out + scale * _low_rank(x, a, b)

    with nn.intercept_methods(intercept):
        yield


@jax.custom_vjp
def _low_rank(
    x: Float[Array, "*b i"], a: Float[Array, "i r"], b: Float[Array, "r o"]
) -> Float[Array, "*b o"]:
    """Returns (x a) b. Its backward pass transposes only the low-rank matrices.

    The backward pass that JAX derives would transpose x and the cotangent. On CPUs this extends to
    the operations that produce them.
    """
    return (x @ a) @ b


def _low_rank_forward(x: Array, a: Array, b: Array) -> tuple[Array, tuple[Array, ...]]:
    narrow = x @ a
    return narrow @ b, (x, narrow, a, b)


def _low_rank_backward(saved: tuple[Array, ...], cotangent: Array) -> tuple[Array, Array, Array]:
    x, narrow, a, b = saved
    back = cotangent @ b.T
    return back @ a.T, _over_tokens(back, x).T, _over_tokens(narrow, cotangent)


def _over_tokens(x: Float[Array, "*b i"], y: Float[Array, "*b o"]) -> Float[Array, "i o"]:
    tokens = tuple(range(x.ndim - 1))
    return jax.lax.dot_general(x, y, ((tokens, tokens), ((), ())))


_low_rank.defvjp(_low_rank_forward, _low_rank_backward)


def _salted(params: Params) -> Params:
    """Returns the parameters with a number beside each adapter, for the keys of dropout.

    A stack has one number per layer. A scan slices the numbers together with the parameters, so
    that each layer of the stack drops different inputs.
    """
    flat: dict[str, Any] = flatten(params)
    for path in [path for path in flat if path.endswith(f"/{A}")]:
        layer = path.removesuffix(f"/{A}")
        stack = flat[path].shape[:-2]
        numbers = jnp.arange(stack[0] if stack else 1, dtype=jnp.uint32)
        numbers = numbers + jnp.uint32(zlib.crc32(layer.encode()))
        flat[f"{layer}/{_SALT}"] = numbers if stack else numbers[0]
    return unflatten(flat)


def _drop(
    x: Float[Array, "b ... c"], share: float, keys: Key[Array, " b"] | None, salt: Array
) -> Float[Array, "b ... c"]:
    """Drops inputs of the adapter.

    A sample may have several rows: row i belongs to sample i // (rows per sample).
    """
    if keys is None or len(x) % len(keys):
        raise ConfigError(
            f"a layer with LoRA dropout gets {len(x)} rows for a batch of "
            f"{0 if keys is None else len(keys)}: each sample must have the same number of rows. "
            "Cure: dropout=0, or targets whose rows are a multiple of the batch."
        )

    def one(key: Array, row: Array) -> Array:
        kept = jax.random.bernoulli(jax.random.fold_in(key, salt), 1 - share, row.shape)
        return jnp.where(kept, row / (1 - share), 0)

    samples = x.reshape(len(keys), -1, *x.shape[2:])
    return jax.vmap(one)(keys, samples).reshape(x.shape)
