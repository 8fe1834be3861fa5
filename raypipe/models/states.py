"""Hidden states of words and sentences: one forward for all layers, pieces pooled on the device, one copy out.

Axes: B rows of a batch, T pieces of the longest, W words, S sentences, L layers asked for, D the model's width, M those of the
layers that are blocks (not 0), F neurons of a block.
A decoder that is fed `[start] p1 p2 ... pn` has one state per position: the one at the position of piece p has read it, the
one before it predicts it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from raypipe.errors import GridError, InputError, ModelError
from raypipe.models.batches import Merge, feed_decoder, own_positions, pad, plan_batches
from raypipe.models.layers import Batch, Reader, pool, total
from raypipe.models.leaving import Floats, Leaving, Rows, States, copy_stream, one_behind
from raypipe.models.load import load_model, load_tokenizer
from raypipe.models.locate import Checkpoint, ModelFacts, facts, one_checkpoint, read_config
from raypipe.models.pieces import LongSentences
from raypipe.models.words import Encoded, check_words, encode, encode_lines

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

Pooling = Literal["last", "first", "mean"]
Compute = Literal["float32", "bfloat16", "float16"]
Stored = Literal["float32", "float16"]
Component = Literal["encoder", "decoder"]
DecoderState = Literal["read", "predict"]
DecoderSource = Literal["copy", "empty", "pair"]
Also = Literal["sentences", "neurons"]
TOKEN_BUDGET = 1024  # pieces of one batch of `word_states`, padding included


class Extractor:
    """One component of one checkpoint, ready to turn encoded sentences into word states.

    Layer i is what transformers returns as `hidden_states[i]`: 0 the embeddings, i the output of block i, the last one after
    the final norm where the family has one. Blocks after the highest layer asked for are not run.

    A decoder beside an encoder is fed its start token, then the sentence as the tokenizer opens it: `[start] lang? pieces`. The
    code of the line's own language stands where the model was trained to have it: after the start token (M2M100, NLLB,
    mBART-50) or as the start token itself (mBART). It is never part of a word or of a sentence's state.

    Args:
        checkpoint: what to load.
        layers: layer ids, in the order of the results' axis of layers.
        pooling: the word's last piece, its first, or the mean of its pieces.
        compute: precision of the products (autocast); weights, sums and results are float32.
        threads: CPU threads of torch in this process.
        device: torch's name of the device; None takes the GPU that this process may see, else the CPU.
        component: `encoder` or `decoder`.
        decoder_state: of a decoder, the state that has read a piece (`read`) or that predicts it (`predict`).
        decoder_source: what the encoder reads while the decoder of the same model reads a line: the same line (`copy`), only
            the special tokens that close it (`empty`), or another line (`pair`).
        final_norm: False takes the last layer before the final norm.
        also: what `run` reads beside the words: states of `sentences`, `neurons`. Every sentence is then read whole.

    Raises:
        GridError: a layer or the pooling is unknown, or the model has no such component.
        ModelError: the checkpoint cannot be loaded.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        layers: Sequence[int],
        pooling: Pooling = "last",
        compute: Compute = "float32",
        threads: int = 1,
        device: str | None = None,
        component: Component = "encoder",
        decoder_state: DecoderState = "read",
        decoder_source: DecoderSource = "copy",
        final_norm: bool = True,
        also: Sequence[Also] = (),
    ):
        self.facts = facts(checkpoint)
        self.layers = tuple(layers)
        self.width = self.facts.width
        _check_choice("pooling", pooling, Pooling)
        _check_layers(checkpoint.model, self.facts, component, self.layers)
        self.neuron_layers = tuple(layer for layer in self.layers if layer)
        # What is read, and of which layers.
        self._layers_of = {"words": self.layers} | dict.fromkeys(also, self.layers)
        self._layers_of |= {name: self.neuron_layers for name in also if name == "neurons"}
        self._whole = bool(also)
        import torch

        torch.set_num_threads(threads)
        self._checkpoint = checkpoint
        self._pooling = pooling
        self._compute = compute
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._copies = copy_stream(self._device)
        self.tokenizer = load_tokenizer(checkpoint)
        self._model = load_model(checkpoint, max(self.layers), component).to(self._device)
        family, config = read_config(checkpoint)
        self._reader = Reader(self._model, family, component, self.layers, final_norm=final_norm)
        self.neurons = family.parts[component].neurons(config)
        # A decoder beside an encoder is fed a start token in front of the pieces.
        self._source = decoder_source if component == "decoder" and config.is_encoder_decoder else None
        self._start = None if family.starts_with_last else getattr(config, "decoder_start_token_id", None)
        if self._source and self._start is None and not family.starts_with_last:
            raise ModelError(
                f"{checkpoint.label}: the configuration has no decoder_start_token_id; add it to config.json"
            )
        self._shift = int(self._source is not None) - int(component == "decoder" and decoder_state == "predict")

    def encode(
        self,
        sentences: Sequence[Sequence[str]],
        wanted: Sequence[Sequence[int]] | None = None,
        *,
        long_sentences: LongSentences = "window",
        language: str | None = None,
        sources: Sequence[Sequence[str]] | None = None,
        source_language: str | None = None,
    ) -> Encoded:
        """`encode` with this model's tokenizer, limit and need of context, of whole sentences where `also` needs them.

        With `decoder_source="pair"`, `sources` are the words that the encoder reads for each sentence, in `source_language` where
        `language` is given; one that is too long is an error. Lines for `copy` and `empty` are read under `language` itself.
        """
        encoded = encode(
            self.tokenizer,
            sentences,
            wanted,
            self.facts.max_pieces,
            long_sentences=long_sentences,
            needs_context=self._shift < 0,
            whole=self._whole,
            language=language,
        )
        if sources is None:
            return encoded
        lines = encode_lines(self.tokenizer, sources, self.facts.max_pieces, source_language)
        return replace(encoded, source=[lines[sentence] for sentence in encoded.sentences])

    def run(self, encoded: Encoded, batches: Iterable[NDArray[np.int64]], dtype: Stored = "float32") -> States:
        """States of all words of `encoded`, and what was asked for beside them, computed in float32 and given as `dtype`.

        `batches` are rows that go through the model together, as `plan_batches` makes them: each row that is not empty once.
        """
        found: dict[str, Floats | ModelError] = {}
        for kind, layers in self._layers_of.items():
            size = len(encoded.words if kind == "words" else encoded.ids)
            shape = (len(layers), size, self.neurons if kind == "neurons" else self.width)
            found[kind] = np.empty(shape, dtype if kind == "words" else np.float32)
        parts = ((batch, encoded.take(batch)) for batch in batches)
        for batch, part, leaving in one_behind((batch, part, self._read(part)) for batch, part in parts):
            self._keep(found, encoded, batch, part, leaving.arrive())
            if all(isinstance(values, ModelError) for values in found.values()):
                break
        merge = Merge(encoded.sentences, encoded.own)
        merged = {"words": lambda values: values, "sentences": merge.mean, "neurons": merge.largest}
        for kind, values in found.items():
            if not isinstance(values, ModelError):
                found[kind] = self._narrowed(kind, merged[kind](values), dtype)
        return States(merge.numbers, found)

    def _keep(
        self,
        found: dict[str, Floats | ModelError],
        encoded: Encoded,
        batch: NDArray[np.int64],
        part: Encoded,
        rows: Rows,
    ) -> None:
        """Puts what was read of a batch, `part`, to its places; a kind with a value that is not finite falls."""
        for kind, read in rows.items():
            values = found[kind]
            if isinstance(values, ModelError):
                continue
            if error := self._not_finite(kind, read, part):
                found[kind] = error
                continue
            places = encoded.words_of(batch) if kind == "words" else batch
            with np.errstate(over="ignore"):
                for of_kind, of_layer in zip(values, read, strict=True):
                    of_kind[places] = of_layer

    def _narrowed(self, kind: str, values: Floats, dtype: Stored) -> Floats | ModelError:
        """The values in the precision asked for, or the error that they overflow it."""
        with np.errstate(over="ignore"):
            narrowed = values.astype(dtype, copy=False)
        for layer, of_layer in zip(self._layers_of[kind], narrowed, strict=True):
            if not np.isfinite(of_layer).all():
                what = "neurons" if kind == "neurons" else "states"
                return ModelError(
                    f"{self._checkpoint.label}: {what} of layer {layer} overflow {dtype}; store float32 (grid field dtype.store)"
                )
        return narrowed

    def _read(self, encoded: Encoded) -> Leaving:
        """Of one batch, no row empty: `words` [L, W, D], `sentences` [L, B, D] (sums over own pieces), `neurons` [M, B, F]."""
        import torch

        spots = (encoded.row, encoded.first + self._shift, encoded.last + self._shift)
        with torch.inference_mode(), self._precision():
            fed = (encoded.ids,) if self._source is None else feed_decoder(encoded, self._source, self._start)
            filling = self._model.config.pad_token_id or 0
            batch = Batch(*(self._tensor(array) for ids in fed for array in pad(ids, filling)))
            own = None
            if encoded.own is not None:
                own = self._tensor(own_positions(encoded.own, self._shift, batch.ids.shape[1]))
            states, peaks = self._reader(batch, own if "neurons" in self._layers_of else None)
            row, first, last = map(self._tensor, spots)
            kept = {"words": [pool(states[layer], row, first, last, self._pooling) for layer in self.layers]}
            if own is not None and "sentences" in self._layers_of:
                kept["sentences"] = [total(states[layer], own) for layer in self.layers]
            if "neurons" in self._layers_of:
                kept["neurons"] = [peaks[layer] for layer in self.neuron_layers]
            return Leaving(kept, self._copies)

    def _tensor(self, array: NDArray[Any]) -> torch.Tensor:
        import torch

        return torch.from_numpy(array).to(self._device)

    def _precision(self) -> AbstractContextManager[Any]:
        import torch

        if self._compute == "float32":
            return nullcontext()
        return torch.autocast(self._device.type, dtype=getattr(torch, self._compute))

    def _not_finite(self, kind: str, layers: Sequence[NDArray[np.float32]], encoded: Encoded) -> ModelError | None:
        """The error that a value of a batch is NaN or infinite, if one is."""
        for layer, values in zip(self._layers_of[kind], layers, strict=True):
            if not np.isfinite(values).all():
                at = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
                whose = f"sentence {encoded.sentences[at]}"
                if kind == "words":
                    whose = f"word '{encoded.words[at]}' (sentence {encoded.sentence[at]}, token {encoded.token[at]})"
                return ModelError(
                    f"{self._checkpoint.label}: the {'largest neuron' if kind == 'neurons' else 'state'} of {whose} at layer "
                    f"{layer} is not finite in {self._compute}; compute in float32, or check the weights"
                )
        return None


def word_states(
    model: str,
    sentences: Sequence[Sequence[str]],
    layers: Sequence[int],
    pooling: Pooling = "last",
    dtype: Stored = "float32",
    component: Component | None = None,
    language: str | None = None,
) -> tuple[pa.Table, dict[int, NDArray[np.floating]]]:
    """States of every word of some sentences, for use outside a grid.

    Args:
        model: a directory or a Hub id, optionally with `@revision` (else `main`).
        sentences: the words of each sentence; none empty, none with whitespace inside.
        layers: layer ids, 0 = embeddings.
        pooling: `last`, `first` or `mean` over a word's pieces.
        dtype: precision of the result; everything is computed in float32.
        component: `encoder` or `decoder`; None takes the encoder if the model has one. States of a decoder are those that have
            read the word; an encoder before it reads the same sentence.
        language: of the sentences, for a tokenizer that puts a language's code beside them; others ignore it.

    Returns:
        The words (sentence int32, token int32, word string), and for each layer its states, `dtype` [W, D], in the
        same order: by sentence, then token.

    Raises:
        GridError: a layer, the pooling, the dtype or the component is unknown.
        InputError: a word is empty or holds whitespace, a sentence is too long, the tokenizer drops a word, or it has not
            one code for the language.
        ModelError: the model cannot be found, loaded or used.
    """
    import pyarrow as pa

    _check_choice("dtype", dtype, Stored)
    check_words(sentences)
    checkpoint = one_checkpoint(model)
    part = component or cast(Component, facts(checkpoint).components[0])
    extractor = Extractor(checkpoint, layers=layers, pooling=pooling, component=part)
    encoded = extractor.encode(sentences, long_sentences="skip", language=language)
    for lost in encoded.lost:
        if lost.why == "too_long":
            raise InputError(
                f"sentences[{lost.sentence}]: longer than the {extractor.facts.max_pieces} pieces that '{model}' reads; "
                "shorten or split it"
            )
        word = sentences[lost.sentence][lost.token]
        if lost.why == "no_alignment":
            raise InputError(
                f"sentences[{lost.sentence}]: the pieces of '{model}' cannot be given to its words for certain; leave it out"
            )
        raise InputError(
            f"sentences[{lost.sentence}]: the tokenizer of '{model}' drops word {lost.token} {word!r}; leave it out"
        )
    states = extractor.run(encoded, plan_batches(encoded.lengths, TOKEN_BUDGET), dtype).words
    words = pa.table(
        {
            "sentence": pa.array(encoded.sentence, pa.int32()),
            "token": pa.array(encoded.token, pa.int32()),
            "word": pa.array(encoded.words, pa.string()),
        }
    )
    return words, dict(zip(extractor.layers, states, strict=True))


def _check_layers(model: str, facts: ModelFacts, component: str, layers: Sequence[int]) -> None:
    if component not in facts.components:
        there = " and ".join(facts.components)
        raise GridError(f"component: model {model} ({facts.model_type}) has no {component}; it has {there}")
    blocks = facts.layers_of[component]
    if not layers:
        raise GridError(f"layers: none given; model {model} has 0..{blocks}")
    for layer in layers:
        if not 0 <= layer <= blocks:
            raise GridError(f"layers: {layer} is outside 0..{blocks} of model {model}")


def _check_choice(field: str, value: str, known: Any) -> None:
    if value not in get_args(known):
        raise GridError(f"{field}: '{value}' is unknown; choose one of {', '.join(get_args(known))}")
