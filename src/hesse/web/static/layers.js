// Which layers carry the scores: one line a row of the list, or a mean a tag, one column a weight matrix.

import { el, nats, oneLine } from "/shared/text.js";
import { get, inRun } from "./api.js";
import { address, go } from "./place.js";

export function layersPage({ main, signal }) {
  let place = {};
  let queries = [];
  let tags = [];

  function controls() {
    const to = (changes) => go({ ...place, page: "layers", ...changes });
    const picker = el("select", { "aria-label": "Query" });
    picker.append(...queries.map((item) => el("option", { value: item.id }, oneLine(`${item.prompt.slice(-60)}${item.completion.slice(0, 40)}` || item.id))));
    picker.value = place.query;
    picker.addEventListener("change", () => to({ query: picker.value }));
    const end = el("select", { "aria-label": "Which end" }, el("option", { value: "" }, "Proponents"), el("option", { value: "opponents" }, "Opponents"));
    end.value = place.list || "";
    end.addEventListener("change", () => to({ list: end.value }));
    const group = el("select", { "aria-label": "One line for" }, el("option", { value: "" }, "one line a row"), ...tags.map((tag) => el("option", { value: tag.key }, `one line a ${oneLine(tag.key)}`)));
    group.value = place.tag || "";
    group.addEventListener("change", () => to({ tag: group.value }));
    return el("div", { class: "row controls" }, picker, end, group);
  }

  function show(found) {
    main.className = "narrow";
    const title = el("h1", {}, "Layers");
    if (!found.rows) {
      main.replaceChildren(title, controls(), el("p", { class: "empty" }, "No shares of layers were kept: score with --per-layer."));
      return;
    }
    const sizes = found.rows.flatMap((row) => row.values).map(Math.abs).sort((a, b) => a - b);
    const scale = sizes[Math.floor(0.99 * (sizes.length - 1))] || 0;
    const told = el("span", {}, "Point at a cell for its layer and share.");
    const legend = el("span", { class: "legend", "aria-hidden": "true" }, nats(-scale), el("i"), nats(scale));
    const table = el("div", { class: "layer-map" });
    for (const row of found.rows) {
      const label = row.id ? el("a", { href: address({ page: "query", run: place.run, question: place.question, query: place.query, list: place.list, row: row.id }), title: oneLine(row.label) }, oneLine(row.text || row.label))
        : el("span", {}, `${oneLine(row.label)} (${row.count})`);
      const canvas = el("canvas", { role: "img", "aria-label": "Share of the score by weight matrix" });
      canvas.width = found.names.length;
      canvas.height = 1;
      const style = getComputedStyle(document.documentElement);
      const context = canvas.getContext("2d");
      row.values.forEach((value, x) => {
        const share = scale > 0 ? Math.max(-1, Math.min(1, value / scale)) : 0;
        if (!share) return;
        context.fillStyle = `rgb(${style.getPropertyValue(share > 0 ? "--blue" : "--orange").trim()} / ${Math.abs(share)})`;
        context.fillRect(x, 0, 1, 1);
      });
      canvas.addEventListener("pointermove", (event) => {
        const box = canvas.getBoundingClientRect();
        const x = Math.min(found.names.length - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * found.names.length)));
        told.replaceChildren(el("b", {}, oneLine(row.label)), "  ", el("b", {}, oneLine(found.names[x])), "  ", el("b", {}, nats(row.values[x])), " nats");
      });
      table.append(el("div", { class: "layer-line" }, label, canvas));
    }
    const totals = found.names.map((_, x) => found.rows.reduce((sum, row) => sum + row.values[x] * row.count, 0));
    const order = totals.map((value, x) => [value, x]).sort((a, b) => Math.abs(b[0]) - Math.abs(a[0])).slice(0, 8);
    const whole = totals.reduce((sum, value) => sum + value, 0);
    const top = el("ol", { class: "top-layers" }, ...order.map(([value, x]) => el("li", {}, el("b", {}, oneLine(found.names[x])), `  ${nats(value)} nats`, whole ? ` (${Math.round((100 * value) / whole)} %)` : "")));
    main.replaceChildren(title, controls(), el("p", { class: "readout" }, told, legend), table,
      el("p", { class: "note" }, "First layer on the left. A share is a part of a sum; it does not say what would happen without that layer."),
      el("h2", {}, "Where the most of it is"), top);
  }

  const open = async (next) => {
    if (!queries.length) ({ queries, tags } = await get(inRun(next.run, "queries"), { question: next.question }, signal));
    const wanted = queries.some((item) => item.id === next.query) ? next.query : queries[0].id;
    place = { ...next, query: wanted };
    show(await get(inRun(place.run, "layers"), { question: place.question, query: wanted, sign: place.list === "opponents" ? -1 : 1, tag: place.tag }, signal));
  };
  return { open, update: open };
}
