"""What a grid means on this machine: checkpoints, layers, files and their fingerprints, found before anything runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raypipe import toy
from raypipe.errors import GridError, InputError
from raypipe.grid import Grid, Model
from raypipe.models.locate import Checkpoint, ModelFacts, checkpoints, facts, fingerprint
from raypipe.rundir import digest, file_digest

Direction = tuple[str, str]


@dataclass(frozen=True)
class Plan:
    """A grid with everything that it names found.

    Attributes:
        grid: The grid as given.
        checkpoints: Every checkpoint, in grid order.
        facts: Per model name, its size.
        layers: Per (model, component), the layer ids to read.
        weights: Per (model, revision), the fingerprint of weights, configuration and tokenizer.
        corpus: Per language, the fingerprint of its text.
        lexicon: Per direction, (file, inverted): the file of the direction, of the other one, or None where neither is there.
    """

    grid: Grid
    checkpoints: tuple[Checkpoint, ...]
    facts: dict[str, ModelFacts]
    layers: dict[tuple[str, str], tuple[int, ...]]
    weights: dict[tuple[str, str], str]
    corpus: dict[str, str]
    lexicon: dict[Direction, tuple[Path, bool] | None]

    @property
    def variant(self) -> str:
        """Short name of the grid fields that change states without being an axis."""
        words, states = self.grid.words, self.grid.states
        names: list[str] = [words.pooling] if words.pooling != "last" else []
        names += ["predict"] if states.decoder == "predict" else []
        names += ["empty"] if states.source == "empty" else []
        names += [] if states.final_norm else ["raw"]
        return "v-" + ("-".join(names) or "default")

    def fields(self, *names: str) -> dict[str, Any]:
        """Dotted grid fields with their values, for a cell's fingerprint."""
        plain = self.grid.to_dict()
        found = {}
        for name in names:
            value: Any = plain
            for part in name.split("."):
                value = value[part]
            found[name] = value
        return found

    def cells_of_models(self) -> list[tuple[Checkpoint, str]]:
        """Every (checkpoint, component), in grid order."""
        return [
            (c, part)
            for c in self.checkpoints
            for part in self.facts[c.model].components
            if (c.model, part) in self.layers
        ]


def make_plan(grid: Grid) -> Plan:
    """Finds everything that the grid names.

    Raises:
        ModelError: A model or revision is missing.
        InputError: A corpus file is missing, or the languages differ in length.
        GridError: A layer is outside a model.
    """
    found: list[Checkpoint] = []
    sizes: dict[str, ModelFacts] = {}
    layers: dict[tuple[str, str], tuple[int, ...]] = {}
    weights: dict[tuple[str, str], str] = {}
    for model in grid.models:
        of_model = _checkpoints(model)
        found += of_model
        sizes[model.name] = facts(of_model[-1])
        for part in _components(model, sizes[model.name]):
            layers[model.name, part] = grid.layer_ids(sizes[model.name].layers_of[part], model.name)
        weights |= {(c.model, c.revision): fingerprint(c) for c in of_model}
    return Plan(grid, tuple(found), sizes, layers, weights, _corpus(grid), _lexicon(grid))


def _components(model: Model, size: ModelFacts) -> tuple[str, ...]:
    for part in model.components or ():
        if part not in size.components:
            raise GridError(
                f"models.{model.name}.components: {size.model_type} has no {part}; expected {', '.join(size.components)}"
            )
    return model.components or size.components


def _checkpoints(model: Model) -> list[Checkpoint]:
    return checkpoints(model.name, toy.resolve(model.path), model.revisions)


def corpus_file(grid: Grid, language: str) -> Path:
    """The corpus file of a language (the same one for all where the path names no {lang})."""
    return Path(toy.resolve(grid.corpus.path).replace("{lang}", language))


def _corpus(grid: Grid) -> dict[str, str]:
    """Fingerprints of the texts; a language's own file is checked for its length here, before anything is written."""
    if grid.corpus.format == "datasets":
        files = sorted(file for file in Path(grid.corpus.path).rglob("*") if file.is_file())  # none of a Hub data set
        named = [grid.corpus.path, grid.corpus.config, grid.corpus.split, *map(file_digest, files)]
        return dict.fromkeys(grid.languages, digest(named))
    count = {"text": count_lines, "parquet": lambda path: open_parquet(path).metadata.num_rows, "tsv": count_lines}
    prints, lines = {}, {}
    for language in grid.languages:
        path = corpus_file(grid, language)
        if not path.is_file():
            raise InputError(f"{path}: no such file for language {language}; check corpus.path and languages")
        prints[language] = file_digest(path)
        lines[language] = count[grid.corpus.format](path)
        if not lines[language]:
            raise InputError(f"{path}: is empty; expected one sentence per line")
    if len(set(lines.values())) > 1:
        shown = ", ".join(f"{language} {n}" for language, n in lines.items())
        raise InputError(
            f"{grid.corpus.path}: the languages differ in lines ({shown}); line i must say the same in every file"
        )
    return prints


def open_parquet(path: Path) -> pq.ParquetFile:
    """Opens a Parquet file of the user's.

    Raises:
        InputError: It is none.
    """
    try:
        return pq.ParquetFile(path)
    except pa.ArrowInvalid:
        raise InputError(f"{path}: not a Parquet file; write one with a column text, or set corpus.format") from None


def count_lines(path: Path) -> int:
    """Lines of a text file, ended by LF; a last line without LF counts."""
    lines, last = 0, b"\n"
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            lines += block.count(b"\n")
            last = block[-1:]
    return lines + (last != b"\n")


def _lexicon(grid: Grid) -> dict[Direction, tuple[Path, bool] | None]:
    if grid.lexicon.path is None:
        return {}
    pattern = toy.resolve(grid.lexicon.path)
    found: dict[Direction, tuple[Path, bool] | None] = {}
    for source, target in grid.directions():
        own, other = (
            Path(pattern.replace("{source}", s).replace("{target}", t)) for s, t in ((source, target), (target, source))
        )
        found[source, target] = (own, False) if own.is_file() else (other, True) if other.is_file() else None
    if not any(found.values()):
        raise InputError(f"{grid.lexicon.path}: no file for any of the pairs; check lexicon.path and pairs")
    return found
