"""The plans in docs/plans: fresh, and saying what the configs' docstrings claim."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from configs.plans import PLANS
from m3djax.plan import shipped

ROOT = Path(__file__).parents[2]
KEPT = shipped.read(ROOT / shipped.FOLDER)


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
