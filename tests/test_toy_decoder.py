"""The toy world's decoder: the lines it learns, training twice, and that it translates and can be patched."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

import raypipe
from raypipe import toy
from raypipe.gridfile import load_grid
from raypipe.interop.concepttable import NATIVE_NAMES, read_concepts
from raypipe.models.load import load_causal, load_tokenizer
from raypipe.models.locate import checkpoints
from raypipe.models.patching import Patcher, Prompt
from raypipe.models.prompts import decode, encode, prompt, token_sets
from raypipe.toy import lexicon
from raypipe.toy.decoder import NAMES, Settings, parts, train, train_tokenizer
from raypipe.toy.lexicon import LANGUAGES, things


@pytest.fixture(scope="module")
def few() -> tuple[lexicon.Concept, ...]:
    """Twelve animals, so that little training is enough."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lexicon, "THINGS", ("animal",))
        return things()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("decoder")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lexicon, "THINGS", ("animal",))
        train(folder, Settings(checkpoints=(0, STEPS)))
    return folder


STEPS = 200
ROOT = Path(__file__).parents[1]


def test_the_concept_table_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(toy.CACHE, str(tmp_path))
    path = Path(toy.resolve("toy:words.csv"))
    table = read_concepts(path, LANGUAGES)
    assert [c.id for c in table.concepts] == [c.id for c in things()]
    assert (len(table.concepts) >= 80, table.dropped) == (True, 0)
    rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    assert rows[0] == {"concept": "dog", "en": "dog", "es": "perro", "pt": "cachorro", "ru": "собака"}


def test_lines_are_those_of_the_prompts() -> None:
    assert {code: NATIVE_NAMES[code] for code in LANGUAGES} == NAMES
    shots, asked = [("gato", "cat"), ("vaca", "cow")], ("perro", "dog")
    text = "".join("".join(parts(*shot, "es", "en")) for shot in shots) + parts(*asked, "es", "en")[0]
    assert text == prompt(shots, "perro", NAMES["es"], NAMES["en"]).text
    assert "".join(parts("gato", "cat", "es", "en")) == 'Español: "gato" - English: "cat"\n'


def test_every_word_is_one_piece_and_no_quote_merges_with_it() -> None:
    tokenizer = train_tokenizer(Settings())
    for concept in things():
        for lang in LANGUAGES:
            word = concept.forms[lang][0]
            ids = tokenizer(f'"{word}"\n')["input_ids"]
            assert [tokenizer.decode([piece]) for piece in ids] == ['"', word, '"', "\n"]
    asks, answers = parts("gato", "cat", "es", "en")
    assert tokenizer(asks)["input_ids"] + tokenizer(answers)["input_ids"] == tokenizer(asks + answers)["input_ids"]
    assert len(tokenizer) <= Settings().pieces


def test_training_is_deterministic_and_leaves_torch_as_it_was(tmp_path: Path) -> None:
    settings = Settings(near=1, far=1, width=16, heads=2, rows=4, warmup=2, checkpoints=(0, 3))
    before, told = (torch.get_num_threads(), torch.random.get_rng_state()), []
    for name in ("first", "second"):
        train(tmp_path / name, settings, told.append)
    assert told == ["toy decoder: step 0 of 3", "toy decoder: step 3 of 3"] * 2
    assert torch.get_num_threads() == before[0]
    assert torch.equal(torch.random.get_rng_state(), before[1])
    files = [path for path in sorted((tmp_path / "first").rglob("*")) if path.is_file()]
    assert {path.parent.name for path in files} == {"step-000000", "step-000003"}
    for path in files:
        assert path.read_bytes() == (tmp_path / "second" / path.relative_to(tmp_path / "first")).read_bytes(), path
    weights = [
        (tmp_path / "first" / step / "model.safetensors").read_bytes() for step in ("step-000000", "step-000003")
    ]
    assert weights[0] != weights[1]
    assert AutoTokenizer.from_pretrained(tmp_path / "first" / "step-000003").eos_token == "</s>"


def test_it_learns_to_translate_and_to_be_patched(trained: Path, few: tuple[lexicon.Concept, ...]) -> None:
    """Spanish to English; what is put in comes from Portuguese and Russian lines."""
    rng = np.random.default_rng(0)
    drawn = [[few[at] for at in rng.permutation(len(few))] for _ in range(24)]

    def asked(which: int, source: str, target: str) -> list[Prompt]:
        texts = [
            prompt(
                [(c.forms[source][0], c.forms[target][0]) for c in row[3:8]],
                row[which].forms[source][0],
                NAMES[source],
                NAMES[target],
            )
            for row in drawn
        ]
        coded = encode(tokenizer, texts, [row[which].forms[source][0] for row in drawn])
        return [Prompt(one.ids, one.position) for one in coded]

    found = {}
    for checkpoint in checkpoints("toy", str(trained), ["all"]):
        tokenizer = load_tokenizer(checkpoint)
        patcher = Patcher(load_causal(checkpoint), tokenizer)
        assert patcher.path == "fast"
        sets = token_sets(tokenizer, [c.forms for row in drawn for c in row[:2]], ["en"])
        wanted = [np.array([sets[2 * row]["en"][0], sets[2 * row + 1]["en"][0]]) for row in range(len(drawn))]
        clean = patcher.unpatched(asked(0, "es", "en"), wanted, 5)
        gold = [f'{row[0].forms["en"][0]}"' for row in drawn]
        right = np.mean([text == word for text, word in zip(decode(tokenizer, clean.answers), gold, strict=True)])
        states = np.mean([patcher.read(asked(0, *pair)) for pair in (("pt", "ru"), ("ru", "pt"))], axis=0)
        other = np.mean([patcher.read(asked(2, *pair)) for pair in (("pt", "ru"), ("ru", "pt"))], axis=0)
        scored = patcher.patched(asked(1, "es", "en"), [states, other], wanted)
        chance = [np.exp([of_layer.logprobs for of_layer in setting])[:, :, 0].mean(axis=1) for setting in scored]
        found[checkpoint.revision] = (right, (chance[0] - chance[1]).max())
    assert found["step-000000"][0] == 0
    assert abs(found["step-000000"][1]) < 0.01
    assert found[f"step-{STEPS:06d}"][0] > 0.8
    assert found[f"step-{STEPS:06d}"][1] > 0.2


def test_the_trained_decoder_is_found_by_its_name_also_when_its_code_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(toy.CACHE, str(tmp_path))
    folder = tmp_path / f"toy-decoder-{toy._fingerprint(toy.DECODER_CODE, toy.LIBRARIES)}"
    (folder / "decoder").mkdir(parents=True)
    (folder / toy.MARK).touch()
    assert toy.resolve("toy:decoder") == str(folder / "decoder")


def test_the_grid_of_emergence_runs_without_shared_data(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the decoder of few words in the cache, and fewer concept pairs."""
    monkeypatch.delenv("RAYPIPE_SHARED", raising=False)
    monkeypatch.setenv(toy.CACHE, str(tmp_path))
    monkeypatch.setattr(lexicon, "THINGS", ("animal",))
    folder = tmp_path / f"toy-decoder-{toy._fingerprint(toy.DECODER_CODE, toy.LIBRARIES)}"
    folder.mkdir()
    (folder / "decoder").symlink_to(trained)
    (folder / toy.MARK).touch()
    less = {"patching.pairs": 12, "patching.targets": ["es-en"], "patching.resamples": 200}
    grid = load_grid(ROOT / "grids" / "emergence.yaml", list(less.items()))
    summary = raypipe.run(grid, tmp_path / "run", "inprocess").patching().to_pandas()
    seen = summary[summary.setting == "seen"].set_index("revision")
    assert seen.emerged.to_dict() == {"step-000000": False, f"step-{STEPS:06d}": True, "random:1": None}
    assert seen.effect_split_lo.iloc[1] > 0.1
    assert (seen.effect_split.iloc[[0, 2]].abs() < 0.01).all()
