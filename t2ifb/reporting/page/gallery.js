// One prompt through training: a slider over steps, runs side by side, the base model first.
const AT_ONCE = 24;
let shownMost = AT_ONCE;
let shownStep = Infinity;
let placed = []; // the visible images, see addImage

const withPrompt = (run, prompt) => run.samples.filter((sample) => sample.prompts.includes(prompt));
const stepsShown = () => [...new Set(galleryRuns().flatMap(({ samples }) => samples.map((sample) => sample.step)))].sort((a, b) => a - b);

function galleryRuns() {
  const prompt = Number(value("prompt"));
  return runsOf("tuning").map((run) => ({ run, samples: withPrompt(run, prompt) })).filter(({ samples }) => samples.length);
}

function setGallery() {
  if (!one("#images")) return;
  const slider = one("#step");
  const steps = stepsShown();
  const at = steps.findLastIndex((step) => step <= shownStep);
  slider.dataset.steps = JSON.stringify(steps);
  slider.max = Math.max(0, steps.length - 1);
  slider.value = Math.max(0, at);
  buildGallery();
  moveGallery();
}

// Runs with the same base image share a row, after that image.
function buildGallery() {
  const runs = galleryRuns();
  const rows = new Map();
  for (const entry of runs.slice(0, shownMost)) {
    const base = baseOf(entry.samples);
    const key = base ? base.image : "none";
    if (!rows.has(key)) rows.set(key, { base, entries: [] });
    rows.get(key).entries.push(entry);
  }
  placed = [];
  one("#images").replaceChildren(...[...rows.values()].map(({ base, entries }) => {
    const row = document.createElement("div");
    row.className = "strip";
    if (base) row.append(addImage("base model", [base], entries.map(({ samples }) => samples[0])));
    for (const { run, samples } of entries) row.append(addImage(run.name, samples, [baseOf(samples)].filter(Boolean), run));
    return row;
  }));
  one("#gallery .empty").hidden = runs.length > 0;
  const more = one("#more-images");
  more.hidden = runs.length <= shownMost;
  more.textContent = `Show all ${runs.length} runs`;
}

const baseOf = (samples) => (samples[0].step === 0 ? samples[0] : null);

// A run's images, compared with its own base model: runs with the same base images may have different scorers of the
// same name. Without a run, the base model's image of several runs, whose samples are `bases`.
function addImage(name, samples, bases, run = null) {
  const figure = document.createElement("figure");
  const image = document.createElement("img");
  const caption = document.createElement("figcaption");
  if (!run) figure.className = "base";
  figure.append(image, caption);
  placed.push({ image, caption, name, samples, bases, run });
  return figure;
}

function moveGallery() {
  const slider = one("#step");
  const step = JSON.parse(slider.dataset.steps)[slider.value];
  if (step === undefined) return; // no run is selected; keep the step
  shownStep = step;
  slider.setAttribute("aria-valuetext", `step ${step}`);
  one("#step-value").textContent = step;
  for (const item of placed) place(item, step);
}

// Score of the base model; null if it is unknown or differs between the runs.
function baseScore(bases, prompt, scorer) {
  const scores = bases.map((base) => base.scores[base.prompts.indexOf(prompt)]?.[scorer] ?? null).filter((score) => score !== null);
  return new Set(scores.map((score) => score.toFixed(3))).size === 1 ? scores[0] : null;
}

function place({ image, caption, name, samples, bases, run }, step) {
  const prompt = Number(value("prompt"));
  const sample = samples.findLast((one) => one.step <= step) ?? samples[0];
  const tile = sample.prompts.indexOf(prompt);
  const [width, height] = sample.size;
  const uri = data.images[sample.image];
  if (image.src !== uri) image.src = uri;
  image.style.aspectRatio = `${width} / ${height}`;
  image.style.objectPosition = sample.prompts.length > 1 ? `${(100 * tile) / (sample.prompts.length - 1)}% 0` : "0 0";
  image.classList.toggle("pixels", Math.max(width, height) <= 128);
  image.alt = `${data.prompts[prompt]}: ${name}, step ${sample.step}`;
  const scorer = Number(value("score"));
  const before = baseScore(bases, prompt, scorer);
  const score = run ? sample.scores[tile][scorer] ?? null : before;
  const change = run && score !== null && before !== null ? ` (${score >= before ? "+" : ""}${(score - before).toFixed(3)})` : "";
  const kept = run && sample.step === run.kept ? ", kept" : "";
  const words = [name, run ? `step ${sample.step}${kept}` : "", score === null ? "" : `${data.scorers[scorer]} ${score.toFixed(3)}${change}`];
  caption.replaceChildren(...words.filter(Boolean).map((text) => Object.assign(document.createElement("span"), { textContent: text })));
}

function startGallery() {
  if (!one("#images")) return;
  one("#prompt").addEventListener("change", setGallery);
  one("#score").addEventListener("change", moveGallery);
  one("#step").addEventListener("input", moveGallery);
  one("#more-images").addEventListener("click", () => {
    shownMost = Infinity;
    setGallery();
  });
  one("#images").addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    one("#step").value = Number(one("#step").value) + by;
    moveGallery();
  });
}
