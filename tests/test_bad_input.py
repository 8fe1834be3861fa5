"""Mistakes in the input: one line with what to do, exit code 1, nothing half-written."""

from __future__ import annotations

import re
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_world
import yaml
from conftest import Done
from safetensors.numpy import load_file, save_file

from raypipe.errors import CellsFailed, RunError
from raypipe.results import open_run
from raypipe.rundir import RunDir

Command = Callable[..., Done]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Files of this process cannot grow beyond `size` bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class Desk:
    """A grid of one checkpoint, one layer and two languages, whose files a test may spoil."""

    def __init__(self, world: tiny_world.World, path: Path, command: Command) -> None:
        self.path, self.run_dir, self._command = path, path / "run", command
        self.largest_file = resource.getrlimit(resource.RLIMIT_FSIZE)[0]  # bytes
        for folder in ("text", "dict"):
            shutil.copytree(world.path / folder, path / folder)
        shutil.copytree(world.path / "model" / "step-2", path / "model" / "step-2")
        self._base = tiny_world.World(path).grid(
            models=[{"name": "tiny", "path": str(path / "model"), "revisions": ["step-2"]}],
            layers=[1],
            languages=["en", "de"],
            concepts={"k": [6], "seeds": [0]},
        )

    def write(self, name: str, content: bytes | str) -> Path:
        """Writes a file of the desk."""
        place = self.path / name
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(content if isinstance(content, bytes) else content.encode())
        return place

    def run(self, *flags: object, **changed: Any) -> Done:
        """`raypipe run` on the grid, some of its fields changed."""
        grid = self.write("grid.yaml", yaml.safe_dump(self._base | changed))
        where = [] if "--run" in flags else ["--run", self.run_dir]
        with largest_file(self.largest_file):
            return self._command("run", grid, "--address", "inprocess", *where, *flags)

    def refused(self, message: str, *flags: object, **changed: Any) -> None:
        """The run ends before it begins: one line, and no run directory."""
        done = self.run(*flags, **changed)
        assert done.code == 1
        assert not done.out
        assert done.err.startswith("raypipe: "), done.err
        assert re.fullmatch(message, done.error), done.error
        assert not self.run_dir.exists()

    def fails(self, message: str, *flags: object, **changed: Any) -> list[str]:
        """Cells fail: each is named in one line, none of them has a mark, nothing is half-written; returns the lines."""
        done = self.run(*flags, **changed)
        assert done.code == 1
        lines = done.error.splitlines()
        cells = [line.strip() for line in lines[1:] or lines]
        assert any(re.search(message, line) for line in cells), done.error
        assert not lines[1:] or re.fullmatch(
            rf"{len(cells)} cells failed; the others are finished and kept; run again to retry them", lines[0]
        )
        failed = {str(f.relative_to(self.run_dir / "_failed")) for f in (self.run_dir / "_failed").rglob("*.json")}
        marks = {str(f.relative_to(self.run_dir / "_done")) for f in (self.run_dir / "_done").rglob("*.json")}
        assert len(failed) == len(cells)
        assert not failed & marks
        assert not list(self.run_dir.rglob("*.tmp"))
        return cells

    def has_scores(self) -> bool:
        """Whether the run holds score tables or a report."""
        return (self.run_dir / "scores").exists() or (self.run_dir / "report").exists()

    def reasons(self) -> set[str]:
        """Why the rows of the score tables have no figures; empty for those that have."""
        run = open_run(self.run_dir)
        return {row["reason"] for table in (run.calign(), run.colap()) for row in table.to_pylist()}


@pytest.fixture
def desk(world: tiny_world.World, tmp_path: Path, command: Command) -> Desk:
    """Files of its own for each test."""
    return Desk(world, tmp_path, command)


def test_the_desk_itself_is_fine(desk: Desk) -> None:
    done = desk.run()
    assert done.code == 0, done.err
    assert not done.error
    assert desk.has_scores()


# --- text


def test_languages_of_different_length(desk: Desk) -> None:
    desk.write("text/de.txt", (desk.path / "text/de.txt").read_text() + "eine Zeile mehr\n")
    desk.refused(
        r".*/text/\{lang\}.txt: the languages differ in lines \(en 40, de 41\); line i must say the same in every file"
    )


def test_a_missing_language_file(desk: Desk) -> None:
    (desk.path / "text/de.txt").unlink()
    desk.refused(r".*/text/de.txt: no such file for language de; check corpus.path and languages")


@pytest.mark.parametrize("languages", [["de"], ["en", "de"]])
def test_an_empty_file(desk: Desk, languages: list[str]) -> None:
    for language in languages:
        desk.write(f"text/{language}.txt", b"")
    desk.refused(rf".*/text/{languages[0]}.txt: is empty; expected one sentence per line")


def test_text_that_is_not_utf8(desk: Desk, command: Command) -> None:
    lines = (desk.path / "text/de.txt").read_bytes().split(b"\n")
    lines[6] = "Stra\xdfe".encode("latin-1")
    desk.write("text/de.txt", b"\n".join(lines))
    (line,) = desk.fails(r"/text/de\.txt:7: byte 0xdf at column 5; expected UTF-8 \(trace: ")
    assert line.startswith("corpus lang=de: ")
    assert not (desk.run_dir / "corpus/lang=de").exists()
    assert not desk.has_scores()
    done = command("plan", desk.path / "grid.yaml")
    assert (done.code, done.out) == (1, "")
    assert done.error.endswith("/text/de.txt:7: byte 0xdf at column 5; expected UTF-8")
    desk.write("text/de.txt", b"\n".join(lines).replace(b"\xdf", b"ss"))
    assert desk.run().code == 0
    assert not RunDir.open(desk.run_dir).failures()


def test_text_of_which_no_word_is_kept(desk: Desk) -> None:
    desk.write("text/de.txt", b"\n" * 40)
    desk.fails(r"/text/de\.txt: no word of language de is kept; loosen words\.lines, min_words")
    assert not (desk.run_dir / "corpus/lang=de").exists()
    assert not desk.has_scores()


# --- models


def test_an_unknown_layer_names_the_range(desk: Desk) -> None:
    desk.refused(r"layers: 9 is outside 0\.\.4 of model tiny", layers=[1, 9])


def test_an_unknown_revision_names_those_that_are_there(desk: Desk) -> None:
    model = {"name": "tiny", "path": str(desk.path / "model"), "revisions": ["step-3"]}
    desk.refused(r"model 'tiny': no checkpoint 'step-3' in .*; there are step-2; did you mean step-2\?", models=[model])


def test_a_model_without_weights(desk: Desk) -> None:
    (desk.path / "model/step-2/model.safetensors").unlink()
    desk.refused(r"model 'tiny', revision 'step-2': no model\.safetensors in .*; save the model there with .*")
    desk.write("model/step-2/pytorch_model.bin", b"\x80\x04.")
    desk.refused(r"model 'tiny', .* holds only pytorch_model\.bin; pickled weights are refused: convert them to .*")


def test_weights_that_are_cut_off(desk: Desk) -> None:
    weights = desk.path / "model/step-2/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    desk.fails(r"^extract .*/lang=en: model 'tiny', revision 'step-2': the weights cannot be loaded: ")
    assert desk.reasons() == {"input_failed: de, en", "input_failed: de+en"}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_states_that_are_not_finite(desk: Desk, value: float) -> None:
    file = desk.path / "model/step-2/model.safetensors"
    weights = load_file(file)
    name = "encoder.layer.0.output.dense.bias"
    weights[name] = np.where(np.arange(len(weights[name])) == 3, value, weights[name]).astype(np.float32)
    save_file(weights, file, metadata={"format": "pt"})
    lines = desk.fails(
        r"^extract model=tiny/revision=step-2/.*/lang=en: model 'tiny', revision 'step-2': the state of word '\w+' "
        r"\(sentence 0, token 0\) at layer 1 is not finite in float32; compute in float32, or check the weights"
    )
    stages = [line.split()[0] for line in lines]
    assert stages == ["extract"] * 2 + ["concepts"] * 3  # causes come first
    assert "its input failed: extract tiny step-2 encoder v-default en" in lines[4]
    assert desk.reasons() == {"input_failed: de, en", "input_failed: de+en"}
    assert not (desk.run_dir / "activations").exists() or not list((desk.run_dir / "activations").rglob("*.parquet"))


def test_states_that_overflow_their_format(desk: Desk) -> None:
    file = desk.path / "model/step-2/model.safetensors"
    weights = load_file(file)
    weights["encoder.layer.0.output.LayerNorm.weight"] += np.float32(1e6)
    save_file(weights, file, metadata={"format": "pt"})
    desk.fails(
        r"^extract .*: states of .* overflow float16; store float32 \(grid field dtype\.store\)",
        dtype={"store": "float16"},
    )
    assert desk.reasons() == {"input_failed: de, en", "input_failed: de+en"}


# --- concepts


def test_more_concepts_than_points_names_the_scope(desk: Desk) -> None:
    """English has fewer points than 300, English and German together have more."""
    lines = desk.fails(
        r"^concepts .*/scope=en/k=0300/seed=0: k=300 but only \d+ distinct points; lower k or use more text",
        concepts={"k": [6, 300], "seeds": [0]},
    )
    assert [re.findall(r"scope=([\w+]+)", line)[0] for line in lines] == ["de", "en"]
    run = open_run(desk.run_dir)
    assert {(row["k"], row["reason"]) for row in run.calign().to_pylist()} == {(6, ""), (300, "input_failed: de, en")}
    assert {(row["k"], row["reason"]) for row in run.colap().to_pylist()} == {(6, ""), (300, "")}


def test_a_failed_clustering_that_comes_later_is_scored_then(desk: Desk) -> None:
    """A file stands where a clustering's folder should be; when it is gone, the pair's score must not count as done."""
    place = desk.run_dir / "concepts/model=tiny/revision=step-2/component=encoder/variant=v-default/layer=01"
    assert desk.run("--only", "corpus").code == 0
    place.mkdir(parents=True)
    blocked = [place / f"scope={scope}" for scope in ("de", "en", "de+en")]
    for file in blocked:
        file.write_text("")
    desk.fails(r"^concepts .*/scope=de/.*: cannot be written \(Not a directory\)")
    assert desk.reasons() == {"input_failed: de, en", "input_failed: de+en"}
    for file in blocked[:2]:
        file.unlink()
    desk.fails(r"^concepts .*/scope=de\+en/.*: cannot be written \(Not a directory\)")
    assert desk.reasons() == {"", "input_failed: de+en"}
    assert "scores: 1 of 1 pairs lack a clustering; those rows say input_failed" in desk.run().err
    blocked[2].unlink()
    done = desk.run()
    assert (done.code, desk.reasons()) == (0, {""})
    assert "lack a clustering" not in done.err
    marks = {file: file.stat().st_mtime_ns for file in (desk.run_dir / "_done").rglob("*.json")}
    assert "cells are there already" in desk.run().err
    assert marks == {file: file.stat().st_mtime_ns for file in (desk.run_dir / "_done").rglob("*.json")}


# --- dictionaries


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("muse", b"a b\nc d e\n", r":2: 3 fields; expected source and target"),
        ("muse", b"a b\nc \xff\n", r":2: byte 0xff at column 3; expected UTF-8"),
        ("arrow", b"a -> b: Probability = 1.2, Count = 3\n", r":1: probability 1\.2 outside 0\.\.1"),
        ("arrow", b"a b\n", r":1: no ' -> ' and no ': Probability = P, Count = C'"),
        ("muse", b"", r": no usable entry \(0 multi-word\); expected at least one translation"),
        (
            "arrow",
            b"a -> to go: Probability = 1, Count = 1\n",
            r": no usable entry \(1 multi-word\); expected at least one translation",
        ),
    ],
)
def test_a_dictionary_that_cannot_be_used(desk: Desk, kind: str, content: bytes, message: str) -> None:
    desk.write("dict/en-de.txt", content)
    path = str(desk.path / "dict" / "{source}-{target}.txt")
    lines = desk.fails(
        rf"^lexicon source=en/target=de: .*/dict/en-de\.txt{message}", lexicon={"format": kind, "path": path}
    )
    assert len(lines) == (1 if kind == "muse" else 2)
    assert not (desk.run_dir / "activations").exists()
    assert not desk.has_scores()


def test_a_dictionary_of_other_words_scores_zero_and_warns(desk: Desk) -> None:
    for pair in ("en-de", "de-en"):
        desk.write(f"dict/{pair}.txt", "unseen unheard\n")
    done = desk.run()
    assert done.code == 0
    assert "LOW_COVERAGE: en-de and 3 more: 0.00 of types (limit 0.5); the dictionary, not the model" in done.err
    rows = open_run(desk.run_dir).calign().to_pylist()
    assert {(row["calign"], row["coverage"], row["reason"]) for row in rows} == {(0.0, 0.0, "no_coverage")}
    assert {row["calign_reachable"] for row in rows} == {None}


def test_no_dictionary_at_all(desk: Desk) -> None:
    lexicon = {"format": "muse", "path": str(desk.path / "none" / "{source}-{target}.txt")}
    desk.refused(r".*: no file for any of the pairs; check lexicon\.path and pairs", lexicon=lexicon)


# --- the run directory


def test_a_file_in_the_way_of_the_run(desk: Desk) -> None:
    file = desk.write("file", b"mine")
    desk.refused(r".*/file: cannot be written \(File exists\); free space or choose another --run, .*", "--run", file)
    desk.refused(r".*/file/run: cannot be written \(Not a directory\); .*", "--run", file / "run")
    assert file.read_bytes() == b"mine"


def test_a_folder_of_other_files(desk: Desk) -> None:
    kept = desk.write("other/file", b"mine")
    desk.refused(r".*/other: is not empty and not a run directory; choose another --run", "--run", kept.parent)
    assert [file.name for file in kept.parent.iterdir()] == ["file"]


def test_a_disk_that_fills_up(desk: Desk) -> None:
    """The states (about 220 x 16 floats per language) find no room; the tables of the text do."""
    unlimited, desk.largest_file = desk.largest_file, 20_000
    lines = desk.fails(r"^extract .*/part-00000\.parquet: cannot be written \(.*large.*\); free space or choose")
    desk.largest_file = unlimited
    assert not list(desk.run_dir.rglob("part-*"))
    assert desk.reasons() == {"input_failed: de, en", "input_failed: de+en"}
    assert len(lines) == 2 + 3
    assert desk.run().code == 0
    assert not (desk.run_dir / "_failed").exists() or not RunDir.open(desk.run_dir).failures()


def test_a_disk_that_is_full_from_the_start(desk: Desk) -> None:
    unlimited, desk.largest_file = desk.largest_file, 300
    done = desk.run()
    desk.largest_file = unlimited
    assert done.code == 1
    assert re.fullmatch(r".*/run/run\.json: cannot be written \(File too large\); free space or .*", done.error)
    assert [file.name for file in desk.run_dir.rglob("*") if file.is_file()] == [".lock"]
    assert desk.run().code == 0


def test_a_run_of_another_grid_is_left_alone(desk: Desk) -> None:
    assert desk.run().code == 0
    before = {file: file.read_bytes() for file in desk.run_dir.rglob("*") if file.is_file()}

    def refused(message: str, *flags: object, **changed: Any) -> None:
        done = desk.run(*flags, **changed)
        assert done.code == 1
        assert re.fullmatch(rf".*/run: {message}", done.error), done.error
        assert before == {file: file.read_bytes() for file in desk.run_dir.rglob("*") if file.is_file()}

    refused("holds the grid 'tiny', not 'other'; choose another --run or rename the grid", name="other")
    mismatch = r"corpus en was made with words\.max_freq = 15, now 3; use --rerun corpus or another --run"
    refused(mismatch, words={"max_freq": 3})
    refused(mismatch, "--rerun", "scores", words={"max_freq": 3})  # what would be done again is still there
    desk.write("dict/en-de.txt", "a b\n")
    refused("lexicon en de was made from another dictionary en-de; use --rerun lexicon or another --run")


def test_a_damaged_file_of_the_run(desk: Desk, command: Command) -> None:
    assert desk.run().code == 0
    shard = next((desk.run_dir / "activations").rglob("part-*.parquet"))
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    done = desk.run()  # seen by its size: made again
    assert done.code == 0
    before = (desk.run_dir / "scores" / "calign.parquet").read_bytes()
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1  # seen by a checksum when it is read
    shard.write_bytes(content)
    lines = desk.fails(
        r"^concepts .*/part-00000\.parquet: was damaged \(.*\) and is removed; run the grid again",
        "--rerun",
        "concepts",
    )
    assert lines
    assert not shard.exists()
    assert desk.run().code == 0
    assert before == (desk.run_dir / "scores" / "calign.parquet").read_bytes()
    shutil.rmtree(desk.run_dir / "scores")
    done = command("show", desk.run_dir, "calign")
    assert done.code == 1
    assert re.fullmatch(r".*/run: no scores yet; finish it with `raypipe run .*grid\.yaml --run .*`", done.error)
    (desk.run_dir / "run.json").write_text("{")
    assert "run.json: missing or damaged" in command("status", desk.run_dir).error


@pytest.mark.parametrize(
    ("stage", "needs"),
    [
        ("lexicon", "corpus"),
        ("extract", "corpus"),
        ("concepts", "extract"),
        ("scores", "lexicon"),
        ("report", "scores"),
    ],
)
def test_a_stage_alone_says_what_it_reads(desk: Desk, stage: str, needs: str) -> None:
    desk.refused(
        rf".*/run: holds no result of the stage {needs}, which {stage} reads; run that first, or all stages",
        "--only",
        stage,
    )


def test_a_stage_alone_that_the_grid_does_not_ask_for(desk: Desk) -> None:
    desk.refused(r"--only patching: the grid asks for nothing of this stage; name another, or .*", "--only", "patching")
    desk.refused(
        r"--only lexicon --rerun extract: lexicon does not build on extract, which would only be lost",
        *("--only", "lexicon", "--rerun", "extract"),
    )


# --- other kinds of corpus

CORPUS_TABLES = ("sentences", "occurrences")


def corpus_bytes(run: Path) -> dict[str, bytes]:
    """The tables that the stage corpus wrote."""
    return {str(file.relative_to(run)): file.read_bytes() for file in sorted((run / "corpus").rglob("*.parquet"))}


def read_corpus(desk: Desk, **corpus: Any) -> Done:
    """Runs the stage corpus on another corpus."""
    shutil.rmtree(desk.run_dir, ignore_errors=True)
    return desk.run("--only", "corpus", corpus=corpus)


def columns(desk: Desk) -> dict[str, list[str]]:
    """The lines of each language."""
    return {code: (desk.path / f"text/{code}.txt").read_text().splitlines() for code in ("en", "de")}


@pytest.fixture
def expected(desk: Desk) -> dict[str, bytes]:
    """What the text files are read to."""
    assert desk.run("--only", "corpus").code == 0
    return corpus_bytes(desk.run_dir)


def test_a_tsv_is_read_to_the_same_tables(desk: Desk, expected: dict[str, bytes]) -> None:
    rows = ["note\tde\ten", *(f"x\t{de}\t{en}" for en, de in zip(*columns(desk).values(), strict=True))]
    path = desk.write("all.tsv", "\n".join(rows) + "\n")
    assert read_corpus(desk, format="tsv", path=str(path)).code == 0
    assert corpus_bytes(desk.run_dir) == expected
    desk.write("all.tsv", "\n".join([*rows[:4], "x\tonly two", *rows[5:]]))
    assert (
        "/all.tsv:5: 2 columns; expected 3 as in the first line"
        in read_corpus(desk, format="tsv", path=str(path)).error
    )
    desk.write("all.tsv", "\n".join(["note\tde\tfr", *rows[1:]]))
    assert "/all.tsv:1: no column en; found note, de, fr" in read_corpus(desk, format="tsv", path=str(path)).error
    desk.write("all.tsv", rows[0] + "\n")
    assert (
        "/all.tsv: no line after the header; expected one sentence per line"
        in read_corpus(desk, format="tsv", path=str(path)).error
    )


def test_parquet_is_read_to_the_same_tables(desk: Desk, expected: dict[str, bytes]) -> None:
    for code, lines in columns(desk).items():
        pq.write_table(pa.table({"id": range(len(lines)), "text": lines}), desk.path / f"{code}.parquet")
    corpus = {"format": "parquet", "path": str(desk.path / "{lang}.parquet")}
    assert read_corpus(desk, **corpus).code == 0
    assert corpus_bytes(desk.run_dir) == expected
    shutil.rmtree(desk.run_dir)

    def spoilt(table: pa.Table) -> None:
        pq.write_table(table, desk.path / "de.parquet")

    whole = pq.read_table(desk.path / "de.parquet")
    spoilt(whole.slice(1))
    desk.refused(r".*/\{lang\}\.parquet: the languages differ in lines \(en 40, de 39\); line i must .*", corpus=corpus)
    spoilt(whole.slice(0, 0))
    desk.refused(r".*/de\.parquet: is empty; expected one sentence per line", corpus=corpus)
    desk.write("de.parquet", b"plain text")
    desk.refused(r".*/de\.parquet: not a Parquet file \(.*\); write one with a column text, or set .*", corpus=corpus)
    spoilt(whole.rename_columns(["id", "line"]))
    assert "/de.parquet: no column text; found id, line" in read_corpus(desk, **corpus).error
    spoilt(whole.set_column(1, "text", pa.array([*whole["text"].to_pylist()[:-1], None])))
    assert "/de.parquet: row 39 is NoneType; expected text" in read_corpus(desk, **corpus).error
    latin = pa.array([b"gr\xfcn"] * 40).cast(pa.binary()).view(pa.string())
    spoilt(whole.set_column(1, "text", latin))
    assert "/de.parquet: damaged ('utf-8' codec can't decode" in read_corpus(desk, **corpus).error
    spoilt(whole.select(["text"]))
    content = bytearray((desk.path / "de.parquet").read_bytes())
    for place in (8, len(content) - 60):  # the header of a page, the footer
        desk.write("de.parquet", bytes(content[:place]) + b"\xff" * 20 + bytes(content[place + 20 :]))
        assert re.search(r"/de\.parquet: (damaged|not a Parquet file)", read_corpus(desk, **corpus).error)


@pytest.fixture
def no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`datasets` keeps what it makes in the test's folder, and asks no network."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


@pytest.mark.usefixtures("no_cache")
def test_a_local_data_set_is_read_to_the_same_tables(desk: Desk, expected: dict[str, bytes]) -> None:
    lines = columns(desk)
    (desk.path / "set").mkdir()
    corpus = {"format": "datasets", "path": str(desk.path / "set")}
    pq.write_table(pa.table(lines), desk.path / "set" / "train.parquet")
    done = read_corpus(desk, **corpus)
    assert done.code == 0, done.err
    assert corpus_bytes(desk.run_dir) == expected
    pairs = [{"en": en, "de": de} for en, de in zip(*lines.values(), strict=True)]
    pq.write_table(pa.table({"translation": pairs}), desk.path / "set" / "train.parquet")
    assert "corpus en was made from another text of en" in desk.run("--only", "corpus", corpus=corpus).error
    assert read_corpus(desk, **corpus).code == 0
    assert corpus_bytes(desk.run_dir) == expected
    pq.write_table(pa.table({"en": lines["en"], "fr": lines["de"]}), desk.path / "set" / "train.parquet")
    assert re.search(r"corpus\.path .*/set: no column de; found en, fr", read_corpus(desk, **corpus).error)
    pq.write_table(pa.table({"en": ["a"], "de": ["b"]}).slice(1), desk.path / "set" / "train.parquet")
    assert re.search(
        r"/set: (is empty; expected one sentence per row|cannot be loaded)", read_corpus(desk, **corpus).error
    )
    shutil.rmtree(desk.path / "set")
    assert re.search(r"corpus\.path .*/set: cannot be loaded \(.*\)", read_corpus(desk, **corpus).error)


def test_what_a_message_quotes_neither_ends_its_line_nor_steers_the_terminal() -> None:
    quoted = "word \x1b[31m\x0b\u2028\udc80 of é, 中; 1 more:\n  line"
    assert str(RunError(quoted)) == "word \\x1b[31m\\x0b\\u2028\\udc80 of é, 中; 1 more:\\n  line"
    assert (
        str(CellsFailed(quoted)) == "word \\x1b[31m\\x0b\\u2028\\udc80 of é, 中; 1 more:\n  line"
    )  # one for each cell
