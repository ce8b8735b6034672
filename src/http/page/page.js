"use strict";
// Everything that comes from the agent is put in as text, never as markup: query texts and names are anybody's.

const EVERY_MS = 2000;
const ORDER = ["CPU", "Lock", "LWLock", "IO", "idle in transaction", "Client", "IPC", "Timeout"];
const byId = (id) => document.getElementById(id);
const seen = {}; // the newest message of each collector that was fetched, by name: {key, message}
let answered = 0; // when the agent last answered

function node(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined && text !== null) made.textContent = text;
  if (className) made.className = className;
  return made;
}
function put(parent, ...children) {
  parent.replaceChildren(...children.filter((child) => child !== null && child !== undefined));
}
function set(id, part, text) {
  const place = byId(id).querySelector(part);
  if (place.textContent !== text) place.textContent = text;
}

// ---- how figures are written ---------------------------------------------------------------------------------------

const number = (value) => (value === null || value === undefined ? "–" : Math.round(value).toLocaleString("en"));
function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) { value /= 1024; unit += 1; }
  return (unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)) + " " + units[unit];
}
function time(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 1) return Math.round(seconds * 1000) + " ms";
  if (seconds < 120) return (seconds < 10 ? seconds.toFixed(1).replace(/\.0$/, "") : Math.round(seconds)) + " s";
  if (seconds < 7200) return Math.round(seconds / 60) + " min";
  if (seconds < 172800) return Math.round(seconds / 3600) + " h";
  return Math.round(seconds / 86400) + " days";
}
const milliseconds = (ms) => (ms === null || ms === undefined ? "–" : ms >= 1000 ? time(ms / 1000) : ms >= 10 ? Math.round(ms) + " ms" : ms.toFixed(2) + " ms");
const since = (now, then) => (then ? time(Math.max(0, (Date.parse(now) - Date.parse(then)) / 1000)) + " ago" : "never");
const short = (text, most) => (text.length > most ? text.slice(0, most) + " …" : text);

// ---- the verdict ---------------------------------------------------------------------------------------------------

function verdict(status) {
  const troubled = status.collectors.filter((one) => one.state === "degraded" || one.state === "failing");
  const reasons = [...status.health.reasons, ...status.ready.reasons];
  for (const trouble of [status.broker.trouble, status.spool.trouble]) {
    if (trouble && !reasons.some((reason) => reason.includes(trouble))) reasons.push(trouble);
  }
  let [word, kind] = ["Healthy: everything flows", "good"];
  if (!status.health.ok) [word, kind] = ["Stuck: a part of the agent does not go on", "bad"];
  else if (!status.ready.ok) [word, kind] = ["Not connected: it goes on by itself, and what comes is kept", "bad"];
  else if (reasons.length || troubled.length) [word, kind] = ["Degraded: it works, and brings less than it could", "warn"];
  const list = node("ul");
  put(list, ...reasons.map((reason) => node("li", reason)), ...(reasons.length ? [] : troubled.map((one) => node("li", one.name + " is " + one.state))));
  const place = byId("verdict");
  const key = JSON.stringify([word, list.textContent]);
  if (place.dataset.key !== key) { // said anew only when it changed: it is read out
    place.dataset.key = key;
    place.className = "verdict " + kind;
    put(place, node("strong", word), list.childElementCount ? list : null);
  }
  document.title = (kind === "good" ? "" : kind === "warn" ? "! " : "✕ ") + status.agent.name + " · postgres-agent";
}

// ---- the way of the data -------------------------------------------------------------------------------------------

function stage(id, kind, figure, note) {
  byId(id).className = "stage" + (kind ? " is-" + kind : "");
  set(id, ".figure", figure);
  set(id, ".quiet", note);
}

function way(status) {
  const running = status.collectors.filter((one) => one.state !== "disabled");
  const well = running.filter((one) => one.state === "ok").length;
  const failing = running.some((one) => one.state === "failing");
  stage("stage-collectors", well === running.length ? "" : failing ? "bad" : "warn", well + " of " + running.length + " ok",
    status.database.reached === false ? "PostgreSQL is not reached" : number(status.database.connections) + " connections to PostgreSQL");
  const { channel, spool, broker } = status;
  stage("stage-channel", channel.samples >= channel.capacity ? "bad" : channel.samples > channel.capacity / 2 ? "warn" : "",
    number(channel.samples) + " waiting", "of " + number(channel.capacity) + " samples");
  const fill = spool.max_bytes ? spool.bytes / spool.max_bytes : 0;
  const lasts = spool.lasts_s !== null ? "full in " + time(spool.lasts_s) : "does not grow";
  stage("stage-spool", spool.trouble ? "bad" : fill > 0.8 ? "bad" : spool.lasts_s !== null ? "warn" : "",
    number(spool.messages) + (spool.messages === 1 ? " message" : " messages"),
    bytes(spool.bytes) + " of " + bytes(spool.max_bytes) + (spool.oldest_age_s !== null ? ", oldest " + time(spool.oldest_age_s) : "") + ", " + lasts);
  byId("stage-spool").querySelector("i").style.width = (100 * Math.min(1, fill)).toFixed(1) + "%";
  const pace = broker.confirm_ms ? "confirm in " + milliseconds(broker.confirm_ms.p50) : "nothing confirmed yet";
  stage("stage-broker", !broker.connected ? "bad" : broker.trouble ? "warn" : "", broker.connected ? number(broker.confirmed) + " confirmed" : "not connected",
    (broker.connected ? broker.node + ", " : "") + pace);
}

function collectors(status) {
  const kinds = { ok: "good", degraded: "warn", failing: "bad", disabled: "waiting" };
  put(byId("collectors").tBodies[0], ...status.collectors.map((one) => {
    const row = node("tr");
    const state = node("td");
    state.append(node("span", one.state, "state " + kinds[one.state]));
    const name = node("th", one.name);
    name.scope = "row";
    row.append(name, state, node("td", since(status.now, one.last_success_at)), node("td", time(one.interval_s), "n"),
      node("td", one.runs ? (one.db_ms / one.runs).toFixed(2) : "–", "n"), node("td", number(one.runs), "n"), node("td", number(one.failures), "n"),
      node("td", number(one.skipped), "n"), node("td", number(one.numbered), "n"));
    return row;
  }));
  put(byId("reasons"), ...status.collectors.filter((one) => one.reason).map((one) => {
    const item = node("li");
    item.append(node("b", one.name), ": " + one.reason);
    return item;
  }));
}

function facts(status) {
  const { broker, spool, agent } = status;
  const all = [
    ["Confirms, half within", broker.confirm_ms ? milliseconds(broker.confirm_ms.p50) : "–"],
    ["Confirms, 99 % within", broker.confirm_ms ? milliseconds(broker.confirm_ms.p99) : "–"],
    ["Published", number(broker.published)],
    ["Returned, no queue", number(broker.returned)],
    ["Refused by the broker", number(broker.nacked)],
    ["Reconnects", number(broker.reconnects)],
    ["Exchange", broker.exchange],
    ["Lost in this run", number(status.lost.reduce((sum, one) => sum + one.messages, 0))],
    ["Memory", agent.rss_bytes === null ? "–" : bytes(agent.rss_bytes)],
    ["Processor since the start", agent.cpu_s === null ? "–" : time(agent.cpu_s)],
    ["Spool", spool.dir],
    ...status.lost.map((one) => ["Lost of " + one.collector, number(one.messages) + " " + one.reason]),
  ];
  put(byId("facts"), ...all.map(([name, value]) => {
    const pair = node("div");
    pair.append(node("dt", name), node("dd", value));
    return pair;
  }));
}

// ---- sessions ------------------------------------------------------------------------------------------------------

function svg(tag, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function sessions(status) {
  const looks = status.sessions;
  const key = JSON.stringify([looks.length, looks.length && looks[looks.length - 1], Math.floor(Date.parse(status.now) / 5000)]);
  if (byId("plot").dataset.key === key) return;
  byId("plot").dataset.key = key;
  if (!looks.length) {
    put(byId("plot"), node("p", "No look at the sessions yet.", "quiet"));
    put(byId("legend"));
    return;
  }
  const found = new Set(looks.flatMap((look) => Object.keys(look.counts)));
  const classes = [...ORDER.filter((name) => found.has(name)), ...[...found].filter((name) => !ORDER.includes(name)).sort()];
  const colour = (name) => "c" + (ORDER.includes(name) ? ORDER.indexOf(name) : 8);
  const total = (look) => classes.reduce((sum, name) => sum + (look.counts[name] || 0), 0);
  const top = Math.max(1, ...looks.map(total));
  const [width, height, left, bottom] = [1000, 170, 34, 20];
  const end = Math.max(Date.parse(status.now), Date.parse(looks[looks.length - 1].at));
  const x = (at) => left + (width - left) * Math.max(0, 1 - (end - at) / 900000);
  const y = (value) => (height - bottom) * (1 - value / top) + 2;
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img" });
  picture.append(svg("title", {}, "Sessions by what they wait for; now " + total(looks[looks.length - 1]) + ", at the most " + top));
  for (const value of [0, top]) picture.append(svg("line", { class: "grid", x1: left, x2: width, y1: y(value), y2: y(value) }));
  looks.forEach((look, index) => {
    const from = x(Date.parse(look.at));
    const next = looks[index + 1];
    const to = Math.max(from + 1.5, next ? x(Date.parse(next.at)) : x(end));
    let base = 0;
    for (const name of classes) {
      const count = look.counts[name] || 0;
      if (count) picture.append(svg("rect", { class: colour(name), x: from.toFixed(1), width: (to - from).toFixed(1), y: y(base + count).toFixed(1), height: (y(base) - y(base + count)).toFixed(1) }));
      base += count;
    }
  });
  const scale = node("p", "0 to " + top + " sessions, from 15 minutes ago (left) to now (right)", "quiet");
  put(byId("plot"), picture, scale);
  const last = looks[looks.length - 1];
  put(byId("legend"), ...classes.map((name) => {
    const item = node("li");
    item.append(node("i", "", colour(name)), name + ": " + (last.counts[name] || 0));
    return item;
  }), classes.length ? null : node("li", "nobody did anything", "quiet"));
  const head = node("tr");
  head.append(...["Time", ...classes].map((name, at) => { const cell = node("th", name, at ? "n" : ""); cell.scope = "col"; return cell; }));
  put(byId("sessions").tHead, head);
  put(byId("sessions").tBodies[0], ...looks.slice(-60).reverse().map((look) => {
    const row = node("tr");
    row.append(node("td", look.at.slice(11, 19)), ...classes.map((name) => node("td", number(look.counts[name] || 0), "n")));
    return row;
  }));
}

// ---- what single messages say --------------------------------------------------------------------------------------

const lastEvent = (message) => message.events[message.events.length - 1];

function who(pid, gid, user, application, database) {
  return (pid ? "pid " + pid : "prepared " + (gid || "transaction")) + [user, database, application].filter(Boolean).map((text) => " · " + short(text, 80)).join("");
}

function locks(status, message) {
  const event = lastEvent(message);
  const note = byId("locks-note");
  if (!event.data.length) {
    note.textContent = "Nobody is blocked (" + since(status.now, event.collected_at) + ").";
    put(byId("locks"));
    return;
  }
  const { waiters, roots } = event.summary;
  note.textContent = number(waiters) + " waiting, " + number(roots.length) + " at the root (" + since(status.now, event.collected_at) + ")" + (event.omitted ? "; " + number(event.omitted) + " edges are left out here" : "");
  const behind = new Map();
  for (const edge of event.data) {
    const key = edge.blocking_pid || edge.blocking_gid;
    if (!behind.has(key)) behind.set(key, []);
    behind.get(key).push(edge);
  }
  const shown = new Set();
  const branch = (key) => {
    const list = node("ul");
    for (const edge of behind.get(key) || []) {
      const item = node("li");
      item.append(node("b", who(edge.blocked_pid, null, edge.blocked_user, edge.blocked_application, null)), " has waited " + milliseconds(edge.wait_ms) + " for " + [edge.blocked_mode, edge.locktype, edge.relation, edge.lock_target].filter(Boolean).join(" "));
      if (edge.blocked_correlation_id) item.append(node("span", " · " + edge.blocked_correlation_id, "quiet"));
      if (edge.blocked_query) item.append(node("code", short(edge.blocked_query, 300), "query"));
      if (!shown.has(edge.blocked_pid)) {
        shown.add(edge.blocked_pid);
        const more = branch(edge.blocked_pid);
        if (more.childElementCount) item.append(more);
      }
      list.append(item);
    }
    return list;
  };
  put(byId("locks"), ...roots.slice(0, 20).map((root) => {
    const item = node("li");
    item.append(node("b", who(root.pid, root.gid, root.usename, root.application_name, root.datname)), " blocks " + number(root.blocked) + ", " + [root.state, "longest wait " + milliseconds(root.longest_wait_ms)].filter(Boolean).join(", "));
    if (root.correlation_id) item.append(node("span", " · " + root.correlation_id, "quiet"));
    if (root.query) item.append(node("code", short(root.query, 300), "query"));
    item.append(branch(root.pid || root.gid));
    return item;
  }));
}

function statements(status, message) {
  const event = lastEvent(message);
  const rows = event.data.filter((row) => row.delta && row.delta.calls > 0);
  const sum = rows.reduce((all, row) => all + row.delta.total_exec_time, 0) + ((event.summary && event.summary.other && event.summary.other.total_exec_time) || 0);
  byId("statements-note").textContent = rows.length ? since(status.now, event.collected_at) + (status.agent.query_text === "raw" ? "" : "; texts are not shown, as privacy.query_text says") : "No statement since the look before (" + since(status.now, event.collected_at) + "), or it was the first one.";
  put(byId("statements"), ...rows.slice(0, 10).map((row) => {
    const { calls, total_exec_time: spent } = row.delta;
    const item = node("li");
    const line = node("div", null, "row");
    line.append(node("b", milliseconds(spent)), node("span", number(calls) + (calls === 1 ? " call" : " calls") + " of " + milliseconds(spent / calls)), node("span", [row.usename, row.datname].filter(Boolean).join(" · "), "quiet"), node("span", "query " + row.queryid, "quiet"));
    const meter = node("div", null, "meter");
    meter.setAttribute("aria-hidden", "true");
    const fill = node("i");
    fill.style.width = (sum ? (100 * spent) / sum : 0).toFixed(1) + "%";
    meter.append(fill);
    item.append(line, meter, row.query ? node("code", short(row.query, 400), "query") : "");
    return item;
  }));
}

async function fetched(name, rows) {
  const answer = await fetch("/messages/" + name + ".json?rows=" + rows, { signal: AbortSignal.timeout(8000) });
  return answer.ok ? answer.json() : null;
}

async function single(status, name, rows, show) {
  const newest = status.messages.find((one) => one.collector === name);
  if (!newest) return;
  const key = status.agent.run_id + "/" + newest.seq + "/" + status.agent.query_text;
  if (!seen[name] || seen[name].key !== key) {
    const message = await fetched(name, rows);
    if (message) seen[name] = { key, message };
  }
  if (seen[name]) show(status, seen[name].message);
}

function messages(status) {
  const place = byId("messages");
  if (!status.messages.length) put(place, node("p", "No message yet.", "quiet"));
  else if (!place.querySelector("details")) put(place);
  for (const newest of status.messages) {
    const id = "message-" + newest.collector;
    let details = byId(id);
    if (!details) {
      details = node("details");
      details.id = id;
      const body = node("pre");
      body.tabIndex = 0;
      details.append(node("summary"), body);
      // What is opened stays as it was: nothing changes under a reader's eyes.
      details.addEventListener("toggle", async () => {
        if (!details.open) return;
        body.textContent = "…";
        const message = await fetched(newest.collector, 20).catch(() => null);
        body.textContent = message ? JSON.stringify(message, null, 2) : "It is gone.";
      });
      place.append(details);
    }
    const text = newest.collector + " " + number(newest.seq) + " · " + since(status.now, newest.numbered_at) + " · " + bytes(newest.bytes);
    if (details.firstChild.textContent !== text) details.firstChild.textContent = text;
  }
}

// ---- again and again -----------------------------------------------------------------------------------------------

async function look() {
  const answer = await fetch("/status.json", { signal: AbortSignal.timeout(8000) });
  if (!answer.ok) throw new Error("status " + answer.status);
  const status = await answer.json();
  answered = Date.now();
  document.body.classList.remove("stale");
  const labels = Object.entries(status.agent.labels).map(([name, value]) => name + "=" + value);
  byId("name").textContent = status.agent.name;
  byId("about").textContent = ["postgres-agent " + status.agent.version, "up " + time(status.agent.uptime_s), ...labels].join(" · ");
  verdict(status);
  way(status);
  collectors(status);
  facts(status);
  sessions(status);
  messages(status);
  await single(status, "pg_locks", 50, locks);
  await single(status, "pg_statements", 10, statements);
}

async function again() {
  if (!document.hidden) {
    try {
      await look();
    } catch {
      document.body.classList.add("stale");
      const place = byId("verdict");
      place.dataset.key = "";
      place.className = "verdict bad";
      put(place, node("strong", answered ? "The agent has not answered for " + time((Date.now() - answered) / 1000) + ": what stands below is old" : "The agent does not answer"));
    }
  }
  document.documentElement.dataset.shown = "yes";
  setTimeout(again, EVERY_MS);
}
document.addEventListener("visibilitychange", () => { if (!document.hidden) look().catch(() => {}); });
again();
