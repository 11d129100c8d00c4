"""Messages to token ids, in one place: the chat template, where a reply begins, which tokens are learned, where it ends.

PPO appends sampled tokens to the tokens of a prompt. So every method here sees `tokens(prompt) + tokens(reply)`, with the reply
ending in EOS and nothing after it: the reward model scores in PPO exactly what it was trained on.
"""

from typing import TYPE_CHECKING

from rlhf.data.contract import Dialogue, Messages
from rlhf.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Renderer:
    """Renders messages with the tokenizer's chat template, or as bare text when `plain`."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", plain: bool) -> None:
        if not plain and not tokenizer.chat_template:
            fix = "model.chat_template=chatml (or llama3, gemma, zephyr, plain, or a Jinja file)"
            what = "the tokenizer has no chat template of its own"
            raise ConfigError(f"model.chat_template=null, but {what}\n  fix: {fix}")
        self.tokenizer = tokenizer
        self.plain = plain

    def prompt(self, dialogue: Dialogue) -> list[int]:
        """Ids up to where the reply begins, generation prompt included."""
        return self._ids(self._text(dialogue.messages, reply_follows=True))

    def encode(self, dialogue: Dialogue) -> tuple[list[int], list[int]]:
        """Ids of a dialogue and a mask that is 1 on what is learned: the assistant's words and the EOS after them."""
        messages = dialogue.messages
        ids: list[int] = []
        mask: list[int] = []
        for turn, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before, through = self._text(messages[:turn], reply_follows=True), self._text(messages[: turn + 1])
            if not through.startswith(before):
                what = "renders earlier turns differently when the dialogue grows, so a mask can't be drawn"
                fix = "model.chat_template=chatml (or another file of conf/chat_template/)"
                raise ConfigError(f"model.chat_template {what}\n  fix: {fix}")
            prefix, whole = self._ids(before), self._ids(through)
            if whole[: len(prefix)] != prefix:  # a token would span the border: split there instead
                whole = prefix + self._ids(through[len(before) :], first=False)
            if prefix[: len(ids)] != ids:  # likewise at the end of the turn before
                shift = len(whole) - len(prefix)
                reply = whole[-shift:] if shift else []
                prefix = ids + self._ids(before[len(self._text(messages[: turn - 1])) :], first=False)
                whole = prefix + reply
            reply = whole[len(prefix) :]
            end = self._end(reply)
            mask += [0] * (len(prefix) - len(ids)) + [1] * len(reply[:end])
            ids = prefix + reply[:end]
            if end == len(reply) and (not reply or reply[-1] != self.tokenizer.eos_token_id):
                ids, mask = [*ids, self._eos()], [*mask, 1]
            if turn + 1 < len(messages):  # what the template puts between turns belongs to the next prompt
                tail = reply[end:]
                ids, mask = ids + tail, mask + [0] * len(tail)
        return ids, mask

    def reply(self, prompt: Dialogue, completion: Messages) -> tuple[list[int], list[int]]:
        """Ids of a prompt and of one reply to it; together they are what `encode` gives for the dialogue."""
        prefix = self.prompt(prompt)
        ids, _ = self.encode(prompt.then(completion))
        return prefix, ids[len(prefix) :]

    def show(self, ids: list[int], mask: list[int]) -> str:
        """One row as text, with what is learned between »guillemets«."""
        text, learned = "", False
        for token, bit in [*zip(ids, mask, strict=True), (None, 0)]:
            if bool(bit) != learned:
                text, learned = text + ("«" if learned else "»"), bool(bit)
            if token is not None:
                text += str(self.tokenizer.decode([token]))
        return text

    def _text(self, messages: Messages, reply_follows: bool = False) -> str:
        if not messages:
            return ""
        if self.plain:
            return "".join(message["content"] for message in messages)
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=reply_follows))

    def _ids(self, text: str, first: bool = True) -> list[int]:
        # a template writes BOS itself; bare text gets the tokenizer's
        return list(self.tokenizer(text, add_special_tokens=self.plain and first)["input_ids"])

    def _eos(self) -> int:
        eos = self.tokenizer.eos_token_id
        assert isinstance(eos, int)
        return eos

    def _end(self, reply: list[int]) -> int:
        """Length of a reply up to and including its last EOS; templates add a newline after it that nobody generates."""
        eos = self._eos()
        return len(reply) - reply[::-1].index(eos) if eos in reply else len(reply)
