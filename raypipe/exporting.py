"""A run's clusterings, states and dictionaries as files of ConceptX and the released code.

OUT/grid.yaml                                                             the grid, each checkpoint by name
OUT/model=M/revision=R/…/layer=07/scope=de/k=0600/seed=0/clusters.txt     a joint scope has clusters.txt.json beside it
OUT/model=M/revision=R/…/layer=07/scope=de/{vocab,points}.npy             if asked for
OUT/lexicon/en-de.txt   OUT/mapping/en-de.json                            dictionaries; links of `words.filter: pairwise`
"""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml
from numpy.typing import NDArray

from raypipe.errors import RunError
from raypipe.interop import alignments, arrays, clusterfiles, dictionaries
from raypipe.results import Run
from raypipe.rundir import RunDir, axes_of
from raypipe.schema import arrow_schema
from raypipe.stages.plan import alignment_files, language_of
from raypipe.statefile import read_layer
from raypipe.storage import Place

LEXICON = "lexicon/{source}-{target}.txt"


def export_conceptx(run: str | Place, out: Path, points: str | None = None) -> dict[str, int]:
    """Writes every finished clustering and dictionary of a run, and returns how many files of each kind there are.

    With `points` (`float32`, or `float64`, which the released code reads) also vocab and points of each scope and layer.

    Raises:
        RunError: It is no run, holds no clustering, or the folder is not empty or cannot be written.
    """
    folder = RunDir.open(run)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise RunError(f"{out}: is not an empty folder; choose another --out")
    cells = list(folder.finished("concepts"))
    if not cells:
        raise RunError(
            f"{run}: holds no clustering yet; finish it with `raypipe run {folder.path / 'grid.yaml'} --run {run}`"
        )
    target = out.resolve()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent)
    except OSError as error:
        raise RunError(f"{out}: cannot be written ({error.strerror}); choose another --out") from None
    with temporary as place:
        whole = Path(place) / "whole"
        whole.mkdir()
        written = _write_all(folder, cells, whole, points)
        whole.replace(target)
    return written


def _write_all(folder: RunDir, cells: list[str], out: Path, points: str | None) -> dict[str, int]:
    _write_grid(folder, out)
    lines = _lines(folder, cells)
    for cell in cells:
        _write_clusters(folder, cell, out / cell / "clusters.txt", lines)
    scopes = {re.findall("^.*/scope=[^/]*", cell)[0]: cell for cell in cells} if points else {}
    for scope, cell in scopes.items():
        _write_points(folder, scope, cell, out / scope, lines, points == "float64")
    return {
        "clusterings": len(cells),
        "points": len(scopes),
        "dictionaries": _write_dictionaries(folder, out),
        "mappings": _write_mappings(folder, out),
    }


def _lines(folder: RunDir, cells: list[str]) -> int:
    """Lines of each language's text; of an imported run, which has none, as many as its points take."""
    for corpus in folder.finished("corpus"):
        return int(folder.mark_at("corpus", corpus).receipt["lines"])  # type: ignore[union-attr]
    labels = (folder.read_table(f"concepts/{cell}/labels.parquet", ["sentence"]) for cell in cells)
    return 1 + max(int(table["sentence"].to_numpy().max(initial=-1)) for table in labels)


def _write_grid(folder: RunDir, out: Path) -> None:
    """The frozen grid with the checkpoints that its revisions stand for, in their order."""
    data = Run(folder.path).grid.to_dict()
    planned = [axes_of(cell) for cell in folder.planned().get("concepts", [])]
    for model in data["models"]:
        found = dict.fromkeys(axes["revision"] for axes in planned if axes["model"] == model["name"])
        model["revisions"] = list(found)
    (out / "grid.yaml").write_text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _write_clusters(folder: RunDir, cell: str, file: Path, lines: int) -> None:
    folder.check_files("concepts", cell)
    labels = folder.read_table(f"concepts/{cell}/labels.parquet")
    file.parent.mkdir(parents=True)
    sides = axes_of(cell)["scope"].split("+")
    if len(sides) == 1:
        clusterfiles.write_clusters(file, _points(labels, first=0))
        return
    parts = {language: labels.filter(pc.equal(labels["language"], language)) for language in map(language_of, sides)}
    clusterfiles.write_joint(
        file, {language: _points(part, first=1) for language, part in parts.items()}, dict.fromkeys(parts, lines)
    )


def _points(labels: pa.Table, first: int) -> clusterfiles.ClusterFile:
    words = labels["word"].to_pylist()
    numbers = (labels[name].to_numpy() for name in ("sentence", "token", "concept"))
    return clusterfiles.ClusterFile(words, clusterfiles.occurrence_numbers(words, first), *numbers)


def _write_points(folder: RunDir, scope: str, cell: str, out: Path, lines: int, double: bool) -> None:
    """Vocab and points of one scope at one layer, with `words.common_occurrences` those of its clustering `cell`.

    Of a joint scope, sentences are counted on from language to language.
    """
    axes = axes_of(scope)
    state = scope.partition("/layer=")[0]
    sides = axes["scope"].split("+")
    tables, shards = list[pa.Table](), list[tuple[str, NDArray[np.bool_]]]()
    labels = folder.read_table(f"concepts/{cell}/labels.parquet", ["language", "sentence", "token"])
    every = not Run(folder.path).grid.words.common_occurrences
    for i, side in enumerate(sides):
        clustered = _places(labels.filter(pc.equal(labels["language"], language_of(side))))
        folder.check_files("extract", f"{state}/lang={side}")
        mark = folder.mark_at("extract", f"{state}/lang={side}")
        for name, _ in mark.receipt["shards"] if mark else ():
            table = folder.read_table(name, arrow_schema("points").names)
            kept = np.isin(_places(table), clustered) | every
            shifted = pa.array(table["sentence"].to_numpy() + i * lines, pa.int32())
            tables.append(table.set_column(1, "sentence", shifted).filter(pa.array(kept)))
            shards.append((name, kept))
    if not tables:
        raise RunError(f"{folder.path}: holds no states of {scope}; leave out --points")
    points = pa.concat_tables(tables)
    words = points["word"].to_pylist()
    numbers = clusterfiles.occurrence_numbers(words, int(len(sides) > 1))
    out.mkdir(parents=True, exist_ok=True)
    arrays.write_vocab(
        out / "vocab.npy", arrays.Vocab(words, numbers, points["sentence"].to_numpy(), points["token"].to_numpy())
    )
    states = (read_layer(folder.path / name, int(axes["layer"]))[kept] for name, kept in shards)
    arrays.write_points(out / "points.npy", states, len(words), double=double)


def _places(points: pa.Table) -> NDArray[np.int64]:
    """The place of each point in its language's text, as one number."""
    sentences, tokens = (points[name].to_numpy().astype(np.int64) for name in ("sentence", "token"))
    return np.asarray((sentences << 32) | tokens)


def _write_dictionaries(folder: RunDir, out: Path) -> int:
    """Every dictionary as arrow lines, or where one of them has no probabilities all in the style of MUSE."""
    found: dict[str, dictionaries.Dictionary] = {}
    for cell, axes in folder.finished("lexicon").items():
        entries: dict[str, list[dictionaries.Entry]] = {}
        table = folder.read_table(f"lexicon/{cell}.parquet", ["source_word", "target_word", "probability", "count"])
        for source, *entry in zip(*table.to_pydict().values(), strict=True):
            entries.setdefault(source, []).append(dictionaries.Entry(*entry))
        whole = {source: tuple(ranked) for source, ranked in entries.items()}
        found[LEXICON.format(**axes)] = dictionaries.Dictionary(whole)
    plain = any(e.probability is None for words in found.values() for ranked in words.entries.values() for e in ranked)
    for name, words in found.items():
        (out / name).parent.mkdir(exist_ok=True)
        dictionaries.write_dictionary(out / name, words, "muse" if plain else "arrow")
    return len(found)


def _write_mappings(folder: RunDir, out: Path) -> int:
    """The links of each pair as mapping JSON."""
    grid = Run(folder.path).grid
    files = alignment_files(grid)
    for pair, (file, inverted) in files.items():
        source, target = pair[::-1] if inverted else pair
        places = [f"corpus/lang={language}~{'-'.join(pair)}/sentences.parquet" for language in (source, target)]
        texts = [folder.read_table(place)["words"].to_pylist() for place in places]
        (out / "mapping").mkdir(exist_ok=True)
        links = alignments.read_pharaoh(file, *texts, form=grid.words.links).links
        alignments.write_mapping(out / f"mapping/{source}-{target}.json", links, *texts)
    return len(files)
