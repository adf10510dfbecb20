// The run: how it stands, its settings, evaluations and pictures.

import { asked, choice, element, say, shown } from "/page/elements.js";

export class Run {
  constructor(place, facts) {
    this.place = place;
    this.facts = facts;
    this.status = element("pre", {});
    [this.which, this.field] = choice("settings", [["differs", "that differ from the presets"], ["all", "all"]], () => this.settings());
    this.table = element("tbody", {});
    this.evaluations = element("div", { className: "scroll" });
    this.pictures = element("div", { className: "pictures" });
    const board = element("button", { type: "button", onclick: async () => {
      board.disabled = true;
      const tab = window.open("", "_blank");   // at once: what opens later than a click is taken for an advertisement
      if (tab) tab.opener = null;
      try {
        const { url } = await asked("/api/tensorboard", {});
        this.link.href = this.link.textContent = url;
        if (tab) tab.location = url;
      } catch (error) { tab?.close(); say(error.message); }
      board.disabled = false;
    } }, "Open TensorBoard");
    this.link = element("a", { target: "_blank", rel: "noopener" });
    const presets = (facts.presets ?? []).join(", ");
    const head = (...names) => element("thead", {}, element("tr", {}, ...names.map((name) => element("th", { scope: "col" }, name))));
    place.replaceChildren(
      element("div", { className: "bar" }, facts.kind === "run" ? board : "", this.link, element("button", { type: "button", onclick: () => this.show() }, "Refresh")),
      this.status, element("h2", {}, "Evaluations"), this.evaluations, element("h2", {}, "Pictures"), this.pictures,
      element("div", { className: "bar" }, this.field, element("span", { className: "faint" }, presets && `presets: ${presets}`)),
      element("div", { className: "scroll" }, element("table", {}, head("setting", "value", "there"), this.table)));
    place.querySelectorAll("h2").forEach((title) => { title.style.marginTop = "14px"; });
    this.place.querySelectorAll(".scroll").forEach((region) => { region.tabIndex = 0; });
  }

  async show() {
    try { this.facts = await asked("/api/run"); } catch (error) { say(error.message); return; }
    const { status, evaluations, pictures } = this.facts;
    this.status.textContent = status ?? "";
    this.settings();
    const rows = (evaluations ?? []).slice().reverse();
    const names = [...new Set(rows.flatMap((row) => Object.keys(row)))].filter((name) => rows.some((row) => typeof row[name] === "number")).slice(0, 8);
    this.evaluations.replaceChildren(rows.length ? element("table", {}, element("thead", {}, element("tr", {}, ...names.map((name) => element("th", { scope: "col" }, name)))),
      element("tbody", {}, ...rows.map((row) => element("tr", {}, ...names.map((name) => element("td", {}, name === "time" ? new Date(row[name] * 1000).toLocaleString() : shown(row[name]))))))) : "none yet");
    this.pictures.replaceChildren(...(pictures ?? []).slice(0, 8).map((name) => {
      const src = `/api/pictures/${encodeURIComponent(name)}`;
      const view = name.endsWith(".webm") ? element("video", { src, controls: true, loop: true }) : element("img", { src, alt: name });
      view.style.maxWidth = "100%";
      return element("figure", { className: "wide" }, element("figcaption", {}, name), view);
    }));
  }

  settings() {
    const rows = (this.facts.settings ?? []).filter((row) => this.which.value === "all" || row.differs);
    const text = (value) => (value === undefined ? "" : typeof value === "string" ? value : JSON.stringify(value));
    this.table.replaceChildren(...rows.map((row) => element("tr", { className: row.differs ? "differs" : "" }, element("td", {}, row.name), element("td", {}, text(row.value)), element("td", { className: "faint" }, row.differs ? text(row.preset) : ""))));
  }
}
