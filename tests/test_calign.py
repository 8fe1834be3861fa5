"""CALIGN against worked cases, a plain double loop over text files, and its own invariants."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.errors import GridError, InputError
from raypipe.interop.dictionaries import read_dictionary
from raypipe.science.calign import Cooccurrence, calign, mutual
from raypipe.science.calign_draws import NULLS, null, resampled
from raypipe.science.intervals import p_value, summarise
from raypipe.science.thresholds import AlignThresholds, exact, least


def points(*concepts):
    """Concept 0 holds the words of the first text, concept 1 those of the second, ..."""
    rows = [(word, i) for i, text in enumerate(concepts) for word in text.split()]
    return [word for word, _ in rows], np.array([i for _, i in rows], np.int32)


def arrow(tmp_path, *lines):
    path = tmp_path / "dictionary.txt"
    entries = (line.rsplit(" ", 2) for line in lines)
    path.write_text("".join(f"{pair}: Probability = {p}, Count = {c}\n" for pair, p, c in entries))
    return path


def both(tmp_path, *lines):
    path = arrow(tmp_path, *lines)
    return read_dictionary(path).ranked(), read_dictionary(path, semantics="official").ranked()


G1_LINES = ("a -> Z .6 6", "a -> A .4 4", "b -> B 1 3", "c -> C 1 3", "d -> D 1 3")
G1_SIDES = (points("a b c d e"), points("A B C D"))


@pytest.mark.parametrize(
    ("n", "theta", "size", "types", "official_types", "default", "official"),
    [
        (1, "0.7", "0.4", 1, 1, False, False),  # G1: best of a is Z, so m = 3 (b c d), r = 3/5 = 0.6 < 0.7
        (2, "0.7", "0.4", 1, 1, True, True),  # G1b: a reaches A, m = 4, r = 0.8, q = 4/5 (official 5/4)
        (2, "0.8", "0.4", 1, 1, True, False),  # G1c: 0.8 >= 0.8, but not 0.8 > 0.8
        (2, "0.81", "0.4", 1, 1, False, False),  # G1d
        (2, "0.7", "0.4", 5, 5, True, False),  # G1e: 5 >= 5, not 5 > 5
        (2, "0.7", "0.4", 6, 4, False, True),  # G1e: 5 < 6; official 5 > 4
        (2, "0.7", "0.8", 1, 1, True, True),  # G1f: q = 0.8; official 5/4 = 1.25 > 0.8
        (2, "0.7", "0.81", 1, 1, False, True),  # G1f: 0.8 < 0.81; 1.25 > 0.81
    ],
)
def test_golden_thresholds(tmp_path, n, theta, size, types, official_types, default, official):
    dictionary, in_file_order = both(tmp_path, *G1_LINES)
    found = calign(*G1_SIDES, dictionary, theta=theta, translations=n, min_types=types, size_ratio=size)
    assert (found.aligned == 1) is default
    found = calign(
        *G1_SIDES, in_file_order, theta=theta, translations=n, min_types=official_types, size_ratio=size, official=True
    )
    assert (found.aligned == 1) is official


def test_golden_counts_beside_the_answer(tmp_path):
    dictionary, in_file_order = both(tmp_path, *G1_LINES)
    loose = {"translations": 2, "theta": 0.7, "size_ratio": 0.4, "min_types": 1}
    # G1d: covered a b c d of 5 types: 0.8 < 0.81, so the dictionary alone rules the concept out.
    assert calign(*G1_SIDES, dictionary, **loose | {"theta": 0.81}).reachable == 0
    # G1e: five types are not six; the score of eligible ones has no denominator, the headline has.
    none = calign(*G1_SIDES, dictionary, **loose | {"min_types": 6})
    assert (none.eligible, none.calign, none.calign_eligible, none.calign_reachable) == (0, 0.0, None, None)
    # G1f: official source / target = 5/4 = 1.25 is not > 1.25.
    assert calign(*G1_SIDES, in_file_order, **loose | {"size_ratio": 1.25}, official=True).aligned == 0
    # G1g: 4 of the 4 covered types.
    assert calign(*G1_SIDES, dictionary, **loose | {"theta": 1.0}, denominator="covered").aligned == 1
    with pytest.raises(GridError, match="denominator 'covered': not in the official mode; use all"):
        calign(*G1_SIDES, dictionary, denominator="covered", official=True)


SMALL = ("a b c d e", "f g h i j", "k l", "m n o p q")
CAPITALS = ("A B C D X", "F G Y U V", "K L", "M N")
LETTERS = "abcdfghijklmn"
TO_CAPITALS = {letter: [letter.upper()] for letter in LETTERS}


def test_example_a():
    found = calign(points(*SMALL), points(*CAPITALS), TO_CAPITALS)
    # 0: m = 4 of 5, q = 1: aligned. 1: all five covered, best m = 2. 2: too few types. 3: 2 of 5 covered.
    assert found.to_json() == {
        "concepts": 4,
        "eligible": 3,
        "reachable": 2,
        "aligned": 1,
        "calign": 1 / 4,
        "calign_eligible": 1 / 3,
        "calign_reachable": 1 / 2,
        "coverage": 13 / 17,
        "pairs": [[0, 0]],
    }
    assert found.occurrence_coverage == 13 / 17
    (row,) = found.rows
    assert row == (0, 0, 4, 5, 5, 0.8, 1.0, (("a", "A"), ("b", "B"), ("c", "C"), ("d", "D")))
    reverse = calign(points(*CAPITALS), points(*SMALL), {t[0]: [s] for s, t in TO_CAPITALS.items()})
    # Concept F G Y U V has 2 of 5 types covered; A B C D X has 4 of 5.
    assert (reverse.eligible, reverse.reachable, reverse.aligned) == (2, 1, 1)
    assert (reverse.calign, reverse.calign_eligible, reverse.calign_reachable) == (0.25, 0.5, 1.0)
    assert mutual(found, reverse) == 1


@pytest.mark.parametrize(
    ("theta", "types", "pairs"),
    [(0.8, 4, ()), (0.7, 4, ((0, 0),)), (0.7, 1, ((0, 0), (2, 2)))],  # 4/5 > 0.8 is false; 2 types are > 1
)
def test_example_a_official(theta, types, pairs):
    sides = points(*SMALL), points(*CAPITALS)
    found = calign(*sides, TO_CAPITALS, theta=theta, translations=5, min_types=types, size_ratio=0.6, official=True)
    assert found.pairs == pairs
    assert found.concepts == 4  # what the released script prints as "Aligned Clusters"


@pytest.mark.parametrize(
    ("source", "target", "default", "official"),
    [(10, 5, 0, 1), (6, 10, 1, 0), (5, 10, 0, 0)],  # q = 0.5, 0.6, 0.5; official 2.0, 0.6, 0.5, each > 0.6
)
def test_golden_sizes(source, target, default, official):
    words = [f"s{i}" for i in range(source)]
    targets = [f"t{i}" for i in range(target)]
    dictionary = {word: [targets[i % target]] for i, word in enumerate(words)}
    sides = (words, np.zeros(source, int)), (targets, np.zeros(target, int))
    assert calign(*sides, dictionary, translations=1).aligned == default
    assert calign(*sides, dictionary, translations=1, min_types=4, official=True).aligned == official


def test_golden_zero_translations(tmp_path):
    # G3d: lines a->Z .1/1, a->A .7/7: 0 is an error, but 1 in the official mode, whose first in the file is Z.
    dictionary, in_file_order = both(tmp_path, "a -> Z .1 1", "a -> A .7 7", "a -> B .2 2")
    sides = points("a"), points("Z", "A")
    loose = {"min_types": 1, "size_ratio": 0, "theta": 0.5}
    with pytest.raises(GridError, match="translations 0: must be at least 1"):
        calign(*sides, dictionary, translations=0, **loose)
    assert calign(*sides, dictionary, translations=1, **loose).pairs == ((0, 1),)
    official = loose | {"min_types": 0, "official": True}
    assert calign(*sides, in_file_order, translations=0, **official).pairs == ((0, 0),)


def test_a_word_counts_once_and_its_occurrences_weigh_coverage():
    source = ["a", "a", "a", "b"], [0, 0, 0, 0]
    found = calign(source, points("A B C"), {"a": ["A", "B", "C"]}, theta=0.5, min_types=2)
    assert found.rows[0].matched == 1  # a reaches three words of the concept, but is one type of two
    assert found.rows[0].word_pairs == (("a", "A"), ("a", "B"), ("a", "C"))
    assert (found.coverage, found.occurrence_coverage) == (1 / 2, 3 / 4)


def test_decimals_are_exact():
    # 7 of 25 types at 0.28: 7/25 in binary floats times 25 is not 7; 0.1 + 0.2 is written 0.30000000000000004.
    words = [f"w{i}" for i in range(25)]
    sides = (words, [0] * 25), (words[:7] + ["x"] * 18, [0] * 25)
    dictionary = {word: [word] for word in words[:7]}
    loose = {"size_ratio": 0, "min_types": 1}
    assert calign(*sides, dictionary, theta=0.28, **loose).aligned == 1
    assert calign(*sides, dictionary, theta="7/25", **loose).aligned == 1
    assert calign(*sides, dictionary, theta=Fraction(7, 25) + Fraction(1, 10**30), **loose).aligned == 0
    ten = (words[:10], [0] * 10), (words[:3], [0] * 3)
    assert calign(*ten, dictionary, theta=0.3, **loose).aligned == 1
    assert calign(*ten, dictionary, theta=0.1 + 0.2, **loose).aligned == 0
    assert exact("theta", np.float32(0.8)) == Fraction(4, 5)
    assert least(Fraction(1, 3), np.array([0, 1, 3, 4])).tolist() == [0, 1, 1, 2]


def test_empty_sides():
    empty = ([], [])
    found = calign(empty, points("A"), {"a": ["A"]})
    assert (found.concepts, found.calign, found.coverage, found.occurrence_coverage) == (0, None, None, None)
    assert calign(points("a b c d e"), empty, {"a": ["A"]}).calign == 0.0
    assert calign(points("a"), points("A"), {"z": ["Z"]}).coverage == 0.0  # nothing covered is a score of 0
    prepared = Cooccurrence(empty, points("A"), {"a": ["A"]})
    assert np.isnan(null(prepared, 2, 0, [AlignThresholds()])[0]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"theta": 0}, "theta 0: expected a fraction above 0 and at most 1"),
        ({"theta": 80}, "theta 80: expected a fraction above 0 and at most 1"),
        ({"theta": "much"}, "theta 'much': not a number; expected a decimal such as 0.8"),
        ({"theta": "1e-999999999"}, "theta '1e-999999999': not a number; expected a decimal such as 0.8"),
        ({"theta": float("nan")}, "theta nan: not a number"),
        ({"theta": "1/0"}, "theta '1/0': not a number"),
        ({"translations": -1, "official": True}, "translations -1: must be at least 0"),
        ({"min_types": 0}, "min_types 0: must be at least 1"),
        ({"min_types": -1, "official": True}, "min_types -1: must be at least 0"),
        ({"size_ratio": 1.2}, "size_ratio 1.2: expected 0 to 1"),
        ({"size_ratio": -1, "official": True}, "size_ratio -1: expected 0 to 1"),
        ({"denominator": "some"}, "denominator 'some': expected all or covered"),
    ],
)
def test_thresholds_out_of_range(arguments, message):
    with pytest.raises(GridError, match=message):
        calign(*G1_SIDES, TO_CAPITALS, **arguments)


def test_wrong_data():
    side = points("a b")
    with pytest.raises(InputError, match=r"source: 2 words but concepts of shape \(1,\); expected one per word"):
        calign((["a", "b"], [0]), side, TO_CAPITALS)
    with pytest.raises(InputError, match="target: concepts of type float64; expected integers"):
        calign(side, (["a"], [0.0]), TO_CAPITALS)
    with pytest.raises(InputError, match="dictionary: no usable entry; expected at least one source word"):
        calign(side, side, {"a": []})
    with pytest.raises(InputError, match="dictionary: 'a' has the text 'cat'; expected a list of target words"):
        calign(side, side, {"a": "cat"})
    with pytest.raises(GridError, match=r"translations 3: not among those prepared, \[1, 5\]; add it there"):
        Cooccurrence(side, side, TO_CAPITALS, [5, 1]).evaluate(AlignThresholds(translations=3))


# --- the prepared structure ---


def random_case(seed, words=40, n=150, concepts=6):
    generator = np.random.default_rng(seed)
    side = [([f"w{i}" for i in generator.integers(words, size=n)], generator.integers(concepts, size=n)) for _ in "st"]
    dictionary = {
        f"w{i}": [f"w{t}" for t in generator.integers(words, size=generator.integers(0, 6))] for i in range(words)
    }
    return *side, dictionary


GRID = [
    AlignThresholds(theta, n, types, ratio, official)
    for theta in ("0.2", "0.5", "0.8")
    for n in (1, 3, 10)
    for types in (1, 5)
    for ratio in ("0", "0.6")
    for official in (False, True)
]


@given(st.integers(0, 10**6))
@settings(max_examples=8, deadline=None)
def test_one_structure_serves_every_threshold(seed):
    source, target, dictionary = random_case(seed)
    prepared = Cooccurrence(source, target, dictionary, [10, 1, 3])
    for t in GRID:
        alone = Cooccurrence(source, target, dictionary, [t.translations]).evaluate(t, rows=True)
        assert prepared.evaluate(t, rows=True) == alone
        assert prepared.evaluate(t).rows == ()
    loose, strict = (prepared.evaluate(AlignThresholds(theta, 10, 1, "0"), rows=True).rows for theta in ("0.2", "0.5"))
    same = {(row.source_concept, row.target_concept): row for row in loose}
    assert all(row is same[row.source_concept, row.target_concept] for row in strict)  # held once for all settings
    assert strict


def test_null_permutes_lists_among_covered_words():
    source, target, dictionary = random_case(3)
    prepared = Cooccurrence(source, target, dictionary, [1, 3, 10])
    draws, types = null(prepared, 4, 7, GRID)
    assert set(types) == {prepared.types_target.mean()}
    covered = sorted(word for word in set(source[0]) if dictionary[word])
    for draw in range(4):
        order = np.random.Generator(np.random.PCG64(np.random.SeedSequence([7, draw]))).permutation(len(covered))
        shuffled = {word: dictionary[covered[i]] for word, i in zip(covered, order, strict=True)}
        again = Cooccurrence(source, target, shuffled, [1, 3, 10])
        assert draws[draw].tolist() == [again.evaluate(t).calign for t in GRID]
    assert (draws != draws[0]).any()
    assert (null(prepared, 2, 7, GRID)[0] == draws[:2]).all()  # more draws do not change the first ones
    flipped = [(side[0][::-1], side[1][::-1]) for side in (source, target)]
    assert (null(Cooccurrence(*flipped, dictionary, [1, 3, 10]), 4, 7, GRID)[0] == draws).all()


def test_the_banded_null_permutes_lists_among_words_of_like_frequency():
    source, target, dictionary = random_case(3)
    prepared = Cooccurrence(source, target, dictionary, [1, 3, 10])
    draws, _ = null(prepared, 3, 7, GRID, "banded")
    covered = sorted(word for word in set(source[0]) if dictionary[word])
    ranked = sorted(covered, key=lambda word: (-list(source[0]).count(word), word))
    for draw in range(3):
        generator, shuffled, left = np.random.Generator(np.random.PCG64(np.random.SeedSequence([7, draw]))), {}, ranked
        for parts in range(5, 0, -1):  # the first bands take the words that do not divide by five
            band, left = sorted(left[: -(-len(left) // parts)]), left[-(-len(left) // parts) :]
            shuffled |= {
                word: dictionary[covered[i]]
                for word, i in zip(band, generator.permutation([covered.index(word) for word in band]), strict=True)
            }
        again = Cooccurrence(source, target, shuffled, [1, 3, 10])
        assert draws[draw].tolist() == [again.evaluate(t).calign for t in GRID]
    assert (draws != null(prepared, 3, 7, GRID)[0]).any()


@pytest.mark.parametrize("kind", ["labels", "clusterings"])
def test_concepts_at_random_keep_their_sizes_in_points(kind):
    source, target, dictionary = random_case(3)
    prepared = Cooccurrence(source, target, dictionary, [1, 3, 10])
    draws, types = null(prepared, 3, 7, GRID, kind)
    for draw in range(3):
        generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([7, draw])))
        sides = []  # the target is drawn first
        for words, concepts in (target, source) if kind == "clusterings" else (target,):
            sides.append((sorted(words), generator.permutation(np.sort(concepts))))
        again = Cooccurrence(([*sides, source])[1], sides[0], dictionary, [1, 3, 10])
        assert draws[draw].tolist() == [again.evaluate(t).calign for t in GRID]
        assert types[draw] == np.mean(
            [len({w for w, c in zip(*sides[0], strict=True) if c == i}) for i in set(target[1])]
        )
    flipped = [(side[0][::-1], side[1][::-1]) for side in (source, target)]
    assert (null(Cooccurrence(*flipped, dictionary, [1, 3, 10]), 3, 7, GRID, kind)[0] == draws).all()
    assert prepared.evaluate(GRID[0]) == Cooccurrence(source, target, dictionary, [1, 3, 10]).evaluate(GRID[0])


def test_resampled_sentences_are_the_points_of_the_lines_that_were_drawn():
    source, target, dictionary = random_case(3)
    random = np.random.default_rng(2)
    lines = [random.integers(3, 40, size=len(side[0])) for side in (source, target)]
    prepared = Cooccurrence(source, target, dictionary, [1, 3, 10])
    draws, numbers = resampled(prepared, (lines[0], lines[1]), 3, 7, GRID), sorted({*lines[0], *lines[1]})
    for sample in range(3):
        generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([7, sample])))
        drawn = [numbers[i] for i in generator.integers(len(numbers), size=len(numbers))]
        kept = [
            ([w for w, keep in zip(side[0], there, strict=True) if keep], np.asarray(side[1])[there])
            for side, there in zip((source, target), (np.isin(of_side, drawn) for of_side in lines), strict=True)
        ]
        again = Cooccurrence(*kept, dictionary, [1, 3, 10])
        assert draws[sample].tolist() == [again.evaluate(t).calign for t in GRID]
    assert len(np.unique(draws)) > 3
    mixed = [(side[0][::-1], side[1][::-1]) for side in (source, target)]
    flipped = Cooccurrence(*mixed, dictionary, [1, 3, 10])
    assert (resampled(flipped, (lines[0][::-1], lines[1][::-1]), 2, 7, GRID) == draws[:2]).all()


@pytest.mark.parametrize("kind", NULLS)
def test_a_language_against_itself_lies_above_every_null(kind):
    # 40 concepts of 6 words each: the identity puts all six into one concept, chance hardly ever five of them.
    words, concepts = [f"w{i}" for i in range(240)], np.arange(240) // 6
    prepared = Cooccurrence((words, concepts), (words, concepts), {word: [word] for word in words})
    assert prepared.evaluate(AlignThresholds()).calign == 1.0
    assert null(prepared, 5, 0, [AlignThresholds()], kind)[0].max() < 0.1


def test_null_summary():
    # Draws 0.1, 0.3, 0.3 against 0.3: (1 + 2) / (1 + 3); mean 0.7/3; sd of (-0.4/3, 0.2/3, 0.2/3) with n - 1.
    found = summarise(0.3, [0.1, 0.3, 0.3])
    assert found == pytest.approx((0.7 / 3, np.sqrt(0.24 / 9 / 2), 0.3, 0.75))
    assert summarise(0.5, [0.1]) == (0.1, 0.0, 0.1, 0.5)
    assert p_value(0.0, np.zeros(20)) == 1.0
    assert p_value(0.1 + 0.2, [0.3, 0.2]) == 2 / 3  # equal but for rounding


# --- invariants ---


@given(st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_monotone_and_ordered(seed):
    source, target, dictionary = random_case(seed)
    prepared = Cooccurrence(source, target, dictionary, [1, 2, 5])

    def aligned(**change):
        found = prepared.evaluate(AlignThresholds(**{"theta": 0.3, "translations": 5, "min_types": 3} | change))
        assert found.aligned <= found.reachable <= found.eligible <= found.concepts <= 6
        return found.aligned

    for name, rising in (("theta", (0.1, 0.3, 0.5)), ("size_ratio", (0, 0.5, 0.9)), ("min_types", (1, 10, 20))):
        counts = [aligned(**{name: value}) for value in rising]
        assert counts == sorted(counts, reverse=True)
    counts = [aligned(translations=n) for n in (1, 2, 5)]
    assert counts == sorted(counts)


@given(st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_names_and_order_do_not_matter(seed):
    source, target, dictionary = random_case(seed)
    loose = {"theta": 0.4, "min_types": 3}
    found = calign(source, target, dictionary, **loose).to_json()
    renamed = calign((source[0], 90 - 7 * source[1]), (target[0][::-1], target[1][::-1] + 5), dictionary, **loose)
    assert renamed.to_json() | {"pairs": None} == found | {"pairs": None}
    assert sorted(((90 - s) // 7, t - 5) for s, t in renamed.pairs) == [tuple(pair) for pair in found["pairs"]]


@given(st.integers(0, 10**6), st.sampled_from([0.1, 0.8, 1.0]))
@settings(max_examples=20, deadline=None)
def test_a_language_aligns_with_itself(seed, theta):
    source, _, _ = random_case(seed)
    found = calign(source, source, {word: [word] for word in source[0]}, theta=theta)
    assert found.aligned == found.eligible
