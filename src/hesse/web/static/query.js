// One query: the rows that moved it, ranked; tokens in colour; search, tags, and ranking by one word of the completion.

import { el, appendText, nats, oneLine, visible } from "/shared/text.js";
import { heat, layerBars, paintToken, tokenScale } from "/shared/terms.js";
import { get, inRun } from "./api.js";
import { address, go, here } from "./place.js";
import { RowList } from "./rows.js";

const WINDOW = 46; // tokens of a text in a row, around its strongest

function peakWindow(values) {
  let peak = 0;
  values.forEach((value, i) => { if (Math.abs(value) > Math.abs(values[peak])) peak = i; });
  const first = Math.max(0, Math.min(peak - 12, values.length - WINDOW));
  return [first, Math.min(values.length, first + WINDOW)];
}

export function queryPage({ main, known, signal, trouble }) {
  let place = {};
  let queries = [];
  let tags = [];
  let query = null;
  let widest = 1;
  let scale = 0;
  let names = [];
  const terms = new Map();
  let asked = new Set();
  let settled = Promise.resolve(); // the first terms of a list are there, and with them its colour scale
  let timer = 0;
  let retry = 0;

  const list = new RowList({
    fetchPage: (offset, limit) => get(inRun(place.run, "list"), { ...choice(), text: place.text, where: place.where, offset, limit }, signal),
    drawRow,
    onShown: (items) => {
      const loading = loadTerms(items).catch(trouble);
      if (!scale) settled = loading;
    },
    onEmpty: () => el("p", { class: "empty" }, place.text || place.where ? "No row matches." : `No ${sign() > 0 ? "proponents" : "opponents"} among the rows that were scored.`),
  });
  const nav = el("ol", { id: "queries" });
  const filter = el("input", { id: "filter", type: "search", placeholder: "Filter queries", autocomplete: "off", spellcheck: "false" });
  const picker = el("select", {});
  const head = el("section", { class: "question", "aria-label": "Query" });
  const search = el("input", { type: "search", placeholder: "Search the texts  /", "aria-label": "Search the texts", autocomplete: "off", spellcheck: "false" });
  const tagged = el("select", { "aria-label": "Only rows with a tag" });
  const count = el("p", { class: "explain", role: "status" });
  const detail = el("aside", { class: "detail", "aria-label": "Row" });
  const tabs = { 1: el("button", { type: "button", role: "tab" }, "Proponents"), "-1": el("button", { type: "button", role: "tab" }, "Opponents") };

  const sign = () => (place.list === "opponents" ? -1 : 1);
  const choice = () => ({ question: place.question, query: place.query, sign: sign(), target: place.target });
  const to = (changes, options) => go({ ...place, page: "query", ...changes }, options);

  function frame() {
    main.className = "wide";
    const navigation = el("nav", { class: "queries", "aria-label": "Queries" },
      el("label", { class: "filter" }, el("span", { class: "hidden" }, "Filter queries"), filter),
      el("label", { class: "picker" }, el("span", { class: "hidden" }, "Query"), picker), nav);
    const tools = el("div", { class: "tabs" }, el("div", { role: "tablist", "aria-label": "Which end", class: "ends" }, tabs[1], tabs[-1]), search, tagged, count);
    main.replaceChildren(el("h1", { class: "hidden" }, "Query"), el("div", { class: "three" }, navigation, el("div", { class: "middle" }, head, tools, list.node), detail));
    tabs[1].addEventListener("click", () => to({ list: "", row: "" }));
    tabs[-1].addEventListener("click", () => to({ list: "opponents", row: "" }));
    filter.addEventListener("input", fillQueries);
    picker.addEventListener("change", () => to({ query: queries[picker.value].id, target: "", row: "" }));
    search.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(() => to({ text: search.value, row: "" }, { replace: true }), 200);
    });
    tagged.addEventListener("change", () => to({ where: tagged.value, row: "" }));
  }

  function fillQueries() {
    const wanted = filter.value.toLowerCase();
    const items = [];
    queries.forEach((item) => {
      const whole = `${item.id} ${item.prompt}${item.completion}`;
      if (wanted && !whole.toLowerCase().includes(wanted)) return;
      const tail = item.prompt.length > 70 ? "…" + item.prompt.slice(-70) : item.prompt;
      const label = el("span", { class: "clip" }, oneLine(tail), el("b", {}, oneLine(item.completion.slice(0, 80) || item.id)));
      const link = el("a", { href: address({ ...place, page: "query", query: item.id, target: "", row: "" }), "aria-current": item.id === query.id ? "true" : null }, label);
      items.push(el("li", {}, link));
    });
    nav.replaceChildren(...(items.length ? items : [el("li", { class: "empty" }, "No query matches.")]));
    const chosen = nav.querySelector('[aria-current="true"]');
    if (chosen) nav.scrollTop = chosen.offsetTop - nav.offsetTop - 60;
  }

  function showQuery() {
    const text = el("p", { class: "prompt" });
    const targets = new Set(query.targets || []);
    if (query.tokens && targets.size) {
      query.tokens.forEach((token, i) => {
        if (!targets.has(i)) {
          appendText(text, token);
          return;
        }
        const chip = el("button", { type: "button", class: "target", "aria-pressed": String(String(i) === place.target), title: "Rank by the effect on this word" });
        const word = token.trimStart();
        text.append(token.slice(0, token.length - word.length));
        appendText(chip, word || "·");
        chip.addEventListener("click", () => to({ target: String(i) === place.target ? "" : String(i), row: "" }));
        text.append(chip);
      });
    } else {
      text.append(visible(query.prompt), el("mark", {}, visible(query.completion)));
    }
    const number = queries.findIndex((item) => item.id === query.id);
    const line = el("p", { class: "eyebrow" }, el("span", {}, oneLine(query.id)), el("span", {}, queries.length > 1 ? `${number + 1} of ${queries.length}` : ""));
    const note = place.target ? el("p", { class: "note" }, "Ranked by the effect on one word. ", link("Back to the whole completion", { target: "" })) : null;
    head.replaceChildren(line, text, ...(note ? [note] : []));
    picker.replaceChildren(...queries.map((item, i) => el("option", { value: String(i) }, oneLine(`${item.prompt.slice(-50)}${item.completion.slice(0, 40)}` || item.id))));
    picker.value = String(number);
    fillQueries();
  }

  function link(label, changes) {
    return el("a", { href: address({ ...place, page: "query", ...changes }) }, label);
  }

  function showTools() {
    for (const side of [1, -1]) {
      tabs[side].setAttribute("aria-selected", String(side === sign()));
      tabs[side].classList.toggle("for", side > 0);
      tabs[side].classList.toggle("against", side < 0);
    }
    if (document.activeElement !== search) search.value = place.text || "";
    const options = [el("option", { value: "" }, "All rows")];
    for (const tag of tags) {
      for (const [value, number] of tag.values) {
        options.push(el("option", { value: `${tag.key}:${value}` }, oneLine(`${tag.key}: ${value} (${number.toLocaleString("en")})`)));
      }
    }
    tagged.replaceChildren(...options);
    tagged.value = place.where || "";
    tagged.hidden = !tags.length;
  }

  function drawRow(item, i) {
    const side = sign() > 0 ? "for" : "against";
    const bar = el("i");
    bar.style.width = `${widest > 0 ? (100 * Math.abs(item.score)) / widest : 0}%`;
    const meta = el("span", { class: "meta" }, el("span", {}, oneLine(item.id)));
    for (const key of ["source", "domain", "dataset"]) if (item.metadata[key]) meta.append(el("span", {}, oneLine(String(item.metadata[key]))));
    if (item.copies) meta.append(el("span", { class: "copies" }, `×${item.copies + 1} same text`));
    const snippet = el("span", { class: "snippet", dir: "auto" });
    fillSnippet(snippet, item);
    const open = el("button", { type: "button", class: "open" }, snippet, meta);
    open.addEventListener("click", () => { list.chosen = i; to({ row: item.id === place.row ? "" : item.id }, { replace: Boolean(place.row) }); });
    open.addEventListener("focus", () => { list.chosen = i; });
    const row = el("div", { class: `line ${side}`, "data-id": item.id, "aria-current": item.id === place.row ? "true" : null },
      el("span", { class: "rank" }, item.rank.toLocaleString("en")),
      el("span", { class: "score" }, el("span", { class: "number" }, nats(item.score)), el("span", { class: "bar", "aria-hidden": "true" }, bar)), open);
    return row;
  }

  function fillSnippet(node, item) {
    const known = terms.get(item.id);
    if (item.text === null) {
      node.textContent = "(the run keeps no text)";
      node.classList.add("absent");
      return;
    }
    if (!known || !known.values) {
      node.textContent = oneLine(item.text);
      return;
    }
    const [first, last] = peakWindow(known.values);
    node.replaceChildren(first > 0 ? "… " : "");
    for (let i = first; i < last; i += 1) {
      const span = el("span", { class: "tok" }, oneLine(known.tokens[i]));
      paintToken(span, known.values[i], scale);
      node.append(span);
    }
    if (last < known.tokens.length) node.append(" …");
  }

  // Terms come after their rows; what has scrolled by meanwhile is not asked for again.
  async function loadTerms(items) {
    const missing = items.map((item) => item.id).filter((id) => !terms.has(id) && !asked.has(id)).slice(0, 50);
    if (!missing.length || !known.runs.length) return;
    missing.forEach((id) => asked.add(id));
    const generation = list.generation;
    const found = await get(inRun(place.run, "terms"), { question: place.question, query: place.query, target: place.target, row: missing }, signal);
    if (generation !== list.generation) return;
    for (const row of found.rows) terms.set(row.id, row);
    if (!scale) scale = tokenScale([...terms.values()]);
    for (const node of list.node.querySelectorAll(".line")) {
      const item = list.items.get(Number(node.dataset.i));
      if (item && missing.includes(item.id)) fillSnippet(node.querySelector(".snippet"), item);
    }
  }

  async function showRow() {
    for (const node of list.node.querySelectorAll(".line")) {
      if (node.dataset.id === place.row) node.setAttribute("aria-current", "true");
      else node.removeAttribute("aria-current");
    }
    document.body.classList.toggle("reading", Boolean(place.row));
    if (!place.row) {
      detail.replaceChildren(el("p", { class: "empty" }, "Open a row to read it, token by token."));
      return;
    }
    const wanted = place.row;
    await settled;
    let row = terms.get(wanted);
    if (!row) {
      const found = await get(inRun(place.run, "terms"), { question: place.question, query: place.query, target: place.target, row: wanted }, signal);
      row = found.rows[0];
      terms.set(row.id, row);
      if (wanted !== place.row) return;
    }
    if (row.layers && !names.length) names = (await get(inRun(place.run, "layers"), { ...choice(), count: 1, target: "" }, signal)).names;
    detail.replaceChildren(panel(row));
  }

  function panel(row) {
    const close = el("a", { class: "back", href: address({ ...place, row: "" }) }, "← back to the list");
    const node = el("div", { class: "panel" }, el("h2", { class: "hidden" }, oneLine(row.id)), el("div", { class: "row" }, close, el("b", { class: "number" }, `${nats(row.score)} nats`)));
    if (row.values) {
      const shared = scale || tokenScale([row]);
      node.append(heat({ tokens: row.tokens, values: row.values, score: row.score }, shared));
      node.append(el("p", { class: "note" }, "What predicts a word sits one place before it."));
      if (query.targets) node.append(el("p", {}, el("a", { href: address({ page: "pair", run: place.run, question: place.question, query: query.id, row: row.id }) }, "Which word moved which: token by token")));
    } else if (row.text !== null) {
      const text = el("p", { class: "text" });
      appendText(text, row.text);
      node.append(text, el("p", { class: "note" }, "No shares of tokens were kept: score with --per-token."));
    }
    if (row.layers && row.layers.length) node.append(layerBars(names, row.layers));
    const facts = el("dl", { class: "facts" });
    for (const [name, value] of [["id", row.id], ...Object.entries(row.metadata)]) {
      facts.append(el("dt", {}, oneLine(name)), el("dd", {}, visible(typeof value === "string" ? value : JSON.stringify(value))));
    }
    node.append(el("div", {}, el("h3", {}, "Source"), facts));
    return node;
  }

  async function refill() {
    const top = list.node.getBoundingClientRect().top + scrollY - 120;
    if (scrollY > top) scrollTo(0, Math.max(0, top));
    terms.clear();
    asked = new Set();
    scale = 0;
    const found = await list.reset();
    if (!found) return;
    widest = found.widest;
    list.redraw();
    const note = found.indexing ? " · copies not yet put together, search not yet ready" : "";
    count.textContent = `${found.total.toLocaleString("en")} ${found.total === 1 ? "row" : "rows"} that make ${place.target ? "this word" : "the completion"} ${sign() > 0 ? "more" : "less"} likely${note}`;
    clearTimeout(retry);
    if (found.indexing) retry = setTimeout(() => reindex().catch(trouble), 1500);
  }

  async function reindex() {
    const found = await get(inRun(place.run, "queries"), { question: place.question }, signal);
    tags = found.tags;
    showTools();
    await refill();
  }

  async function update(next) {
    const before = place;
    const wanted = next.query && queries.some((item) => item.id === next.query) ? next.query : queries[0].id;
    const other = !query || wanted !== query.id;
    place = { ...next, query: wanted };
    const changed = other || ["list", "target", "text", "where"].some((key) => (before[key] || "") !== (place[key] || ""));
    if (changed) showTools();
    const filled = changed ? refill() : null; // the list does not wait for the words of the query
    if (other) query = await get(inRun(place.run, "query"), { question: place.question, query: wanted }, signal);
    if (other || before.target !== place.target) showQuery();
    await filled;
    await showRow();
  }

  function step(by) {
    const at = queries.findIndex((item) => item.id === query.id) + by;
    if (queries[at]) to({ query: queries[at].id, target: "", row: "" });
  }

  return {
    async open(first) {
      frame();
      const found = await get(inRun(first.run, "queries"), { question: first.question }, signal);
      ({ queries, tags } = found);
      await update(first);
    },
    update,
    leave() {
      clearTimeout(timer);
      clearTimeout(retry);
      list.close();
      document.body.classList.remove("reading");
    },
    keys: {
      j: () => list.choose(list.chosen + 1),
      k: () => list.choose(list.chosen - 1),
      n: () => step(1),
      b: () => step(-1),
      p: () => to({ list: "", row: "" }),
      o: () => to({ list: "opponents", row: "" }),
      "/": () => search.focus(),
      Escape: () => here().row && to({ row: "" }),
    },
  };
}
