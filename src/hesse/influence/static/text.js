// Elements, and text that cannot act on the page: nothing from a run reaches it but through textContent.

export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") node.className = value;
    else if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

// Control, bidirectional and zero-width characters would act on the page rather than show: give each a visible form.
const ACTING = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;
export function visible(text) {
  return text.replace(/\r\n/g, "\n").replace(ACTING, (c) => {
    const code = c.codePointAt(0);
    if (code < 0x20) return String.fromCodePoint(0x2400 + code);
    if (code === 0x7f) return "\u2421";
    return "⟨" + code.toString(16).toUpperCase().padStart(4, "0") + "⟩";
  });
}
export const oneLine = (text) => visible(text).replace(/\n/g, " ↵ ").replace(/\t/g, " → ");

export function appendText(node, text) {
  for (const part of visible(text).split(/(\n|\t)/)) {
    if (part === "\n") node.append(el("span", { class: "glyph", "aria-hidden": "true" }, "↵"), "\n");
    else if (part === "\t") node.append(el("span", { class: "glyph", "aria-hidden": "true" }, "→"), "\t");
    else if (part) node.append(part);
  }
}

export function nats(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  const digits = size >= 1e-4 && size < 1000 ? size.toPrecision(3) : size.toExponential(2);
  return (value < 0 ? "−" : "+") + digits;
}
