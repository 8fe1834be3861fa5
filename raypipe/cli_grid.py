"""The grid argument of commands and its flags, which set fields on top of the file."""

from __future__ import annotations

import glob
import inspect
import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from raypipe.errors import GridError

GridFile = Annotated[
    str | None,
    typer.Argument(metavar="[GRID]", help="Grid file (YAML), or its URI in an object store; flags override it."),
]
FLAGS: dict[str, Any] = {
    "model": Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="NAME_OR_PATH[@REVISION]",
            help="A model of the grid file by name, or a path. Repeatable.",
        ),
    ],
    "layers": Annotated[str | None, typer.Option(help="all, 0,6,12 or every:3.")],
    "languages": Annotated[str | None, typer.Option(help="Codes, such as en,de.")],
    "pairs": Annotated[str | None, typer.Option(help="all, or en-de,en-fr.")],
    "corpus": Annotated[
        str | None, typer.Option(help="Corpus path with {lang}; .tsv and .parquet are known by their ending.")
    ],
    "lexicon": Annotated[
        str | None,
        typer.Option(help="Dictionary path with {source} and {target}; its format is told from the content."),
    ],
    "k": Annotated[str | None, typer.Option("--k", help="Concepts per scope, such as 100,300.")],
    "seeds": Annotated[str | None, typer.Option(help="Seeds, such as 0,1,2.")],
    "theta_align": Annotated[str | None, typer.Option(help="CALIGN thresholds, such as 0.5,0.8.")],
    "theta_overlap": Annotated[str | None, typer.Option(help="COLAP thresholds, such as 0.3.")],
    "workers": Annotated[int | None, typer.Option(help="Workers side by side.")],
    "set": Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Any other dotted field. Repeatable.")
    ],
}
LISTS = {
    "layers": "layers",
    "languages": "languages",
    "pairs": "pairs",
    "k": "concepts.k",
    "seeds": "concepts.seeds",
    "theta_align": "calign.theta",
    "theta_overlap": "colap.theta",
}


def grid_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the grid argument and its flags; the command gets the grid as its first argument."""
    own = list(inspect.signature(command).parameters.values())[1:]

    @wraps(command)
    def wrapped(grid: str | None = None, **options: Any) -> None:
        flags = {name: options.pop(name) for name in FLAGS}
        command(_grid(grid, flags), **options)

    first = inspect.Parameter("grid", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=GridFile)
    added = [
        inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind) for n, kind in FLAGS.items()
    ]
    hints = inspect.get_annotations(command, eval_str=True)
    keyword = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[parameter.name]) for parameter in own
    ]
    wrapped.__signature__ = inspect.Signature([first, *added, *keyword])  # type: ignore[attr-defined]
    wrapped.__annotations__ = {"grid": GridFile, **FLAGS, **{p.name: hints[p.name] for p in own}}
    return wrapped


def _grid(path: str | None, flags: dict[str, Any]) -> Any:
    from raypipe.gridfile import load_grid, setting_of

    overrides: list[tuple[str, Any]] = []
    if flags["model"]:
        overrides.append(("models", flags["model"]))
    overrides += [(field, _listed(flags[flag])) for flag, field in LISTS.items() if flags[flag] is not None]
    if flags["corpus"] is not None:
        kind = {".tsv": "tsv", ".parquet": "parquet"}.get(Path(flags["corpus"]).suffix, "text")
        overrides += [("corpus.format", kind), ("corpus.path", flags["corpus"])]
    if flags["workers"] is not None:
        overrides.append(("resources.workers", flags["workers"]))
    if flags["lexicon"] is not None:
        overrides += [("lexicon.induce", None), ("lexicon.lines", None)]
        overrides += [("lexicon.format", _lexicon_format(flags["lexicon"])), ("lexicon.path", flags["lexicon"])]
    overrides += map(setting_of, flags["set"] or [])
    return load_grid(path, overrides)


def _listed(text: str) -> Any:
    """A flag's list: all, values between commas, or every:N."""
    from raypipe.gridfile import plain_value

    if text == "all":
        return text
    if text.startswith("every:"):
        return {"every": plain_value(text.removeprefix("every:"))}
    return [plain_value(part.strip()) for part in text.split(",")]


def _lexicon_format(path: str) -> str:
    """The format of the first dictionary file that the path names."""
    from raypipe import toy
    from raypipe.interop.dictionaries import detect_format

    pattern = glob.escape(os.path.expanduser(toy.resolve(path)))
    files = sorted(glob.glob(pattern.replace("{source}", "*").replace("{target}", "*")))
    if not files:
        raise GridError(f"--lexicon {path}: no such file; expected a path with {{source}} and {{target}}")
    return detect_format(files[0])
