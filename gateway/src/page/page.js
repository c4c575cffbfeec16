// The chat page. Every answer belongs to one chat, and nothing of it reaches another.
const $ = (id) => document.getElementById(id);

/** One conversation. */
class Chat {
  messages = [];
  running = null;
}

let chat = new Chat();

function headers() {
  const key = $("key").value.trim();
  return { "content-type": "application/json", ...(key && { authorization: `Bearer ${key}` }) };
}

function element(kind, className, text = "") {
  const made = document.createElement(kind);
  made.className = className;
  made.textContent = text;
  return made;
}

/** A turn on the page: its text, and a line below it. */
function show(role, text) {
  const turn = element("article", `turn ${role}`);
  const body = element("p", "", text);
  const foot = element("div", "foot");
  turn.append(body);
  if (role === "assistant") turn.append(foot);
  $("talk").append(turn);
  turn.scrollIntoView({ block: "end" });
  return { turn, body, foot };
}

function copyButton(text) {
  const button = element("button", "copy", "Copy");
  button.type = "button";
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Cannot copy: the browser allows it on https and localhost only";
    }
  });
  return button;
}

async function failure(reply) {
  const body = await reply.json().catch(() => null);
  const message = body?.error?.message ?? `The gateway answered with status ${reply.status}.`;
  return new Error(reply.status === 401 ? `${message} Enter it under Options.` : message);
}

async function models() {
  try {
    const reply = await fetch("v1/models", { headers: headers() });
    if (!reply.ok) throw await failure(reply);
    const list = await reply.json();
    const chosen = $("model").value || sessionStorage.getItem("model");
    $("model").replaceChildren(...list.data.map((model) => new Option(model.id)));
    if (list.data.some((model) => model.id === chosen)) $("model").value = chosen;
    if (!list.data.length) show("error", "There is no model yet. Apply a LlamaDeployment, then reload.");
  } catch (error) {
    show("error", error.message);
  }
}

/** The data of each server-sent event. */
async function* events(body) {
  let rest = "";
  for await (const bytes of body.pipeThrough(new TextDecoderStream())) {
    const blocks = (rest + bytes).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      if (block.startsWith("data: ")) yield block.slice(6);
    }
  }
}

function request(messages) {
  const system = $("system").value.trim();
  const body = {
    model: $("model").value,
    messages: [...(system ? [{ role: "system", content: system }] : []), ...messages],
    stream: true,
    stream_options: { include_usage: true },
  };
  for (const name of ["temperature", "top_p", "max_tokens", "seed"]) {
    if ($(name).value !== "") body[name] = Number($(name).value);
  }
  if ($("stop").value) body.stop = $("stop").value;
  return body;
}

function busy(is) {
  $("send").textContent = is ? "Stop" : "Send";
}

async function ask(text) {
  const mine = chat;
  const stop = (mine.running = new AbortController());
  mine.messages.push({ role: "user", content: text });
  show("user", text);
  const { body, foot } = show("assistant", "…");
  const began = performance.now();
  let answer = "";
  let usage = null;
  busy(true);
  try {
    const reply = await fetch("v1/chat/completions", {
      method: "POST",
      signal: stop.signal,
      headers: headers(),
      body: JSON.stringify(request(mine.messages)),
    });
    if (!reply.ok) throw await failure(reply);
    for await (const data of events(reply.body)) {
      if (data === "[DONE]" || stop.signal.aborted) break;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      answer += chunk.choices[0]?.delta.content ?? "";
      usage = chunk.usage ?? usage;
      body.textContent = answer || "…";
      if (mine === chat) body.scrollIntoView({ block: "end" });
    }
  } catch (error) {
    // Of a chat that was left nothing is shown any more.
    if (error.name !== "AbortError" && mine === chat) show("error", error.message);
  }
  if (answer) {
    mine.messages.push({ role: "assistant", content: answer });
    foot.append(copyButton(answer));
  } else {
    mine.messages.pop();
    body.textContent = "(no answer)";
  }
  const seconds = ((performance.now() - began) / 1000).toFixed(1);
  const stopped = stop.signal.aborted ? "stopped, " : "";
  foot.append(stopped + (usage ? `${usage.completion_tokens} tokens in ${seconds} s` : `${seconds} s`));
  mine.running = null;
  if (mine === chat) busy(false);
}

function newChat() {
  chat.running?.abort();
  chat = new Chat();
  busy(false);
  $("talk").replaceChildren();
  $("text").focus();
}

function toggleOptions() {
  const options = $("options");
  options.hidden = !options.hidden;
  $("toggle").setAttribute("aria-expanded", String(!options.hidden));
  (options.hidden ? $("text") : $("system")).focus();
}

function theme(name) {
  if (name) document.documentElement.dataset.theme = name;
  else delete document.documentElement.dataset.theme;
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (chat.running) return chat.running.abort();
  const text = $("text").value.trim();
  if (!text) return;
  $("text").value = "";
  ask(text);
});
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    if (!chat.running) $("form").requestSubmit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") chat.running?.abort();
  if (!event.altKey || event.ctrlKey || event.metaKey) return;
  const action = { KeyN: newChat, KeyO: toggleOptions }[event.code];
  if (action) {
    event.preventDefault();
    action();
  }
});
$("new").addEventListener("click", newChat);
$("toggle").addEventListener("click", toggleOptions);
$("model").addEventListener("change", () => sessionStorage.setItem("model", $("model").value));
// A key lives as long as the tab.
$("key").value = sessionStorage.getItem("key") ?? "";
$("key").addEventListener("change", () => {
  sessionStorage.setItem("key", $("key").value);
  $("talk").querySelectorAll(".error").forEach((error) => error.remove());
  models();
});
$("theme").value = localStorage.getItem("theme") ?? "";
theme($("theme").value);
$("theme").addEventListener("change", () => {
  localStorage.setItem("theme", $("theme").value);
  theme($("theme").value);
});
models();
