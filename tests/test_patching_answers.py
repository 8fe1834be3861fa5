"""Answers: cut, compared, and one example for every label."""

from __future__ import annotations

import numpy as np
import pytest

from raypipe.science.answers import (
    GAINS,
    GROUPS,
    LABELS,
    Known,
    cut_answer,
    gains,
    group,
    label,
    loose,
    matches,
    normalised,
)

# s = dog, t = house, from French to Spanish.
KNOWN = Known(
    gold=("perro", "can", "chien"),
    source="chien",
    visible="maisons",
    target=("casa", "hogar"),
    target_other=("house", "Haus"),
    english=("dog", "hound"),
    wrong_language=("Hund", "cane corso"),
    senses=("gatillo",),
    shots=("mesa", "libro"),
)
EXAMPLES = [
    ("empty", " . ", True, False),
    ("gold_copy", "chien", True, True),
    ("gold_first", "Perro.", True, True),
    ("gold_synonym", "can", True, True),
    ("copy_visible", "MAISONS", True, False),
    ("near_copy", "maison", True, False),
    ("target_kept", "hogar", True, False),
    ("target_other", "haus", True, False),
    ("english_leak", "hound", True, False),
    ("wrong_language", "Hund", True, False),
    ("other_sense", "gatillo", True, True),
    ("shot_word", "libro", True, False),
    ("prefix_hit", "perrito", True, True),
    ("format", "silla", False, False),
    ("format", "silla roja", True, False),
    ("format", "«silla", True, False),
    ("format", "'silla'", True, False),
    ("other", "l'eau", True, False),
    ("other", "м’ята", True, False),
    ("other", "silla", True, False),
]


@pytest.mark.parametrize(("expected", "cut", "closed", "first_in_set"), EXAMPLES)
def test_every_label_has_its_answer(expected: str, cut: str, closed: bool, first_in_set: bool) -> None:
    """T17 of the specification."""
    assert label(cut, closed, first_in_set, KNOWN) == expected


def test_the_source_word_is_a_copy_where_it_is_no_gold_form() -> None:
    known = Known(gold=("perro",), source="chien", visible="maison")
    assert label("Chien", True, False, known) == "copy_source"
    assert {name for name, *_ in EXAMPLES} | {"copy_source"} == set(LABELS)


def test_a_form_of_several_words_is_no_mistake_where_gold_has_one() -> None:
    assert label("gran silla", True, False, Known(gold=("perro grande",), source="x", visible="y")) == "other"


@pytest.mark.parametrize(
    ("raw", "cut", "closed"),
    [
        ('perro"', "perro", True),
        ('perro".\n', "perro", True),
        ("perro\nEspañol", "perro", True),
        ("perro", "perro", False),
        ('"', "", True),
    ],
)
def test_an_answer_is_cut_at_the_first_quote_or_newline(raw: str, cut: str, closed: bool) -> None:
    """T14 of the specification."""
    assert cut_answer(raw) == (cut, closed)


def test_answers_are_compared_without_case_width_and_final_punctuation() -> None:
    assert normalised("  ＰＥＲＲＯ?! ") == "perro"
    assert normalised("...") == ""
    assert loose("Mamífero") == "mamifero"
    assert matches("Árbol.", ["árbol"]) == (True, True)
    assert matches("arbol", ["árbol"]) == (False, True)
    assert matches("arbolito", ["árbol"]) == (False, False)


@pytest.mark.parametrize(
    ("answer", "near"), [("kitten", True), ("kittens", True), ("kittensx", False), ("sitten", True), ("sittin", False)]
)
def test_a_near_copy_has_at_most_a_quarter_of_its_length_in_edits(answer: str, near: bool) -> None:
    # "kitten": one edit of six is 0.17, of seven 0.14; two of eight are 0.25, yet "kittensx" is checked against 0.25 * 8 = 2.
    known = Known(gold=("gato",), source="kitten", visible="zzzzzz")
    expected = near or answer == "kittensx"
    assert (label(answer, True, False, known) in ("near_copy", "copy_source")) == expected


def test_groups_hold_every_label_but_gold_copy_once() -> None:
    grouped = [name for labels in GROUPS.values() for name in labels]
    assert sorted([*grouped, "gold_copy"]) == sorted(LABELS)
    assert group("gold_copy") == "gold_copy"


def test_only_wrong_to_gold_is_ability_and_gold_copy_is_never_a_gain() -> None:
    """T17 of the specification."""
    before = [
        "other",
        "gold_first",
        "copy_source",
        "english_leak",
        "other_sense",
        "gold_synonym",
        "other",
        "gold_copy",
        "gold_first",
    ]
    after = [
        "gold_first",
        "empty",
        "gold_first",
        "gold_synonym",
        "gold_first",
        "gold_first",
        "gold_copy",
        "gold_first",
        "near_copy",
    ]
    found = gains(before, after)
    assert set(found) == set(GAINS)
    assert found["ability"].tolist() == [1, -1, 0, 0, 0, 0, 0, 0, 0]
    assert found["behaviour"].tolist() == [0, 0, 1, 0, 0, 0, 0, 0, -1]
    assert found["sense"].tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 0]
    assert found["output_language"].tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 0]
    assert all(np.isfinite(values).all() for values in found.values())
