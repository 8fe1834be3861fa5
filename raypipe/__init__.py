"""raypipe: how well multilingual transformers share concepts across languages; CALIGN and COLAP, distributed on Ray."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raypipe.grid import Grid
    from raypipe.models.states import word_states
    from raypipe.pipeline import run
    from raypipe.results import Run, open_run
    from raypipe.science.calign import calign
    from raypipe.science.colap import colap
    from raypipe.science.kmeans import KMeans

__all__ = ["Grid", "KMeans", "Run", "calign", "colap", "open_run", "run", "word_states"]

_HOMES = {
    "Grid": "raypipe.grid",
    "KMeans": "raypipe.science.kmeans",
    "Run": "raypipe.results",
    "calign": "raypipe.science.calign",
    "colap": "raypipe.science.colap",
    "open_run": "raypipe.results",
    "run": "raypipe.pipeline",
    "word_states": "raypipe.models.states",
}


def __getattr__(name: str) -> Any:
    """Public names are imported when they are first used: `import raypipe` loads neither torch nor ray."""
    if name not in _HOMES:
        raise AttributeError(f"module 'raypipe' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
