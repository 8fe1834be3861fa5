"""The two metrics straight from cluster files, without a run: `raypipe calign` and `raypipe colap`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raypipe.cli_output import Json
from raypipe.errors import GridError, InputError

if TYPE_CHECKING:
    from raypipe.interop.clusterfiles import ClusterFile
    from raypipe.interop.dictionaries import Dictionary
    from raypipe.science.calign import Calign
    from raypipe.science.thresholds import AlignThresholds

Official = Annotated[
    bool, typer.Option("--official", help="Semantics of the published scripts; needs every threshold.")
]
BadLines = Annotated[
    int, typer.Option(metavar="N", min=0, help="Malformed lines of a file to skip and list before the next one stops.")
]
Normalise = Annotated[str, typer.Option(help="none, nfc, nfkc or lower, for types and dictionary alike.")]

Result = dict[str, Any]


def _settings(thresholds: Result, defaults: Result, others: Mapping[str, tuple[Any, Any]], official: bool) -> Result:
    """Everything that was chosen; the official semantics have no default thresholds and none of the `others`.

    `thresholds` are None where not given; `others` have (value, the one that the official semantics stand for).
    """
    flags = {name: f"--{name.replace('_', '-')}" for name in (*thresholds, *others)}
    missing = [flags[name] for name, value in thresholds.items() if value is None]
    if official and missing:
        raise GridError(f"--official: give {', '.join(missing)}; these semantics have no defaults")
    given = [flags[name] for name, (value, default) in others.items() if value != default]
    if official and given:
        raise GridError(f"--official: has no {', '.join(given)}; leave it out")
    chosen = {name: defaults[name] if value is None else value for name, value in thresholds.items()}
    semantics = {"semantics": "official" if official else "default"}
    return semantics | chosen | ({} if official else {name: value for name, (value, _) in others.items()})


def calign(
    source: Annotated[Path, typer.Argument(metavar="SRC.txt", help="Cluster file of the source language.")],
    target: Annotated[Path, typer.Argument(metavar="TGT.txt", help="Cluster file of the target language.")],
    dictionary: Annotated[Path, typer.Argument(metavar="DICT", help="Dictionary, arrow or MUSE pairs.")],
    reverse: Annotated[
        Path | None, typer.Option(metavar="DICT", help="Dictionary of the other direction: scores that one too.")
    ] = None,
    theta: Annotated[str | None, typer.Option(help="Least share of types with a translation. Default: 0.8")] = None,
    translations: Annotated[int | None, typer.Option(help="Translations kept per word. Default: 10")] = None,
    min_types: Annotated[int | None, typer.Option(help="Least types of a source concept. Default: 5")] = None,
    size_ratio: Annotated[str | None, typer.Option(help="Least ratio of type counts; 0 = off. Default: 0.6")] = None,
    denominator: Annotated[
        str, typer.Option(help="all types of a concept, or those covered by the dictionary.")
    ] = "all",
    nbest_order: Annotated[
        str, typer.Option(help="Rank of translations: probability, or file (order).")
    ] = "probability",
    multiword: Annotated[
        str, typer.Option(help="Entries of several words: drop, or keep (they take places).")
    ] = "drop",
    normalise: Normalise = "none",
    official: Official = False,
    max_bad_lines: BadLines = 0,
    as_json: Json = False,
) -> None:
    """CALIGN straight from two five-field cluster files (`word|||occ|||sent|||tok|||cluster`) and a dictionary.

    Example: `raypipe calign en.txt de.txt en-de.dict --theta 0.8 --json`
    """
    from raypipe.interop.dictionaries import read_dictionary
    from raypipe.science.calign import mutual
    from raypipe.science.occurrences import normalise as form
    from raypipe.science.thresholds import AlignThresholds

    asked = {"theta": theta, "translations": translations, "min_types": min_types, "size_ratio": size_ratio}
    others = {"denominator": (denominator, "all"), "nbest_order": (nbest_order, "probability")}
    others |= {"multiword": (multiword, "drop"), "normalise": (normalise, "none")}
    settings = _settings(
        asked, {"theta": "0.8", "translations": 10, "min_types": 5, "size_ratio": "0.6"}, others, official
    )
    thresholds = AlignThresholds(**{name: settings[name] for name in asked}, official=official, denominator=denominator)
    first, second = (_read(file, official, max_bad_lines, normalise) for file in (source, target))
    read = partial(
        read_dictionary,
        nbest_order=nbest_order,
        multiword=multiword,
        semantics=settings["semantics"],
        normalise=partial(form, how=normalise),
        max_bad_lines=max_bad_lines,
    )
    found, forward = _direction(first, second, read(dictionary), thresholds)
    if reverse is not None:
        back, backward = _direction(second, first, read(reverse), thresholds)
        found |= {"mutual": mutual(forward, backward), "reverse": back}
    _print_score(found | {"files": [_counts(first), _counts(second)], "settings": settings}, as_json)


def _direction(
    source: ClusterFile, target: ClusterFile, dictionary: Dictionary, thresholds: AlignThresholds
) -> tuple[Result, Calign]:
    """Counts, scores, and every source concept with its best and its qualifying targets."""
    from raypipe.science.calign import Cooccurrence
    from raypipe.science.calign_concepts import source_concepts

    sides = (source.words, source.concepts), (target.words, target.concepts)
    tables = Cooccurrence(*sides, dictionary.ranked(), [thresholds.translations])
    score = tables.evaluate(thresholds, rows=True)
    found = score.to_json() | {"occurrence_coverage": score.occurrence_coverage}
    found["reason"] = "no_concepts" if not score.concepts else "" if score.coverage else "no_coverage"
    of_concepts = source_concepts(tables, score, thresholds)
    found["source_concepts"] = [c._asdict() | {"targets": [row._asdict() for row in c.targets]} for c in of_concepts]
    found |= {name: getattr(dictionary, name) for name in ("dropped_multiword", "dropped_duplicates")}
    return found | {"bad_lines": _listed(dictionary.bad_lines)}, score


def _read(file: Path, official: bool, max_bad_lines: int, normalise: str) -> ClusterFile:
    from raypipe.interop.clusterfiles import read_clusters
    from raypipe.science.occurrences import normalise as form

    found = read_clusters(file, official=official, max_bad_lines=max_bad_lines)
    return replace(found, words=[form(word, normalise) for word in found.words])


def _counts(file: ClusterFile) -> Result:
    """What was read of a cluster file, and what was not."""
    beside = {name: getattr(file, name) for name in ("blank_lines", "merged")}
    return {"points": len(file.words), **beside, "bad_lines": _listed(file.bad_lines)}


def _listed(bad_lines: tuple[str, ...]) -> list[str]:
    """The malformed lines that were skipped, also said aloud."""
    for line in bad_lines:
        typer.echo(f"skipped: {line}", err=True)
    return list(bad_lines)


def colap(
    clusters: Annotated[Path, typer.Argument(metavar="CLUSTERS.txt", help="Cluster file of the joint scope.")],
    boundary: Annotated[
        int | None,
        typer.Option(metavar="LAST", help="Last sentence number of language 1; by default CLUSTERS.txt.json says."),
    ] = None,
    theta: Annotated[
        str | None, typer.Option(help="Least share of points per language; a percentage with --official. Default: 0.3")
    ] = None,
    min_types: Annotated[int, typer.Option(help="Least types of a concept.")] = 1,
    rule: Annotated[str, typer.Option(help="all languages must reach theta, or at_least:M of them.")] = "all",
    count: Annotated[str, typer.Option(help="What shares are made of: tokens (points), or types.")] = "tokens",
    balance: Annotated[str, typer.Option(help="none, or reweight by the languages' counts.")] = "none",
    normalise: Normalise = "none",
    official: Official = False,
    max_bad_lines: BadLines = 0,
    as_json: Json = False,
) -> None:
    """COLAP straight from a five-field cluster file of several languages.

    Example: `raypipe colap en-de.txt --boundary 999 --theta 0.3 --json`
    """
    from raypipe.interop.clusterfiles import read_first_sentences
    from raypipe.science import colap as science
    from raypipe.science.thresholds import exact

    others = {"min_types": (min_types, 1), "rule": (rule, "all"), "count": (count, "tokens")}
    others |= {"balance": (balance, "none")}
    settings = _settings({"theta": theta}, {"theta": "0.3"}, others | {"normalise": (normalise, "none")}, official)
    points = _read(clusters, official, max_bad_lines, normalise)
    side = Path(f"{clusters}.json")
    first = read_first_sentences(side) if side.is_file() else {}
    languages, scope = _languages(clusters, points, boundary, first)
    asked = {"theta": settings["theta"], "official": official} | {name: value for name, (value, _) in others.items()}
    score = science.colap(points.words, points.concepts, languages, scope=scope, **asked)
    found = score.to_json() | {"colap_eligible": score.colap_eligible}
    for n, (eligible, overlapping) in score.beside.items():
        found |= {f"eligible_{n}": eligible, f"overlapping_{n}": overlapping}
    found["reason"] = "" if score.concepts else "no_concepts"
    if official and exact("theta", settings["theta"]) < 1:
        found["reason"] = f"PERCENT_SCALE: theta {theta} is a percentage here; 30 means a share of 0.3"
    if boundary is not None and sorted(first.values())[1:2] == [boundary]:
        off = f"OFF_BY_ONE: sentence {boundary} is the first of language 2; give --boundary {boundary - 1}"
        found["reason"] = "; ".join(filter(None, (found["reason"], off)))
    found["points"] = {language: languages.count(language) for language in scope}
    found["shares"] = [row._asdict() for row in score.rows]
    _print_score(found | {"files": [_counts(points)], "settings": settings}, as_json)


def _languages(
    clusters: Path, points: ClusterFile, boundary: int | None, first: dict[str, int]
) -> tuple[list[str], list[str]]:
    """The language of each point, and the languages of the scope: of the side file, or `1` and `2` by the boundary."""
    from raypipe.interop.clusterfiles import languages_of

    if boundary is None:
        if not first:
            beside = f"{clusters.name}.json"
            raise GridError(f"{clusters}: no {beside} beside it; give --boundary, the last sentence of language 1")
        return languages_of(points.sentences, first), sorted(first)
    if not points.words:
        raise InputError(f"{clusters}: holds no point; expected at least one of each language")
    languages = ["1" if sentence <= boundary else "2" for sentence in points.sentences.tolist()]
    for language in ("1", "2"):
        if language not in languages:
            last = max(points.sentences.tolist())
            raise GridError(
                f"--boundary {boundary}: no point of language {language}; {clusters} holds sentences up to {last}, "
                "give the last one of language 1"
            )
    return languages, ["1", "2"]


def _print_score(score: Result, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(score, ensure_ascii=False))
        return
    for name, value in score.items():
        if isinstance(value, dict):
            typer.echo(f"{name}: " + ", ".join(f"{key} {_text(part)}" for key, part in value.items()))
        else:
            typer.echo(f"{name}: {_text(value)}")


def _text(value: Any) -> str:
    return str(len(value)) if isinstance(value, list) else "null" if value is None else str(value)
