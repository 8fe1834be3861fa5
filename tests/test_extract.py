"""What a run reads is what was planned, and what is there is neither lost nor computed again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_models
import tiny_world
from safetensors.numpy import load_file, save_file

import raypipe
from raypipe import planning
from raypipe.cluster.inprocess import InProcess
from raypipe.cluster.protocol import Resources
from raypipe.errors import CellsFailed, FingerprintMismatch, GridError, InputError, ModelError, RunError
from raypipe.grid import Grid
from raypipe.gridtext import Words
from raypipe.pipeline import all_cells
from raypipe.progress import Silent
from raypipe.rundir import RunDir, file_digest
from raypipe.stages import extract, shards
from raypipe.stages.context import Context
from raypipe.stages.corpus import choose_words
from raypipe.stages.plan import make_plan
from raypipe.stages.shards import check_rows, probe
from raypipe.stages.text import Text

OLD, NEW = "0" * 40, "1" * 40  # commits


class Notes(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


def small(world: tiny_world.World, **changed: Any) -> Grid:
    """One checkpoint, two languages."""
    model = {"name": "t", "path": str(world.path / "model" / "step-2")}
    return Grid(**world.grid(**{"models": [model], "languages": ["en", "de"], "pairs": ["en-de"]} | changed))


def extracted(grid: Grid, place: Path, watcher: Silent | None = None) -> raypipe.Run:
    """A run of the stages corpus and extract."""
    raypipe.run(grid, place, "inprocess", only="corpus")
    return raypipe.run(grid, place, "inprocess", only="extract", watcher=watcher)


def marks(run: Path, stage: str) -> dict[str, int]:
    """The marks of a stage and when they were written."""
    return {str(file): file.stat().st_mtime_ns for file in (run / "_done" / stage).rglob("*.json")}


# --- where and from what states are computed


def test_a_worker_that_is_to_have_a_gpu_does_not_compute_on_the_cpu(world: tiny_world.World, tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("a machine without a GPU is absent")
    grid = small(world, resources={"gpus_per_worker": 0.5})
    message = (
        r"resources\.gpus_per_worker is 0\.5 but this worker sees no CUDA device; set it to 0 or start Ray on GPU nodes"
    )
    with pytest.raises(CellsFailed, match=message):
        extracted(grid, tmp_path / "run")
    assert not list((tmp_path / "run").rglob("part-*"))


def test_a_gpu_is_used_where_it_is_asked_for(world: tiny_world.World, tmp_path: Path) -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("a GPU is absent")
    torch.cuda.reset_peak_memory_stats()
    on_gpu = extracted(small(world, resources={"gpus_per_worker": 1}), tmp_path / "gpu")
    assert torch.cuda.max_memory_allocated() > 0
    states = [run.states("t", "main", "en", 3)[1] for run in (on_gpu, extracted(small(world), tmp_path / "cpu"))]
    assert np.abs(states[0] - states[1]).max() <= 1e-3 * np.abs(states[1]).max()


def test_workers_read_the_commit_that_was_planned(world: tiny_world.World, tmp_path: Path) -> None:
    """The name `main` moves on to other weights after the plan; the next run notices it."""
    repository = tmp_path / "hub" / "models--org--name"
    for commit, step in ((OLD, "step-2"), (NEW, "step-10")):
        shutil.copytree(world.path / "model" / step, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(OLD)
    code = f"""
import json, sys, raypipe
from pathlib import Path
from raypipe.errors import FingerprintMismatch
from raypipe.grid import Grid
from raypipe.pipeline import all_cells
from raypipe.progress import Silent
class Moves(Silent):
    def start(self, stage, *rest): Path(sys.argv[3]).write_text("{NEW}")
grid = Grid(**json.loads(sys.argv[1]))
raypipe.run(grid, sys.argv[2], "inprocess", only="corpus")
raypipe.run(grid, sys.argv[2], "inprocess", only="extract", watcher=Moves())
try: raypipe.run(grid, sys.argv[2], "inprocess", only="extract")
except FingerprintMismatch as error: print(error)
"""
    fields = world.grid(models=[{"name": "t", "path": "org/name"}], languages=["en", "de"], pairs=["en-de"])
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(fields), str(tmp_path / "run"), str(repository / "refs" / "main")],
        env={**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "was made from another model weights; use --rerun extract" in done.stdout
    expected = extracted(small(world), tmp_path / "local").states("t", "main", "de", 3)[1]
    assert (raypipe.open_run(tmp_path / "run").states("t", "main", "de", 3)[1] == expected).all()


# --- layers


def test_other_layers_are_added_to_those_that_are_there(world: tiny_world.World, tmp_path: Path) -> None:
    place, notes = tmp_path / "run", Notes()
    run = raypipe.run(small(world, layers=[3]), place, "inprocess")
    (_, before), concepts = run.states("t", "main", "de", 3), marks(place, "concepts")
    raypipe.run(small(world, layers=[1]), place, "inprocess", watcher=notes)
    assert (
        "extract t main encoder v-default de: layers 1 were not written yet; it is extracted again with layers 1, 3"
        in notes.texts
    )
    assert (run.states("t", "main", "de", 3)[1] == before).all()
    fresh = extracted(small(world, layers=[1]), tmp_path / "fresh")
    assert (run.states("t", "main", "de", 1)[1] == fresh.states("t", "main", "de", 1)[1]).all()
    for mark in marks(place, "extract"):
        assert json.loads(Path(mark).read_text())["axes"] == {"layers": [1, 3]}
    assert concepts.items() <= marks(place, "concepts").items()
    written = marks(place, "extract")
    for layers in ([3], [1], [1, 3]):
        raypipe.run(small(world, layers=layers), place, "inprocess")
    assert marks(place, "extract") == written
    with pytest.raises(RunError, match="holds no layer 2; add it to the grid's layers"):
        run.states("t", "main", "de", 2)


def test_a_damaged_file_is_written_again_with_every_layer(world: tiny_world.World, tmp_path: Path) -> None:
    place, notes = tmp_path / "run", Notes()
    run = extracted(small(world, layers=[1, 3]), place)
    part = next((place / "activations").rglob("lang=en/part-*"))
    whole = part.read_bytes()
    part.write_bytes(whole[:-1])
    extracted(small(world, layers=[1]), place, notes)
    assert part.read_bytes() == whole
    assert run.states("t", "main", "en", 3)[0].num_rows > 50
    assert [text for text in notes.texts if "again" in text] == [
        "extract t main encoder v-default en: files are missing or damaged; it is extracted again with layers 1, 3"
    ]


def test_states_of_several_variants_are_told_apart(world: tiny_world.World, tmp_path: Path) -> None:
    for pooling in ("last", "mean"):
        run = extracted(small(world, words={"pooling": pooling}), tmp_path / "run")
    with pytest.raises(RunError, match=r"fits 2 extractions; choose variant: v-default, v-mean$"):
        run.states("t", "main", "en", 3)
    last, mean = (run.states("t", "main", "en", 3, variant=name)[1] for name in ("v-default", "v-mean"))
    assert last.shape == mean.shape
    assert (last != mean).any()
    with pytest.raises(RunError, match=r"nothing finished for .*, variant=v-first, "):
        run.states("t", "main", "en", 3, variant="v-first")


# --- the text


def lines_of(world: tiny_world.World) -> dict[str, list[str]]:
    """The lines of each language."""
    return {name: (world.path / "text" / f"{name}.txt").read_text().splitlines() for name in tiny_world.LANGUAGES}


def write_tsv(place: Path, columns: dict[str, list[str]]) -> dict[str, str]:
    """A file with a column per language."""
    rows = ["\t".join(columns), *map("\t".join, zip(*columns.values(), strict=True))]
    (place / "all.tsv").write_text("\n".join(rows) + "\n")
    return {"format": "tsv", "path": str(place / "all.tsv")}


def write_data_set(place: Path, columns: dict[str, list[str]]) -> dict[str, str]:
    """A local data set with a column per language."""
    (place / "set").mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), place / "set" / "train.parquet")
    return {"format": "datasets", "path": str(place / "set")}


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where `datasets` keeps what it makes; it asks no network."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    return tmp_path / "cache"


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("write", [write_tsv, write_data_set])
def test_a_language_more_in_the_same_file_leaves_the_others_done(
    world: tiny_world.World, tmp_path: Path, write: Any
) -> None:
    lines, place = lines_of(world), tmp_path / "run"
    corpus = write(tmp_path, {name: lines[name] for name in ("en", "de")})
    raypipe.run(small(world, corpus=corpus), place, "inprocess", only="corpus")
    before = marks(place, "corpus")
    wider: dict[str, Any] = {"corpus": corpus, "languages": ["en", "de", "fr"]}
    write(tmp_path, {"fr": lines["fr"], "note": ["x"] * len(lines["fr"]), **lines})
    raypipe.run(small(world, **wider), place, "inprocess", only="corpus")
    assert len(marks(place, "corpus")) == 3
    assert before.items() < marks(place, "corpus").items()
    write(tmp_path, lines | {"de": [*lines["de"][:-1], "anders"]})
    with pytest.raises(FingerprintMismatch, match="corpus de was made from another text of de; use --rerun corpus"):
        raypipe.run(small(world, **wider), place, "inprocess", only="corpus")


def test_fingerprints_of_texts(world: tiny_world.World, tmp_path: Path) -> None:
    """A text file counts by its bytes; of a table the column's own values count, and where one ends."""
    plan = make_plan(small(world))
    assert plan.corpus == {name: file_digest(world.path / "text" / f"{name}.txt") for name in ("en", "de")}

    def measured(**columns: list[str]) -> tuple[str, int]:
        pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=2)
        return Text("en", "parquet", str(tmp_path / "a.parquet")).measure()

    assert measured(text=["ab", "", "c"]) == measured(text=["ab", "", "c"], id=["x", "y", "z"])
    assert measured(text=["ab", "", "c"])[1] == 3
    assert len({measured(text=text)[0] for text in (["ab", ""], ["a", "b"], ["ab"], ["", "ab"], [])}) == 5


@pytest.mark.parametrize("form", ["tsv", "parquet"])
def test_a_table_is_walked_and_not_held(tmp_path: Path, form: str) -> None:
    """Four times the lines cost less than a quarter of the text that came with them."""
    line, peaks, sizes, file = " ".join(["w" * 99] * 10), [], [], tmp_path / "all"
    for lines in (1500, 6000):
        if form == "tsv":
            file.write_text("en\tde\n" + f"{line}\t{line}\n" * lines)
        else:
            pq.write_table(pa.table({"text": [line] * lines}), file)
        tracemalloc.start()
        chosen = choose_words(Text("de", form, str(file)), Words())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(chosen.places) == 15
        sizes.append(lines * len(line))
    assert peaks[1] - peaks[0] < (sizes[1] - sizes[0]) / 4


def cache_hub_data_set(cache: Path, commit: str, columns: dict[str, list[str]]) -> None:
    """The layout in which `datasets` keeps `org/name` once it was loaded from the Hub."""
    import datasets

    made = datasets.Dataset.from_dict(columns)
    folder = cache / "org___name" / "default" / "0.0.0" / commit
    made.save_to_disk(folder)
    (folder / "data-00000-of-00001.arrow").rename(folder / "name-train.arrow")
    split = {"name": "train", "num_examples": len(made), "num_bytes": made.data.nbytes, "dataset_name": "name"}
    info = json.loads((folder / "dataset_info.json").read_text())
    info |= {"config_name": "default", "dataset_name": "name", "builder_name": "parquet", "splits": {"train": split}}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    os.utime(folder, (int(commit[0]), int(commit[0])))  # the newest one is taken


def test_a_data_set_of_the_hub_is_pinned(world: tiny_world.World, tmp_path: Path, cache: Path) -> None:
    lines, place = lines_of(world), tmp_path / "run"
    grid = small(world, corpus={"format": "datasets", "path": "org/name"})
    with pytest.raises(InputError, match=r"^corpus\.path org/name: cannot be loaded \(.*\)$"):
        make_plan(grid)
    cache_hub_data_set(cache, OLD, lines)
    assert {text.revision for text in make_plan(grid).texts.values()} == {OLD}
    with pytest.raises(InputError, match=r"^corpus\.path org/name: cannot be loaded \(.*test.*\)$"):
        make_plan(small(world, corpus={"format": "datasets", "path": "org/name", "split": "test"}))

    class Moves(Silent):
        def start(self, stage: str, total: int, unit: str) -> None:
            cache_hub_data_set(cache, NEW, lines | {"de": [*lines["de"][:-1], "anders"]})

    message = rf"corpus\.path org/name: the run reads revision {OLD}, but only {NEW} is cached here; go online, or copy"
    with pytest.raises(CellsFailed, match=message):
        raypipe.run(grid, place, "inprocess", only="corpus", watcher=Moves())
    shutil.rmtree(cache / "org___name" / "default" / "0.0.0" / NEW)
    raypipe.run(grid, place, "inprocess", only="corpus")
    words = RunDir.open(place).read_table("corpus/lang=de/sentences.parquet")["words"].to_pylist()
    assert words == [line.split() for line in lines["de"]]
    Moves().start("", 0, "")
    with pytest.raises(FingerprintMismatch, match="corpus de was made from another text of de"):
        raypipe.run(grid, place, "inprocess", only="corpus")


# --- what is read how often


def test_the_driver_reads_the_occurrences_once_per_language(
    world: tiny_world.World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, read_table = Counter[str](), RunDir.read_table

    def counted(self: RunDir, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        read[name] += columns == ["sentence"]
        return read_table(self, name, columns)

    monkeypatch.setattr(RunDir, "read_table", counted)
    revisions = ["step-2", "step-10", "random:1"]
    extracted(
        small(world, models=[{"name": "t", "path": str(world.path / "model"), "revisions": revisions}]),
        tmp_path / "run",
    )
    assert +read == {f"corpus/lang={language}/occurrences.parquet": 1 for language in ("de", "en")}
    assert len(marks(tmp_path / "run", "extract")) == 6


# --- sentences and neurons


def test_sentences_and_neurons_come_from_the_same_forward(world: tiny_world.World, tmp_path: Path) -> None:
    """Against transformers' own states, one sentence at a time; the words' bytes do not know of their company."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    words = {"max_freq": 2}  # most sentences hold no point
    grid = small(world, words=words, layers=[0, 2, 3], states={"also": ["sentences", "neurons"]})
    run, alone = (
        extracted(grid, tmp_path / "run"),
        extracted(small(world, words=words, layers=[0, 2, 3]), tmp_path / "w"),
    )
    for language in ("en", "de"):
        parts = [sorted((r.path / "activations").rglob(f"lang={language}/part-*")) for r in (run, alone)]
        assert [p.read_bytes() for p in parts[0]] == [p.read_bytes() for p in parts[1]]
    place = world.path / "model" / "step-2"
    tokenizer, model = AutoTokenizer.from_pretrained(place), AutoModel.from_pretrained(place).eval()
    inputs: dict[int, Any] = {}
    for block, layer in enumerate(model.encoder.layer, 1):
        layer.output.dense.register_forward_pre_hook(lambda _, args, block=block: inputs.update({block: args[0]}))
    lines = lines_of(world)["de"]
    for layer in (0, 2, 3):
        rows, states = run.states("t", "main", "de", layer, of="sentences")
        assert rows["sentence"].to_pylist() == list(range(len(lines)))
        for line, state in zip(lines, states, strict=True):
            pieces = tokenizer(line, return_tensors="pt")
            with torch.inference_mode():
                own = model(**pieces, output_hidden_states=True).hidden_states[layer][0, 1:-1]
            assert np.abs(own.mean(0).numpy() - state).max() <= 1e-4
            if layer:
                at = lines.index(line)
                peaks = run.states("t", "main", "de", layer, of="neurons")[1][at]
                assert np.abs(inputs[layer][0, 1:-1].amax(0).numpy() - peaks).max() <= 1e-4
    with pytest.raises(RunError, match="states of layers: expected words, sentences, neurons"):
        run.states("t", "main", "de", 3, of="layers")
    with pytest.raises(RunError, match=r"nothing finished for model=t, .*lang=de"):
        alone.states("t", "main", "de", 3, of="neurons")


def test_sentence_states_that_are_asked_for_later_leave_the_words_alone(
    world: tiny_world.World, tmp_path: Path
) -> None:
    run = extracted(small(world), tmp_path / "run")
    written = marks(run.path, "extract")
    more = small(world, states={"also": "sentences"})
    raypipe.run(more, run.path, "inprocess", only="sentences")
    assert marks(run.path, "extract") == written
    assert len(marks(run.path, "sentences")) == 2
    both = extracted(more, tmp_path / "both")
    for layer in (1, 3):
        later, at_once = (r.states("t", "main", "en", layer, of="sentences")[1] for r in (run, both))
        assert (later == at_once).all()
    with pytest.raises(
        GridError, match=r"states\.also: layer 0 has no neurons; add a layer from 1 on, or leave neurons"
    ):
        extracted(small(world, layers=[0], states={"also": "neurons"}), tmp_path / "none")


def test_sentences_that_were_dropped_or_skipped_have_no_state(world: tiny_world.World, tmp_path: Path) -> None:
    lines = lines_of(world)
    for name in ("en", "de"):
        text = ["", *lines[name][:30], " ".join(lines[name]), ""]
        (tmp_path / f"{name}.txt").write_text("\n".join(text) + "\n")
    corpus, states = {"path": str(tmp_path / "{lang}.txt")}, {"long_sentences": "skip", "also": "sentences"}
    run = extracted(small(world, corpus=corpus, states=states), tmp_path / "run")
    assert run.states("t", "main", "de", 3, of="sentences")[0]["sentence"].to_pylist() == list(range(1, 31))
    lost = [row for file in (run.path / "sentences").rglob("_lost-*") for row in pq.read_table(file).to_pylist()]
    assert sorted((row["language"], row["sentence"], row["why"]) for row in lost) == [
        ("de", 31, "too_long"),
        ("en", 31, "too_long"),
    ]


def test_words_that_the_tokenizer_drops_are_counted_and_listed(world: tiny_world.World, tmp_path: Path) -> None:
    """BERT's drops a lone combining mark and control signs."""
    for name, lines in lines_of(world).items():
        odd = ["a \u0301 man", "\u200d", "\u200d man \u0301"] if name == "de" else ["a", "b", "c"]
        (tmp_path / f"{name}.txt").write_text("\n".join([*odd, *lines[:9]]) + "\n")
    run = extracted(small(world, corpus={"path": str(tmp_path / "{lang}.txt")}), tmp_path / "run")
    lost = [row for file in (run.path / "activations").rglob("_lost-*") for row in pq.read_table(file).to_pylist()]
    assert [(row["language"], row["sentence"], row["token"], row["word"], row["why"]) for row in lost] == [
        ("de", 0, 1, "\u0301", "no_piece"),
        ("de", 1, 0, "\u200d", "no_piece"),
        ("de", 2, 0, "\u200d", "no_piece"),
        ("de", 2, 2, "\u0301", "no_piece"),
    ]
    receipts = [json.loads(Path(mark).read_text())["receipt"] for mark in marks(run.path, "extract")]
    assert sorted(receipt["lost"] for receipt in receipts) == [0, 4]
    for name in ("en", "de"):
        chosen = pq.read_table(run.path / f"corpus/lang={name}/occurrences.parquet", partitioning=None).num_rows
        assert run.states("t", "main", name, 3)[0].num_rows == chosen - 4 * (name == "de")


class Forwards(Silent):
    """Keeps how many shards each stream has."""

    def __init__(self) -> None:
        self.shards: list[int] = []

    def start(self, stage: str, total: int, unit: str) -> None:
        if unit == "shards":
            self.shards.append(total)


def test_neurons_that_overflow_leave_words_and_sentences_standing(world: tiny_world.World, tmp_path: Path) -> None:
    shutil.copytree(world.path / "model/step-2", tmp_path / "model")
    file = tmp_path / "model/model.safetensors"
    weights = load_file(file)
    weights["encoder.layer.2.intermediate.dense.bias"][3] = 1e6
    weights["encoder.layer.2.output.dense.weight"][:, 3] = 0
    save_file(weights, file, metadata={"format": "pt"})
    fields = {"models": [{"name": "t", "path": str(tmp_path / "model")}], "dtype": {"store": "float16"}}
    grid, forwards = small(world, **fields, states={"also": ["sentences", "neurons"]}), Forwards()
    with pytest.raises(
        CellsFailed, match=r"^2 cells failed.*\n.*neurons of layer 3 overflow float16; store float32"
    ) as error:
        raypipe.run(grid, tmp_path / "run", "inprocess", watcher=forwards)
    assert forwards.shards == [2]  # what failed is left to the next run
    assert str(error.value).count("\n  neurons model=t") == 2
    assert len(marks(tmp_path / "run", "extract")) == len(marks(tmp_path / "run", "sentences")) == 2
    assert not marks(tmp_path / "run", "neurons")
    assert raypipe.open_run(tmp_path / "run").calign().num_rows
    with pytest.raises(CellsFailed, match="2 cells failed"):
        raypipe.run(grid, tmp_path / "run", "inprocess", only="neurons")
    alone = extracted(small(world, **fields), tmp_path / "alone")
    for language in ("en", "de"):
        parts = [
            sorted((place / "activations").rglob(f"lang={language}/part-*")) for place in (tmp_path / "run", alone.path)
        ]
        assert [p.read_bytes() for p in parts[0]] == [p.read_bytes() for p in parts[1]]


def test_rows_that_are_lost_or_doubled_are_noticed() -> None:
    check_rows([1, 2, 3], [1, 3], [2])
    for got, lost, first in (([1, 3], [], 2), ([1, 2, 3], [3], "a row twice"), ([1, 2, 3, 4], [], 4)):
        with pytest.raises(RunError, match=f"rows of a shard were lost or doubled, the first is {first}"):
            check_rows([1, 2, 3], got, lost)


def test_a_plan_does_not_depend_on_its_blocks(
    world: tiny_world.World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = planning.estimate(small(world))
    monkeypatch.setattr(planning, "BLOCK", 7)
    assert planning.estimate(small(world)) == whole
    lines = lines_of(world)
    for name in ("en", "de"):
        long = " ".join(f"{name}word{number}" for number in range(80)) if name == "de" else "short"
        (tmp_path / f"{name}.txt").write_text("\n".join([*lines[name][:30], long]) + "\n")
    changed = small(world, corpus={"path": str(tmp_path / "{lang}.txt")}, states={"long_sentences": "error"})
    with pytest.raises(InputError, match=r"^line 31 of de: \d+ pieces, the model reads 64; split the sentence"):
        planning.estimate(changed)


# --- batches on a GPU


def test_the_budget_of_a_gpu_is_half_of_what_fits() -> None:
    import torch

    tried = list[int]()

    def fits(most: int, pieces: int) -> None:
        tried.append(pieces)
        if pieces > most:
            raise torch.OutOfMemoryError("CUDA out of memory")

    assert probe(partial(fits, 9000)) == 4096
    assert tried == [131072, 65536, 32768, 16384, 8192]
    with pytest.raises(
        ModelError, match=r"has no memory for 1024 pieces at a time; raise resources.gpus_per_worker, or"
    ):
        probe(partial(fits, 1023))


class LentGpu(InProcess):
    """A place of work that computes on the CPU what is planned for a GPU."""

    def stream(self, worker: Any, items: Any) -> Any:
        return super().stream(worker, [item | {"gpus": 0} for item in items])


def test_a_probed_budget_is_kept_in_the_run(
    world: tiny_world.World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two kinds of model: a decoder that reads another line wants that too in what it is tried with."""
    tiny_models.save_model(tmp_path / "t5", "t5")
    models = [{"name": "t", "path": str(world.path / "model/step-2")}, {"name": "t5", "path": str(tmp_path / "t5")}]
    grid = small(world, models=models, resources={"gpus_per_worker": 1}, states={"source": "pair", "also": ["neurons"]})
    raypipe.run(grid, tmp_path / "run", "inprocess", only="corpus")
    monkeypatch.setattr(shards, "PROBED", (2048,))
    plan = make_plan(grid)
    context = Context(RunDir.open(tmp_path / "run"), plan, LentGpu(Resources(1, 0, 1, 0)), Silent())
    cells = all_cells(plan)
    extract.run(context, cells["extract"] + cells["neurons"])
    assert not context.failed
    place = tmp_path / "run/activations/_budget"
    found = {file.name[:-14]: RunDir(place).read_json(file.name) for file in place.iterdir()}
    assert found == {part: {"pieces": 1024} for part in ("t-encoder", "t5-encoder", "t5-decoder")}
    next(place.glob("t-encoder*")).write_text('{"pieces": 64}')
    item = {"gpus": 1.0, "checkpoint": {"model": "t"}, "component": "encoder", "compute": "float32"}
    assert extract.budget(context, item) == 64


def test_a_gpu_without_memory_fails_the_cell_with_the_remedy(
    world: tiny_world.World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from raypipe.models.states import Extractor

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(Extractor, "run", full)
    message = "^2 cells failed.*\n.*t: out of GPU memory with batches of 1024 pieces; free the GPU or raise resources"
    with pytest.raises(CellsFailed, match=message):
        extracted(small(world), tmp_path / "run")
    context = Context(RunDir.open(tmp_path / "run"), make_plan(small(world)), LentGpu(Resources(1, 0, 1, 0)), Silent())
    item = extract._item(context, extract._groups(context, all_cells(context.plan)["extract"])[0]) | {"gpus": 1}
    with pytest.raises(ModelError, match="the GPU's share has no memory for 1024 pieces at a time"):
        extract.budget(context, item)
