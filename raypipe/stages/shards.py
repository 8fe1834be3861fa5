"""What a worker of the stage extract does: reads a shard of the text, forwards it in planned batches, writes its files.

Words are read with the same batches whether sentences and neurons are read beside them or not, so that their bytes are the same: the
rows that hold a word go through the model first, the others after them.
Legend: S sentences of a shard.
"""

from __future__ import annotations

import re
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from raypipe.errors import InputError, ModelError, RunError
from raypipe.models.batches import plan_batches
from raypipe.models.locate import Checkpoint
from raypipe.models.words import Encoded
from raypipe.rundir import RunDir
from raypipe.schema import make_table
from raypipe.stages.context import Item, Receipt
from raypipe.statefile import state_table

NO_SOURCE = "no_source"  # why a line has no state where the encoder has nothing to read beside it
PROBED = tuple(1024 << power for power in range(7, -1, -1))  # pieces of a batch that a GPU is tried with
PROBE_LENGTH = 512  # pieces of a row in those batches


@contextmanager
def naming_lines(language: str, numbers: Sequence[int] | np.ndarray, source: str | None = None) -> Iterator[None]:
    """Inside, an InputError that names `sentences[i]` names line numbers[i] + 1 of the language, and `sources[i]` of the source."""
    try:
        yield
    except InputError as error:
        named = {"sentences": language, "sources": source}
        found = re.sub(
            r"(sentences|sources)\[(\d+)\]", lambda m: f"line {numbers[int(m[2])] + 1} of {named[m[1]]}", str(error)
        )
        raise InputError(found) from None


class _Lines(NamedTuple):
    """The lines that a shard asks for, ascending: their numbers in the text (int64 [S]), words, and the tokens that become points."""

    numbers: np.ndarray
    words: list[list[str]]
    tokens: list[list[int]]

    def take(self, places: list[int]) -> _Lines:
        """The lines at some places among these."""
        picked = np.array(places, np.int64)
        return _Lines(self.numbers[picked], [self.words[i] for i in places], [self.tokens[i] for i in places])

    def points(self) -> list[tuple[int, int]]:
        """The (sentence, token) of each point."""
        return [(n, token) for n, of_line in zip(self.numbers.tolist(), self.tokens, strict=True) for token in of_line]


class Worker:
    """Holds one model at a time and turns planned shards into files."""

    def __init__(self) -> None:
        self._held: tuple[Any, ...] = ()
        self._extractor: Any = None

    def __call__(self, item: Item) -> Receipt:
        """Reads, forwards and writes one shard; returns a receipt for each kind of state."""
        started = time.perf_counter()
        run, folders = RunDir(item["run"]), item["folders"]
        extractor = self._model(item)
        if "probe" in item:
            return {"pieces": probe(partial(_try, extractor))}
        asked = _read(run, item)
        lines, sources, unread = _with_sources(run, item, asked)
        encoded = _encode(extractor, item, lines, sources)
        batches = row_batches(encoded, item["budget"])
        states = forward(extractor, encoded, batches, item)
        receipts: Receipt = {}
        for kind in folders:
            if kind == "words" and not any(asked.tokens):
                continue
            layers = extractor.neuron_layers if kind == "neurons" else item["layers"]
            if kind == "words":
                rows, lost = _words(asked, lines, unread, encoded)
            else:
                rows, lost = _sentences(asked, lines, unread, encoded, states.sentence)
            try:
                receipts[kind] = _write(run, item, kind, rows, layers, getattr(states, kind), lost)
            except ModelError as error:  # the other kinds stand
                receipts[kind] = {"failed": str(error), "trace": traceback.format_exc()}
        if "words" in receipts:
            receipts["words"] |= _counts(encoded, batches, extractor.tokenizer.unk_token_id)
        for receipt in receipts.values():
            receipt["seconds"] = (time.perf_counter() - started) / len(receipts)
        return receipts

    def _model(self, item: Item) -> Any:
        from raypipe.models.states import Extractor

        names = ("checkpoint", "component", "layers", "states", "pooling", "compute")
        also: Any = tuple(kind for kind in ("sentences", "neurons") if kind in item["folders"])
        wanted = (*(item[name] for name in names), also)
        if self._held != wanted:
            self._extractor = None  # the old model leaves before the new one comes
            device = torch_device(item["gpus"])
            self._extractor = Extractor(
                Checkpoint(**item["checkpoint"]),
                layers=item["layers"],
                pooling=item["pooling"],
                compute=item["compute"],
                threads=item["threads"],
                device=device,
                component=item["component"],
                decoder_state=item["states"]["decoder"],
                decoder_source=item["states"]["source"],
                final_norm=item["states"]["final_norm"],
                also=also,
            )
            self._held = wanted
        return self._extractor


def probe(attempt: Callable[[int], None]) -> int:
    """Half of the largest number of pieces in `PROBED` with which the attempt does not run out of memory; ModelError where none fits."""
    import torch

    for pieces in PROBED:
        try:
            attempt(pieces)
        except torch.OutOfMemoryError:
            pass
        else:
            return pieces // 2
        torch.cuda.empty_cache()  # when what failed is let go
    raise ModelError(
        f"the GPU's share has no memory for {PROBED[-1]} pieces at a time; raise resources.gpus_per_worker, or free the GPU"
    )


def _try(extractor: Any, pieces: int) -> None:
    """Reads a batch of so many pieces, in rows as long as the model takes up to `PROBE_LENGTH`."""
    length = min(extractor.facts.max_pieces, PROBE_LENGTH)
    rows, none = pieces // length, np.zeros(0, np.int64)
    ids = [np.zeros(length, np.int32)] * rows
    whole = np.tile([1, length], (rows, 1))  # before the first piece nothing may stand that predicts it
    batch = Encoded(ids, np.arange(rows), none, none, none, none, [], [], np.ones(rows, np.int64), ids, whole)
    extractor.run(batch, [np.arange(rows)], "float32")


def forward(extractor: Any, encoded: Encoded, batches: list[np.ndarray], item: Item) -> Any:
    """The states of a shard; ModelError where the GPU is out of memory, since the batches as planned decide the last bits."""
    import torch

    try:
        return extractor.run(encoded, batches, item["store"])
    except torch.OutOfMemoryError:
        raise ModelError(
            f"{item['checkpoint']['model']}: out of GPU memory with batches of {item['budget']} pieces; free the GPU or raise "
            "resources.gpus_per_worker, and run again"
        ) from None


def torch_device(gpus: float) -> str:
    """The worker's device, as torch names it; ModelError where it is to have a GPU and sees none."""
    if not gpus:
        return "cpu"
    import torch

    if not torch.cuda.is_available():
        raise ModelError(
            f"resources.gpus_per_worker is {gpus:g} but this worker sees no CUDA device; "
            "set it to 0 or start Ray on GPU nodes"
        )
    return "cuda"


def _read(run: RunDir, item: Item) -> _Lines:
    """The lines that states are asked of: without sentence or neuron states those that hold a point, else all kept ones."""
    place, first, last = item["text"], item["first"], item["last"]
    lines = run.read_rows(f"{place}/sentences.parquet", first, last, ["words", "dropped"])
    points = run.read_rows(f"{place}/occurrences.parquet", item["start"], item["stop"], ["sentence", "token"])
    tokens: list[list[int]] = [[] for _ in range(last - first)]
    for sentence, token in zip(*(column.to_pylist() for column in points.columns), strict=True):
        tokens[sentence - first].append(token)
    if set(item["folders"]) == {"words"}:
        chosen = np.array([i for i, of_line in enumerate(tokens) if of_line], np.int64)
    else:
        chosen = np.array([i for i, why in enumerate(lines.column("dropped").to_pylist()) if not why], np.int64)
    text = lines.column("words").take(pa.array(chosen)).to_pylist()
    return _Lines(chosen + first, text, [tokens[i] for i in chosen])


def _with_sources(run: RunDir, item: Item, asked: _Lines) -> tuple[_Lines, list[list[str]] | None, _Lines]:
    """The lines to forward, what the encoder reads beside each, and the lines for which the length filter left it nothing."""
    if item["source"] is None:
        return asked, None, asked.take([])
    place = f"{item['source']['text']}/sentences.parquet"
    rows = run.read_rows(place, item["first"], item["last"], ["words", "dropped"])
    rows = rows.take(pa.array(asked.numbers - item["first"]))
    reasons, words = rows.column("dropped").to_pylist(), rows.column("words").to_pylist()
    read = [i for i, why in enumerate(reasons) if not why]
    return asked.take(read), [words[i] for i in read], asked.take([i for i, why in enumerate(reasons) if why])


def _encode(extractor: Any, item: Item, lines: _Lines, sources: list[list[str]] | None) -> Encoded:
    """The lines as pieces, by their numbers in the text."""
    language, source = item["language"], item["source"] and item["source"]["language"]
    with naming_lines(language, lines.numbers, source):
        encoded: Encoded = extractor.encode(
            lines.words,
            lines.tokens,
            long_sentences=item["states"]["long_sentences"],
            language=language,
            sources=sources,
            source_language=source,
        )
    return replace(encoded, sentences=lines.numbers[encoded.sentences])


def row_batches(encoded: Encoded, budget: int) -> list[np.ndarray]:
    """Rows that hold words in batches of their own, then the others; a row is as long as the longer of its two texts."""
    holds = np.zeros(len(encoded.ids), bool)
    holds[encoded.row] = True
    lengths = encoded.lengths
    if encoded.source is not None:
        lengths = np.where(lengths, np.maximum(lengths, list(map(len, encoded.source))), 0)
    return [batch for rows in (holds, ~holds) for batch in plan_batches(np.where(rows, lengths, 0), budget)]


Lost = list[dict[str, Any]]  # rows of the table of what has no state


def _words(asked: _Lines, lines: _Lines, unread: _Lines, encoded: Encoded) -> tuple[dict[str, Any], Lost]:
    """The rows of the words that have a state, and those of the others."""
    lost = [(int(lines.numbers[word.sentence]), word.token, str(word.why)) for word in encoded.lost]
    lost += [(*point, NO_SOURCE) for point in unread.points()]
    got = list(zip(encoded.sentence.tolist(), encoded.token.tolist(), strict=True))
    check_rows(asked.points(), got, [place[:2] for place in lost])
    words = dict(zip(asked.numbers.tolist(), asked.words, strict=True))
    rows = {"sentence": encoded.sentence, "token": encoded.token, "word": encoded.words}
    return rows, [{"sentence": n, "token": t, "word": words[n][t], "why": why} for n, t, why in sorted(lost)]


def _sentences(
    asked: _Lines, lines: _Lines, unread: _Lines, encoded: Encoded, got: np.ndarray
) -> tuple[dict[str, Any], Lost]:
    """The rows of the sentences that have a state, and those of the others."""
    gone = [(int(lines.numbers[line.sentence]), str(line.why)) for line in encoded.lost_sentences]
    gone += [(number, NO_SOURCE) for number in unread.numbers.tolist()]
    check_rows(asked.numbers.tolist(), got.tolist(), [number for number, _ in gone])
    return {"sentence": got}, [{"sentence": number, "why": why} for number, why in sorted(gone)]


def check_rows(asked: list[Any], got: list[Any], lost: list[Any]) -> None:
    """Holds what comes out of a shard to what went in; RunError where a row is missing, stands twice, or was not asked for."""
    if sorted(got + lost) != asked:
        wrong = sorted(set(asked) ^ set(got + lost)) or ["a row twice"]
        raise RunError(
            f"rows of a shard were lost or doubled, the first is {wrong[0]}; this is a mistake of raypipe, report it"
        )


def _counts(encoded: Encoded, batches: list[np.ndarray], unknown: int | None) -> Receipt:
    last = [encoded.ids[row][place] for row, place in zip(encoded.row, encoded.last, strict=True)]
    lengths = encoded.lengths
    return {
        "unknown": sum(int(piece == unknown) for piece in last),
        "pieces": int(lengths.sum()),
        "padded": sum(len(batch) * int(lengths[batch].max()) for batch in batches),
    }


def _write(
    run: RunDir,
    item: Item,
    kind: str,
    rows: dict[str, Any],
    layers: Sequence[int],
    states: np.ndarray,
    lost: Lost,
) -> Receipt:
    """Writes the rows of one kind with their states, [layers, rows, width], and beside them what has no state."""
    folder, shard, language = item["folders"][kind], f"{item['shard']:05d}", item["language"]
    table = pa.table({"language": [language] * states.shape[1], **rows})
    name = f"{folder}/part-{shard}.parquet"
    files = {name: run.write_table(name, state_table(table, dict(zip(layers, states, strict=True))))}
    if lost:
        spot = f"{folder}/_lost-{shard}.parquet"
        schema = "lost" if kind == "words" else "lost_sentences"
        files[spot] = run.write_table(spot, make_table(schema, [{"language": language, **row} for row in lost]))
    return {"files": files, "name": name, "points": states.shape[1], "lost": len(lost)}
