"""Talk to finished runs from a page or any client of OpenAI's protocol, and say what you think of their answers.

  python src/serve.py run=support/ppo [run=support/sft,support/ppo] [port=8000] [compare=10] [temperature=1] [run.root=runs]
  python src/serve.py run=support/ppo engine=http://127.0.0.1:8080/v1

run             one finished run or several, on one base in memory; the page talks to the first, clients name one as their model
compare         in one answer of so many the page shows two replies, of two of the runs or of the only one, and asks which is better; 0: never
temperature     where a request says none; 0 is greedy
max_new_tokens  tokens of a reply where a request says none; what the run was evaluated with
together        requests that are answered at the same time; more of them wait
engine          embedded, or another server of the protocol that answers in its place (llama-server, vLLM, another serve.py)

Answers `POST /v1/chat/completions`, `GET /v1/models` and `POST /v1/feedback`. The line it prints holds the address of the page, whose
token is the API key. What people said goes to runs/<recipe>/feedback.sqlite with the answer that it is of, and nothing else is kept.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf import door
from rlhf.errors import Refusal


@dataclass
class Arguments:
    run: list[str]
    port: door.Count = door.Count(8000)
    compare: door.Count = door.Count(10)
    temperature: float = 1.0
    max_new_tokens: int | None = None
    together: int = 32
    engine: str = "embedded"
    run_root: str = "runs"


def check(own: Arguments) -> None:
    """Raise a Refusal of what cannot be served, before anything is loaded."""
    recipes = {run.rpartition("/")[0] for run in own.run}
    if len(recipes) > 1 or not all(recipes):
        why = "what people say goes to the store of one recipe"
        raise Refusal("run", ",".join(own.run), why, fix="run=support/sft,support/ppo")
    if not 0 <= own.temperature <= 2:
        raise Refusal("temperature", own.temperature, "a number from 0 to 2", fix="temperature=1")
    if own.compare and not own.temperature and len(set(own.run)) == 1:
        why = "greedy replies of one run are the same, and can't be compared"
        raise Refusal("compare", own.compare, why, fix="compare=0, or temperature=1")
    if own.engine != "embedded" and not own.engine.startswith(("http://", "https://")):
        why = "neither our own nor an address"
        raise Refusal("engine", own.engine, why, fix="engine=embedded, or engine=http://127.0.0.1:8080/v1")


def main(own: Arguments) -> None:
    check(own)
    from rlhf.web import check_installed

    check_installed()
    from rlhf.process import quiet

    quiet()
    from rlhf.feedback.store import FILE, Store
    from rlhf.runs.record import finished_stage
    from rlhf.web import server
    from rlhf.web.chat import Chat
    from rlhf.web.kept import Kept

    runs, root = list(dict.fromkeys(own.run)), Path(own.run_root)
    for run in runs if own.engine == "embedded" else []:
        finished_stage(root / run, root)
    store = root / runs[0].rpartition("/")[0] / FILE
    with server.alone(store), Store(store):
        listening = server.bound(own.port)
        chat = Chat(loaded(own, runs, root), runs, Kept(store), own.compare, own.temperature)
        server.run(chat.app(), listening, "chat")


def loaded(own: Arguments, runs: list[str], root: Path) -> Any:
    """The engine, ready to answer."""
    if own.engine != "embedded":
        from rlhf.web.remote import Remote

        return Remote(own.engine, runs, own.max_new_tokens)
    from rlhf.people.collect import Speaker
    from rlhf.web.engine import Embedded

    return Embedded(Speaker.load(root, runs), own.together, own.max_new_tokens)


if __name__ == "__main__":
    door.enter(main, Arguments)
