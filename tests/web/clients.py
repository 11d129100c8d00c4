"""What tests ask of a server of OpenAI's protocol, and what they tell it of the answers."""

import json

import openai

from tests.web.servers import REPO, TOKEN, Server

SCRIPTED = str(REPO / "tests/web/scripted.py")


def client_of(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key=TOKEN, max_retries=0)


def asked(client, *texts, model="a/one", **more):
    messages = [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 9, texts, strict=False)]
    return client.chat.completions.create(model=model, messages=messages, **more)


def say(server, **said):
    status, _, body = server.ask("POST", "/v1/feedback", json.dumps(said).encode())
    return status, json.loads(body)


def shown(server, *texts):
    """What the page gets for a conversation: id and texts of its choices."""
    turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 9, texts, strict=False)]
    status, _, body = server.ask("POST", "/chat", json.dumps({"messages": turns}).encode())
    events = [line.removeprefix("data: ") for line in body.decode().split("\n\n") if line]
    assert status == 200 and events.pop() == "[DONE]"
    found, events = {}, [json.loads(event) for event in events]
    for event in events:
        for choice in event["choices"]:
            found[choice["index"]] = found.get(choice["index"], "") + choice["delta"].get("content", "")
    return events[0], [found[index].strip() for index in sorted(found)]
