"""What the benchmarks compare: the reference procedures give our values, and the stage runs as it is timed."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models

from raypipe.cluster.inprocess import InProcess
from raypipe.cluster.protocol import Resources
from raypipe.models.batches import plan_batches
from raypipe.models.load import load_model
from raypipe.models.locate import checkpoints
from raypipe.models.states import Extractor, word_states
from raypipe.science.calign import calign

LINES = [tiny_models.TEXTS[index] for index in (0, 1, 6, 7)]


def benchmark(name: str) -> Any:
    """A benchmark as a module."""
    path = Path(__file__).parents[1] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def extraction() -> Any:
    return benchmark("extraction")


@pytest.mark.parametrize(
    ("kind", "special"),
    [("bert", {"cls_token": "[CLS]", "sep_token": "[SEP]"}), ("gpt2", {}), ("t5", {"eos_token": "</s>"})],
)
def test_the_reference_procedure_gives_our_values(
    extraction: Any, tmp_path: Path, kind: str, special: dict[str, str]
) -> None:
    from transformers import AutoTokenizer

    path = tiny_models.save_model(tmp_path / kind, kind, head=kind == "bert")
    tokenizer = AutoTokenizer.from_pretrained(path, **special)
    extraction.reference(extraction.with_head(path), tokenizer, LINES, tmp_path / "out.json")
    rows = [json.loads(line) for line in (tmp_path / "out.json").read_text().splitlines()]
    words, states = word_states(str(path), [line.split() for line in LINES], range(5))
    features = [feature for row in rows for feature in row["features"]]
    assert [row["linex_index"] for row in rows] == [0, 1, 2, 3]
    assert [feature["token"] for feature in features] == words.column("word").to_pylist()
    for layer in range(5):
        found = np.array([feature["layers"][layer]["values"] for feature in features])
        assert [feature["layers"][layer]["index"] for feature in features] == [layer] * len(features)
        assert (np.abs(found - states[layer]) <= 1e-4 * np.maximum(1, np.abs(states[layer]))).all()


@pytest.mark.parametrize("kind", ["bert", "gpt2", "t5"])
def test_the_bare_loop_gives_our_values(extraction: Any, tmp_path: Path, kind: str) -> None:
    path = tiny_models.save_model(tmp_path / kind, kind)
    checkpoint, part = checkpoints("m", str(path), ["main"])[0], extraction.part_read(path)
    extractor = Extractor(checkpoint, layers=range(5), component=part)
    encoded = extractor.encode([line.split() for line in LINES])
    expected = extractor.run(encoded, plan_batches(encoded.lengths, 200)).words
    found, pair = np.full_like(expected, np.nan), 2 * int(encoded.lengths.max())
    for batch, hidden in extraction.bare_loop(load_model(checkpoint, 4, part), part, encoded, pair, "float32"):
        assert hidden[0].shape[0] > 1  # padded
        for row, sentence in enumerate(batch):
            of = encoded.row == sentence
            found[:, of] = [layer[row, encoded.last[of]].numpy() for layer in hidden]
    assert (np.abs(found - expected) <= 1e-4 * np.maximum(1, np.abs(expected))).all()


@pytest.mark.parametrize("kind", ["bert", "m2m_100"])
def test_the_stage_is_timed_from_when_its_models_are_loaded(extraction: Any, tmp_path: Path, kind: str) -> None:
    path = tiny_models.save_model(tmp_path / kind, kind)
    with InProcess(Resources(1, 0, 1, 0)) as cluster:
        seconds = extraction.stage(tmp_path, path, LINES, "float32", cluster, 1)
    assert seconds.wall > 0
    assert seconds.processor > 0


def test_what_is_measured_of_memory(extraction: Any) -> None:
    with extraction.sampled() as found:
        held = np.ones(2**24)
        while not found or found[-1] < held.nbytes:
            os.sched_yield()
    assert max(found) >= held.nbytes


@pytest.mark.parametrize("theta", [0.1, 0.3, 0.5])
def test_the_published_loop_aligns_the_same_concepts(theta: float) -> None:
    scores = benchmark("scores")  # `alignment_loop.py` at the level of a module, and in a function
    random = np.random.default_rng(0)
    source, target = (([f"{p}{w}" for w in random.integers(60, size=400)], random.integers(30, size=400)) for p in "st")
    dictionary = {f"s{w}": [f"t{t}" for t in random.integers(60, size=10)] for w in range(50)}
    given: dict[str, Any] = {"theta": theta, "types": 4, "ratio": 0.4}
    given["dictionary"] = {word: [(translation, 1.0) for translation in found] for word, found in dictionary.items()}
    for name, (words, concepts) in (("source", source), ("target", target)):
        given[name] = {int(c): {w for w, of in zip(words, concepts, strict=True) if of == c} for c in set(concepts)}
    ways = [way(given) for way in (scores.as_module, scores.as_function)]
    assert ways[0] == ways[1]
    aligned = {(s, t) for s, targets in ways[0].items() for t in targets}
    score = calign(source, target, dictionary, theta=str(theta), min_types=4, size_ratio="0.4", official=True)
    assert set(score.pairs) == aligned
    assert aligned
