"""A tiny grid that runs in seconds: 40 parallel sentences in three languages, dictionaries, two random checkpoints."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiny_models

LANGUAGES = ("en", "de", "fr")
CONCEPTS = 24
SENTENCES = 40


@dataclass(frozen=True)
class World:
    """Where things lie."""

    path: Path

    def grid(self, **changed: Any) -> dict[str, Any]:
        """The grid's fields, some of them changed."""
        return {
            "name": "tiny",
            "models": [{"name": "tiny", "path": str(self.path / "model"), "revisions": ["all", "random:7"]}],
            "layers": [1, 3],
            "languages": list(LANGUAGES),
            "corpus": {"path": str(self.path / "text" / "{lang}.txt")},
            "lexicon": {"format": "muse", "path": str(self.path / "dict" / "{source}-{target}.txt")},
            "concepts": {"k": [6], "seeds": [0, 1]},
            "calign": {"theta": [0.5, 0.8], "min_types": 2, "null_draws": 3},
            "colap": {"theta": [0.3], "null_draws": 3},
        } | changed


def word(language: str, concept: int) -> str:
    """The word of a concept; concept 0 is the same string everywhere."""
    return "2024" if concept == 0 else f"{language}{'aeiou'[concept % 5]}{chr(98 + concept)}"


def build(path: Path) -> World:
    """Writes corpus, dictionaries (en-de, de-en and en-fr; none for de-fr) and checkpoints."""
    draw = random.Random(0)
    sentences = [[draw.randrange(CONCEPTS) for _ in range(draw.randint(3, 8))] for _ in range(SENTENCES)]
    for folder in ("text", "dict"):
        (path / folder).mkdir()
    for language in LANGUAGES:
        lines = (" ".join(word(language, c) for c in sentence) for sentence in sentences)
        (path / "text" / f"{language}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for source, target in (("en", "de"), ("de", "en"), ("en", "fr")):
        entries = (f"{word(source, c)} {word(target, c)}\n" for c in range(CONCEPTS - 2))
        (path / "dict" / f"{source}-{target}.txt").write_text("".join(entries), encoding="utf-8")
    for seed, step in enumerate(("step-2", "step-10")):
        tiny_models.save_model(path / "model" / step, "bert", seed=seed)
    return World(path)
