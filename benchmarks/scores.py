"""CALIGN against the loop of the released code, on concept files of a real model; and a sweep of thresholds against one.

- reference: the double loop of the published procedure over sets of words and lists of translations (`alignment_loop.py`), run as
  it is there, at the level of a module, and again inside a function, whose variables Python finds faster;
- ours: `Cooccurrence` and its evaluation, from the same words, concepts and dictionary in memory.

    python benchmarks/scores.py --model DIR --text 'text/{lang}.txt' --lexicon 'dict/{source}-{target}.txt' [--folder results]

The grid is run once and exported, and the exported cluster files are read back: k = 600 concepts of each of two languages, the 10
best translations. Pairs of aligned concepts must be equal, in both directions, in the official semantics. The sweep has 10 thetas and
5 numbers of translations, with and without the rows of word pairs, in the default semantics, without nulls. Each time is the median
of the repetitions, whose kinds alternate; CPU seconds of the process, and wall seconds beside them.
"""

from __future__ import annotations

import argparse
import os
import runpy
import textwrap
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

THETAS = ("0.50", "0.55", "0.60", "0.65", "0.70", "0.75", "0.80", "0.85", "0.90", "0.95")
TRANSLATIONS = (1, 3, 5, 10, 20)
LOOP = str(Path(__file__).with_name("alignment_loop.py"))
Given = dict[str, Any]
Groups = dict[int, set[str]]
Clustering = tuple[list[str], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a saved model's directory")
    parser.add_argument("--text", required=True, help="files of one sentence per line, with {lang}")
    parser.add_argument("--lexicon", required=True, help="arrow dictionaries, with {source} and {target}")
    parser.add_argument("--languages", nargs=2, default=["en", "de"])
    parser.add_argument("--layer", type=int, default=3)
    parser.add_argument("--k", type=int, default=600)
    parser.add_argument("--theta", default="0.3", help="of the comparison with the reference")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--folder", type=Path, default=Path("scores-benchmark"))
    options = parser.parse_args()
    files, dictionaries = concept_files(options)
    for source, target in (options.languages, options.languages[::-1]):
        sides = read(files[source]), read(files[target])
        compare(f"{source}-{target}", *sides, dictionaries[source, target], options)
        sweep(f"{source}-{target}", *sides, dictionaries[source, target], options)


def concept_files(options: argparse.Namespace) -> tuple[dict[str, Path], dict[tuple[str, str], Path]]:
    """The cluster file of each language and the dictionary of each direction, made where they are missing."""
    import raypipe
    from raypipe.exporting import export_conceptx

    out = options.folder / f"export-{options.layer}-{options.k}"
    if not out.is_dir():
        grid = raypipe.Grid(
            models={"name": "model", "path": os.path.abspath(options.model)},
            layers=[options.layer],
            languages=options.languages,
            corpus={"path": os.path.abspath(options.text)},
            lexicon={"format": "arrow", "path": os.path.abspath(options.lexicon)},
            concepts={"k": options.k},
            calign={"null_draws": 0},
        )
        run = raypipe.run(grid, options.folder / f"run-{options.layer}-{options.k}", "inprocess")
        export_conceptx(run.path, out)
    found = {file.parent.parent.parent.name.removeprefix("scope="): file for file in out.rglob("clusters.txt")}
    directions = [tuple(options.languages), tuple(options.languages[::-1])]
    return found, {(s, t): out / f"lexicon/{s}-{t}.txt" for s, t in directions}


def read(file: Path) -> Clustering:
    from raypipe.interop.clusterfiles import read_clusters

    found = read_clusters(file, official=True)
    return found.words, found.concepts


def groups(side: Clustering) -> Groups:
    found: Groups = {}
    for word, concept in zip(side[0], side[1].tolist(), strict=True):
        found.setdefault(concept, set()).add(word)
    return found


def as_module(given: Given) -> dict[int, set[int]]:
    """The published loop over the variables of a module."""
    aligned: dict[int, set[int]] = runpy.run_path(LOOP, given)["aligned"]
    return aligned


def as_function(given: Given) -> dict[int, set[int]]:
    """The same lines over the variables of a function."""
    made: dict[str, Any] = {}
    lines = textwrap.indent(Path(LOOP).read_text(encoding="utf-8"), "    ")
    exec(f"def loop({', '.join(given)}):\n{lines}\n    return aligned", made)
    aligned: dict[int, set[int]] = made["loop"](**given)
    return aligned


def compare(name: str, source: Clustering, target: Clustering, lexicon: Path, options: argparse.Namespace) -> None:
    from raypipe.interop.dictionaries import read_dictionary
    from raypipe.science.calign import Cooccurrence
    from raypipe.science.thresholds import AlignThresholds

    ranked = read_dictionary(lexicon, semantics="official").ranked()
    cut = {word: [(target, 1.0) for target in found[:10]] for word, found in ranked.items()}
    sides = groups(source), groups(target)
    thresholds = AlignThresholds(options.theta, 10, min_types=4, size_ratio="0.4", official=True)

    def theirs(run: Callable[[Given], dict[int, set[int]]]) -> set[tuple[int, int]]:
        given = {"source": groups(source), "target": groups(target), "dictionary": cut}
        aligned = run(given | {"theta": float(options.theta), "types": 4, "ratio": 0.4})
        return {(concept, found) for concept, targets in aligned.items() for found in targets}

    def ours() -> set[tuple[int, int]]:
        return set(Cooccurrence(source, target, ranked, [10]).evaluate(thresholds).pairs)

    print(
        f"\n{name}: {len(sides[0])} and {len(sides[1])} concepts, {len(source[0])} and {len(target[0])} points, "
        f"{sum(map(len, sides[0].values()))} types in concepts, dictionary of {len(ranked)} words"
    )
    references = {"reference": partial(theirs, as_module), "reference in a function": partial(theirs, as_function)}
    found = ours()
    for name, reference in references.items():
        assert reference() == found, f"{name}: the pairs of aligned concepts differ"
    print(f"  {len(found)} pairs of aligned concepts, equal")
    took = alternate(references | {"ours": ours}, options.repeats)
    for name in references:
        print(f"  ours is {ratio(took, name, 'ours')} as fast as the {name}")


def sweep(name: str, source: Clustering, target: Clustering, lexicon: Path, options: argparse.Namespace) -> None:
    from raypipe.interop.dictionaries import read_dictionary
    from raypipe.science.calign import Cooccurrence
    from raypipe.science.thresholds import AlignThresholds

    ranked = read_dictionary(lexicon).ranked()

    def scored(thetas: tuple[str, ...], depths: tuple[int, ...], rows: bool) -> Callable[[], list[int]]:
        def work() -> list[int]:
            tables = Cooccurrence(source, target, ranked, depths)
            settings = [AlignThresholds(theta, n) for theta in thetas for n in depths]
            return [tables.evaluate(setting, rows=rows).aligned for setting in settings]

        return work

    for rows in (False, True):
        one, all_of_them = scored(("0.80",), (10,), rows), scored(THETAS, TRANSLATIONS, rows)
        assert one()[0] == all_of_them()[THETAS.index("0.80") * len(TRANSLATIONS) + TRANSLATIONS.index(10)]
        what = "with rows" if rows else "counts and pairs"
        took = alternate({f"one threshold, {what}": one, f"sweep of 50, {what}": all_of_them}, options.repeats)
        print(f"  the sweep costs {ratio(took, *list(took)[::-1])}")


def alternate(kinds: dict[str, Callable[[], Any]], repeats: int) -> dict[str, tuple[float, float]]:
    """CPU and wall seconds of each kind: medians."""
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds}
    for _ in range(repeats):
        for name, work in kinds.items():
            cpu, wall = time.process_time(), time.perf_counter()
            work()
            took[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    medians = {}
    for name, times in took.items():
        medians[name] = median(cpu for cpu, _ in times), median(wall for _, wall in times)
        print(f"  {name:34s} {medians[name][0] * 1e3:9.1f} ms CPU  {medians[name][1] * 1e3:9.1f} ms")
    return medians


def ratio(took: dict[str, tuple[float, float]], more: str, less: str) -> str:
    cpu, wall = (a / b for a, b in zip(took[more], took[less], strict=True))
    return f"{cpu:.2f} x (wall {wall:.2f} x)"


if __name__ == "__main__":
    main()
