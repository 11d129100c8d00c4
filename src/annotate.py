"""People rank the replies of a store: a page on this machine, or the terminal.

  python src/annotate.py recipe=support [port=8710] [shared=0.2] [rules=rules.txt] [annotator=ann] [run.root=runs]
  python src/annotate.py recipe=support mode=terminal annotator=ann

page       prints an address with a token, for the browser of this machine, or of another one by `ssh -L 8710:127.0.0.1:8710`; several
           people open it and each gives a name. RLHF_TOKEN in the environment keeps the token, so that open pages outlive a restart
terminal   the same a line at a time; terminals and the page of one store may run at once
shared     the share of prompts that everybody ranks, which agreement is measured on; each other one goes to one person
rules      a text that is shown beside the replies: what your team ranks by; changes show at the next prompt

Nobody sees which run wrote a reply. What was sent is on the disk of runs/<recipe>/feedback.sqlite before the page goes on. /figures
shows agreement, as src/feedback.py tells it. Learn from it: dataset=feedback.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from rlhf import door
from rlhf.errors import Refusal


@dataclass
class Arguments:
    recipe: str
    port: door.Count = door.Count(8710)
    shared: float = 0.2
    rules: str | None = None
    mode: Literal["page", "terminal"] = "page"
    annotator: str | None = None
    run_root: str = "runs"


def check(own: Arguments) -> None:
    """Raise a Refusal of what cannot be asked."""
    if not 0 <= own.shared <= 1:
        raise Refusal("shared", own.shared, "must be a share from 0 to 1")
    if own.mode == "terminal" and own.annotator is None:
        raise Refusal("mode", own.mode, "judgements are kept under a name", fix="mode=terminal annotator=ann")


def main(own: Arguments) -> None:
    check(own)
    if own.mode == "page":
        from rlhf.web import check_installed

        check_installed()
    from rlhf.feedback.store import FILE, Store
    from rlhf.people import desk

    path = Path(own.run_root) / own.recipe / FILE
    rules = partial(desk.rules, None if own.rules is None else Path(own.rules))
    name = "" if own.annotator is None else desk.named(own.annotator)
    rules()
    Store(path, write=False).db.close()  # which has to be there
    with Store(path, patience=3) as store:
        made = desk.Desk(store, own.shared)
        if own.mode == "terminal":
            from rlhf.people.terminal import rank

            return rank(made, name, rules)
        from rlhf.web import annotate, server
        from rlhf.web.gate import application

        with server.alone(path):
            listening = server.bound(own.port)
            print(f"store    {path}: {len(store.items())} prompts, {len(store.judgements())} judgements", flush=True)
            server.run(application(annotate.routes(made, rules, name)), listening, "rank")


if __name__ == "__main__":
    door.enter(main, Arguments)
