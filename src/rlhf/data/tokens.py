"""Messages to token ids, in one place: the chat template, where a reply begins, which tokens are learned, where it ends.

PPO appends sampled tokens to the tokens of a prompt. So every method here sees `tokens(prompt) + tokens(reply)`, with the reply
ending in EOS and nothing after it: the reward model scores in PPO exactly what it was trained on. What is learned is the words of
the row: a template that leaves some out, or that writes a dialogue otherwise than its prompt, makes a bad row or is refused.
"""

import hashlib
import inspect
import json
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, chain, groupby, pairwise
from os.path import commonprefix
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import TemplateSyntaxError

from rlhf.data.contract import BadRow, Dialogue, Messages
from rlhf.errors import Refusal
from rlhf.shell import setting

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SECONDS = 10  # that a template may take for one dialogue
NAMED = "model.chat_template=chatml (or llama3, gemma, zephyr, plain, or a Jinja file)"
THINKING = re.compile(r"</?think>")
UNSAID = re.compile(r"\s*(<think>.*)?", re.DOTALL)  # what may stand between a header and the words
LITERAL = re.compile("\ufdd0(.*?)\ufdd1", re.DOTALL)  # two code points that Unicode keeps out of every text
ASKED = {"role": "user", "content": "Where does the ferry leave?"}
SAID = {"role": "assistant", "content": "At pier seven, behind the harbour office."}
THOUGHT = {**SAID, "reasoning_content": "The bridge is closed, so it is the other harbour."}


class Border(NamedTuple):
    """A place in a text that no token may span; where it is `exact`, what stands before it has the ids it has alone."""

    place: int
    exact: bool = False


@dataclass
class Reply:
    """Where one assistant turn stands in a rendered text, in characters; `closed` says whether an end token stands at `end`."""

    turn: int
    start: int
    end: int
    closed: bool


class Renderer:
    """Renders dialogues with the tokenizer's chat template, or as bare text when `plain`.

    What a row can't be rendered with is a BadRow. Control tokens in what others wrote are read as text; in a reply that is
    learned they are a BadRow, for there they would teach to write markup, or to end twice.

    Raises:
        Refusal: there is no template; it fails on the plainest dialogue, leaves words out or rewrites it; it ends a turn with
            another token than EOS.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", plain: bool) -> None:
        self.tokenizer = tokenizer
        self.plain = plain
        self.header, self.ends, self.steady = "", {}, False
        self._fast: Any = tokenizer.backend_tokenizer if tokenizer.is_fast else None
        self._joins = tokenizer.decode(self._encode(["a"])[0] * 2) == "aa"  # false where each text begins with a space
        added = tokenizer.added_tokens_decoder
        self._special = {number for number, token in added.items() if token.special}
        if plain:
            bare, whole = self._encode(["a"])[0], list(tokenizer("a")["input_ids"])
            places = [i for i in range(len(whole)) if whole[i : i + len(bare)] == bare]
            self._lead = whole[: places[0]] if places else []
            return
        self._lead = []  # a template writes BOS itself
        if not tokenizer.chat_template:
            raise Refusal("model.chat_template", "null", "the tokenizer has no chat template of its own", fix=NAMED)
        self._learn_template()
        control = {token.content for token in added.values() if token.special and token.content.strip()} | set(
            self.ends
        )
        longest_first = sorted(map(re.escape, control), key=len, reverse=True)
        self._control = re.compile("|".join(longest_first) or "(?!)")

    def identity(self) -> str:
        """Changes when the ids of some dialogue would: with the tokenizer, the template, and the day where a template writes it."""
        words = json.dumps(self.tokenizer.get_vocab(), sort_keys=True) if self._fast is None else self._fast.to_str()
        said = "" if self.plain else self._text(Dialogue([ASKED, SAID]), [ASKED, SAID])
        named = [
            self.tokenizer.chat_template,
            self.tokenizer.eos_token,
            self.tokenizer.bos_token,
            self.plain,
            self._lead,
            said,
        ]
        return hashlib.sha256(f"{words}{named}".encode()).hexdigest()

    def prompt(self, dialogue: Dialogue) -> list[int]:
        """Ids up to where the reply begins, generation prompt included."""
        given = self._given(dialogue)
        with _deadline():
            text = self._text(given, given.messages, reply_follows=True)
            replies = self._replies(given, text, learned=set())
        return self._lead + self._tokens(text, _borders(replies))[0]

    def encode(self, dialogue: Dialogue) -> tuple[list[int], list[int]]:
        """Ids of a dialogue and a mask that is 1 on what is learned: the assistant's words and the end token after them."""
        turns = [turn for turn, message in enumerate(dialogue.messages) if message["role"] == "assistant"]
        learned = {turn for turn in turns if dialogue.messages[turn].get("learn", True)}
        ids, mask, _ = self._whole(dialogue, learned, turns[-1])
        return ids, mask

    def reply(self, prompt: Dialogue, completion: Messages) -> tuple[list[int], list[int], list[int]]:
        """Ids of a prompt and of one reply to it, which together are what `encode` gives for the dialogue, and the mask of the
        reply: 0 on the turns inside it that are not the assistant's."""
        dialogue, first = prompt.then(completion), len(prompt.messages)
        turns = [
            turn for turn in range(first, len(dialogue.messages)) if dialogue.messages[turn]["role"] == "assistant"
        ]
        ids, mask, start = self._whole(dialogue, set(turns), turns[0])
        return ids[:start], ids[start:], mask[start:]

    def show(self, ids: list[int], mask: list[int]) -> str:
        """One row as text, with what is learned between »guillemets«."""
        pieces = groupby(zip(ids, mask, strict=True), key=lambda pair: pair[1])
        texts = ((str(self.tokenizer.decode([token for token, _ in run])), bit) for bit, run in pieces)
        return "".join(f"»{text}«" if bit else text for text, bit in texts)

    def _whole(self, dialogue: Dialogue, learned: set[int], asked: int) -> tuple[list[int], list[int], int]:
        """Ids and mask of a dialogue, and where the reply of turn `asked` begins: there the prompt has the ids it has in PPO."""
        for turn in learned:
            if not self.plain and (found := self._control.search(_all_words(dialogue.messages[turn]))):
                what = f"turn {turn + 1}, which is learned, holds the control token {found[0]}"
                raise BadRow("control token in the reply", f"{what}: the template writes its own, so take it out")
        given = self._given(dialogue)
        with _deadline():
            text = self._text(given, given.messages)
            replies = self._replies(given, text, learned, asked)
        last = replies[-1] if replies and replies[-1].turn == len(dialogue.messages) - 1 else None
        if last and not last.closed:
            text = text[
                : last.end
            ]  # what a template without an end token writes after the last words: nobody generates it
        ids, places = self._tokens(text, _borders(replies))
        ids, eos, mask, start = self._lead + ids, self.tokenizer.eos_token_id, [0] * (len(self._lead) + len(ids)), 0
        for number, reply in enumerate(replies):
            begin = len(self._lead) + places[2 * number]
            end = len(self._lead) + places[2 * number + 1] + reply.closed
            if reply.turn == asked:
                start = begin
            if reply.turn in learned:
                mask[begin:end] = [1] * (end - begin)
            if reply is last:
                ids, mask = ids[:end], mask[:end]
                if ids[-1:] != [eos] or end == begin:
                    if reply.closed:
                        token, is_eos = self.tokenizer.decode([ids[-1]]), self.tokenizer.eos_token
                        raise BadRow(
                            "the reply does not end in EOS", f"the template ends it with {token}, EOS is {is_eos}"
                        )
                    ids, mask = [*ids, eos], [*mask, int(reply.turn in learned)]
        return ids, mask, start

    # -- the template

    def _learn_template(self) -> None:
        """Learn from the plainest dialogues what the template writes before a reply and after it, and refuse what can't work."""
        self._control = re.compile("(?!)")
        try:
            with _deadline():
                text, asked, bare = (
                    self._text(Dialogue(turns), turns, reply_follows)
                    for turns, reply_follows in (([ASKED, SAID], False), ([ASKED], True), ([ASKED], False))
                )
            self._after(ASKED, bare, 0, 0)
            self._after(SAID, text, 0, 1)
            after_user = bare.rpartition(ASKED["content"])[2]
            self._learn_ends(text.rpartition(SAID["content"])[2], after_user)
            written = asked[len(bare) :] if asked.startswith(bare) else asked.rpartition(ASKED["content"])[2]
            for token in self.ends if not asked.startswith(bare) else ():
                written = written.removeprefix(token).lstrip()
            self.header = THINKING.split(written or asked.rpartition(ASKED["content"])[2])[0]
            try:
                self.encode(Dialogue([ASKED, SAID]))
            except BadRow:
                self.encode(Dialogue([ASKED, THOUGHT]))  # which some templates write a dialogue without in another way
        except BadRow as bad:
            value = self.tokenizer.name_or_path or "the tokenizer's"
            raise Refusal("model.chat_template", value, f"fails on the plainest dialogue: {bad}", fix=NAMED) from bad
        talk, turns = Dialogue([ASKED, SAID] * 3), {1, 3, 5}
        with suppress(BadRow):  # rows with more turns will say why
            exact = self._replies(talk, self._text(talk, talk.messages), turns, 5)
            self.steady = True
            self.steady = exact == self._replies(talk, self._text(talk, talk.messages), turns, 5)

    def _learn_ends(self, after: str, after_user: str) -> None:
        """Learn the tokens that end a turn: what follows the last words of a dialogue, and what follows a user's."""
        added = {token.content: number for number, token in self.tokenizer.added_tokens_decoder.items()}
        eos = str(self.tokenizer.eos_token)
        known = re.compile("|".join(re.escape(t) for t in sorted(added, key=len, reverse=True) if t.strip()) or "(?!)")
        first, users = known.search(after), known.search(after_user)
        if first and first[0] != eos:
            talk = [ASKED, SAID, {**ASKED, "content": "And when?"}]
            between = self._text(Dialogue(talk), talk).rpartition(SAID["content"])[2].rpartition("And when?")[0]
            if eos not in after or eos not in between:  # Command R7B closes the words first, then the turn
                why = f"the template ends a reply with {first[0]}, so replies would never learn to end"
                raise Refusal("model.eos_token", eos, why, fix=setting("model.eos_token", first[0]))
        tokens = (eos, users[0] if users else eos) if first else ()
        self.ends = {token: added[token] for token in tokens}

    def _given(self, dialogue: Dialogue) -> Dialogue:
        """What the template gets: without our own keys, and with control tokens in the words marked as text."""
        if self.plain:
            return dialogue
        for name in dialogue.options:
            if name in _call_names() or name not in str(self.tokenizer.chat_template):
                raise BadRow("unknown template option", f"{name} is nothing that the chat template reads")
        messages = [{k: v for k, v in m.items() if k != "learn"} if "learn" in m else m for m in dialogue.messages]
        if not self._control.search(
            "\0".join([*map(_all_words, messages), str(dialogue.tools), str(dialogue.options)])
        ):
            return Dialogue(messages, dialogue.tools, dialogue.options)
        if not (self._fast and self._joins):
            raise BadRow("control token in the text", "this tokenizer can't read a control token as text")
        messages = [{k: v if k == "role" else self._marked(v) for k, v in message.items()} for message in messages]
        return Dialogue(messages, self._marked(dialogue.tools), self._marked(dialogue.options))

    def _marked(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._control.sub("\ufdd0\\g<0>\ufdd1", value.replace("\ufdd0", "").replace("\ufdd1", ""))
        if isinstance(value, dict):
            return {key: self._marked(item) for key, item in value.items()}
        return [self._marked(item) for item in value] if isinstance(value, list) else value

    def _text(self, dialogue: Dialogue, messages: Messages, reply_follows: bool = False) -> str:
        if self.plain:
            return "".join(message["content"] for message in messages)
        if not messages:
            return ""

        def apply(turns: Messages) -> str:
            given = {"tools": dialogue.tools, "tokenize": False, "add_generation_prompt": reply_follows}
            return str(self.tokenizer.apply_chat_template(turns, **given, **dialogue.options))

        try:
            try:
                return apply(messages)
            except TypeError:  # templates like DeepSeek's join arguments to a text, where others want an object
                if not any("tool_calls" in message for message in messages):
                    raise
                return apply([_arguments_as_text(message) for message in messages])
        except Exception as error:  # a template is a program that somebody else wrote
            line = f", line {error.lineno}" if isinstance(error, TemplateSyntaxError) else ""
            why = f"{type(error).__name__}{line}: {' '.join(str(error).split())[:300]}"
            raise BadRow("the chat template fails", f"the chat template fails on it: {why}") from error

    # -- where the replies are

    def _replies(self, dialogue: Dialogue, text: str, learned: set[int], asked: int | None = None) -> list[Reply]:
        """Each assistant turn's place in the text, after checking that every turn's words are there.

        The turn `asked` begins where its prompt ends, to the character; so does any other unless the template writes earlier
        turns in another way than the last: those begin after the same header.
        """
        messages, replies, cursor = dialogue.messages, [], 0
        if self.plain:
            for turn, message in enumerate(messages):
                start, cursor = cursor, cursor + len(message["content"])
                if message["role"] == "assistant":
                    replies.append(Reply(turn, start, cursor, closed=False))
            return replies
        for tool in dialogue.tools or ():
            name = str(tool.get("function", tool).get("name", ""))
            if name not in text:
                raise BadRow("the template leaves out tools", f"the chat template leaves out the tool {name}")
        for turn, message in enumerate(messages):
            if message["role"] != "assistant":
                end = self._after(message, text, cursor, turn)
                if message["role"] != "system" or self._first(messages, turn + 1, text, end) >= 0:
                    cursor = end
                continue
            start, own = self._start(dialogue, text, turn, cursor, turn == asked), turn in learned or turn == asked
            if start is None and own:
                raise BadRow(*_rewritten(turn))
            cursor = self._after(message, text, cursor if start is None else start, turn, own)
            if start is not None:
                cursor, closed = self._end(dialogue, text, turn, cursor)
                replies.append(Reply(turn, start, cursor, closed))
        return replies

    def _first(self, messages: Messages, turn: int, text: str, cursor: int) -> int:
        """Where the first words of a turn stand after `cursor`; there if it has none, -1 if they are not there."""
        forms = next(_words(messages[turn]), None) if turn < len(messages) else None
        return min((p for form in forms[:-1] if (p := text.find(form, cursor)) >= 0), default=-1) if forms else cursor

    def _end(self, dialogue: Dialogue, text: str, turn: int, words: int) -> tuple[int, bool]:
        """Where the end token after the words of a reply stands; without one, where the turn ends in a rendering by itself."""
        messages = dialogue.messages
        found = min((place for token in self.ends if (place := text.find(token, words)) >= 0), default=-1)
        if turn + 1 == len(messages):
            return (found, True) if found >= 0 else (len(text.rstrip()), False)
        following = next(_words(messages[turn + 1]), None)
        others = [self.header, *(following[:-1] if following else ())]
        if found >= 0 and not any(other in text[words:found] for other in others):
            return found, True
        own = self._text(dialogue, messages[: turn + 1])
        own = (own if text.startswith(own) else commonprefix([own, text])).rstrip()
        found = min((place for token in self.ends if (place := own.find(token, words)) >= 0), default=-1)
        return (found, True) if found >= 0 else (max(len(own), words), False)

    def _start(self, dialogue: Dialogue, text: str, turn: int, cursor: int, asked: bool) -> int | None:
        """Where the reply of a turn begins, or None if that can't be known."""
        messages = dialogue.messages
        place = text.find(self.header, cursor) if self.header else -1
        simple = self.steady and not dialogue.options and (not turn or messages[turn - 1]["role"] == "user")
        if simple and not asked and place >= 0:
            return place + len(self.header)
        if turn:
            before = self._text(dialogue, messages[:turn], reply_follows=True)
            if text.startswith(before):
                return len(before)
            if asked:
                same = len(commonprefix([before, text]))
                what = f"turn {turn + 1} follows {before[same:][:40]!r} in its prompt, where the dialogue has {text[same:][:40]!r}"
                if "think" in before[same - 9 :]:
                    what += (
                        "; its prompts open a thinking block: give it reasoning, or a template option that takes none"
                    )
                raise BadRow(_rewritten(turn)[0], f"{_rewritten(turn)[1]}: {what}")
        place += len(self.header)
        words = self._first(messages, turn, text, place)
        return place if place >= len(self.header) and UNSAID.fullmatch(text[place:words]) and words >= 0 else None

    def _after(self, message: dict[str, Any], text: str, cursor: int, turn: int, own: bool = False) -> int:
        """Where the words of a turn end, which stand after `cursor`; for an `own` reply with no other turn's end before them."""
        end = cursor
        for number, (*forms, what) in enumerate(_words(message)):
            form = next((form for form in forms if text.find(form, cursor) >= 0), None)
            place = -1 if form is None else text.find(form, cursor)
            if own and not number and any(mark and mark in text[cursor:place] for mark in (*self.ends, self.header)):
                form = None
            if form is None and message["role"] == "system" and any(form in text for form in forms):
                continue  # some templates write it elsewhere
            if form is None and what == "reasoning" and message["role"] == "assistant" and not own:
                continue  # as many do with what was thought in earlier turns
            if form is None:
                hint = ": take another, or learn no turn of which it does" if what == "reasoning" else ""
                what = f"the chat template leaves out the {what} of turn {turn + 1}{hint}"
                raise BadRow("the template leaves out words", what)
            end = max(end, place + len(form))
            cursor = end if what in ("words", "reasoning") else cursor
        return end

    # -- tokens

    def _encode(self, texts: list[str], literal: bool = False) -> list[list[int]]:
        """Ids of each text; with `literal` a control token is read as the characters it is written with."""
        if not self._fast:
            return [list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
        return [found.ids for found in self._backend(literal).encode_batch_fast(texts, add_special_tokens=False)]

    def _backend(self, literal: bool = False) -> Any:
        self._fast.no_truncation()  # other users of the tokenizer leave their settings in it
        self._fast.no_padding()
        self._fast.encode_special_tokens = literal
        return self._fast

    def _tokens(self, text: str, borders: list[Border]) -> tuple[list[int], list[int]]:
        """Ids of a text, with control tokens that are marked as literal read as text, and the index of each border."""
        ids: list[int] = []
        places: list[int] = []
        begin = 0
        for piece, literal in _pieces(text):
            inside = [Border(b.place - begin, b.exact) for b in borders[len(places) :] if b.place <= begin + len(piece)]
            if literal:
                found = self._encode([piece[1:-1]], literal=True)[0]
                if self._special.intersection(found):
                    raise BadRow("control token in the text", f"the tokenizer can't read {piece[1:-1]} as text")
                inside = []
            else:
                found, there = self._exactly(piece, inside)
                places += [len(ids) + place for place in there]
            ids += found
            begin += len(piece)
        return ids, places

    def _exactly(self, text: str, borders: list[Border]) -> tuple[list[int], list[int]]:
        """Ids of a text and the index of each border: tokenized piece by piece, or where a tokenizer begins each piece with a
        space, as one text that is cut only where a token would span a border."""
        if self._joins or not self._fast:
            cuts = [0, *(border.place for border in borders), len(text)]
            pieces = self._encode([text[begin:end] for begin, end in pairwise(cuts)])
            return [*chain(*pieces)], [*accumulate(map(len, pieces[:-1]))]
        ids: list[int] = []
        places: list[int] = []
        begin = 0
        while True:
            rest = text[begin:]
            encoding = self._backend().encode(rest, add_special_tokens=False)
            for place, exact in borders[len(places) :]:
                if (index := self._index(encoding, rest, Border(place - begin, exact))) is None:
                    break
                places.append(len(ids) + index)
            else:
                return ids + encoding.ids, places
            cut = borders[len(places)].place
            ids += self._encode([text[begin:cut]])[0]
            begin = cut

    def _index(self, encoding: Any, text: str, border: Border) -> int | None:
        """The token that begins at a border, or None if none does, or if the ids before an exact one depend on what follows."""
        ids = encoding.ids
        if border.place in (0, len(text)):
            return len(ids) if border.place else 0
        index = encoding.char_to_token(border.place)
        if index is None or encoding.token_to_chars(index)[0] != border.place:
            return None
        if not border.exact:
            return index
        last = index - 1  # a control token divides a text for good, so it is enough to look back to the last one
        while last >= 0 and ids[last] not in self._special:
            last -= 1
        begin = encoding.token_to_chars(last)[0] if last >= 0 else 0
        return index if self._encode([text[begin : border.place]])[0] == ids[max(last, 0) : index] else None


def _borders(replies: list[Reply]) -> list[Border]:
    return [border for reply in replies for border in (Border(reply.start, exact=True), Border(reply.end))]


def _pieces(text: str) -> Iterator[tuple[str, bool]]:
    """The text, and the marked control tokens in it with their marks."""
    begin = 0
    for found in LITERAL.finditer(text) if "\ufdd0" in text else ():
        yield text[begin : found.start()], False
        yield found[0], True
        begin = found.end()
    yield text[begin:], False


def _rewritten(turn: int) -> tuple[str, str]:
    return (
        "the template rewrites the dialogue",
        f"the chat template renders earlier turns differently before turn {turn + 1}",
    )


def _words(message: dict[str, Any]) -> Iterator[list[str]]:
    """What of a turn must be in the rendered text: for each piece the forms it may take, and what it is."""
    if reasoning := str(message.get("reasoning_content") or "").strip():
        yield [reasoning, "reasoning"]
    content = str(message["content"])
    parts = THINKING.split(content) if message["role"] == "assistant" else [content]
    for number, part in enumerate(parts, 1):
        if part.strip():
            forms = [part.strip()]
            if message["role"] == "tool":
                forms += [json.dumps(forms[0], ensure_ascii=False)[1:-1]]
            if message["role"] == "system":  # SmolLM3 and others take their switches out of it
                forms += [re.sub(r"/(no_)?think", "", part).strip()]
            yield [*forms, "words" if number == len(parts) else "reasoning"]
    for call in message.get("tool_calls") or ():
        function = call.get("function", call)
        yield [str(function["name"]), "tool call"]
        for leaf in _leaves(function.get("arguments")):
            plain = leaf if isinstance(leaf, str) else json.dumps(leaf)
            quoted = [json.dumps(leaf, ensure_ascii=how).strip('"') for how in (False, True)]
            yield [plain, *quoted, str(leaf), repr(leaf).strip("'\""), "arguments of the tool call"]


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield str(key)
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _all_words(message: dict[str, Any]) -> str:
    rest = [str(value) for key, value in message.items() if key not in ("role", "content", "learn")]
    return "\0".join([str(message["content"]), *rest])


def _arguments_as_text(message: dict[str, Any]) -> dict[str, Any]:
    calls = []
    for call in message.get("tool_calls") or ():
        arguments = json.dumps(call["function"]["arguments"], ensure_ascii=False)
        calls.append({**call, "function": {**call["function"], "arguments": arguments}})
    return {**message, "tool_calls": calls} if calls else message


@lru_cache
def _call_names() -> frozenset[str]:
    """What `apply_chat_template` takes itself and no row may set."""
    from transformers import PreTrainedTokenizerBase

    return frozenset(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters) - {"documents"}


@contextmanager
def _deadline() -> Iterator[None]:
    """Makes a template that never ends fail after `SECONDS`; only a process's main thread can be interrupted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise TimeoutError(f"it was not done after {SECONDS} seconds")

    former = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
