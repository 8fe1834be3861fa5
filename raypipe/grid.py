"""The grid: the whole experiment as one frozen object, from YAML or from flags.

Every field has a default where one is safe, a check, and a sentence. Thresholds are lists; a single value is a list of one.
Relative paths are relative to the YAML file, or to the current directory for flags.
"""

from __future__ import annotations

import re
from itertools import permutations
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, ByteSize, Field, ValidationError, field_validator, model_validator

from raypipe.errors import GridError
from raypipe.gridcheck import one_line
from raypipe.gridpatching import PatchingSettings
from raypipe.gridscores import (
    LIMITS,
    OF_SENTENCES,
    Axis,
    CalignSettings,
    ColapSettings,
    Listed,
    Natural,
    Part,
    Positive,
    SimilaritySettings,
    all_or_unique,
    unique,
)
from raypipe.gridtext import Corpus, Lexicon, Words

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")  # short names become folder names


def _not_yes_no(value: Any) -> Any:
    if isinstance(value, list | tuple) and any(isinstance(part, bool) for part in value):
        raise ValueError("YAML reads no, yes, on and off as false and true; write the language code in quotes: 'no'")
    return value


def _layer_form(value: Any) -> Any:
    every = value["every"] if isinstance(value, dict) and set(value) == {"every"} else 0
    whole = value == "all" or isinstance(value, Every) or (type(every) is int and 0 < every < 2**31)
    ids = isinstance(value, list | tuple) and all(type(i) is int and i >= 0 for i in value)
    if not whole and not ids:
        raise ValueError(f"expected all, a list of layer ids such as [0, 6, 12], or {{every: 3}}; found {value!r}")
    return value


Decoder = Literal["read", "predict"]
Source = Literal["copy", "empty", "pair"]
LONGEST_SCOPE = 240  # characters; a file name holds 255 bytes
Short = Annotated[str, Field(pattern=rf"^{NAME.pattern}$", max_length=80)]


class Model(Part):
    """One model and its revisions."""

    name: Short = Field(description="Short name used in folders, tables and flags.")
    path: str = Field(min_length=1, description="Local directory, Hub id, toy:encoder or toy:decoder.")
    revisions: Axis[str] = Field(
        ("main",),
        description="Checkpoint sub-directories (names, a glob, all), also those of phases (pretrain/iter_100, pretrain/*), a Hub "
        "revision, random:SEED, or sampled:POLICY (all, olmo, apertus, eurollm or log_tokens:K of the names that say a step; others "
        "are left out, which patching tells).",
    )
    phases: Axis[Annotated[str, Field(min_length=1)]] | None = Field(
        None,
        description="Phases of training in their order, where a folder of checkpoints holds one each; steps of a later one count on from "
        "the last of the one before. null takes the natural order of their names.",
    )
    checkpoint_pattern: Annotated[str, Field(max_length=200)] | None = Field(
        None,
        description="Regular expression of a checkpoint's whole name below `path`, with the named group step and, where there are such, "
        "stage (the phase, else the folder) and tokens (all so far: 5B, 1.5T or a plain number). null reads step-1000, iter_1000, "
        "stage1-step1000-tokens5B and the like.",
    )
    components: Axis[Literal["encoder", "decoder"]] | None = Field(
        None, description="Parts of the model to read, encoder or decoder; null reads all that it has."
    )
    trained_on: tuple[Short, ...] | None = Field(
        None, description="Languages of the grid it was trained on, for patching's setting seen; null takes all."
    )
    tokens_per_step: Positive | None = Field(
        None,
        description="Training tokens of one step, for patching's `tokens_seen` where the checkpoints' names say steps alone.",
    )
    decoder: Decoder | None = Field(
        None, description="How its decoder is read, where that differs from `states.decoder`."
    )
    source: Source | None = Field(
        None, description="What its encoder reads beside the decoder, where that differs from `states.source`."
    )

    @field_validator("checkpoint_pattern")
    @classmethod
    def _names_step(cls, value: str | None) -> str | None:
        try:
            groups = set(re.compile(value or "(?P<step>)").groupindex)
        except (re.error, OverflowError) as error:
            raise ValueError(f"is no regular expression: {error}") from None
        if not {"step"} <= groups <= {"stage", "step", "tokens"}:
            named = ", ".join(sorted(groups)) or "none"
            raise ValueError(
                f"expected the named group (?P<step>...) and beside it at most stage and tokens, found {named}"
            )
        return value


class Every(Part):
    """Every n-th layer, from 0; the last layer is always kept."""

    every: Positive = Field(description="Step between layers.")


class States(Part):
    """How hidden states are read."""

    decoder: Decoder = Field(
        "read",
        description="State of a decoder's word: where its piece was read, or one position before, which predicts it.",
    )
    source: Source = Field(
        "copy",
        description="What an encoder reads while its decoder reads a line: the same line, nothing, or the line of the pair's other "
        "language (pair): states and scopes of these decoders are then made for each pair, those of other components are not.",
    )
    final_norm: bool = Field(True, description="Last layer after the final norm; false takes it before.")
    also: Listed[Literal["sentences", "neurons"]] = Field(
        (), description="States kept beside those of words, from the same forward: sentences, neurons."
    )
    long_sentences: Literal["window", "skip", "error"] = Field(
        "window",
        description="Sentences beyond the model's length: overlapping windows, dropped and counted, or an error. What an encoder "
        "reads with `source: pair` has no windows: too long is an error.",
    )


class Concepts(Part):
    """The clustering of each scope."""

    algorithm: Axis[Literal["kmeans", "spherical", "minibatch", "agglomerative"]] = Field(
        ("kmeans",),
        description="One clustering per algorithm: K-means of points, of directions (spherical) or in mini-batches; Ward's tree of "
        "at most 20,000 points, with the nearest mean for the others (agglomerative).",
    )
    k: Axis[Positive] = Field((600,), description="Concepts per scope.")
    seeds: Axis[Natural] = Field((0,), description="One clustering per seed.")
    n_init: Positive = Field(1, description="Starts per seed; the best inertia is kept.")
    max_iter: Positive = Field(300, description="Most passes over the points.")
    tol: float = Field(1e-4, ge=0, description="Stop below this squared shift, in mean feature variances.")
    scaling: Literal["none", "center", "unit", "standardise"] = Field(
        "none",
        description="States before clustering: as read, less the mean of the scope (center, which K-means does not notice but spherical "
        "does), of length 1 (unit), or less the mean and over the standard deviation of each dimension (standardise).",
    )
    sample: Positive | None = Field(
        None,
        description="Points of a scope that are clustered, drawn by the seed and the same for every algorithm; the others go to the "
        "nearest centroid. null clusters all. A sampled clustering runs in one worker.",
    )


class Dtype(Part):
    """Number formats."""

    compute: Literal["float32", "bfloat16", "float16"] = Field("float32", description="Forward passes.")
    store: Literal["float32", "float16"] = Field("float32", description="States on disk.")


class Resources(Part):
    """What a worker takes; `workers` and `memory` change no bit of the results."""

    workers: Positive = Field(1, description="Workers side by side.")
    gpus_per_worker: float = Field(0, ge=0, description="GPUs (or a fraction) each worker is pinned to.")
    threads: Annotated[int, Field(ge=1, le=1024)] = Field(1, description="CPU threads per worker.")
    memory: ByteSize = Field(
        ByteSize(4 * 2**30), gt=0, le=2**53, description="Memory per worker, such as 4GiB.", validate_default=True
    )


class Grid(Part):
    """The whole experiment: models × revisions × layers × languages × k × seeds × thresholds.

    Raises:
        GridError: A field is unknown, missing or out of range; the message names it.
    """

    name: Short = Field("run", description="Name of the grid; the default run directory is runs/NAME.")
    models: Axis[Model] = Field(description="Models to read.")
    layers: Annotated[Literal["all"] | Every | tuple[int, ...], BeforeValidator(_layer_form)] = Field(
        "all", description="all, a list of layer ids, or {every: n}."
    )
    languages: Annotated[tuple[Short, ...], BeforeValidator(_not_yes_no)] = Field(
        description="Language codes, at least two."
    )
    pairs: Literal["all"] | tuple[str, ...] = Field(
        "all", description="all, or a list such as [en-de]; a pair means both directions."
    )
    corpus: Corpus | None = Field(None, description="The parallel text; a grid of `patching` alone has none.")
    words: Words = Field(Words(), description="Which words become points.")
    states: States = Field(States(), description="How hidden states are read.")
    lexicon: Lexicon | None = Field(None, description="Translations of words; a grid of `patching` alone has none.")
    concepts: Concepts = Field(Concepts(), description="The clustering.")
    calign: CalignSettings = Field(CalignSettings(), description="Thresholds of CALIGN.")
    colap: ColapSettings = Field(ColapSettings(), description="Thresholds of COLAP.")
    similarity: SimilaritySettings = Field(SimilaritySettings(), description="Measures beside CALIGN and COLAP.")
    patching: PatchingSettings = Field(PatchingSettings(), description="Concept patching.")
    warnings: dict[str, Annotated[float, Field(ge=0)]] = Field(
        {},
        description="Other limits of warnings, by code, than "
        + ", ".join(f"{code} {limit:g}" for code, limit in LIMITS.items())
        + ".",
    )
    dtype: Dtype = Field(Dtype(), description="Number formats.")
    resources: Resources = Field(Resources(), description="What a worker takes.")

    _not_empty = field_validator("languages")(unique)
    _some_pair = field_validator("pairs")(all_or_unique)

    @field_validator("warnings")
    @classmethod
    def _limits(cls, value: dict[str, float]) -> dict[str, float]:
        if odd := sorted(value.keys() - LIMITS.keys()):
            raise ValueError(f"{odd[0]} is no warning with a limit; expected some of {', '.join(LIMITS)}")
        return value

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise GridError(one_line(error, type(self))) from None

    @field_validator("layers", mode="after")
    @classmethod
    def _layers(cls, value: Any) -> Any:
        return tuple(sorted(unique(value))) if isinstance(value, tuple) else value

    @model_validator(mode="after")
    def _cross_checks(self) -> Grid:
        if len(self.languages) < 2:
            raise ValueError("languages: at least two are needed to compare")
        names = [model.name for model in self.models]
        if len(set(names)) < len(names):
            raise ValueError(f"models: the name {next(n for n in names if names.count(n) > 1)} is used twice")
        self._check_parts()
        if self.corpus and self.corpus.format in ("text", "parquet") and "{lang}" not in self.corpus.path:
            raise ValueError(f"corpus.path {self.corpus.path}: {{lang}} is missing, each language needs its own file")
        if isinstance(self.words.lines, dict) and (odd := set(self.words.lines) - set(self.languages)):
            raise ValueError(f"words.lines: {min(odd)} is none of the languages {', '.join(self.languages)}")
        if self.colap.rule != "all":
            self._check_rule(int(self.colap.rule.split(":")[1]))
        elif self.colap.scopes == "all":
            self._check_rule(len(self.languages))
        if len("+".join(self.languages)) > LONGEST_SCOPE and self.colap.scopes == "all":
            raise ValueError(
                f"colap.scopes: the codes of {len(self.languages)} languages are over {LONGEST_SCOPE} characters together, too "
                "long for a folder; use fewer or shorter codes, or scopes: pairs"
            )
        sources = {self.states_of(name).source for name in names}
        if self.colap.scopes == "all" and (self.words.filter == "pairwise" or "pair" in sources):
            raise ValueError(
                "colap.scopes all: words.filter pairwise and states.source pair make states for each pair, which have no scope in "
                "common; set colap.scopes: pairs"
            )
        self.language_pairs()
        return self

    def _check_parts(self) -> None:
        """Whether the grid has what its stages read: a text with a lexicon, or a concept table alone."""
        for name in ("corpus", "lexicon"):
            alone = self.patching.table and not (self.corpus or self.lexicon)
            if getattr(self, name) is None and not alone:
                raise ValueError(f"{name}: is required; set it in the grid file or by a flag")
        self.patching.directions(self.languages)
        if self.patching.table and self.dtype.compute == "float16":
            raise ValueError("dtype.compute float16: patching needs small probabilities; set float32 or bfloat16")
        named = {f"models.{model.name}.trained_on": model.trained_on or () for model in self.models}
        for field, languages in (named | {"patching.names": self.patching.names}).items():
            if odd := [language for language in languages if language not in self.languages]:
                raise ValueError(f"{field}: {odd[0]} is not one of the languages")

    def _check_rule(self, m: int) -> None:
        scope = len(self.languages) if self.colap.scopes == "all" else 2
        if not 2 <= m <= scope:
            raise ValueError(f"colap.rule {self.colap.rule}: m must lie in 2..{scope}")
        for theta in self.colap.theta:
            if m * theta > 1 + 1e-12:
                raise ValueError(
                    f"colap.theta {theta:g}: {m} languages cannot all reach it; lower theta or set colap.rule: at_least:2"
                )

    def language_pairs(self) -> list[tuple[str, str]]:
        """The unordered pairs, each in the order of `languages`, in grid order."""
        order = {language: i for i, language in enumerate(self.languages)}
        every = [(a, b) for a, b in permutations(self.languages, 2) if order[a] < order[b]]
        if self.pairs == "all":
            return every
        names = {f"{a}-{b}": pair for pair in every for a, b in (pair, pair[::-1])}
        for pair in self.pairs:
            if pair not in names:
                raise ValueError(f"pairs: {pair} is not made of two of the languages {', '.join(self.languages)}")
        wanted = {names[pair] for pair in self.pairs}
        return [pair for pair in every if pair in wanted]

    def directions(self) -> list[tuple[str, str]]:
        """Both directions of every pair, in grid order."""
        return [direction for pair in self.language_pairs() for direction in (pair, pair[::-1])]

    def states_of(self, name: str) -> States:
        """How the states of a model are read: as `states` says, but for what the model says itself."""
        model = next(model for model in self.models if model.name == name)
        own = {field: value for field in ("decoder", "source") if (value := getattr(model, field))}
        return self.states.model_copy(update=own)

    def joint_scopes(self) -> list[tuple[str, ...]]:
        """The languages of each joint scope (sorted codes), in grid order."""
        if self.colap.scopes == "all":
            return [tuple(sorted(self.languages))]
        return [tuple(sorted(pair)) for pair in self.language_pairs()]

    def lacking(self) -> dict[str, str]:
        """The measures of `similarity.measures` that are dropped since the grid does not name an input, each with what it needs."""
        also, corpus = self.states.also, self.corpus
        needs = {
            **dict.fromkeys(OF_SENTENCES, ("states.also: sentences", "sentences" in also)),
            "stability": ("two or more concepts.seeds", len(self.concepts.seeds) > 1),
            "expert_overlap": (
                "states.also: neurons and corpus.labels",
                "neurons" in also and corpus is not None and corpus.labels is not None,
            ),
            "structural_rsa": ("corpus.upos", corpus is not None and corpus.upos is not None),
            "structural_procrustes": ("corpus.upos", corpus is not None and corpus.upos is not None),
            "am2ico": ("similarity.am2ico", self.similarity.am2ico is not None),
            "false_friends": ("similarity.concept_table", self.similarity.concept_table is not None),
        }
        asked = [measure for measure in self.similarity.measures if measure in needs]
        return {measure: f"needs {needs[measure][0]}" for measure in asked if not needs[measure][1]}

    def layer_ids(self, n_layers: int, model: str) -> tuple[int, ...]:
        """The absolute layer ids read from a model of `n_layers` blocks; GridError where one is outside 0..n_layers."""
        if self.layers == "all":
            return tuple(range(n_layers + 1))
        if isinstance(self.layers, Every):
            return tuple(sorted({*range(0, n_layers + 1, self.layers.every), n_layers}))
        for layer in self.layers:
            if layer > n_layers:
                raise GridError(f"layers: {layer} is outside 0..{n_layers} of model {model}")
        return self.layers

    def to_dict(self) -> dict[str, Any]:
        """The grid as plain values, every field present."""
        plain: dict[str, Any] = self.model_dump(mode="json")
        plain["resources"]["memory"] = _bytes_text(self.resources.memory)
        return plain

    def to_yaml(self) -> str:
        """The grid as YAML; `load_grid` reads it back to an equal grid."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)


def _bytes_text(size: int) -> str:
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size % factor == 0:
            return f"{size // factor}{unit}"
    return f"{size}B"
