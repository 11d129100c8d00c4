"use strict";
// A conversation: each answer is streamed, as one reply with thumbs or as two of which one is chosen. Text goes in as textContent only.

const [log, form, text, send] = ["log", "ask", "text", "send"].map((id) => document.getElementById(id));
const hint = document.getElementById("hint");
let turns = [];
let running = null; // what aborts the answer that is being written

function make(tag, name, content = "") {
  const node = document.createElement(tag);
  node.className = name;
  node.textContent = content;
  return node;
}

function button(label, act) {
  const node = make("button", "", label);
  node.type = "button";
  node.addEventListener("click", act);
  return node;
}

function put(node) {
  hint.hidden = true;
  log.append(node);
  log.scrollTop = log.scrollHeight;
}

async function post(path, body, signal) {
  const head = { "content-type": "application/json" };
  const answer = await fetch(path, { method: "POST", headers: head, body: JSON.stringify(body), signal });
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => ({}));
  throw new Error(said.error?.message ?? `the server answers ${answer.status}`);
}

// The objects of a stream of server-sent events, up to [DONE]; an error in it is thrown, and so is an end before [DONE].
async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ; ) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the server broke off in the middle of its reply");
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

class Answer {
  constructor() {
    this.node = make("section", "answer busy");
    this.choices = this.node.appendChild(make("div", "choices"));
    this.words = this.node.appendChild(make("div", "words"));
    put(this.node);
  }

  add(event) {
    this.id = event.id;
    for (const choice of event.choices) {
      const low = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
      while (this.choices.children.length <= choice.index) {
        const name = "AB"[this.choices.children.length];
        this.choices.append(make("div", "choice"));
        this.choices.lastChild.dataset.name = name;
      }
      this.node.classList.toggle("pair", this.choices.children.length > 1);
      this.choices.children[choice.index].append(choice.delta.content ?? "");
      if (low) log.scrollTop = log.scrollHeight;
    }
  }

  get texts() {
    return [...this.choices.children].map((node) => node.textContent.trim());
  }

  // The reply that the conversation goes on with is the first one until another is chosen.
  end() {
    this.node.classList.remove("busy");
    this.ended = performance.now();
    this.turn = { role: "assistant", content: this.texts[0] || "…" };
    turns.push(this.turn);
    const [first, second] = this.texts;
    const pair = second !== undefined && first !== second && first && second;
    if (second !== undefined && !pair) {
      this.choices.lastChild.remove();
      this.node.classList.remove("pair");
    }
    if (pair) this.ask("Which reply is better?", this.pairs());
    else this.ask("", [["Good reply", { thumb: "up" }], ["Bad reply", { thumb: "down" }]]);
    log.scrollTop = log.scrollHeight;
  }

  pairs() {
    const words = [["A is better", [0, 1]], ["B is better", [1, 0]], ["About the same", [0, 0]]];
    return [...words.map(([label, ranks]) => [label, { ranks }]), ["Neither is good", { outcome: "all bad" }]];
  }

  ask(question, options) {
    this.words.replaceChildren(...(question ? [make("span", "note", question)] : []));
    for (const [label, said] of options) {
      const node = button(label, () => this.say(node, said));
      node.setAttribute("aria-pressed", "false");
      this.words.append(node);
    }
    this.told = this.words.appendChild(make("span", ""));
    this.told.setAttribute("role", "status");
  }

  async say(pressed, said) {
    const buttons = [...this.words.querySelectorAll("button")];
    buttons.forEach((node) => (node.disabled = true));
    try {
      const milliseconds = Math.round(performance.now() - this.ended);
      await post("/v1/feedback", { id: this.id, ...said, ...(said.thumb ? {} : { milliseconds }) });
      buttons.forEach((node) => node.setAttribute("aria-pressed", String(node === pressed)));
      this.told.className = "";
      this.told.textContent = "Kept.";
      if (said.ranks) this.choose(said.ranks);
      if (said.outcome) this.choose([0, 0]);
    } catch (error) {
      this.told.className = "error";
      this.told.textContent = error.message;
    }
    buttons.forEach((node) => (node.disabled = false));
  }

  choose(ranks) {
    const best = ranks.indexOf(0);
    if (turns.at(-1) === this.turn) this.turn.content = this.texts[best]; // what was answered on it stays as it was
    [...this.choices.children].forEach((node, place) => {
      node.classList.toggle("chosen", ranks[0] !== ranks[1] && place === best);
      node.classList.toggle("left", ranks[0] !== ranks[1] && place !== best);
    });
  }

  // What was asked goes back to where it was written; a reply that the reader stopped stays as far as it came.
  fail(error, own) {
    this.node.classList.remove("busy");
    const stopped = error.name === "AbortError";
    const said = this.texts.join("");
    if (stopped && said) {
      turns.push({ role: "assistant", content: this.texts[0] || "…" });
      this.words.append(make("span", "", "Stopped."));
      return;
    }
    const asked = turns.pop().content;
    text.value ||= asked;
    own.remove();
    if (stopped) this.node.remove();
    else this.words.replaceChildren(make("p", "error", `${error.message}\nYour message is below again.`));
    if (!said) this.choices.remove();
  }
}

async function converse() {
  const asked = text.value.trim();
  if (!asked) return;
  text.value = "";
  turns.push({ role: "user", content: asked });
  const own = make("div", "own", asked);
  put(own);
  const answer = new Answer();
  running = new AbortController();
  const mine = running;
  send.textContent = "Stop";
  try {
    for await (const event of events(await post("/chat", { messages: turns }, mine.signal))) answer.add(event);
    answer.end();
  } catch (error) {
    if (mine === running) answer.fail(error, own);
  }
  if (mine !== running) return; // a new conversation has begun
  running = null;
  send.textContent = "Send";
  text.focus();
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) running.abort();
  else converse();
});

text.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!running) converse();
});

document.getElementById("new").addEventListener("click", () => {
  const former = running;
  running = null;
  former?.abort();
  turns = [];
  log.replaceChildren(hint);
  hint.hidden = false;
  send.textContent = "Send";
  text.focus();
});
