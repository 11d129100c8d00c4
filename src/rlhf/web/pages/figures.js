// How far people agree, as tables with bars; names that people gave are shown by textContent alone.
import { alarm, ask, at, element } from "/parts.js";

const SVG = "http://www.w3.org/2000/svg";
const percent = (share) => `${Math.round(100 * share)}%`;
const digits = (value) => value === null ? "–" : value.toFixed(2);

function drawn(kind, attributes) {
  const made = document.createElementNS(SVG, kind);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

// A bar from 0 to a value on a scale, with its interval as a line.
function bar(value, low = null, high = null, [from, to] = [0, 1]) {
  const box = drawn("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" });
  const x = (number) => 100 * Math.min(Math.max((number - from) / (to - from), 0), 1);
  box.append(drawn("rect", { class: "back", x: 0, y: 2, width: 100, height: 6, rx: 1 }));
  if (value !== null) box.append(drawn("rect", { class: "bar", x: Math.min(x(0), x(value)), y: 2, width: Math.abs(x(value) - x(0)), height: 6 }));
  if (from < 0) box.append(drawn("line", { class: "zero", x1: x(0), x2: x(0), y1: 0, y2: 10, "vector-effect": "non-scaling-stroke" }));
  if (low !== null && high !== null) box.append(drawn("line", { class: "line", x1: x(low), x2: x(high), y1: 5, y2: 5, "vector-effect": "non-scaling-stroke" }));
  return box;
}

function table(title, note, head, rows, empty) {
  const box = element("section", "", { class: "card" }), inner = element("div", "", { class: "scroll", tabindex: "0", role: "group", "aria-label": title });
  box.append(element("h2", title), element("p", note, { class: "soft" }));
  if (!rows.length) { box.append(element("p", empty)); return box; }
  const made = element("table"), first = element("tr"), body = element("tbody"), top = element("thead");
  head.forEach((name) => first.append(element("th", name, { scope: "col" })));
  for (const row of rows) {
    const line = element("tr");
    row.forEach((cell, index) => {
      const own = element(index ? "td" : "th", cell instanceof Node ? "" : cell, index ? {} : { scope: "row" });
      if (cell instanceof Node) own.append(cell);
      line.append(own);
    });
    body.append(line);
  }
  top.append(first);
  made.append(top, body);
  inner.append(made);
  box.append(inner);
  return box;
}

function draw(told) {
  const rate = Object.fromEntries(told.disagreement.map(([name, share, items]) => [name, [share, items]]));
  const people = Object.entries(told.judgements).map(([name, count]) => {
    const [share, items] = rate[name] ?? [null, 0];
    const pace = told.seconds[name] === undefined ? "–" : `${told.seconds[name].toFixed(1)} s`;
    return [name, count, pace, share === null ? "–" : percent(share), bar(share), items];
  });
  const alphas = Object.entries(told.alpha).filter(([, found]) => found).map(([level, found]) =>
    [level, digits(found.value), `${digits(found.low)} to ${digits(found.high)}`, bar(found.value, found.low, found.high, [-1, 1]), found.items]);
  const pairs = told.pairwise.map(([[one, other], share, items]) => [`${one} and ${other}`, percent(share), bar(share), items])
    .sort((a, b) => parseInt(a[1]) - parseInt(b[1]));
  const outcomes = [...Object.entries(told.outcomes), ["undone", told.undone]];
  const sum = Math.max(1, outcomes.reduce((all, [, count]) => all + count, 0));
  const order = told.position;
  at("figures").replaceChildren(
    table("Each annotator", "The median time of a judgement, and on how many pairs of replies they differ from the mean rank of the others, on prompts that others ranked too.",
      ["name", "judgements", "time", "differs", "", "prompts"], people, "Nobody has judged yet."),
    table("Krippendorff's alpha", "1 is agreement, 0 is chance; the line is the 95% interval over prompts.",
      ["ranks", "alpha", "interval", "−1 to 1", "prompts"], alphas, "No prompt was ranked by two yet."),
    table("Who agrees with whom", "The share of pairs of replies that two put in the same order; least first.",
      ["two", "agree", "", "prompts"], pairs, "No prompt was ranked by two yet."),
    table("The order on the page", "How much more often the reply that was shown first is the best than chance has it; 0 is as it should be.",
      ["", "excess", "interval", "−0.5 to 0.5", "p"],
      order ? [["shown first", digits(order.mean), `${digits(order.low)} to ${digits(order.high)}`, bar(order.mean, order.low, order.high, [-0.5, 0.5]), order.p === null ? "–" : order.p.toPrecision(2)]] : [],
      "Nothing was ranked yet."),
    table("What was said", "All judgements; what was taken back counts nowhere else.", ["", "judgements", ""],
      outcomes.map(([what, count]) => [what, count, bar(count / sum)]), ""),
  );
}

try {
  draw(await ask("/api/figures"));
} catch (error) {
  alarm("error", error.message);
}
