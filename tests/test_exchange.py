"""`raypipe export` and `raypipe import`: what goes out comes back, and scores the same as files and as a run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_world
from conftest import Done

import raypipe
from raypipe.exporting import export_conceptx
from raypipe.grid import Grid
from raypipe.importing import import_conceptx
from raypipe.interop.arrays import read_points, read_vocab
from raypipe.interop.clusterfiles import read_clusters
from raypipe.results import select

Command = Callable[..., Done]
CONCEPTS = {"k": 6, "algorithm": ["kmeans", "minibatch"]}
STATE = "model=tiny/revision=step-10/component=encoder/variant=v-default/layer=03"


@pytest.fixture(scope="module")
def run(world: tiny_world.World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("exchange") / "run"
    calign = {"theta": [0.5, 0.8], "min_types": 2, "null_draws": 3, "size_ratio": [0, 0.6]}
    raypipe.run(Grid(**world.grid(calign=calign, layers=[3], concepts=CONCEPTS)), place, "inprocess")
    return place


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "deep" / "files"
    # 3 checkpoints x (3 languages + 3 pairs) x 2 algorithms; four directions have a dictionary, two of them by inversion.
    assert export_conceptx(run, out, "float64") == {"clusterings": 36, "points": 18, "dictionaries": 4, "mappings": 0}
    return out


@pytest.fixture(scope="module")
def imported(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return import_conceptx(exported, tmp_path_factory.mktemp("imported") / "run").path


def row_of(table: pa.Table, **axes: Any) -> dict[str, Any]:
    (row,) = select(table, **axes).to_pylist()
    return dict(row)


def same_runs(first: Path, second: Path) -> None:
    """Scores, labels and dictionaries, but for the counts of dictionary entries that were left out before."""
    for name in ("calign", "aligned", "colap", "overlap", "source_concepts"):
        tables = [getattr(raypipe.open_run(place), name)() for place in (first, second)]
        left = [[c for c in table.column_names if not c.startswith("dropped_")] for table in tables]
        assert tables[0].num_rows
        assert tables[0].select(left[0]) == tables[1].select(left[1])
    files = sorted(first.rglob("labels.parquet")) + sorted((first / "lexicon").rglob("*.parquet"))
    for file in files:
        assert pq.read_table(file, partitioning=None) == pq.read_table(
            second / file.relative_to(first), partitioning=None
        )


def test_an_imported_export_is_the_run_again(run: Path, imported: Path) -> None:
    same_runs(run, imported)
    assert raypipe.open_run(imported).report.is_file()


def test_a_second_import_finds_everything_there(exported: Path, imported: Path, command: Command) -> None:
    before = {file: file.stat().st_mtime_ns for file in (imported / "concepts").rglob("*.parquet")}
    done = command("import", exported, "--out", imported, "--set", "calign.theta=[0.5]")
    assert (done.code, done.out) == (0, f"{imported}: 72 rows of CALIGN, 18 of COLAP\n")
    assert set(raypipe.open_run(imported).calign()["theta"].to_pylist()) == {0.5}
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_the_report_of_an_imported_run_is_written_by_importing(imported: Path, command: Command) -> None:
    refused = "holds imported concepts; its report is written by `raypipe import`: give it the same folder again"
    done = command("report", imported)
    assert (done.code, done.out, done.err) == (1, "", f"raypipe: {imported}: {refused}\n")


@pytest.mark.parametrize("official", [False, True])
@pytest.mark.parametrize("theta", ["0.5", "0.8"])
def test_the_files_score_as_the_run_does(
    official: bool, theta: str, run: Path, exported: Path, command: Command
) -> None:
    """Official: strictly above a threshold that no share lies between, one type fewer, no size limit (its limit has one side)."""
    folder = exported / STATE
    files = [folder / f"scope={side}/k=0006/seed=0/clusters.txt" for side in ("en", "de")]
    flags = {"theta": theta, "translations": 10, "min_types": 2, "size_ratio": 0}
    strict = flags | {"theta": f"{theta}"[:-1] + f"{int(theta[-1]) - 1}99999", "min_types": 1}
    words = [f"--{name.replace('_', '-')}={value}" for name, value in (strict if official else flags).items()]
    words += ["--official"] if official else []
    found = json.loads(command("calign", *files, exported / "lexicon/en-de.txt", *words, "--json").out)
    axes = {
        "algorithm": "kmeans",
        "revision": "step-10",
        "source": "en",
        "target": "de",
        "theta": float(theta),
        "size_ratio": 0.0,
    }
    row = row_of(raypipe.open_run(run).calign(), **axes)
    names = ["concepts", "eligible", "reachable", "aligned", "calign", "coverage", "occurrence_coverage"]
    assert [found[name] for name in names] == [row[name] for name in names]
    assert found["concepts"] == 6
    assert theta == "0.8" or found["aligned"]
    joint = folder / "scope=de+en/k=0006/seed=0/clusters.txt"
    flags = ["--official", "--theta", "29.99999", "--boundary", 39] if official else []  # German comes first, 40 lines
    found = json.loads(command("colap", joint, *flags, "--json").out)
    row = row_of(raypipe.open_run(run).colap(), algorithm="kmeans", revision="step-10", scope="de+en")
    names = ["concepts", "overlapping", "overlapping_excl_shared", "colap", "eligible_3", "overlapping_5"]
    assert [found[name] for name in names] == [row[name] for name in names]
    assert list(found["points"].values()) == row["points"]


def test_points_go_out_as_they_are(run: Path, exported: Path) -> None:
    held = {}
    for language in ("de", "en"):
        words, held[language] = raypipe.open_run(run).states("tiny", "step-10", language, 3)
        vocab = read_vocab(exported / STATE / f"scope={language}" / "vocab.npy")
        assert vocab.words == words["word"].to_pylist()
        assert vocab.tokens.tolist() == words["token"].to_pylist()
        points = read_points(exported / STATE / f"scope={language}" / "points.npy", len(vocab.words))
        assert points.dtype == np.float64
        assert (points == held[language]).all()
    both = read_vocab(exported / STATE / "scope=de+en" / "vocab.npy")
    points = read_points(exported / STATE / "scope=de+en" / "points.npy", len(both.words))
    assert (points == np.concatenate([held["de"], held["en"]])).all()
    assert both.sentences[len(held["de"])] == 40  # English sentences are counted on from the 40 German ones
    clusters = read_clusters(exported / STATE / "scope=de+en/k=0006/seed=0/clusters.txt")
    places = set(zip(clusters.words, clusters.sentences.tolist(), clusters.tokens.tolist(), strict=True))
    assert places == set(zip(both.words, both.sentences.tolist(), both.tokens.tolist(), strict=True))


@pytest.fixture(scope="module")
def points_only(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("points") / "files"
    return shutil.copytree(exported, place, ignore=shutil.ignore_patterns("clusters.txt*"))


def test_points_come_in_and_are_clustered_as_the_run_did(run: Path, points_only: Path, tmp_path: Path) -> None:
    again = import_conceptx(points_only, tmp_path / "run")
    same_runs(run, again.path)
    for language in ("de", "fr"):
        (words, states), (mine, held) = (
            raypipe.open_run(place).states("tiny", "random:7", language, 3) for place in (again.path, run)
        )
        assert words == mine
        assert (states == held).all()


def test_points_that_do_not_fit_together(points_only: Path, tmp_path: Path, command: Command) -> None:
    folder = shutil.copytree(points_only, tmp_path / "in")
    shutil.rmtree(folder / STATE / "scope=fr")
    done = command("import", folder, "--out", tmp_path / "run")
    where = "tiny step-10 encoder layer 3 fr: no points.npy; expected points of every language at every layer"
    assert done.error == where
    shutil.copytree(folder / STATE / "scope=de", folder / STATE / "scope=fr")
    shutil.copytree(folder / STATE, (folder / STATE).with_name("layer=04"))
    done = command("import", folder, "--out", tmp_path / "run")
    assert done.error.startswith("tiny step-2 encoder layer 4 ")
    vocab = (folder / STATE).with_name("layer=04") / "scope=de/vocab.npy"
    np.save(vocab, np.load(vocab)[::-1])
    other = folder / "model=tiny/revision=step-2"
    shutil.rmtree(other)
    shutil.rmtree(folder / "model=tiny/revision=random%3A7")
    (folder / "grid.yaml").unlink()
    done = command("import", folder, "--out", tmp_path / "run", "--set", "concepts.k=6")
    assert done.error == f"{vocab}: other points than at layer 3; expected the same ones in the same order"


def test_points_of_pairs_and_their_links(world: tiny_world.World, tmp_path: Path, command: Command) -> None:
    links = tmp_path / "en-de.align"
    counts = [len(line.split()) for line in (world.path / "text" / "en.txt").read_text().splitlines()]
    links.write_text("".join(" ".join(f"{i}-{i}" for i in range(n)) + "\n" for n in counts))
    words = {"filter": "pairwise", "alignment": str(tmp_path / "{source}-{target}.align")}
    entries = [  # in an order that probabilities would change, and each first with two words
        f"{tiny_world.word('en', c)} -> {target}: Probability = {p}, Count = {n}\n"
        for c in range(tiny_world.CONCEPTS)
        for target, p, n in ((f"{c} {c}", 0.1, 1), (tiny_world.word("de", c), 0.4, 4), (f"{c}", 0.5, 5))
    ]
    (tmp_path / "en-de.arrow").write_text("".join(entries))
    lexicon = {"format": "arrow", "path": str(tmp_path / "{source}-{target}.arrow"), "nbest_order": "file"}
    lexicon["multiword"] = "keep"
    grid = world.grid(words=words, languages=["de", "en"], layers=[1], concepts={"k": 6}, lexicon=lexicon)
    grid["calign"] = {"translations": [1, 2, 3], "theta": 0.3, "min_types": 2, "null_draws": 2}
    grid["models"][0]["revisions"] = ["step-2"]
    raypipe.run(Grid(**grid), tmp_path / "run", "inprocess")
    done = command("export", tmp_path / "run", "--out", tmp_path / "out")
    assert done.out == f"{tmp_path}/out: 3 clusterings, 0 points, 2 dictionaries, 1 mappings\n"
    same_runs(tmp_path / "run", import_conceptx(tmp_path / "out", tmp_path / "again").path)
    texts = ["--source", world.path / "text" / "en.txt", "--target", world.path / "text" / "de.txt"]
    done = command("import", tmp_path / "out/mapping/en-de.json", *texts, "--out", tmp_path / "back")
    assert done.out == f"{tmp_path}/back: {sum(counts)} links\n"
    assert (tmp_path / "back").read_bytes() == links.read_bytes()
    reached = {
        n: sum(row["calign"] for row in select(raypipe.open_run(tmp_path / "run").calign(), translations=n).to_pylist())
        for n in (1, 2, 3)
    }
    assert reached[1] < reached[2] == reached[3]  # the entry of two words takes the first place
    links.unlink()
    (tmp_path / "en-de.arrow").unlink()
    done = command("export", tmp_path / "run", "--out", tmp_path / "other")
    assert done.error.startswith(f"{tmp_path}/{{source}}-{{target}}.align: no file for the pair de-en, neither way")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["again", "back", "out", "run"]  # no half of an export


def foreign(folder: Path, languages: str = "ed") -> Path:
    """Cluster files of two languages at layer 7 without any grid: one concept each, whose five words are translations."""
    for language, words in zip(languages, ("abcde", "ABCDE"), strict=True):
        place = folder / f"layer=7/scope={language}/k=1"
        place.mkdir(parents=True)
        lines = [f"{word}|||0|||{i}|||0|||0\n" for i, word in enumerate(words)]
        (place / "clusters.txt").write_text("\n" + lines[0] + "".join(lines))
    (folder / "lexicon").mkdir()
    (folder / f"lexicon/{'-'.join(languages)}.txt").write_text("".join(f"{w} {w.upper()}\n" for w in "abcd"))
    return folder


def test_foreign_clusters_need_little_and_get_scores(tmp_path: Path, command: Command) -> None:
    flags = ["--set", "calign.theta=[0.8, 0.9]", "--set", "calign.null_draws=2", "--set", "warnings.FEW_POINTS=0"]
    done = command("import", foreign(tmp_path / "in"), "--out", tmp_path / "run", *flags)
    assert done.out == f"{tmp_path}/run: 4 rows of CALIGN, 1 of COLAP\n"
    found = raypipe.open_run(tmp_path / "run")
    assert found.calign().select(["source", "target", "theta", "calign"]).to_pylist() == [
        {"source": "d", "target": "e", "theta": 0.8, "calign": 1.0},  # the other dictionary, inverted: 4 of 5 types
        {"source": "d", "target": "e", "theta": 0.9, "calign": 0.0},
        {"source": "e", "target": "d", "theta": 0.8, "calign": 1.0},
        {"source": "e", "target": "d", "theta": 0.9, "calign": 0.0},
    ]
    codes = found.warnings().column("code").to_pylist()
    assert ("GIANT_CONCEPT" in codes, "FEW_POINTS" in codes) == (True, False)  # of five points
    assert row_of(found.colap())["reason"] == "input_failed: d+e"  # no joint file
    mark = json.loads(next((tmp_path / "run/_done/concepts").rglob("seed=0.json")).read_text())
    assert {name: mark["receipt"][name] for name in ("points", "blank_lines", "merged")} == {
        "points": 5,
        "blank_lines": 1,
        "merged": 1,
    }
    assert "A=a" in command("show", tmp_path / "run", "concepts").out
    assert json.loads(command("status", tmp_path / "run", "--json").out)["stages"]["concepts"]["done"] == 2


def test_a_changed_cluster_file_is_refused(tmp_path: Path, command: Command) -> None:
    folder = foreign(tmp_path / "in")
    command("import", folder, "--out", tmp_path / "run")
    file = folder / "layer=7/scope=e/k=1/clusters.txt"
    file.write_text(file.read_text().replace("a|||", "z|||"))
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*") if file.is_file()}
    done = command("import", folder, "--out", tmp_path / "run")
    assert done.error.endswith("was made from another clusters.txt; choose another --out")
    assert {file: file.stat().st_mtime_ns for file in kept} == kept  # also the tables


def test_clusterings_that_are_there_have_their_own_settings(tmp_path: Path, command: Command) -> None:
    folder = foreign(tmp_path / "in")
    done = command("import", folder, "--out", tmp_path / "run", "--set", "concepts.k=7")
    assert done.error == f"--set concepts.k: {folder} holds clusterings, made already; leave it out"


def test_clusters_have_any_numbers_and_at_least_one_point(tmp_path: Path, command: Command) -> None:
    folder = foreign(tmp_path / "in")
    file = folder / "layer=7/scope=e/k=1/clusters.txt"
    file.write_text(file.read_text().replace("|||0\n", "|||2147483647\n"))
    assert command("import", folder, "--out", tmp_path / "run").code == 0
    assert set(raypipe.open_run(tmp_path / "run").concepts(scope="e")["concept"].to_pylist()) == {2**31 - 1}
    file.write_text("\n")
    done = command("import", folder, "--out", tmp_path / "other")
    assert done.error == f"{file}: holds no point; expected at least one"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("layer=7", "floor=7", "folder 'floor'; expected folders such as layer=7/scope=de/k=600"),
        ("layer=7/scope=e/k=1", "layer=7/scope=e", "no folder k=; expected folders"),
        ("layer=7", "layer=top", "layer is not a number; expected folders"),
        ("lexicon", "words", "lexicon/{source}-{target}.txt: no dictionary; expected one per direction, such as"),
    ],
)
def test_a_wrong_layout(old: str, new: str, message: str, tmp_path: Path, command: Command) -> None:
    folder = foreign(tmp_path / "in")
    if new == "layer=7/scope=e":
        (folder / old / "clusters.txt").rename(folder / new / "clusters.txt")
    else:
        (folder / old).rename(folder / new)
    assert message in command("import", folder, "--out", tmp_path / "run").error


def test_joint_clusters_need_their_side_file(tmp_path: Path, command: Command) -> None:
    folder = foreign(tmp_path / "in")
    joint = folder / "layer=7/scope=d+e/k=1/clusters.txt"
    joint.parent.mkdir(parents=True)
    joint.write_text("A|||1|||0|||0|||0\na|||1|||9|||0|||0\n")
    where = f"{joint}.json"
    assert command("import", folder, "--out", tmp_path / "run").error.startswith(f"{where}: cannot be read")
    Path(where).write_text('{"first_sentence": {"d": 0, "fr": 9}}')
    done = command("import", folder, "--out", tmp_path / "run")
    assert done.error == f"{where}: languages d, fr; expected those of the scope d+e"
    Path(where).write_text('{"first_sentence": {"d": 0, "e": 9}}')
    assert command("import", folder, "--out", tmp_path / "run").code == 0
    assert row_of(raypipe.open_run(tmp_path / "run").colap())["colap"] == 1.0
    done = command("export", tmp_path / "run", "--out", tmp_path / "out")
    assert done.out == f"{tmp_path}/out: 3 clusterings, 0 points, 2 dictionaries, 0 mappings\n"
    same_runs(tmp_path / "run", import_conceptx(tmp_path / "out", tmp_path / "again").path)
    done = command("export", tmp_path / "run", "--out", tmp_path / "points", "--points", "float32")
    assert done.error.startswith(f"{tmp_path}/run: holds no states of model=imported/")
    assert not (tmp_path / "points").exists()


def test_a_dictionary_is_ranked_and_cleaned(tmp_path: Path, command: Command) -> None:
    lines = [
        "a -> B: Probability = 0.2, Count = 1",
        "a -> A: Probability = 0.8, Count = 4",
        "a -> B C: Probability = 0.1, Count = 1",
    ]
    (tmp_path / "in.txt").write_text("\n".join([*lines, lines[0], "broken", ""]))
    done = command("import", tmp_path / "in.txt", "--out", tmp_path / "out.txt", "--max-bad-lines", 1)
    assert done.out == f"{tmp_path}/out.txt: 1 words, 1 multi-word and 1 repeated entries left out\n"
    assert done.err.startswith(f"skipped: {tmp_path}/in.txt:5: no ' -> '")
    assert (tmp_path / "out.txt").read_text() == "\n".join([lines[1], lines[0], ""])


def test_mistakes(run: Path, tmp_path: Path, command: Command) -> None:
    assert command("export", run, "--out", tmp_path, "--format", "csv").error == "--format csv: expected conceptx"
    done = command("export", run, "--out", tmp_path, "--points", "int8")
    assert done.error == "--points int8: expected float32 or float64"
    (tmp_path / "mapping.json").write_text("{}")
    mapping = tmp_path / "mapping.json"
    for out in (tmp_path, mapping):
        assert command("export", run, "--out", out).error == f"{out}: is not an empty folder; choose another --out"
    done = command("export", run, "--out", mapping / "deep")
    assert done.error == f"{mapping}/deep: cannot be written (File exists); choose another --out"
    (tmp_path / "words.txt").write_text("a A\n")
    done = command("import", tmp_path / "words.txt", "--out", tmp_path / "none/out.txt")
    where = f"{tmp_path}/none/out.txt: cannot be written (No such file or directory)"
    assert done.error == f"{where}; name a file in a folder that is there"
    done = command("import", tmp_path / "mapping.json", "--out", tmp_path / "links")
    assert done.error == f"{tmp_path}/mapping.json: a mapping needs its texts; give --source and --target"
    for path, flag, value, other, kind in (
        (mapping, "--set", "k=2", "folder", "mapping"),
        (tmp_path / "words.txt", "--target", "de.txt", "mapping", "dictionary"),
        (tmp_path, "--max-bad-lines", 1, "dictionary", "folder"),
    ):
        done = command("import", path, "--out", tmp_path / "out", flag, value)
        assert done.error == f"{flag}: is for a {other}, and {path} is read as a {kind}; leave it out"
    done = command("import", tmp_path, "--out", tmp_path / "run")
    assert done.error == (
        f"{tmp_path}: neither clusters.txt nor points.npy below it; expected layer=7/scope=de/k=600/clusters.txt"
    )
    (tmp_path / "fresh").mkdir()
    (tmp_path / "fresh/run.json").write_text('{"name": "fresh", "format": 2, "created": ""}')
    done = command("export", tmp_path / "fresh", "--out", tmp_path / "out")
    assert done.error.startswith(f"{tmp_path}/fresh: holds no clustering yet; finish it with `raypipe run")
