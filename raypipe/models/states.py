"""Hidden states of words: one forward for all layers, pieces pooled to words on the device, one copy out.

Axes: B rows of a batch, T pieces of the longest, W words, L layers asked for, D the model's width.
A decoder that is fed `[start] p1 p2 ... pn` has one state per position: the one at the position of piece p has read it, the
one before it predicts it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from raypipe.errors import GridError, InputError, ModelError
from raypipe.models.batches import plan_batches
from raypipe.models.layers import Batch, Reader
from raypipe.models.load import load_model, load_tokenizer
from raypipe.models.locate import Checkpoint, ModelFacts, checkpoints, facts, read_config
from raypipe.models.windows import LongSentences
from raypipe.models.words import Encoded, encode, encode_lines

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

Pooling = Literal["last", "first", "mean"]
Compute = Literal["float32", "bfloat16", "float16"]
Stored = Literal["float32", "float16"]
Component = Literal["encoder", "decoder"]
DecoderState = Literal["read", "predict"]
DecoderSource = Literal["copy", "empty", "pair"]
TOKEN_BUDGET = 1024  # pieces of one batch of `word_states`, padding included


class Extractor:
    """One component of one checkpoint, ready to turn encoded sentences into word states.

    Layer i is what transformers returns as `hidden_states[i]`: 0 the embeddings, i the output of block i, the last one after
    the final norm where the family has one. Blocks after the highest layer asked for are not run.

    Args:
        checkpoint: what to load.
        layers: layer ids, in the order of the output's second axis.
        pooling: the word's last piece, its first, or the mean of its pieces.
        compute: precision of the products (autocast); weights, sums and results are float32.
        threads: CPU threads of torch in this process.
        device: torch's name of the device; None takes the GPU that this process may see, else the CPU.
        component: `encoder` or `decoder`.
        decoder_state: of a decoder, the state that has read a piece (`read`) or that predicts it (`predict`).
        decoder_source: what the encoder reads while the decoder of the same model reads a line: the same line (`copy`), only
            the special tokens that close it (`empty`), or another line (`pair`).
        final_norm: False takes the last layer before the final norm.

    Attributes:
        tokenizer: the checkpoint's tokenizer, for `encode`.
        facts: the checkpoint's `ModelFacts`.
        layers: the layer ids, as asked.
        width: D.

    Raises:
        GridError: a layer or an option is unknown, or the model has no such component.
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
    ):
        self.facts = facts(checkpoint)
        self.layers = tuple(layers)
        self.width = self.facts.width
        _check_choices(pooling=pooling, compute=compute, decoder_state=decoder_state, decoder_source=decoder_source)
        _check_layers(checkpoint.model, self.facts, component, self.layers)
        import torch

        torch.set_num_threads(threads)
        self._checkpoint = checkpoint
        self._pooling = pooling
        self._compute = compute
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.tokenizer = load_tokenizer(checkpoint)
        self._model = load_model(checkpoint, max(self.layers), component).to(self._device)
        family, config = read_config(checkpoint)
        self._reader = Reader(self._model, family, component, self.layers, final_norm=final_norm)
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
        long_sentences: LongSentences = "cut",
        sources: Sequence[Sequence[str]] | None = None,
    ) -> Encoded:
        """`encode` with this model's tokenizer, limit and need of context.

        Args:
            sentences: the words of each sentence.
            wanted: per sentence the tokens to read; None reads every word.
            long_sentences: what becomes of sentences that are too long.
            sources: with `decoder_source="pair"`, the words that the encoder reads for each sentence.

        Raises:
            GridError, InputError: as `encode`; or `sources` are missing, not needed, or of another number.
        """
        if (sources is None) == (self._source == "pair") or (sources is not None and len(sources) != len(sentences)):
            given = "none" if sources is None else str(len(sources))
            needed = str(len(sentences)) if self._source == "pair" else "none"
            raise InputError(
                f"lines for the encoder: {given}, expected {needed}; they go with decoder_source pair only"
            )
        encoded = encode(
            self.tokenizer,
            sentences,
            wanted,
            self.facts.max_pieces,
            long_sentences=long_sentences,
            needs_context=self._shift < 0,
        )
        if sources is None:
            return encoded
        lines = encode_lines(self.tokenizer, sources, self.facts.max_pieces)
        return replace(encoded, source=[lines[sentence] for sentence in encoded.sentences])

    def __call__(self, encoded: Encoded) -> NDArray[np.float32]:
        """States of the words of one batch of rows.

        Args:
            encoded: the batch, from `encode`; its rows run together, padded to the longest.

        Returns:
            float32 [W, L, D], words in the order of `encoded`.

        Raises:
            InputError: a word or the encoder has nothing to read.
            ModelError: a state is NaN or infinite.
        """
        import torch

        if not encoded.words:
            return np.empty((0, len(self.layers), self.width), np.float32)
        filled = np.flatnonzero(encoded.lengths)
        spots = (np.searchsorted(filled, encoded.row), encoded.first + self._shift, encoded.last + self._shift)
        if spots[1].min() < 0:
            raise InputError(
                f"word '{encoded.words[int(spots[1].argmin())]}': nothing stands before it to predict it from"
            )
        with torch.inference_mode(), self._precision():
            hidden = self._reader(self._batch(encoded, filled))
            row, first, last = (torch.from_numpy(spot).to(self._device) for spot in spots)
            pooled = [_pool(hidden[layer], row, first, last, self._pooling) for layer in self.layers]
            states: NDArray[np.float32] = torch.stack(pooled, dim=1).cpu().numpy()
        self._refuse_not_finite(states, encoded)
        return states

    def _batch(self, encoded: Encoded, rows: NDArray[np.int64]) -> Batch:
        own = [encoded.ids[row] for row in rows]
        if self._source is None:
            return Batch(*self._padded(own))
        stops = [len(ids) - closing for ids, closing in zip(own, encoded.closing[rows], strict=True)]
        fed = [
            np.concatenate([ids[-1:] if self._start is None else np.array([self._start], np.int32), ids[:stop]])
            for ids, stop in zip(own, stops, strict=True)
        ]
        source = own
        if self._source == "empty":
            source = [ids[stop:] for ids, stop in zip(own, stops, strict=True)]
        elif self._source == "pair":
            if encoded.source is None:
                raise InputError("decoder_source pair: no lines for the encoder; encode with sources")
            source = [encoded.source[row] for row in rows]
        for row, ids in zip(rows, source, strict=True):
            if not len(ids):
                raise InputError(
                    f"sentence {encoded.sentences[row]}: nothing for the encoder to read, no piece and no special token; "
                    "leave the sentence out, or set decoder_source to copy"
                )
        return Batch(*self._padded(fed), *self._padded(source))

    def _padded(self, ids: list[NDArray[np.int32]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask, int64 [B, T] each, padded on the right, where positions stay those of the text."""
        import torch

        lengths = np.array([len(row) for row in ids])
        mask_BT = np.arange(lengths.max()) < lengths[:, None]
        ids_BT = np.full(mask_BT.shape, self._model.config.pad_token_id or 0, np.int64)
        ids_BT[mask_BT] = np.concatenate(ids)
        return torch.from_numpy(ids_BT).to(self._device), torch.from_numpy(mask_BT.astype(np.int64)).to(self._device)

    def _precision(self) -> AbstractContextManager[Any]:
        import torch

        if self._compute == "float32":
            return nullcontext()
        return torch.autocast(self._device.type, dtype=getattr(torch, self._compute))

    def _refuse_not_finite(self, states: NDArray[np.float32], encoded: Encoded) -> None:
        if np.isfinite(states).all():
            return
        word, place = np.argwhere(~np.isfinite(states).all(axis=2))[0]
        raise ModelError(
            f"{self._checkpoint.label}: the state of word '{encoded.words[word]}' (sentence {encoded.sentence[word]}, "
            f"token {encoded.token[word]}) at layer {self.layers[place]} is not finite in {self._compute}; "
            "compute in float32, or check the weights"
        )


def word_states(
    model: str,
    sentences: Sequence[Sequence[str]],
    layers: Sequence[int],
    pooling: Pooling = "last",
    dtype: Stored = "float32",
    component: Component | None = None,
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

    Returns:
        The words (sentence int32, token int32, word string), and for each layer its states, `dtype` [W, D], in the
        same order: by sentence, then token.

    Raises:
        GridError: a layer, the pooling or the dtype is unknown.
        InputError: a word is empty or holds whitespace, a sentence is too long, or the tokenizer drops a word.
        ModelError: the model cannot be found, loaded or used.
    """
    import pyarrow as pa

    _check_choices(dtype=dtype)
    _check_words(sentences)
    checkpoint = _one_checkpoint(model)
    part = component or cast(Component, facts(checkpoint).components[0])
    extractor = Extractor(checkpoint, layers=layers, pooling=pooling, component=part)
    encoded = extractor.encode(sentences)
    for lost in encoded.lost:
        if lost.why == "truncated":
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
    states = {layer: np.empty((len(encoded.words), extractor.width), dtype) for layer in extractor.layers}
    budget = max(TOKEN_BUDGET, *encoded.lengths, 0)
    for rows in plan_batches(encoded.lengths, budget):
        values = extractor(encoded.take(rows))
        at = encoded.words_of(rows)
        for place, layer in enumerate(extractor.layers):
            with np.errstate(over="ignore"):
                states[layer][at] = values[:, place]
            if not np.isfinite(states[layer][at]).all():
                raise ModelError(f"model '{model}': states of layer {layer} overflow {dtype}; use float32")
    words = pa.table(
        {
            "sentence": pa.array(encoded.sentence, pa.int32()),
            "token": pa.array(encoded.token, pa.int32()),
            "word": pa.array(encoded.words, pa.string()),
        }
    )
    return words, states


def _pool(hidden: torch.Tensor, row: torch.Tensor, first: torch.Tensor, last: torch.Tensor, how: str) -> torch.Tensor:
    """[B, T, D] states of pieces -> float32 [W, D] states of words. The mean adds piece by piece, in one fixed order."""
    import torch

    if how != "mean":
        return hidden[row, last if how == "last" else first].float()
    total = hidden[row, first].float()
    for step in range(1, int((last - first).max()) + 1):
        inside = first + step <= last
        total += torch.where(inside[:, None], hidden[row, torch.minimum(first + step, last)].float(), 0.0)
    return total / (last - first + 1)[:, None]


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


def _check_choices(**chosen: str) -> None:
    known = {
        "pooling": Pooling,
        "compute": Compute,
        "decoder_state": DecoderState,
        "decoder_source": DecoderSource,
        "dtype": Stored,
    }
    for field, value in chosen.items():
        if value not in get_args(known[field]):
            raise GridError(f"{field}: '{value}' is unknown; choose one of {', '.join(get_args(known[field]))}")


def _check_words(sentences: Sequence[Sequence[str]]) -> None:
    for index, words in enumerate(sentences):
        if isinstance(words, str):
            raise InputError(f"sentences[{index}]: a string, expected a list of words; split it on whitespace")
        for token, word in enumerate(words):
            if word.split() != [word]:
                raise InputError(f"sentences[{index}]: word {token} {word!r} is empty or holds whitespace; split it")


def _one_checkpoint(model: str) -> Checkpoint:
    path, separator, revision = model.rpartition("@")
    if not separator or Path(model).expanduser().exists():
        path, revision = model, "main"
    found = checkpoints(model, path, [revision])
    if len(found) > 1:
        raise ModelError(
            f"model '{model}': names {len(found)} checkpoints; name one, such as {path}@{found[-1].revision}"
        )
    return found[0]
