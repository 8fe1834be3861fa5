"""Stage lexicon: one ranked dictionary per direction, from files, by inverting the other direction, or by word alignment."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

from raypipe.errors import InputError
from raypipe.interop.alignments import PharaohLinks
from raypipe.interop.dictionaries import read_dictionary
from raypipe.rundir import Cell, RunDir, file_digest
from raypipe.schema import make_table
from raypipe.science.occurrences import dictionary_from_links, normalise
from raypipe.stages.context import Context, Item, Receipt
from raypipe.stages.corpus import NOT_READ, ROW_GROUP
from raypipe.stages.plan import Plan

NAME, VERSION = "lexicon", 2
OF_FILES = ("lexicon.format", "lexicon.nbest_order", "lexicon.multiword", "words.normalise")


def cells(plan: Plan) -> list[Cell]:
    """One cell per direction that has a file, an inverse, or an aligner."""
    induce = plan.fields("lexicon.induce")["lexicon.induce"]
    made = []
    for source, target in plan.directions():
        key = (("source", source), ("target", target))
        if induce:
            corpora = {f"text of {lang}": plan.corpus[lang] for lang in (source, target)}
            fields = plan.fields("lexicon.induce", "words.normalise", "words.min_words", "words.max_words") | {
                "lexicon version": VERSION,
                "eflomal version": _installed("eflomal"),
            }
            if plan.grid.words.lines or plan.fields("lexicon.lines")["lexicon.lines"]:
                fields |= {"lexicon.lines": str(_aligned(plan, source, target))}
            made.append(Cell(NAME, key, fields, corpora))
        elif found := plan.lexicon[source, target]:
            path, inverted = found
            fields = plan.fields(*OF_FILES) | {
                "inverted": inverted,
                "lexicon version": VERSION,
            }
            made.append(Cell(NAME, key, fields, {f"dictionary {source}-{target}": file_digest(path)}))
    return made


def _aligned(plan: Plan, source: str, target: str) -> range:
    """The lines that are aligned of a pair."""
    if lines := plan.fields("lexicon.lines")["lexicon.lines"]:
        return range(*lines)
    return _common(plan.grid.words.reads(source), plan.grid.words.reads(target))


def _common(a: range, b: range) -> range:
    return range(max(a.start, b.start), min(a.stop, b.stop))


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def skipped(plan: Plan) -> list[str]:
    """Directions without any dictionary, as `de-fr`."""
    return [f"{s}-{t}" for (s, t), found in plan.lexicon.items() if found is None]


def run(context: Context, left: list[Cell]) -> None:
    """Reads or induces each dictionary that is not there yet."""
    grid, settings = context.plan.grid, context.plan.fields("lexicon.induce", *OF_FILES)
    if settings["lexicon.induce"]:
        context.watcher.note(
            "lexicon: eflomal draws its own random seed; the induced dictionaries are kept in the run and reused"
        )
    context.watcher.start(NAME, len(left), "directions")
    items = list[Item]()
    for cell in left:
        source, target = cell["source"], cell["target"]
        item: Item = {"run": context.run.address, "source": source, "target": target}
        item |= {"induce": settings["lexicon.induce"], "normalise": settings["words.normalise"]}
        lines = _aligned(context.plan, source, target)
        item["lines"] = lines.start, lines.stop
        item["circular"] = bool(item["induce"]) and any(_common(lines, grid.words.reads(x)) for x in (source, target))
        item["texts"] = [
            f"corpus/lang={side.name}/sentences.parquet"
            for language in (source, target)
            for side in context.plan.corpus_sides()
            if side.language == language and {source, target} >= set(side.pair or ())
        ]
        if found := context.plan.lexicon.get((source, target)):
            item |= {"path": str(found[0]), "inverted": found[1]}
            item |= {name: settings[f"lexicon.{name}"] for name in ("format", "nbest_order", "multiword")}
            if found[1]:
                context.watcher.note(f"{source}-{target}: no dictionary of its own; {found[0].name} is inverted")
        items.append(item)
    context.map_cells(work, left, items)


def work(item: Item) -> Receipt:
    """Reads one direction's dictionary, or induces it, and writes it ranked."""
    started = time.perf_counter()
    run, source, target = RunDir(item["run"]), item["source"], item["target"]
    entries, dropped = _induced(run, item) if item["induce"] else _read(item)
    rows = [
        {"source_word": s, "target_word": t, "rank": rank, "probability": probability, "count": count}
        for s, ranked in entries.items()
        for rank, (t, probability, count) in enumerate(ranked)
    ]
    name = f"lexicon/source={source}/target={target}.parquet"
    receipt = {
        "words": len(entries),
        "entries": len(rows),
        "inverted": bool(item.get("inverted")),
        "circular": item["circular"],
    }
    return (
        {"files": {name: run.write_table(name, make_table("lexicon", rows))}, "seconds": time.perf_counter() - started}
        | receipt
        | dropped
    )


Ranked = Mapping[str, Sequence[tuple[str, float | None, int | None]]]


def _read(item: Item) -> tuple[Ranked, Receipt]:
    how = {name: item[name] for name in ("format", "nbest_order", "multiword")}
    found = read_dictionary(item["path"], **how, normalise=partial(normalise, how=item["normalise"]))
    found = found.inverted() if item["inverted"] else found
    entries = {word: [(e.target, e.probability, e.count) for e in ranked] for word, ranked in found.entries.items()}
    return entries, {"dropped_multiword": found.dropped_multiword, "dropped_duplicates": found.dropped_duplicates}


def _induced(run: RunDir, item: Item) -> tuple[Ranked, Receipt]:
    """Counts links of both alignment directions' intersection over the sentences kept in both languages.

    Raises:
        InputError: The optional package is not installed, or no sentence is kept.
    """
    try:
        import eflomal
    except ImportError:
        raise InputError(
            "lexicon.induce: eflomal is not installed; `pip install raypipe[align]` (needs a C compiler)"
        ) from None
    source, target = (_Kept(run, item, side) for side in (0, 1))
    if not (sentences := len(source)):
        raise InputError(f"lexicon.induce: no sentence is kept in both {item['source']} and {item['target']}")
    with TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("forward", "reverse")]
        lines = ((" ".join(words) + "\n" for words in side) for side in (source, target))
        eflomal.Aligner(model=3).align(*lines, links_filename_fwd=str(files[0]), links_filename_rev=str(files[1]))
        links = _Common(*(PharaohLinks(file, source, target, sentences) for file in files))
        return dictionary_from_links(source, target, links, [True] * sentences), {
            "dropped_multiword": 0,
            "dropped_duplicates": 0,
        }


class _Kept:
    """The words of one side's aligned sentences, in the form that types are compared in; read anew on each walk."""

    def __init__(self, run: RunDir, item: Item, side: int) -> None:
        self._run, self._places, self._side, self._how = run, item["texts"], side, item["normalise"]
        self._lines = range(*item["lines"])

    def __iter__(self) -> Iterator[list[str]]:
        for first in count(0, ROW_GROUP):
            rows = [self._run.read_rows(p, first, first + ROW_GROUP, ["words", "dropped"]) for p in self._places]
            for number, pair in enumerate(zip(*(table.to_pylist() for table in rows), strict=True), first):
                if number in self._lines and all(row["dropped"] in ("", NOT_READ) for row in pair):
                    yield [normalise(word, self._how) for word in pair[self._side]["words"]]
            if not rows[0].num_rows:
                return

    def __len__(self) -> int:
        return sum(1 for _ in self)


class _Common:
    """The links that two alignments have in common, ascending."""

    def __init__(self, *alignments: PharaohLinks) -> None:
        self._alignments = alignments

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return (sorted(set(a) & set(b)) for a, b in zip(*self._alignments, strict=True))

    def __len__(self) -> int:
        return len(self._alignments[0])
