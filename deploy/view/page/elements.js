// Small helpers: elements, JSON over HTTP, downloads, and the one line for errors.

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name in made && name !== "list") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export function choice(label, options, onchange) {
  const select = element("select", { onchange: () => onchange?.(select.value) });
  for (const [value, text] of options) select.append(element("option", { value }, text));
  return [select, element("label", {}, label, select)];
}

export function say(text) {
  document.getElementById("message").textContent = text;
}

export async function asked(path, body) {
  const options = body === undefined ? {} : { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } };
  const answer = await fetch(path, options);
  const text = await answer.text();
  if (answer.ok) return JSON.parse(text);
  let reason = text;
  try { reason = JSON.parse(text).error; } catch { /* plain text */ }
  throw new Error(reason);
}

export function download(blob, name) {
  const link = element("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// A caption with the entry's name, unless it is the usual one.
export function named(caption, name) {
  return name === "image" || name === "observation" ? caption : `${caption} (${name})`;
}

export function shown(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  return Number.isInteger(value) ? String(value) : Math.abs(value) >= 1000 ? value.toFixed(0) : value.toPrecision(3);
}
