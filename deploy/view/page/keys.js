// What acts: keys, sliders, selectors and a gamepad; which key does what is shown, and can be changed.

import { choice, element } from "/page/elements.js";

const PAD_MS = 30, AXIS_REST = 0.25, PAD_ARROWS = { 12: "ArrowUp", 13: "ArrowDown", 14: "ArrowLeft", 15: "ArrowRight" };
const SPELLED = { ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓", " ": "space" };
const folded = (key) => (key.length === 1 ? key.toLowerCase() : key);
const spelled = (keys) => keys.split("+").map((key) => SPELLED[key] ?? key).join(" + ");

export class Controls {
  // isActive() says whether keys are meant for this view; onPress() is called when a bound key goes down.
  constructor(actions, isActive, onPress) {
    Object.assign(this, { actions, isActive, onPress });
    const [lows, highs] = [actions.low ?? [], actions.high ?? []];
    this.low = lows.map((low, at) => low ?? Math.min(-1, (highs[at] ?? 1) - 2));   // without a bound, sliders have some
    this.high = highs.map((high, at) => high ?? Math.max(1, this.low[at] + 2));
    this.choices = actions.choices.map(() => 0);
    this.reals = this.low.map((low, at) => Math.min(this.high[at], Math.max(low, 0)));
    this.held = new Set();
    this.tapped = new Set();
    this.padHeld = new Set();
    this.store = `keys ${JSON.stringify([actions.kind, actions.choices, actions.low, actions.names])}`;
    this.bindings = this.stored() ?? this.defaults();
    this.changing = null;
    this.place = element("div", {});
    this.build();
    document.addEventListener("keydown", (event) => this.down(event));
    document.addEventListener("keyup", (event) => this.held.delete(folded(event.key)));
    window.addEventListener("blur", () => this.held.clear());
    window.addEventListener("gamepadconnected", () => { this.watching ??= setInterval(() => this.watch(), PAD_MS); });
    window.addEventListener("storage", () => this.load());
    window.addEventListener("bindings", () => this.load());
  }

  load() {
    if (this.changing) return;
    this.bindings = this.stored() ?? this.defaults();
    this.build();
  }

  // [{keys: "w+d", choice: n} | {keys, dimension, sign}]
  defaults() {
    if (this.actions.kind === "discrete") return Object.entries(this.actions.keys ?? {}).map(([keys, number]) => ({ keys, choice: number }));
    const arrows = [["ArrowLeft", 0, -1], ["ArrowRight", 0, 1], ["ArrowDown", 1, -1], ["ArrowUp", 1, 1]];
    return arrows.filter(([, dimension]) => dimension < this.low.length).map(([keys, dimension, sign]) => ({ keys, dimension, sign }));
  }

  stored() {
    try {
      const found = JSON.parse(localStorage.getItem(this.store));
      return Array.isArray(found) ? found : null;
    } catch { return null; }
  }

  nameOf(binding) {
    if (binding.dimension !== undefined) return `${this.dimensionName(binding.dimension)} ${binding.sign > 0 ? "+" : "−"}`;
    return this.choiceName(binding.choice);
  }

  choiceName(number) { return this.actions.kind === "discrete" && this.actions.names?.[number] ? `${number} ${this.actions.names[number]}` : String(number); }
  dimensionName(at) { return (this.actions.kind === "box" && this.actions.names?.[at]) || `dimension ${at}`; }

  down(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const key = folded(event.key);
    if (this.changing) {
      if (key === "Shift") return;
      if (key !== "Tab") event.preventDefault();
      if (!event.repeat) this.rebind(["Escape", "Tab"].includes(key) ? null : key);
      return;
    }
    if (!this.isActive()) return;
    const target = event.target instanceof Element ? event.target : document.body;
    if (target.closest("input, select, textarea") || (target.closest("button, a, summary") && (key === "Enter" || key === " "))) return;
    if (!this.bindings.some((binding) => binding.keys.split("+").includes(key))) return;
    event.preventDefault();
    this.held.add(key);
    this.tapped.add(key);
    if (!event.repeat) this.onPress();
  }

  // Give the binding that is being changed a key; one that had it gets the old one. null leaves it.
  rebind(key) {
    const changed = this.changing, at = this.bindings.indexOf(changed);
    this.changing = null;
    if (key !== null) {
      const other = this.bindings.find((binding) => binding !== changed && binding.keys === key);
      if (other) other.keys = changed.keys;
      changed.keys = key;
      localStorage.setItem(this.store, JSON.stringify(this.bindings));
      window.dispatchEvent(new Event("bindings"));
    }
    this.build();
    this.buttons[at]?.focus();
  }

  // A button of the gamepad that goes down counts as a key does.
  watch() {
    const before = new Set(this.padHeld);
    this.poll();
    const pressed = [...this.padHeld].filter((key) => !before.has(key));
    if (!pressed.length) return;
    if (this.changing) { this.rebind(pressed[0]); return; }
    if (!this.isActive()) return;
    for (const key of pressed) this.tapped.add(key);
    this.onPress();
  }

  poll() {
    this.padHeld.clear();
    this.axes = [];
    for (const pad of navigator.getGamepads?.() ?? []) {
      if (!pad) continue;
      pad.buttons.forEach((button, at) => button.pressed && this.padHeld.add(PAD_ARROWS[at] ?? `Pad${at}`));
      const [x = 0, y = 0] = this.low.length ? [] : pad.axes;   // reals follow the stick itself
      if (Math.abs(x) > AXIS_REST) this.padHeld.add(x < 0 ? "ArrowLeft" : "ArrowRight");
      if (Math.abs(y) > AXIS_REST) this.padHeld.add(y < 0 ? "ArrowUp" : "ArrowDown");
      this.axes = pad.axes.map((value, at) => (at % 2 ? -value : value));
      break;
    }
  }

  // The action of now, as the server stores it; what was tapped since the last call counts.
  action() {
    this.poll();
    const down = new Set([...this.held, ...this.tapped, ...this.padHeld]);
    this.tapped.clear();
    const active = this.bindings.filter((binding) => binding.keys.split("+").every((key) => down.has(key)));
    if (this.actions.kind === "discrete") {
      active.sort((a, b) => b.keys.split("+").length - a.keys.split("+").length);
      const pressed = [...down].map((key) => /^Pad(\d+)$/.exec(key)).find((found) => found && Number(found[1]) < this.actions.choices[0]);
      return active[0]?.choice ?? (pressed ? Number(pressed[1]) : this.choices[0]);
    }
    const reals = this.reals.slice();
    (this.axes ?? []).forEach((value, at) => {
      if (at < reals.length && Math.abs(value) > AXIS_REST) reals[at] = this.low[at] + ((value + 1) / 2) * (this.high[at] - this.low[at]);
    });
    for (const { dimension, sign } of active) if (dimension !== undefined) reals[dimension] = sign < 0 ? this.low[dimension] : this.high[dimension];
    return [...this.choices, ...reals];
  }

  build() {
    const fields = element("div", { className: "bar" });
    this.actions.choices.forEach((count, at) => {
      const label = this.actions.kind === "discrete" ? "without a key" : `choice ${at}`;
      const options = Array.from({ length: count }, (_, number) => [number, this.choiceName(number)]);
      const [select, field] = choice(label, options, (value) => { this.choices[at] = Number(value); });
      select.value = this.choices[at];
      fields.append(field);
    });
    this.low.forEach((low, at) => {
      const output = element("output", {}, this.reals[at].toFixed(2));
      const slider = element("input", { type: "range", min: low, max: this.high[at], step: (this.high[at] - low) / 200, oninput: () => {
        this.reals[at] = Number(slider.value); output.textContent = this.reals[at].toFixed(2);
      } });
      slider.value = this.reals[at];
      fields.append(element("label", {}, this.dimensionName(at), slider, output));
    });
    this.buttons = this.bindings.map((binding, at) => element("button", { type: "button", title: "press, then the new key; Escape leaves it", onclick: () => {
      this.changing = binding; this.build(); this.buttons[at].focus();
    } }, binding === this.changing ? "press a key …" : `${spelled(binding.keys)}: ${this.nameOf(binding)}`));
    const reset = element("button", { type: "button", onclick: () => { localStorage.removeItem(this.store); window.dispatchEvent(new Event("bindings")); this.place.querySelector("summary").focus(); } }, "as at first");
    const wasOpen = this.place.querySelector("details")?.open ?? false;
    const keys = element("details", { open: wasOpen || (!this.place.firstChild && innerWidth > 900) }, element("summary", {}, "Keys (press one to change it; a gamepad's stick and cross are the arrows, its buttons the choices)"), element("div", { className: "bar" }, ...this.buttons, reset));
    this.place.replaceChildren(fields, this.buttons.length ? keys : "");
  }
}
