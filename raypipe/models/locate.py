"""Which checkpoints a model has, what they are, and what identifies their content. Loads no weights."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from raypipe.errors import ModelError
from raypipe.models.families import FAMILIES, Family
from raypipe.models.library import CONFIG, hub_file, hub_revisions, model_directories, one_line, quiet
from raypipe.models.schedule import BY_DIRECTORY, DIRECTORIES, HUB, SAMPLED, Naming, Progress, sampled
from raypipe.rundir import file_digest

TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER_FILES = (
    "added_tokens.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    TOKENIZER_CONFIG,
    "vocab.json",
    "vocab.txt",
)
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
RANDOM = "random:"
NO_LIMIT = 10**9  # pieces; a tokenizer that states more states no limit
DEFAULT_MAX_PIECES = 512  # what T5 was trained with, for models that state no limit


@dataclass(frozen=True)
class Checkpoint:
    """One set of weights of one model.

    Attributes:
        model: the grid's short name.
        revision: the checkpoint's name: a sub-directory, a Hub revision, `main` or `random:SEED`.
        source: absolute directory, or the Hub id, of the configuration, the tokenizer and (unless random) the weights.
        hub: whether `source` is a Hub id.
        random_seed: seed of freshly initialised weights; None for stored ones.
        commit: the Hub commit to read, whatever the revision names by then (see `pinned`); None reads the revision.
        progress: where in training it stands, if its name says a step.
    """

    model: str
    revision: str
    source: str
    hub: bool
    random_seed: int | None
    commit: str | None = None
    progress: Progress | None = None

    @property
    def label(self) -> str:
        """How messages name it."""
        return f"model '{self.model}', revision '{self.revision}'"

    @property
    def hub_revision(self) -> str:
        """The revision to ask the Hub for; random weights take the configuration of `main`."""
        return self.commit or (self.revision if self.random_seed is None else "main")


@dataclass(frozen=True)
class ModelFacts:
    """What the configuration says.

    Attributes:
        model_type: transformers' name of the architecture.
        components: the parts whose states can be read, the encoder first.
        layers_of: per component its number of blocks N; layers 0 (embeddings) to N can be read.
        parameters_of: per component the weights of its blocks; embeddings and heads not counted. The decoder of a model
            with an encoder needs a forward of that one too.
        width: length of a hidden state.
        max_pieces: pieces of the longest sequence, special tokens included: the lower of the model's and the tokenizer's limit, or
            `DEFAULT_MAX_PIECES` where neither states one.
        vocab: pieces of the vocabulary.
    """

    model_type: str
    components: tuple[str, ...]
    layers_of: dict[str, int]
    parameters_of: dict[str, int]
    width: int
    max_pieces: int
    vocab: int

    @property
    def layers(self) -> int:
        """Blocks of the first component."""
        return self.layers_of[self.components[0]]

    @property
    def parameters(self) -> int:
        """Weights of all blocks."""
        return sum(self.parameters_of.values())


def checkpoints(name: str, path: str, revisions: Sequence[str], naming: Naming = BY_DIRECTORY) -> list[Checkpoint]:
    """The checkpoints that `revisions` name, in their order, each once. Touches the network only to list a Hub's.

    Args:
        name: the grid's short name of the model.
        path: a directory of a saved model, or of sub-directories (`iter_100` or `phase/iter_100`) with one each; or a Hub
            id `org/name`.
        revisions: names or globs of sub-directories; `all` (every sub-directory in the order of `Naming.sort`, then the
            directory itself if it is a model); `main` (the directory itself); `random:SEED` (fresh weights, with
            configuration and tokenizer of the directory itself or else of the last checkpoint listed); `sampled:POLICY`
            (those sub-directories whose names say a step, thinned as `schedule.sampled` does). For a Hub id: Hub
            revisions, `sampled:POLICY` of its branches and tags, and `random:SEED`.
        naming: how the sub-directories are named; a Hub id has names of its own.

    Raises:
        ModelError: nothing is there, a revision names nothing, or the weights are missing or pickled; or as `Naming.read`.
    """
    root = Path(path).expanduser()
    if root.is_dir():
        found = _local(name, Path(os.path.abspath(root)), revisions, naming)
    elif _looks_like_hub_id(path):
        if naming.phases or naming.pattern != DIRECTORIES:
            raise ModelError(
                f"model '{name}': phases and checkpoint_pattern are about directories, and '{path}' is a Hub id; leave them out"
            )
        naming = replace(naming, pattern=HUB)
        named: list[str] = []
        for revision in revisions:
            if revision == "all" or set(revision) & set("*?["):
                raise ModelError(
                    f"model '{name}': revision '{revision}' cannot be listed on the Hub; name each revision"
                )
            policy = revision.removeprefix(SAMPLED)
            named += [revision] if policy == revision else sampled(hub_revisions(path), policy, naming)[0]
        said = naming.read(named)
        found = [Checkpoint(name, r, path, True, _seed(name, r), progress=said.get(r)) for r in named]
    else:
        known = [entry.name for entry in root.parent.iterdir() if entry.is_dir()] if root.parent.is_dir() else []
        near = _near(root.name, known)
        raise ModelError(f"model '{name}': '{path}' is neither a directory nor a Hub id (org/name){near}")
    return list(dict.fromkeys(found))


def one_checkpoint(model: str) -> Checkpoint:
    """The checkpoint of a directory or a Hub id, optionally with `@revision` (else `main`); ModelError unless there is exactly one."""
    path, separator, revision = model.rpartition("@")
    if not separator or Path(model).expanduser().exists():
        path, revision = model, "main"
    found = checkpoints(model, path, [revision])
    if len(found) > 1:
        raise ModelError(
            f"model '{model}': names {len(found)} checkpoints; name one, such as {path}@{found[-1].revision}"
        )
    return found[0]


def pinned(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with the commit that its Hub revision names now; one of a directory as it is."""
    return replace(checkpoint, commit=_commit(checkpoint)) if checkpoint.hub else checkpoint


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What the configuration of a checkpoint says; ModelError where it is missing or broken, or its model type is not supported."""
    family, config = read_config(checkpoint)
    blocks = {name: int(getattr(config, part.layers)) for name, part in family.parts.items()}
    return ModelFacts(
        model_type=str(config.model_type),
        components=family.components,
        layers_of=blocks,
        parameters_of={name: round(blocks[name] * part.parameters(config)) for name, part in family.parts.items()},
        width=int(config.hidden_size),
        max_pieces=_limit(checkpoint, family, config),
        vocab=int(config.vocab_size),
    )


def _limit(checkpoint: Checkpoint, family: Family, config: Any) -> int:
    """Pieces of the longest sequence; see `ModelFacts.max_pieces`."""
    positions = getattr(config, family.positions or "", None)
    padding = config.pad_token_id if family.positions_after_padding else -1
    stated = _read_json(_file(checkpoint, TOKENIZER_CONFIG)).get("model_max_length")
    stated = NO_LIMIT if stated is None else stated
    for name, value in ((f"pad_token_id in {CONFIG}", padding), (f"model_max_length in {TOKENIZER_CONFIG}", stated)):
        if not isinstance(value, int | float):
            raise ModelError(f"{checkpoint.label}: {name} is {value!r}; expected a number")
    limits = [] if positions is None else [int(positions) - padding - 1]
    # A tokenizer without a limit states 1e30.
    return min([*limits, *([int(stated)] if stated < NO_LIMIT else [])], default=DEFAULT_MAX_PIECES)


def read_config(checkpoint: Checkpoint) -> tuple[Family, Any]:
    """The checkpoint's family and its transformers configuration; ModelError as `facts`."""
    fields = _read_json(_config(checkpoint))
    model_type = str(fields.pop("model_type", None))
    if model_type not in FAMILIES:
        supported = ", ".join(sorted(FAMILIES))
        raise ModelError(f"{checkpoint.label}: model type '{model_type}' is not supported yet; supported: {supported}")
    from transformers import AutoConfig

    try:
        with quiet():
            return FAMILIES[model_type], AutoConfig.for_model(model_type, **fields)
    except Exception as error:
        raise ModelError(f"{checkpoint.label}: {CONFIG} cannot be used: {one_line(error)}") from error


def fingerprint(checkpoint: Checkpoint) -> str:
    """SHA-256 of what decides the states: configuration, tokenizer and weights (or their seed), or the Hub commit.

    File names and contents count, directories do not: a moved or copied checkpoint keeps its fingerprint.
    """
    seed = [] if checkpoint.random_seed is None else [f"{RANDOM}{checkpoint.random_seed}"]
    if checkpoint.hub:
        return _digest([f"{checkpoint.source}@{_commit(checkpoint)}", *seed])
    root = Path(checkpoint.source)
    weights = [] if seed else weight_files(root, checkpoint.label)
    return _digest([*_file_lines([root / CONFIG, *_tokenizer_files(root), *weights]), *seed])


def tokenizer_fingerprint(checkpoint: Checkpoint) -> str:
    """SHA-256 of the tokenizer's files, or of the Hub commit: what decides the pieces of a sentence."""
    if checkpoint.hub:
        return _digest([f"{checkpoint.source}@{_commit(checkpoint)}"])
    return _digest(_file_lines(_tokenizer_files(Path(checkpoint.source))))


def weight_files(root: Path, label: str) -> list[Path]:
    """The safetensors files of a saved model, the index of a sharded one first; ModelError where one is missing, or all are pickled."""
    if (root / WEIGHTS).is_file():
        return [root / WEIGHTS]
    index = root / WEIGHTS_INDEX
    if index.is_file():
        named = _read_json(index).get("weight_map")
        if not isinstance(named, dict):
            raise ModelError(f"{label}: {index} holds no weight_map; copy the file again")
        shards = sorted({root / str(name) for name in named.values()})
        missing = [shard.name for shard in shards if not shard.is_file()]
        if missing:
            raise ModelError(f"{label}: {WEIGHTS_INDEX} names {missing[0]}, which is not in {root}; copy it there")
        return [index, *shards]
    pickled = sorted(root.glob("pytorch_model*.bin"))
    if pickled:
        raise ModelError(
            f"{label}: {root} holds only {pickled[0].name}; pickled weights are refused: convert them to safetensors"
        )
    raise ModelError(f"{label}: no {WEIGHTS} in {root}; save the model there with save_pretrained")


def _local(name: str, root: Path, revisions: Sequence[str], naming: Naming) -> list[Checkpoint]:
    below = naming.sort(model_directories(root))
    itself = (root / CONFIG).is_file()
    if not below and not itself:
        raise ModelError(f"model '{name}': no {CONFIG} in {root} nor in its sub-directories; expected a saved model")
    listed: list[str] = []
    for revision in revisions:
        policy = revision.removeprefix(SAMPLED)
        plain = policy == revision
        listed += _matching(name, root, revision, below, itself) if plain else sampled(below, policy, naming)[0]
    stored = [revision for revision in listed if _seed(name, revision) is None]
    model_of_random = root if itself else root / (stored or below)[-1]
    found, said = [], naming.read(below)
    for revision in listed:
        seed = _seed(name, revision)
        source = root if revision == "main" else root / revision
        place = str(source if seed is None else model_of_random)
        found.append(Checkpoint(name, revision, place, False, seed, progress=said.get(revision)))
    for checkpoint in found:
        if checkpoint.random_seed is None:
            weight_files(Path(checkpoint.source), checkpoint.label)
    return found


def _matching(name: str, root: Path, revision: str, below: list[str], itself: bool) -> list[str]:
    if revision.startswith(RANDOM):
        return [revision]
    if revision == "all":
        return [*below, *(["main"] if itself else [])]
    if revision == "main":
        if itself:
            return ["main"]
        raise ModelError(
            f"model '{name}': {root} is no model itself, so it has no revision 'main'; "
            f"name one of {_some(below)}, or 'all'"
        )
    matched = [entry for entry in below if fnmatchcase(entry, revision)]
    if not matched:
        there = _some([*below, *(["main"] if itself else [])])
        near = _near(revision, below)
        raise ModelError(f"model '{name}': no checkpoint '{revision}' in {root}; there are {there}{near}")
    return matched


def _seed(name: str, revision: str) -> int | None:
    if not revision.startswith(RANDOM):
        return None
    text = revision.removeprefix(RANDOM)
    # Only the plain spelling, so that one seed has one name.
    if not re.fullmatch(r"0|[1-9][0-9]{0,9}", text):
        raise ModelError(f"model '{name}': revision '{revision}' needs a whole number as seed, such as {RANDOM}0")
    return int(text)


def _looks_like_hub_id(path: str) -> bool:
    # `models/xlmr` with a local `models` is a mistyped directory, not a Hub id.
    return bool(re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", path)) and not Path(path).parent.is_dir()


def _near(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _some(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _file(checkpoint: Checkpoint, name: str) -> Path | None:
    if checkpoint.hub:
        return hub_file(checkpoint.source, name, checkpoint.hub_revision)
    path = Path(checkpoint.source) / name
    return path if path.is_file() else None


def _read_json(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not readable as JSON: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: holds a JSON {type(content).__name__}, expected an object")
    return content


def _tokenizer_files(root: Path) -> list[Path]:
    return [root / name for name in TOKENIZER_FILES if (root / name).is_file()]


def _file_lines(paths: Sequence[Path]) -> list[str]:
    return [f"{path.name} {file_digest(path)}" for path in paths]


def _config(checkpoint: Checkpoint) -> Path:
    path = _file(checkpoint, CONFIG)
    if path is None:
        raise ModelError(f"{checkpoint.label}: no {CONFIG} in {checkpoint.source}; expected a saved transformers model")
    return path


def _commit(checkpoint: Checkpoint) -> str:
    return _config(checkpoint).parent.name  # the cache keeps a file at snapshots/COMMIT/NAME


def _digest(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
