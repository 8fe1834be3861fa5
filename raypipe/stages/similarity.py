"""Stage similarity: what other papers measure, from the states and clusterings that CALIGN and COLAP are made of.

One cell, and one task, per (model, revision, component, variant, pair), which writes a part of the flat table; none without
`similarity.measures`. Sentences are paired by their line, words by the dictionary.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, lru_cache, partial
from itertools import chain, product
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from raypipe.errors import InputError
from raypipe.grid import Grid
from raypipe.gridscores import MEANINGS, OF_SENTENCES
from raypipe.interop.am2ico import read_am2ico
from raypipe.interop.concepttable import read_concepts
from raypipe.rundir import Cell, Mark, RunDir
from raypipe.schema import TABLES, make_table
from raypipe.science.agreement import stability
from raypipe.science.experts import expert_overlap
from raypipe.science.incidence import IntArray, numbered
from raypipe.science.intervals import Estimate, FloatArray, Sampling
from raypipe.science.occurrences import normalise
from raypipe.science.probes import (
    false_friend_margin,
    language_probe,
    meaning_auc,
    structural_procrustes,
    structural_rsa,
)
from raypipe.science.similarity import anc, centred, cka, matches, mexa, retrieval
from raypipe.stages import meanings
from raypipe.stages.annotated import read_marks
from raypipe.stages.context import Context, Item, Receipt
from raypipe.stages.parts import part
from raypipe.stages.plan import Plan, clustering_place, joint, scope_name
from raypipe.statefile import read_layer

NAME, VERSION = "similarity", 4
CLUSTERINGS = ("concepts.algorithm", "concepts.k", "concepts.seeds")
FIELDS = ("words.normalise", "similarity.experts", "similarity.permutations", "similarity.resamples")
KINDS = {"extract": "words", "sentences": "sentences", "neurons": "neurons"}  # of states, in reasons
ANNOTATED = {
    "expert_overlap": "labels",
    "structural_rsa": "upos",
    "structural_procrustes": "upos",
    "false_friends": "concept_table",
}
WORDS = ("retrieval", "structural_rsa", "structural_procrustes", "false_friends")
READS = (  # the stage whose cells a measure reads, with the axis that names the side or scope
    dict.fromkeys(OF_SENTENCES, ("sentences", "lang"))
    | dict.fromkeys(WORDS, ("extract", "lang"))
    | {"expert_overlap": ("neurons", "lang"), "am2ico": (meanings.NAME, "pair"), "stability": ("concepts", "scope")}
)
MEXA_OVER: tuple[Literal["mean", "max"], ...] = ("mean", "max")  # layers
FEW = 8  # items of the rarer of two kinds below which a row says how few they are
SEED = 0  # of the permutations and the bootstrap
Row = dict[str, Any]
States = NDArray[np.float32]
Pair = tuple[str, str]
Forms = tuple[list[str], list[str]]
Measured = tuple[Estimate, int | None]  # and the items that could not be paired


def cells(plan: Plan, made: dict[str, list[Cell]]) -> list[Cell]:
    """One cell per checkpoint, component and pair where the grid asks for measures; `made` are the cells of the stages before."""
    grid, found = plan.grid, list[Cell]()
    fields = plan.fields(*FIELDS) | {"similarity version": VERSION}
    measures = [measure for measure in grid.similarity.measures if measure not in grid.lacking()]
    kinds = [ANNOTATED[measure] for measure in measures if measure in ANNOTATED]
    for checkpoint, component in plan.cells_of_models() if grid.similarity.measures else ():
        state = plan.state(checkpoint, component)
        for pair in grid.language_pairs():
            sides = plan.sides_of(pair, checkpoint.model, component)
            names = {*(side.name for side in sides), scope_name(joint(sides)), "+".join(pair)}
            own = [
                cell.fingerprint
                for stage, axis in {READS[measure] for measure in measures}
                for cell in made[stage]
                if cell.key[:4] == state and cell[axis] in names
            ]
            if "retrieval" in measures:
                own += [c.fingerprint for c in made["lexicon"] if {c["source"], c["target"]} == set(pair)]
            own += [plan.annotations[at].fingerprint for at in product(kinds, pair) if at in plan.annotations]
            axes = {
                "inputs": sorted(own),
                "layers": plan.layers[checkpoint.model, component],
                "measures": grid.similarity.measures,
                "clusterings": [repr(plan.fields(*CLUSTERINGS))] if "stability" in measures else [],
            }
            found.append(Cell(NAME, (*state, ("pair", "+".join(pair))), fields, {}, axes))
    return found


def run(context: Context, left: list[Cell]) -> None:
    """Measures every pair that is not there yet; where an input failed, the rows say so and the next run measures it again."""
    context.watcher.start(NAME, len(left), "pairs")
    if lacking := context.map_cells(work, left, [_item(context, cell) for cell in left]):
        context.watcher.note(f"similarity: {lacking} of {len(left)} pairs lack an input; those rows say input_failed")


def _item(context: Context, cell: Cell) -> Item:
    plan, pair = context.plan, tuple(cell["pair"].split("+"))
    sides = plan.sides_of(pair, cell["model"], cell["component"])
    return {
        "run": context.run.address,
        "grid": plan.grid.to_dict(),
        "state": {axis: cell[axis] for axis in ("model", "revision", "component", "variant")},
        "states": cell.path.rpartition("/")[0],
        "part": part(cell),
        "sides": {side.language: side.name for side in sides},
        "joint": scope_name(joint(sides)) if tuple(sorted(pair)) in plan.grid.joint_scopes() else None,
        "lexicons": plan.directions(),
        "beside": plan.reads_pair(cell["model"], cell["component"]),
        "annotations": {at: of.path for at, of in plan.annotations.items()},
        "layers": plan.layers[cell["model"], cell["component"]],
    }


def work(item: Item) -> Receipt:
    """Measures one pair of one checkpoint at every layer.

    Returns:
        {"files", "seconds", "missing"}: `missing` counts the states and clusterings that were needed and are not there.

    Raises:
        RunError: A file of the run is damaged.
    """
    started, pair = time.perf_counter(), _Pair(item)
    table = make_table(NAME, list(pair.rows()))
    files = {item["part"]: RunDir(item["run"]).write_table(item["part"], table)}
    return {"files": files, "seconds": time.perf_counter() - started, "missing": len(pair.missing)}


class _Unmeasured(Exception):
    """Why a measure has no value, in the words of the column `reason`."""


class _Words(NamedTuple):
    """The kept occurrences of one language: their files, the distinct words, and the word of each occurrence per file."""

    files: list[str]
    types: dict[str, int]
    word: list[IntArray]


def _sums(states: States, index: IntArray, rows: int) -> FloatArray:
    """The sum of the states [n, d] of each index, int64 [n], float64 [rows, d]."""
    which = sparse.csr_array((np.ones(len(index)), (index, np.arange(len(index)))), shape=(rows, len(index)))
    return np.asarray(which @ states.astype(np.float64))


def _probe(x: States, y: States, sampling: Sampling) -> Estimate:
    return language_probe(np.stack([x, y]), sampling)


def _remark(found: Estimate) -> str:
    """Why a figure is null, or what it rests on too little of."""
    if found.value is None:
        return "undefined"
    few = found.rarer is not None and found.rarer < FEW
    return f"only {found.rarer} of {found.items} items are of the rarer kind" if few else ""


OF_STATES = {"cka": cka, "anc": anc, "language_probe": _probe}


class _Pair:
    """The rows of one pair of one checkpoint; `missing` names the inputs that were looked for and are not there."""

    def __init__(self, item: Item) -> None:
        self.missing = set[str]()
        self._item, self._run, self._grid = item, RunDir(item["run"]), Grid(**item["grid"])
        settings = self._grid.similarity
        self._measures, self._lacking = settings.measures, self._grid.lacking()
        self._sampling = Sampling(settings.permutations, settings.resamples, SEED)
        source, target = item["sides"]
        self._pair: Pair = (source, target)
        self._directions: tuple[Pair, ...] = (self._pair, (target, source))
        # What several measures read is read once for all of them.
        self._sentences, self._entries = lru_cache(1)(self._read_sentences), lru_cache(1)(self._read_entries)
        self._words, self._lexicon = cache(self._read_words), cache(self._read_lexicon)
        self._same, self._matches = cache(self._read_same), cache(self._find_matches)
        self._annotations, self._concepts = cache(self._read_annotations), cache(self._read_concepts)
        self._annotated: dict[str, Callable[[int], Measured]] = {
            "expert_overlap": self._of_neurons,
            "structural_rsa": partial(self._of_classes, structural_rsa),
            "structural_procrustes": partial(self._of_classes, structural_procrustes),
            "false_friends": self._of_forms,
        }

    def rows(self) -> Iterator[Row]:
        """By layer and measure, in the order of the grid, then by direction; MEXA over the layers comes last."""
        for layer, measure in product(self._item["layers"], self._measures):
            if measure in OF_STATES:
                yield self._row(layer, measure, self._pair, partial(self._of_sentences, layer, measure))
            elif measure == "mexa":
                yield self._row(layer, measure, self._pair, partial(self._of_matches, [layer], "mean"))
            elif measure == "retrieval":
                for direction, centre in product(self._directions, (False, True)):
                    name = "retrieval_centred" if centre else "retrieval"
                    yield self._row(layer, name, direction, partial(self._of_words, layer, direction, centre))
            elif measure in MEANINGS:
                for name in meanings.measures(self._item["state"]["component"]):
                    yield self._row(layer, name, self._pair, partial(self._of_meanings, layer, name))
            elif measure in ANNOTATED:
                yield self._row(layer, measure, self._pair, partial(self._annotated[measure], layer))
            else:
                for k, (name, direction, scope) in product(self._grid.concepts.k, self._scopes()):
                    yield self._row(layer, name, direction, partial(self._of_concepts, layer, scope, k), k)
        for over in MEXA_OVER if "mexa" in self._measures else ():
            yield self._row(None, f"mexa_{over}", self._pair, partial(self._of_matches, self._item["layers"], over))

    def _row(
        self, layer: int | None, measure: str, languages: Pair, compute: Callable[[], Measured], k: int | None = None
    ) -> Row:
        row: Row = dict.fromkeys(column.name for column in TABLES[NAME]) | self._item["state"]
        row |= {"layer": layer, "source": languages[0], "target": languages[1], "measure": measure, "k": k}
        try:
            if needed := self._lacking.get(re.sub("^joint_|_(last|mean|max)$", "", measure)):
                raise _Unmeasured(needed)
            found, unpaired = compute()
        except (_Unmeasured, InputError) as error:
            return row | {"reason": str(error)}
        row |= {name: getattr(found, name) for name in ("value", "lo", "hi", "chance", "excess", "items", "left_out")}
        row |= {f"null_{name}": value for name, value in found.null._asdict().items()} if found.null else {}
        return row | {"unpaired": unpaired, "reason": _remark(found)}

    def _of_sentences(self, layer: int, measure: str) -> Measured:
        x, y, unpaired = self._sentences(layer)
        return OF_STATES[measure](x, y, self._sampling), unpaired

    def _of_matches(self, layers: Sequence[int], over: Literal["mean", "max"]) -> Measured:
        found = [self._matches(layer) for layer in layers]
        return mexa([matched for matched, _ in found], over, self._sampling), found[0][1]

    def _find_matches(self, layer: int) -> tuple[IntArray, int]:
        x, y, unpaired = self._sentences(layer)
        return matches(x, y), unpaired

    def _of_words(self, layer: int, direction: Pair, centre: bool) -> Measured:
        x, y, forms, unpaired = self._entries(layer, direction)
        sides = (centred(x), centred(y)) if centre else (x, y)
        return retrieval(*sides, *forms, self._sampling), unpaired

    def _of_concepts(self, layer: int, scope: str, k: int) -> Measured:
        settings, states = self._grid.concepts, self._item["states"]
        places = {
            f"{scope} seed {seed}": clustering_place(states, layer, scope, settings.algorithm[0], k, seed)
            for seed in settings.seeds
        }
        self._marks("concepts", places)
        labels = [self._run.read_table(f"concepts/{place}/labels.parquet", ["concept"]) for place in places.values()]
        first, *others = (table.column(0).to_numpy() for table in labels)
        return stability(first, others, self._sampling), None

    def _of_neurons(self, layer: int) -> Measured:
        if not layer:
            raise _Unmeasured("layer 0 has no neurons")
        labels = self._annotations("labels")
        sides = [self._states(files, layer) for files in self._files("neurons", self._pair)]
        (x, labels_x), (y, labels_y) = (
            (states, [of_side[i][0] for i in numbers]) for (numbers, states), of_side in zip(sides, labels, strict=True)
        )
        return expert_overlap(x, labels_x, y, labels_y, self._grid.similarity.experts, self._sampling), None

    def _of_classes(self, measure: Callable[..., Estimate], layer: int) -> Measured:
        upos = self._annotations("upos")
        sides = list[tuple[States | FloatArray, list[str]]]()
        for language, files, of_side in zip(self._pair, self._files("extract", self._pair), upos, strict=True):
            sentences, states = self._states(files, layer)
            tokens = [token for file in files for token in self._run.read_table(file, ["token"]).column(0).to_pylist()]
            classes = [of_side[sentence][token] for sentence, token in zip(sentences, tokens, strict=True)]
            if measure is structural_rsa:  # occurrences of one word are not independent
                types = list(self._words(language).types)
                words = (types[word] for word in np.concatenate(self._words(language).word))
                names, index = numbered(f"{name} {word}" for name, word in zip(classes, words, strict=True))
                means = _sums(states, index, len(names)) / np.bincount(index)[:, None]
                sides.append((means, [name.split()[0] for name in names]))
            else:
                sides.append((states, classes))
        (x, classes_x), (y, classes_y) = sides
        return measure(x, classes_x, y, classes_y, self._sampling), None

    def _of_forms(self, layer: int) -> Measured:
        concepts = self._concepts()
        self._files("extract", self._pair)  # names both where both failed
        sides = [self._words(language) for language in self._pair]
        shared = sorted(sides[0].types.keys() & sides[1].types.keys())
        forms = [form for form in shared if all(form in of_side for of_side in concepts)]
        same = [not concepts[0][form].isdisjoint(concepts[1][form]) for form in forms]
        x, y = (self._vectors(words, forms, layer) for words in sides)
        return false_friend_margin(x, y, same, self._sampling), len(shared) - len(forms)

    def _of_meanings(self, layer: int, measure: str) -> Measured:
        if self._item["beside"]:
            raise _Unmeasured("needs states.source: copy or empty")
        same, pair = self._same(), "+".join(self._pair)
        self._marks(meanings.NAME, {f"{meanings.NAME} {pair}": f"{self._item['states']}/pair={pair}"})
        places = (meanings.place(self._item["states"], self._pair, measure, language) for language in self._pair)
        x, y, common = self._both([[place] for place in places], layer)[:3]
        return meaning_auc(x, y, same[common], self._sampling), len(same) - len(common)

    def _read_same(self) -> NDArray[np.bool_]:
        """Whether the marked words of each AM2iCo example mean the same, bool [examples]."""
        path = self._item["annotations"].get((MEANINGS[0], "+".join(self._pair)))
        if path is None:
            raise _Unmeasured("no_am2ico")
        return np.array([example.same for example in read_am2ico(path)])

    def _read_annotations(self, kind: str) -> list[list[list[str]]]:
        """The marks of each sentence of both languages."""
        return [list(read_marks(kind, path)) for path in self._paths(kind)]

    def _read_concepts(self) -> list[dict[str, set[str]]]:
        """The concepts of each word form of both languages."""
        table = read_concepts(self._paths("concept_table")[0], self._pair)
        found: list[dict[str, set[str]]] = [{}, {}]
        for (of_side, language), concept in product(zip(found, self._pair, strict=True), table.concepts):
            for form in concept.forms[language]:
                of_side.setdefault(normalise(form, self._grid.words.normalise), set()).add(concept.id)
        return found

    def _paths(self, kind: str) -> list[str]:
        paths = {language: self._item["annotations"].get((kind, language)) for language in self._pair}
        if lacking := [language for language, path in paths.items() if path is None]:
            raise _Unmeasured(f"no_{kind}: {', '.join(lacking)}")
        return list(paths.values())

    def _scopes(self) -> Iterator[tuple[str, Pair, str]]:
        """Whose concepts are compared between seeds: a direction's source, and the pair's joint scope where the grid has it."""
        for direction in self._directions:
            yield "stability", direction, self._item["sides"][direction[0]]
        if self._item["joint"]:
            yield "joint_stability", self._pair, self._item["joint"]

    def _read_sentences(self, layer: int) -> tuple[States, States, int]:
        """The states of the sentences that both languages have, float32 [n, d] each, and how many only one has."""
        x, y, _, unpaired = self._both(self._files("sentences", self._pair), layer)
        return x, y, unpaired

    def _both(self, files: list[list[str]], layer: int) -> tuple[States, States, IntArray, int]:
        """The states of what both languages have, float32 [n, d] each, its numbers, int64 [n], and how many only one has."""
        (source, x), (target, y) = (self._states(of_side, layer) for of_side in files)
        common, *places = np.intersect1d(source, target, assume_unique=True, return_indices=True)
        x, y = (side[at] for side, at in zip((x, y), places, strict=True))
        return x, y, common, len(source) + len(target) - 2 * len(common)

    def _states(self, files: list[str], layer: int) -> tuple[IntArray, States]:
        """The sentence of each row of some files and its states at a layer, int64 [n] and float32 [n, d]."""
        sentences = [self._run.read_table(file, ["sentence"]).column(0).to_numpy() for file in files]
        return np.concatenate(sentences), np.concatenate([read_layer(self._run.path / file, layer) for file in files])

    def _read_entries(self, layer: int, direction: Pair) -> tuple[FloatArray, FloatArray, Forms, int]:
        """Word vectors of the dictionary's entries, float64 [n, d] each, both words of each, and the entries without states.

        A word's vector is the mean over its kept occurrences.
        """
        entries = self._lexicon(direction)
        self._files("extract", direction)  # names both where both failed
        source, target = map(self._words, direction)
        kept = [(s, t) for s, t in entries if s in source.types and t in target.types]
        forms = [s for s, _ in kept], [t for _, t in kept]
        x, y = (self._vectors(*side, layer) for side in zip((source, target), forms, strict=True))
        return x, y, forms, len(entries) - len(kept)

    def _vectors(self, words: _Words, forms: Sequence[str], layer: int) -> FloatArray:
        """The mean state of each form, float64 [forms, d]; summed file by file, of which one is held."""
        sums, types = np.zeros(()), len(words.types)
        for file, index in zip(words.files, words.word, strict=True):
            sums = sums + _sums(read_layer(self._run.path / file, layer), index, types)
        means = sums / np.bincount(np.concatenate(words.word))[:, None]
        return np.asarray(means[np.array([words.types[form] for form in forms], np.int64)])

    def _read_words(self, language: str) -> _Words:
        [files] = self._files("extract", (language,))
        how = self._grid.words.normalise
        words = [[normalise(w, how) for w in self._run.read_table(f, ["word"]).column(0).to_pylist()] for f in files]
        names, index = numbered(chain.from_iterable(words))
        ends = np.cumsum([len(of_file) for of_file in words])
        return _Words(files, {name: i for i, name in enumerate(names)}, np.split(index, ends[:-1]))

    def _read_lexicon(self, direction: Pair) -> list[Pair]:
        """The (source word, target word) of every entry of a direction's dictionary."""
        if direction not in self._item["lexicons"]:
            raise _Unmeasured("no_lexicon")
        source, target = direction
        place = f"source={source}/target={target}"
        self._marks("lexicon", {f"dictionary {source}-{target}": place})
        table = self._run.read_table(f"lexicon/{place}.parquet", ["source_word", "target_word"])
        return list(zip(*table.to_pydict().values(), strict=True))

    def _files(self, stage: str, languages: Pair | tuple[str]) -> list[list[str]]:
        """The files of states of each language, in shard order."""
        sides = [self._item["sides"][language] for language in languages]
        places = {f"{KINDS[stage]} {side}": f"{self._item['states']}/lang={side}" for side in sides}
        shards = {name: m.receipt["shards"] for name, m in zip(places, self._marks(stage, places), strict=True)}
        if empty := [name for name, of_side in shards.items() if not of_side]:
            raise _Unmeasured(f"no_states: {', '.join(empty)}")
        return [[name for name, _ in of_side] for of_side in shards.values()]

    def _marks(self, stage: str, places: Mapping[str, str]) -> list[Mark]:
        """The marks of the cells of a stage at some places.

        Raises:
            _Unmeasured: One or more are not there; the reason holds their names.
        """
        marks = {name: self._run.mark_at(stage, place) for name, place in places.items()}
        lacking = [name for name, mark in marks.items() if mark is None]
        if lacking:
            self.missing.update(lacking)
            raise _Unmeasured(f"input_failed: {', '.join(lacking)}")
        return [mark for mark in marks.values() if mark]
