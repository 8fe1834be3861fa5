"""The whole job on a tiny grid: same bytes everywhere, resume, rerun, mismatch, partial failure."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_models
import tiny_world
import yaml

import raypipe
from raypipe import exporting
from raypipe.cluster.inprocess import InProcess
from raypipe.cluster.protocol import Resources
from raypipe.errors import CellsFailed, ClusterError, ClusteringError, FingerprintMismatch, GridError, RunError
from raypipe.grid import Grid
from raypipe.progress import Silent
from raypipe.rundir import RunDir
from raypipe.science import kmeans
from raypipe.science.clusterings import minibatch, ward
from raypipe.stages import concepts, extract, spread
from raypipe.stages.context import Context, answer_probe
from raypipe.statefile import read_layer

TABLES = ("calign", "aligned", "colap", "overlap", "source_concepts")


def score_bytes(run: Path) -> dict[str, bytes]:
    return {name: (run / "scores" / f"{name}.parquet").read_bytes() for name in TABLES}


class Notes(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


@pytest.fixture(scope="module")
def reference(world: tiny_world.World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run in this process."""
    place = tmp_path_factory.mktemp("reference") / "run"
    raypipe.run(Grid(**world.grid()), place, "inprocess")
    return place


def test_every_row_of_the_grid_is_there(reference: Path) -> None:
    run = raypipe.open_run(reference)
    calign, colap = run.calign().to_pandas(), run.colap().to_pandas()
    revisions, layers, seeds, thetas = ["step-2", "step-10", "random:7"], [1, 3], [0, 1], [0.5, 0.8]
    assert len(calign) == len(revisions) * len(layers) * len(seeds) * len(thetas) * 6
    assert len(colap) == len(revisions) * len(layers) * len(seeds) * 3
    assert list(calign.revision.unique()) == revisions
    scored = calign[calign.reason == ""]
    assert {*zip(scored.source, scored.target, strict=True)} == {("en", "de"), ("de", "en"), ("en", "fr"), ("fr", "en")}
    assert (scored.aligned <= scored.reachable).all()
    assert (scored.reachable <= scored.eligible).all()
    assert (scored.eligible <= scored.concepts).all()
    assert np.allclose(scored.aligned / scored.concepts, scored.calign)
    assert (scored.null_p > 0).all()
    skipped = calign[calign.reason == "no_lexicon"]
    assert {*zip(skipped.source, skipped.target, strict=True)} == {("de", "fr"), ("fr", "de")}
    assert skipped.calign.isna().all()
    aligned = run.aligned().to_pandas()
    counts = aligned.groupby(["revision", "layer", "source", "target", "seed", "theta"]).source_concept.nunique()
    for key, n in counts.items():
        row = scored.set_index(["revision", "layer", "source", "target", "seed", "theta"]).loc[key]
        assert row.aligned == n
    shares = run.overlap().to_pandas().groupby(["revision", "layer", "scope", "seed", "concept"]).share.sum()
    assert np.allclose(shares, 1)


def test_states_and_concepts_read_back(reference: Path, world: tiny_world.World) -> None:
    run = raypipe.open_run(reference)
    words, states = run.states("tiny", "step-10", "de", 3)
    lines = (world.path / "text" / "de.txt").read_text().splitlines()
    assert words.num_rows == len(states) > 50
    assert all(lines[row["sentence"]].split()[row["token"]] == row["word"] for row in words.to_pylist())
    places = list(zip(words["sentence"].to_pylist(), words["token"].to_pylist(), strict=True))
    assert places == sorted(set(places))
    table, direct = raypipe.word_states(str(world.path / "model" / "step-10"), [line.split() for line in lines], [1, 3])
    at = {(row["sentence"], row["token"]): i for i, row in enumerate(table.to_pylist())}
    expected = direct[3][[at[place] for place in places]]
    assert np.abs(states - expected).max() <= 1e-4 * max(1.0, float(np.abs(expected).max()))
    labels = run.concepts(revision="step-10", layer=3, scope="de", seed=0)
    assert labels["word"].to_pylist() == words["word"].to_pylist()
    assert set(labels["concept"].to_pylist()) == set(range(6))
    with pytest.raises(RunError, match=r"fits 2 clusterings; choose seed: 0, 1"):
        run.concepts(revision="step-10", layer=3, scope="de")
    with pytest.raises(RunError, match="nothing finished for layer=2"):
        run.concepts(layer=2)
    part = next((reference / "activations").rglob("part-*.parquet"))
    with pytest.raises(RunError, match="holds no layer 2; add it to the grid's layers"):
        read_layer(part, 2)


def test_concepts_are_the_public_kmeans_of_the_states(reference: Path) -> None:
    run = raypipe.open_run(reference)
    _, states = run.states("tiny", "step-2", "en", 1)
    labels = run.concepts(revision="step-2", layer=1, scope="en", seed=1)["concept"].to_numpy()
    assert (raypipe.KMeans(6, seed=1).fit(states).labels == labels).all()


@pytest.mark.ray
@pytest.mark.parametrize("workers", [1, 2])
def test_the_tables_are_the_same_bytes_on_ray(
    reference: Path, world: tiny_world.World, tmp_path: Path, workers: int
) -> None:
    notes = Notes()
    raypipe.run(Grid(**world.grid(resources={"workers": workers})), tmp_path / "run", "local", watcher=notes)
    assert score_bytes(tmp_path / "run") == score_bytes(reference)
    assert any("local Ray" in text for text in notes.texts)


@pytest.mark.ray
def test_a_worker_group_gives_the_same_bytes(world: tiny_world.World, tmp_path: Path) -> None:
    """With 40 KiB a worker holds one language's points (223 x 16 floats, twice), but not those of two."""
    small = {
        "layers": [1],
        "models": [{"name": "tiny", "path": str(world.path / "model"), "revisions": ["step-2"]}],
        "pairs": ["en-de"],
    }
    grid = Grid(**world.grid(**small, resources={"workers": 2, "memory": "40KiB"}))
    raypipe.run(grid, tmp_path / "group", "local")
    raypipe.run(Grid(**world.grid(**small)), tmp_path / "whole", "inprocess")
    assert score_bytes(tmp_path / "group") == score_bytes(tmp_path / "whole")
    tight = Grid(**world.grid(**small, resources={"workers": 2, "memory": "1KiB"}))
    raypipe.run(tight, tmp_path / "tight", "inprocess")
    assert score_bytes(tmp_path / "tight") == score_bytes(tmp_path / "whole")


def test_a_fit_goes_on_from_its_last_saving(
    reference: Path, world: tiny_world.World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(reference, tmp_path / "run")
    run = RunDir.open(tmp_path / "run")
    cell = "model=tiny/revision=step-2/component=encoder/variant=v-default/layer=01/scope=en/k=0006/seed=0"
    folder, (_, states) = run.path / "concepts" / cell, raypipe.open_run(run.path).states("tiny", "step-2", "en", 1)
    monkeypatch.setattr(concepts, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(kmeans, "CHECKPOINT_PASSES", 1)
    item = {"run": str(run.path), "folder": f"concepts/{cell}", "fingerprint": "0123456789abcdef"}
    labels = (folder / "labels.parquet").read_bytes()
    kmeans.fit(kmeans.LocalPoints([states]), 6, max_iter=2, checkpoint=concepts.Saved(item))
    assert [file.name for file in folder.glob("_fit*")] == ["_fit-0123456789abcdef.npz"]
    with pytest.raises(ClusteringError, match="the checkpoint belongs to a fit of other points or settings"):
        kmeans.fit(kmeans.LocalPoints([states]), 6, max_iter=3, checkpoint=concepts.Saved(item))
    saved = folder / "_fit-0123456789abcdef.npz"
    whole = saved.read_bytes()
    for content in (whole[:100], whole[:-100], whole[:200] + bytes([whole[200] ^ 1]) + whole[201:], b"", b"none"):
        saved.write_bytes(content)
        with pytest.raises(RunError, match=r"_fit-0123456789abcdef\.npz: was damaged \(.*\) and is removed; run the"):
            concepts.Saved(item).load()
        assert concepts.Saved(item).load() is None
    saved.write_bytes(whole)
    raypipe.run(Grid(**world.grid()), run.path, "inprocess", rerun="concepts")
    assert (folder / "labels.parquet").read_bytes() == labels
    assert not list(run.path.rglob("_fit*"))


def test_directions_are_clustered_where_asked(world: tiny_world.World, tmp_path: Path) -> None:
    fields = world.grid(layers=[3], pairs=["en-de"])
    for settings in ({"algorithm": "spherical"}, {"scaling": "unit"}):
        place = tmp_path / next(iter(settings))
        run = raypipe.run(Grid(**(fields | {"concepts": {"k": 6, **settings}})), place, "inprocess")
        _, states = run.states("tiny", "step-10", "de", 3)
        unit = (states / np.linalg.norm(states.astype(np.float64), axis=1, keepdims=True)).astype(np.float32)
        expected = raypipe.KMeans(6, spherical="algorithm" in settings).fit(unit).labels
        assert (run.concepts(revision="step-10", scope="de")["concept"].to_numpy() == expected).all()
        assert set(run.calign()["algorithm"].to_pylist()) == {settings.get("algorithm", "kmeans")}


@pytest.mark.parametrize("settings", [{"scaling": "center", "algorithm": "spherical"}, {"scaling": "standardise"}])
def test_states_are_moved_by_the_mean_of_their_scope_whole_or_in_a_group(
    world: tiny_world.World, tmp_path: Path, settings: dict[str, str]
) -> None:
    models = [world.grid()["models"][0] | {"revisions": "step-10"}]
    fields = world.grid(layers=[3], pairs=["en-de"], models=models) | {"concepts": {"k": 6, **settings}}
    run = raypipe.run(Grid(**fields), tmp_path / "whole", "inprocess")
    wide = run.states("tiny", "step-10", "de", 3)[1].astype(np.float64)
    scaled = (wide - wide.mean(axis=0)) / (wide.std(axis=0) if len(settings) == 1 else 1)
    spherical = "algorithm" in settings
    scaled = scaled / np.linalg.norm(scaled, axis=1, keepdims=True) if spherical else scaled
    expected = raypipe.KMeans(6, spherical=spherical).fit(scaled.astype(np.float32)).labels
    assert (run.concepts(scope="de")["concept"].to_numpy() == expected).all()
    tight = {"workers": 2, "memory": "1KiB"}
    group = raypipe.run(Grid(**(fields | {"resources": tight})), tmp_path / "group", "inprocess")
    for scope in ("de", "de+en"):
        assert group.concepts(scope=scope).equals(run.concepts(scope=scope))


def test_a_sample_is_the_same_for_every_algorithm_and_runs_in_one_worker(
    world: tiny_world.World, tmp_path: Path
) -> None:
    models = [world.grid()["models"][0] | {"revisions": "step-10"}]
    concepts = {"k": 6, "sample": 60, "algorithm": ["kmeans", "agglomerative"]}
    fields = world.grid(layers=[3], pairs=["en-de"], models=models) | {"concepts": concepts}
    run = raypipe.run(Grid(**fields), tmp_path / "run", "inprocess")
    samples = [pq.read_table(path)["row"] for path in run.path.rglob("scope=de/**/sample.parquet")]
    assert [len(sample) for sample in samples] == [60, 60]
    assert samples[0] == samples[1]
    states = run.states("tiny", "step-10", "de", 3)[1][samples[0].to_numpy()]
    labels = run.concepts(scope="de", algorithm="kmeans")["concept"].to_numpy()
    assert (labels[samples[0].to_numpy()] == raypipe.KMeans(6).fit(states).labels).all()
    with pytest.raises(CellsFailed, match=r"kmeans of a sample runs in one worker and takes .* GiB there"):
        raypipe.run(Grid(**(fields | {"resources": {"memory": "1KiB"}})), tmp_path / "tight", "inprocess")


def test_clusterings_use_the_gpu_that_the_grid_gives_them(
    reference: Path, world: tiny_world.World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device is `cuda`; with the processor in its place the labels are those of a run without a GPU."""
    devices = []

    def on_this_processor(*args: Any, device: str, **settings: Any) -> kmeans.Fit:
        devices.append(device)
        return fit(*args, device="cpu", **settings)

    fit = kmeans.fit
    monkeypatch.setattr(kmeans, "fit", on_this_processor)
    item = concepts._item
    monkeypatch.setattr(concepts, "_item", lambda *of: item(*of) | {"device": concepts.device(1.0)})
    shutil.copytree(reference, tmp_path / "run")
    raypipe.run(Grid(**world.grid()), tmp_path / "run", "inprocess", rerun="concepts")
    assert set(devices) == {"cuda"}
    assert concepts.device(0.0) is None
    assert score_bytes(tmp_path / "run") == score_bytes(reference)


def test_several_algorithms_are_an_axis_whose_kmeans_is_the_one_of_before(
    world: tiny_world.World, tmp_path: Path
) -> None:
    fields = world.grid(layers=[3], pairs=["en-de"], models=[world.grid()["models"][0] | {"revisions": "step-10"}])
    raypipe.run(Grid(**(fields | {"concepts": {"k": 6}})), tmp_path / "run", "inprocess")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run/_done/concepts").rglob("*.json")}
    algorithms = ["kmeans", "spherical", "minibatch", "agglomerative"]
    grid = Grid(**(fields | {"concepts": {"k": 6, "algorithm": algorithms}}))
    run = raypipe.run(grid, tmp_path / "run", "inprocess")
    marks = list((tmp_path / "run/_done/concepts").rglob("*.json"))
    assert len(marks) == 4 * len(before) == 12
    assert {p: p.stat().st_mtime_ns for p in before} == before
    _, states = run.states("tiny", "step-10", "de", 3)
    expected = {
        "kmeans": raypipe.KMeans(6).fit(states).labels,
        "minibatch": minibatch([states], 6, n_init=1, max_iter=300, tol=1e-4, seed=0).labels[0],
        "agglomerative": ward([states], 6, seed=0).labels[0],
    }
    for algorithm, labels in expected.items():
        assert (run.concepts(algorithm=algorithm, scope="de")["concept"].to_numpy() == labels).all()
    for table in (run.calign(), run.colap()):
        assert list(dict.fromkeys(table["algorithm"].to_pylist())) == algorithms
        assert set(table["reason"].to_pylist()) == {""}
    with pytest.raises(
        RunError, match=r"scope=de fits 4 clusterings; choose algorithm: agglomerative, kmeans, minibatch"
    ):
        run.concepts(scope="de")
    alone = raypipe.run(
        Grid(**(fields | {"concepts": {"k": 6, "algorithm": algorithms[::-1]}})), tmp_path / "b", "inprocess"
    )
    assert alone.concepts(algorithm="agglomerative", scope="de").equals(
        run.concepts(algorithm="agglomerative", scope="de")
    )


def test_an_algorithm_beyond_a_workers_memory_fails_with_the_remedy(world: tiny_world.World, tmp_path: Path) -> None:
    fields = world.grid(layers=[3], pairs=["en-de"], resources={"memory": "100KiB"})
    grid = Grid(**(fields | {"concepts": {"k": 6, "algorithm": "agglomerative"}}))
    with pytest.raises(
        CellsFailed, match=r"agglomerative runs in one worker and takes 0\.0\d+ GiB there; raise resources\.memory, or"
    ):
        raypipe.run(grid, tmp_path / "run", "inprocess")


def test_a_second_run_does_nothing_and_more_seeds_only_add(
    reference: Path, world: tiny_world.World, tmp_path: Path
) -> None:
    shutil.copytree(reference, tmp_path / "run")
    before = score_bytes(reference)
    marks = {p: p.stat().st_mtime_ns for p in (tmp_path / "run/_done").rglob("*.json")}
    notes = Notes()
    raypipe.run(Grid(**world.grid()), tmp_path / "run", "inprocess", watcher=notes)
    assert score_bytes(tmp_path / "run") == before
    assert any("cells are there already" in text for text in notes.texts)
    assert marks == {p: p.stat().st_mtime_ns for p in (tmp_path / "run/_done").rglob("*.json")}
    more = Grid(**world.grid(concepts={"k": [6], "seeds": [0, 1, 2]}))
    raypipe.run(more, tmp_path / "run", "inprocess")
    held = {p: p.stat().st_mtime_ns for p in (tmp_path / "run/_done").rglob("*.json")}
    assert all(held[p] == t for p, t in marks.items() if not {"scores", "agreement"} & set(p.parts))
    raypipe.run(more, tmp_path / "fresh", "inprocess")
    assert score_bytes(tmp_path / "run") == score_bytes(tmp_path / "fresh")


def test_a_layer_asked_for_later_extracts_again_and_says_so(
    reference: Path, world: tiny_world.World, tmp_path: Path
) -> None:
    shutil.copytree(reference, tmp_path / "run")
    notes = Notes()
    wider = Grid(**world.grid(layers="all"))
    raypipe.run(wider, tmp_path / "run", "inprocess", watcher=notes)
    assert any("layers 0, 2, 4 were not written yet" in text for text in notes.texts)
    raypipe.run(wider, tmp_path / "fresh", "inprocess")
    assert score_bytes(tmp_path / "run") == score_bytes(tmp_path / "fresh")


def test_another_setting_is_refused_until_rerun(reference: Path, world: tiny_world.World, tmp_path: Path) -> None:
    shutil.copytree(reference, tmp_path / "run")
    changed = Grid(**world.grid(words={"max_freq": 3}))
    with pytest.raises(FingerprintMismatch, match=r"words\.max_freq = 15, now 3; use --rerun corpus or another --run"):
        raypipe.run(changed, tmp_path / "run", "inprocess")
    assert score_bytes(tmp_path / "run") == score_bytes(reference)
    raypipe.run(changed, tmp_path / "run", "inprocess", rerun="corpus")
    raypipe.run(changed, tmp_path / "fresh", "inprocess")
    assert score_bytes(tmp_path / "run") == score_bytes(tmp_path / "fresh")


def test_a_changed_checkpoint_under_the_old_path_is_noticed(world: tiny_world.World, tmp_path: Path) -> None:
    shutil.copytree(world.path / "model", tmp_path / "model")
    grid = Grid(**world.grid(models=[{"name": "tiny", "path": str(tmp_path / "model"), "revisions": ["step-2"]}]))
    raypipe.run(grid, tmp_path / "run", "inprocess")
    shutil.copy(tmp_path / "model/step-10/model.safetensors", tmp_path / "model/step-2/model.safetensors")
    with pytest.raises(FingerprintMismatch, match="was made from another model weights"):
        raypipe.run(grid, tmp_path / "run", "inprocess")


def test_one_stage_alone_and_unknown_stages(world: tiny_world.World, tmp_path: Path) -> None:
    grid = Grid(**world.grid())
    raypipe.run(grid, tmp_path / "run", "inprocess", only="corpus")
    assert (tmp_path / "run/corpus/lang=de/occurrences.parquet").is_file()
    assert not (tmp_path / "run/activations").exists()
    with pytest.raises(RunError, match="stage walk: unknown; expected one of corpus, lexicon, extract"):
        raypipe.run(grid, tmp_path / "run", "inprocess", only="walk")


def test_a_failed_cell_leaves_the_others_and_is_retried(world: tiny_world.World, tmp_path: Path) -> None:
    grid = Grid(**world.grid(concepts={"k": [6, 5000], "seeds": [0]}, layers=[1]))
    with pytest.raises(CellsFailed, match=r"18 cells failed; the others are finished") as error:
        raypipe.run(grid, tmp_path / "run", "inprocess")
    assert "k=5000 but only" in str(error.value)
    assert "and 8 more: `raypipe status" in str(error.value)
    calign = raypipe.open_run(tmp_path / "run").calign().to_pandas()
    assert len(calign) == 3 * 2 * 2 * 6
    assert set(calign[calign.reason == "input_failed: de, en"].k) == {5000}
    assert set(calign[calign.reason == ""].k) == {6}
    assert calign[calign.k == 5000].calign.isna().all()
    trace = next((tmp_path / "run/_failed/concepts").rglob("*.json")).read_text()
    assert "Traceback" in trace
    with pytest.raises(CellsFailed, match=r"9 of 9 pairs lack a clustering, their rows say input_failed; run again wi"):
        raypipe.run(grid, tmp_path / "run", "inprocess", only="scores")


def test_labels_of_another_seed_are_not_taken(reference: Path, world: tiny_world.World, tmp_path: Path) -> None:
    shutil.copytree(reference, tmp_path / "run")
    first, second = (next((tmp_path / "run").rglob(f"scope=de/k=0006/seed={seed}/labels.parquet")) for seed in (0, 1))
    whole = first.read_bytes()
    first.write_bytes(second.read_bytes())
    axes = dict(part.split("=") for part in str(first.parent.relative_to(tmp_path / "run/concepts")).split("/"))
    refused = r"seed=0/labels\.parquet: missing, damaged or another cell's; run the grid again"
    with pytest.raises(RunError, match=refused):
        raypipe.open_run(tmp_path / "run").concepts(**{**axes, "revision": axes["revision"].replace("%3A", ":")})
    with pytest.raises(RunError, match=refused):
        exporting.export_conceptx(tmp_path / "run", tmp_path / "out")
    raypipe.run(Grid(**world.grid()), tmp_path / "run", "inprocess")
    assert first.read_bytes() == whole
    assert score_bytes(tmp_path / "run") == score_bytes(reference)


def test_states_of_another_revision_are_not_taken(reference: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(reference, tmp_path / "run"))
    shards = {
        revision: next(run.rglob(f"revision={revision}/**/lang=de/part-*.parquet"))
        for revision in ("step-2", "step-10")
    }
    shutil.copy(shards["step-10"], shards["step-2"])
    refused = r"lang=de/part-.*\.parquet: missing, damaged or another cell's; run the grid again, which makes it anew"
    with pytest.raises(RunError, match=refused):
        raypipe.open_run(run).states("tiny", "step-2", "de", 1)
    with pytest.raises(RunError, match=refused):
        exporting.export_conceptx(run, tmp_path / "out", "float32")
    assert raypipe.open_run(run).states("tiny", "step-2", "en", 1)[1].shape[1] == 16


def test_another_driver_is_refused(reference: Path, world: tiny_world.World, tmp_path: Path) -> None:
    shutil.copytree(reference, tmp_path / "run")
    with RunDir.open(tmp_path / "run").only_writer():
        (tmp_path / "run/scores/.half.tmp").write_bytes(b"the first driver's")
        for only in (None, "report"):
            with pytest.raises(RunError, match=r"process \d+ on .* is writing there; wait until it ends"):
                raypipe.run(Grid(**world.grid()), tmp_path / "run", "inprocess", only=only)
        assert (tmp_path / "run/scores/.half.tmp").exists()
    raypipe.run(Grid(**world.grid()), tmp_path / "run", "inprocess", only="report")
    assert score_bytes(tmp_path / "run") == score_bytes(reference)


@pytest.mark.parametrize("only", ["scores", "report", "concepts"])
def test_a_stage_alone_refuses_results_of_other_settings(
    reference: Path, world: tiny_world.World, tmp_path: Path, only: str
) -> None:
    shutil.copytree(reference, tmp_path / "run")
    changed = Grid(**world.grid(words={"max_freq": 3}))
    with pytest.raises(FingerprintMismatch, match=r"words\.max_freq = 15, now 3; use --rerun corpus"):
        raypipe.run(changed, tmp_path / "run", "inprocess", only=only)
    assert score_bytes(tmp_path / "run") == score_bytes(reference)


def test_the_tables_hold_the_present_grid_alone(reference: Path, world: tiny_world.World, tmp_path: Path) -> None:
    shutil.copytree(reference, tmp_path / "run")
    narrower = Grid(**world.grid(pairs=["en-de"], layers=[3], concepts={"k": [6], "seeds": [1]}))
    raypipe.run(narrower, tmp_path / "run", "inprocess")
    raypipe.run(narrower, tmp_path / "fresh", "inprocess")
    assert score_bytes(tmp_path / "run") == score_bytes(tmp_path / "fresh")
    failing = Grid(**world.grid(pairs=["en-fr"], layers=[3], concepts={"k": [5000], "seeds": [1]}))
    with pytest.raises(CellsFailed, match="k=5000 but only"):
        raypipe.run(failing, tmp_path / "run", "inprocess")
    rows = raypipe.open_run(tmp_path / "run").calign().to_pandas()
    assert set(rows.k) == {5000}
    assert rows.calign.isna().all()


def test_words_sentences_and_neurons_are_forgotten_together(world: tiny_world.World, tmp_path: Path) -> None:
    fields = world.grid(pairs=["en-de"], layers=[3], states={"also": ["sentences", "neurons"]})
    raypipe.run(Grid(**fields), tmp_path / "run", "inprocess")
    changed = Grid(**(fields | {"dtype": {"store": "float16"}}))
    with pytest.raises(FingerprintMismatch, match="use --rerun extract"):
        raypipe.run(changed, tmp_path / "run", "inprocess")
    raypipe.run(changed, tmp_path / "run", "inprocess", rerun="extract")
    raypipe.run(changed, tmp_path / "fresh", "inprocess")
    assert score_bytes(tmp_path / "run") == score_bytes(tmp_path / "fresh")


def test_tables_stay_where_nothing_that_they_show_has_changed(
    reference: Path, world: tiny_world.World, tmp_path: Path
) -> None:
    shutil.copytree(reference, tmp_path / "run")
    wider = Grid(**world.grid(resources={"workers": 2}, states={"also": ["sentences"]}))
    raypipe.run(wider, tmp_path / "run", "inprocess", only="sentences")
    assert score_bytes(tmp_path / "run") == score_bytes(reference)
    assert (tmp_path / "run/report/index.html").is_file()
    more, notes = Grid(**world.grid(layers="all")), Notes()
    with pytest.raises(RunError, match="run: nothing is scored for this grid yet; finish it with `raypipe run`"):
        raypipe.run(more, tmp_path / "run", "inprocess", only="report")
    assert score_bytes(tmp_path / "run") == score_bytes(reference)
    raypipe.run(more, tmp_path / "run", "inprocess", only="corpus", watcher=notes)
    assert not (tmp_path / "run/scores/calign.parquet").exists()
    assert "all 3 cells are there already" in notes.texts
    notes = Notes()
    raypipe.run(more, tmp_path / "run", "inprocess", only="extract")
    raypipe.run(more, tmp_path / "run", "inprocess", only="extract", watcher=notes)
    assert "all 9 cells are there already" in notes.texts
    (tmp_path / "run/grid.yaml").write_text("unknown: 1\n")
    raypipe.run(more, tmp_path / "run", "inprocess")
    raypipe.run(more, tmp_path / "fresh", "inprocess")
    assert score_bytes(tmp_path / "run") == score_bytes(tmp_path / "fresh")


def test_a_group_that_raises_fails_its_cell_alone(
    world: tiny_world.World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise MemoryError("no room\nat all")

    monkeypatch.setattr(kmeans, "fit", broken)
    fields = world.grid(pairs=["en-de"], layers=[3], concepts={"k": 6}, resources={"memory": "1KiB"})
    with pytest.raises(CellsFailed, match=r"scope=de/.*: MemoryError: no room \(trace"):
        raypipe.run(Grid(**fields), tmp_path / "run", "inprocess")


def test_nothing_is_forgotten_before_the_cluster_is_there(
    reference: Path, world: tiny_world.World, tmp_path: Path
) -> None:
    shutil.copytree(reference, tmp_path / "run")
    with pytest.raises(ClusterError, match="no Ray head node can be joined"):
        raypipe.run(Grid(**world.grid()), tmp_path / "run", "127.0.0.1:9", rerun="corpus")
    notes = Notes()
    raypipe.run(Grid(**world.grid()), tmp_path / "run", "inprocess", watcher=notes)
    assert any("cells are there already" in text for text in notes.texts)


def test_a_dictionary_that_is_gone_is_not_used(world: tiny_world.World, tmp_path: Path) -> None:
    shutil.copytree(world.path / "dict", tmp_path / "dict")
    lexicon = {"format": "muse", "path": str(tmp_path / "dict/{source}-{target}.txt")}
    grid = Grid(**world.grid(lexicon=lexicon))
    raypipe.run(grid, tmp_path / "run", "inprocess")
    for file in (tmp_path / "dict").glob("*fr*"):
        file.unlink()
    notes = Notes()
    raypipe.run(grid, tmp_path / "run", "inprocess", watcher=notes)
    assert any("skipped: no dictionary for en-fr" in text for text in notes.texts)
    raypipe.run(grid, tmp_path / "fresh", "inprocess")
    assert score_bytes(tmp_path / "run") == score_bytes(tmp_path / "fresh")


def test_relative_paths_of_a_python_grid_are_frozen_absolute(
    world: tiny_world.World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world.path)
    data = world.grid(layers=[1])
    data["models"][0] |= {"path": "model", "revisions": ["step-2"]}
    raypipe.run(Grid(**data), tmp_path / "run", "inprocess")
    monkeypatch.chdir(tmp_path)
    frozen = raypipe.open_run("run").grid
    assert frozen.models[0].path == str(world.path / "model")
    notes = Notes()
    raypipe.run(frozen, tmp_path / "run", "inprocess", watcher=notes)
    assert any("cells are there already" in text for text in notes.texts)


class Elsewhere:
    """Another node that works in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def on_other_nodes(self, work: Any, item: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        for folder in (self._folder, item["run"]):
            for found in InProcess(Resources(1, 0, 1, 0)).map(work, [item | {"run": str(folder)}]):
                yield "10.0.0.7", found[1]


def test_a_node_that_does_not_see_the_run_is_named(tmp_path: Path) -> None:
    context = Context(RunDir(tmp_path / "run"), None, None, Silent())  # type: ignore[arg-type]
    (tmp_path / "run").mkdir()
    context.cluster = Elsewhere(tmp_path / "none")  # type: ignore[assignment]
    with pytest.raises(
        RunError, match=r"run: node 10\.0\.0\.7 does not see this directory \(No such file or directory\)"
    ):
        context.check_storage()
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    context.cluster = Elsewhere(tmp_path / "run")  # type: ignore[assignment]
    context.check_storage()
    assert list((tmp_path / "run").iterdir()) == []
    (tmp_path / "copy/probe.tmp").write_text("old")
    with pytest.raises(RunError, match="another file stands there"):
        answer_probe({"run": str(tmp_path / "copy"), "name": "probe.tmp", "token": "new"})


def _command(world: tiny_world.World, run: Path, grid: Path) -> list[str]:
    grid.write_text(yaml.safe_dump(world.grid()))
    return [sys.executable, "-m", "raypipe.cli", "run", str(grid), "--run", str(run), "--address", "inprocess"]


def test_a_killed_driver_resumes_to_the_same_bytes(reference: Path, world: tiny_world.World, tmp_path: Path) -> None:
    command = _command(world, tmp_path / "run", tmp_path / "grid.yaml")
    draw = random.Random(time.time_ns())
    killed = 0
    for _ in range(4):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _wait_for(tmp_path / "run" / "run.json", process)
        try:
            process.wait(draw.uniform(0, 4))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert killed
    assert score_bytes(tmp_path / "run") == score_bytes(reference)
    assert not list((tmp_path / "run").rglob("*.tmp"))


def _wait_for(file: Path, process: subprocess.Popen[bytes]) -> None:
    while not file.exists() and process.poll() is None:
        time.sleep(0.02)


def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(world: tiny_world.World, tmp_path: Path) -> None:
    command = _command(world, tmp_path / "run", tmp_path / "grid.yaml")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    _wait_for(tmp_path / "run" / "run.json", process)  # type: ignore[arg-type]
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on from there" in errors
    assert "Traceback" not in errors


def test_float16_states_and_other_poolings_run(world: tiny_world.World, tmp_path: Path) -> None:
    changed: dict[str, Any] = {"dtype": {"store": "float16"}, "words": {"pooling": "mean"}, "layers": [3]}
    raypipe.run(Grid(**world.grid(**changed)), tmp_path / "run", "inprocess")
    part = next((tmp_path / "run/activations").rglob("part-*.parquet"))
    assert "variant=v-mean" in str(part)
    assert pq.read_schema(part).field("layer_03").metadata == {b"dtype": b"float16", b"width": b"16"}
    assert read_layer(part, 3).dtype == np.float32


def test_decoders_and_encoder_decoders_run_with_every_component(world: tiny_world.World, tmp_path: Path) -> None:
    for kind in ("gpt2", "t5"):
        tiny_models.save_model(tmp_path / kind, kind)
    models = [{"name": kind, "path": str(tmp_path / kind)} for kind in ("gpt2", "t5")]
    small: dict[str, Any] = {"models": models, "layers": [1, 3], "concepts": {"k": 6}, "pairs": ["en-de"]}
    raypipe.run(Grid(**world.grid(**small)), tmp_path / "read", "inprocess")
    calign = raypipe.open_run(tmp_path / "read").calign().to_pandas()
    parts = calign.groupby(["model", "source_component", "target_component"]).size()
    assert parts.index.tolist() == [
        ("gpt2", "decoder", "decoder"),
        ("t5", "decoder", "decoder"),
        ("t5", "encoder", "encoder"),
    ]
    changed = world.grid(**small, states={"decoder": "predict", "final_norm": False, "source": "empty"})
    raypipe.run(Grid(**changed), tmp_path / "predict", "inprocess")
    run = raypipe.open_run(tmp_path / "predict")
    assert set(run.calign().to_pandas().variant) == {"v-predict-empty-raw"}
    read = raypipe.open_run(tmp_path / "read")
    ours, theirs = (r.states("t5", "main", "en", 3, component="decoder") for r in (run, read))
    assert ours[0].equals(theirs[0])
    assert not np.allclose(ours[1], theirs[1])
    with pytest.raises(GridError, match=r"models\.gpt2\.components: gpt2 has no encoder; expected decoder"):
        raypipe.run(
            Grid(**world.grid(models=[models[0] | {"components": ["encoder"]}])), tmp_path / "none", "inprocess"
        )


def test_long_sentences_are_windowed_skipped_or_refused(world: tiny_world.World, tmp_path: Path) -> None:
    tiny_models.save_model(tmp_path / "short", "bert", max_position_embeddings=12)
    small: dict[str, Any] = {
        "models": [{"name": "short", "path": str(tmp_path / "short")}],
        "layers": [2],
        "concepts": {"k": 4},
    }
    counts = {}
    for how in ("window", "skip"):
        raypipe.run(Grid(**world.grid(**small, states={"long_sentences": how})), tmp_path / how, "inprocess")
        words, states = raypipe.open_run(tmp_path / how).states("short", "main", "de", 2)
        places = list(zip(words["sentence"].to_pylist(), words["token"].to_pylist(), strict=True))
        assert places == sorted(set(places))
        assert len(places) == len(states)
        counts[how] = len(places)
    assert counts["window"] > counts["skip"]
    lost = [pq.read_table(file).to_pylist() for file in sorted((tmp_path / "skip").rglob("_lost-*.parquet"))]
    assert {row["why"] for rows in lost for row in rows} == {"too_long"}
    with pytest.raises(
        CellsFailed, match=r"line \d+ of (en|de|fr): \d+ pieces, the model reads 12; split the sentence"
    ):
        raypipe.run(Grid(**world.grid(**small, states={"long_sentences": "error"})), tmp_path / "error", "inprocess")


def test_clusterings_spread_to_save_time_give_the_same_bytes(
    world: tiny_world.World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three clusterings for three workers, of which one takes twice as long: groups that cost nothing even that out."""
    monkeypatch.setattr(spread, "GROUP_SECONDS", 0.0)
    monkeypatch.setattr(spread, "EXCHANGE", 1e30)
    monkeypatch.setattr(extract, "SMALLEST_SHARD", 50)
    monkeypatch.setattr(extract, "SHARD_BYTES", 1)
    opened, points = [], InProcess.points
    monkeypatch.setattr(InProcess, "points", lambda *args: opened.append(1) or points(*args))
    models = [{"name": "tiny", "path": str(world.path / "model"), "revisions": ["step-2"]}]
    fields = world.grid(models=models, layers=[1], pairs=["en-de"], concepts={"k": 6, "seeds": 0})
    raypipe.run(Grid(**(fields | {"resources": {"workers": 3}})), tmp_path / "spread", "inprocess")
    assert len(opened) == 3
    raypipe.run(Grid(**fields), tmp_path / "whole", "inprocess")
    assert len(opened) == 3
    assert score_bytes(tmp_path / "spread") == score_bytes(tmp_path / "whole")
