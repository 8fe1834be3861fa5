"""Stage patching: what each checkpoint answers when the states of one concept are put in place of another's.

One cell per (model, revision, target), a target being the languages (I, O) of the patched prompts. A worker holds one checkpoint and
the mean states of its source prompts, which serve every target. Definitions: concept_patching.md.
"""

from __future__ import annotations

import hashlib
import resource
import time
from collections import defaultdict
from collections.abc import Sequence, Set
from dataclasses import replace
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypipe.errors import InputError, ModelError, RunError
from raypipe.grid import Grid
from raypipe.gridpatching import DISJOINT, MATCHED, source_pairs
from raypipe.interop.lines import read_counts
from raypipe.models.locate import Checkpoint
from raypipe.rundir import Cell, RunDir, digest, file_digest
from raypipe.stages.context import Context, Item, Receipt
from raypipe.stages.patching_rows import Outcome, Target, meeting
from raypipe.stages.patching_summary import summarise
from raypipe.stages.plan import Plan
from raypipe.stages.prompts import Direction, decoders, read_table, trained_on, vocabulary
from raypipe.stages.shards import torch_device

NAME, VERSION = "patching", 4
FIELDS = (
    "languages",
    "patching.settings",
    "patching.generate",
    "patching.resamples",
    "patching.path",
    "patching.window",
    "dtype.compute",
    "resources.threads",
)
THIRD = "third"
Sources = tuple[Direction, ...]
States = NDArray[np.float32]  # [pairs, L - 1, d]


def cells(plan: Plan, prompts: list[Cell]) -> list[Cell]:
    """One cell per checkpoint of a decoder and target; none without `patching.table`."""
    fields = plan.fields(*FIELDS) | {
        f"{name} version": version(name) for name in ("torch", "transformers", "tokenizers")
    }
    fields |= {"device": "gpu" if plan.grid.resources.gpus_per_worker else "cpu", "patching version": VERSION}
    made = []
    for checkpoint in decoders(plan):
        of_model = next(cell for cell in prompts if cell["model"] == checkpoint.model)
        inputs = {"prompts": of_model.fingerprint, "model weights": plan.weights[checkpoint.model, checkpoint.revision]}
        own = fields | {"models.trained_on": list(trained_on(plan.grid, checkpoint.model))}
        own |= {"stage, step, tokens and phase": checkpoint.progress}
        for target in plan.grid.patching.directions(plan.grid.languages):
            counts = word_counts(plan.grid, target[0])
            more = {"word counts": file_digest(counts)} if counts else {}
            made.append(replace(_cell_key(checkpoint, target), fields=own, inputs=inputs | more))
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
    plan, unfinished = context.plan, defaultdict[tuple[str, str], list[Direction]](list)
    for cell in left:
        unfinished[cell["model"], cell["revision"]].append(_target(cell))
    grid = plan.grid.to_dict()
    items = [
        {
            "run": context.run.address,
            "grid": grid,
            "checkpoint": next(
                c for c in decoders(plan) if (c.model, c.revision) == (cell["model"], cell["revision"])
            ).__dict__,
            "target": _target(cell),
            "unfinished": unfinished[cell["model"], cell["revision"]],
            "folder": f"patching/parts/{cell.path}",
        }
        for cell in left
    ]
    for cell, receipt in context.each(context.cluster.stream(Worker, items), left):
        context.finish(cell, receipt)
    _refuse_twins(context)


def _refuse_twins(context: Context) -> None:
    """Fails what has the weights of an earlier revision of the grid: a Hub may hold one behind two steps.

    Random weights are no checkpoint; a step 0 may have been drawn the same way.
    """
    first: dict[tuple[str, str], str] = {}
    for checkpoint in decoders(context.plan):
        for target in context.plan.grid.patching.directions(context.plan.grid.languages):
            cell = _cell_key(checkpoint, target)
            mark = context.run.mark(cell)
            if mark is None or checkpoint.random_seed is not None:
                continue
            other = first.setdefault((checkpoint.model, mark.receipt["weights"]), checkpoint.revision)
            if other != checkpoint.revision:
                context.run.unmark(cell)
                context.fail(cell, f"its weights are those of revision {other}; leave one of the two out", "")


def _cell_key(checkpoint: Checkpoint, target: Direction) -> Cell:
    key = (("model", checkpoint.model), ("revision", checkpoint.revision), ("target", "+".join(target)))
    return Cell(NAME, key)


def _target(cell: Cell) -> Direction:
    first, second = cell["target"].split("+")
    return first, second


class Worker:
    """Holds one checkpoint at a time and patches one target after the other."""

    def __init__(self) -> None:
        self._held: Any = None
        self._patched: _Checkpoint | None = None

    def __call__(self, item: Item) -> Receipt:
        """Patches one target, and writes its tables."""
        if self._patched is None or self._held != item["checkpoint"]:
            self._patched = None  # the old model leaves before the new one comes
            self._patched = _Checkpoint(item)
            self._held = item["checkpoint"]
        return self._patched.target(item)


class _Checkpoint:
    """One loaded checkpoint with its prompts and the mean source states that the unfinished targets need."""

    def __init__(self, item: Item) -> None:

        from raypipe.models.load import load_causal, load_tokenizer, narrow
        from raypipe.models.patching import Patcher
        from raypipe.models.prompts import token_sets

        self._grid, self._run = Grid(**item["grid"]), RunDir(item["run"])
        self._checkpoint = Checkpoint(**item["checkpoint"])
        model = self._checkpoint.model
        self._trained = trained_on(self._grid, model)
        mark = self._run.mark_at("prompts", f"model={model}")
        if mark is None:
            raise RunError(f"its input failed: prompts {model}")
        self._tokenizer = load_tokenizer(self._checkpoint)
        if mark.receipt["tokenizer"] != vocabulary(self._tokenizer):
            raise ModelError(
                f"{self._checkpoint.label}: its tokenizer has another vocabulary than that of the model's last revision; give it "
                "a name of its own in models"
            )
        folder = f"patching/prompts/model={model}"
        self._pairs = self._run.read_table(f"{folder}/pairs.parquet").to_pylist()
        self._prompts = self._run.read_table(f"{folder}/prompts.parquet")
        # The table may hold the prompts of other targets.
        asked = self._prompts.select(["role", "lang_in", "lang_out"]).to_pylist()[:: len(self._pairs)]
        self._places = {
            (row["role"], (row["lang_in"], row["lang_out"])): i * len(self._pairs) for i, row in enumerate(asked)
        }
        self._concepts = {c.id: c for c in read_table(self._grid).concepts}
        used = sorted({row[f"{role}_concept"] for row in self._pairs for role in ("source", "target", "third")})
        found = token_sets(self._tokenizer, [self._concepts[c].forms for c in used], self._grid.languages)
        self._sets = dict(zip(used, found, strict=True))
        network = load_causal(self._checkpoint)
        self._weights = _fingerprint(network)
        narrow(network, self._grid.dtype.compute)
        network = network.to(torch_device(self._grid.resources.gpus_per_worker))
        self._patcher = Patcher(network, self._tokenizer, path=self._grid.patching.path)
        self._means: dict[tuple[Sources, str], States] = {}  # by O too where sources are left out for it

    def target(self, item: Item) -> Receipt:
        """Patches one target: its unpatched runs, every setting and the null at every start layer."""
        started, before = time.perf_counter(), self._patcher.token_forwards
        self._read_sources([tuple(target) for target in item["unfinished"]])
        direction: Direction = (item["target"][0], item["target"][1])
        target = Target(self._pairs, self._concepts, self._sets, self._grid.languages, direction)
        outcomes = self._outcomes(direction, target)
        stage, step, tokens, phase = self._checkpoint.progress or (None, None, None, None)
        keys = {
            "model": self._checkpoint.model,
            "revision": self._checkpoint.revision,
            "commit": self._checkpoint.commit or "",
            "stage": stage,
            "phase": phase or None,
            "step": step,
            "tokens_seen": tokens,
            "target_in": direction[0],
            "target_out": direction[1],
        }
        tables = {"scores": target.scores(keys, outcomes), "answers": target.answers(keys, outcomes)}
        pieces = {
            name: self._rows(role, direction, ["n_sub_word"]).column(0).to_pylist()
            for name, role in (("sub_tokens", "source"), ("sub_tokens_target", "target"))
        }
        counts = word_counts(self._grid, direction[0])
        strata = target.strata(pieces, read_counts(counts) if counts else None)
        tables |= summarise(self._grid, self._pairs, keys, tables, strata)
        places = {f"{item['folder']}/{name}.parquet": table for name, table in tables.items()}
        return {
            "files": {name: self._run.write_table(name, table) for name, table in places.items()},
            "seconds": time.perf_counter() - started,
            "weights": self._weights,
            "path": self._patcher.path,
            "path_reason": self._patcher.path_reason,
            "token_forwards": _null_apart(
                before, self._patcher.token_forwards, {o.setting for o in outcomes if o.layer >= 0}
            ),
            "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }

    def _outcomes(self, direction: Direction, target: Target) -> list[Outcome]:
        generate, asked = self._grid.patching.generate, self._prompts_of("target", direction)
        clean_source = self._patcher.unpatched(self._prompts_of("source", direction), target.wanted, generate)
        settings = self._grid.patching.settings
        sources: dict[str, Sources] = {setting: self._sources(setting, direction) for setting in settings}
        put_in: dict[str, States | None] = {}
        for setting, of_setting in sources.items():
            if setting == "tgt_tgt":
                put_in[setting] = None  # the prompt's own
            elif setting == "tgt":
                put_in[setting] = clean_source.states
            elif of_setting:
                put_in[setting] = self._means[of_setting, self._apart_from(setting, direction)]
        seen = put_in.get("seen")
        if seen is not None:
            put_in[THIRD] = seen[[row["third_pair"] for row in self._pairs]]
        if put_in:
            window = self._grid.patching.window
            patched = self._patcher.patched(asked, list(put_in.values()), target.wanted, generate, window=window)
            clean_target = patched[0][-1]  # the last start layer changes nothing that is read
        else:
            patched, clean_target = [], self._patcher.unpatched(asked, target.wanted, generate)
        outcomes = [self._outcome("src_unpatched", -1, clean_source), self._outcome("tgt_unpatched", -1, clean_target)]
        if MATCHED in settings:
            matched = self._patcher.unpatched(self._prompts_of("matched", direction), target.wanted, generate)
            outcomes.append(self._outcome(MATCHED, -1, matched))
        for (setting, states), layers in zip(put_in.items(), patched, strict=True):
            averaged = sources.get("seen" if setting == THIRD else setting, ())
            overlap = target.overlap(averaged) if averaged and setting != THIRD else None
            counts = [1 if states is None else len(averaged)] * len(self._pairs)
            if setting == DISJOINT:
                counts = self._disjoint(averaged, direction[1]).sum(axis=1).tolist()
            outcomes += [self._outcome(setting, j, scored, counts, overlap) for j, scored in enumerate(layers)]
        return outcomes

    def _outcome(
        self,
        setting: str,
        layer: int,
        scored: Any,
        sources: list[int] | None = None,
        overlap: list[float] | None = None,
    ) -> Outcome:
        from raypipe.models.prompts import decode

        texts = decode(self._tokenizer, scored.answers)
        return Outcome(setting, layer, scored.logprobs, scored.answers, texts, sources, overlap)

    def _sources(self, setting: str, target: Direction) -> Sources:
        return tuple(source_pairs(setting, target, self._trained, self._grid.patching.seed))

    def _apart_from(self, setting: str, target: Direction) -> str:
        """The language in whose words sources must not start, if there is one."""
        return target[1] if setting == DISJOINT else ""

    def _disjoint(self, sources: Sources, out: str) -> NDArray[np.bool_]:
        return ~meeting(self._pairs, self._sets, sources, out)

    def _read_sources(self, targets: Sequence[Any]) -> None:
        """Mean source states of every setting of the targets; each source prompt is run once, and only the sums are kept."""
        needed = {
            (pairs, self._apart_from(setting, target))
            for setting, target in product(self._grid.patching.settings, targets)
            if setting != "tgt" and (pairs := self._sources(setting, target))
        } - set(self._means)
        sums: dict[tuple[Sources, str], States] = {}
        for pair in sorted({pair for sources, _ in needed for pair in sources}):
            states = self._patcher.read(self._prompts_of("source", pair))
            for sources, out in needed:
                if pair in sources:
                    own = np.where(self._disjoint((pair,), out)[:, :, None], states, np.float32(0)) if out else states
                    sums[sources, out] = sums[sources, out] + own if (sources, out) in sums else own.copy()
        for (sources, out), total in sums.items():
            counts = self._disjoint(sources, out).sum(axis=1) if out else np.full(len(total), len(sources))
            self._means[sources, out] = total / np.maximum(counts, 1).astype(np.float32)[:, None, None]

    def _rows(self, role: str, pair: Direction, columns: list[str]) -> Any:
        if (role, pair) not in self._places:
            raise RunError(
                f"{role} prompts from {pair[0]} to {pair[1]} are not in the run; run the stage prompts first"
            )
        return self._prompts.slice(self._places[role, pair], len(self._pairs)).select(columns)

    def _prompts_of(self, role: str, pair: Direction) -> list[Any]:
        from raypipe.models.patching import Prompt
        from raypipe.models.prompts import ids_of

        texts, places = self._rows(role, pair, ["text", "write_pos"]).to_pydict().values()
        ids = ids_of(self._tokenizer, texts)
        return [Prompt(np.array(i, np.int32), place) for i, place in zip(ids, places, strict=True)]


def _null_apart(before: dict[str, int], after: dict[str, int], patched: Set[str]) -> dict[str, int]:
    """The tokens run between two counts; patched settings run side by side, so that the null's share of them is an equal one."""
    work = {part: after[part] - before[part] for part in after}
    null = {part: work[part] // len(patched) if THIRD in patched else 0 for part in ("slots", "patched")}
    return {part: count - null.get(part, 0) for part, count in work.items()} | {"null": sum(null.values())}


def _fingerprint(network: Any) -> str:
    """SHA-256 of three of a model's matrices: the first, one in the middle and the last (section 4)."""
    matrices = [weight for weight in network.parameters() if weight.ndim > 1]
    three = (matrices[0], matrices[len(matrices) // 2], matrices[-1])
    return digest([hashlib.sha256(matrix.detach().numpy().tobytes()).hexdigest() for matrix in three])
