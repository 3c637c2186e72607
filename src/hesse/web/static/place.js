// Where the reader is, kept in the address: every view can be linked to, and the back button works.

export function here() {
  const [path, query] = location.hash.replace(/^#/, "").split("?");
  const parts = path.split("/").filter(Boolean);
  const place = Object.fromEntries(new URLSearchParams(query || ""));
  if (parts[0] === "run" && parts.length >= 3) return { ...place, run: decode(parts[1]), page: parts[2] };
  return { page: "runs" };
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

export function address(place) {
  if (place.page === "runs" || !place.run) return "#/runs";
  const { run, page, ...rest } = place;
  const query = new URLSearchParams(Object.entries(rest).filter(([, value]) => value !== "" && value !== null && value !== undefined));
  return `#/run/${encodeURIComponent(run)}/${page}?${query}`;
}

// One step is one entry of the history; changes within a view replace it, so that back leaves the view.
export function go(place, { replace = false } = {}) {
  const target = address(place);
  if (target === location.hash) return;
  if (replace) {
    history.replaceState(null, "", target);
    dispatchEvent(new HashChangeEvent("hashchange"));
  } else {
    location.hash = target;
  }
}
