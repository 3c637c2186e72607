// The runs on show, and what each has been asked.

import { el, oneLine } from "/shared/text.js";
import { address } from "./place.js";

function terms(question) {
  const kept = [];
  if (question.per_token) kept.push("tokens");
  if (question.per_query_token) kept.push("tokens of the completion");
  if (question.per_layer) kept.push("layers");
  return kept.length ? kept.join(", ") : "totals only";
}

function card(run) {
  const node = el("section", { class: "run", "aria-label": run.name });
  node.append(el("h2", {}, oneLine(run.name)));
  if (run.error) {
    node.append(el("p", { class: "note" }, oneLine(run.error)));
    return node;
  }
  const told = [run.model, run.strategy, run.fisher && `${run.fisher} Fisher`, run.damping && `damping ${run.damping}`, run.dtype, run.num_sequences && `${run.num_sequences.toLocaleString("en")} sequences`];
  node.append(el("p", { class: "sub" }, told.filter(Boolean).map((part) => oneLine(String(part))).join(" · ")));
  if (!run.fitted) node.append(el("p", { class: "note" }, "The fit has not finished; the same command again resumes it."));
  const list = el("ul", { class: "questions" });
  run.questions.forEach((question, i) => {
    const label = question.latest ? "latest scores" : `scores ${i + 1}`;
    if (!question.done) {
      list.append(el("li", {}, `${label}: not finished`));
      return;
    }
    const rank = question.rank === null ? "full rank" : `rank ${question.rank}`;
    const link = el("a", { href: address({ page: "query", run: run.name, question: question.latest ? "" : question.id }) }, label);
    list.append(el("li", {}, link, el("span", { class: "sub" }, `  ${question.sequences.toLocaleString("en")} sequences, ${rank}, ${terms(question)}`)));
  });
  if (!run.questions.length) list.append(el("li", {}, "Nothing has been scored yet: hesse influence score"));
  node.append(list);
  return node;
}

export function runsPage({ main, known }) {
  return {
    open() {
      main.className = "narrow";
      main.replaceChildren(el("h1", {}, "Runs"), ...known.runs.map(card));
    },
  };
}
