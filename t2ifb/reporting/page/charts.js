// Curves of metrics and intervals of tables. A chart is drawn when it comes near the viewport.
// Without a mouse, Plotly would always show its toolbar over the curves.
const CONFIG = {
  responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"],
  displayModeBar: matchMedia("(hover: none)").matches ? false : "hover",
};
const charts = new Map();
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) charts.get(entry.target).near = entry.isIntersecting;
  drawNear();
}, { rootMargin: "500px" });

function addChart(element, draw) {
  charts.set(element, { draw, dirty: true, near: false });
  watcher.observe(element);
}

function drawNear(every = false) {
  for (const [element, chart] of charts) {
    if (chart.dirty && (chart.near || every) && element.offsetParent) {
      chart.dirty = false;
      chart.draw(element);
    }
  }
}

function layoutOf(more) {
  const layout = {
    template: data.templates[theme()], margin: { l: 56, r: 12, t: 8, b: 42 }, showlegend: false, hovermode: "closest",
    font: { size: 12 }, hoverlabel: { align: "left" },
  };
  return { ...layout, ...more };
}

const isKL = (name) => name === "kl" || name === "kl_without_last_two";
const klTitle = (name, text) => `${text}${name === "kl" ? "" : " without the last two steps"}, nats`;

const axis = (title, more = {}) => ({ title: { text: plain(title), standoff: 6 }, automargin: true, ...more });

// Runs with the same look form one trace, with gaps between runs, because few traces draw fast.
function tracesOf(runs, pointsOf, more) {
  const groups = new Map();
  for (const run of runs) {
    const key = `${run.look.color} ${run.look.dash}`;
    if (!groups.has(key)) groups.set(key, { look: run.look, x: [], y: [], text: [], size: [], symbol: [] });
    const group = groups.get(key);
    for (const point of pointsOf(run)) {
      group.x.push(point.x);
      group.y.push(point.y);
      group.text.push(plain(run.about ? `${run.name}: ${run.about}` : run.name) + `<br>${point.at ?? `step ${point.step}`}`);
      group.symbol.push(point.kept ? "diamond" : "circle");
      group.size.push(point.kept ? 10 : point.dot ?? 5);
    }
    for (const list of [group.x, group.y, group.text, group.symbol, group.size]) list.push(null);
  }
  const many = runs.length > 40;
  return [...groups.values()].map(({ look, size, symbol, ...points }) => ({
    type: "scatter", mode: "lines+markers", ...points, opacity: many ? 0.85 : 1, connectgaps: false,
    line: { color: look.color, dash: look.dash, width: many ? 1.2 : 2 },
    marker: { color: look.color, size, symbol, opacity: 1 }, // Plotly's default is 0.7 for points of several sizes
    hovertemplate: "%{text}<br>%{x:.4~g}, %{y:.4~g}<extra></extra>", ...more,
  }));
}

// Exponential moving average; 0 means no smoothing.
function smooth(values, weight) {
  let last = null;
  return values.map((now) => (now === null ? null : (last = last === null ? now : weight * last + (1 - weight) * now)));
}

function pointsOfCurve(run, metric, xName, weight) {
  const rows = run[metric.split];
  const column = rows.columns[metric.name];
  if (!column) return [];
  const kl = metric.split === "val" ? rows.columns[xName] : rows.columns.kl; // training logs only the KL of single steps
  const xs = isKL(xName) ? kl ?? [] : rows[xName];
  const smoothed = smooth(column, weight);
  return rows.step
    .map((step, n) => ({
      step, x: xName === "wall" && xs[n] !== null ? xs[n] / 60 : xs[n] ?? null, y: smoothed[n], raw: column[n],
      kept: metric.split === "val" && step === run.kept, dot: metric.kind === "reward" ? 0 : 5,
    }))
    .filter((point) => point.x !== null && point.y !== null);
}

function drawCurve(element, metric) {
  const xName = metric.kind === "reward" && isKL(value("x-axis")) ? "step" : value("x-axis");
  const weight = Number(value("smoothing"));
  const runs = runsOf(metric.kind).filter((run) => run[metric.split].columns[metric.name]);
  const marked = metric.split === "val" && metric.kind === "tuning";
  const mode = metric.split === "val" && !weight ? "lines+markers" : "lines";
  const traces = tracesOf(runs, (run) => pointsOfCurve(run, metric, xName, weight), { mode });
  if (metric.split === "val" && weight) {
    const raw = (run) => pointsOfCurve(run, metric, xName, weight).map((point) => ({ ...point, y: point.raw }));
    traces.push(...tracesOf(runs, raw, { mode: "markers" }));
  }
  const kl = metric.split === "val" ? klTitle(xName, "KL") : "KL of the trained steps, nats"; // not of whole rollouts
  const titles = { step: "optimiser step", wall: "minutes", kl, kl_without_last_two: kl };
  const shapes = marked ? basesOf(runs, metric.name).map(dashed) : [];
  Plotly.react(element, traces, layoutOf({ xaxis: axis(titles[xName]), yaxis: axis("", { zeroline: !marked }), shapes }), CONFIG);
  element.setAttribute("aria-label", `${metric.name} over ${titles[xName]}, ${runs.length} runs; the values are in the overview`);
}

// Base values: step 0 of every run; equal for runs with the same base model and prompts.
function basesOf(runs, name) {
  const found = new Set();
  for (const run of runs) {
    const base = run.val.columns[name][run.val.step.indexOf(0)];
    if (base !== null && base !== undefined) found.add(Number(base.toPrecision(4)));
  }
  return found.size <= 6 ? [...found] : [];
}

const dashed = (y) => ({
  type: "line", xref: "paper", x0: 0, x1: 1, y0: y, y1: y, layer: "below", line: { color: GRAY[theme()], width: 1.5, dash: "dash" },
});

// Means with intervals, one per line. Training scorers are marked by colour and shape.
function drawIntervals(element, panel) {
  const [usual, trained] = PALETTES[theme()];
  const lines = panel.lines.filter((line) => line.mean !== null);
  const names = lines.map((line) => (line.label.length > 26 ? line.label.slice(0, 25) + "…" : line.label));
  const trace = {
    type: "scatter", mode: "markers", x: lines.map((line) => line.mean), y: lines.map((_, n) => n),
    error_x: {
      type: "data", symmetric: false, thickness: 1.5, color: GRAY[theme()],
      array: lines.map((line) => Math.max(0, (line.high ?? line.mean) - line.mean)),
      arrayminus: lines.map((line) => Math.max(0, line.mean - (line.low ?? line.mean))),
    },
    marker: {
      size: 10, color: lines.map((line) => (line.trained_on ? trained : usual)),
      symbol: lines.map((line) => (line.trained_on ? "square" : "circle")),
    },
    text: lines.map((line) => plain(line.label)), hovertemplate: "%{text}<br>%{x:.4~g}<extra></extra>",
  };
  const yaxis = {
    automargin: true, range: [lines.length - 0.4, -0.6], tickvals: names.map((_, n) => n), ticktext: names.map(plain), zeroline: false,
  };
  const x = panel.reference;
  const reference = { type: "line", yref: "paper", y0: 0, y1: 1, x0: x, x1: x, line: { color: GRAY[theme()], width: 1.5, dash: "dash" } };
  element.style.height = `${70 + 30 * Math.max(2, lines.length)}px`;
  Plotly.react(element, [trace], layoutOf({ xaxis: axis("", { nticks: 5, zeroline: false }), yaxis, shapes: [reference] }), CONFIG);
}
