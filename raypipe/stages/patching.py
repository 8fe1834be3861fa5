"""Stage patching: what each checkpoint answers when the states of one concept are put in place of another's.

One cell per (model, revision, target), a target being the languages (I, O) of the patched prompts. The states of source prompts come from
the stage sources. Definitions: concept_patching.md.
"""

from __future__ import annotations

import time
from collections.abc import Set
from pathlib import Path
from typing import Any

import numpy as np

from raypipe.errors import InputError
from raypipe.grid import Grid
from raypipe.gridpatching import MATCHED
from raypipe.interop.lines import read_counts
from raypipe.rundir import Cell, RunDir, file_digest
from raypipe.stages import sources
from raypipe.stages.context import Context, Item, Receipt
from raypipe.stages.patching_rows import Outcome, Target
from raypipe.stages.patching_summary import SOURCE, TARGET, THIRD, summarise
from raypipe.stages.plan import Plan
from raypipe.stages.prompts import Direction, decoders, trained_on
from raypipe.stages.sources import Decoder, States

NAME, VERSION = "patching", 6
FIELDS = (
    "languages",
    "patching.settings",
    "patching.generate",
    "patching.resamples",
    "patching.window",
)


def cells(plan: Plan, read: list[Cell]) -> list[Cell]:
    """One cell per checkpoint whose sources are read and target; none without `patching.table`."""
    fields = plan.fields(*FIELDS) | {"patching version": VERSION}
    made = []
    for checkpoint, of_sources in zip(decoders(plan), read, strict=True):
        own = fields | {"models.trained_on": list(trained_on(plan.grid, checkpoint.model))}
        own |= {"stage, step, tokens and phase": checkpoint.progress}
        for target in plan.grid.patching.directions(plan.grid.languages):
            counts = word_counts(plan.grid, target[0])
            more = {"word counts": file_digest(counts)} if counts else {}
            key = (*of_sources.key, ("target", "+".join(target)))
            made.append(Cell(NAME, key, own, {"sources": of_sources.fingerprint} | more))
    return made


def word_counts(grid: Grid, language: str) -> Path | None:
    """The file with the counts of a language's words, if the grid names one.

    Raises:
        InputError: No language has one.
    """
    if (pattern := grid.patching.frequencies) is None:
        return None
    files = {of: Path(pattern.replace("{lang}", of)) for of in grid.languages}
    if not any(file.is_file() for file in files.values()):
        raise InputError(f"{pattern}: no such file for any language; check patching.frequencies")
    return files[language] if files[language].is_file() else None


def run(context: Context, left: list[Cell]) -> None:
    """Patches every target of every checkpoint that is not there yet; workers go through the targets of one checkpoint together."""
    context.watcher.start(NAME, len(left), "targets")
    items = [
        sources.item(context, cell) | {"target": cell["target"].split("+"), "folder": f"patching/parts/{cell.path}"}
        for cell in left
    ]
    for cell, receipt in context.each(context.cluster.stream(Worker, items), left):
        context.finish(cell, receipt)


class Worker:
    """Holds one checkpoint at a time and patches one target after the other."""

    def __init__(self) -> None:
        self._path = ""
        self._held: Decoder | None = None

    def __call__(self, item: Item) -> Receipt:
        """Patches one target, and writes its tables."""
        sources.held(RunDir(item["run"]), item["sources"])
        if self._held is None or self._path != item["sources"]:
            self._held = None  # the old model leaves before the new one comes
            self._held, self._path = Decoder(item), item["sources"]
        return _patch(self._held, item)


def _patch(decoder: Decoder, item: Item) -> Receipt:
    """Patches one target: its unpatched runs, every setting and the null at every start layer."""
    started, before, grid = time.perf_counter(), decoder.patcher.token_forwards, decoder.grid
    direction: Direction = (item["target"][0], item["target"][1])
    target = Target(decoder.pairs, decoder.concepts, decoder.sets, grid.languages, direction)
    outcomes = _outcomes(decoder, item["sources"], direction, target)
    checkpoint = decoder.checkpoint
    stage, step, tokens, phase = checkpoint.progress or (None, None, None, None)
    keys = {
        "model": checkpoint.model,
        "revision": checkpoint.revision,
        "commit": checkpoint.commit or "",
        "stage": stage,
        "phase": phase or None,
        "step": step,
        "tokens_seen": tokens,
        "target_in": direction[0],
        "target_out": direction[1],
    }
    tables = {"scores": target.scores(keys, outcomes), "answers": target.answers(keys, outcomes)}
    pieces = {
        name: decoder.rows(role, direction, ["n_sub_word"]).column(0).to_pylist()
        for name, role in (("sub_tokens", "source"), ("sub_tokens_target", "target"))
    }
    counts = word_counts(grid, direction[0])
    strata = target.strata(pieces, read_counts(counts) if counts else None)
    tables |= summarise(grid, decoder.pairs, keys, tables, strata)
    places = {f"{item['folder']}/{name}.parquet": table for name, table in tables.items()}
    files = {name: decoder.run.write_table(name, table) for name, table in places.items()}
    settings = {outcome.setting for outcome in outcomes if outcome.layer >= 0}
    forwards = _null_apart(before, decoder.patcher.token_forwards, settings)
    return {"files": files, **decoder.costs(started, forwards)}


def _outcomes(decoder: Decoder, path: str, direction: Direction, target: Target) -> list[Outcome]:
    patcher, settings, each = decoder.patcher, decoder.grid.patching.settings, len(decoder.pairs)
    generate, asked = decoder.grid.patching.generate, decoder.prompts_of("target", direction)
    clean_source = patcher.unpatched(decoder.prompts_of("source", direction), target.wanted, generate)
    # Per setting what is put in (None: the prompt's own states), how many sources it has, and their overlap.
    put_in: dict[str, tuple[States | None, list[int], list[float] | None]] = {}
    for setting in settings:
        if setting == "tgt_tgt":
            put_in[setting] = None, [1] * each, None
        elif setting == "tgt":
            put_in[setting] = clean_source.states, [1] * each, target.overlap([direction])
        elif mean := sources.mean_of(decoder.grid, decoder.checkpoint.model, setting, direction):
            put_in[setting] = *sources.read(decoder.run, path, mean), target.overlap(mean.sources)
    if "seen" in put_in:
        seen, counts, _ = put_in["seen"]
        put_in[THIRD] = np.asarray(seen)[[row["third_pair"] for row in decoder.pairs]], counts, None
    if put_in:
        states, window = [of for of, _, _ in put_in.values()], decoder.grid.patching.window
        patched = patcher.patched(asked, states, target.wanted, generate, window=window)
        clean_target = patched[0][-1]  # the last start layer changes nothing that is read
    else:
        patched, clean_target = [], patcher.unpatched(asked, target.wanted, generate)
    outcomes = [
        _outcome(decoder, SOURCE, -1, clean_source),
        _outcome(decoder, TARGET, -1, clean_target),
    ]
    if MATCHED in settings:
        matched = patcher.unpatched(decoder.prompts_of("matched", direction), target.wanted, generate)
        outcomes.append(_outcome(decoder, MATCHED, -1, matched))
    for (name, (_, counts, overlap)), layers in zip(put_in.items(), patched, strict=True):
        outcomes += [_outcome(decoder, name, j, scored, counts, overlap) for j, scored in enumerate(layers)]
    return outcomes


def _outcome(decoder: Decoder, setting: str, layer: int, scored: Any, *of_sources: Any) -> Outcome:
    from raypipe.models.prompts import decode

    texts = decode(decoder.tokenizer, scored.answers)
    return Outcome(setting, layer, scored.logprobs, scored.answers, texts, *of_sources)


def _null_apart(before: dict[str, int], after: dict[str, int], patched: Set[str]) -> dict[str, int]:
    """The tokens run between two counts; patched settings run side by side, so that the null's share of them is an equal one."""
    work = {part: after[part] - before[part] for part in ("clean", "slots", "patched")}
    null = {part: work[part] // len(patched) if THIRD in patched else 0 for part in ("slots", "patched")}
    return {part: count - null.get(part, 0) for part, count in work.items()} | {"null": sum(null.values())}
