"""The toy world: a small parallel corpus written by hand, an encoder trained on it and a decoder on its words, built on first use.

It holds ``corpus/{lang}.txt``, ``concepts/{lang}.txt`` (a gold concept id for every word),
``lexicon/{source}-{target}.txt`` (pair format), ``alignment/{source}-{target}.txt`` (Pharaoh), ``words.csv`` (a concept table),
and the Hugging Face checkpoints ``encoder/step-NNNNNN/`` and ``decoder/step-NNNNNN/``.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.resources import files
from itertools import permutations
from pathlib import Path

from platformdirs import user_cache_dir

from raypipe.errors import RunError

PREFIX = "toy:"
"""What a path into the toy world starts with in a grid."""
CACHE = "RAYPIPE_CACHE"
"""Environment variable that replaces the user's cache directory."""
MARK = "complete"
"""File that is written last; a directory without it is not used."""
TEXT_CODE = ("__init__.py", "lexicon.py", "lexicon.txt", "sentences.py")
ENCODER_CODE = (*TEXT_CODE, "train.py")
DECODER_CODE = (*ENCODER_CODE, "decoder.py")
LIBRARIES = ("torch", "transformers", "tokenizers")


def resolve(path: str) -> str:
    """Turn ``toy:...`` into an absolute path, building what it names if need be; leave any other path as it is.

    Args:
        path: such as ``toy:encoder`` or ``toy:corpus/{lang}.txt``; fields in braces stay. Only ``toy:encoder`` and
            ``toy:decoder`` wait for a training; the rest is text and takes a second.

    Raises:
        RunError: the cache directory cannot be written.
    """
    if not path.startswith(PREFIX):
        return path
    inside = path.removeprefix(PREFIX)
    place = {"": world, "encoder": world, "decoder": trained_decoder}.get(inside.split("/")[0], texts)
    return str(place() / inside)


def texts() -> Path:
    """Write the toy world's text files, once, and give their directory.

    Raises:
        RunError: the cache directory cannot be written.
    """
    return _built(f"toy-text-{_fingerprint(TEXT_CODE, ())}", write_texts)


def world(progress: Callable[[str], None] | None = None) -> Path:
    """Write the toy world's text files and train its encoder, once, and give their directory.

    Args:
        progress: told one line at each checkpoint of the training.

    Raises:
        RunError: the cache directory cannot be written.
    """

    def fill(folder: Path) -> None:
        from raypipe.toy.lexicon import LANGUAGES
        from raypipe.toy.sentences import corpus, text
        from raypipe.toy.train import Settings, train

        write_texts(folder)
        lines = [[text(sentence[lang]) for lang in LANGUAGES] for sentence in corpus()]
        train(lines, folder / "encoder", Settings(), progress)

    return _built(f"toy-{_fingerprint(ENCODER_CODE, LIBRARIES)}", fill)


def trained_decoder() -> Path:
    """Train the toy world's decoder, once, and give the directory that its ``decoder/`` stands in.

    Raises:
        RunError: the cache directory cannot be written.
    """

    def fill(folder: Path) -> None:
        from raypipe.toy.decoder import Settings, train

        train(folder / "decoder", Settings())

    return _built(f"toy-decoder-{_fingerprint(DECODER_CODE, LIBRARIES)}", fill)


def write_texts(folder: Path) -> None:
    """Write corpus, gold concepts, dictionaries, alignments and the concept table below a directory."""
    from raypipe.toy.lexicon import LANGUAGES, things
    from raypipe.toy.sentences import corpus, dictionary, links, text

    def write(part: str, name: str, lines: Iterator[str]) -> None:
        (folder / part).mkdir(exist_ok=True)
        content = "".join(f"{line}\n" for line in lines)
        (folder / part / name).write_text(content, encoding="utf-8", newline="\n")

    rows = [("concept", *LANGUAGES), *((c.id, *(c.forms[lang][0] for lang in LANGUAGES)) for c in things())]
    write("", "words.csv", map(",".join, rows))
    sentences = corpus()
    for lang in LANGUAGES:
        write("corpus", f"{lang}.txt", (text(sentence[lang]) for sentence in sentences))
        write(
            "concepts", f"{lang}.txt", (" ".join(token.concept for token in sentence[lang]) for sentence in sentences)
        )
    for pair in permutations(LANGUAGES, 2):
        name = f"{'-'.join(pair)}.txt"
        write("lexicon", name, (" ".join(entry) for entry in dictionary(sentences, *pair)))
        write("alignment", name, (" ".join(f"{i}-{j}" for i, j in links(s, *pair)) for s in sentences))


def _fingerprint(code: tuple[str, ...], libraries: tuple[str, ...]) -> str:
    """Hash the sources and library versions that make a directory, so that no stale one is ever used."""
    parts = [(files(__package__) / name).read_bytes() for name in code]
    parts += [f"{name} {version(name)}".encode() for name in libraries]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def cache_folder() -> Path:
    """The user's cache directory of raypipe, or the one that `CACHE` names."""
    return Path(os.environ.get(CACHE) or user_cache_dir("raypipe")).absolute()


def _built(name: str, fill: Callable[[Path], None]) -> Path:
    """Give the cache's directory of that name; if it is missing or unfinished, fill a new one and rename it."""
    cache = cache_folder()
    target = cache / name
    if (target / MARK).exists():
        return target
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{name}.", dir=cache) as scratch:
            made = Path(scratch) / name
            made.mkdir()
            fill(made)
            (made / MARK).touch()
            _publish(made, target)
    except OSError as error:
        raise RunError(
            f"{target}: cannot write the toy world ({error}); set {CACHE} to a writable directory"
        ) from error
    return target


def _publish(made: Path, target: Path) -> None:
    """Rename a finished directory into place, unless another process was first."""
    if target.exists() and not (target / MARK).exists():
        shutil.rmtree(target)
    try:
        made.rename(target)
    except OSError:
        if not (target / MARK).exists():
            raise
