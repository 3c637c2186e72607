// Whether the fit can be trusted: warnings, coverage, spectra with their damping, and what the scores do not mean.

import { el, oneLine } from "/shared/text.js";
import { get, inRun } from "./api.js";

const SVG = "http://www.w3.org/2000/svg";

function shape(name, attributes) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}

function spectrum(layer, edges) {
  const [width, height] = [220, 40];
  const picture = shape("svg", { viewBox: `0 0 ${width} ${height}`, class: "spectrum", role: "img", "aria-label": `Eigenvalues of ${layer.name}` });
  const most = Math.max(1, ...layer.counts.map((n) => Math.log1p(n)));
  const step = width / layer.counts.length;
  layer.counts.forEach((n, i) => {
    const tall = (height * Math.log1p(n)) / most;
    picture.append(shape("rect", { x: i * step, y: height - tall, width: Math.max(0.5, step - 0.6), height: tall }));
  });
  if (layer.damping > 0 && edges.length) {
    const at = ((Math.log10(layer.damping) - edges[0]) / (edges[edges.length - 1] - edges[0])) * width;
    picture.append(shape("line", { x1: at, x2: at, y1: 0, y2: height }));
  }
  return picture;
}

const counted = (value) => Math.round(value).toLocaleString("en");
const number = (value) => (value === null || value === undefined ? "" : value === 0 ? "0" : Math.abs(value) >= 1e-3 && Math.abs(value) < 1e6 ? value.toLocaleString("en", { maximumSignificantDigits: 3 }) : value.toExponential(1));

export function healthPage({ main, signal }) {
  function show(found) {
    main.className = "narrow";
    const warnings = found.warnings.length
      ? el("ul", { class: "warnings" }, ...found.warnings.map((line) => el("li", {}, oneLine(line))))
      : el("p", { class: "note" }, "Nothing to warn of.");
    const seen = found.coverage;
    const coverage = seen.sequences && seen.of ? `Curvature from ${counted(seen.sequences)} of ${counted(seen.of)} sequences, ${number(seen.mean_tokens)} predicted tokens each on average.` : "";
    const head = el("tr", {}, ...["weight matrix", "shape", "eigenvalues, log scale; line: damping", "mean", "left by the damping", "zero", "kept of queries"].map((name) => el("th", { scope: "col" }, name)));
    const body = found.layers.map((layer) => el("tr", {},
      el("th", { scope: "row" }, oneLine(layer.name)), el("td", {}, layer.shape.join(" × ")), el("td", {}, spectrum(layer, found.edges)),
      el("td", {}, number(layer.mean)), el("td", {}, `${counted(layer.effective)} of ${counted(layer.shape[0] * layer.shape[1])}`), el("td", {}, counted(layer.zeros)),
      el("td", {}, layer.captured === null || layer.captured === undefined ? "all" : `${(100 * layer.captured).toFixed(1)} %`)));
    const settings = el("dl", { class: "facts" });
    for (const [name, value] of Object.entries(found.settings)) settings.append(el("dt", {}, oneLine(name)), el("dd", {}, oneLine(String(value))));
    const lines = (kind) => el("ul", { class: kind }, ...found.ledger.filter((line) => (line[0] === "exact") === (kind === "exact")).map((line) => el("li", {}, line[1])));
    main.replaceChildren(el("h1", {}, "Health"), warnings, el("p", { class: "sub" }, coverage),
      el("div", { class: "scroll" }, el("table", { class: "health" }, el("thead", {}, head), el("tbody", {}, ...body))),
      el("section", { class: "card" }, el("h2", {}, "What these numbers are"), el("div", { class: "columns" },
        el("div", {}, el("h3", {}, "Exact"), lines("exact"), el("h3", {}, "Approximate"), lines("approximate")),
        el("div", {}, el("h3", {}, "Read it with care"), el("ul", {}, ...found.caveats.map((line) => el("li", {}, line))), el("h3", {}, "Settings"), settings))));
  }
  const open = async (place) => {
    main.className = "narrow";
    main.replaceChildren(el("h1", {}, "Health"), el("p", { class: "empty" }, "Reading the spectra …"));
    show(await get(inRun(place.run, "health"), { question: place.question }, signal));
  };
  return { open };
}
