"""Extraction against its peers, in one run: ours, a bare best-effort loop, and the reference procedure.

All read the same sentences with the same model, one thread each, SDPA attention, every layer:

- ours: the extract stage as a run does it: words pooled, every layer written, marks and checksums;
- bare: length-sorted batches, the best of three token budgets, all hidden states; nothing pooled, nothing written;
- reference: the published procedure: one sentence at a time, every word tokenised alone, the language-model head computed,
  every float as JSON.

    python benchmarks/extraction.py --model DIR --text FILE [--sentences 2000] [--base] [--runs 5]

Prints tokens/s as medians of alternating runs, and ratios. Times on a shared machine mean little; ratios of one run do.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raypipe.cluster import connect
from raypipe.cluster.protocol import Resources
from raypipe.grid import Grid
from raypipe.models.batches import plan_batches
from raypipe.models.load import load_model, load_tokenizer
from raypipe.models.locate import checkpoints, facts
from raypipe.models.words import Encoded, encode
from raypipe.pipeline import all_cells
from raypipe.progress import Silent
from raypipe.rundir import RunDir
from raypipe.stages import corpus, extract
from raypipe.stages.context import Context
from raypipe.stages.plan import make_plan

BUDGETS = (1024, 4096, 16384)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a saved model's directory")
    parser.add_argument("--text", required=True, help="one sentence per line")
    parser.add_argument("--sentences", type=int, default=2000)
    parser.add_argument("--reference", type=int, default=100, help="sentences of the reference procedure")
    parser.add_argument("--base", action="store_true", help="a random model of base size with this tokenizer instead")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        model = base_size(Path(options.model), place / "base") if options.base else Path(options.model)
        lines = Path(options.text).read_text(encoding="utf-8").splitlines()[: options.sentences]
        for language in ("aa", "bb"):  # two languages of the same text: a grid needs a pair, and two actors need work
            (place / f"{language}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (place / "aa-bb.txt").write_text("a a\n", encoding="utf-8")
        for dtype in ("float32", "bfloat16"):
            compare(place, model, lines, dtype, options)


def base_size(source: Path, target: Path) -> Path:
    """A random BERT of 12 layers x 768 with the tokenizer of another model."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    tokenizer = AutoTokenizer.from_pretrained(source)
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=512)).save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target


def compare(place: Path, model: Path, lines: list[str], dtype: str, options: argparse.Namespace) -> None:
    checkpoint = checkpoints("m", str(model), ["main"])[0]
    tokenizer, size = load_tokenizer(checkpoint), facts(checkpoint)
    whole = encode(tokenizer, [line.split() for line in lines], None, size.max_pieces)
    pieces = int(whole.lengths.sum())
    loaded = load_model(checkpoint, size.layers)
    bare = {f"bare, budget {b}": (lambda b=b: bare_loop(loaded, whole, b, dtype)) for b in BUDGETS}
    few = lines[: options.reference]
    shorter = int(encode(tokenizer, [line.split() for line in few], None, size.max_pieces).lengths.sum())
    systems: dict[str, tuple[Callable[[], float], int]] = {name: (run, pieces) for name, run in bare.items()}
    head = with_head(model)
    systems["reference"] = (lambda: reference(head, tokenizer, few, place / "reference.json"), shorter)
    rates: dict[str, list[float]] = {}
    with Stage(place, model, dtype, "inprocess", 1) as ours:
        systems["ours, in process"] = (ours.run, 2 * pieces)
        measure(systems, options.runs, rates)
    for workers in (1, 2):
        with Stage(place, model, dtype, "local", workers) as ours:
            ours.run()  # starts the workers
            measure({f"ours, {workers} actor(s)": (ours.run, 2 * pieces)}, options.runs, rates)
    median = {name: statistics.median(found) for name, found in rates.items()}
    best = max(median[name] for name in bare)
    print(f"\n{model.name}, {dtype}: {len(lines)} sentences, {pieces} tokens, {size.layers + 1} layers x {size.width}")
    for name, rate in median.items():
        print(
            f"  {name:20s} {rate:10.0f} tokens/s   {rate / best:6.3f} x bare   {rate / median['reference']:7.1f} x reference"
        )
    print(f"  two actors / one actor: {median['ours, 2 actor(s)'] / median['ours, 1 actor(s)']:.2f}")


def measure(systems: dict[str, tuple[Callable[[], float], int]], runs: int, rates: dict[str, list[float]]) -> None:
    for _ in range(runs):
        for name, (run, pieces) in systems.items():
            rates.setdefault(name, []).append(pieces / run())


def bare_loop(model: Any, whole: Encoded, budget: int, dtype: str) -> float:
    """Seconds of plain batched forwards."""
    batches = plan_batches(whole.lengths, budget)
    started = time.perf_counter()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        for batch in batches:
            longest = max(len(whole.ids[i]) for i in batch)
            ids = torch.zeros((len(batch), longest), dtype=torch.int64)
            mask = torch.zeros_like(ids)
            for row, i in enumerate(batch):
                ids[row, : len(whole.ids[i])] = torch.from_numpy(whole.ids[i].astype(np.int64))
                mask[row, : len(whole.ids[i])] = 1
            model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    return time.perf_counter() - started


def with_head(model: Path) -> Any:
    from transformers import AutoModelForMaskedLM

    return AutoModelForMaskedLM.from_pretrained(model, dtype=torch.float32).eval()


def reference(model: Any, tokenizer: Any, lines: list[str], file: Path) -> float:
    """Seconds of the published procedure; last piece of each word, every layer, as JSON."""
    started = time.perf_counter()
    with file.open("w", encoding="utf-8") as out:
        for number, line in enumerate(lines):
            words = line.split()
            ids, last = [tokenizer.cls_token_id], []
            for word in words:
                ids += tokenizer(word, add_special_tokens=False)["input_ids"]
                last.append(len(ids) - 1)
            ids = [*ids, tokenizer.sep_token_id][: tokenizer.model_max_length]
            with torch.inference_mode():
                hidden = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
            states = torch.stack(hidden)[:, 0].numpy()
            features = [
                {"token": word, "layers": [[round(float(v), 8) for v in layer] for layer in states[:, at]]}
                for word, at in zip(words, last, strict=True)
                if at < len(ids)
            ]
            out.write(json.dumps({"linex_index": number, "features": features}) + "\n")
    return time.perf_counter() - started


class Stage:
    """The extract stage of a run on one place of work, again and again."""

    def __init__(self, place: Path, model: Path, dtype: str, address: str, workers: int) -> None:
        self._grid = Grid(
            name="bench",
            models=[{"name": "m", "path": str(model)}],
            languages=["aa", "bb"],
            corpus={"path": str(place / "{lang}.txt")},
            lexicon={"format": "muse", "path": str(place / "{source}-{target}.txt")},
            words={"max_freq": None},
            dtype={"compute": dtype},
            resources={"workers": workers},
        )
        self._cluster = connect(address, Resources(workers, 0, 1, 0))
        self._plan = make_plan(self._grid)
        self._cells = all_cells(self._plan)

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self._cluster.close()

    def run(self) -> float:
        """Seconds of the stage in a fresh run directory."""
        with tempfile.TemporaryDirectory() as folder:
            run = RunDir.create(Path(folder) / "run", "bench")
            context = Context(run, self._plan, self._cluster, Silent())
            corpus.run(context, self._cells["corpus"])
            started = time.perf_counter()
            extract.run(context, self._cells["extract"])
            seconds = time.perf_counter() - started
            if context.failed:
                raise SystemExit(str(context.failed))
            return seconds


if __name__ == "__main__":
    main()
