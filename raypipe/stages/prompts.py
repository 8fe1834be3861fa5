"""Stage prompts: the concept pairs of a model's tokenizer, their shots, and every prompt that patching will run.

One cell per decoder; none without `patching.table`. Pairs are chosen before any model is loaded, and the prompts are written to the run so
that each can be read later.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from raypipe import toy
from raypipe.errors import GridError, InputError
from raypipe.grid import Grid
from raypipe.gridpatching import MATCHED, source_pairs
from raypipe.interop.concepttable import NATIVE_NAMES, Concept, ConceptTable, read_concepts
from raypipe.models.locate import Checkpoint, tokenizer_fingerprint
from raypipe.models.schedule import without_step
from raypipe.rundir import Cell, RunDir, digest
from raypipe.schema import make_table
from raypipe.stages.context import Context, Item, Receipt
from raypipe.stages.plan import Plan, naming

NAME, VERSION = "prompts", 1
FIELDS = ("languages", "patching.names", "patching.pairs", "patching.shots", "patching.seed")
MOST_REMOVED = 0.05  # of the table: concepts with a word that the tokenizer drops or merges with its quote (2.4)
Direction = tuple[str, str]
Sets = list[dict[str, tuple[int, ...]]]


def decoders(plan: Plan) -> list[Checkpoint]:
    """The checkpoints that are patched, in grid order: those of models that are a decoder and nothing else.

    Raises:
        GridError: There are none, or two of one model hold the same weights.
    """
    if plan.grid.patching.table is None:
        return []
    found = [c for c in plan.checkpoints if plan.facts[c.model].components == ("decoder",)]
    if not found:
        raise GridError("patching.table: none of the models is a decoder; add one, or leave patching out")
    seen: dict[tuple[str, str], str] = {}
    for checkpoint in found:
        key = checkpoint.model, plan.weights[checkpoint.model, checkpoint.revision]
        other = seen.setdefault(key, checkpoint.revision)
        if other != checkpoint.revision:
            raise GridError(
                f"models.{checkpoint.model}.revisions: {other} and {checkpoint.revision} hold the same weights; leave one out"
            )
    return found


def trained_on(grid: Grid, model: str) -> tuple[str, ...]:
    """The languages of the grid that a model was trained on, in grid order."""
    stated = next(m.trained_on for m in grid.models if m.name == model)
    return tuple(language for language in grid.languages if stated is None or language in stated)


def cells(plan: Plan) -> list[Cell]:
    """One cell per decoder."""
    last = {checkpoint.model: checkpoint for checkpoint in decoders(plan)}
    if not last:
        return []
    names(plan.grid)
    fields = plan.fields(*FIELDS) | {"prompts version": VERSION}
    table = read_table(plan.grid).fingerprint
    return [
        Cell(
            NAME,
            (("model", model),),
            fields,
            {"concept table": table, "tokenizer": tokenizer_fingerprint(checkpoint)},
            {"prompts": [role + "+".join(pair) for role, pair in wanted(plan.grid, model)]},
        )
        for model, checkpoint in last.items()
    ]


def names(grid: Grid) -> dict[str, str]:
    """How each language calls itself; GridError where that is not known."""
    known = NATIVE_NAMES | grid.patching.names
    for language in grid.languages:
        if language not in known:
            raise GridError(
                f"patching.names: how {language} calls itself is not known; add it, such as {{{language}: …}}"
            )
    return {language: known[language] for language in grid.languages}


def wanted(grid: Grid, model: str) -> list[tuple[str, Direction]]:
    """The (role, languages) of the prompts that a model is given, each once."""
    targets, trained = grid.patching.directions(grid.languages), trained_on(grid, model)
    settings, seed = grid.patching.settings, grid.patching.seed
    sources = [("source", target) for target in targets]
    for setting in settings:
        sources += [("source", pair) for target in targets for pair in source_pairs(setting, target, trained, seed)]
    asked = ("target", *(["matched"] if MATCHED in settings else []))
    return [*((role, target) for role in asked for target in targets), *dict.fromkeys(sources)]


def read_table(grid: Grid) -> ConceptTable:
    """The grid's concept table; InputError where it is broken, or too short for the shots."""
    return read_concepts(toy.resolve(str(grid.patching.table)), grid.languages, 2 * grid.patching.shots + 2)


def run(context: Context, left: list[Cell]) -> None:
    """Chooses pairs and writes prompts for every model that has none yet."""
    context.watcher.start(NAME, len(left), "models")
    last = {checkpoint.model: checkpoint for checkpoint in decoders(context.plan)}
    asked = {cell["model"] for cell in left}
    for model in (model for model in context.plan.grid.models if model.name in asked):
        if unread := without_step(toy.resolve(model.path), model.revisions, naming(model)):
            context.watcher.note(f"{model.name}: no step in the names of {', '.join(unread)}; they are left out")
    items = [
        {
            "run": context.run.address,
            "grid": context.plan.grid.to_dict(),
            "checkpoint": last[cell["model"]].__dict__,
            "folder": f"patching/prompts/{cell.path}",
        }
        for cell in left
    ]
    for cell, receipt in context.each(context.cluster.map(work, items), left):
        for note in receipt["notes"]:
            context.watcher.note(f"{cell.label}: {note}")
        context.finish(cell, receipt)


def work(item: Item) -> Receipt:
    """Chooses the pairs of one model and writes its tables `pairs` and `prompts`."""
    from raypipe.models.load import load_tokenizer
    from raypipe.models.prompts import ids_of

    started, grid, run = time.perf_counter(), Grid(**item["grid"]), RunDir(item["run"])
    model = item["checkpoint"]["model"]
    tokenizer = load_tokenizer(Checkpoint(**item["checkpoint"]))
    table = read_table(grid)
    concepts, sets, removed = usable(tokenizer, grid, table)
    pairs, notes = choose(tokenizer, grid, concepts, sets)
    rows = list(_prompt_rows(tokenizer, grid, model, concepts, pairs))
    files = {
        f"{item['folder']}/{name}.parquet": run.write_table(
            f"{item['folder']}/{name}.parquet", make_table(f"patching_{name}", of_table)
        )
        for name, of_table in (("pairs", pairs), ("prompts", rows))
    }
    notes = [
        *table.notes(),
        *([f"{removed} concepts removed: the tokenizer drops a word or merges it with its quote"] if removed else []),
        *notes,
    ]
    return {
        "files": files,
        "seconds": time.perf_counter() - started,
        "notes": notes,
        "concepts": len(concepts),
        "dropped": table.dropped,
        "removed": removed,
        "tokenizer": vocabulary(tokenizer),
        "begins_with": tokenizer.convert_ids_to_tokens(ids_of(tokenizer, [""])[0]),  # as it begins every prompt
    }


def vocabulary(tokenizer: Any) -> str:
    """SHA-256 of a tokenizer's tokens and their ids."""
    return digest(sorted(tokenizer.get_vocab().items()))


def usable(tokenizer: Any, grid: Grid, table: ConceptTable) -> tuple[list[Concept], Sets, int]:
    """The concepts that can be prompted for in every language, their token sets, and how many were removed.

    InputError where these are more than `MOST_REMOVED` of the table.
    """
    from raypipe.models.prompts import keeps_position, token_sets

    fine = [True] * len(table.concepts)
    for language, name in names(grid).items():
        kept = keeps_position(tokenizer, [c.forms[language][0] for c in table.concepts], name)
        fine = [a and b for a, b in zip(fine, kept, strict=True)]
    sets = token_sets(tokenizer, [c.forms for c in table.concepts], grid.languages)
    fine = [a and all(of_concept.values()) for a, of_concept in zip(fine, sets, strict=True)]
    removed = fine.count(False)
    if removed > MOST_REMOVED * len(fine):
        raise InputError(
            f"{grid.patching.table}: {removed} of {len(fine)} concepts have a word that this tokenizer drops or merges with its "
            f"quote, more than {MOST_REMOVED:.0%}; use another tokenizer or table"
        )
    kept_sets = [of_concept for of_concept, keep in zip(sets, fine, strict=True) if keep]
    return [c for c, keep in zip(table.concepts, fine, strict=True) if keep], kept_sets, removed


def choose(
    tokenizer: Any, grid: Grid, concepts: Sequence[Concept], sets: Sets
) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of the table `pairs`, and what is odd among the token sets."""
    from raypipe.models.prompts import partial_characters
    from raypipe.science.selection import disjoint, draw_shots, select_pairs, third_concepts

    settings = grid.patching
    unions = [sorted(set().union(*of_concept.values())) for of_concept in sets]
    partial = partial_characters(tokenizer, sorted(set().union(*unions)))
    allowed = disjoint(unions)
    chosen = select_pairs(allowed, settings.pairs, settings.seed)
    third = third_concepts(chosen, allowed, settings.seed)
    rows = []
    for index, (source, target) in enumerate(chosen.tolist()):
        shots = draw_shots(len(concepts), (source, target), index, settings.shots, settings.seed).tolist()
        shown = shots[: settings.shots]
        collisions = [
            language
            for language in grid.languages
            if any(not set(sets[shot][language]).isdisjoint(sets[source][language]) for shot in shown)
        ]
        rows.append(
            {
                "pair": index,
                "source_concept": concepts[source].id,
                "target_concept": concepts[target].id,
                "third_concept": concepts[chosen[third[index], 0]].id,
                "third_pair": int(third[index]),
                "target_shots": [concepts[shot].id for shot in shown],
                "source_shots": [concepts[shot].id for shot in shots[settings.shots :]],
                "shot_collision": collisions,
                "partial_char": not partial.isdisjoint([*unions[source], *unions[target]]),
            }
        )
    alone = int((~allowed.any(axis=1)).sum())
    flagged = sum(not partial.isdisjoint(ids) for ids in unions)
    notes = [f"{alone} concepts have no admissible partner"] if alone else []
    return rows, notes + ([f"{flagged} concepts may start with a part of a character"] if flagged else [])


def _prompt_rows(
    tokenizer: Any, grid: Grid, model: str, concepts: Sequence[Concept], pairs: Sequence[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    from raypipe.models.prompts import encode, prompt

    forms, called = {c.id: c.forms for c in concepts}, names(grid)
    for role, (a, b) in wanted(grid, model):
        asked, before = ("source", "target") if role == "matched" else (role, role)
        words = [forms[row[f"{asked}_concept"]][a][0] for row in pairs]
        shown = [[(forms[s][a][0], forms[s][b][0]) for s in row[f"{before}_shots"]] for row in pairs]
        texts = [prompt(s, word, called[a], called[b]) for s, word in zip(shown, words, strict=True)]
        for row, text, ids in zip(pairs, texts, encode(tokenizer, texts, words), strict=True):
            yield {
                "pair": row["pair"],
                "role": role,
                "lang_in": a,
                "lang_out": b,
                "text": text.text,
                "n_tokens": len(ids.ids),
                "write_pos": ids.position,
                "n_sub_word": ids.sub_tokens,
            }
