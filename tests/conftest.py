"""Fixtures for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import tiny_world

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The shared research data; tests that need it carry the marker `shared`."""
    place = Path(os.environ.get("RAYPIPE_SHARED", Path(__file__).parents[2] / "shared"))
    if not (place / "data").is_dir():
        pytest.skip("shared research data is absent (set RAYPIPE_SHARED)")
    return place


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> tiny_world.World:
    """A tiny corpus in three languages, dictionaries, and a random model with two checkpoints."""
    return tiny_world.build(tmp_path_factory.mktemp("world"))
