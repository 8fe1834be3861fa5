"""A causal language model as patching sees it: its blocks, hooks on what they put out, and one way to call it.

Axes: B prompts of a batch, T positions, L blocks, D the model's width, V pieces of the vocabulary. Block l = 0..L-1; its output
is the residual stream behind it, before the final norm.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from raypipe.errors import ModelError
from raypipe.models.library import quiet

Look = Callable[[torch.Tensor], torch.Tensor | None]
"""Sees a block's output [B, T, D]; what it returns, if anything, takes its place."""


class Causal:
    """A model with a head for the next piece, in evaluation mode, and the places of its blocks.

    Attributes:
        blocks: the model's blocks.
        work: part -> positions times blocks that ran, padding included.
        part: what the work is counted under.

    Raises:
        ModelError: no list of blocks as long as the configuration says, or its outputs are not transformers' `hidden_states`.
    """

    def __init__(self, model: Any):
        self.model = model
        count = model.config.get_text_config().num_hidden_layers
        lists = (m for m in model.base_model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == count)
        found = next(lists, None)  # the outermost: experts and heads lie inside a block
        if found is None:
            raise ModelError(f"{type(model).__name__} holds no list of {count} blocks; it cannot be patched")
        self.blocks = found
        self.work: Counter[str] = Counter()
        self.part = ""
        self._skipped = 0
        self._takes = set(inspect.signature(model.forward).parameters)
        self._others = 0  # what a block returns behind its state
        self._check()

    @torch.inference_mode()
    def __call__(self, ids: torch.Tensor, mask: torch.Tensor, cache: Any = None, *, head: bool = True) -> torch.Tensor:
        """Runs pieces, int64 [B, T], and gives float32 logits [B, V] behind the last, or without `head` the last state.

        `mask`, int64 [B, positions in the cache + T], is 0 at padding, which stands left; transformers' cache holds what stands before.
        """
        options: dict[str, Any] = {"use_cache": cache is not None}
        if cache is not None:
            options["past_key_values"] = cache
        if "attention_mask" in self._takes:
            options["attention_mask"] = mask
        if "position_ids" in self._takes:
            options["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        self.work[self.part] += ids.numel() * (len(self.blocks) - self._skipped)
        if not head:
            state: torch.Tensor = self.model.base_model(ids, **options)[0][:, -1]
            return state
        if "logits_to_keep" in self._takes:
            options["logits_to_keep"] = 1
        logits: torch.Tensor = self.model(ids, **options).logits[:, -1]
        return logits.float()

    @contextmanager
    def hooked(self, looks: Mapping[int, Look], *, before: bool = False) -> Iterator[None]:
        """Lets functions see, and replace, the outputs of blocks while this lasts; with `before` they replace the inputs."""

        def after_block(look: Look) -> Callable[..., Any]:
            def hook(_module: Any, _args: Any, output: Any) -> Any:
                new = look(output[0] if isinstance(output, tuple) else output)
                return new if new is None or not isinstance(output, tuple) else (new, *output[1:])

            return hook

        def before_block(look: Look) -> Callable[..., Any]:
            def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
                if args:
                    return (look(args[0]), *args[1:]), kwargs
                return args, {**kwargs, "hidden_states": look(kwargs["hidden_states"])}

            return hook

        hooks = [
            self.blocks[at].register_forward_pre_hook(before_block(look), with_kwargs=True)
            if before
            else self.blocks[at].register_forward_hook(after_block(look))
            for at, look in looks.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def skipping(self, blocks: slice, state: torch.Tensor | None = None) -> Iterator[None]:
        """Some blocks do not run while this lasts; each puts out `state` [B, T, D], or without one what it is given."""

        def put_out(*args: Any, **kwargs: Any) -> Any:
            given = args[0] if args else kwargs["hidden_states"]
            output = given if state is None else state
            return (output, *[None] * self._others) if self._others else output

        skipped = self.blocks[blocks]
        held = [block.forward for block in skipped]
        for block in skipped:
            block.forward = put_out
        self._skipped = len(skipped)
        try:
            yield
        finally:
            for block, forward in zip(skipped, held, strict=True):
                block.forward = forward
            self._skipped = 0

    @torch.inference_mode()
    def _check(self) -> None:
        outputs: dict[int, Any] = {}
        hooks = [
            block.register_forward_hook(lambda _module, _args, output, at=at: outputs.update({at: output}))
            for at, block in enumerate(self.blocks)
        ]
        ids = torch.tensor([[0, 1]], device=self.model.device)
        with quiet():  # some models warn of a mask that is missing, others of one that is there
            states = self.model(ids, use_cache=False, output_hidden_states=True).hidden_states
        for hook in hooks:
            hook.remove()
        for at in range(len(self.blocks)):
            output: Any = outputs.get(at)
            if isinstance(output, tuple):
                self._others, output = len(output) - 1, output[0]
            # The last entry usually stands behind the final norm, and some models leave out the first block's input.
            near = states[at : at + 2] if at + 1 < len(self.blocks) else [output]
            if output is None or not any(torch.allclose(output, state, 0, 0, equal_nan=True) for state in near):
                raise ModelError(
                    f"{type(self.model).__name__}: the output of block {at} is none of its hidden_states; it cannot be patched"
                )
