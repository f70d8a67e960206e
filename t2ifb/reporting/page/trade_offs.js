// Charts: gain against guidance scale, reward against judge, judge against KL with the Pareto front, parallel coordinates.
// Base models with equal curves form one trace.
function drawGuidance(element) {
  const name = value("swept");
  const runs = runsOf("tuning").filter((run) => run.guidance[name]);
  const pointsOf = (run) => run.guidance[name].scale.map((x, n) => ({ x, y: run.guidance[name].tuned[n], at: `guidance ${x}` }));
  const traces = tracesOf(runs, pointsOf, {});
  const bases = new Map(runs.map((run) => [JSON.stringify([run.guidance[name].scale, run.guidance[name].base]), run]));
  for (const run of bases.values()) {
    traces.unshift({
      type: "scatter", mode: "lines+markers", x: run.guidance[name].scale, y: run.guidance[name].base,
      line: { color: GRAY[theme()], width: 2, dash: "dash" }, marker: { color: GRAY[theme()], size: 5 },
      hovertemplate: "base model<br>guidance %{x}, %{y:.4~g}<extra></extra>",
    });
  }
  const title = name === "judges" ? "gain of the judges, in standard deviations" : `gain of ${name}`;
  Plotly.react(element, traces, layoutOf({ xaxis: axis("guidance scale"), yaxis: axis(title) }), CONFIG);
  element.setAttribute("aria-label", `${title} against the guidance scale, ${runs.length} runs; the values are in the tables`);
}

function changesOf(run, name, rows) {
  const column = run.val.columns[name];
  const base = column?.[run.val.step.indexOf(0)] ?? (name === "judges" || isKL(name) ? 0 : null);
  return rows.map((n) => (column?.[n] == null || base === null ? null : column[n] - base));
}

function pointsOfTrade(run, xName, yName, which) {
  const steps = run.val.step;
  const wished = { all: steps.map((_, n) => n), kept: [steps.indexOf(run.kept)], last: [steps.length - 1] };
  const rows = wished[which].filter((n) => n >= 0);
  const [xs, ys] = [changesOf(run, xName, rows), changesOf(run, yName, rows)];
  return rows
    .map((n, at) => ({ run, step: steps[n], x: xs[at], y: ys[at], kept: steps[n] === run.kept }))
    .filter((point) => point.x !== null && point.y !== null);
}

const BASE = { step: 0, x: 0, y: 0 };

// Pareto front: points for which no other has less KL and a better judge score.
function frontOf(points) {
  const front = [];
  for (const point of [...points].sort((a, b) => a.x - b.x || b.y - a.y)) {
    if (!front.length || point.y > front.at(-1).y) front.push(point);
  }
  return front;
}

const judgesDiffer = (runs) => new Set(runs.map((run) => run.judged_by).filter(Boolean)).size > 1;
const judgeTitle = (judge) => (judge === "judges" ? "all judges (standard deviations)" : `${judge}, change from base`);

function drawTrade(element, xName, xTitle) {
  const [judge, which] = [value("judge"), value("points")];
  const runs = runsOf("tuning");
  const traces = tracesOf(runs, (run) => pointsOfTrade(run, xName, judge, which), {});
  for (const trace of traces) {
    trace.line.width = 1;
    trace.marker.size = trace.marker.size.map((size) => (size === null ? null : size + 2));
  }
  if (isKL(xName) && judge === "judges" && judgesDiffer(runs)) {
    one("#front").textContent = "No Pareto front: the judges or their weights differ between these runs.";
  } else if (isKL(xName)) {
    const front = frontOf([BASE, ...runs.flatMap((run) => pointsOfTrade(run, xName, judge, which))]);
    traces.unshift(frontTrace(front));
    describeFront(front);
  }
  Plotly.react(element, traces, layoutOf({ xaxis: axis(xTitle), yaxis: axis(judgeTitle(judge)) }), CONFIG);
  element.setAttribute("aria-label", `${judgeTitle(judge)} against ${xTitle}, ${runs.length} runs`);
}

const frontTrace = (front) => ({
  type: "scatter", mode: "lines", name: "front", x: front.map((point) => point.x), y: front.map((point) => point.y),
  line: { shape: "hv", color: GRAY[theme()], width: 4 }, hoverinfo: "skip",
});

function describeFront(front) {
  const best = front.filter((point) => point.step > 0);
  const named = best.slice(0, 12).map((point) => `${point.run.name} step ${point.step} (KL ${point.x.toPrecision(3)}, ${point.y >= 0 ? "+" : ""}${point.y.toPrecision(3)})`);
  const more = best.length > 12 ? `, and ${best.length - 12} more` : "";
  one("#front").textContent = best.length ? `On the Pareto front: ${named.join(", ")}${more}.` : "No point is better than the base model by this judge.";
}

const OUTCOMES = [["kept", "kept step"], ["kl", "KL"], ["kl_without_last_two", "KL without last two"], ["reward", "reward"], ["judges", "judges"], ["gold", "gold"]];
const outcome = (run, name) => (name === "kept" ? run.kept : run.changes[name]) ?? null;

function drawParallel(element) {
  const every = runsOf("tuning");
  const outcomes = OUTCOMES.filter(([name]) => every.some((run) => outcome(run, name) !== null));
  const runs = every.filter((run) => outcomes.every(([name]) => outcome(run, name) !== null));
  const left = every.length - runs.length;
  const note = left ? `${left} selected runs lack values for some axes and are not drawn. ` : "";
  one("#parallel-note").textContent = note + (runs.length && outcomes.length ? "" : "No data.");
  if (!runs.length || !outcomes.length) return Plotly.purge(element);
  const varied = data.settings.filter(({ key }) => !["git_commit", "reward_sha256"].includes(key) && runs.some((run) => run.settings[key] !== undefined));
  const dimensions = varied.slice(0, 7).map((setting) => dimensionOf(setting, runs));
  for (const [name, label] of outcomes) dimensions.push({ label, values: runs.map((run) => outcome(run, name)), tickformat: ".4~g" });
  const looks = [...new Map([...runs].sort((a, b) => a.look.order - b.look.order).map((run) => [run.look.name, run.look])).values()];
  const places = new Map(looks.map((look, n) => [look.name, n]));
  const last = Math.max(1, looks.length - 1);
  const scale = looks.length > 1 ? looks.map((look, n) => [n / last, look.color]) : [[0, looks[0].color], [1, looks[0].color]];
  const color = getComputedStyle(document.body).color;
  const crowded = dimensions.length > 6; // labels of many axes would overlap
  const trace = {
    type: "parcoords", dimensions, line: { color: runs.map((run) => places.get(run.look.name)), cmin: 0, cmax: last, colorscale: scale },
    labelangle: crowded ? -25 : 0, labelfont: { color, size: 13 }, tickfont: { color, size: 11 }, rangefont: { color, size: 10 }, unselected: { line: { opacity: 0.08 } },
  };
  Plotly.react(element, [trace], layoutOf({ margin: { l: 70, r: 60, t: crowded ? 90 : 50, b: 26 } }), CONFIG);
  element.setAttribute("aria-label", `Parallel coordinates of ${runs.length} runs; the same values are in the overview`);
}

// Few values, and numbers mixed with "none", are evenly spaced with text labels. Many numbers keep their distances.
function dimensionOf(setting, runs) {
  const places = runs.map((run) => run.settings[setting.key]);
  const label = plain(setting.label.length > 18 ? setting.label.slice(0, 17) + "…" : setting.label);
  const spaced = setting.numeric && setting.values.length > 12 && setting.values.every(({ value }) => value !== null);
  if (spaced) return { label, values: places.map((n) => setting.values[n].value) };
  const ticktext = distinct(setting.values.map(({ text }) => (text.length > 14 ? `${text.slice(0, 6)}…${text.slice(-7)}` : text)));
  return { label, values: places, tickvals: setting.values.map((_, n) => n), ticktext, range: [0, Math.max(1, setting.values.length - 1)] };
}

// Number equal texts, because Plotly draws equal tick labels only once and shifts the others.
function distinct(texts) {
  const found = new Set();
  for (const text of texts) {
    let name = text;
    for (let n = 2; found.has(name); n++) name = `${text} (${n})`;
    found.add(name);
  }
  return [...found];
}
