"""Concept patching on a causal model: what it answers when its states at one word are replaced by those of another concept.

Source: specification of concept patching, sections 2.5 to 2.10 and 3, after Dumas et al. (arXiv 2411.08745) and Körner et al.
(arXiv 2601.22851). Axes: n prompts, P pieces of a prompt, m wanted pieces, L blocks, d the model's width. A start layer j is 0..L-1:
the outputs of blocks j, j+1, ..., L-1 are replaced, all at once. What the last block puts out at a word is read by no later position, so
it is neither read from the sources nor replaced.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from raypipe.errors import InputError, ModelError
from raypipe.models.library import one_line

if TYPE_CHECKING:
    import torch

    from raypipe.models.patching_runs import Run

Path = Literal["auto", "fast", "hook"]
Floats = NDArray[np.float32]
Ints = NDArray[np.integer]
CLOSING = ('"', "\n")
"""Text that ends an answer."""
TOLERANCE = 1e-4
"""Largest difference in log-probability between the paths, and the margin of the best piece below which answers may differ."""


@dataclass(frozen=True)
class Prompt:
    """One prompt as pieces.

    Attributes:
        ids: [P], as the tokenizer gives them, its special tokens in front included.
        position: the last piece of the queried word, 0..P-1.

    Raises:
        InputError: the position is outside the prompt.
    """

    ids: Ints
    position: int

    def __post_init__(self) -> None:
        if not 0 <= self.position < len(self.ids):
            raise InputError(
                f"prompt of {len(self.ids)} pieces: position {self.position} is outside; expected 0 or more"
            )


class Scored(NamedTuple):
    """What the model says behind each prompt.

    Attributes:
        logprobs: per prompt the log-probability of each wanted piece as the next one, [m], from a float32 log-softmax.
        answers: per prompt the new pieces, greedily chosen, int32; they end with the first whose text holds a closing quote or a
            newline, with an end-of-text piece, or after as many as were asked for.
        states: [n, L - 1, d], block outputs at the position but the last, which nothing behind it reads; None of a patched run.
    """

    logprobs: list[Floats]
    answers: list[NDArray[np.int32]]
    states: Floats | None


class Patcher:
    """Runs prompts on a causal model, as they are or patched.

    The path `fast` keeps the cache of the clean run and exchanges the word's slots in it (section 3 of the specification); `hook` runs
    the whole prompt anew for every start layer and every new piece, and fits any causal architecture.

    Args:
        model: transformers' causal language model with its head, in evaluation mode, on its device.
        tokenizer: its tokenizer.
        path: `auto` takes the fast path if it equals the hook path on this model, tried here in float32, else the hook path; `fast`
            takes it or raises; `hook` tries nothing.
        batch: prompts that run together, patched ones with the states of all settings at once. Results differ by it in the last bits only.

    Attributes:
        path: `fast` or `hook`.
        path_reason: why, for the manifest.
        blocks: L.
        width: d.

    Raises:
        ModelError: the model's blocks cannot be found or are less than two, or the path `fast` was asked for and does not hold.
        InputError: an unknown path, or no prompt in a batch.
    """

    def __init__(self, model: Any, tokenizer: Any, *, path: Path = "auto", batch: int = 16):
        from raypipe.models.causal import Causal

        if path not in get_args(Path) or batch < 1:
            raise InputError(
                f"path {path}, batch {batch}: expected a path of {', '.join(get_args(Path))} and a batch above 0"
            )
        self._causal, self._tokenizer, self._batch = Causal(model), tokenizer, batch
        text = model.config.get_text_config()
        self.blocks, self.width = len(self._causal.blocks), int(text.hidden_size)
        self._room = getattr(text, "max_position_embeddings", None)
        ends = getattr(model.generation_config, "eos_token_id", None)
        self._ends = {*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id}
        self._closing: dict[int, bool] = {}
        if self.blocks < 2:
            raise ModelError(f"{type(model).__name__} holds one block; patching needs one and another that reads it")
        self.path: Literal["fast", "hook"] = "hook"
        self.path_reason = "asked for"
        if path != "hook":
            self._choose(path)

    @property
    def token_forwards(self) -> dict[str, int]:
        """Pieces run through all blocks so far, padding included, per part: source, clean, slots, patched; rounded up."""
        return {part: -(-self._causal.work[part] // self.blocks) for part in ("source", "clean", "slots", "patched")}

    def read(self, prompts: Sequence[Prompt]) -> Floats:
        """Block outputs at each prompt's position but the last, [n, L - 1, d]; neither that block nor what stands behind is run.

        Raises:
            InputError: a prompt is longer than the model's positions.
        """
        import torch

        found = np.empty((len(prompts), self.blocks - 1, self.width), np.float32)
        cut = [Prompt(prompt.ids[: prompt.position + 1], prompt.position) for prompt in prompts]
        self._causal.part = "source"
        for rows in self._plan(cut, 0):
            # Padding behind a prompt changes nothing before it, and without a mask attention takes half the work.
            ids, mask = self._side_by_side([cut[row] for row in rows], left=False)
            at = torch.arange(len(rows)), mask.sum(1).cpu() - 1
            kept: list[torch.Tensor] = []
            looks = dict.fromkeys(
                range(self.blocks - 1), lambda state, kept=kept, at=at: kept.append(state[at].float())
            )
            with self._causal.hooked(looks), self._causal.skipping(slice(self.blocks - 1, None)):
                self._causal(ids, torch.ones_like(mask), head=False)
            for block, state in enumerate(kept):
                found[rows, block] = state.cpu().numpy()
        return found

    def unpatched(self, prompts: Sequence[Prompt], wanted: Sequence[Ints], generate: int = 0) -> Scored:
        """What the model says behind the prompts as they are.

        Args:
            prompts: n prompts.
            wanted: per prompt the pieces whose log-probability is kept, [m].
            generate: most new pieces of an answer.

        Raises:
            InputError: not as many lists of wanted pieces as prompts, or a prompt is longer than the model's positions.
            ModelError: the model's logits are not numbers.
        """
        return self._score(prompts, [], wanted, generate, [self.blocks - 1], self.blocks)[0]

    def patched(
        self,
        prompts: Sequence[Prompt],
        states: Sequence[Floats | None] | Floats,
        wanted: Sequence[Ints],
        generate: int = 0,
        layers: Sequence[int] | None = None,
        window: int | None = None,
    ) -> list[list[Scored]]:
        """What the model says behind the prompts when its states at their positions are replaced.

        The prompts run once for all settings and layers. The start layer L-1 changes nothing that is read: it is the clean run, the same
        for all settings and with its states, so a grid that asks for it need not call `unpatched` on these prompts.

        Args:
            prompts: n prompts, each with something behind its position.
            states: per setting the block outputs to put in, float32 [n, L - 1, d]; None puts in the prompt's own, of the clean run.
            wanted: per prompt the pieces whose log-probability is kept, [m].
            generate: most new pieces of an answer.
            layers: the start layers; None takes all, 0..L-1.
            window: outputs that are replaced, from the start layer on; None takes all behind it.

        Returns:
            Per setting, per start layer in the order given, what the model says.

        Raises:
            InputError: shapes or counts that do not fit, or layers that are not there.
            ModelError: the model's logits are not numbers.
        """
        chosen = list(range(self.blocks)) if layers is None else list(layers)
        if not set(chosen) <= set(range(self.blocks)):
            raise InputError(f"layers {chosen}: expected some of 0 to {self.blocks - 1}")
        if any(prompt.position + 1 == len(prompt.ids) for prompt in prompts):
            raise InputError("a prompt ends with the word that is patched; expected pieces behind its position")
        shape = (len(prompts), self.blocks - 1, self.width)
        for setting in states:
            if setting is not None and setting.shape != shape:
                raise InputError(
                    f"states to put in: shape {setting.shape}, expected {shape} (prompts, blocks but the last, width)"
                )
        return self._score(prompts, states, wanted, generate, chosen, window or self.blocks)[1]

    def _score(
        self,
        prompts: Sequence[Prompt],
        states: Sequence[Floats | None] | Floats,
        wanted: Sequence[Ints],
        generate: int,
        layers: list[int],
        window: int,
    ) -> tuple[Scored, list[list[Scored]]]:
        import torch

        if len(wanted) != len(prompts):
            raise InputError(f"{len(wanted)} lists of wanted pieces for {len(prompts)} prompts; expected one each")
        last = self.blocks - 1
        own = np.empty((len(prompts), last, self.width), np.float32)
        clean = _room_for(wanted, generate, own)
        found = [[clean if j == last else _room_for(wanted, generate) for j in layers] for _ in states]
        for rows in self._plan(prompts, generate):
            with torch.inference_mode():
                self._causal.part = "clean"
                run = self._run([prompts[row] for row in rows], generate)
                ids = [wanted[row] for row in rows]
                own[rows] = run.states.float().cpu().numpy()
                self._listen(run, run.logits, ids, generate if last in layers else 0, [clean], rows)
                if not found or set(layers) <= {last}:
                    continue
                new = torch.cat(
                    [run.states if of is None else torch.from_numpy(of[rows]).to(run.states) for of in states]
                )
                run.repeat(len(states))
                ready = None
                # Descending: a run with a lower start overwrites what one with a higher start reads.
                for j in sorted(set(layers) - {last}, reverse=True):
                    to_the_end = j + window >= last  # then one set of slots serves every start
                    if ready is None or not to_the_end:
                        self._causal.part = "slots"
                        ready = run.prepare(new, range(last) if to_the_end else range(j, j + window))
                    self._causal.part = "patched"
                    into = [of_setting[layers.index(j)] for of_setting in found]
                    self._listen(run, run.patched(j, ready), ids, generate, into, rows)
        return clean, found

    def _listen(
        self,
        run: Run,
        logits: torch.Tensor,
        wanted: Sequence[Ints],
        generate: int,
        into: Sequence[Scored],
        rows: list[int],
    ) -> None:
        """Keeps what is wanted of the logits [M B, V] of M runs of the same rows, and lets the answers go on from them."""
        import torch

        counts = [len(ids) for ids in wanted] * len(into)
        row = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).to(logits.device)
        ids = np.concatenate([np.asarray(of, np.int64) for of in wanted])
        piece = torch.from_numpy(np.tile(ids, len(into))).to(logits.device)
        kept = logits.log_softmax(dim=-1)[row, piece].cpu().numpy()
        if np.isnan(kept).any():
            raise ModelError(
                f"{type(self._causal.model).__name__}: its logits are not numbers; is the checkpoint whole?"
            )
        places = [(of_run, index) for of_run in into for index in rows]
        found = zip(np.split(kept, np.cumsum(counts)[:-1]), self._greedy(run, logits, generate), strict=True)
        for (of_run, index), (values, answer) in zip(places, found, strict=True):
            of_run.logprobs[index][:] = values
            of_run.answers[index] = of_run.answers[index][: len(answer)]
            of_run.answers[index][:] = answer

    def _greedy(self, run: Run, logits: torch.Tensor, generate: int) -> list[list[int]]:
        answers: list[list[int]] = [[] for _ in logits]
        still = set(range(len(answers)))
        for count in range(1, generate + 1):
            new = logits.argmax(dim=-1)
            for row, piece in enumerate(new.tolist()):
                if row in still:
                    answers[row].append(piece)
                    if self._closes(piece):
                        still.remove(row)
            if not still:
                break
            if count < generate:
                logits = run.step(new)
        return answers

    def _closes(self, piece: int) -> bool:
        if piece not in self._closing:
            text = self._tokenizer.decode([piece])
            self._closing[piece] = piece in self._ends or any(sign in text for sign in CLOSING)
        return self._closing[piece]

    def _run(self, prompts: list[Prompt], generate: int) -> Run:
        from raypipe.models.patching_runs import CachedRun, HookedRun

        ids, mask = self._side_by_side(prompts)
        p = ids.shape[1] - len(prompts[0].ids) + prompts[0].position
        if self.path == "hook":
            return HookedRun(self._causal, ids, p)
        return CachedRun(self._causal, ids, mask, p, max(generate - 1, 0))

    def _plan(self, prompts: Sequence[Prompt], generate: int) -> Iterator[list[int]]:
        """Rows that run together: as many pieces behind the position, and on the hook path before it; lengths alike."""
        longest = max((len(prompt.ids) for prompt in prompts), default=0) + generate
        if self._room is not None and longest > self._room:
            raise InputError(f"a prompt with its answer has {longest} pieces; the model has {self._room} positions")

        def shape(row: int) -> tuple[int, int]:
            return len(prompts[row].ids) - prompts[row].position, len(prompts[row].ids)

        order = sorted(range(len(prompts)), key=shape)
        for _, same in groupby(order, key=lambda row: shape(row)[: 1 if self.path == "fast" else 2]):
            rows = list(same)
            yield from (rows[start : start + self._batch] for start in range(0, len(rows), self._batch))

    def _side_by_side(self, prompts: list[Prompt], *, left: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask, int64 [B, T], padded on the left, or on the right."""
        import torch

        longest = max(len(prompt.ids) for prompt in prompts)
        both = np.zeros((2, len(prompts), longest), np.int64)
        for row, prompt in enumerate(prompts):
            start = longest - len(prompt.ids) if left else 0
            both[:, row, start : start + len(prompt.ids)] = prompt.ids, np.ones_like(prompt.ids)
        ids, mask = torch.from_numpy(both).to(self._causal.model.device)
        return ids, mask

    def _choose(self, path: Path) -> None:
        """Takes the fast path where it equals the hook path on this model in float32 (section 3.4 of the specification)."""
        import torch

        weights = [(weight, weight.dtype) for weight in self._causal.model.parameters()]
        try:
            # Not model.float(): that and its way back would round the buffers of rotary positions.
            for weight, _ in weights:
                weight.data = weight.data.float()
            wrong = self._difference()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            wrong = f"it cannot run: {one_line(error)}"
        finally:
            for weight, precision in weights:
                weight.data = weight.data.to(precision)
            self._causal.work.clear()
        if wrong and path == "fast":
            raise ModelError(
                f"{type(self._causal.model).__name__}: the fast path does not hold: {wrong}; use path hook"
            )
        self.path = "hook" if wrong else "fast"
        self.path_reason = f"the fast path does not hold: {wrong}" if wrong else f"equals hook within {TOLERANCE:g}"

    def _difference(self) -> str | None:
        """How the fast path differs from the hook path on made-up prompts, if it does."""
        rng = np.random.default_rng(0)
        vocabulary = int(self._causal.model.get_output_embeddings().weight.shape[0])
        prompts = [Prompt(rng.integers(vocabulary, size=5 + 4 * row), 1 + 4 * row) for row in range(4)]
        wanted = [np.arange(vocabulary)] * len(prompts)
        layers = sorted({0, self.blocks // 2, max(self.blocks - 2, 0), self.blocks - 1})
        states = self.read(prompts)[::-1].copy()
        hooked = self.patched(prompts, [states], wanted, 3, layers)[0]
        self.path = "fast"
        cached = self.patched(prompts, [states], wanted, 3, layers)[0]
        for layer, a, b in zip(layers, hooked, cached, strict=True):
            worst = max(float(np.abs(x - y).max()) for x, y in zip(a.logprobs, b.logprobs, strict=True))
            if not worst <= TOLERANCE:
                return f"from layer {layer} it differs from hook by {worst:.2g} in log-probability"
            for row, (x, y) in enumerate(zip(a.answers, b.answers, strict=True)):
                if x.tolist() != y.tolist() and self._margin(prompts[row], states[row], x, y, layer) > TOLERANCE:
                    return f"from layer {layer} it answers otherwise than hook"
        return None

    def _margin(self, prompt: Prompt, states: Floats, x: Ints, y: Ints, layer: int) -> float:
        """How far the best piece is ahead in log-probability where two answers part."""
        apart = next(at for at in range(min(len(x), len(y))) if x[at] != y[at])
        longer = Prompt(np.concatenate([prompt.ids, x[:apart]]), prompt.position)
        wanted = np.arange(self._causal.model.get_output_embeddings().weight.shape[0])
        second, first = np.sort(self.patched([longer], [states[None]], [wanted], 0, [layer])[0][0].logprobs[0])[-2:]
        return float(first - second)


def _room_for(wanted: Sequence[Ints], generate: int, states: Floats | None = None) -> Scored:
    """Results to be filled: laid out at once, since small arrays kept between the logits of batches would keep their memory apart."""
    counts = [len(ids) for ids in wanted]
    logprobs = np.split(np.empty(sum(counts), np.float32), np.cumsum(counts)[:-1])
    return Scored(logprobs[: len(wanted)], list(np.empty((len(wanted), generate), np.int32)), states)
