"""The public surface: exactly these names, loaded only when used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import raypipe

HEAVY = "{'torch', 'ray', 'transformers', 'numba', 'pandas', 'altair', 'faiss', 'datasets'}"


def test_all_is_exact_and_every_name_is_there() -> None:
    assert raypipe.__all__ == ["Grid", "KMeans", "Run", "calign", "colap", "open_run", "run", "word_states"]
    for name in raypipe.__all__:
        assert getattr(raypipe, name).__doc__
    with pytest.raises(AttributeError, match="module 'raypipe' has no attribute 'nothing'"):
        _ = raypipe.nothing


@pytest.mark.parametrize(
    "code",
    [
        "import raypipe",
        "import sys; sys.argv = ['raypipe', '--help']\nfrom raypipe.cli import app\napp(standalone_mode=False)",
    ],
)
def test_importing_and_help_load_nothing_heavy(code: str) -> None:
    check = f"{code}\nimport sys\nloaded = {HEAVY} & set(sys.modules)\nassert not loaded, loaded"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
