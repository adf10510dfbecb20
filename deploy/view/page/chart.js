// Small live drawings on canvas: lines over the steps, and a stochastic state.

export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function prepared(canvas) {
  const scale = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
  if (canvas.width !== Math.round(width * scale)) canvas.width = Math.round(width * scale);
  if (canvas.height !== Math.round(height * scale)) canvas.height = Math.round(height * scale);
  const pen = canvas.getContext("2d");
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, width, height);
  return [pen, width, height];
}

// lines: [{values: [number|null], colour: "--one", width, dash}]; marks: [{at, colour}] are upright lines.
export function drawLines(canvas, lines, marks = []) {
  const [pen, width, height] = prepared(canvas);
  if (!width) return;
  const all = lines.flatMap((line) => line.values).filter(Number.isFinite);
  const count = Math.max(2, ...lines.map((line) => line.values.length));
  if (!all.length) return;
  let low = all.reduce((a, b) => Math.min(a, b)), high = all.reduce((a, b) => Math.max(a, b));
  if (high - low < 1e-9) { low -= 0.5; high += 0.5; }
  const x = (at) => 1 + (at / (count - 1)) * (width - 54);   // the numbers stand right of it
  const y = (value) => 4 + (1 - (value - low) / (high - low)) * (height - 8);
  for (const mark of marks) {
    pen.fillStyle = colour(mark.colour);
    pen.fillRect(x(mark.at), 0, 1, height);
  }
  for (const line of lines) {
    pen.strokeStyle = colour(line.colour);
    pen.lineWidth = line.width ?? 1.5;
    pen.setLineDash(line.dash ?? []);
    pen.beginPath();
    let drawn = false;
    line.values.forEach((value, at) => {
      if (!Number.isFinite(value)) { drawn = false; return; }
      if (drawn) pen.lineTo(x(at), y(value)); else pen.moveTo(x(at), y(value));
      if (!drawn && !Number.isFinite(line.values[at + 1])) pen.lineTo(x(at) + 1.5, y(value));
      drawn = true;
    });
    pen.stroke();
  }
  pen.setLineDash([]);
  pen.fillStyle = colour("--faint");
  pen.font = "11px system-ui, sans-serif";
  pen.textAlign = "right";
  pen.fillText(high.toPrecision(3), width, 11);
  pen.fillText(low.toPrecision(3), width, height - 2);
}

export function drawState(canvas, state) {
  const [pen, width, height] = prepared(canvas);
  if (!state || !width) return;
  pen.fillStyle = colour("--one");
  if (state.kind === "categorical") {
    const rows = state.probabilities.length, classes = state.probabilities[0].length;
    const wide = width / rows, high = height / classes;   // one column for each variable
    state.probabilities.forEach((row, at) => row.forEach((p, k) => {
      pen.globalAlpha = 0.06 + 0.94 * p;
      pen.fillRect(at * wide, k * high, Math.max(1, wide - 1), Math.max(1, high - 1));
    }));
    pen.globalAlpha = 1;
    pen.strokeStyle = colour("--two");
    state.chosen.forEach((k, at) => pen.strokeRect(at * wide + 0.5, k * high + 0.5, Math.max(1, wide - 2), Math.max(1, high - 2)));
    return;
  }
  const reach = state.mean.reduce((most, m, at) => Math.max(most, Math.abs(m) + state.deviation[at]), 1e-6);
  const wide = width / state.mean.length, y = (value) => height / 2 - (value / reach) * (height / 2 - 2);
  state.mean.forEach((mean, at) => {
    pen.globalAlpha = 0.3;
    pen.fillRect(at * wide, y(mean + state.deviation[at]), Math.max(1, wide - 1), y(mean - state.deviation[at]) - y(mean + state.deviation[at]));
    pen.globalAlpha = 1;
    pen.fillRect(at * wide, y(mean) - 1, Math.max(1, wide - 1), 2);
  });
}
