"""Plans of generation: the compiled loop, a token at a time."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from m3djax.cli import main
from m3djax.convert.pretrained import shapes
from m3djax.plan import record
from m3djax.plan.targets import Decoding
from m3djax.plan.topology import Topology
from tests import tiny_llm

pytestmark = pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache")

CONFIG = """
from m3djax.plan.targets import Decoding
from tests import tiny_llm

def get_config():
    return Decoding(tiny_llm.pretrained().model.clone(dtype="bfloat16"), 4, 96, 32, (1, 2, 2))
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "config.py"
    path.write_text(CONFIG)
    return path


def test_a_token_is_what_is_planned(config: Path, capsys) -> None:
    out = str(config.with_suffix(".json"))
    arguments = ["--topology", "v5e:2x2", "--json", out, "--rows", "8"]
    assert main(["plan", str(config), *arguments]) == 0
    assert "least time of one token" in capsys.readouterr().out
    planned = json.loads(Path(out).read_text())
    model = tiny_llm.pretrained().model.clone(dtype="bfloat16")
    assert planned["step"] == "token" and planned["loops_of_unknown_length"] == []
    assert planned["batch"] == {"global": 8, "per_device": 4, "accumulate": 1}
    target = Decoding(model, 8, 96, 32, (1, 2, 2))
    assert planned["hash"] == record.config_hash(target, Topology("v5e:2x2"))
    other = Decoding(model, 8, 96, 64, (1, 2, 2))
    assert planned["hash"] != record.config_hash(other, Topology("v5e:2x2"))
    sizes = {path: math.prod(shape) for path, shape in shapes(model).items()}
    assert planned["parameters"] == {"trained": 0, "frozen": sum(sizes.values())}
    # Two products with each weight that is no norm and no row of the table, and the cache once.
    kernels = sum(size for path, size in sizes.items() if path.endswith("kernel"))
    cache = 2 * 2 * 4 * 8 * (96 + 32)  # layers x (keys, values) x heads x width x slots
    assert planned["flops"]["model"] == 8 * 2 * (kernels + cache) // 4
    assert planned["flops"]["executed"] == planned["flops"]["model"]


def test_there_is_no_batch_to_look_for(config: Path, capsys) -> None:
    assert main(["plan", str(config), "--topology", "v5e:2x2", "--fit"]) == 1
    assert "--fit finds the batch of a train step" in capsys.readouterr().err
    assert main(["plan", str(config), "--topology", "v5e:2x2", "--rows", "3"]) == 1
    assert "Cure: a multiple of 2" in capsys.readouterr().err
