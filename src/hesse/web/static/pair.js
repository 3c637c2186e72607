// Two texts side by side: which word of the completion each token of the training row moved, and the other way round.

import { el, appendText, nats, oneLine } from "/shared/text.js";
import { paintToken } from "/shared/terms.js";
import { get, inRun } from "./api.js";
import { address } from "./place.js";

function strongest(rows) {
  const sizes = rows.flat().map(Math.abs).filter((v) => v > 0).sort((a, b) => a - b);
  return sizes.length ? sizes[Math.min(sizes.length - 1, Math.floor(0.99 * sizes.length))] : 0;
}

const sum = (values) => values.reduce((total, value) => total + value, 0);

export function pairPage({ main, signal }) {
  let place = {};

  // Tokens as spans that can be pointed at, or reached with the arrows; `paint` colours them anew.
  function strip(tokens, label, onChoose) {
    const node = el("p", { class: "text strip", tabindex: "0", "aria-label": `${label}; left and right move between tokens` });
    const spans = tokens.map((token, i) => {
      const span = el("span", { class: "tok", "data-i": i });
      appendText(span, token || "·");
      return span;
    });
    node.append(...spans);
    let chosen = -1;
    const choose = (i) => {
      if (spans[chosen]) spans[chosen].classList.remove("on");
      chosen = i;
      if (spans[chosen]) spans[chosen].classList.add("on");
      onChoose(chosen);
    };
    node.addEventListener("pointerover", (event) => {
      const span = event.target.closest(".tok");
      if (span) choose(Number(span.dataset.i));
    });
    node.addEventListener("pointerleave", () => choose(-1));
    node.addEventListener("blur", () => choose(-1));
    node.addEventListener("keydown", (event) => {
      const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!by) return;
      event.preventDefault();
      choose(Math.max(0, Math.min(spans.length - 1, chosen + by)));
    });
    const paint = (values, scale) => spans.forEach((span, i) => {
      span.style.backgroundColor = "";
      span.classList.remove("strong");
      paintToken(span, values[i] || 0, scale);
    });
    return { node, paint };
  }

  function map(values, scale, left, above, readout) {
    const canvas = el("canvas", { class: "map", role: "img", "aria-label": "Share of the score by word of the completion (rows) and token of the training row (columns)" });
    const [rows, columns] = [values.length, values[0].length];
    const cell = Math.max(2, Math.min(22, Math.floor(900 / columns)));
    const tall = Math.max(14, Math.min(26, cell * 2));
    canvas.width = columns * cell;
    canvas.height = rows * tall;
    const draw = () => {
      const style = getComputedStyle(document.documentElement);
      const colour = { 1: style.getPropertyValue("--blue").trim(), "-1": style.getPropertyValue("--orange").trim() };
      const context = canvas.getContext("2d");
      context.clearRect(0, 0, canvas.width, canvas.height);
      values.forEach((line, y) => line.forEach((value, x) => {
        const share = scale > 0 ? Math.max(-1, Math.min(1, value / scale)) : 0;
        if (!share) return;
        context.fillStyle = `rgb(${colour[share > 0 ? 1 : -1]} / ${Math.abs(share)})`;
        context.fillRect(x * cell, y * tall, cell, tall - 1);
      }));
    };
    draw();
    canvas.addEventListener("pointermove", (event) => {
      const box = canvas.getBoundingClientRect();
      const x = Math.floor(((event.clientX - box.left) / box.width) * columns);
      const y = Math.floor(((event.clientY - box.top) / box.height) * rows);
      if (values[y] && values[y][x] !== undefined) readout(`‹${oneLine(above[x])}› → ‹${oneLine(left[y])}›`, values[y][x]);
    });
    return canvas;
  }

  function show(found) {
    const back = el("a", { class: "back", href: address({ page: "query", run: place.run, question: place.question, query: place.query, row: place.row }) }, "← back to the list");
    main.className = "narrow";
    if (!found.pairs || !found.query.targets) {
      main.replaceChildren(back, el("p", { class: "empty" }, "These scores were not kept word by word: score with --per-token --per-query-token."));
      return;
    }
    const values = found.pairs;
    const words = found.query.targets.map((i) => found.query.tokens[i]);
    const scale = strongest(values);
    const told = el("span", {});
    const readout = (what, value) => told.replaceChildren(el("b", {}, what), "  ", el("b", {}, nats(value)), " nats");
    const columns = values[0].map((_, x) => values.map((line) => line[x]));
    const totals = { words: values.map(sum), tokens: columns.map(sum) };
    const both = { words: Math.max(...totals.words.map(Math.abs), 0), tokens: strongest([totals.tokens]) };
    const rest = () => {
      answer.paint(totals.words, both.words);
      text.paint(totals.tokens, both.tokens);
      told.replaceChildren(`In all ${nats(found.score)} nats. Point at a word of either text to see what it moved, or what moved it.`);
    };
    const answer = strip(words, "The completion", (y) => {
      if (y < 0) { rest(); return; }
      text.paint(values[y], scale);
      readout(`‹${oneLine(words[y])}›`, totals.words[y]);
    });
    const text = strip(found.tokens, "The training row", (x) => {
      if (x < 0) { rest(); return; }
      answer.paint(columns[x], scale);
      readout(`‹${oneLine(found.tokens[x])}›`, totals.tokens[x]);
    });
    const prompt = el("p", { class: "context" });
    appendText(prompt, found.query.prompt);
    const legend = el("span", { class: "legend", "aria-hidden": "true" }, nats(-scale), el("i"), nats(scale));
    main.replaceChildren(el("h1", { class: "hidden" }, "A completion and a training row"), back,
      el("section", { class: "card-plain" }, el("h2", {}, "The completion"), prompt, answer.node),
      el("section", { class: "card-plain" }, el("h2", {}, "The training row"), text.node),
      el("p", { class: "readout" }, told, legend),
      el("section", { class: "card-plain" }, el("h2", {}, "Word by word"), el("div", { class: "scroll" }, map(values, scale, words, found.tokens, readout)),
        el("p", { class: "note" }, "A row is a word of the completion, a column a token of the training row. What predicts a token sits one place before it.")));
    rest();
  }

  const open = async (next) => {
    place = next;
    show(await get(inRun(place.run, "pair"), { question: place.question, query: place.query, row: place.row }, signal));
  };
  return { open, update: open };
}
