"""Plans for absent GPUs; needs JAX's CUDA plugin."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from m3djax.plan import h100

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not h100.installed(), reason="no CUDA plugin (requirements-plan-gpu.txt)")
def test_a_small_model_for_two_gpus(tmp_path: Path) -> None:
    # A process of its own: the hooks must be there before JAX starts.
    command = [sys.executable, "run.py", "plan", "configs/quickstart.py"]
    command += ["--topology", "h100:2", "--json", str(tmp_path / "plan.json")]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["mesh"] == {"data": 2, "fsdp": 1, "tensor": 1}
    assert plan["collectives"]["all-reduce"]["payload_bytes"] > 4 * plan["parameters"]["trained"]
    assert plan["bounds_with_tile_padding"] is None
    assert plan["memory"]["free_share"] > 0.9
