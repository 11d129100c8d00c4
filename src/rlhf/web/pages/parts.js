// What both pages have: elements of text, messages, and the server, which may be away for a while.
export const AWAY = "The server does not answer. What you wrote is kept, and goes on by itself when it is back.";
export const at = (id) => document.getElementById(id);

export const element = (kind, text = "", attributes = {}) => {
  const made = document.createElement(kind);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
};

export function alarm(id, text) {
  if (at(id).textContent !== text) at(id).textContent = text;
  at(id).hidden = !text;
}

export class Refused extends Error {}
export class Absent extends Error {}

export async function once(path, body) {
  let answer;
  try {
    const sent = body && { method: "POST", body: JSON.stringify(body), headers: { "content-type": "application/json" } };
    answer = await fetch(path, { ...sent, signal: AbortSignal.timeout(20000) });
  } catch {
    throw new Absent();
  }
  let told;
  try { told = await answer.json(); } catch { if (answer.ok) throw new Absent(); } // it died in the middle of an answer
  if (answer.ok) return told;
  const other = "The server was started again with another token: open the address that it printed. What you wrote is kept here.";
  const why = told?.error?.message ?? `The server failed (${answer.status}). Try again.`;
  throw new Refused(answer.status === 401 ? other : `${why}\nOr load this page again, which goes on with the next prompt.`);
}

// Asks until there is an answer; each request may come twice, since the server does the same thing once.
export async function ask(path, body) {
  for (;;) {
    try {
      const told = await once(path, body);
      alarm("down", "");
      return told;
    } catch (error) {
      if (!(error instanceof Absent)) { alarm("down", ""); throw error; }
      alarm("down", AWAY);
      await new Promise((done) => setTimeout(done, 1000));
    }
  }
}
