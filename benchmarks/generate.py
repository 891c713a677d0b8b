"""SmolLM2-135M: reading, writing and LoRA steps against transformers and peft in torch.

    python benchmarks/generate.py [--json] [--rounds 3]

The same real weights for all, contestants in turn, each in a process of its own. Reading is a
prompt of 320 tokens up to the first new token; writing is 64 tokens after it, greedy.
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

from common import in_process, machine, middle, show

PROMPT, NEW, BATCHES = 320, 64, (1, 8)
STEP_ROWS, STEP_LENGTH, RANK = 2, 256, 16
WRITING = ("ours", "torch float32", "torch bfloat16")
STEPS = ("ours", "torch float32")


def main() -> None:
    """Runs every contestant and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", nargs=3, metavar=("WHAT", "WHO", "FOLDER"))
    arguments = parser.parse_args()
    if arguments.child:
        what, who, folder = arguments.child
        print(json.dumps({"write": write, "step": step}[what](who, folder)))
        return
    folder = _as_hugging_face()
    results: dict[str, Any] = machine("jax", "torch", "transformers", "peft")
    for what, who in (("write", WRITING), ("step", STEPS)):
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in who}
        for _ in range(arguments.rounds):
            for name in who:
                rounds[name].append(in_process(__file__, "--child", what, name, folder))
        results[what] = {
            name: {key: middle([r[key] for r in found]) for key in found[0]}
            for name, found in rounds.items()
        }
    show(results, arguments.json, _rows(results))


def write(who: str, folder: str) -> dict[str, float]:
    """Seconds to the first token and tokens per second after it, by batch; peak memory."""
    generate = _ours(folder) if who == "ours" else _torch(folder, who)
    found = {}
    for batch in BATCHES:
        generate(batch, 1), generate(batch, NEW + 1)  # compiled, caches warm
        first, whole = (
            min(_seconds(lambda n=n, b=batch: generate(b, n)) for _ in range(3))
            for n in (1, NEW + 1)
        )
        found[f"first token, batch {batch}, s"] = first
        found[f"written, batch {batch}, tokens/s"] = NEW * batch / (whole - first)
    return found | {"peak, MiB": _peak()}


def step(who: str, folder: str) -> dict[str, float]:
    """Seconds of one LoRA step (forward, backward, AdamW) on 2 x 256 tokens; peak memory."""
    once = _our_step(folder) if who == "ours" else _torch_step(folder)
    once(), once()
    return {"step, s": min(_seconds(once) for _ in range(5)), "peak, MiB": _peak()}


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


def _torch(folder: str, who: str) -> Callable[[int, int], Any]:
    import torch
    from transformers import AutoModelForCausalLM

    dtype = getattr(torch, who.split()[1])
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


def _our_step(folder: str) -> Callable[[], Any]:
    import jax
    import jax.numpy as jnp
    import optax

    from m3djax import cli
    from m3djax.convert import pretrained
    from m3djax.lora import LoRA
    from m3djax.params import flatten, unflatten
    from m3djax.tasks.language import Language

    cli.set_up_jax()
    loaded = pretrained.load(folder)
    task = LoRA(Language(loaded.model), RANK, 2.0 * RANK, dropout=0.0)
    flat = flatten(task.adapted(jax.random.key(0), loaded.params))
    trained = {path: leaf for path, leaf in flat.items() if "lora_" in path}
    frozen = {path: leaf for path, leaf in flat.items() if path not in trained}
    ids = jnp.asarray([row[:STEP_LENGTH] for row in _prompts(STEP_ROWS)])
    spans = jnp.broadcast_to(jnp.array([[[0, STEP_LENGTH]]]), (STEP_ROWS, 1, 2))
    batch = {"token_ids": ids, "valid": jnp.ones_like(ids, bool), "spans": spans}
    keys = jax.random.split(jax.random.key(1), STEP_ROWS)
    optimizer = optax.adamw(1e-4)

    @jax.jit
    def update(trained: Any, moments: Any, frozen: Any) -> Any:
        def mean(trained: Any) -> Any:
            loss = task.loss(unflatten(trained | frozen), batch, keys, train=True)
            return loss.total / loss.weight

        loss, grads = jax.value_and_grad(mean)(trained)
        updates, moments = optimizer.update(grads, moments, trained)
        return optax.apply_updates(trained, updates), moments, loss

    state = [trained, optimizer.init(trained)]

    def once() -> None:
        *state[:], loss = update(*state, frozen)
        loss.block_until_ready()

    return once


def _torch_step(folder: str) -> Callable[[], Any]:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, lora_dropout=0.0, target_modules=names)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = get_peft_model(model, config).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-4)
    ids = torch.tensor([row[:STEP_LENGTH] for row in _prompts(STEP_ROWS)])

    def once() -> None:
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimizer.step()

    return once


def _as_hugging_face() -> str:
    """The sample model as safetensors in float32, beside its download."""
    from data_pipelines import fetch
    from m3djax.convert import pretrained

    folder = Path(fetch.cache_dir()) / "smollm2-float32"
    if not (folder / "config.json").exists():
        pretrained.save(folder, pretrained.load(fetch.sample_llm()))
    return str(folder)


def _prompts(batch: int) -> list[list[int]]:
    import numpy as np

    return np.random.default_rng(0).integers(20, 49000, (batch, PROMPT)).tolist()


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _rows(results: dict[str, Any]) -> list[list[str]]:
    rows = [["", *WRITING]]
    for what, who in (("write", WRITING), ("step", STEPS)):
        for key in results[what]["ours"]:
            values = [f"{results[what][name][key]['median']:.4g}" for name in who]
            label = f"LoRA {key}" if what == "step" else key
            rows.append([label, *values, *[""] * (len(WRITING) - len(who))])
    return rows


if __name__ == "__main__":
    sys.exit(main())
