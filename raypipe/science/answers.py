"""Generated answers: cut, compared with the accepted forms, labelled, and what changes between two labels mean.

Definitions: concept_patching.md sections 2.10 and 5. All texts are compared after `normalised`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

NEAR = 0.25  # of the longer length: edits up to which an answer is a copy
GROUPS = {
    "gold": ("gold_first", "gold_synonym"),
    "copying": ("copy_source", "copy_visible", "near_copy"),
    "sense": ("other_sense",),
    "language": ("english_leak", "wrong_language"),
    "wrong": ("other", "empty", "format", "prefix_hit", "shot_word", "target_kept", "target_other"),
}
"""Labels by group; `gold_copy` stands apart, for translating and copying cannot be told from each other."""
LABELS = (
    "empty", "gold_copy", "gold_first", "gold_synonym", "copy_source", "copy_visible", "near_copy", "target_kept",
    "target_other", "english_leak", "wrong_language", "other_sense", "shot_word", "prefix_hit", "format", "other",
)  # fmt: skip
"""Every label, in the order in which the rules are tried."""
GAINS = {"ability": "wrong", "behaviour": "copying", "sense": "sense", "output_language": "language"}
"""Kind of gain -> the group from which an answer comes to gold."""
_CLOSE = re.compile('["\n]')
_WRONG_QUOTES = re.compile(r"[«»„“”‘‹›「」]|(?<!\w)['’]|['’](?!\w)")  # within a word it is an apostrophe


def cut_answer(raw: str) -> tuple[str, bool]:
    """The answer up to the first closing quote or newline, wherever in a token it stands, and whether there was one."""
    text, *rest = _CLOSE.split(raw, maxsplit=1)
    return text, bool(rest)


def normalised(text: str) -> str:
    """NFKC, casefolded, without spaces around it and punctuation at its end."""
    text = unicodedata.normalize("NFKC", text).casefold().strip()
    while text and (unicodedata.category(text[-1])[0] == "P" or text[-1].isspace()):
        text = text[:-1]
    return text


def loose(text: str) -> str:
    """The normalised text without diacritics."""
    split = unicodedata.normalize("NFD", normalised(text))
    return "".join(sign for sign in split if unicodedata.category(sign) != "Mn")


def matches(answer: str, forms: Sequence[str]) -> tuple[bool, bool]:
    """Whether an answer is one of the accepted forms: exactly, and but for diacritics."""
    exact = normalised(answer) in map(normalised, forms)
    return exact, exact or loose(answer) in map(loose, forms)


@dataclass(frozen=True)
class Known:
    """What the answer for s in (I, O) is compared with; every form as in the table.

    Attributes:
        gold: Forms of s in O, the first one first.
        source: The word of s in I.
        visible: The word of t in I, which stands in the patched prompt.
        target: Forms of t in O.
        target_other: Forms of t in other languages.
        english: Forms of s in English; none where O is English.
        wrong_language: Forms of s in other languages than O.
        senses: Translations into O of other meanings of the word of s.
        shots: Answers shown before.
    """

    gold: tuple[str, ...]
    source: str
    visible: str
    target: tuple[str, ...] = ()
    target_other: tuple[str, ...] = ()
    english: tuple[str, ...] = ()
    wrong_language: tuple[str, ...] = ()
    senses: tuple[str, ...] = ()
    shots: tuple[str, ...] = ()
    _sets: dict[str, frozenset[str]] = field(default_factory=dict, init=False, compare=False)

    def holds(self, name: str, answer: str) -> bool:
        """Whether the forms of an attribute, normalised once, hold a normalised answer."""
        if name not in self._sets:
            forms = getattr(self, name)
            self._sets[name] = frozenset(map(normalised, (forms,) if isinstance(forms, str) else forms))
        return answer in self._sets[name]


def label(cut: str, closed: bool, first_in_set: bool, known: Known) -> str:
    """The first rule of section 5 that an answer fits; no wordnet is read, so a hypernym or hyponym is like any other word.

    `cut` is the answer's text, `closed` whether a quote or newline ended it, `first_in_set` whether its first token is one of T(s, O).
    """
    answer = normalised(cut)
    return next(name for name, fits in _rules(answer, cut, closed, first_in_set, known) if fits)


def _rules(answer: str, cut: str, closed: bool, first_in_set: bool, known: Known) -> Iterator[tuple[str, object]]:
    """Labels with whether their rule fits, in the order of `LABELS`."""
    gold = known.holds("gold", answer)
    yield "empty", not answer
    yield "gold_copy", gold and known.holds("source", answer)
    yield "gold_first", gold and answer == normalised(known.gold[0])
    yield "gold_synonym", gold
    yield "copy_source", known.holds("source", answer)
    yield "copy_visible", known.holds("visible", answer)
    yield "near_copy", any(_near(answer, normalised(word)) for word in (known.source, known.visible))
    yield "target_kept", known.holds("target", answer)
    yield "target_other", known.holds("target_other", answer)
    yield "english_leak", known.holds("english", answer)
    yield "wrong_language", known.holds("wrong_language", answer)
    yield "other_sense", known.holds("senses", answer)
    yield "shot_word", known.holds("shots", answer)
    yield "prefix_hit", first_in_set
    several = len(answer.split()) > 1 and all(len(form.split()) == 1 for form in known.gold)
    yield "format", not closed or several or _WRONG_QUOTES.search(cut)
    yield "other", True


def group(name: str) -> str:
    """The group of a label; `gold_copy` is one of its own."""
    return next((group for group, labels in GROUPS.items() if name in labels), name)


def gains(before: Sequence[str], after: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Per kind of gain, one number per concept pair: 1 from the kind's group to gold, -1 from gold to it, else 0.

    Only `ability` (wrong to gold, net of gold to wrong) is one of ability: copying to gold is a change of behaviour, sense to gold a
    selection of sense, language to gold control of the output's language.
    """
    changes = [(group(a), group(b)) for a, b in zip(before, after, strict=True)]
    return {
        kind: np.array([(change == (of, "gold")) - (change == ("gold", of)) for change in changes], np.float64)
        for kind, of in GAINS.items()
    }


def _near(a: str, b: str) -> bool:
    """Whether the edit distance is at most `NEAR` of the longer length."""
    most = int(NEAR * max(len(a), len(b)))
    if abs(len(a) - len(b)) > most:
        return False
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1] <= most
