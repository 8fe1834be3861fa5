"""The two metrics straight from cluster files, without a run: `raypipe calign` and `raypipe colap`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from raypipe.errors import GridError

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def _official(official: bool, thresholds: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """The thresholds: the official semantics have no defaults."""
    missing = [name for name, value in thresholds.items() if value is None]
    if official and missing:
        raise GridError(
            f"--official: give --{', --'.join(name.replace('_', '-') for name in missing)}; these semantics have no defaults"
        )
    return {name: defaults[name] if value is None else value for name, value in thresholds.items()} | {
        "official": official
    }


def calign(
    source: Annotated[Path, typer.Argument(metavar="SRC.txt", help="Cluster file of the source language.")],
    target: Annotated[Path, typer.Argument(metavar="TGT.txt", help="Cluster file of the target language.")],
    dictionary: Annotated[Path, typer.Argument(metavar="DICT", help="Dictionary, arrow or MUSE pairs.")],
    theta: Annotated[str | None, typer.Option(help="Least share of types with a translation. Default: 0.8")] = None,
    translations: Annotated[int | None, typer.Option(help="Translations kept per word. Default: 10")] = None,
    min_types: Annotated[int | None, typer.Option(help="Least types of a source concept. Default: 5")] = None,
    size_ratio: Annotated[str | None, typer.Option(help="Least ratio of type counts; 0 = off. Default: 0.6")] = None,
    official: Annotated[
        bool, typer.Option("--official", help="Semantics of the published scripts; needs every threshold.")
    ] = False,
    as_json: Json = False,
) -> None:
    """CALIGN straight from two five-field cluster files (`word|||occ|||sent|||tok|||cluster`) and a dictionary.

    Example: `raypipe calign en.txt de.txt en-de.dict --theta 0.8 --json`
    """
    from raypipe.interop.clusterfiles import read_clusters
    from raypipe.interop.dictionaries import read_dictionary
    from raypipe.science import calign as science

    asked = {"theta": theta, "translations": translations, "min_types": min_types, "size_ratio": size_ratio}
    defaults = {"theta": "0.8", "translations": 10, "min_types": 5, "size_ratio": "0.6"}
    settings = _official(official, asked, defaults)
    first, second = (read_clusters(path, official=official) for path in (source, target))
    words = read_dictionary(dictionary, semantics="official" if official else "default").ranked()
    score = science.calign((first.words, first.concepts), (second.words, second.concepts), words, **settings)
    _print_score(score.to_json(), as_json)


def colap(
    clusters: Annotated[Path, typer.Argument(metavar="CLUSTERS.txt", help="Cluster file of the joint scope.")],
    boundary: Annotated[int, typer.Option(metavar="LAST", help="Last sentence number of language 1.")],
    theta: Annotated[
        str | None, typer.Option(help="Least share of points per language; a percentage with --official. Default: 0.3")
    ] = None,
    min_types: Annotated[int | None, typer.Option(help="Least types of a concept. Default: 1")] = None,
    official: Annotated[
        bool, typer.Option("--official", help="Semantics of the published scripts; needs --theta, in percent.")
    ] = False,
    as_json: Json = False,
) -> None:
    """COLAP straight from a five-field cluster file of two languages.

    Example: `raypipe colap en-de.txt --boundary 999 --theta 0.3 --json`
    """
    from raypipe.interop.clusterfiles import read_clusters
    from raypipe.science import colap as science

    settings = _official(official, {"theta": theta}, {"theta": "0.3"})
    points = read_clusters(clusters, official=official)
    languages = ["1" if sentence <= boundary else "2" for sentence in points.sentences.tolist()]
    for language in ("1", "2"):
        if language not in languages:
            last = max(points.sentences.tolist(), default=-1)
            raise GridError(
                f"--boundary {boundary}: no point of language {language}; {clusters} holds sentences up to {last}, "
                "give the last one of language 1"
            )
    score = science.colap(
        points.words,
        points.concepts,
        languages,
        min_types=1 if min_types is None else min_types,
        scope=["1", "2"],
        **settings,
    )
    _print_score(score.to_json(), as_json)


def _print_score(score: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(score, ensure_ascii=False))
        return
    for name, value in score.items():
        shown = len(value) if isinstance(value, list) else "null" if value is None else value
        typer.echo(f"{name}: {shown}")
