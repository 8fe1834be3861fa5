"""Hidden states of words: one forward for all layers, pieces pooled to words on the device, one copy out.

Axes: B sentences of a batch, T pieces of the longest, W words, L layers asked for, D the model's width.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from raypipe.errors import GridError, InputError, ModelError
from raypipe.models.batches import plan_batches
from raypipe.models.load import load_model, load_tokenizer
from raypipe.models.locate import Checkpoint, checkpoints, facts
from raypipe.models.words import Encoded, encode

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

Pooling = Literal["last", "first", "mean"]
Compute = Literal["float32", "bfloat16", "float16"]
Stored = Literal["float32", "float16"]
TOKEN_BUDGET = 4096  # pieces of one batch of `word_states`, padding included


class Extractor:
    """One checkpoint, ready to turn encoded sentences into word states.

    Layer i is what transformers returns as `hidden_states[i]`: 0 the embeddings, i the output of block i. Blocks after
    the highest layer asked for are not run.

    Args:
        checkpoint: what to load.
        layers: layer ids, in the order of the output's second axis.
        pooling: the word's last piece, its first, or the mean of its pieces.
        compute: precision of the products (autocast); weights, sums and results are float32.
        threads: CPU threads of torch in this process.
        device: torch's name of the device; None takes the GPU that this process may see, else the CPU.

    Attributes:
        tokenizer: the checkpoint's tokenizer, for `encode`.
        facts: the checkpoint's `ModelFacts`.
        layers: the layer ids, as asked.
        width: D.

    Raises:
        GridError: a layer, the pooling or the precision is unknown.
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
    ):
        self.facts = facts(checkpoint)
        self.layers = tuple(layers)
        self.width = self.facts.width
        _check(checkpoint.model, self.layers, self.facts.layers, pooling, compute)
        import torch

        torch.set_num_threads(threads)
        self._checkpoint = checkpoint
        self._pooling = pooling
        self._compute = compute
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.tokenizer = load_tokenizer(checkpoint)
        self._model = load_model(checkpoint, max(self.layers)).to(self._device)

    def __call__(self, encoded: Encoded) -> NDArray[np.float32]:
        """States of the words of one batch of sentences.

        Args:
            encoded: the batch; its sentences run together, padded to the longest.

        Returns:
            float32 [W, L, D], words in the order of `encoded`.

        Raises:
            ModelError: a state is NaN or infinite.
        """
        import torch

        if not encoded.words:
            return np.empty((0, len(self.layers), self.width), np.float32)
        filled = np.flatnonzero(encoded.lengths)
        batch = np.searchsorted(filled, encoded.row)
        ids, mask = self._padded([encoded.ids[row] for row in filled])
        with torch.inference_mode(), self._precision():
            hidden = self._model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
            row, first, last = (torch.from_numpy(a).to(self._device) for a in (batch, encoded.first, encoded.last))
            pooled = [_pool(hidden[layer], row, first, last, self._pooling) for layer in self.layers]
            states: NDArray[np.float32] = torch.stack(pooled, dim=1).cpu().numpy()
        self._refuse_not_finite(states, encoded)
        return states

    def _padded(self, ids: list[NDArray[np.int32]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and attention mask, int64 [B, T] each, padded on the right, where absolute positions stay those of the text."""
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
) -> tuple[pa.Table, dict[int, NDArray[np.floating]]]:
    """States of every word of some sentences, for use outside a grid.

    Args:
        model: a directory or a Hub id, optionally with `@revision` (else `main`).
        sentences: the words of each sentence; none empty, none with whitespace inside.
        layers: layer ids, 0 = embeddings.
        pooling: `last`, `first` or `mean` over a word's pieces.
        dtype: precision of the result; everything is computed in float32.

    Returns:
        The words (sentence int32, token int32, word string), and for each layer its states, `dtype` [W, D], in the
        same order: by sentence, then token.

    Raises:
        GridError: a layer, the pooling or the dtype is unknown.
        InputError: a word is empty or holds whitespace, a sentence is too long, or the tokenizer drops a word.
        ModelError: the model cannot be found, loaded or used.
    """
    import pyarrow as pa

    if dtype not in get_args(Stored):
        raise GridError(f"dtype: '{dtype}' is unknown; choose one of {', '.join(get_args(Stored))}")
    _check_words(sentences)
    extractor = Extractor(_one_checkpoint(model), layers=layers, pooling=pooling)
    encoded = encode(extractor.tokenizer, sentences, None, extractor.facts.max_pieces)
    for lost in encoded.lost:
        if lost.why == "truncated":
            raise InputError(
                f"sentences[{lost.sentence}]: longer than the {extractor.facts.max_pieces} pieces that '{model}' reads; "
                "shorten or split it"
            )
        word = sentences[lost.sentence][lost.token]
        raise InputError(
            f"sentences[{lost.sentence}]: the tokenizer of '{model}' drops word {lost.token} {word!r}; leave it out"
        )
    states = {layer: np.empty((len(encoded.words), extractor.width), dtype) for layer in extractor.layers}
    budget = max(TOKEN_BUDGET, extractor.facts.max_pieces)
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


def _check(model: str, layers: Sequence[int], blocks: int, pooling: str, compute: str) -> None:
    if not layers:
        raise GridError(f"layers: none given; model {model} has 0..{blocks}")
    for layer in layers:
        if not 0 <= layer <= blocks:
            raise GridError(f"layers: {layer} is outside 0..{blocks} of model {model}")
    for field, value, known in (("pooling", pooling, Pooling), ("compute", compute, Compute)):
        if value not in get_args(known):
            raise GridError(f"{field}: '{value}' is unknown; choose one of {', '.join(get_args(known))}")


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
