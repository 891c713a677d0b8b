"""Shared code of benchmarks of training steps; sides run in turns, each time in a new process.

A side is "ours", "torch float32" or "torch bfloat16" (autocast). Our side is the compiled step of
`run.py train`, with AdamW, clipping and the checks for NaN. Torch's side is forward, backward,
clipping and torch's fused AdamW. Our compile cache is empty in the first round and warm in later
rounds. On processors without AVX512 or AMX, torch's bfloat16 is so slow that no step ends. So it is
stopped if it takes --patience times as long as torch's float32; the table shows this.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import common
import numpy as np


@dataclasses.dataclass(frozen=True)
class Contest:
    """A training step for both sides.

    Attributes:
      title: name of the model, for the table.
      ours: returns an `Experiment`; called in a process without torch.
      theirs: returns (modules, function without arguments that returns the loss).
    """

    title: str
    ours: Callable[[], Any]
    theirs: Callable[[], tuple[list[Any], Callable[[], Any]]]


def run_ours(experiment: Any, steps: int) -> dict[str, Any]:
    """Measures the compiled train step on a random batch that is already on the device."""
    import jax

    from m3djax.cli import set_up_jax
    from m3djax.mesh import sharding
    from m3djax.runs.state import specification, trainer_of
    from m3djax.step import compile_step
    from m3djax.training import flops
    from m3djax.training.train import to_devices

    set_up_jax()
    mesh = sharding.make_mesh((1, 1, 1), jax.devices()[:1])
    spec = specification(experiment)
    with jax.set_mesh(mesh):
        trainer = trainer_of(experiment)
        state = sharding.sharded(mesh, experiment.task, trainer.init, jax.random.key(0))
        batch = to_devices({name: random_like(leaf) for name, leaf in spec.items()}, mesh)
        step, key = compile_step(trainer, mesh), jax.random.key(1)
        begin = time.perf_counter()
        compiled = step.lower(state, batch, key).compile()
        compiling = time.perf_counter() - begin
        times, started = [], 0.0
        for number in range(steps + 1):
            begin = time.perf_counter()
            state, metrics = compiled(state, batch, key)
            jax.block_until_ready((state, metrics))
            times.append(time.perf_counter() - begin)
            started = started if number else since_start()
    return {
        "seconds": times[1:],
        "compile_seconds": compiling,
        "start_to_first_step": started,
        "flops": flops.model_flops(experiment.adapted, spec, experiment.trainable),
        "matmul_peak": matmul_peak(),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def run_theirs(
    build: Callable[[], tuple[list[Any], Callable[[], Any]]], steps: int, *, bfloat16: bool
) -> dict[str, Any]:
    """Measures forward, backward, clipping and AdamW in torch."""
    import torch

    torch.manual_seed(0)
    modules, loss = build()
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    times, started = [], 0.0
    for number in range(steps + 1):
        begin = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        times.append(time.perf_counter() - begin)
        started = started if number else since_start()
    return {
        "seconds": times[1:],
        "start_to_first_step": started,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def random_like(leaf: Any) -> np.ndarray:
    """Returns an array for a field of a batch: random integers, or ones for flags and floats."""
    rng = np.random.default_rng(0)
    if leaf.dtype == np.bool_:
        return np.ones(leaf.shape, np.bool_)
    if np.issubdtype(leaf.dtype, np.integer):
        return rng.integers(0, 1000, leaf.shape).astype(leaf.dtype)
    return np.ones(leaf.shape, leaf.dtype)


def matmul_peak() -> float:
    """Measures the best FLOP/s of a float32 matrix product of a fixed size, on all cores."""
    import jax
    import jax.numpy as jnp

    a, b = jnp.ones((2048, 3072)), jnp.ones((3072, 3072))
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(a, b))
    best = float("inf")
    for _ in range(20):
        begin = time.perf_counter()
        jax.block_until_ready(product(a, b))
        best = min(best, time.perf_counter() - begin)
    return 2 * a.shape[0] * a.shape[1] * b.shape[1] / best


def since_start() -> float:
    """Returns the seconds since this process was created."""
    import psutil

    return time.time() - psutil.Process().create_time()


def main(script: str, description: str, contests: Mapping[str, Contest], *packages: str) -> None:
    """Runs the command line of a benchmark of training steps."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of a process")
    parser.add_argument("--patience", type=float, default=2.0, help="limit of torch's bfloat16")
    parser.add_argument("--only", choices=sorted(contests), help="one contest instead of all")
    parser.add_argument("--contestant", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        name, side = options.contestant
        contest = contests[name]
        if side == "ours":
            print(json.dumps(run_ours(contest.ours(), options.steps)))
        else:
            bfloat16 = side == "torch bfloat16"
            print(json.dumps(run_theirs(contest.theirs, options.steps, bfloat16=bfloat16)))
        return
    names = [options.only] if options.only else list(contests)
    found = {name: _in_turns(script, name, options) for name in names}
    results = {
        "command": f"python benchmarks/{os.path.basename(script)}",
        "machine": common.machine("jax", "flax", "torch", *packages),
        "contests": {name: {"title": contests[name].title, **found[name]} for name in names},
    }
    common.show(results, options.json, _rows(results["contests"]))


def _in_turns(script: str, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Runs each side once per round; returns medians over all steps of all rounds."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ["M3DJAX_CACHE"] = cache
        runs, without = common.in_turns(
            script,
            lambda side: ("--steps", str(options.steps), "--contestant", name, side),
            options.rounds,
            options.patience,
        )
    seconds = {
        side: common.middle([s for run in done for s in run["seconds"]])
        for side, done in runs.items()
    }
    ours = runs["ours"]
    peak = max(run["matmul_peak"] for run in ours)
    return {
        "without": without,
        "seconds": seconds,
        "ratio": {
            side: seconds["ours"]["median"] / seconds[side]["median"]
            for side in runs
            if side != "ours"
        },
        "peak_mib": {side: max(run["peak_mib"] for run in done) for side, done in runs.items()},
        "matmul_peak": peak,
        "share_of_matmul_peak": ours[0]["flops"] / seconds["ours"]["median"] / peak,
        "compile_seconds": {
            "empty cache": ours[0]["compile_seconds"],
            "warm cache": min(run["compile_seconds"] for run in ours[1:] or ours),
        },
        "start_to_first_step": {
            "ours, empty cache": ours[0]["start_to_first_step"],
            "ours, warm cache": min(run["start_to_first_step"] for run in ours[1:] or ours),
            **{
                side: min(run["start_to_first_step"] for run in done)
                for side, done in runs.items()
                if side != "ours"
            },
        },
    }


def _rows(contests: Mapping[str, Any]) -> list[list[str]]:
    head = ["", "s a step", "ours / it", "peak MiB", "start to first step, s"]
    rows = [head]
    for name, found in contests.items():
        for side, why in found["without"].items():
            rows.append([f"{name}, {side}", why, "", "", ""])
        for side in found["seconds"]:
            ratio = found["ratio"].get(side)
            first = found["start_to_first_step"]
            start = first.get(side) or first["ours, warm cache"]
            rows.append(
                [
                    f"{name}, {side}",
                    f"{found['seconds'][side]['median']:.2f}",
                    f"{ratio:.2f}" if ratio else "",
                    f"{found['peak_mib'][side]:.0f}",
                    f"{start:.1f}",
                ]
            )
        share, peak = found["share_of_matmul_peak"], found["matmul_peak"] / 1e9
        compiling = found["compile_seconds"]
        rows.append(
            [
                f"{name}, ours: share of matmul peak ({peak:.0f} GFLOP/s)",
                f"{share:.0%}",
                "",
                "",
                f"compile {compiling['empty cache']:.1f}, cached {compiling['warm cache']:.1f}",
            ]
        )
    return rows
