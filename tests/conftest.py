"""Fixtures that all tests share."""

from __future__ import annotations

import os

import pytest
from etils import epath

from data_pipelines import fetch


@pytest.fixture(scope="session")
def sample_scans() -> epath.Path:
    """The folder of real sample scans; downloaded once unless $M3DJAX_SAMPLE_SCANS names it."""
    named = os.environ.get("M3DJAX_SAMPLE_SCANS")
    return epath.Path(named) if named else fetch.sample_scans()
