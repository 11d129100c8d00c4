"""Rows that are decoded together while they come and go: each is answered token by token, as it would be alone."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf.generation.cache import RoomyLayer, cache_argument, decoding_cache
from rlhf.generation.sampling import choose, left_pad, stream
from rlhf.models.roles import Role

ROOM = 64  # tokens for which a cache has room before it grows
NEAR = {
    torch.float32: 1e-3,
    torch.bfloat16: 0.5,
}  # two best logits this close may change places when the neighbours of a row do


class Text:
    """The text of a reply as it grows; what may turn out to be half a character, or the start of a string that stops it, waits."""

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self.tokenizer, self.stop, self.stopped = tokenizer, tuple(stop), False
        self.ids: list[int] = []
        self._start = self._read = (
            0  # tokens before `_read` were shown; decoding begins some before, for the space between two
        )
        self._held = ""

    def add(self, token: int) -> str:
        """The piece that can be shown now; `stopped` is set where a stop string ends it, which is not in the text."""
        self.ids.append(token)
        new = self._new()
        if not new or new.endswith("\ufffd"):
            return ""
        self._start, self._read = self._read, len(self.ids)
        text, self._held = self._held + new, ""
        places = [place for word in self.stop if (place := text.find(word)) >= 0]
        if places:
            self.stopped = True
            return text[: min(places)]
        starts = [n for word in self.stop for n in range(1, len(word)) if text.endswith(word[:n])]
        cut = len(text) - max(starts, default=0)
        self._held = text[cut:]
        return text[:cut]

    def rest(self) -> str:
        """What still waits when nothing more comes."""
        return "" if self.stopped else self._held + self._new()

    def _new(self) -> str:
        known, whole = (
            self.tokenizer.decode(ids, skip_special_tokens=True)
            for ids in (self.ids[self._start : self._read], self.ids[self._start :])
        )
        return whole[len(known) :]


class Row:
    """A prompt that is being answered with at most `limit` tokens, drawn at `temperature` (0: greedy) from the most probable ones that
    hold `top_p` of the probability together. The random numbers follow from its seed alone.

    `piece` is what the last token added to the text; `done` is why nothing more comes: "stop" or "length".
    """

    def __init__(
        self, prompt: list[int], limit: int, text: Text, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0
    ) -> None:
        self.prompt, self.limit, self.text, self.temperature, self.top_p = prompt, limit, text, temperature, top_p
        self.uniforms = torch.rand(limit, generator=stream(seed, "answer", 0), dtype=torch.float64)
        self.piece, self.done = "", ""

    @property
    def ids(self) -> list[int]:
        return self.prompt + self.text.ids

    def take(self, token: int, ends: Sequence[int]) -> None:
        self.piece = "" if token in ends else self.text.add(token)
        if token in ends or self.text.stopped:
            self.done = "stop"
        elif len(self.text.ids) == self.limit:
            self.done = "length"
        if self.done:
            self.piece += self.text.rest()


class Batch:
    """Rows of one role that are at the same step: `step` writes a token in each, `keep` lets rows go, `join` takes others in.

    Greedy tokens are those of each row alone: where rounding could let its neighbours decide, it is computed once more without them.
    """

    def __init__(self, role: Role, rows: Sequence[Row], ends: Sequence[int], pad_id: int) -> None:
        self.role, self.rows, self.ends = role, list(rows), ends
        self.ids, self.mask = left_pad([row.ids for row in rows], role.filler(pad_id), role.device)
        self.positions = (self.mask.cumsum(1) - 1).clamp(min=0)
        self.padded = bool((self.mask == 0).any())  # without padding the attention needs no mask, and is faster
        self.cache = decoding_cache(role.model.config, ROOM)
        self.head = role.logits_of(1.0, (pad_id,))
        layers = [getattr(module, "compute_dtype", None) for module in role.backbone.modules()]  # of those in 4 bit
        self.near = max(NEAR.get(dtype, max(NEAR.values())) for dtype in {role.model.dtype, *layers} - {None})

    @property
    def joins(self) -> bool:
        """Whether its cache can take other rows in: one of layers that slide or recur can't."""
        return all(type(layer) is RoomyLayer for layer in self.cache.layers)

    @torch.no_grad()
    def step(self) -> list[Row]:
        """The rows that it had, each with another token; those that are done have left. The first step reads the prompts."""
        with self.role.active():
            output = self.role.backbone(
                input_ids=self.ids,
                attention_mask=self.mask if self.padded else None,
                position_ids=self.positions,
                use_cache=True,
                **{cache_argument(self.role.backbone): self.cache},
            )
            tokens = self._tokens(self.head(output.last_hidden_state[:, -1]))
        rows = self.rows
        for row, token in zip(rows, tokens.tolist(), strict=True):
            row.take(token, self.ends)
        self.ids, self.positions = tokens.unsqueeze(-1), self.positions[:, -1:] + 1
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(rows), 1)], dim=1)
        self.keep([row for row in rows if not row.done])
        return rows

    def keep(self, rows: Sequence[Row]) -> None:
        """Lets all other rows go, and the columns that only they had."""
        index = [place for place, row in enumerate(self.rows) if row in rows]
        if len(index) == len(self.rows):
            return
        self.rows = [self.rows[place] for place in index]
        if not index:
            return
        kept, read = torch.tensor(index, device=self.ids.device), self.cache.get_seq_length() > 0
        if read:
            self.cache.batch_select_indices(kept)
        self.ids, self.mask, self.positions = self.ids[kept], self.mask[kept], self.positions[kept]
        if read and self.joins and (lead := int(self.mask.argmax(1).min())):
            self.mask = self.mask[:, lead:]
            for layer in self.cache.layers:
                layer.trim(lead)
        self.padded = bool((self.mask == 0).any())

    def join(self, other: "Batch") -> None:
        """Takes in the rows of a batch of the same role, after the first step of both."""
        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            mine.join(theirs)
        width = max(self.mask.shape[1], other.mask.shape[1])
        masks = [torch.nn.functional.pad(one.mask, (width - one.mask.shape[1], 0)) for one in (self, other)]
        self.mask, self.ids = torch.cat(masks), torch.cat([self.ids, other.ids])
        self.positions, self.rows = torch.cat([self.positions, other.positions]), self.rows + other.rows
        self.padded = bool((self.mask == 0).any())

    def _tokens(self, logits: Tensor) -> Tensor:
        """The next token of each row: `[B, V]` fp32 logits -> `[B]`."""
        best, places = logits.topk(2)
        tokens = places[:, 0].clone()
        near = best[:, 0] - best[:, 1] < self.near
        for place, close in enumerate(near.tolist()):
            if close and not self.rows[place].temperature:
                ids = torch.tensor([self.rows[place].ids], device=logits.device)
                tokens[place] = self.head(self.role.hidden(ids)[:, -1]).argmax()
        if drawn := [place for place, row in enumerate(self.rows) if row.temperature]:
            rows = [self.rows[place] for place in drawn]
            heats, shares = (
                logits.new_tensor([getattr(row, name) for row in rows]).unsqueeze(1)
                for name in ("temperature", "top_p")
            )
            uniforms = torch.stack([row.uniforms[len(row.text.ids)] for row in rows]).to(logits.device)
            tokens[drawn] = choose(nucleus(logits[drawn] / heats, shares), uniforms)[0]
        return tokens


def nucleus(logits: Tensor, shares: Tensor) -> Tensor:
    """`[B, V]` logits with only the most probable tokens that together hold the share (Holtzman et al. 2020), of `[B, 1]`, 1 for all."""
    if bool((shares >= 1).all()):
        return logits
    ordered, places = logits.softmax(-1).sort(-1, descending=True)
    out = (ordered.cumsum(-1) - ordered >= shares) & (
        shares < 1
    )  # the most probable one has nothing before it: it stays
    return logits.masked_fill(out.gather(-1, places.argsort(-1)), float("-inf"))
