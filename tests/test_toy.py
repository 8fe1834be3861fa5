"""The toy world: words that agree, lines that are parallel, gold files that fit, building once, training."""

import json
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from pathlib import Path

import pytest

from raypipe import toy
from raypipe.errors import RunError
from raypipe.toy.lexicon import LANGUAGES, concepts, groups, inflect
from raypipe.toy.lexicon import source as lexicon_source
from raypipe.toy.sentences import (
    CONTRACTED,
    SENTENCES,
    TEMPLATES,
    Filler,
    Sentence,
    Token,
    _render,
    corpus,
    dictionary,
    links,
    text,
)

PAIRS = list(permutations(LANGUAGES, 2))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(toy.CACHE, str(tmp_path / "cache"))
    return tmp_path / "cache"


# --- lexicon ---------------------------------------------------------------------------------------------------------


def test_lexicon_is_large_unique_and_complete():
    lines = [line for line in lexicon_source().splitlines() if ";" in line and not line.startswith("#")]
    table = concepts()
    assert len(lines) == len(table) >= 150  # a concept id written twice would shrink the table
    for concept in table.values():
        # only function words may be absent from a language
        content = concept.group not in {"pointing", "grammar"}
        assert not content or set(concept.forms) == set(LANGUAGES), concept.id
        assert set(concept.gender.values()) <= set("mfn-")
        assert len({len(concept.forms[lang]) for lang in ("es", "pt") if lang in concept.forms}) <= 1, concept.id


def test_forms_have_the_length_their_kind_needs():
    for concept in concepts().values():
        if concept.group in {"size", "mood", "flavour", "colour", "owner"}:
            assert [len(concept.forms[lang]) for lang in LANGUAGES] == [1, 4, 4, 4], concept.id
        elif concept.gender or concept.group.endswith("ing"):  # nouns and verbs: as many numbers in every language
            shapes = {len(forms) for lang, forms in concept.forms.items() if concept.id not in {"the", "this"}}
            assert shapes <= {1} or shapes <= {2}, concept.id


def test_every_class_can_become_an_eligible_concept():
    sizes = {group: len(members) for group, members in groups().items()}
    assert sum(size >= 5 for size in sizes.values()) >= 15
    assert {group for group, size in sizes.items() if size < 5} == {"pointing", "owner"}


def test_no_content_word_is_spelled_like_another():
    for lang in LANGUAGES:
        owners: dict[str, set[str]] = {}
        for concept in concepts().values():
            for form in concept.forms.get(lang, ()) if concept.group not in {"grammar", "pointing"} else ():
                owners.setdefault(form, set()).add(concept.id)
        assert not {form: ids for form, ids in owners.items() if len(ids) > 1}


@pytest.mark.parametrize(
    ("forms", "language", "gender", "plural", "expected"),
    [
        (("slowly",), "en", "-", True, "slowly"),
        (("corre", "corren"), "es", "f", True, "corren"),
        (("rojo", "roja", "rojos", "rojas"), "es", "m", False, "rojo"),
        (("rojo", "roja", "rojos", "rojas"), "es", "f", False, "roja"),
        (("rojo", "roja", "rojos", "rojas"), "pt", "m", True, "rojos"),
        (("rojo", "roja", "rojos", "rojas"), "pt", "f", True, "rojas"),
        (("старый", "старая", "старое", "старые"), "ru", "m", False, "старый"),
        (("старый", "старая", "старое", "старые"), "ru", "n", False, "старое"),
        (("старый", "старая", "старое", "старые"), "ru", "f", True, "старые"),
    ],
)
def test_inflect(forms, language, gender, plural, expected):
    assert inflect(forms, language, gender, plural) == expected


# --- sentences -------------------------------------------------------------------------------------------------------


def render(number: int, **slots: str) -> Sentence:
    """Fill a template by hand; a trailing + marks the plural."""
    filled = {slot: Filler(concepts()[name.rstrip("+")], name.endswith("+")) for slot, name in slots.items()}
    _, english, spanish, russian = TEMPLATES[number]
    portuguese = spanish
    for apart, together in CONTRACTED.items():
        portuguese = portuguese.replace(apart, together)
    orders = zip(LANGUAGES, (english, spanish, portuguese, russian), strict=True)
    return {lang: _render(pattern, lang, filled) for lang, pattern in orders}


GOLDEN = [
    (  # feminine plural in es and pt; the Russian plural has no gender
        render(0, S="cow+", A="old", D="this", V="run", P="garden"),
        "these old cows run in the garden",
        "estas vacas viejas corren en el jardín",
        "estas vacas velhas correm no jardim",
        "эти старые коровы бегают в саду",
    ),
    (  # "ring" is masculine in es and pt and neuter in ru
        render(5, S="mother", D="my", V="wear", O="ring", G="white", W="Friday"),
        "my mother wears the white ring on Friday",
        "mi madre lleva el anillo blanco el viernes",
        "minha mãe usa o anel branco na sexta",
        "в пятницу моя мать носит белое кольцо",
    ),
    (  # feminine accusative in ru; no article before drinks; pt contraction "na"
        render(4, S="Peter", V="drink", O="water", G="cold", P="school"),
        "Peter drinks cold water in the school",
        "Pedro bebe agua fría en la escuela",
        "Pedro bebe água fria na escola",
        "в школе Пётр пьёт холодную воду",
    ),
    (  # pt: "no Brasil" with an article, month without one
        render(7, S="doctor+", D="the", V="travel", H="train", C="Brazil", N="May"),
        "the doctors travel by train in Brazil in May",
        "los médicos viajan en tren en Brasil en mayo",
        "os médicos viajam de trem no Brasil em maio",
        "в мае врачи путешествуют на поезде в Бразилии",
    ),
    (  # pt: Portugal takes no article; a feminine subject's mood
        render(1, S="Helen", V="live", C="Portugal"),
        "Helen lives in Portugal",
        "Elena vive en Portugal",
        "Helena mora em Portugal",
        "в Португалии Елена живёт",
    ),
    (
        render(2, S="sister", D="our", B="tired", F="always"),
        "our sister is always tired",
        "nuestra hermana siempre está cansada",
        "nossa irmã sempre está cansada",
        "наша сестра всегда усталая",
    ),
]


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: golden[1])
def test_agreement(golden):
    sentence, *lines = golden
    assert [text(sentence[lang]) for lang in LANGUAGES] == lines


def test_alignment_of_a_contraction():
    # en 0 Peter 1 drinks 2 cold 3 water 4 in 5 the 6 school; pt 0 Pedro 1 bebe 2 água 3 fria 4 na 5 escola:
    # adjective and noun cross, and "na" stands for "in the"
    sentence = GOLDEN[2][0]
    assert links(sentence, "en", "pt") == [(0, 0), (1, 1), (2, 3), (3, 2), (4, 4), (5, 4), (6, 5)]
    # ru 0 в 1 школе 2 Пётр 3 пьёт 4 холодную 5 воду: no article
    assert links(sentence, "en", "ru") == [(0, 2), (1, 3), (2, 4), (3, 5), (4, 0), (6, 1)]


def test_corpus_is_parallel_and_without_repeats():
    sentences = corpus()
    assert len(sentences) == SENTENCES >= 1000
    for lang in LANGUAGES:
        lines = [text(sentence[lang]) for sentence in sentences]
        assert len(set(lines)) == len(lines)
        assert all(line == " ".join(line.split()) and line for line in lines)
    assert corpus.__wrapped__(60) == sentences[:60]  # the same words again, whatever the length


def test_corpus_uses_every_concept_with_its_gold_forms():
    used = set()
    for sentence in corpus():
        for lang in LANGUAGES:
            for token in sentence[lang]:
                forms = set(concepts()[token.concept].forms[lang])
                if token.concept == "in":
                    forms |= set(concepts()["in+the"].forms.get(lang, ()))
                assert token.form in forms
                used.add(token.concept)
    assert used == set(concepts()) - {"in+the"}


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_alignment_links_equal_concepts(source, target):
    def contraction(token: Token) -> bool:
        return len(token.keys) > 1

    for sentence in corpus():
        pairs = links(sentence, source, target)
        assert pairs == sorted(set(pairs))
        assert [(j, i) for i, j in pairs] == sorted(links(sentence, target, source), key=lambda p: (p[1], p[0]))
        for i, j in pairs:
            a, b = sentence[source][i], sentence[target][j]
            assert a.concept == b.concept or contraction(a) or contraction(b)
        for i, token in enumerate(sentence[source]):  # a content word always has its translation
            if concepts()[token.concept].group not in {"grammar", "pointing"}:
                assert any(i == left for left, _ in pairs)


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_dictionary_holds_occurring_forms_best_first(source, target):
    entries = list(dictionary(corpus(), source, target))
    assert len(set(entries)) == len(entries)
    words = {lang: {token.form for sentence in corpus() for token in sentence[lang]} for lang in (source, target)}
    assert {a for a, _ in entries} <= words[source]
    assert {b for _, b in entries} <= words[target]
    assert len({a for a, _ in entries}) >= 0.98 * len(words[source])  # only articles and copulas lack a translation
    counts = Counter((s[source][i].form, s[target][j].form) for s in corpus() for i, j in links(s, source, target))
    assert entries == sorted(counts, key=lambda entry: (entry[0], -counts[entry], entry[1]))


def test_dictionary_keeps_number_and_gender():
    assert [b for a, b in dictionary(corpus(), "en", "es") if a == "dogs"] == ["perros"]
    assert {b for a, b in dictionary(corpus(), "en", "es") if a == "red"} <= {"rojo", "roja", "rojos", "rojas"}


# --- the directory ---------------------------------------------------------------------------------------------------


def test_texts_have_the_promised_layout(cache):
    folder = toy.texts()
    assert folder.parent == cache
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    expected = {f"{part}/{lang}.txt" for part in ("corpus", "concepts") for lang in LANGUAGES}
    expected |= {f"{part}/{a}-{b}.txt" for part in ("lexicon", "alignment") for a, b in PAIRS}
    assert names == expected | {"words.csv", toy.MARK}
    for lang in LANGUAGES:
        words = (folder / "corpus" / f"{lang}.txt").read_text(encoding="utf-8").split("\n")
        gold = (folder / "concepts" / f"{lang}.txt").read_text(encoding="utf-8").split("\n")
        assert words.pop() == gold.pop() == ""
        assert [len(line.split()) for line in words] == [len(line.split()) for line in gold]
        assert {name for line in gold for name in line.split()} <= set(concepts())
    sizes = {
        lang: [len(line.split()) for line in (folder / "corpus" / f"{lang}.txt").read_text().splitlines()]
        for lang in LANGUAGES
    }
    for a, b in PAIRS:
        lines = (folder / "alignment" / f"{a}-{b}.txt").read_text().splitlines()
        assert len(lines) == SENTENCES
        for number, line in enumerate(lines):
            for link in line.split():
                i, j = map(int, link.split("-"))
                assert i < sizes[a][number]
                assert j < sizes[b][number]
        assert all(len(entry.split()) == 2 for entry in (folder / "lexicon" / f"{a}-{b}.txt").read_text().splitlines())


def test_second_call_does_no_work(cache):
    folder = toy.texts()
    before = {path: path.stat().st_mtime_ns for path in (folder, *folder.rglob("*"))}
    assert toy.texts() == folder
    assert {path: path.stat().st_mtime_ns for path in (folder, *folder.rglob("*"))} == before
    assert list(cache.iterdir()) == [folder]


def test_half_built_directory_is_replaced(cache):
    folder = toy.texts()
    (folder / toy.MARK).unlink()
    (folder / "corpus" / "en.txt").write_text("half a")
    (folder / "stray").touch()
    assert toy.texts() == folder
    assert len((folder / "corpus" / "en.txt").read_text().splitlines()) == SENTENCES
    assert not (folder / "stray").exists()


def test_failed_build_leaves_nothing(cache):
    def fill(folder: Path) -> None:
        (folder / "part").touch()
        raise KeyError("stopped")

    with pytest.raises(KeyError, match="stopped"):
        toy._built("toy-x", fill)
    assert list(cache.iterdir()) == []


def test_racing_builders_both_end_well(cache):
    inside = []

    def fill(folder: Path) -> None:
        inside.append(folder)
        while len(inside) < 2:  # neither is finished before both have begun
            os.sched_yield()
        (folder / "content").write_text("same")

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _: toy._built("toy-x", fill), range(2)))
    assert results == [cache / "toy-x"] * 2
    assert sorted(path.name for path in (cache / "toy-x").iterdir()) == [toy.MARK, "content"]
    assert list(cache.iterdir()) == [cache / "toy-x"]


def test_rename_failure_without_a_rival_is_an_error(tmp_path):
    (tmp_path / "made").mkdir()
    with pytest.raises(FileNotFoundError, match="made"):
        toy._publish(tmp_path / "made", tmp_path / "absent" / "target")


def test_unwritable_cache_is_one_clear_line(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv(toy.CACHE, str(tmp_path / "file"))
    with pytest.raises(RunError, match=r"cannot write the toy world .*; set RAYPIPE_CACHE to a writable directory"):
        toy.texts()


def test_resolve(cache):
    assert toy.resolve("data/en.txt") == "data/en.txt"
    assert toy.resolve("toybox/en.txt") == "toybox/en.txt"
    folder = toy.texts()
    assert toy.resolve("toy:corpus/{lang}.txt") == str(folder / "corpus" / "{lang}.txt")
    assert Path(toy.resolve("toy:lexicon/{source}-{target}.txt").format(source="en", target="ru")).is_file()


def test_text_needs_no_torch(cache):
    code = (
        "import sys; from raypipe import toy; toy.texts(); print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- training --------------------------------------------------------------------------------------------------------

LINES = [[text(sentence[lang]) for lang in LANGUAGES] for sentence in corpus()[:200]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Train the same tiny encoder twice."""
    import torch

    from raypipe.toy.train import Settings, train

    settings = Settings(layers=1, width=16, heads=2, rows=16, pieces=300, warmup=5, checkpoints=(0, 3, 80))
    folders, told = [], []
    before = torch.get_num_threads(), torch.random.get_rng_state()
    for name in ("first", "second"):
        folders.append(tmp_path_factory.mktemp(name) / "encoder")
        train(LINES, folders[-1], settings, told.append if name == "first" else None)
    assert torch.get_num_threads() == before[0]
    assert torch.equal(torch.random.get_rng_state(), before[1])
    return folders, told


def test_checkpoints_load_and_pieces_follow_words(runs):
    import torch
    from transformers import AutoModel, AutoTokenizer

    (folder, _), told = runs
    assert sorted(path.name for path in folder.iterdir()) == ["step-000000", "step-000003", "step-000080"]
    assert told == ["toy encoder: step 0 of 80", "toy encoder: step 3 of 80", "toy encoder: step 80 of 80"]
    tokenizer = AutoTokenizer.from_pretrained(folder / "step-000080")
    model = AutoModel.from_pretrained(folder / "step-000080").eval()
    line = LINES[0][3]
    encoded = tokenizer(line, return_tensors="pt")
    words = [word for word in encoded.word_ids() if word is not None]
    assert tokenizer.is_fast
    assert sorted(set(words)) == list(range(len(line.split())))
    assert tokenizer.unk_token_id not in encoded["input_ids"]
    assert encoded["input_ids"][0, 0] == tokenizer.cls_token_id
    assert encoded["input_ids"][0, -1] == tokenizer.sep_token_id
    with torch.no_grad():
        states = model(**encoded, output_hidden_states=True).hidden_states
    assert [tuple(state.shape) for state in states] == [(1, len(words) + 2, 16)] * 2
    assert json.loads((folder / "step-000000" / "config.json").read_text())["architectures"] == ["BertForMaskedLM"]


def test_training_is_deterministic_and_learns(runs):
    import torch
    from transformers import AutoTokenizer, BertForMaskedLM

    (first, second), _ = runs
    for path in sorted(first.rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (second / path.relative_to(first)).read_bytes(), path
    ids = AutoTokenizer.from_pretrained(first / "step-000000")([line for lines in LINES[:50] for line in lines])
    flat = torch.tensor([piece for row in ids["input_ids"] for piece in row])

    def surprise(step: str) -> float:
        """Mean nats of the corpus's own pieces behind a row of masks: falls as soon as frequencies are learned."""
        model = BertForMaskedLM.from_pretrained(first / step).eval()
        with torch.no_grad():
            scores = model(torch.full((1, 10), 4)).logits[0, 5].log_softmax(-1)
        return float(-scores[flat].mean())

    assert surprise("step-000080") < surprise("step-000000") - 0.2


def test_rows_restart_positions_at_the_translation_and_hide_only_pieces():
    import numpy as np

    from raypipe.toy.train import CLS, IGNORED, MASK, PAD, SEP, Settings, _batch

    sentences = [[[10, 11], [20, 21, 22]]]
    ids, positions, labels = _batch(sentences, Settings(rows=64, masked=0.5), np.random.default_rng(0))
    known = np.where(labels != IGNORED, labels, ids)
    expected = {  # one sentence, or a sentence and its translation; the rest is padding
        (CLS, 10, 11, SEP): (0, 1, 2, 3),
        (CLS, 20, 21, 22, SEP): (0, 1, 2, 3, 4),
        (CLS, 10, 11, SEP, 20, 21, 22, SEP): (0, 1, 2, 3, 1, 2, 3, 4),
        (CLS, 20, 21, 22, SEP, 10, 11, SEP): (0, 1, 2, 3, 4, 1, 2, 3),
    }
    seen = set()
    for row, places in zip(known.tolist(), positions.tolist(), strict=True):
        length = len(row) - row[::-1].index(SEP)
        assert tuple(places[:length]) == expected[tuple(row[:length])]
        assert set(row[length:]) <= {PAD}
        seen.add(tuple(row[:length]))
    assert seen == set(expected)
    hidden = labels != IGNORED
    assert (ids[hidden] == MASK).all()
    assert (labels[hidden] >= 10).all()
    assert 0.35 < hidden.sum() / (known >= 10).sum() < 0.65
