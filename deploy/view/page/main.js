// The page: its views, which the address's part after # names, and the checkpoint that dreams.

import { Agent } from "/page/agent.js";
import { Dream } from "/page/dream.js";
import { asked, element, say } from "/page/elements.js";
import { Episodes } from "/page/episodes.js";
import { Run } from "/page/run.js";

const ASK_AGAIN_MS = 20000;
const views = {};
let facts, active;

function route() {
  const [name, episode, step] = location.hash.slice(1).split("/").map(decodeURIComponent);
  active = views[name] ? name : Object.keys(views)[0];
  for (const section of document.querySelectorAll("main > section")) section.hidden = section.id !== active;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${active}`) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current");
  }
  say("");
  if (active === "dream" && episode) { views.dream.start({ episode, step: Number(step) }); history.replaceState(null, "", "#dream"); }
  else views[active].show();
}

function showCheckpoint() {
  const place = document.getElementById("checkpoint");
  const parts = [facts.updates === null ? "no model" : `update ${facts.updates}`, facts.state];
  const newer = facts.newest_updates !== null && (!facts.has_model || facts.newest_updates > facts.updates);
  const load = element("button", { type: "button", onclick: async () => {
    load.disabled = true;
    try { facts = await asked("/api/checkpoint", { updates: "newest" }); if (views.dream) { showCheckpoint(); say("A newer checkpoint is loaded: the next dream that starts is its."); } else location.reload(); } catch (error) { say(error.message); load.disabled = false; }
  } }, `load newer: ${facts.newest_updates}`);
  place.replaceChildren(parts.filter(Boolean).join(" · "), newer ? load : "");
}

async function begin() {
  facts = await asked("/api/run");
  document.getElementById("name").textContent = facts.name;
  document.title = `${facts.name} – dreamfleet view`;
  const made = { dream: Dream, episodes: Episodes, agent: Agent, run: Run };
  for (const [name, View] of Object.entries(made)) {
    if (!facts.has_model && (name === "dream" || name === "agent")) { document.querySelector(`nav a[href="#${name}"]`).hidden = true; continue; }
    views[name] = new View(document.getElementById(name), facts, () => active === name);
  }
  showCheckpoint();
  window.addEventListener("hashchange", route);
  // A button that was clicked keeps no focus, or else the space bar would press it again instead of acting.
  document.addEventListener("click", (event) => { if (event.detail) event.target.closest("button")?.blur(); });
  window.addEventListener("resize", () => views[active].drawFigures?.());
  route();
  setInterval(async () => { try { facts = await asked("/api/run"); showCheckpoint(); } catch (error) { say(error.message); } }, ASK_AGAIN_MS);
}

begin().catch((error) => say(error.message));
