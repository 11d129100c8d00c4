"""Requests to src/serve.py one by one and all at once, by the clock and by the processor, and whether they say the same."""

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from rlhf.config import REPO
from rlhf.errors import ConfigError
from rlhf.output.tables import grid
from rlhf.people import prompts
from rlhf.runs.record import finished_stage

TOKEN = "only-for-this-measurement"
REQUESTS = 32


def measure_serving(root: Path, run: str, repeats: int, limit: int | None = None) -> dict[str, Any]:
    """Seconds, and processor seconds of the server, that it takes to answer `REQUESTS` customers of `support` greedily, one by one and
    at once, and how many replies differ between the two; the median of `repeats` for whole answers and for streamed ones.

    Raises ConfigError where there is no such run, or the server does not start.
    """
    asked = prompts.unseen(finished_stage(root / run, root), root, 1)[:REQUESTS]
    with _server(root, run) as (process, port):
        rows = asyncio.run(_measured(process.pid, port, run, [one.messages for one in asked], repeats, limit))
    return {"run": run, "requests": len(asked), "repeats": repeats, "rows": rows}


@contextmanager
def _server(root: Path, run: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The command in a process of its own, and its port."""
    command = [sys.executable, str(REPO / "src/serve.py"), f"run={run}", f"run.root={root}", "port=0"]
    environment = os.environ | {"RLHF_TOKEN": TOKEN, "OMP_NUM_THREADS": "1"}
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, env=environment, **options) as process:
        try:
            lines = []
            for line in process.stdout or ():
                lines.append(line)
                if found := re.search(r"http://127.0.0.1:(\d+)/", line):
                    yield process, int(found[1])
                    return
            raise ConfigError("".join(lines).removeprefix("error: ").strip())
        finally:
            process.terminate()


async def _measured(
    server: int, port: int, run: str, asked: list[Any], repeats: int, limit: int | None
) -> list[dict[str, Any]]:
    from openai import AsyncOpenAI

    client: Any = AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=TOKEN)
    given = {"model": run, "temperature": 0, "max_tokens": limit}

    async def said(messages: Any, stream: bool) -> str:
        answer = await client.chat.completions.create(messages=messages, stream=stream, **given)
        if not stream:
            return answer.choices[0].message.content
        return "".join([chunk.choices[0].delta.content or "" async for chunk in answer])

    async def single(stream: bool) -> list[str]:
        return [await said(messages, stream) for messages in asked]

    async def whole(stream: bool) -> list[str]:
        return await asyncio.gather(*(said(messages, stream) for messages in asked))

    rows = []
    for stream in (False, True):
        await whole(stream)  # kernels are compiled, connections made
        row: dict[str, Any] = {"streamed": stream, "differ": 0}
        clocks: dict[str, list[tuple[float, float]]] = {"single": [], "whole": []}
        for _ in range(repeats):
            texts = []
            for name, ask in (("single", single), ("whole", whole)):
                start = time.perf_counter(), _processor(server)
                texts.append(await ask(stream))
                clocks[name].append((time.perf_counter() - start[0], _processor(server) - start[1]))
            row["differ"] = max(row["differ"], sum(a != b for a, b in zip(*texts, strict=True)))
        for place, unit in enumerate(("seconds", "processor_seconds")):
            row[unit] = [median(clock[place] for clock in clocks[name]) for name in ("single", "whole")]
        rows.append(row)
    return rows


def _processor(pid: int) -> float:
    """Seconds that a process has had of all processors."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def serving_table(report: dict[str, Any]) -> str:
    head = [
        "answers",
        "one by one, s",
        "at once, s",
        "ratio",
        "processor, s",
        "at once",
        "ratio",
        "replies that differ",
    ]
    rows = [
        [
            "streamed" if row["streamed"] else "whole",
            *(
                text
                for unit in ("seconds", "processor_seconds")
                for text in (f"{row[unit][0]:.2f}", f"{row[unit][1]:.2f}", f"{row[unit][1] / row[unit][0]:.2f}")
            ),
            str(row["differ"]),
        ]
        for row in report["rows"]
    ]
    return f"{grid([head, *rows])}\n\n{report['run']}: {report['requests']} requests, median of {report['repeats']}"
