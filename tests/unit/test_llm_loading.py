"""No host holds a whole model: two processes load one checkpoint, and their memory is watched."""

from __future__ import annotations

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np

from m3djax.convert import llm, pretrained, stream
from tests import tiny_llm

PROCESSES = 2


def test_each_process_needs_its_part_and_little_more(tmp_path: pathlib.Path) -> None:
    tiny = tiny_llm.pretrained(
        hidden_size=768, intermediate_size=2048, num_hidden_layers=6, vocab_size=16384
    )
    generator, flat = np.random.default_rng(0), {}
    for path, shape in pretrained.shapes(tiny.model).items():
        flat[path] = generator.standard_normal(shape, np.float32)
    stream.save(tmp_path, flat, llm.rules(tiny.model), shard_bytes=50_000_000)
    (tmp_path / "config.json").write_text(json.dumps(tiny.config.to_dict()))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "tests.unit.loading", str(tmp_path), address, str(PROCESSES)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    children = [
        subprocess.Popen([*command, str(i)], stdout=subprocess.PIPE, text=True, env=environment)
        for i in range(PROCESSES)
    ]
    try:
        said = [child.communicate(timeout=300)[0] for child in children]
    finally:
        for child in children:
            child.kill()
    found = [json.loads(text.strip().splitlines()[-1]) for text in said]
    print(found)  # shown by pytest -rP
    total = sum(leaf.nbytes for leaf in flat.values())
    largest = max(leaf.nbytes for leaf in flat.values())
    for process in found:
        assert process["total"] == total > 150e6
        assert process["own"] < 0.55 * total  # norms are whole everywhere
        # One parameter is on its way while the others are in place; the rest is the allocator's.
        assert process["peak"] < process["own"] + 1.5 * largest < 0.85 * total
    norms = sum(leaf.sum(dtype=np.float64) for path, leaf in flat.items() if "norm" in path)
    check = sum(leaf.sum(dtype=np.float64) for leaf in flat.values())
    # Every device holds the norms; of all else each number is held once.
    held = sum(process["check"] for process in found) - (2 * PROCESSES - 1) * norms
    np.testing.assert_allclose(held, check, atol=1e-2)
