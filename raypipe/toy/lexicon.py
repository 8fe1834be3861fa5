"""The toy world's words: some two hundred concepts in English, Spanish, Portuguese and Russian, written by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

LANGUAGES = ("en", "es", "pt", "ru")
"""Spanish and Portuguese are the related pair; Russian is the one in another script."""
THINGS = (
    *("animal", "profession", "kin", "food", "drink", "clothing"),
    *("outdoors", "building", "vehicle", "instrument"),
)
"""Classes of nouns."""
FILE = "lexicon.txt"
ABSENT = "-"
"""In a cell: the language has no word for it. As a gender: the noun takes no article."""


@dataclass(frozen=True)
class Concept:
    """One meaning and its words."""

    id: str
    """English lemma, unique over the lexicon."""
    group: str
    """Semantic class: ``animal``, ``colour``, ..."""
    forms: Mapping[str, tuple[str, ...]]
    """Language -> inflected forms in the order that `inflect` reads; a language without a word is missing."""
    gender: Mapping[str, str]
    """Language -> ``m``, ``f``, ``n`` or ``-`` (takes no article); nouns only."""


def inflect(forms: tuple[str, ...], language: str, gender: str, plural: bool) -> str:
    """Choose the form that agrees with a noun.

    Args:
        forms: one invariable form; (singular, plural); or four adjective forms: m f m-plural f-plural,
            in Russian m f n plural.
        language: one of `LANGUAGES`.
        gender: ``m``, ``f``, ``n`` or ``-`` of the governing noun.
        plural: number of the governing noun.

    Returns:
        The word as it stands in the sentence.
    """
    if len(forms) <= 2:
        return forms[-1] if plural else forms[0]
    if language == "ru":
        return forms[3] if plural else forms["mfn".index(gender)]
    return forms[2 * plural + (gender == "f")]


@cache
def concepts() -> Mapping[str, Concept]:
    """Read the lexicon that comes with the package.

    Returns:
        Concept id -> concept, in file order.
    """
    table: dict[str, Concept] = {}
    group = kind = ""
    for line in source().splitlines():
        text = line.split("#")[0].strip()
        if text.startswith("["):
            group, kind = text.strip("[]").split()
        elif text:
            name, *cells = (cell.strip() for cell in text.split(";"))
            words = {lang: tuple(cell.split()) for lang, cell in zip(LANGUAGES, cells, strict=True) if cell != ABSENT}
            inflected = kind == "noun"
            gender = {lang: form[-1] for lang, form in words.items() if inflected and lang != "en"}
            forms = {lang: form[:-1] if lang in gender else form for lang, form in words.items()}
            table[name] = Concept(name, group, forms, gender)
    return table


def things() -> tuple[Concept, ...]:
    """Give the concepts that can be pointed at, in file order; each has a word in every language."""
    return tuple(concept for concept in concepts().values() if concept.group in THINGS)


def groups() -> Mapping[str, tuple[Concept, ...]]:
    """Give the concepts of every semantic class, in file order."""
    names = dict.fromkeys(concept.group for concept in concepts().values())
    return {name: tuple(c for c in concepts().values() if c.group == name) for name in names}


def source() -> str:
    """Give the lexicon file's text, which is part of the world's content hash."""
    return (files(__package__) / FILE).read_text(encoding="utf-8")
