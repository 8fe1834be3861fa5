"""A finished (or half-finished) run, read back as tables and arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raypipe.errors import RunError
from raypipe.grid import Grid
from raypipe.gridfile import load_grid
from raypipe.rundir import RunDir
from raypipe.schema import arrow_schema
from raypipe.statefile import read_layer
from raypipe.storage import Place

_ONE = "its grid has one {} alone, so there is nothing to compare"
KINDS = {
    "words": ("extract", "points"),
    "sentences": ("sentences", "states_of_sentences"),
    "neurons": ("neurons", "states_of_sentences"),
}


class Run:
    """One run directory; RunError where it is none.

    A table raises RunError where it is not there yet, or the grid gives it nothing to hold.
    """

    def __init__(self, path: str | Place) -> None:
        self._dir = RunDir.open(path)
        self.path = self._dir.path

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def grid(self) -> Grid:
        """The grid, as it was frozen."""
        return load_grid(self.path / "grid.yaml")

    @property
    def imported(self) -> bool:
        """Whether `raypipe import` made it: it has concepts, and no text of its own."""
        planned = self._dir.planned()
        return bool(planned.get("concepts")) and not planned.get("corpus")

    @property
    def report(self) -> Place:
        """The HTML report."""
        return self.path / "report" / "index.html"

    def calign(self) -> pa.Table:
        """CALIGN per model, revision, layer, direction, k, seed and thresholds (columns: docs/tables.md)."""
        return self._scores("calign")

    def aligned(self) -> pa.Table:
        """Every aligned pair of concepts with its word pairs."""
        return self._scores("aligned")

    def source_concepts(self) -> pa.Table:
        """Every source concept of a direction, with its types, those covered, and its best target."""
        return self._scores("source_concepts")

    def colap(self) -> pa.Table:
        """COLAP per model, revision, layer, scope, k, seed and thresholds."""
        return self._scores("colap")

    def overlap(self) -> pa.Table:
        """Points, types and share of each language in each concept of a joint scope."""
        return self._scores("overlap")

    def agreement(self) -> pa.Table:
        """How alike clusterings of the same points are that differ in seed, k or algorithm."""
        concepts = self.grid.concepts
        if len(concepts.algorithm) * len(concepts.k) * len(concepts.seeds) == 1:
            raise RunError(f"{self.path}: {_ONE.format('clustering')}; give several concepts.seeds, k or algorithm")
        return self._scores("agreement")

    def robustness(self) -> pa.Table:
        """Score and order of layers and pairs over each threshold with several values, and the ranges that change neither."""
        return self._several("robustness", "threshold", "such as calign.theta: [0.7, 0.8, 0.9]")

    def conclusions(self) -> pa.Table:
        """In which share of the grid's settings each order statement of the default setting holds."""
        return self._several("conclusions", "setting", "of concepts.seeds, k, algorithm or thresholds")

    def warnings(self) -> pa.Table:
        """The warnings of the report, one row per failure signature; none where nothing asks for a second look."""
        return self._scores("warnings")

    def similarity(self) -> pa.Table:
        """The neighbouring measures per model, revision, layer and pair or direction, each with its chance level and null."""
        if not self.grid.similarity.measures:
            raise RunError(
                f"{self.path}: its grid asks for no measures; name some in similarity.measures and run it again"
            )
        return self._scores("similarity")

    def patching(self, table: str = "checkpoints") -> pa.Table:
        """A table of concept patching: `checkpoints` (the summary), `curves`, `transitions`, `strata`, `emergence` or `costs`."""
        if not (self.path / f"patching/{table}.parquet").is_file():
            raise RunError(
                f"{self.path}: no table {table} of patching; expected checkpoints, curves, transitions, strata, emergence or costs, of a "
                "run whose grid names patching.table"
            )
        return self._read(f"patching/{table}.parquet", f"patching_{table}")

    def _several(self, name: str, what: str, more: str) -> pa.Table:
        table = self._scores(name)
        if not table.num_rows:
            raise RunError(f"{self.path}: {_ONE.format(what)}; give several, {more}")
        return table

    def _scores(self, name: str) -> pa.Table:
        if not (self.path / f"scores/{name}.parquet").is_file():
            if self.grid.corpus is None:
                raise RunError(
                    f"{self.path}: its grid has no corpus, so there are no scores; `raypipe show {self.path} patching` shows what it has"
                )
            raise RunError(
                f"{self.path}: no scores yet; finish it with `raypipe run {self.path / 'grid.yaml'} --run {self.path}`"
            )
        return self._read(f"scores/{name}.parquet", name)

    def _read(self, file: str, name: str) -> pa.Table:
        table = self._dir.read_table(file)
        if lacking := sorted({*arrow_schema(name).names} - {*table.column_names}):
            raise RunError(
                f"{self.path / file}: has no column {lacking[0]}; write it again with `raypipe report {self.path}`"
            )
        return table

    def concepts(self, **axes: Any) -> pa.Table:
        """The labelled points of one clustering: language, sentence, token, word, concept.

        `axes` are model, revision, component, variant, layer, scope (`de` or `de+en`; where states differ between pairs, `de~en-de` or
        `de~en-de+en~en-de`), algorithm, k and seed; each may be left out where the run has one value.

        Raises:
            RunError: No clustering fits, or several do; the message names what is open.
        """
        return self._dir.read_table(f"concepts/{self._one('concepts', axes)}/labels.parquet")

    def states(
        self,
        model: str,
        revision: str,
        language: str,
        layer: int,
        component: str = "encoder",
        variant: str | None = None,
        of: str = "words",
    ) -> tuple[pa.Table, NDArray[np.float32]]:
        """The states of one language at one layer of a component (`encoder` or `decoder`), by sentence and token.

        Where its states differ between pairs (`words.filter: pairwise`, or a decoder with `states.source: pair`) the language is named with
        the pair, in grid order: `en~en-de`. `variant`, such as `v-mean`, may be left out where the run has one. `of` is `words`, or what
        `states.also` names: `sentences` (the mean over a sentence's pieces) or `neurons` (the largest input of the MLP's down projection
        over them; d is then the MLP's width).

        Returns:
            The rows (language, sentence and, of words, token, word) and their states, float32 [n, d], in the same order.

        Raises:
            RunError: The run holds no such states, or those of several variants.
        """
        if of not in KINDS:
            raise RunError(f"states of {of}: expected {', '.join(KINDS)}")
        axes = {"model": model, "revision": revision, "component": component, "variant": variant, "lang": language}
        stage, schema = KINDS[of]
        mark = self._dir.mark_at(stage, self._one(stage, axes))
        shards = [name for name, _ in mark.receipt["shards"]] if mark else []
        if not shards:
            raise RunError(f"{self.path}: {language} has no states at all; the files _lost-* beside them say why")
        points = [self._dir.read_table(name, arrow_schema(schema).names) for name in shards]
        return pa.concat_tables(points), np.concatenate([read_layer(self.path / name, layer) for name in shards])

    def _one(self, stage: str, axes: dict[str, Any]) -> str:
        """The hive path of the one finished cell of a stage that fits the axes, whose files are those that it wrote."""
        unnamed = {"algorithm": "kmeans"} if stage == "concepts" else {}
        units = "clusterings" if stage == "concepts" else "extractions"
        keys = {cell: unnamed | axes for cell, axes in self._dir.finished(stage).items()}
        wanted = {axis: _plain(value) for axis, value in axes.items() if value is not None}
        fitting = [
            cell for cell, key in keys.items() if all(_plain(key.get(axis)) == value for axis, value in wanted.items())
        ]
        if len(fitting) == 1:
            self._dir.check_files(stage, fitting[0])
            return fitting[0]
        asked = ", ".join(f"{axis}={value}" for axis, value in axes.items() if value is not None) or "nothing given"
        if not fitting:
            raise RunError(
                f"{self.path}: nothing finished for {asked}; `raypipe status {self.path}` shows what is there"
            )
        choices = {axis: sorted({keys[cell][axis] for cell in fitting}) for axis in keys[fitting[0]]}
        open_axes = "; ".join(f"{axis}: {', '.join(values)}" for axis, values in choices.items() if len(values) > 1)
        raise RunError(f"{self.path}: {asked} fits {len(fitting)} {units}; choose {open_axes}")


def _plain(value: Any) -> str:
    """Axis values compare as numbers where they are numbers: layer 7 is `07`."""
    text = str(value)
    return str(int(text)) if text.isdecimal() else text


def open_run(path: str | Place) -> Run:
    """Opens a run directory for reading; RunError where it is none."""
    return Run(path)


def select(table: pa.Table, **axes: Any) -> pa.Table:
    """The rows whose columns equal the given values; a column given as None is not looked at."""
    for column, value in axes.items():
        if value is not None:
            try:
                wanted = pa.scalar(value, table.schema.field(column).type)
            except (pa.ArrowInvalid, OverflowError):  # a number that the column cannot hold
                return table.slice(0, 0)
            table = table.filter(pc.equal(table.column(column), wanted))
    return table
