"""COLAP against worked cases, a plain count over a joint file, and its own invariants."""

from collections import Counter
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.errors import GridError, InputError
from raypipe.interop.clusterfiles import languages_of
from raypipe.science.colap import Colap, LanguageShare, Overlap, colap
from raypipe.science.thresholds import OverlapThresholds


def joint(*concepts):
    """Concepts as mappings language -> points; every word is its own type."""
    rows = [
        (f"{c}{lang}{i}", c, lang) for c, sizes in enumerate(concepts) for lang, n in sizes.items() for i in range(n)
    ]
    words, ids, languages = zip(*rows, strict=True)
    return list(words), list(ids), list(languages)


def g5(boundary):
    """Language 1 = sentences 0-2, given by the boundary 2. Concept 0: 0, 1, 3, 4; concept 1: 0, 1, 2, 5; concept 2: 0, 1."""
    rows = [(s, c) for c, sentences in enumerate(((0, 1, 3, 4), (0, 1, 2, 5), (0, 1))) for s in sentences]
    sentences = np.array([s for s, _ in rows])
    languages = languages_of(sentences, {"1": 0, "2": boundary + 1})
    return [f"w{i}" for i in range(len(rows))], [c for _, c in rows], languages


@pytest.mark.parametrize(
    ("theta", "official", "boundary", "expected"),
    [
        ("0.3", False, 2, (0,)),  # shares 2/4 2/4; 3/4 1/4; 2/2 0
        ("0.25", False, 2, (0, 1)),  # 1/4 >= 0.25
        (30, True, 2, (0,)),
        (25, True, 2, (0,)),  # 25 > 25 is false
        ("24.9", True, 2, (0, 1)),
        ("0.3", True, 2, (0, 1)),  # 0.3 %
        (30, True, 3, ()),  # G5b: sentence 3 falls to language 1: 3/4 1/4; 3/4 1/4; 1 0
        (25, True, 3, ()),
    ],
)
def test_golden_boundary(theta, official, boundary, expected):
    found = colap(*g5(boundary), theta=theta, official=official)
    assert found.overlapping_concepts == expected
    assert (found.concepts, found.eligible, found.overlapping) == (3, 3, len(expected))
    assert found.colap == found.colap_eligible == len(expected) / 3


def test_golden_several_languages():
    # G5c: shares 0.3 0.3 0.4, each >= 0.3; four languages cannot each hold 0.3.
    assert colap(*joint({"en": 3, "de": 3, "fr": 4}), theta=0.3).overlapping == 1
    four = joint({"en": 3, "de": 3, "fr": 3, "es": 1})
    with pytest.raises(GridError, match="4 languages cannot each hold that share; lower theta"):
        colap(*four, theta=0.3)
    assert colap(*four, theta=0.3, rule="at_least:2").overlapping == 1
    assert colap(*four, theta=0.3, rule="at_least:3").overlapping == 1
    assert colap(*four, theta=0.1).overlapping == 1  # 1/10 >= 0.1
    with pytest.raises(GridError, match="4 languages: the official mode takes exactly 2"):
        colap(*four, theta=30, official=True)


def test_golden_float_product():
    # G5d: 7 of 25 points; exactly 0.28, and in float64 7 / 25 * 100 = 28.000000000000004 > 28.
    data = joint({"en": 7, "de": 18})
    assert colap(*data, theta=0.28).overlapping == 1
    assert colap(*data, theta=28, official=True).overlapping == 1
    assert colap(*data, theta=0.2801).overlapping == 0
    equal = []  # exact equality at every whole percent: the float product exceeds three of them
    for percent in range(1, 51):
        whole = Fraction(percent, 100)
        data = joint({"en": whole.numerator, "de": whole.denominator - whole.numerator})
        assert colap(*data, theta=f"0.{percent:02d}").overlapping == 1
        if colap(*data, theta=percent, official=True).overlapping:
            equal.append(percent)
    assert equal == [7, 14, 28]


def test_example_c():
    three_to_one = joint({"en": 3, "de": 1})
    assert [colap(*three_to_one, theta=t).overlapping for t in (0.3, 0.25)] == [0, 1]
    assert [colap(*three_to_one, theta=t, official=True).overlapping for t in (25, 0.3)] == [0, 1]
    # G14: N_en = 900, N_de = 100; concept 0 has 9 and 1: 9/900 = 1/100, so reweighted shares are 0.5 and 0.5.
    unequal = joint({"en": 9, "de": 1}, {"en": 891, "de": 99})
    assert colap(*unequal).overlapping == 0
    assert colap(*unequal, balance="reweight", theta=0.5).overlapping_concepts == (0, 1)
    # G14: en {2024 x3, year}, de {2024 x3}: 4/7 and 3/7; without 2024 there is 1 and 0.
    words, languages = ["2024"] * 3 + ["year"] + ["2024"] * 3, ["en"] * 4 + ["de"] * 3
    found = colap(words, [5] * 7, languages)
    assert found.to_json() == {
        "concepts": 1,
        "eligible": 1,
        "overlapping": 1,
        "overlapping_excl_shared": 0,
        "colap": 1.0,
        "overlapping_concepts": [5],
    }
    assert found.rows == (LanguageShare(5, "de", 3, 1, 3 / 7), LanguageShare(5, "en", 4, 2, 4 / 7))


def test_excluding_shared_strings_only_takes_concepts_away():
    # Concept 0: 9 points of the shared word in en, one own word each: 10/11, so not overlapping although 1/1 is left.
    # Concept 1: own words only. Concept 2: two types are left of three.
    words = ["x"] * 9 + ["a", "A", "b", "B", "x", "c", "C"]
    languages = ["en"] * 9 + ["en", "de", "en", "de", "de", "en", "de"]
    data = words, [0] * 11 + [1, 1, 2, 2, 2], languages
    found = colap(*data)
    assert (found.overlapping_concepts, found.overlapping_excl_shared) == ((1, 2), 2)
    # Types: 3 (x and a in en, A in de), 2, 3; two concepts have at least 3, one of which overlaps, and none has 5.
    assert found.beside == {3: (2, 1), 5: (0, 0)}
    found = colap(*data, min_types=3)
    assert (found.eligible, found.overlapping_concepts, found.overlapping_excl_shared) == (2, (2,), 0)
    assert found.beside == {3: (2, 1), 5: (0, 0)}
    # A language of shared strings only has nothing left; no share is then reached.
    assert colap(["x", "y", "x"], [0, 0, 0], ["en", "en", "de"], balance="reweight").overlapping_excl_shared == 0


def test_empty_scope():
    scope = Overlap([], [], [])
    with pytest.raises(GridError, match="joint scope: 0 languages; expected 2 or more"):
        scope.evaluate(OverlapThresholds())
    one = Overlap(["a"], [0], ["en"])
    with pytest.raises(GridError, match="joint scope: 1 languages; expected 2 or more"):
        one.evaluate(OverlapThresholds())
    nothing = Colap(0, 0, 0, 0, ())
    assert (nothing.colap, nothing.colap_eligible) == (None, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"theta": 30}, "theta 30: fraction expected, did you mean 0.3?"),
        ({"theta": 0}, "theta 0: expected a fraction above 0 and at most 1"),
        ({"theta": "1e400"}, "theta 1e400: expected a fraction above 0 and at most 1"),
        ({"theta": 0.6}, "theta 0.6: 2 languages cannot each hold that share"),
        ({"theta": 101, "official": True}, "theta 101: expected a percentage from 0 to 100"),
        ({"min_types": 0}, "min_types 0: must be at least 1"),
        ({"rule": "most"}, "rule 'most': expected all or at_least:M, such as at_least:2"),
        ({"rule": "at_least:1"}, "rule at_least:1: expected at_least:2 to at_least:2"),
        ({"rule": "at_least:3"}, "rule at_least:3: expected at_least:2 to at_least:2"),
        ({"min_types": 3, "official": True}, "min_types 3, rule all: the official mode has neither; use 1, all"),
        ({"count": "words"}, "count 'words': expected tokens or types"),
        ({"count": "types", "official": True, "theta": 30}, "count types: not in the official mode; use tokens"),
        ({"balance": "equal"}, "balance 'equal': expected none or reweight"),
        ({"balance": "reweight", "official": True}, "balance reweight: not in the official mode; use none"),
    ],
)
def test_thresholds_out_of_range(arguments, message):
    with pytest.raises(GridError, match=message.replace("?", r"\?")):
        colap(*joint({"en": 1, "de": 1}), **arguments)


def test_wrong_data():
    with pytest.raises(InputError, match="2 words but 1 languages; expected one per word"):
        colap(["a", "b"], [0, 0], ["en"])
    with pytest.raises(InputError, match=r"joint scope: 1 words but concepts of shape \(2,\)"):
        colap(["a"], [0, 0], ["en"])
    with pytest.raises(InputError, match="joint scope: language 'fr' has no points; expected some of every language"):
        colap(*joint({"en": 1, "de": 1}), scope=["de", "en", "fr"])
    with pytest.raises(InputError, match="joint scope: points of language 'en'; expected only de, fr"):
        colap(*joint({"en": 1, "de": 1, "fr": 1}), scope=["de", "fr"])


# --- the prepared structure ---


def random_case(seed, n=200, languages=3):
    generator = np.random.default_rng(seed)
    words = [f"w{i}" for i in generator.integers(60, size=n)]
    return words, generator.integers(8, size=n), [f"l{i}" for i in generator.integers(languages, size=n)]


SETTINGS = [
    OverlapThresholds(theta, types, rule)
    for theta in ("0.1", "0.3", "1/3")
    for types in (1, 20)
    for rule in ("all", "at_least:2")
]


def test_permuted_languages():
    words, concepts, languages = random_case(1)
    prepared = Overlap(words, concepts, languages)
    draws = prepared.permuted(5, 3, SETTINGS)
    order = sorted(range(len(words)), key=lambda i: (concepts[i], words[i]))
    for draw in range(5):
        labels = np.random.Generator(np.random.PCG64(np.random.SeedSequence([3, draw]))).permutation(sorted(languages))
        permuted = [""] * len(words)
        for i, label in zip(order, labels.tolist(), strict=True):
            permuted[i] = label
        again = Overlap(words, concepts, permuted)
        assert draws[draw].tolist() == [again.evaluate(t).colap for t in SETTINGS]
    assert (draws != draws[0]).any()
    backwards = Overlap(words[::-1], concepts[::-1], languages[::-1])
    assert (backwards.permuted(2, 3, SETTINGS) == draws[:2]).all()
    assert Overlap([], [], []).permuted(1, 0, []).shape == (1, 0)


def test_permuted_is_the_binomial_ceiling():
    # 10 points, equal languages: P(3 <= draws <= 7) of a hypergeometric from 500 + 500, close to 912/1024 = 0.891.
    concepts = np.repeat(np.arange(100), 10)
    words = [f"w{i}" for i in range(1000)]
    languages = ["en"] * 500 + ["de"] * 500
    assert colap(words, concepts, languages).colap == 0.0
    draws = Overlap(words, concepts, languages).permuted(50, 0, [OverlapThresholds()])
    assert draws.mean() == pytest.approx(0.891, abs=0.02)


def test_shares_of_types_count_a_repeated_word_once():
    # en {a x8, b}, de {c}: 9/10 and 1/10 of the points, 2/3 and 1/3 of the types.
    data = ["a"] * 8 + ["b", "c"], [0] * 10, ["en"] * 9 + ["de"]
    assert [colap(*data, count=count).overlapping for count in ("tokens", "types")] == [0, 1]
    assert [colap(*data, count="types", theta=t).overlapping for t in ("1/3", "0.34")] == [1, 0]
    prepared, types = Overlap(*data), OverlapThresholds(count="types")
    # A sample holds all types or, without line 1, those of one language.
    drawn = prepared.resampled([0] * 9 + [1], 20, 3, [types, OverlapThresholds("0.05")])
    assert set(drawn[:, 0]) == {0.0, 1.0}
    assert (drawn[:, 0] == drawn[:, 1]).all()


@pytest.mark.parametrize("balance", ["none", "reweight"])
def test_resampled_sentences_are_those_points_as_often_as_their_line_is_drawn(balance):
    words, concepts, languages = random_case(1)
    sentences = np.random.default_rng(2).integers(30, size=len(words))
    prepared = Overlap(words, concepts, languages, balance=balance)
    draws = prepared.resampled(sentences, 4, 5, SETTINGS)
    lines = sorted(set(sentences.tolist()))
    for sample in range(4):
        generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([5, sample])))
        drawn = [lines[i] for i in generator.integers(len(lines), size=len(lines))]
        rows = [i for line in drawn for i in np.flatnonzero(sentences == line)]
        again = Overlap(*([side[i] for i in rows] for side in (words, concepts, languages)), balance=balance)
        for setting, score in zip(SETTINGS, draws[sample], strict=True):
            # Types are those of the whole text; of the resampled points only the shares count.
            loose = again.evaluate(replace(setting, min_types=1))
            types = dict(zip(prepared.concepts.tolist(), prepared.counts.types.sum(axis=1).tolist(), strict=True))
            held = [c for c in loose.overlapping_concepts if types[c] >= setting.min_types]
            assert score == len(held) / loose.concepts
    order = np.random.default_rng(3).permutation(len(words))
    mixed = Overlap(*(np.array(side)[order].tolist() for side in (words, concepts, languages)), balance=balance)
    assert (mixed.resampled(sentences[order], 2, 5, SETTINGS) == draws[:2]).all()


# --- invariants ---


@given(st.integers(0, 10**6), st.sampled_from(["none", "reweight"]))
@settings(max_examples=30, deadline=None)
def test_monotone_and_free_of_names(seed, balance):
    words, concepts, languages = random_case(seed)
    prepared = Overlap(words, concepts, languages, balance=balance)
    for rule in ("all", "at_least:2"):
        found = [prepared.evaluate(OverlapThresholds(t, 3, rule)) for t in ("0.05", "0.1", "0.2", "0.3", "1/3")]
        counts = [f.overlapping for f in found]
        assert counts == sorted(counts, reverse=True)
        assert all(f.overlapping_excl_shared <= f.overlapping <= f.eligible <= f.concepts <= 8 for f in found)
    renamed = {"l0": "z", "l1": "a", "l2": "m"}
    other = Overlap(words[::-1], 7 - concepts[::-1], [renamed[lang] for lang in languages[::-1]], balance=balance)
    for t in SETTINGS:
        one, two = prepared.evaluate(t), other.evaluate(t)
        assert sorted(7 - c for c in two.overlapping_concepts) == list(one.overlapping_concepts)
        assert one.overlapping_excl_shared == two.overlapping_excl_shared


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_rows_count_every_point(seed):
    words, concepts, languages = random_case(seed)
    rows = colap(words, concepts, languages).rows
    points = Counter(zip(concepts.tolist(), languages, strict=True))
    types = Counter((c, lang) for c, lang, _ in set(zip(concepts.tolist(), languages, words, strict=True)))
    assert {(r.concept, r.language): (r.points, r.types) for r in rows if r.points} == {
        key: (points[key], types[key]) for key in points
    }
    for concept in set(concepts.tolist()):
        assert sum(r.share for r in rows if r.concept == concept) == pytest.approx(1)
