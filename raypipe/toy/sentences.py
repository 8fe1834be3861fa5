"""Parallel sentences with their gold concepts, word alignment and dictionary, filled from a few templates."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from random import Random

from raypipe.toy.lexicon import ABSENT, LANGUAGES, Concept, concepts, groups, inflect

SENTENCES = 2400
"""Lines of the corpus in each language."""
OPTIONAL = 0.4
"""Chance that an optional slot of a template is filled."""
PLURAL = 0.5
"""Chance that a noun that has a plural stands in it."""
DETERMINER = {"animal": "pointing", "profession": "pointing", "kin": "owner"}
"""Subject's class -> class of its determiner; names take none."""

# A template: its slots ("S:class|class" always filled, "S?class" sometimes), then word order in English, Spanish
# and Russian. An item is a slot or a concept of the lexicon; "/S" makes it agree with, and depend on, slot S, so an
# item whose slot is empty goes. "the" has no Russian form and goes there by itself. Portuguese has the Spanish order.
TEMPLATES = (
    (
        "T?moment S:animal A:size F?frequency V:moving P?outdoors M?manner",
        "T D/S A/S S F V/S M in/P the/P P",
        "T D/S S A/S F V/S M in/P the/P P",
        "T D/S A/S S F M V/S in/P P",
    ),
    (
        "T?moment S:profession|name F?frequency V:acting M?manner P?building C?country",
        "T D/S S F V/S M in/P the/P P in/C C",
        "T D/S S F V/S M in/P the/P P in/C C",
        "T in/C C D/S S F M V/S in/P P",
    ),
    (
        "T?moment S:kin|profession|animal F?frequency B:mood N?month",
        "T D/S S be/S F B/S in/N N",
        "T D/S S F be/S B/S in/N N",
        "T in/N N D/S S F B/S",
    ),
    (
        "T?moment S:kin|profession F?frequency V:eating O:food G:flavour P?outdoors",
        "T D/S S F V/S the/O G/O O in/P the/P P",
        "T D/S S F V/S the/O O G/O in/P the/P P",
        "T in/P P D/S S F V/S G/O O",
    ),
    (
        "T?moment S:name|profession F?frequency V:drinking O:drink G?flavour P?building",
        "T D/S S F V/S G/O O in/P the/P P",
        "T D/S S F V/S O G/O in/P the/P P",
        "T in/P P D/S S F V/S G/O O",
    ),
    (
        "S:kin|profession F?frequency V:dressing O:clothing G:colour W?day",
        "D/S S F V/S the/O G/O O on/W W",
        "D/S S F V/S the/O O G/O on/W W",
        "on/W W D/S S F V/S G/O O",
    ),
    (
        "S:name|profession F?frequency V:learning O:tongue M?manner W?day",
        "D/S S F V/S O M on/W W",
        "D/S S F V/S O M on/W W",
        "on/W W D/S S F M V/S O",
    ),
    (
        "T?moment S:name|profession V:travelling H:vehicle C?country N?month",
        "T D/S S V/S by/H H in/C C in/N N",
        "T D/S S V/S by/H H in/C C in/N N",
        "T in/N N D/S S V/S by/H H in/C C",
    ),
    (
        "S:kin|name F?frequency H:instrument M?manner W?day",
        "D/S S F play/S the/H H M on/W W",
        "D/S S F play/S the/H H M on/W W",
        "on/W W D/S S F M play/S by/H H",
    ),
)
CONTRACTED = {"in/P the/P": "in+the/P", "in/C": "in+the/C"}
"""Portuguese writes preposition and article as one word, which stands for two words of the other languages."""


@dataclass(frozen=True)
class Token:
    """One word of a sentence."""

    form: str
    concept: str
    """Gold concept id; a contraction has that of its preposition."""
    keys: frozenset[str]
    """The places of the template that the word fills; words of two languages that share one are aligned."""


Sentence = dict[str, tuple[Token, ...]]
"""Language -> words in order."""


@dataclass(frozen=True)
class Filler:
    """What fills a slot."""

    concept: Concept
    plural: bool


def _fill(slots: str, rng: Random) -> dict[str, Filler]:
    classes, filled = groups(), {}
    for slot in slots.split():
        if slot[1] == "?" and rng.random() >= OPTIONAL:
            continue
        names = slot[2:].split("|")
        members = classes[names[int(rng.random() * len(names))]]
        concept = members[int(rng.random() * len(members))]
        filled[slot[0]] = Filler(concept, len(concept.forms["en"]) == 2 and rng.random() < PLURAL)
    determiners = classes.get(DETERMINER.get(filled["S"].concept.group, ""))
    if determiners:
        filled["D"] = Filler(determiners[int(rng.random() * len(determiners))], False)
    return filled


def _render(pattern: str, language: str, filled: dict[str, Filler]) -> tuple[Token, ...]:
    tokens = []
    for item in pattern.split():
        name, _, governor = item.partition("/")
        noun = filled.get(governor or name)
        if noun is None or (len(name) == 1 and name not in filled):
            continue
        concept = filled[name].concept if len(name) == 1 else concepts()[name]
        gender = noun.concept.gender.get(language, ABSENT)
        if name == "in+the" and gender == ABSENT:
            concept = concepts()["in"]
        if language in concept.forms:
            form = inflect(concept.forms[language], language, gender, noun.plural)
            keys = frozenset(f"{part}/{governor}" for part in name.split("+"))
            tokens.append(Token(form, concept.id.split("+")[0], keys))
    return tuple(tokens)


@cache
def corpus(count: int = SENTENCES, seed: int = 0) -> tuple[Sentence, ...]:
    """Write the parallel corpus.

    Args:
        count: number of sentences in each language, evenly over the templates.
        seed: of the choice of words.

    Returns:
        Sentences, no two alike in any language.
    """
    rng, seen = Random(seed), {lang: set[str]() for lang in LANGUAGES}
    sentences: list[Sentence] = []
    while len(sentences) < count:
        slots, english, spanish, russian = TEMPLATES[len(sentences) % len(TEMPLATES)]
        portuguese = spanish
        for apart, together in CONTRACTED.items():
            portuguese = portuguese.replace(apart, together)
        filled = _fill(slots, rng)
        orders = zip(LANGUAGES, (english, spanish, portuguese, russian), strict=True)
        sentence = {lang: _render(pattern, lang, filled) for lang, pattern in orders}
        lines = {lang: text(tokens) for lang, tokens in sentence.items()}
        if not any(line in seen[lang] for lang, line in lines.items()):
            sentences.append(sentence)
            for lang, line in lines.items():
                seen[lang].add(line)
    return tuple(sentences)


def text(tokens: tuple[Token, ...]) -> str:
    """Join words by single spaces."""
    return " ".join(token.form for token in tokens)


def links(sentence: Sentence, source: str, target: str) -> list[tuple[int, int]]:
    """Give the gold word alignment as (source index, target index) pairs from 0, ascending."""
    return [(i, j) for i, a in enumerate(sentence[source]) for j, b in enumerate(sentence[target]) if a.keys & b.keys]


def dictionary(sentences: tuple[Sentence, ...], source: str, target: str) -> Iterator[tuple[str, str]]:
    """Give the gold dictionary of a direction: inflected forms that are aligned at least once.

    Yields:
        (source word, target word), source words in alphabetical order, the commonest translation first.
    """
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for sentence in sentences:
        for i, j in links(sentence, source, target):
            counts[sentence[source][i].form][sentence[target][j].form] += 1
    for word in sorted(counts):
        for translation, _ in sorted(counts[word].items(), key=lambda entry: (-entry[1], entry[0])):
            yield word, translation
