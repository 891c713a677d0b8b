"""Benchmark of generation with SmolLM2-135M against transformers in torch.

    python benchmarks/generate.py [--json] [--rounds 2]

All sides have the same real weights. They run in turns, each time in a new process. "Read" is the
time from a prompt of 320 tokens to the first new token. "Write" is the speed of the next 64 tokens,
decoded greedily. Torch's bfloat16 is stopped if it takes --patience times as long as torch's
float32; the table shows this.

For our side, the table also has the memory bandwidth of a matrix-vector product on the same cores.
Each new token needs all weights once, so this bandwidth limits the speed of "write".
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import numpy as np

PROMPT, NEW, BATCHES = 320, 64, (1, 8)


def main() -> None:
    """Runs all sides and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--new", type=int, default=NEW, help="tokens to generate")
    parser.add_argument("--patience", type=float, default=2.0, help="limit of torch's bfloat16")
    parser.add_argument("--side", nargs=2, metavar=("SIDE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        side, folder = options.side
        generate = _ours(folder) if side == "ours" else _torch(folder, side)
        print(json.dumps(_measure(generate, options.new) | _bandwidth(side)))
        return
    found = _in_turns(options, _as_hugging_face())
    results = {
        "command": "python benchmarks/generate.py",
        "machine": common.machine("jax", "flax", "torch", "transformers"),
        "prompt": PROMPT,
        "new": options.new,
        **found,
    }
    common.show(results, options.json, _rows(results))


def _in_turns(options: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Runs each side once per round; returns medians over the rounds."""
    runs, without = common.in_turns(
        __file__,
        lambda side: ("--new", str(options.new), "--side", side, folder),
        options.rounds,
        options.patience,
    )
    sides = {
        side: {key: common.middle([run[key] for run in done]) for key in done[0]}
        for side, done in runs.items()
    }
    return {"sides": sides, "without": without}


def _measure(generate: Callable[[int, int], Any], new: int) -> dict[str, float]:
    """Measures seconds to the first token, tokens per second after it, and peak memory."""
    found = {}
    for batch in BATCHES:
        generate(batch, 1), generate(batch, new + 1)  # compiled, caches warm
        first, whole = (
            min(_seconds(lambda n=n, b=batch: generate(b, n)) for _ in range(2))
            for n in (1, new + 1)
        )
        found[f"read {PROMPT} tokens, batch {batch}, s"] = first
        found[f"write, batch {batch}, tokens/s"] = new * batch / (whole - first)
    return found | {"peak, MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def _ours(folder: str) -> Callable[[int, int], Any]:
    from m3djax import cli
    from m3djax.convert import pretrained
    from m3djax.generate.generator import Generator
    from m3djax.generate.sampling import Sampling

    cli.set_up_jax()
    loaded = pretrained.load(folder)
    generator = Generator(loaded.model, loaded.params["llm"])
    del loaded
    return lambda batch, new: generator(_prompts(batch), Sampling(new))


def _torch(folder: str, side: str) -> Callable[[int, int], Any]:
    import torch
    from transformers import AutoModelForCausalLM

    dtype = getattr(torch, side.split()[1])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()

    def generate(batch: int, new: int) -> Any:
        ids = torch.tensor(_prompts(batch))
        with torch.inference_mode():
            return model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=new,
                min_new_tokens=new,
                pad_token_id=2,
            )

    return generate


def _bandwidth(side: str) -> dict[str, float]:
    """Measures the GB/s of a matrix-vector product that reads 0.5 GB, on our side only."""
    if side != "ours":
        return {}
    import jax
    import jax.numpy as jnp

    numbers = jnp.ones((2**27,), jnp.float32)
    matrix = numbers.reshape(2**15, -1)
    vector = jnp.ones(matrix.shape[1])
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(matrix, vector))
    best = min(_seconds(lambda: jax.block_until_ready(product(matrix, vector))) for _ in range(5))
    return {"memory, GB/s": numbers.nbytes / best / 1e9}


def _as_hugging_face() -> str:
    """Writes the sample model as float32 safetensors into the cache; returns its folder."""
    from data_pipelines import fetch
    from m3djax.convert import pretrained

    folder = Path(fetch.cache_dir()) / "smollm2-float32"
    if not (folder / "config.json").exists():
        pretrained.save(folder, pretrained.load(fetch.sample_llm()))
    return str(folder)


def _prompts(batch: int) -> list[list[int]]:
    return np.random.default_rng(0).integers(20, 49000, (batch, PROMPT)).tolist()


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _rows(results: dict[str, Any]) -> list[list[str]]:
    sides, slow = results["sides"], results["without"]
    rows = [["", *common.SIDES]]
    for key in sides["ours"]:
        values = [
            slow.get(side) or (f"{found[key]['median']:.4g}" if key in found else "")
            for side in common.SIDES
            for found in [sides.get(side, {})]
        ]
        rows.append([key, *values])
    return rows


if __name__ == "__main__":
    sys.exit(main())
