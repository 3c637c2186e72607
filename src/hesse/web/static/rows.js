// A list of any length, of which only what is in sight is in the page. Rows have one height; pages of 50 are fetched.

import { el } from "/shared/text.js";

const PAGE = 50;
const MARGIN = 6; // rows above and below the window

export class RowList {
  constructor({ fetchPage, drawRow, onShown, onEmpty }) {
    Object.assign(this, { fetchPage, drawRow, onShown, onEmpty });
    this.node = el("div", { class: "rows", role: "list", "aria-busy": "true" });
    this.items = new Map();
    this.pages = new Set();
    this.total = 0;
    this.chosen = -1;
    this.generation = 0;
    this.frame = 0;
    this.onScroll = () => {
      if (!this.frame) this.frame = requestAnimationFrame(() => { this.frame = 0; this.draw(); });
    };
    addEventListener("scroll", this.onScroll, { passive: true });
    addEventListener("resize", this.onScroll, { passive: true });
  }

  close() {
    this.generation += 1;
    removeEventListener("scroll", this.onScroll);
    removeEventListener("resize", this.onScroll);
  }

  // Begin anew: another query, end, filter.
  async reset() {
    this.generation += 1;
    this.items.clear();
    this.pages.clear();
    this.chosen = -1;
    this.total = 0;
    this.node.setAttribute("aria-busy", "true");
    const generation = this.generation;
    const found = await this.load(0);
    if (generation !== this.generation) return found;
    this.node.setAttribute("aria-busy", "false");
    this.node.replaceChildren();
    if (!this.total) this.node.append(this.onEmpty());
    this.draw();
    return found;
  }

  async load(page) {
    if (this.pages.has(page)) return null;
    this.pages.add(page);
    const generation = this.generation;
    const found = await this.fetchPage(page * PAGE, PAGE);
    if (generation !== this.generation) return found;
    this.total = found.total;
    found.items.forEach((item, i) => this.items.set(page * PAGE + i, item));
    return found;
  }

  height() {
    return parseFloat(getComputedStyle(this.node).getPropertyValue("--row-px")) || 88;
  }

  range() {
    const height = this.height();
    const top = -this.node.getBoundingClientRect().top;
    const first = Math.max(0, Math.floor(top / height) - MARGIN);
    const last = Math.min(this.total - 1, Math.ceil((top + innerHeight) / height) + MARGIN);
    return [first, last];
  }

  draw() {
    if (!this.total) {
      this.node.style.height = "";
      return;
    }
    const height = this.height();
    this.node.style.height = `${this.total * height}px`;
    const [first, last] = this.range();
    const present = new Map([...this.node.children].map((node) => [Number(node.dataset.i), node]));
    for (const [i, node] of present) if (!(i >= first && i <= last) && !node.contains(document.activeElement)) node.remove();
    const shown = [];
    for (let i = first; i <= last; i += 1) {
      const item = this.items.get(i);
      if (!item) {
        const page = Math.floor(i / PAGE);
        if (!this.pages.has(page)) this.load(page).then(() => this.draw(), () => this.pages.delete(page));
        continue;
      }
      shown.push(item);
      if (present.has(i) && present.get(i).isConnected) {
        present.get(i).style.top = `${i * height}px`; // a narrower window has higher rows
        continue;
      }
      const node = this.drawRow(item, i);
      node.dataset.i = i;
      node.style.top = `${i * height}px`;
      node.setAttribute("role", "listitem");
      node.setAttribute("aria-posinset", String(i + 1));
      node.setAttribute("aria-setsize", String(this.total));
      this.node.append(node);
    }
    if (shown.length) this.onShown(shown);
  }

  redraw() {
    this.node.replaceChildren();
    if (!this.total) this.node.append(this.onEmpty());
    this.draw();
  }

  nodeAt(i) {
    return this.node.querySelector(`[data-i="${i}"]`);
  }

  choose(i) {
    this.chosen = Math.max(0, Math.min(this.total - 1, i));
    const height = this.height();
    const top = this.node.getBoundingClientRect().top + this.chosen * height;
    if (top < 90) scrollBy(0, top - 90);
    else if (top + height > innerHeight - 10) scrollBy(0, top + height - innerHeight + 10);
    this.draw();
    const node = this.nodeAt(this.chosen);
    if (node) node.querySelector("button").focus({ preventScroll: true });
  }
}
