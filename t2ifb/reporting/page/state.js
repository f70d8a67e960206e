// Selection state: runs, filters, metrics, and each run's look in charts.
const data = JSON.parse(document.getElementById("report-data").textContent);
const one = (selector, root = document) => root.querySelector(selector);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const value = (id, otherwise) => one("#" + id)?.value ?? otherwise;

// Escape names, because Plotly interprets some HTML in labels.
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

const night = matchMedia("(prefers-color-scheme: dark)");
const PALETTES = {
  light: ["#0072b2", "#c44601", "#00785a", "#a83e84", "#5b4bb0", "#7d6608", "#0f7f8c", "#555555"],
  dark: ["#56b4e9", "#ff9f4a", "#2bd1a0", "#f58ac7", "#b9a5ff", "#e8d44d", "#5fe0e8", "#c8c8c8"],
};
const RAMPS = {
  light: [[31, 79, 168], [160, 58, 156], [204, 67, 10]],
  dark: [[109, 179, 255], [224, 139, 224], [255, 179, 102]],
};
const DASHES = ["solid", "dot", "dashdot"];
const GRAY = { light: "#6e7781", dark: "#9aa4ae" };
const theme = () => (night.matches ? "dark" : "light");

const settings = new Map(data.settings.map((setting) => [setting.key, setting]));
const runsOf = (kind) => data.runs.filter((run) => run.chosen && run.kind === kind);

// Colour of a ramp at a place in [0, 1].
function onRamp(place) {
  const ramp = RAMPS[theme()];
  const at = place * (ramp.length - 1);
  const low = Math.min(Math.floor(at), ramp.length - 2);
  const mixed = ramp[low].map((from, n) => Math.round(from + (at - low) * (ramp[low + 1][n] - from)));
  return `rgb(${mixed.join(",")})`;
}

// Colour, dash and legend name of a run. Runs with the same look share traces.
function lookOf(run, number, setting) {
  if (!setting) {
    const palette = PALETTES[theme()];
    const dash = DASHES[Math.floor(number / palette.length) % DASHES.length];
    return { color: palette[number % palette.length], dash, name: run.name, order: number };
  }
  const place = run.settings[setting.key];
  if (place === undefined) return { color: GRAY[theme()], dash: "dot", name: "–", order: -1 };
  const last = setting.values.length - 1;
  const words = !setting.numeric && last < PALETTES.light.length;
  const color = words ? PALETTES[theme()][place] : onRamp(last ? place / last : 0);
  return { color, dash: "solid", name: `${setting.label} ${setting.values[place].text}`, order: place };
}

function passes(run) {
  return all("#filters [data-setting]").every((box) => {
    const setting = settings.get(box.dataset.setting);
    const place = run.settings[setting.key];
    if (place === undefined) return true;
    const ends = all("[data-end]", box);
    if (!ends.length) return one(`input[value="${place}"]`, box).checked;
    const [low, high] = ends.map((input) => (input.value === "" ? null : Number(input.value)));
    const own = setting.values[place].value;
    if (own === null) return low === null && high === null;
    return (low === null || own >= low) && (high === null || own <= high);
  });
}

function choose() {
  const setting = settings.get(value("color-by", ""));
  const checked = new Set(all("#runs input:checked").map((input) => Number(input.value)));
  data.runs.forEach((run, number) => {
    run.passes = passes(run);
    run.chosen = run.passes && checked.has(run.id);
    run.look = lookOf(run, number, setting);
  });
  const byId = new Map(data.runs.map((run) => [run.id, run]));
  for (const element of all("[data-run]")) {
    const run = byId.get(Number(element.dataset.run));
    if (!run) continue;
    element.hidden = !run.chosen;
    paint(one(".swatch", element), run.look);
  }
  for (const label of all("#runs label")) {
    const run = byId.get(Number(label.dataset.id));
    label.classList.toggle("out", !run.passes);
    paint(one(".swatch", label), run.look);
  }
  const count = data.runs.filter((run) => run.chosen).length;
  if (one("#count")) one("#count").textContent = `${count} of ${data.runs.length} runs`;
  for (const [section, kind] of [["#guidance", "tuning"], ["#curves", "tuning"], ["#trade-offs", "tuning"], ["#parallel", "tuning"], ["#reward", "reward"]]) {
    if (one(section)) drawKey(one(`${section} .key`), runsOf(kind));
  }
}

function paint(swatch, look) {
  if (!swatch) return;
  swatch.style.borderTopColor = look.color;
  swatch.style.borderTopStyle = { solid: "solid", dot: "dotted", dashdot: "dashed" }[look.dash];
}

// Legend of the looks, in order. With too many looks, the list of runs serves as legend.
function drawKey(element, runs) {
  const looks = new Map(runs.map((run) => [run.look.name, run.look]));
  element.replaceChildren();
  if (looks.size > 16) return;
  for (const look of [...looks.values()].sort((a, b) => a.order - b.order)) {
    const entry = document.createElement("span");
    const swatch = document.createElement("i");
    swatch.className = "swatch";
    paint(swatch, look);
    entry.append(swatch, look.name);
    element.append(entry);
  }
}
