// Calls to the server, all of them JSON; a call that is no longer wanted is dropped by its signal.

export class Refused extends Error {}

async function read(response) {
  let found = null;
  try {
    found = await response.json();
  } catch {
    throw new Refused(response.status === 403 ? "The session ended. Open the address that the server printed." : `The server answered ${response.status}.`);
  }
  if (!response.ok) throw new Refused(found.error || `The server answered ${response.status}.`);
  return found;
}

export async function get(path, parameters = {}, signal = undefined) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== null && one !== undefined && one !== "") query.append(name, one);
    }
  }
  const text = query.toString();
  return read(await fetch(`/api${path}${text ? `?${text}` : ""}`, { signal }));
}

export async function post(path, body) {
  return read(await fetch(`/api${path}`, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) }));
}

export const inRun = (run, page) => `/runs/${encodeURIComponent(run)}/${page}`;
