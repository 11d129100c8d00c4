"""A key-value cache that is written in place.

`DynamicCache` concatenates, and so copies, everything it holds at every token: on the CPU that was most of the time of
decoding. A layer here has room to spare, and doubles it when it runs out.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class RoomyLayer(DynamicLayer):
    """Keys and values `[B, heads, T, size]` as views into buffers whose third dimension has room for more tokens."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room, self.length = room, 0
        self.buffers: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, self.length = self.length, self.length + key_states.shape[-2]
        if not self.buffers or self.length > self.buffers[0].shape[-2]:
            self._grow(key_states, value_states, start)
        views = []
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, start : self.length] = states
            views.append(buffer[:, :, : self.length])
        self.keys, self.values = views
        return views[0], views[1]

    def _grow(self, key_states: Tensor, value_states: Tensor, start: int) -> None:
        room = max(self.length + self.room, 2 * start)
        old, self.buffers = self.buffers, []
        for i, states in enumerate((key_states, value_states)):
            rows, heads, _, size = states.shape
            self.buffers.append(torch.empty(rows, heads, room, size, dtype=states.dtype, device=states.device))
            if start:
                self.buffers[i][:, :, :start] = old[i][:, :, :start]

    def batch_select_indices(self, indices: Tensor) -> None:
        self.buffers = [buffer[indices] for buffer in self.buffers]
        self.keys, self.values = (buffer[:, :, : self.length] for buffer in self.buffers)

    def trim(self, lead: int) -> None:
        """Forgets the first `lead` tokens of every row."""
        self.length -= lead
        self.buffers = [buffer[:, :, lead:] for buffer in self.buffers]
        self.keys, self.values = (buffer[:, :, : self.length] for buffer in self.buffers)

    def join(self, other: "RoomyLayer") -> None:
        """Takes the rows of another layer in, the shorter ones padded on the left: with zeros, since what is masked is multiplied by 0."""
        length, first = max(self.length, other.length), self.buffers[0].shape[0]
        for i, (mine, theirs) in enumerate(zip(self.buffers, other.buffers, strict=True)):
            rows, heads, _, size = theirs.shape
            whole = mine.new_zeros(first + rows, heads, length + self.room, size)
            whole[:first, :, length - self.length : length] = mine[:, :, : self.length]
            whole[first:, :, length - other.length : length] = theirs[:, :, : other.length]
            self.buffers[i] = whole
        self.length = length
        self.keys, self.values = (buffer[:, :, :length] for buffer in self.buffers)


def decoding_cache(config: Any, new_tokens: int) -> Any:
    """A cache for one chunk of prompts; layers that slide or recur keep their own kind."""
    cache: Any = DynamicCache(config=config)
    cache.layers = [RoomyLayer(new_tokens) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def cache_argument(backbone: nn.Module) -> str:
    """What its forward calls a cache: `cache` since transformers 5.24, `past_key_values` before."""
    return "cache" if "cache" in inspect.signature(backbone.forward).parameters else "past_key_values"
