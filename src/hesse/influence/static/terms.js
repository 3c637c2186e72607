// The terms of a score: tokens on blue where they raised the completion and on orange where they lowered it; layers as bars.

import { appendText, el, nats, oneLine } from "./text.js";

// One colour scale a list, so that rows compare: the size that 99 % of its tokens stay below. Zero has no colour.
export function tokenScale(list) {
  const sizes = list.flatMap((entry) => entry.values || []).map(Math.abs).filter((v) => v > 0).sort((a, b) => a - b);
  return sizes.length ? sizes[Math.min(sizes.length - 1, Math.floor(0.99 * sizes.length))] : 0;
}

export function paintToken(node, value, scale) {
  const share = scale > 0 ? Math.max(-1, Math.min(1, value / scale)) : 0;
  if (share === 0) return;
  node.style.backgroundColor = `rgb(var(--${share > 0 ? "blue" : "orange"}) / calc(${Math.abs(share).toFixed(3)} * var(--depth)))`;
  if (Math.abs(share) > 0.6) node.classList.add("strong");
}

export function heat(entry, scale) {
  const text = el("p", { class: "text", tabindex: "0", "aria-label": "Text with token scores; left and right move between tokens" });
  const readout = el("span", {}, "Point at a token for its share of the score.");
  const legend = el("span", { class: "legend", "aria-hidden": "true" }, nats(-scale), el("i"), nats(scale));
  const spans = entry.tokens.map((token, i) => {
    const span = el("span", { class: "tok", "data-i": i });
    appendText(span, token);
    if (token === "") span.append(el("span", { class: "glyph" }, "·"));
    paintToken(span, entry.values[i], scale);
    return span;
  });
  text.append(...spans);
  let chosen = -1;
  const choose = (i) => {
    if (spans[chosen]) spans[chosen].classList.remove("on");
    chosen = Math.max(0, Math.min(spans.length - 1, i));
    spans[chosen].classList.add("on");
    const shown = oneLine(entry.tokens[chosen]).slice(0, 60) || "·";
    readout.replaceChildren(el("b", {}, "‹" + shown + "›"), "  ", el("b", {}, nats(entry.values[chosen])), " nats");
  };
  text.addEventListener("pointerover", (event) => {
    const span = event.target.closest(".tok");
    if (span) choose(Number(span.dataset.i));
  });
  text.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    choose(chosen + step);
    spans[chosen].scrollIntoView({ block: "nearest" });
  });
  const whole = Math.abs(entry.score);
  const shown = entry.values.reduce((sum, v) => sum + v, 0);
  const partial = whole > 0 && Math.abs(shown - entry.score) > 0.02 * whole;
  const heading = partial ? `Token by token (the terms shown sum to ${nats(shown)} nats)` : "Token by token";
  return el("div", {}, el("h3", {}, heading), text, el("p", { class: "readout" }, readout, legend));
}

export function layerBars(names, values) {
  const up = Math.max(0, ...values), down = Math.max(0, ...values.map((v) => -v));
  const span = up + down || 1;
  const readout = el("span", {}, "First layer on the left. Point at a bar for its name.");
  const bars = el("div", { class: "layers", role: "img", "aria-label": "Share of the score by weight matrix" });
  bars.style.setProperty("--zero", `${(100 * down) / span}%`);
  values.forEach((value, i) => {
    const bar = el("i", { class: value >= 0 ? "up" : "down" });
    bar.style.height = `${(100 * Math.abs(value)) / span}%`;
    bar.style.bottom = `${(100 * (value >= 0 ? down : down + value)) / span}%`;
    const slot = el("span", { title: `${oneLine(names[i])}: ${nats(value)} nats` }, bar);
    slot.addEventListener("pointerover", () => {
      readout.replaceChildren(el("b", {}, oneLine(names[i])), "  ", el("b", {}, nats(value)), " nats");
    });
    bars.append(slot);
  });
  return el("div", {}, el("h3", {}, "Layer by layer"), bars, el("p", { class: "readout" }, readout));
}
