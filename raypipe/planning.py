"""What a grid will take, before anything runs: cells, words, pieces, FLOPs, bytes, memory."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import islice, pairwise, product
from typing import Any

import numpy as np

from raypipe.grid import Grid
from raypipe.models.locate import Checkpoint, tokenizer_fingerprint
from raypipe.models.words import Encoded, encode
from raypipe.pipeline import all_cells
from raypipe.rundir import Cell
from raypipe.science.calign_draws import NULLS
from raypipe.science.occurrences import Places, normalise
from raypipe.stages import prompts
from raypipe.stages.agreement import compared, settings
from raypipe.stages.concepts import costs, scopes
from raypipe.stages.corpus import Sentences, choose_words, linked_texts, reasons
from raypipe.stages.extract import shard_aim, shard_sizes
from raypipe.stages.plan import Plan, Side, make_plan
from raypipe.stages.scores import placed_sides
from raypipe.stages.shards import naming_lines
from raypipe.stages.spread import BESIDES, EXACT, Clustering, memory_needed, places

Part = tuple[str, str]  # model and component
Counts = dict[Part, int]
ITEMSIZE = {"float32": 4, "float16": 2}  # bytes
BLOCK = 4096  # sentences that are held at a time


def estimate(grid: Grid) -> dict[str, Any]:
    """Counts exactly what the stages will read, and derives what they will compute and write; errors are those of a run.

    Returns:
        `cells` per stage; per language (or side of a pair) `sentences`, `words`, `points`, `types` of the points' words; per model, over
        all its `checkpoints`, `pieces` (tokens of the text forwarded, not those of AM2iCo), `forward_flops` (of the blocks up to the
        last layer read; an encoder's line taken to be as long as its decoder's), `state_bytes`; per model that is patched (`patching`),
        `prompts`, `targets` and `checkpoints`, each of which runs all of them;
        `lexicon_bytes` of the dictionaries' files, once for each direction that reads one;
        per cell of scores, `scored`: pairs of clusterings that it looks at, CALIGN's draws of them times their word types, and times k;
        per cell of agreement, `compared`: pairs of clusterings, and the sum of their points times k;
        `kmeans_work` (points x width x (k + BESIDES) of `stages.spread`), `kmeans_points` and `kmeans_bytes` (read once) of all
        clusterings, `kmeans_longest`, the work of the largest, `centroid_bytes`; `kmeans_flops_per_pass` over all clusterings, and
        `kmeans_flops_most` at max_iter passes; `in_group`, clusterings too large for one worker, and `in_group_for_time`, those
        spread to save time (`stages.spread` has the rule);
        `workers_that_hold_the_largest` without reading its shards again; `memory_per_worker`, bytes at the peak.
    """
    plan = make_plan(grid)
    cells = all_cells(plan)
    languages: dict[str, dict[str, int]] = {}
    tokenizers = _tokenizers(plan)
    pieces: Counts = defaultdict(int)
    states: Counts = defaultdict(int)  # points that the tokenizer does not lose
    for side in plan.corpus_sides():
        sentences, dropped, places = choose_words(plan.texts[side.language], grid.words, linked_texts(plan, side))
        words, readers, types = 0, _readers(plan, side, tokenizers), set[str]()
        for numbers, block, wanted in _blocks(sentences, places):
            words += sum(map(len, block))
            types.update(line[i] for line, tokens in zip(block, wanted, strict=True) for i in tokens)
            for (model, part), tokenizer, checkpoints, unread in readers:
                read = [[] if number in unread else tokens for number, tokens in zip(numbers, wanted, strict=True)]
                with naming_lines(side.language, numbers):
                    encoded = _encode(plan, model, part, tokenizer, block, read)
                pieces[model, part] += checkpoints * int(encoded.lengths.sum())
                states[model, part] += checkpoints * len(encoded.words)
        counts = {"sentences": len(dropped), "words": words, "points": len(places)}
        languages[side.name] = counts | {"types": len({normalise(word, grid.words.normalise) for word in types})}
    return {
        "cells": {name: len(of_stage) for name, of_stage in cells.items()},
        "languages": languages,
        "models": {model: _of_model(plan, model, pieces, states) for model in plan.facts},
        "patching": _patched(plan),
        "lexicon_bytes": sum(found[0].stat().st_size for found in plan.lexicon.values() if found),
    } | (_clusterings(plan, languages) | _later(plan, cells, languages))


def _blocks(sentences: Sentences, places: Places) -> Iterator[tuple[range, list[list[str]], list[list[int]]]]:
    """The text in blocks: the sentences' numbers, their words, and the chosen tokens of each."""
    walk, first = iter(sentences), 0
    while block := list(islice(walk, BLOCK)):
        numbers = range(first, first + len(block))
        ends = np.searchsorted(places[:, 0], range(first, numbers.stop + 1))
        yield numbers, block, [places[start:stop, 1].tolist() for start, stop in pairwise(ends)]
        first = numbers.stop


def _encode(
    plan: Plan, model: str, part: str, tokenizer: Any, sentences: list[list[str]], wanted: list[list[int]]
) -> Encoded:
    facts, settings = plan.facts[model], plan.grid.states_of(model)
    needs_context = settings.decoder == "predict" and facts.components == ("decoder",)
    return encode(
        tokenizer,
        sentences,
        wanted,
        facts.max_pieces,
        long_sentences=settings.long_sentences,
        needs_context=needs_context,
    )


def _readers(plan: Plan, side: Side, tokenizers: list[tuple[Part, Any, int]]) -> list[tuple[Part, Any, int, set[int]]]:
    """The tokenizers, once for each side that reads this one's points, with the lines that have no source there."""
    found = []
    for (model, part), tokenizer, checkpoints in tokenizers:
        for reader in plan.sides(model, part):
            if plan.corpus_of(reader) == side:
                unread = _dropped(plan, str(reader.other)) if plan.reads_pair(model, part) else set[int]()
                found.append(((model, part), tokenizer, checkpoints, unread))
    return found


def _dropped(plan: Plan, language: str) -> set[int]:
    return {number for number, why in enumerate(reasons(plan.texts[language], plan.grid.words)) if why}


def _tokenizers(plan: Plan) -> list[tuple[Part, Any, int]]:
    """Each distinct tokenizer: its model and component, itself, and how many checkpoints read with it."""
    from raypipe.models.load import load_tokenizer

    users: dict[tuple[str, str, str], list[Checkpoint]] = {}
    for checkpoint, part in plan.cells_of_models():
        users.setdefault((checkpoint.model, part, tokenizer_fingerprint(checkpoint)), []).append(checkpoint)
    return [((model, part), load_tokenizer(same[0]), len(same)) for (model, part, _), same in users.items()]


def _of_model(plan: Plan, model: str, pieces: Counts, states: Counts) -> dict[str, int]:
    facts, parts = plan.facts[model], [part for name, part in plan.layers if name == model]
    share = {part: max(*plan.layers[model, part], 1) / facts.layers_of[part] for part in parts}
    forwarded = {part: share[part] * facts.parameters_of[part] for part in parts}
    if "decoder" in parts:  # reads after a whole encoder, if there is one
        forwarded["decoder"] += facts.parameters_of.get("encoder", 0)
    return {
        "checkpoints": sum(c.model == model for c in plan.checkpoints),
        "pieces": sum(pieces[model, part] for part in parts),
        "forward_flops": round(sum(2 * forwarded[part] * pieces[model, part] for part in parts)),
        "state_bytes": sum(states[model, part] * len(plan.layers[model, part]) for part in parts)
        * facts.width
        * ITEMSIZE[plan.grid.dtype.store],
    }


def _patched(plan: Plan) -> dict[str, dict[str, int]]:
    grid, checkpoints = plan.grid, Counter(checkpoint.model for checkpoint in prompts.decoders(plan))
    return {
        model: {
            "prompts": len(prompts.wanted(grid, model)) * grid.patching.pairs,
            "targets": len(grid.patching.directions(grid.languages)),
            "checkpoints": count,
        }
        for model, count in checkpoints.items()
    }


def _later(
    plan: Plan, cells: dict[str, list[Cell]], languages: dict[str, dict[str, int]]
) -> dict[str, list[tuple[int, ...]]]:
    """What the cells of scores and of agreement look at."""

    def together(sides: Iterable[Side], what: str) -> int:
        return sum(languages[plan.corpus_of(side).name][what] for side in sides)

    calign, several = plan.grid.calign, settings(plan.grid)
    draws, of_k = len(NULLS) * calign.null_draws + calign.resamples, sum(k for _, k, _ in several)
    both = [(k + other) // 2 for _, (_, k, _), (_, other, _) in compared(several)]
    scored, agreed = list[tuple[int, ...]](), list[tuple[int, ...]]()
    for cell in cells["scores"]:
        group, layers = tuple(cell["pair"].split("+")), len(cell.axes["layers"])
        sides = placed_sides(plan, group, cell["model"], cell["component"]).values()
        alone = len(group) > 2  # COLAP of all languages, without CALIGN
        drawn, types = 0 if alone else layers * draws, together((side for _, side in sides), "types")
        scored.append((layers * len(several), drawn * len(several) * types, drawn * of_k))
    for cell in cells["agreement"]:
        of_scopes = scopes(plan, cell["model"], cell["component"])
        agreed.append((len(of_scopes) * len(both), sum(together(scope, "points") for scope in of_scopes) * sum(both)))
    return {"scored": scored, "compared": agreed}


def _clusterings(plan: Plan, languages: dict[str, dict[str, int]]) -> dict[str, int]:
    """K-means work and the peak memory of a worker, over all models."""
    settings, resources, peak = plan.grid.concepts, plan.grid.resources, 0
    cells: list[Clustering] = []
    for checkpoint, part in plan.cells_of_models():
        facts, layers = plan.facts[checkpoint.model], len(plan.layers[checkpoint.model, part])
        sizes = shard_sizes(plan, checkpoint.model, part)
        weights = 4 * (facts.parameters + facts.vocab * facts.width)
        # states, their Arrow columns, and the file being written
        peak = max(peak, weights + 3 * sizes[1] * layers * facts.width * 4)
        for scope in scopes(plan, checkpoint.model, part):
            points = [languages[plan.corpus_of(side).name]["points"] for side in scope]
            shards = sum(-(-n // shard_aim(n, *sizes)) for n in points)
            kinds = product(settings.k, settings.algorithm)
            some = [
                Clustering(sum(points), facts.width, k, shards, algorithm, settings.sample) for k, algorithm in kinds
            ]
            cells += some * (len(settings.seeds) * layers)
    where, _ = places(cells, costs(plan.grid, resources.workers))
    needed = [memory_needed(cell) for cell in cells]
    shares = (
        most if place == "whole" else min(most // resources.workers, resources.memory)
        for most, place in zip(needed, where, strict=True)
    )
    largest = max((most for most, cell in zip(needed, cells, strict=True) if cell.spreads), default=0)
    work = [cell.fitted * cell.width * (cell.k + BESIDES) for cell in cells]
    flops = sum(2 * cell.fitted * cell.width * cell.k for cell in cells if cell.algorithm in EXACT)
    return {
        "kmeans_work": sum(work),
        "kmeans_longest": max(work, default=0),
        "centroid_bytes": sum(cell.k * cell.width * 4 for cell in cells),
        "kmeans_points": sum(cell.points for cell in cells),
        "kmeans_bytes": sum(cell.points * cell.width for cell in cells) * ITEMSIZE[plan.grid.dtype.store],
        "kmeans_flops_per_pass": flops,
        "kmeans_flops_most": flops * settings.max_iter * settings.n_init,
        "in_group": where.count("memory"),
        "in_group_for_time": where.count("time"),
        "workers_that_hold_the_largest": -(-largest // int(resources.memory)),
        "memory_per_worker": int(max([peak, *shares])),
    }
