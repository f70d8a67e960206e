// Called by every control: update the selection, then redraw the visible charts.
function update() {
  choose();
  const metrics = new Set(all("#metrics input:checked").map((input) => input.value));
  for (const panel of all("[data-metric]")) panel.hidden = !metrics.has(panel.dataset.metric);
  for (const [section, kind] of [["#curves", "tuning"], ["#reward", "reward"]]) {
    if (!one(section)) continue;
    const some = runsOf(kind).length > 0 && all(`${section} [data-metric]`).some((panel) => !panel.hidden);
    one(`${section} .empty`).hidden = some;
    one(`${section} .panels`).hidden = !some;
  }
  if (one("#smoothing-value")) one("#smoothing-value").textContent = Number(value("smoothing")) || "none";
  setGallery();
  for (const chart of charts.values()) chart.dirty = true;
  drawNear();
}

let waiting = false;
function updateSoon() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    update();
  });
}

// Check or clear the visible boxes.
function checkAll(list, checked) {
  for (const input of all(`${list} input`)) if (!input.closest("label").hidden) input.checked = checked;
  updateSoon();
}

function search() {
  const words = value("search").toLowerCase().split(/\s+/);
  for (const label of all("#runs label")) {
    label.hidden = !words.every((word) => label.textContent.toLowerCase().includes(word));
  }
}

function start() {
  const metrics = new Map(data.metrics.map((metric) => [metric.key, metric]));
  for (const panel of all("[data-metric]")) {
    const metric = metrics.get(panel.dataset.metric);
    addChart(one(".plot", panel), (element) => drawCurve(element, metric));
  }
  if (one("#guidance")) {
    addChart(one("#guidance-plot"), drawGuidance);
    one("#swept").addEventListener("change", updateSoon);
  }
  if (one("#trade-offs")) {
    addChart(one("#reward-judge"), (element) => drawTrade(element, "reward", "reward, change from base"));
    addChart(one("#judge-kl"), (element) => drawTrade(element, value("kl"), klTitle(value("kl"), "KL to the base model")));
    addChart(one("#parcoords"), drawParallel);
    for (const id of ["judge", "points", "kl"]) one("#" + id).addEventListener("change", updateSoon);
  }
  for (const box of all("[data-intervals]")) {
    all(".plot", box).forEach((element, n) => addChart(element, () => drawIntervals(element, data.intervals[box.dataset.intervals][n])));
  }
  const form = one("#controls form");
  if (form) {
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", (event) => (event.target.id === "search" ? search() : updateSoon()));
    for (const [id, list, checked] of [["all-runs", "#runs", true], ["no-runs", "#runs", false], ["all-metrics", "#metrics", true], ["no-metrics", "#metrics", false]]) {
      one("#" + id).addEventListener("click", () => checkAll(list, checked));
    }
    one("#reset-filters")?.addEventListener("click", () => {
      for (const input of all("#filters input")) input.type === "checkbox" ? (input.checked = true) : (input.value = "");
      updateSoon();
    });
    if (matchMedia("(max-width: 60rem)").matches) one("#controls").open = false;
  }
  startGallery();
  startTables();
  night.addEventListener("change", updateSoon);
  addEventListener("beforeprint", () => drawNear(true));
  update();
}

start();
