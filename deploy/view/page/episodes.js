// The recorded episodes: a table, and one of them step by step.

import { drawLines } from "/page/chart.js";
import { drawVectors } from "/page/dream.js";
import { asked, choice, element, named, say, shown } from "/page/elements.js";

const COLUMNS = [["id", "episode"], ["return", "return"], ["length", "length"], ["version", "version"], ["held_out", "held out"], ["when", "when"]];
const versionOf = (number) => (number < 0 ? "chance" : shown(number));
const RANGES = ["return", "length", "version"];

export class Episodes {
  constructor(place, facts, isActive) {
    Object.assign(this, { place, facts, isActive, sort: "when", descending: true, rows: [] });
    this.body = element("tbody", {});
    this.heads = COLUMNS.map(([name, label]) => element("th", { scope: "col" }, element("button", { type: "button", onclick: () => this.order(name) }, label)));
    this.count = element("span", { className: "faint" });
    this.ranges = Object.fromEntries(RANGES.flatMap((name) => ["min", "max"].map((end) => [`${end}_${name}`, element("input", { type: "number", step: "any", onchange: () => this.list(), "aria-label": `${end} ${name}` })])));
    [this.held, this.heldField] = choice("held out", [["", "all"], ["1", "yes"], ["0", "no"]], () => this.list());
    [this.whole, this.wholeField] = choice("whole", [["", "all"], ["1", "yes"], ["0", "no"]], () => this.list());
    this.more = element("button", { type: "button", hidden: true, onclick: () => this.list(this.rows.length) }, "More");
    this.detail = element("div", {});
    place.replaceChildren(
      element("div", { className: "bar" }, ...RANGES.map((name) => element("label", {}, name, this.ranges[`min_${name}`], "–", this.ranges[`max_${name}`])), this.heldField, this.wholeField, this.count),
      element("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": "table of episodes" }, element("table", {}, element("thead", {}, element("tr", {}, ...this.heads)), this.body), this.more),
      this.detail);
    place.querySelector(".scroll").style.maxHeight = "36vh";
  }

  async show() { await this.list(); }

  order(name) {
    this.descending = this.sort === name ? !this.descending : name !== "id";
    this.sort = name;
    this.list();
  }

  async list(offset = 0) {
    clearTimeout(this.again);
    const query = new URLSearchParams({ sort: this.sort, order: this.descending ? "descending" : "ascending", offset });
    for (const [name, input] of Object.entries(this.ranges)) if (input.value !== "") query.set(name, input.value);
    if (this.held.value) query.set("held_out", this.held.value);
    if (this.whole.value) query.set("whole", this.whole.value);
    let found;
    try { found = await asked(`/api/episodes?${query}`); } catch (error) { say(error.message); return; }
    this.rows = offset ? [...this.rows, ...found.episodes] : found.episodes;
    this.more.hidden = this.rows.length >= found.count;
    this.count.textContent = `${found.count} episodes`;
    COLUMNS.forEach(([name], at) => this.heads[at].setAttribute("aria-sort", name !== this.sort ? "none" : this.descending ? "descending" : "ascending"));
    this.body.replaceChildren(...this.rows.map((row) => this.row(row)));
    if (found.returns_known < found.count && this.isActive()) this.again = setTimeout(() => this.isActive() && !this.body.contains(document.activeElement) && this.list(), 2000);
  }

  row(row) {
    const when = row.when ? new Date(row.when * 1000).toLocaleString() : "–";
    const cells = [shown(row.return), row.length, versionOf(row.version), row.held_out ? "yes" : "no", when];
    const open = element("button", { type: "button", onclick: () => this.open(row.id) }, row.id);
    const made = element("tr", { "aria-selected": String(row.id === this.id) }, element("td", {}, open), ...cells.map((cell) => element("td", {}, String(cell))));
    made.dataset.id = row.id;
    return made;
  }

  async open(id) {
    try { this.episode = await asked(`/api/episodes/${encodeURIComponent(id)}`); } catch (error) { say(error.message); return; }
    say("");
    this.id = id;
    for (const row of this.body.rows) row.setAttribute("aria-selected", String(row.dataset.id === id));
    const last = this.episode.actions.length - 1;
    this.slider = element("input", { type: "range", min: 0, max: last, value: 0, "aria-label": "step", oninput: () => this.look() });
    this.position = element("output", {});
    this.facts_ = element("dl", { className: "numbers" });
    this.rewards = element("canvas", { className: "chart", role: "img", "aria-label": "rewards" });
    this.acted = element("canvas", { className: "chart", role: "img", "aria-label": "actions" });
    const dream = element("button", { type: "button", onclick: () => { location.hash = `dream/${encodeURIComponent(id)}/${this.slider.value}`; } }, "Dream from here");
    this.views = this.facts.observations.map((observation) => this.view(observation));
    this.detail.replaceChildren(element("div", { className: "timeline" }, this.slider, this.position),
      element("div", { className: "bar" }, this.facts.has_model ? dream : "", element("span", { className: "faint" }, `episode ${id}`)),
      element("div", { className: "columns" }, element("div", { className: "pictures" }, ...this.views.flatMap((view) => view.figures)),
        element("div", {}, this.facts_, element("h2", {}, "rewards"), this.rewards, element("h2", {}, "actions"), this.acted)));
    this.look();
  }

  view(observation) {
    const caption = (text) => element("figcaption", {}, named(text, observation.name));
    const kinds = [["frame", "recorded", "large"], ...(this.facts.has_model ? [["reconstruction", "reconstruction", "large"], ["prediction", "open loop from here: truth above, dream below", "wide"]] : [])];
    if (observation.kind === "vector") {
      const canvas = element("canvas", { className: "chart tall", role: "img", "aria-label": observation.name });
      const ahead = element("div", {}), figures = [[caption("recorded, with the reconstruction in front"), canvas]];
      if (this.facts.has_model) figures.push([caption("open loop from here, with the truth behind"), ahead]);
      return { observation, canvas, ahead, lines: new Map(), figures: figures.map((parts) => element("figure", { className: "wide" }, ...parts)) };
    }
    const images = kinds.map(([what, text]) => [what, element("img", { alt: text })]);
    return { observation, images, figures: kinds.map(([, text, size], at) => element("figure", { className: size }, caption(text), images[at][1])) };
  }

  look() {
    const step = Number(this.slider.value), { actions, rewards, versions } = this.episode;
    this.position.textContent = `${step} of ${actions.length - 1}`;
    const rows = [["action", [actions[step]].flat().map(shown).join(", ")], ["reward", shown(rewards[step])], ["version", versionOf(versions[step])]];
    this.facts_.replaceChildren(...rows.flatMap(([label, value]) => [element("dt", {}, label), element("dd", {}, value)]));
    const here = [{ at: step, colour: "--bad" }];
    drawLines(this.rewards, [{ values: rewards, colour: "--one" }], here);
    const flat = actions.map((action) => [action].flat());
    drawLines(this.acted, flat[0].slice(0, 4).map((_, at) => ({ values: flat.map((row) => row[at]), colour: at % 2 ? "--two" : "--one" })), here);
    clearTimeout(this.later);
    this.later = setTimeout(() => this.views.forEach((view) => this.fill(view, step)), 60);   // a drag asks for where it rests
  }

  async fill({ observation, images, canvas, ahead, lines }, step) {
    const path = `/api/episodes/${encodeURIComponent(this.id)}`, query = `?name=${encodeURIComponent(observation.name)}&step=${step}`;
    if (images) {
      for (const [what, image] of images) {
        image.onerror = () => { image.alt = `no ${what} here`; };
        const isBeyond = what === "prediction" && step >= this.episode.actions.length - 1;   // nothing follows the last step
        image.parentElement.hidden = isBeyond;
        if (!isBeyond) image.src = `${path}/${what}${query}${what === "prediction" ? "&count=15" : ""}`;
      }
      return;
    }
    try {
      const truth = await asked(`${path}/vector${query}`);
      const seen = this.facts.has_model ? await asked(`${path}/reconstruction${query}`) : { values: [] };
      if (Number(this.slider.value) !== step) return;
      drawLines(canvas, [{ values: truth.values, colour: "--two", width: 3 }, { values: seen.values, colour: "--one" }]);
      if (!this.facts.has_model) return;
      ahead.parentElement.hidden = step >= this.episode.actions.length - 1;   // nothing follows the last step
      if (ahead.parentElement.hidden) return;
      const next = await asked(`${path}/prediction${query}&count=15`);
      if (Number(this.slider.value) !== step) return;
      const moments = next.truth.map((row, at) => ({ vectors: { [observation.name]: { truth: row, dream: next.dream[at] } } }));
      drawVectors(ahead, lines, moments, moments[0], []);
    } catch (error) { say(error.message); }
  }
}
