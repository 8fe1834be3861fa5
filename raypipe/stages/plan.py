"""What a grid means on this machine: checkpoints, layers, files and their fingerprints, found before anything runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from raypipe import toy
from raypipe.errors import GridError, InputError
from raypipe.grid import LONGEST_SCOPE, Grid, Model
from raypipe.interop.am2ico import read_am2ico
from raypipe.models.locate import Checkpoint, ModelFacts, checkpoints, facts, fingerprint, pinned
from raypipe.models.schedule import DIRECTORIES, Naming
from raypipe.rundir import file_digest
from raypipe.stages.annotated import Annotation, find_annotations
from raypipe.stages.text import Text, hub_revision

Direction = tuple[str, str]


class Side(NamedTuple):
    """Whose points and states are kept together: a language, or a language within a pair of the grid, in grid order.

    `pair` is None where a language has the same points and states in all its pairs.
    """

    language: str
    pair: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        """In folders: `en`, or `en~en-de`."""
        return f"{self.language}~{'-'.join(self.pair)}" if self.pair else self.language

    @property
    def other(self) -> str | None:
        """The pair's other language."""
        return next((language for language in self.pair or () if language != self.language), None)


def language_of(side: str) -> str:
    """The language of a side's name."""
    return side.partition("~")[0]


def joint(sides: Iterable[Side]) -> tuple[Side, ...]:
    """The sides of a joint scope in the order of its name."""
    return tuple(sorted(sides, key=lambda side: side.name))


def scope_name(sides: Iterable[Side]) -> str:
    """A scope's name in folders: `de`, `de+en`, `de~en-de+en~en-de`."""
    return "+".join(side.name for side in sides)


def clustering(algorithm: str, k: int, seed: int) -> tuple[tuple[str, str], ...]:
    """The axes of a clustering in its folder's name; K-means, which came first, is not named."""
    named = () if algorithm == "kmeans" else (("algorithm", algorithm),)
    return (*named, ("k", f"{k:04d}"), ("seed", str(seed)))


def clustering_place(states: str, layer: int, scope: str, algorithm: str, k: int, seed: int) -> str:
    """The folder of a clustering below the stage's, for the states of the folder `states`."""
    parts = (("layer", f"{layer:02d}"), ("scope", scope), *clustering(algorithm, k, seed))
    return "/".join((states, *(f"{axis}={value}" for axis, value in parts)))


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
        alignments: With `words.filter: pairwise` per pair the (file, inverted) of its links.
        annotations: Per kind (`labels`, `upos`, `concept_table`) and language that has it, the file; that of `am2ico` per pair, as
            `en+de`.
    """

    grid: Grid
    checkpoints: tuple[Checkpoint, ...]
    facts: dict[str, ModelFacts]
    layers: dict[tuple[str, str], tuple[int, ...]]
    weights: dict[tuple[str, str], str]
    texts: dict[str, Text]
    corpus: dict[str, str]
    lexicon: dict[Direction, tuple[Path, bool] | None]
    alignments: dict[tuple[str, ...], tuple[Path, bool]]
    annotations: dict[tuple[str, str], Annotation]

    def variant(self, model: str) -> str:
        """Short name of the grid fields that change a model's states without being an axis."""
        words, states = self.grid.words, self.grid.states_of(model)
        names: list[str] = [words.pooling] if words.pooling != "last" else []
        names += ["predict"] if states.decoder == "predict" else []
        names += [states.source] if states.source != "copy" else []
        names += ["pairwise"] if self.pairwise else []
        names += [] if states.final_norm else ["raw"]
        return "v-" + ("-".join(names) or "default")

    def fields(self, *names: str) -> dict[str, Any]:
        """Dotted grid fields with their values, for a cell's fingerprint; None in a section that the grid lacks."""
        plain = self.grid.to_dict()
        found = {}
        for name in names:
            value: Any = plain
            for part in name.split("."):
                value = value and value[part]
            found[name] = value
        return found

    def state(self, checkpoint: Checkpoint, component: str) -> tuple[tuple[str, str], ...]:
        """The axes of a cell that are common to all states of a component of a checkpoint."""
        key = {"model": checkpoint.model, "revision": checkpoint.revision, "component": component}
        return (*key.items(), ("variant", self.variant(checkpoint.model)))

    @property
    def pairwise(self) -> bool:
        """Whether words become points by the links of a pair."""
        return self.grid.words.filter == "pairwise"

    def reads_pair(self, model: str, component: str) -> bool:
        """Whether the words of a component are read beside the line of a pair's other language."""
        beside = component == "decoder" and "encoder" in self.facts[model].components
        return beside and self.grid.states_of(model).source == "pair"

    def per_pair(self, model: str, component: str) -> bool:
        """Whether a language has states of its own in each of its pairs."""
        return self.pairwise or self.reads_pair(model, component)

    def corpus_sides(self) -> list[Side]:
        """The sides whose points are chosen, in grid order."""
        return self._sides(self.pairwise)

    def sides(self, model: str, component: str) -> list[Side]:
        """The sides whose states a component has, in grid order."""
        return self._sides(self.per_pair(model, component))

    def sides_of(self, group: tuple[str, ...], model: str, component: str) -> list[Side]:
        """The sides of a component that are compared for a pair, or for the joint scope of all languages, in the group's order."""
        pair = group if self.per_pair(model, component) else None
        return [Side(language, pair) for language in group]

    def corpus_of(self, side: Side) -> Side:
        """The side whose points a component's side has."""
        return side if self.pairwise else Side(side.language)

    def _sides(self, per_pair: bool) -> list[Side]:
        if self.grid.corpus is None:
            return []
        if not per_pair:
            return [Side(language) for language in self.grid.languages]
        return [Side(language, pair) for pair in self.grid.language_pairs() for language in pair]

    def directions(self) -> list[Direction]:
        """The directions that have a dictionary, in grid order; all where it is induced."""
        lexicon = self.grid.lexicon
        return [d for d in self.grid.directions() if (lexicon and lexicon.induce) or self.lexicon.get(d)]

    def cells_of_models(self) -> list[tuple[Checkpoint, str]]:
        """Every (checkpoint, component) that reads the text, in grid order; none without a text."""
        if self.grid.corpus is None:
            return []
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
        InputError: The text of a language is missing, empty or broken, the languages differ in length, a pair has no alignment, no pair
            has a dictionary or an AM2iCo file, or labels or word classes do not fit their text.
        GridError: A layer is outside a model, or languages have codes that folders of pairs cannot hold.
    """
    found: list[Checkpoint] = []
    sizes: dict[str, ModelFacts] = {}
    layers: dict[tuple[str, str], tuple[int, ...]] = {}
    weights: dict[tuple[str, str], str] = {}
    for model in grid.models:
        named = checkpoints(model.name, toy.resolve(model.path), model.revisions, naming(model))
        of_model = [pinned(checkpoint) for checkpoint in named]
        found += of_model
        sizes[model.name] = facts(of_model[-1])
        for part in _components(model, sizes[model.name]):
            layers[model.name, part] = grid.layer_ids(sizes[model.name].layers_of[part], model.name)
        weights |= {(c.model, c.revision): fingerprint(c) for c in of_model}
    texts = _texts(grid)
    alignments = alignment_files(grid)
    corpus, lexicon = _corpus(grid, texts), lexicon_files(grid)
    beside = find_annotations(grid, texts) | _meanings(grid)
    plan = Plan(grid, tuple(found), sizes, layers, weights, texts, corpus, lexicon, alignments, beside)
    _check_names(plan)
    return plan


def _components(model: Model, size: ModelFacts) -> tuple[str, ...]:
    for part in model.components or ():
        if part not in size.components:
            raise GridError(
                f"models.{model.name}.components: {size.model_type} has no {part}; expected {', '.join(size.components)}"
            )
    return model.components or size.components


def naming(model: Model) -> Naming:
    """How the checkpoints of a model of the grid are named."""
    return Naming(model.checkpoint_pattern or DIRECTORIES, model.phases or (), model.tokens_per_step)


def _texts(grid: Grid) -> dict[str, Text]:
    corpus = grid.corpus
    if corpus is None:
        return {}
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
            f"{grid.corpus and grid.corpus.path}: the languages differ in lines ({shown}); line i must say the same in every file"
        )
    return prints


def lexicon_files(grid: Grid) -> dict[Direction, tuple[Path, bool] | None]:
    """Per direction its (file, inverted); see `_files`."""
    if grid.lexicon is None or grid.lexicon.path is None:
        return {}
    return _files(grid.lexicon.path, grid.directions(), "lexicon.path")


def alignment_files(grid: Grid) -> dict[tuple[str, ...], tuple[Path, bool]]:
    """Per pair its (file, inverted), with `words.filter: pairwise`; InputError where a pair has none."""
    found: dict[tuple[str, ...], tuple[Path, bool]] = {}
    if grid.words.alignment is None:
        return found
    pattern = toy.resolve(grid.words.alignment)
    for pair in grid.language_pairs():
        there = _of_direction(pattern, pair)
        if there is None:
            raise InputError(
                f"{pattern}: no file for the pair {'-'.join(pair)}, neither way; check words.alignment and pairs"
            )
        found[pair] = there
    return found


def _meanings(grid: Grid) -> dict[tuple[str, str], Annotation]:
    """The AM2iCo file of each pair that has one, read once to see that it can be; InputError where no pair has one."""
    if grid.similarity.am2ico is None:
        return {}
    found = {}
    for pair, there in _files(grid.similarity.am2ico, grid.language_pairs(), "similarity.am2ico").items():
        if there is not None:
            file, inverted = there
            read_am2ico(file)
            found["am2ico", "+".join(pair)] = Annotation(str(file), file_digest(file), inverted)
    return found


def _files(path: str, pairs: list[Direction], field: str) -> dict[Direction, tuple[Path, bool] | None]:
    """Per pair or direction its (file, inverted), or None where neither file is there; InputError where none has one."""
    found = {pair: _of_direction(toy.resolve(path), pair) for pair in pairs}
    if not any(found.values()):
        raise InputError(f"{path}: no file for any of the pairs; check {field} and pairs")
    return found


def _of_direction(pattern: str, direction: Direction) -> tuple[Path, bool] | None:
    """(file, inverted): the file of a direction, that of the other one, or None where neither is there."""
    for inverted, (source, target) in enumerate((direction, direction[::-1])):
        file = Path(pattern.replace("{source}", source).replace("{target}", target))
        if file.is_file():
            return file, bool(inverted)
    return None


def _check_names(plan: Plan) -> None:
    """Whether each side has a folder of its own, and each joint scope a name that fits one."""
    named: dict[str, Side] = {}
    for model, component in plan.layers:
        for side in plan.sides(model, component):
            if side != named.setdefault(side.name, side):
                raise GridError(
                    f"languages: {side.language} has two pairs that are both written {'-'.join(side.pair or ())}; rename a language"
                )
            joined = scope_name(plan.sides_of(side.pair or (), model, component))
            if len(joined) > LONGEST_SCOPE:
                raise GridError(
                    f"languages: the scope {joined[:60]}… of a pair is over {LONGEST_SCOPE} characters, too long for a folder; use "
                    "shorter codes"
                )
