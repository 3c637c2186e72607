// The report: everything shown comes from the JSON beside this script.

import { appendText, el, nats, oneLine, visible } from "./text.js";
import { heat, layerBars, tokenScale } from "./terms.js";

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const state = { query: 0, list: "proponents", row: -1 };

const current = () => data.queries[state.query];
const entries = () => current()[state.list];
const textOf = (entry) => (entry.tokens ? entry.tokens.join("") : entry.text);

function facts(entry) {
  const rows = [["Id", entry.id], ...Object.entries(entry.metadata)];
  if (entry.copies.length) rows.push([`Same text (${entry.copies.length})`, entry.copies.join(", ")]);
  const list = el("dl", { class: "facts" });
  for (const [name, value] of rows) list.append(el("dt", {}, oneLine(name)), el("dd", {}, visible(value)));
  return el("div", {}, el("h3", {}, "Source"), list);
}

function panel(entry, scale) {
  const node = el("div", { class: "panel" });
  if (entry.tokens) node.append(heat(entry, scale));
  else if (entry.text !== null) {
    const text = el("p", { class: "text" });
    appendText(text, entry.text);
    node.append(text);
  }
  if (entry.layers && entry.layers.length) node.append(layerBars(data.layer_names, entry.layers));
  node.append(facts(entry));
  return node;
}

function cell(value) {
  if (value === true) return el("span", { class: "yes", "aria-label": "yes" }, "✓");
  if (value === false) return el("span", { "aria-label": "no" }, "–");
  if (value === null || value === undefined) return "";
  if (typeof value === "number" && !Number.isInteger(value)) return Number(value.toPrecision(3)).toString();
  return oneLine(String(value));
}

function snippet(entry) {
  const text = textOf(entry);
  if (text === null) return el("span", { class: "snippet absent" }, data.redacted ? oneLine(entry.id) : oneLine(entry.id) + " (the run keeps no text)");
  let start = 0;
  if (entry.tokens) {
    // begin a little before the strongest token, so that the two lines show what mattered
    const peak = entry.values.reduce((best, v, i) => (Math.abs(v) > Math.abs(entry.values[best]) ? i : best), 0);
    const before = entry.tokens.slice(0, peak).join("").length;
    const from = Math.min(before - 60, text.length - 160);
    if (before > 90 && from > 0) start = text.indexOf(" ", from) + 1 || from;
  }
  return el("span", { class: "snippet", dir: "auto" }, (start > 0 ? "… " : "") + oneLine(text.slice(start, start + 400)));
}

function tableRow(entry, i, widest) {
  const side = state.list === "proponents" ? "for" : "against";
  const bar = el("i");
  bar.style.width = `${widest > 0 ? (100 * Math.abs(entry.score)) / widest : 0}%`;
  const meta = el("span", { class: "meta" });
  if (textOf(entry) !== null) meta.append(el("span", {}, oneLine(entry.id)));
  for (const key of ["source", "domain", "dataset"]) if (entry.metadata[key]) meta.append(el("span", {}, oneLine(entry.metadata[key])));
  if (entry.copies.length) meta.append(el("span", { class: "copies" }, `×${entry.copies.length + 1} same text`));
  const open = el("button", { type: "button", class: "open", "aria-expanded": "false" }, snippet(entry), meta);
  const extras = data.columns.map((column) => el("td", { class: "extra", "data-label": oneLine(column.label) }, cell(entry.extra[column.key])));
  const row = el("tr", { class: `row ${side}`, "data-i": i },
    el("td", { class: "rank" }, String(i + 1)),
    el("td", { class: "score" }, el("span", { class: "number" }, nats(entry.score)), el("span", { class: "bar", "aria-hidden": "true" }, bar)),
    el("td", { class: "body" }, open), ...extras);
  row.addEventListener("click", () => { state.row = i; toggle(row, entry); });
  return row;
}

function toggle(row, entry) {
  const button = row.querySelector(".open");
  const opened = button.getAttribute("aria-expanded") === "true";
  button.setAttribute("aria-expanded", String(!opened));
  if (opened) {
    delete row.dataset.open;
    row.nextElementSibling.remove();
    return;
  }
  row.dataset.open = "";
  const inside = el("td", { colspan: String(3 + data.columns.length) }, panel(entry, tokenScale(entries())));
  row.after(el("tr", { class: "detail" }, inside));
}

function showList() {
  const query = current();
  for (const name of ["proponents", "opponents"]) {
    $("tab-" + name).setAttribute("aria-selected", String(name === state.list));
    $("tab-" + name).tabIndex = name === state.list ? 0 : -1;
    $("tab-" + name).textContent = `${name === "proponents" ? "Proponents" : "Opponents"} ${query[name].length}`;
  }
  $("list").setAttribute("aria-labelledby", "tab-" + state.list);
  $("explain").textContent = state.list === "proponents"
    ? "rows that make the completion more likely" : "rows that make the completion less likely";
  const list = entries();
  state.row = -1;
  if (!list.length) {
    $("list").replaceChildren(el("p", { class: "empty" }, `No ${state.list} among the rows that were scored.`));
    return;
  }
  // both lists share one scale, so that a strong proponent looks strong beside a weak opponent
  const widest = Math.max(...[...query.proponents, ...query.opponents].map((entry) => Math.abs(entry.score)));
  const extra = data.columns.map((c) => el("th", { class: "extra", scope: "col", title: c.help ? oneLine(c.help) : null }, oneLine(c.label)));
  const head = el("tr", {}, el("th", { class: "rank", scope: "col" }, "#"), el("th", { class: "score", scope: "col" }, "nats a copy"),
    el("th", { scope: "col" }, "training row"), ...extra);
  const rows = list.map((entry, i) => tableRow(entry, i, widest));
  $("list").replaceChildren(el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows)));
  // one row open shows that rows open, and what colours the reader may expect
  if (list[0].tokens || (list[0].layers && list[0].layers.length)) toggle(rows[0], list[0]);
}

function showQuery() {
  const query = current();
  $("query-id").textContent = oneLine(query.id);
  $("query-place").textContent = data.queries.length > 1 ? `${state.query + 1} of ${data.queries.length}` : "";
  $("prompt").textContent = visible(query.prompt);
  $("completion").textContent = visible(query.completion);
  $("note").textContent = visible(query.note);
  $("picker").value = String(state.query);
  for (const button of $("queries").querySelectorAll("button")) {
    const here = Number(button.dataset.i) === state.query;
    button.setAttribute("aria-current", String(here));
    if (here) button.scrollIntoView({ block: "nearest" });
  }
  showList();
  const hash = new URLSearchParams({ q: query.id, list: state.list });
  history.replaceState(null, "", "#" + hash);
}

function go(query, list = state.list) {
  state.query = Math.max(0, Math.min(data.queries.length - 1, query));
  state.list = list;
  showQuery();
}

function fillQueries() {
  const wanted = $("filter").value.toLowerCase();
  const items = [];
  data.queries.forEach((query, i) => {
    const whole = `${query.id} ${query.prompt}${query.completion}`;
    if (wanted && !whole.toLowerCase().includes(wanted)) return;
    // the end of a prompt says more about the question than its beginning
    const tail = query.prompt.length > 70 ? "…" + query.prompt.slice(-70) : query.prompt;
    const label = el("span", { class: "clip" }, oneLine(tail), el("b", {}, oneLine(query.completion.slice(0, 80) || query.id)));
    const button = el("button", { type: "button", "data-i": i, "aria-current": String(i === state.query) }, label);
    button.addEventListener("click", () => go(i));
    items.push(el("li", {}, button));
  });
  $("queries").replaceChildren(...(items.length ? items : [el("li", { class: "empty" }, "No query matches.")]));
}

function step(by) {
  const rows = [...$("list").querySelectorAll("tr.row")];
  if (!rows.length) return;
  state.row = Math.max(0, Math.min(rows.length - 1, state.row + by));
  rows[state.row].querySelector(".open").focus();
  rows[state.row].scrollIntoView({ block: "nearest" });
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
}

function otherTheme() {
  setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
}

const KEYS = {
  j: () => step(1),
  k: () => step(-1),
  n: () => go(state.query + 1),
  b: () => go(state.query - 1),
  p: () => go(state.query, "proponents"),
  o: () => go(state.query, "opponents"),
  d: otherTheme,
  "?": () => $("help").showModal(),
  "/": () => $("filter").focus(),
};

function start() {
  const lines = { exact: data.ledger.filter((line) => line[0] === "exact"), approximate: data.ledger.filter((line) => line[0] !== "exact") };
  for (const [name, list] of Object.entries(lines)) $(name).replaceChildren(...list.map((line) => el("li", {}, line[1])));
  $("caveats").replaceChildren(...data.caveats.map((line) => el("li", {}, line)));
  for (const [name, value] of data.settings) $("settings").append(el("dt", {}, oneLine(name)), el("dd", {}, oneLine(value)));
  $("title").textContent = document.title = visible(data.title);
  const counts = [`${data.queries.length.toLocaleString("en")} ${data.queries.length === 1 ? "query" : "queries"}`];
  if (data.num_rows !== null) counts.push(`${data.num_rows.toLocaleString("en")} training rows scored`);
  if (data.redacted) counts.push("texts left out");
  $("subtitle").textContent = counts.join(" · ");
  data.queries.forEach((query, i) => {
    const label = query.prompt || query.completion ? (query.prompt.length > 40 ? "…" : "") + query.prompt.slice(-40) + query.completion.slice(0, 60) : query.id;
    $("picker").append(el("option", { value: String(i) }, oneLine(label)));
  });
  $("picker").addEventListener("change", () => go(Number($("picker").value)));
  $("filter").addEventListener("input", fillQueries);
  $("tab-proponents").addEventListener("click", () => go(state.query, "proponents"));
  $("tab-opponents").addEventListener("click", () => go(state.query, "opponents"));
  $("theme-button").addEventListener("click", otherTheme);
  $("help-button").addEventListener("click", () => $("help").showModal());
  setTheme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  document.addEventListener("keydown", (event) => {
    const typing = event.target.matches("input, select, textarea");
    if (typing && event.key === "Escape") event.target.blur();
    if (typing || event.ctrlKey || event.metaKey || event.altKey || $("help").open) return;
    const action = KEYS[event.key];
    if (action) { event.preventDefault(); action(); }
  });
  const hash = new URLSearchParams(location.hash.slice(1));
  const found = data.queries.findIndex((query) => query.id === hash.get("q"));
  fillQueries();
  go(Math.max(0, found), hash.get("list") === "opponents" ? "opponents" : "proponents");
  if (hash.get("open") !== null) {
    step(Number(hash.get("open")) + 1);
    if (document.activeElement.getAttribute("aria-expanded") === "false") document.activeElement.click();
  }
}

start();
