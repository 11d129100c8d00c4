"""Rows that come and go in a batch say what each says alone, and their text is shown as far as it is settled."""

import random

import pytest
import torch

from rlhf.generation import rows
from rlhf.generation.cache import RoomyLayer
from rlhf.generation.rows import Batch, Row, Text, nucleus

LIMIT = 9


class Bytes:
    """A tokenizer whose tokens are bytes, 0 a special one."""

    def decode(self, ids, skip_special_tokens):
        assert skip_special_tokens
        return bytes(token for token in ids if token).decode(errors="replace")


def said(text, *pieces):
    """What is shown after each token."""
    return [text.add(token) for token in b"".join(pieces)]


def test_half_a_character_waits_for_its_other_half():
    text = Text(Bytes())
    assert said(text, "aü€b".encode()) == ["a", "", "ü", "", "", "€", "b"]
    assert said(text, b"\x00", "é".encode()[:1]) == ["", ""] and text.rest() == "\ufffd"


def test_a_stop_string_ends_the_text_before_it_wherever_tokens_end():
    text = Text(Bytes(), stop=("END", "\n\n"))
    assert said(text, b"an EN. E\n") == ["a", "n", " ", "", "", "EN.", " ", "", "E"] and not text.stopped
    assert said(text, b"\n") == [""] and text.stopped and text.rest() == ""
    text = Text(Bytes(), stop=("END",))
    assert "".join(said(text, b"so EN")) + text.rest() == "so EN" and not text.stopped


@pytest.fixture(scope="module")
def role(workshop):
    return workshop.roles(quantized=True).policy


@pytest.fixture
def row(workshop):
    def make(number, **settings):
        draw = random.Random(number)
        prompt = [draw.randrange(4, 96) for _ in range(draw.randrange(1, 14))]
        return Row(prompt, LIMIT - number % 4, Text(workshop.tokenizer), **settings)

    return make


def alone(role, row):
    batch = Batch(role, [row], (2,), 0)
    while not row.done:
        batch.step()
    return row.text.ids


@pytest.mark.parametrize("joins", [True, False])
@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0}, {"temperature": 0.8, "top_p": 0.6}])
def test_rows_that_come_and_go_say_what_each_says_alone(role, row, settings, joins, monkeypatch):
    if not joins:  # as with layers that slide
        monkeypatch.setattr(Batch, "joins", False)
    wanted = [alone(role, row(number, **settings, seed=number)) for number in range(24)]
    assert len({tuple(ids) for ids in wanted}) > 20
    made = [row(number, **settings, seed=number) for number in range(24)]
    waiting, batches, left = list(made), [], []
    while waiting or batches:
        new = Batch(role, [waiting.pop(0) for _ in range(min(5, len(waiting)))], (2,), 0) if waiting else None
        for batch in [*batches, *([new] if new else [])]:
            batch.step()
        if new and batches and joins:
            batches[0].join(new)
        elif new:
            batches.append(new)
        if len(left) < 3:
            left.append(batches[0].rows[0])  # somebody leaves before the end
            batches[0].keep(batches[0].rows[1:])
        batches = [batch for batch in batches if batch.rows]
        layers = [layer for batch in batches for layer in batch.cache.layers if isinstance(layer, RoomyLayer)]
        longest = max((len(one.ids) for batch in batches for one in batch.rows), default=0)
        assert not joins or all(layer.length < longest for layer in layers)  # what only others had is forgotten
    for one, ids in zip(made, wanted, strict=True):
        assert one.text.ids == (ids[: len(one.text.ids)] if one in left else ids)


@pytest.mark.parametrize("quantized", [False, True])
def test_greedy_rows_of_bf16_say_what_each_says_alone(workshop, row, quantized, monkeypatch):
    """Where rounding is coarse: without the second look at near ties neighbours change what some rows say."""
    role = workshop.roles(quantized=quantized, dtype=torch.bfloat16).policy

    def together():
        made = [row(number) for number in range(64)]
        batch = Batch(role, made, (2,), 0)
        while batch.rows:
            batch.step()
        return [one.text.ids for one in made]

    assert together() == [alone(role, row(number)) for number in range(64)]
    monkeypatch.setattr(rows, "NEAR", dict.fromkeys(rows.NEAR, 0.0))
    assert together() != [alone(role, row(number)) for number in range(64)]


def test_a_near_tie_is_decided_without_the_neighbours(role, row, monkeypatch):
    """Rounding that differs with the batch, made large enough to see: a tenth of what counts as near."""
    monkeypatch.setattr(rows, "NEAR", {torch.float32: 0.4})
    noise = torch.Generator().manual_seed(0)

    def batched(made):
        batch = Batch(role, made, (2,), 0)
        head = batch.head
        batch.head = lambda hidden: (
            head(hidden) + (len(hidden) > 1) * 0.1 * (2 * torch.rand(head(hidden).shape, generator=noise) - 1)
        )
        while batch.rows:
            batch.step()
        return [one.text.ids for one in made]

    wanted = [alone(role, row(number)) for number in range(16)]
    assert batched([row(number) for number in range(16)]) == wanted
    monkeypatch.setattr(rows, "NEAR", {torch.float32: 0.0})
    assert batched([row(number) for number in range(16)]) != wanted


def test_the_nucleus_holds_the_share_and_the_most_probable_token():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]] * 4).log()
    shares = torch.tensor([[1.0], [0.79], [0.81], [1e-9]])
    kept = (nucleus(logits, shares) > float("-inf")).sum(1)
    assert kept.tolist() == [4, 2, 3, 1]
    mixed = torch.tensor([[0.05, 0.5, 0.15, 0.3]]).log()
    assert nucleus(mixed, shares[1:2]).exp().tolist() == [pytest.approx([0, 0.5, 0, 0.3])]
