// The agent in the real environment: seen, believed and expected; a visitor may take over and give back.

import { drawLines } from "/page/chart.js";
import { Clock } from "/page/clock.js";
import { Connection } from "/page/connection.js";
import { element, say, shown } from "/page/elements.js";
import { drawVectors } from "/page/dream.js";
import { Controls } from "/page/keys.js";
import { Pictures } from "/page/pictures.js";

const FIGURES = [["episode", "episode"], ["index", "step"], ["reward", "reward"], ["expected_reward", "expected"], ["reward_sum", "return"], ["continue", "continue"], ["value", "value"]];

export class Agent {
  constructor(place, facts, isActive) {
    Object.assign(this, { place, facts, isActive, history: [], lines: new Map(), charts: new Map() });
    this.connection = new Connection("/ws/play", (reason) => { this.clock.set(false); this.started = false; say(reason); });
    this.clock = new Clock(() => this.step(), isActive);
    this.taken = !facts.has_policy;
    this.controls = new Controls(facts.actions, () => isActive() && this.taken, () => this.clock.running || this.step());
    this.seed = element("input", { type: "number", min: 0, value: 0 });
    this.over = element("button", { type: "button", hidden: !facts.has_policy, onclick: () => this.takeOver(!this.taken) });
    this.who = element("span", { className: "faint" });
    const pictures = element("div", { className: "pictures" });
    this.pictures = new Pictures(pictures);
    this.numbers = element("dl", { className: "numbers" });
    this.side = element("div", {});
    this.vectors = element("div", {});
    place.replaceChildren(
      element("div", { className: "bar" }, ...this.clock.fields, this.over, element("button", { type: "button", onclick: () => this.start() }, "Start anew"), element("label", {}, "seed", this.seed), this.who),
      element("div", { className: "columns" }, element("div", {}, pictures, this.vectors, this.controls.place), element("div", {}, this.numbers, this.side)));
    this.takeOver(this.taken);
  }

  takeOver(taken) {
    this.taken = taken;
    this.over.textContent = taken ? "Give back" : "Take over";
    this.who.textContent = taken ? "you act" : "the policy acts";
    this.controls.place.hidden = !taken;
  }

  async show() { if (!this.started && this.facts.has_model) await this.start(); }

  start() { return this.ask({ do: "start", seed: Number(this.seed.value) }); }

  step() {
    if (!this.started || this.connection.busy) return;
    this.ask({ do: "step", action: this.taken ? this.controls.action() : "policy" });
  }

  async ask(message) {
    try {
      const { header, pictures } = await this.connection.ask(message);
      this.started = true;
      say("");
      if (header.index === 0) this.history = [];
      this.history[header.index] = header;
      this.header = header;
      this.place.dataset.index = header.index;
      await this.pictures.draw(header, pictures);
      this.drawFigures();
    } catch (error) {
      this.clock.set(false);
      say(error.message);
    }
  }

  drawFigures() {
    const header = this.header;
    if (!header) return;
    const rows = FIGURES.filter(([name]) => header[name] !== null && header[name] !== undefined).map(([name, label]) => [label, shown(header[name])]);
    if (header.episode_over) rows.push(["", "episode over"]);
    this.numbers.replaceChildren(...rows.flatMap(([label, value]) => [element("dt", {}, label), element("dd", {}, value)]));
    for (const name of ["value", "reward", "reward_sum"]) {
      const values = Array.from(this.history, (moment) => moment?.[name] ?? null);
      if (values.every((value) => value === null)) continue;
      if (!this.charts.has(name)) {
        const canvas = element("canvas", { className: "chart", role: "img", "aria-label": `${name} over the steps` });
        this.side.append(element("h2", {}, name === "reward_sum" ? "return" : name), canvas);
        this.charts.set(name, canvas);
      }
      drawLines(this.charts.get(name), [{ values, colour: "--one" }]);
    }
    drawVectors(this.vectors, this.lines, this.history, header, []);
  }
}
