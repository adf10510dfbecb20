// The dream: steered a step at a time, back and on by another branch, beside the truth.

import { drawLines, drawState } from "/page/chart.js";
import { Clock } from "/page/clock.js";
import { Connection } from "/page/connection.js";
import { choice, download, element, say, shown } from "/page/elements.js";
import { Controls } from "/page/keys.js";
import { Pictures } from "/page/pictures.js";

const FIGURES = [["reward", "reward"], ["true_reward", "true reward"], ["reward_sum", "sum"], ["continue", "continue"], ["value", "value"], ["entropy", "entropy"], ["error", "error"]];
const CHARTED = ["reward", "reward_sum", "continue", "value", "entropy"];
const MOST_LINES = 8;

export class Dream {
  constructor(place, facts, isActive) {
    Object.assign(this, { place, facts, isActive });
    this.history = [];
    this.connection = new Connection("/ws/dream", (reason) => { this.clock.set(false); this.started = false; say(reason); });
    this.clock = new Clock(() => this.tick(), isActive);
    this.controls = new Controls(facts.actions, () => isActive() && this.source.value === "keyboard", () => this.clock.running || this.step());
    this.build();
  }

  build() {
    const sources = [["keyboard", "keyboard, gamepad"], ...(this.facts.has_policy ? [["policy", "policy"]] : []), ["recorded", "recording"], ["path", "the path dreamed before"]];
    [this.source, this.sourceField] = choice("actions", sources);
    [this.futures, this.futuresField] = choice("futures", this.facts.futures.map((n) => [n, n]), () => this.change());
    [this.sample, this.sampleField] = choice("states", [["true", "sampled"], ["false", "mode"]], () => this.change());
    [this.format, this.formatField] = choice("pictures", [["jpeg", "JPEG"], ["png", "PNG, lossless"]], () => this.change());
    this.seed = element("input", { type: "number", min: 0, value: 0 });
    const button = (text, onclick) => element("button", { type: "button", onclick }, text);
    this.record = button("Record WebM", () => this.film());
    this.file = element("input", { type: "file", accept: ".json,application/json", onchange: () => this.open(), hidden: true });
    this.where = element("span", { className: "faint" });
    this.back = button("Back", () => this.rewind(this.index - 1));
    this.slider = element("input", { type: "range", min: 0, max: 0, value: 0, "aria-label": "moment", oninput: () => { this.clock.set(false); this.rewind(Number(this.slider.value)); } });
    this.position = element("output", {}, "0 of 0");
    this.numbers = element("dl", { className: "numbers" });
    this.error = element("canvas", { className: "chart tall", role: "img", "aria-label": "error over the steps" });
    this.passed = element("p", { className: "faint" });
    this.charts = new Map();
    this.side = element("div", {});
    this.state = element("canvas", { className: "chart tall", role: "img", "aria-label": "stochastic state" });
    const pictures = element("div", { className: "pictures" });
    this.pictures = new Pictures(pictures);
    this.vectors = element("div", {});
    this.lines = new Map();
    this.place.replaceChildren(
      element("div", { className: "bar" }, button("From a reset", () => this.start({ reset: Number(this.seed.value) })), element("label", {}, "seed", this.seed),
        button("Save take", () => this.save()), button("Open take", () => this.file.click()), this.file, this.record, this.where),
      element("div", { className: "bar" }, ...this.clock.fields, this.back, this.sourceField, this.futuresField, this.sampleField, this.formatField),
      element("div", { className: "columns" },
        element("div", {}, pictures, element("div", { className: "timeline" }, this.slider, this.position), this.vectors, this.controls.place),
        element("div", {}, this.numbers,
          element("h2", {}, "error (dashed: last frame, mean frame)"), this.error, this.passed,
          element("h2", {}, "stochastic state"), this.state, this.side)));
  }

  get index() { return this.header?.index ?? 0; }

  async show() {
    if (this.started || this.starting || !this.facts.has_model) return;
    await this.start({ reset: Number(this.seed.value) });
  }

  start(from) {
    this.clock.set(false);
    this.starting = true;
    this.from = from;
    this.where.textContent = "starting …";
    return this.ask({ do: "start", from, futures: Number(this.futures.value), sample: this.sample.value === "true", seed: Number(this.seed.value), format: this.format.value })
      .then(() => { this.where.textContent = this.started ? (from.episode ? `episode ${from.episode}, step ${from.step}` : `reset with seed ${from.reset}`) : ""; })
      .finally(() => { this.starting = false; });
  }

  async ask(message) {
    try {
      const { header, pictures } = await this.connection.ask(message);
      if (header.kind === "take") return header.take;
      if (["start", "open"].includes(message.do)) this.history = [];
      this.started = true;
      say(header.note ?? "");
      this.take(header, pictures);
      return header;
    } catch (error) {
      this.clock.set(false);
      say(error.message);
      return null;
    }
  }

  tick() {
    if (!this.started || this.connection.busy) return;
    if (this.source.value === "path") {
      if (this.index < this.header.last) this.ask({ do: "rewind", to: this.index + 1 });
      else this.clock.set(false);
    } else this.step();
  }

  step() {
    if (!this.started || this.connection.busy) return;
    const action = this.source.value === "keyboard" || this.source.value === "path" ? this.controls.action() : this.source.value;
    this.ask({ do: "step", action });
  }

  // Only the latest wish counts while requests are unanswered.
  rewind(to) {
    if (!this.started) return;
    this.wanted = Math.max(0, Math.min(to, this.header.last));
    if (this.connection.busy) return;
    const asked = this.wanted;
    this.ask({ do: "rewind", to: asked }).then(() => { if (this.wanted !== asked) this.rewind(this.wanted); });
  }

  change() {
    if (this.started) this.ask({ do: "set", sample: this.sample.value === "true", futures: Number(this.futures.value), format: this.format.value });
  }

  async save() {
    const take = await this.ask({ do: "save" });
    if (take) download(new Blob([JSON.stringify(take)], { type: "application/json" }), `take-${take.updates}.json`);
  }

  async open() {
    const file = this.file.files[0];
    this.file.value = "";
    if (!file) return;
    this.clock.set(false);
    let take;
    try { take = JSON.parse(await file.text()); } catch { say(`${file.name} is no take: it is not JSON`); return; }
    const header = await this.ask({ do: "open", take, format: this.format.value });
    if (!header) return;
    this.futures.value = header.futures;
    this.sample.value = String(header.samples);
    this.where.textContent = `take ${file.name}`;
    this.source.value = "path";
  }

  film() {
    if (this.recorder) { this.recorder.stop(); return; }
    const canvas = element("canvas", {});
    this.pictures.compose(canvas);
    const drawing = setInterval(() => this.pictures.compose(canvas), 1000 / 30), parts = [];
    this.recorder = new MediaRecorder(canvas.captureStream(30), { mimeType: "video/webm" });
    this.recorder.ondataavailable = (event) => parts.push(event.data);
    this.recorder.onstop = () => {
      clearInterval(drawing);
      this.recorder = null;
      this.record.textContent = "Record WebM";
      download(new Blob(parts, { type: "video/webm" }), "dream.webm");
    };
    this.recorder.start();
    this.record.textContent = "Stop and save WebM";
  }

  take(header, pictures) {
    this.header = header;
    if (header.path) this.history = header.path;
    this.history.length = header.last + 1;
    this.history[header.index] = header;
    this.slider.max = header.last;
    this.slider.value = header.index;
    this.position.textContent = `${header.index} of ${header.last}`;
    this.place.dataset.index = header.index;
    this.pictures.draw(header, pictures).then((isDrawn) => {
      if (isDrawn) this.place.dataset.drawn = header.index;
      this.frame ??= requestAnimationFrame(() => { this.frame = undefined; this.drawFigures(); });   // after the picture
    });
  }

  drawFigures() {
    const header = this.header;
    if (!header) return;
    const action = header.action === null ? "–" : [header.action].flat().map(shown).join(", ");
    this.numbers.replaceChildren(...[["action", action], ...FIGURES.filter(([name]) => header[name] !== null && header[name] !== undefined).map(([name, label]) => [label, shown(header[name])])]
      .flatMap(([label, value]) => [element("dt", {}, label), element("dd", {}, value)]));
    const series = (name) => Array.from(this.history, (moment) => moment?.[name] ?? null);
    const here = { at: header.index, colour: "--line" }, at = header.passed_baselines_at;
    drawLines(this.error, [{ values: series("error_last_frame"), colour: "--faint", dash: [2, 3] }, { values: series("error_mean_frame"), colour: "--faint", dash: [6, 3] }, { values: series("error"), colour: "--one" }],
      at === null ? [here] : [here, { at, colour: "--bad" }]);
    this.passed.textContent = header.episode_over ? "The true episode is over." : header.error === null ? (header.index ? "No truth is known here." : "") : at === null ? "Better than both baselines so far." : `No better than a baseline from step ${at} on.`;
    drawState(this.state, header.state);
    for (const name of CHARTED) {
      const values = series(name);
      if (values.every((value) => value === null)) continue;
      if (!this.charts.has(name)) {
        const canvas = element("canvas", { className: "chart", role: "img", "aria-label": `${name} over the steps` });
        this.side.append(element("h2", {}, name === "reward" ? "reward (truth behind)" : name.replace("_", " ")), canvas);
        this.charts.set(name, canvas);
      }
      const truth = name === "reward" ? [{ values: series("true_reward"), colour: "--two", width: 3 }] : [];
      drawLines(this.charts.get(name), [...truth, { values, colour: "--one" }], [here]);
    }
    drawVectors(this.vectors, this.lines, this.history, header, [here]);
  }
}

// Each number of a vector as a line over the steps, with the truth behind it.
export function drawVectors(place, lines, history, header, marks) {
  for (const [name, vector] of Object.entries(header.vectors ?? {})) {
    const count = Math.min(MOST_LINES, vector.dream.length);
    for (let at = 0; at < count; at++) {
      const key = `${name} ${at}`;
      if (!lines.has(key)) {
        const canvas = element("canvas", { className: "chart", role: "img", "aria-label": key });
        const rest = at === 0 && vector.dream.length > count ? ` (the first ${count} of ${vector.dream.length})` : "";
        place.append(element("h2", {}, key + rest), canvas);
        lines.set(key, canvas);
      }
      const values = (part) => Array.from(history, (moment) => moment?.vectors?.[name]?.[part]?.[at] ?? null);
      drawLines(lines.get(key), [{ values: values("truth"), colour: "--two", width: 3 }, { values: values("dream"), colour: "--one" }], marks);
    }
  }
}
