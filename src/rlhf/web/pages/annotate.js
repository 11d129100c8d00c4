// The page on which replies are ranked. What comes from the server is shown by textContent alone: a model wrote it.
import { AWAY, Refused, alarm, ask, at, element, once } from "/parts.js";

const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
const BEAT = 3000; // milliseconds between two questions whether the server is there
let tags = {}, name = "", item = null, progress = null, since = 0, busy = false, touched = false, held = 0;
let places = [], marked = 0, chosen = {}; // place of each reply or null, the reply that keys go to, tags by reply

const say = (text) => { if (at("live").textContent !== text) at("live").textContent = text; };
const show = (page) => { for (const id of ["enter", "work", "done"]) at(id).hidden = id !== page; };

// One thing at a time: a key that is pressed meanwhile does nothing.
async function work(what) {
  if (busy) return;
  busy = at("better").readOnly = true; // what is sent is what is seen
  document.body.classList.add("busy");
  try {
    await what();
    alarm("error", "");
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    alarm("error", error.message);
  } finally {
    busy = at("better").readOnly = false;
    document.body.classList.remove("busy");
    drawButtons();
  }
}

// --- what is not sent yet, kept for a page that is loaded again

const draftKey = () => `draft/${name}/${item.id}`;
const keep = () => {
  touched = true;
  localStorage.setItem(draftKey(), JSON.stringify({ places, chosen, better: at("better").value }));
};
function kept() {
  try { return JSON.parse(localStorage.getItem(draftKey())); } catch { return null; }
}

// --- drawing

function receive(told) {
  ({ item, progress } = told);
  if (told.rules !== undefined) at("rules").textContent = told.rules;
  if (!item) return finish();
  const said = told.said && { places: told.said.ranks.map((rank) => rank === null ? null : rank + 1), chosen: told.said.tags, better: told.said.better };
  const draft = said ?? kept();
  places = item.replies.map((_, index) => draft?.places?.[index] ?? null);
  chosen = draft?.chosen ?? {};
  at("better").value = draft?.better ?? "";
  marked = 0;
  held = Date.now();
  draw();
  show("work");
  scrollTo(0, 0);
  mark(0);
  say(`${said ? "Taken back" : "Next"}: ${item.replies.length} replies`);
  since = performance.now();
}

function draw() {
  at("turns").replaceChildren(...item.turns.map((turn) => {
    const box = element("div", "", { class: `turn ${turn.role === "user" ? "user" : "other"}` });
    box.append(element("span", turn.role, { class: "role" }), element("p", turn.content, { dir: "auto" }));
    return box;
  }));
  at("replies").replaceChildren(...item.replies.map(card));
  document.querySelector("#keys .last").textContent = item.replies.length;
  drawProgress();
  drawPlaces();
}

function card(reply, index) {
  const letter = LETTERS[index] ?? String(index + 1);
  const box = element("article", "", { class: "card reply", tabindex: "0", "aria-label": `Reply ${letter}` });
  const row = element("div", "", { class: "row", role: "group", "aria-label": `Place of reply ${letter}` });
  row.append(element("span", letter, { class: "letter" }));
  item.replies.forEach((_, place) => {
    const button = element("button", place + 1, { type: "button", class: "place", "aria-label": `Place ${place + 1}` });
    button.addEventListener("click", (event) => put(index, place + 1, event.detail > 0));
    row.append(button);
  });
  const marks = element("div", "", { class: "tags", role: "group", "aria-label": `Tags of reply ${letter}` });
  for (const [tag, says] of Object.entries(tags)) {
    const button = element("button", "", { type: "button", class: "tag", title: says, "data-tag": tag });
    button.append(element("kbd", tag[0]), tag);
    button.addEventListener("click", () => toggle(index, tag));
    marks.append(button);
  }
  box.append(row, element("p", reply.text, { class: "text", dir: "auto" }), marks);
  box.addEventListener("focus", () => { marked = index; });
  return box;
}

function drawPlaces() {
  document.querySelectorAll(".reply").forEach((box, index) => {
    box.classList.toggle("placed", places[index] !== null);
    box.querySelectorAll(".place").forEach((button, place) => button.setAttribute("aria-pressed", places[index] === place + 1));
    const own = chosen[item.replies[index].key] ?? [];
    for (const button of box.querySelectorAll(".tag")) button.setAttribute("aria-pressed", own.includes(button.dataset.tag));
  });
  drawButtons();
}

function drawButtons() {
  at("send").setAttribute("aria-disabled", !item || places.includes(null));
  for (const id of ["undo", "undo-done"]) at(id).disabled = (progress?.last ?? null) === null;
}

function drawProgress() {
  const all = progress.own + progress.left;
  at("progress").hidden = false;
  at("bar").max = Math.max(all, 1);
  at("bar").value = progress.own;
  at("counts").textContent = `${progress.own} done, ${progress.left} left`;
  at("who").hidden = false;
  at("who").textContent = `${name}: change`;
  at("people").replaceChildren(...Object.entries(progress.everyone).map(([who, count]) => {
    const line = element("li", "", who === name ? { class: "me" } : {});
    line.append(element("span", who), element("span", count));
    return line;
  }));
  drawButtons();
}

function finish() {
  drawProgress();
  const away = progress.away > 0;
  at("done-title").textContent = away ? "Nothing for you right now" : "All done";
  at("done-text").textContent = away
    ? `${progress.away} prompts are with others. What they leave comes to you; this page looks by itself.`
    : `You have judged ${progress.own}. New replies show up here by themselves.`;
  show("done");
  say(at("done-title").textContent);
}

// --- what a person does

function mark(index) {
  const boxes = document.querySelectorAll(".reply");
  marked = (index + boxes.length) % boxes.length;
  boxes[marked].focus();
}

function put(index, place, onwards = true) {
  if (busy) return;
  places[index] = place;
  keep();
  drawPlaces();
  say(place ? `Reply ${LETTERS[index]}: place ${place}` : `Reply ${LETTERS[index]}: no place`);
  if (!onwards) return;
  const after = places.map((_, step) => (index + 1 + step) % places.length).find((other) => places[other] === null);
  mark(place && after !== undefined ? after : index);
}

function toggle(index, tag) {
  if (busy) return;
  const key = item.replies[index].key, own = chosen[key] ?? [];
  chosen[key] = own.includes(tag) ? own.filter((other) => other !== tag) : [...own, tag];
  keep();
  drawPlaces();
  say(`Reply ${LETTERS[index]}: ${chosen[key].join(", ") || "no tags"}`);
}

function send(outcome) {
  if (outcome === "ranked" && places.includes(null)) {
    mark(places.indexOf(null));
    return alarm("error", "Each reply needs a place: 1 is best, and the same place twice is a tie.");
  }
  const order = [...new Set(places)].sort((a, b) => a - b);
  const body = {
    annotator: name, item: item.id, shown: item.replies.map((reply) => reply.key), outcome, tags: chosen,
    ranks: outcome === "ranked" ? places.map((place) => order.indexOf(place)) : [],
    better: at("better").value || null, milliseconds: Math.round(performance.now() - since),
  };
  return work(async () => {
    await ask("/api/judge", body);
    localStorage.removeItem(draftKey());
    receive(await ask("/api/next", { annotator: name }));
  });
}

const undo = () => (progress?.last ?? null) === null ? undefined
  : work(async () => receive(await ask("/api/undo", { annotator: name, item: progress.last })));

function enter(given) {
  return work(async () => {
    const told = await ask("/api/next", { annotator: given });
    name = told.annotator;
    localStorage.setItem("annotator", name);
    receive(told);
  });
}

function key(event) {
  if (event.target.id === "better") {
    if (event.key === "Escape") mark(marked);
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) send("ranked");
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.target.matches("input") || at("enter").hidden === false) return;
  const does = at("work").hidden ? { u: undo } : {
    ArrowDown: () => mark(marked + 1), ArrowRight: () => mark(marked + 1),
    ArrowUp: () => mark(marked - 1), ArrowLeft: () => mark(marked - 1),
    Enter: event.target.matches("button, a, summary") ? null : () => send("ranked"),
    x: () => send("all bad"), n: () => send("skipped"), u: undo, w: () => at("better").focus(),
    0: () => put(marked, null), Backspace: () => put(marked, null),
  };
  const tag = Object.keys(tags).find((one) => one[0] === event.key);
  const act = does[event.key] ?? (at("work").hidden ? null
    : tag ? () => toggle(marked, tag)
      : Number(event.key) >= 1 && Number(event.key) <= item.replies.length ? () => put(marked, Number(event.key)) : null);
  if (!act) return;
  event.preventDefault();
  act();
}

// Now and then: is the server there, what have the others done, is there something new; who is at work keeps the item.
async function beat() {
  for (;;) {
    await new Promise((done) => setTimeout(done, BEAT));
    if (!name || busy) continue;
    const holding = touched && item && Date.now() - held > 60000;
    try {
      const told = await once("/api/here", { annotator: name, item: holding ? item.id : null });
      alarm("down", "");
      if (busy || told.annotator !== name) continue;
      progress = told.progress;
      if (holding) [touched, held] = [false, Date.now()];
      if (!item && progress.left) await enter(name);
      else if (item) drawProgress();
      else finish();
    } catch (error) {
      if (error instanceof Refused) alarm("error", error.message);
      else alarm("down", AWAY);
    }
  }
}

at("name-form").addEventListener("submit", (event) => { event.preventDefault(); enter(at("name").value); });
at("send").addEventListener("click", () => send("ranked"));
at("bad").addEventListener("click", () => send("all bad"));
at("skip").addEventListener("click", () => send("skipped"));
for (const id of ["undo", "undo-done"]) at(id).addEventListener("click", undo);
at("better").addEventListener("input", keep);
at("who").addEventListener("click", () => { if (!busy) { name = ""; item = null; localStorage.removeItem("annotator"); show("enter"); at("name").focus(); } });
document.addEventListener("keydown", key);
if (matchMedia("(max-width: 60rem)").matches) for (const id of ["rules-box", "keys-box", "people-box"]) at(id).open = false;

await work(async () => {
  const told = await ask("/api/start");
  tags = told.tags;
  at("rules").textContent = told.rules;
  const before = localStorage.getItem("annotator");
  if (before) {
    const next = await ask("/api/next", { annotator: before });
    name = next.annotator;
    receive(next);
  } else {
    at("name").value = told.annotator;
    show("enter");
    at("name").focus();
  }
});
beat();
