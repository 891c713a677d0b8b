"""The plans in docs/plans are up to date and agree with the configs' docstrings."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from configs.plans import PLANS
from m3djax.plan import shipped

ROOT = Path(__file__).parents[2]
KEPT = shipped.read(ROOT / shipped.FOLDER)
LLAMA2_7B_WEIGHTS = 6_738_415_616


@pytest.fixture(autouse=True)
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def wire(name: str) -> float:
    return sum(row["wire_bytes"] for row in KEPT[name]["collectives"].values())


def test_every_plan_is_kept_and_no_other() -> None:
    assert set(KEPT) == set(PLANS)


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_belongs_to_its_config_as_it_is_now(name: str) -> None:
    assert KEPT[name]["hash"] == PLANS[name].hash(), f"{name} is stale. Cure: make plans"


def test_the_page_shows_the_plans() -> None:
    assert (ROOT / shipped.FOLDER / "README.md").read_text() == shipped.page(KEPT)


@pytest.mark.parametrize("name", PLANS)
def test_a_tenth_of_the_memory_is_free(name: str) -> None:
    memory = KEPT[name]["memory"]
    assert memory["peak"] + memory["program"] <= 0.9 * memory["limit"]


@pytest.mark.parametrize("name", PLANS)
def test_the_docstring_names_the_slice_and_the_batch(name: str) -> None:
    documentation = ast.get_docstring(ast.parse((ROOT / PLANS[name].config).read_text())) or ""
    assert KEPT[name]["topology"] in documentation
    assert f"{KEPT[name]['batch']['global']:,}".replace(",", "") in documentation.replace(",", "")


@pytest.mark.parametrize("name", [name for name in PLANS if name.startswith("e3d_gpt_mae")])
def test_masked_autoencoders_can_be_fast(name: str) -> None:
    kept = KEPT[name]
    assert kept["bounds_with_tile_padding"]["mfu"] >= 0.70
    assert kept["bounds_with_tile_padding"]["limited_by"] == "compute"
    assert "collective-permute" not in kept["collectives"]
    assert kept["loops_of_unknown_length"] == []


def test_sixteen_times_the_chips_send_hardly_more_each() -> None:
    small, large = KEPT["e3d_gpt_mae_v5e_4x4"], KEPT["e3d_gpt_mae_v5e_16x16"]
    assert (small["batch"]["global"], large["batch"]["global"]) == (256, 4096)
    assert wire("e3d_gpt_mae_v5e_16x16") <= 1.07 * wire("e3d_gpt_mae_v5e_4x4")


@pytest.mark.parametrize("name", [name for name in PLANS if name.startswith("llama")])
def test_language_models_gather_weights_and_pass_nothing_around(name: str) -> None:
    kept = KEPT[name]
    assert "collective-permute" not in kept["collectives"]
    assert kept["loops_of_unknown_length"] == []


@pytest.mark.parametrize("name", ["llama2_7b_v5e_4x4", "llama2_7b_lora_v5e_4x4"])
def test_weights_are_gathered_forward_and_backward_in_bfloat16(name: str) -> None:
    kept = KEPT[name]
    weights = LLAMA2_7B_WEIGHTS * 2 * 15 / 16  # bytes that come from the other chips
    assert kept["collectives"]["all-gather"]["wire_bytes"] == pytest.approx(2 * weights, rel=0.05)
    assert sum(kept["parameters"].values()) - LLAMA2_7B_WEIGHTS in (0, 39_976_960)


def test_adapters_cost_no_gradients_and_no_moments_of_what_is_frozen() -> None:
    lora, full = KEPT["llama2_7b_lora_v5e_4x4"], KEPT["llama2_7b_v5e_4x4"]
    assert lora["parameters"] == {"trained": 39_976_960, "frozen": LLAMA2_7B_WEIGHTS}
    # Float32 weights, two moments beside them or not; a sixteenth on each chip.
    share = 4 * LLAMA2_7B_WEIGHTS / 16
    assert full["memory"]["arguments"] == pytest.approx(3 * share, rel=0.02)
    # Beside them adapters with moments, which are too narrow to be split evenly.
    assert share < lora["memory"]["arguments"] < 1.2 * share
    tokens = 128 * 768
    for plan, each in ((full, 6), (lora, 4)):
        model = plan["flops"]["model"] * plan["devices"]
        assert 1 < model / (each * LLAMA2_7B_WEIGHTS * tokens) < 1.1  # attention comes on top


def test_a_token_reads_weights_and_cache_once() -> None:
    kept = KEPT["llama2_7b_decode_v5e_4x4"]
    cache = 2 * 32 * 16 * 4096 * (768 + 256) * 2
    floor = (2 * LLAMA2_7B_WEIGHTS + cache) / 16
    assert kept["memory"]["arguments"] == pytest.approx(floor, rel=0.02)
    assert kept["hbm"]["estimated_bytes"] < 1.1 * floor
    assert kept["bounds"]["limited_by"] == "HBM"
    # Two sums of 16 x 4096 in every block; the best of the logits is found where they are.
    assert 64 <= kept["collectives"]["all-reduce"]["count"] <= 66
    assert sum(row["wire_bytes"] for row in kept["collectives"].values()) < 20e6
