"""Fixtures for all tests."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import tiny_world
from hypothesis import HealthCheck, settings

from raypipe import cli

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
settings.register_profile("noisy-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("noisy-machine")


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


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """What the command line says at the end; nothing but progress may stand before it."""
        assert "Traceback" not in self.err
        before, _, message = self.err.partition("raypipe: ")
        assert not before or before.endswith("\n")
        return message.removesuffix("\n")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Done]]:
    """Runs the command `raypipe` in this process, from its entry point."""

    def call(*words: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["raypipe", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        code = end.value.code
        return Done(code if isinstance(code, int) else 0, *capsys.readouterr())

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield call
    for number, handler in before.items():
        signal.signal(number, handler)
