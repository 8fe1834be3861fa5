"""One batch of prompts whose state at one position is exchanged: by a cache with exchanged slots, or by hooks.

In a causal decoder a position reaches later ones only through its keys and values, and those of block l come from the output of
block l-1. With the outputs of blocks j, j+1, ... at p replaced, slot p of a block after j depends on the replacement and p alone,
and all else up to block j is as without it: one clean run, one set of exchanged slots and the suffix after p serve every j.

Axes: B prompts of a batch, T positions of the longest, p the column whose state is exchanged, S columns after it, L blocks, D width,
V vocabulary. Padding stands left, so p and the last position are the same columns in every row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from raypipe.models.causal import Causal


class Run(Protocol):
    """What a batch offers on either path.

    Attributes:
        logits: float32 [B, V], of the clean run behind the last position.
        states: [B, L - 1, D], its block outputs at p but the last, which no later position reads.
    """

    logits: torch.Tensor
    states: torch.Tensor

    def repeat(self, count: int) -> None:
        """Lets every prompt stand `count` times from now on, one whole batch after the other: B becomes `count` times as many."""

    def prepare(self, states: torch.Tensor, blocks: range) -> Any:
        """What `patched` needs where the outputs of these blocks become those of `states`, [B, L - 1, D]."""

    def patched(self, start: int, prepared: Any) -> torch.Tensor:
        """Logits float32 [B, V] with the outputs at p replaced of those blocks that are prepared and not before `start`."""

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits float32 [B, V] after one more piece of each prompt, int64 [B], of what ran last."""


@dataclass
class _Place:
    """Where the cache of all blocks stands: positions that count, and positions there is room for."""

    at: int
    room: int


class _Slots(DynamicLayer):  # type: ignore[misc]
    """Keys and values [B, heads, room, head] of one block, written in place from where the cache stands."""

    is_initialized: bool

    def __init__(self, place: _Place):
        super().__init__()
        self._place = place

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        start, stop = self._place.at, self._place.at + keys.shape[2]
        if not self.is_initialized:
            room = self._place.room
            self.keys, self.values = (part.new_zeros(*part.shape[:2], room, part.shape[3]) for part in (keys, values))
            self.is_initialized = True
        self.keys[:, :, start:stop], self.values[:, :, start:stop] = keys, values
        return self.keys[:, :, :stop], self.values[:, :, :stop]

    def get_seq_length(self) -> int:
        return self._place.at

    def repeat(self, count: int) -> None:
        self.keys, self.values = self.keys.repeat(count, 1, 1, 1), self.values.repeat(count, 1, 1, 1)

    def take(self, at: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.keys[:, :, at].clone(), self.values[:, :, at].clone()

    def put(self, at: int, slot: tuple[torch.Tensor, torch.Tensor]) -> None:
        self.keys[:, :, at], self.values[:, :, at] = slot


class CachedRun:
    """The fast path: the prompt runs once, then only what comes after p, and of that only the blocks after `start`.

    Runs with a lower `start` overwrite what those with a higher one read, so `patched` is called with `start` descending.

    Args:
        causal: the model.
        ids: int64 [B, T].
        mask: int64 [B, T], 0 at padding.
        p: the column.
        more: pieces that `step` may add.
    """

    def __init__(self, causal: Causal, ids: torch.Tensor, mask: torch.Tensor, p: int, more: int):
        self._causal, self._ids, self._p = causal, ids, p
        self._mask = torch.cat([mask, mask.new_ones(len(mask), more)], dim=1)
        self._place = _Place(0, self._mask.shape[1])
        self._slots = [_Slots(self._place) for _ in causal.blocks]
        self._cache = Cache(layers=self._slots)
        kept: dict[int, torch.Tensor] = {}

        def keep(block: int) -> Any:
            return lambda state: kept.update({block: state[:, p:].clone()})

        with causal.hooked({block: keep(block) for block in range(len(self._slots))}):
            self.logits = self._forward(ids)
        self.states = torch.stack([kept[block][:, 0] for block in range(len(self._slots) - 1)], dim=1)
        self._suffix = [kept[block][:, 1:] for block in range(len(self._slots))]

    def repeat(self, count: int) -> None:
        """As `Run`."""
        self._ids, self._mask = self._ids.repeat(count, 1), self._mask.repeat(count, 1)
        self._suffix = [state.repeat(count, 1, 1) for state in self._suffix]
        for layer in self._slots:
            layer.repeat(count)

    def prepare(self, states: torch.Tensor, blocks: range) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Slot p of every block when the outputs of `blocks` are `states`."""
        clean = [layer.take(self._p) for layer in self._slots]
        self._place.at = self._p
        forced = {block + 1: lambda _, block=block: states[:, block, None] for block in blocks}
        with self._causal.hooked(forced, before=True):
            self._forward(self._ids[:, self._p, None], head=False)
        exchanged = [layer.take(self._p) for layer in self._slots]
        for layer, slot in zip(self._slots, clean, strict=True):
            layer.put(self._p, slot)
        return exchanged

    def patched(self, start: int, prepared: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        """As `Run`; `start` is never above the one before."""
        for layer, slot in zip(self._slots[start + 1 :], prepared[start + 1 :], strict=True):
            layer.put(self._p, slot)
        self._place.at = self._p + 1
        with self._causal.skipping(slice(start + 1), self._suffix[start]):
            return self._forward(self._ids[:, self._p + 1 :])

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """As `Run`."""
        return self._forward(ids[:, None])

    def _forward(self, ids: torch.Tensor, *, head: bool = True) -> torch.Tensor:
        stop = self._place.at + ids.shape[1]
        output = self._causal(ids, self._mask[:, :stop], self._cache, head=head)
        self._place.at = stop
        return output


class HookedRun:
    """The path of any causal architecture: the whole prompt for every `start` and every further piece, outputs replaced at p.

    Args:
        causal: the model.
        ids: int64 [B, T], without padding.
        p: the column.
    """

    def __init__(self, causal: Causal, ids: torch.Tensor, p: int):
        self._causal, self._prompt, self._ids, self._p = causal, ids, ids, p
        kept: list[torch.Tensor] = []
        looks = dict.fromkeys(range(len(causal.blocks) - 1), lambda state: kept.append(state[:, p].clone()))
        with causal.hooked(looks):
            self.logits = causal(ids, torch.ones_like(ids))
        self.states = torch.stack(kept, dim=1)
        self._new, self._blocks = self.states, range(0)

    def repeat(self, count: int) -> None:
        """As `Run`."""
        self._prompt = self._prompt.repeat(count, 1)

    def prepare(self, states: torch.Tensor, blocks: range) -> tuple[torch.Tensor, range]:
        """As `Run`."""
        return states, blocks

    def patched(self, start: int, prepared: tuple[torch.Tensor, range]) -> torch.Tensor:
        """As `Run`."""
        self._ids, self._new = self._prompt, prepared[0]
        self._blocks = range(max(start, prepared[1].start), prepared[1].stop)
        return self._forward()

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """As `Run`."""
        self._ids = torch.cat([self._ids, ids[:, None]], dim=1)
        return self._forward()

    def _forward(self) -> torch.Tensor:
        def put_in(block: int) -> Any:
            def at_p(state: torch.Tensor) -> torch.Tensor:
                state = state.clone()
                state[:, self._p] = self._new[:, block]
                return state

            return at_p

        with self._causal.hooked({block: put_in(block) for block in self._blocks}):
            return self._causal(self._ids, torch.ones_like(self._ids))
