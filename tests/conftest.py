"""Fixtures that all tests share."""

from __future__ import annotations

import gc
import os

import jax
import pytest
from etils import epath

from data_pipelines import fetch
from data_pipelines.prepare import Prepare
from m3djax import cli
from tests import compiling

os.environ["XLA_FLAGS"] = f"{compiling.XLA_FLAGS} {os.environ.get('XLA_FLAGS', '')}"
# Set before the backend starts: every test has 8 simulated devices.
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_platforms", "cpu")  # libtpu, where installed, is for compiling plans only
cli.set_up_jax()
# The CPU backend has read the flags now. The compiler of plans ends the process at one of them.
jax.devices()
del os.environ["XLA_FLAGS"]
# Traces make many long-lived objects, so the garbage collector runs less often.
gc.set_threshold(50_000, 20, 100)


LONG = ("faults", "multiprocess", "saved", "sharding")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs folders with few, long tests first, so that all workers end together."""
    items.sort(key=lambda item: item.path.parent.name not in LONG)


@pytest.fixture(scope="session")
def sample_scans() -> epath.Path:
    """The folder of real sample scans; downloaded once unless $M3DJAX_SAMPLE_SCANS names it."""
    named = os.environ.get("M3DJAX_SAMPLE_SCANS")
    return epath.Path(named) if named else fetch.sample_scans()


@pytest.fixture(scope="session")
def sample_text_encoder() -> epath.Path:
    """The folder of real MiniLM weights; downloaded once."""
    return fetch.sample_text_encoder()


@pytest.fixture(scope="session")
def sample_llm() -> epath.Path:
    """The file of real SmolLM2 weights; downloaded once."""
    return fetch.sample_llm()


@pytest.fixture(scope="session")
def prepared(sample_scans: epath.Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The prepared sample dataset's folder."""
    out = tmp_path_factory.mktemp("prepared") / "sample_ct"
    Prepare("sample_ct", source=str(sample_scans), out=str(out), workers=0).prepare()
    return str(out)
