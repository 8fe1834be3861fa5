"""What a grid means on this machine: checkpoints, layers, files and their fingerprints, found before anything runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raypipe import toy
from raypipe.errors import GridError, InputError
from raypipe.grid import Grid, Model
from raypipe.models.locate import Checkpoint, ModelFacts, checkpoints, facts, fingerprint, pinned
from raypipe.stages.text import Text, hub_revision

Direction = tuple[str, str]


@dataclass(frozen=True)
class Plan:
    """A grid with everything that it names found.

    Attributes:
        grid: The grid as given.
        checkpoints: Every checkpoint, in grid order, pinned to what its name means now.
        facts: Per model name, its size.
        layers: Per (model, component), the layer ids to read.
        weights: Per (model, revision), the fingerprint of weights, configuration and tokenizer.
        texts: Per language, its text.
        corpus: Per language, the fingerprint of its text.
        lexicon: Per direction, (file, inverted): the file of the direction, of the other one, or None where neither is there.
    """

    grid: Grid
    checkpoints: tuple[Checkpoint, ...]
    facts: dict[str, ModelFacts]
    layers: dict[tuple[str, str], tuple[int, ...]]
    weights: dict[tuple[str, str], str]
    texts: dict[str, Text]
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
        InputError: The text of a language is missing, empty or broken, or the languages differ in length.
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
    texts = _texts(grid)
    return Plan(grid, tuple(found), sizes, layers, weights, texts, _corpus(grid, texts), _lexicon(grid))


def _components(model: Model, size: ModelFacts) -> tuple[str, ...]:
    for part in model.components or ():
        if part not in size.components:
            raise GridError(
                f"models.{model.name}.components: {size.model_type} has no {part}; expected {', '.join(size.components)}"
            )
    return model.components or size.components


def _checkpoints(model: Model) -> list[Checkpoint]:
    return [pinned(c) for c in checkpoints(model.name, toy.resolve(model.path), model.revisions)]


def _texts(grid: Grid) -> dict[str, Text]:
    corpus = grid.corpus
    revision = hub_revision(corpus.path, corpus.config) if corpus.format == "datasets" else None
    path = toy.resolve(corpus.path)
    return {
        language: Text(language, corpus.format, path.replace("{lang}", language), corpus.config, corpus.split, revision)
        for language in grid.languages
    }


def _corpus(grid: Grid, texts: dict[str, Text]) -> dict[str, str]:
    """Fingerprints of the texts, and whether all have the same length: before anything is written."""
    prints, lines = {}, {}
    for language, text in texts.items():
        if text.format != "datasets" and not Path(text.path).is_file():
            raise InputError(f"{text.path}: no such file for language {language}; check corpus.path and languages")
        prints[language], lines[language] = text.measure()
        if not lines[language]:
            raise InputError(f"{text.path}: is empty; expected one sentence per line")
    if len(set(lines.values())) > 1:
        shown = ", ".join(f"{language} {n}" for language, n in lines.items())
        raise InputError(
            f"{grid.corpus.path}: the languages differ in lines ({shown}); line i must say the same in every file"
        )
    return prints


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
