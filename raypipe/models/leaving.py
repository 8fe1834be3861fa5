"""What an extractor reads, on its way from the device to arrays that may be stored.

Axes: W words, S sentences, L layers asked for, M those of them that are blocks (not 0), D the model's width, F neurons of a block.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from raypipe.errors import ModelError

if TYPE_CHECKING:
    import torch

Floats = NDArray[np.floating]
Rows = Mapping[str, Sequence[NDArray[np.float32]]]
"""What was read of a batch: kind to its rows, float32 [rows, width] for each layer."""
T = TypeVar("T")


class States(NamedTuple):
    """What an `Extractor` reads of some encoded sentences: kind to its values, or to why it has none.

    The tokens of a sentence are its pieces, the unknown one among them; special tokens around it (start, end, language code)
    are none. A piece's state is the one that words are made of: with the decoder state `predict`, at the position before it.
    Of a sentence read in windows each token counts once, from the window where it is farthest from an edge.

    Each kind stands or falls alone: one that is not finite, or overflows the precision asked for, raises ModelError when it is looked at.
    `sentence`, int64 [S], are the caller's indices of the sentences that have a state, ascending; empty if none was asked for.
    """

    sentence: NDArray[np.int64]
    found: Mapping[str, Floats | ModelError]

    @property
    def words(self) -> Floats:
        """[L, W, D], words in the order of the `Encoded`."""
        return cast(Floats, self._of("words"))

    @property
    def sentences(self) -> Floats | None:
        """[L, S, D], the mean over a sentence's tokens, added in float32; None unless asked for."""
        return self._of("sentences")

    @property
    def neurons(self) -> Floats | None:
        """[M, S, F], the largest value over a sentence's tokens of each neuron; None unless asked for.

        A block's neurons are the inputs of the down projection of its feed-forward, after the non-linearity and the gate.
        """
        return self._of("neurons")

    def _of(self, kind: str) -> Floats | None:
        values = self.found.get(kind)
        if isinstance(values, ModelError):
            raise values
        return values


class Leaving:
    """Rows of one batch, float32 [rows, width] by kind and layer, that leave the device.

    On a GPU (`stream`, for copies) they leave in one copy for each kind, while the next batch is computed.
    """

    def __init__(self, rows: Mapping[str, Sequence[torch.Tensor]], stream: torch.cuda.Stream | None):
        self._rows: Mapping[str, Any] = rows
        self._copied: torch.cuda.Event | None = None
        if stream is not None:
            self._rows, self._copied = _copied(rows, stream)

    def arrive(self) -> Rows:
        """Waits for the copy; gives the rows and lets go of them."""
        if self._copied is not None:
            self._copied.synchronize()
        rows, self._rows = self._rows, {}
        return {kind: [of_layer.numpy() for of_layer in layers] for kind, layers in rows.items()}


def one_behind(items: Iterable[T]) -> Iterator[T]:
    """Yields each item only after the next one was made."""
    made = deque[T]()
    for item in items:
        made.append(item)
        if len(made) > 1:
            yield made.popleft()
    yield from made


def copy_stream(device: torch.device) -> torch.cuda.Stream | None:
    """A stream of a GPU for copies beside its work; None of a CPU."""
    import torch

    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]


def _copied(
    rows: Mapping[str, Sequence[torch.Tensor]], stream: torch.cuda.Stream
) -> tuple[dict[str, torch.Tensor], torch.cuda.Event]:
    """Rows in pinned memory, where a copy does not hold up the host, and the event that says that they are there."""
    import torch

    found = {}
    stream.wait_stream(torch.cuda.current_stream(stream.device))
    with torch.cuda.stream(stream):
        for kind, layers in rows.items():
            stacked = torch.stack(list(layers))
            for of_layer in layers:
                of_layer.record_stream(stream)  # its memory may be given away only when it was read
            found[kind] = torch.empty(stacked.shape, dtype=stacked.dtype, pin_memory=True)
            found[kind].copy_(stacked, non_blocking=True)
    return found, stream.record_event()
