// Run, pause and single steps at 1 to 60 a second: what both live views have.

import { element } from "/page/elements.js";

export class Clock {
  constructor(tick, isActive) {
    Object.assign(this, { tick, isActive });
    this.run = element("button", { type: "button", onclick: () => this.set(!this.running) }, "Run");
    this.single = element("button", { type: "button", onclick: () => { this.set(false); tick(); } }, "Step");
    this.speed = element("input", { type: "range", min: 1, max: 60, value: 15, oninput: () => this.set(this.running) });
    this.output = element("output", {}, "15 / s");
    this.fields = [this.run, this.single, element("label", {}, "speed", this.speed, this.output)];
  }

  set(running) {
    clearInterval(this.timer);
    this.running = running;
    this.run.textContent = running ? "Pause" : "Run";
    this.output.textContent = `${this.speed.value} / s`;
    if (running) this.timer = setInterval(() => this.isActive() && this.tick(), 1000 / Number(this.speed.value));
  }
}
