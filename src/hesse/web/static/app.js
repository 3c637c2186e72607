// The frame around the pages: which page is shown, the keys, light and dark, and new questions.

import { el, oneLine } from "/shared/text.js";
import { get, inRun, post, Refused } from "./api.js";
import { healthPage } from "./health.js";
import { layersPage } from "./layers.js";
import { pairPage } from "./pair.js";
import { address, go, here } from "./place.js";
import { queryPage } from "./query.js";
import { runsPage } from "./runs.js";

const PAGES = { runs: runsPage, query: queryPage, pair: pairPage, layers: layersPage, health: healthPage };
const TABS = ["runs", "query", "layers", "health"];
const $ = (id) => document.getElementById(id);
let shown = { name: "", run: "", question: "", page: null };
let known = { runs: [], ask: false };
let calls = new AbortController();

function trouble(error) {
  if (error.name === "AbortError") return;
  $("trouble").textContent = error instanceof Refused ? error.message : `Something went wrong: ${error.message}`;
  $("trouble").hidden = false;
}

async function show() {
  const place = here();
  const name = place.page in PAGES ? place.page : "runs";
  $("trouble").hidden = true;
  tabs(name, place);
  try {
    const same = shown.name === name && shown.run === place.run && shown.question === place.question && shown.page;
    if (same && shown.page.update) {
      await shown.page.update(place);
      return;
    }
    calls.abort();
    calls = new AbortController();
    if (shown.page && shown.page.leave) shown.page.leave();
    const main = $("main");
    const page = PAGES[name]({ main, place, known, signal: calls.signal, trouble });
    shown = { name, run: place.run, question: place.question, page };
    document.title = place.run ? `${oneLine(place.run)} · ${name} · hesse` : "hesse · influence";
    await page.open(place);
  } catch (error) {
    trouble(error);
  }
}

function tabs(name, place) {
  const links = TABS.map((tab, i) => {
    const target = tab === "runs" ? { page: "runs" } : { page: tab, run: place.run, question: place.question, query: place.query };
    if (tab !== "runs" && !place.run) return null;
    const link = el("a", { href: address(target), title: `${tab} (${i + 1})`, "aria-current": tab === name || (tab === "query" && name === "pair") ? "page" : null }, tab);
    return link;
  });
  $("pages").replaceChildren(...links.filter(Boolean));
  $("ask-button").hidden = !(known.ask && place.run);
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  try {
    localStorage.setItem("hesse-theme", theme);
  } catch {
    return; // a browser that keeps nothing asks again next time
  }
}

function otherTheme() {
  setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
}

function firstTheme() {
  let kept = null;
  try {
    kept = localStorage.getItem("hesse-theme");
  } catch {
    kept = null; // as above
  }
  document.documentElement.dataset.theme = kept || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
}

const KEYS = {
  d: otherTheme,
  a: () => !$("ask-button").hidden && $("ask").showModal(),
  "?": () => $("help").showModal(),
};
TABS.forEach((tab, i) => {
  KEYS[String(i + 1)] = () => {
    const link = [...$("pages").children].find((node) => node.textContent === tab);
    if (link) link.click();
  };
});

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const typing = event.target.closest("input, textarea, select");
  if (typing) {
    if (event.key === "Escape") typing.blur();
    return;
  }
  const act = (shown.page && shown.page.keys && shown.page.keys[event.key]) || KEYS[event.key];
  if (!act) return;
  event.preventDefault();
  act();
});

async function ask() {
  const place = here();
  $("ask-go").disabled = true;
  try {
    const { job } = await post(inRun(place.run, "ask"), { prompt: $("ask-prompt").value, completion: $("ask-completion").value });
    for (;;) {
      const state = await get(`/jobs/${job}`);
      if (state.state === "running") $("ask-state").textContent = `Scoring … ${state.sequences.toLocaleString("en")} sequences done`;
      else if (state.state === "failed") throw new Refused(state.error);
      else {
        $("ask-state").textContent = "";
        $("ask").close();
        go({ page: "query", run: place.run, question: state.question });
        return;
      }
      await new Promise((resolve) => setTimeout(resolve, 700));
    }
  } catch (error) {
    $("ask-state").textContent = error.message;
  } finally {
    $("ask-go").disabled = false;
  }
}

async function start() {
  firstTheme();
  $("theme-button").addEventListener("click", otherTheme);
  $("help-button").addEventListener("click", () => $("help").showModal());
  $("ask-button").addEventListener("click", () => $("ask").showModal());
  $("ask-close").addEventListener("click", () => $("ask").close());
  $("ask-go").addEventListener("click", ask);
  try {
    known = await get("/runs");
  } catch (error) {
    trouble(error);
    return;
  }
  addEventListener("hashchange", show);
  const scored = known.runs.filter((run) => (run.questions || []).some((question) => question.done));
  if (!location.hash && known.runs.length === 1 && scored.length === 1) {
    history.replaceState(null, "", address({ page: "query", run: scored[0].name }));
  }
  await show();
}

start();
