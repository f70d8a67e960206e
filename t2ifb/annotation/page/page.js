"use strict";
// Prompts and names are only ever set as text; the server's policy allows no inline script.
const $ = (id) => document.getElementById(id);
const state = { annotator: "", question: null, tiers: [], ratings: {}, tie: false, shown: 0, busy: false };
const ASPECTS = ["overall", "alignment", "fidelity"];
const EDGE = 60, SCROLL = 20; // a drag within EDGE pixels of an edge of the window scrolls by SCROLL at each move

function make(tag, options = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(options)) {
    if (key in element) element[key] = value; else element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

async function call(path, body) {
  const options = body === undefined ? {} :
    { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const answer = await fetch(path, options).catch(() => { throw new Error("The server cannot be reached."); });
  const text = await answer.text();
  let content = null;
  try { content = JSON.parse(text); } catch { /* a refusal in plain text */ }
  if (!answer.ok) throw Object.assign(new Error(content && content.error ? content.error : text), { status: answer.status });
  return content;
}

async function move(path, body) {
  if (state.busy) return;
  state.busy = true;
  try {
    show(await call(path, body));
    $("error").hidden = true;
  } catch (error) {
    const taken = error.status === 409;
    $("error").textContent = taken ? error.message : `${sentence(error)} Nothing is lost; try again.`;
    $("error").hidden = false;
    if (taken) await showNext();
  } finally {
    state.busy = false;
  }
}

async function showNext() {
  try { show(await call(next())); } catch (error) { $("error").textContent = `${sentence(error)} Reload the page.`; }
}

const sentence = (error) => `${error.message.replace(/[.\s]+$/, "")}.`;

const next = () => `api/next?annotator=${encodeURIComponent(state.annotator)}`;
const ask = () => move(next());
const undo = () => move("api/undo", { annotator: state.annotator });

function send(answer) {
  const { item, ratings } = state.question;
  const ranks = [];
  let rank = 1;
  for (const tier of state.tiers) {
    for (const place of tier) ranks[place] = rank;
    rank += tier.length;
  }
  const rated = ratings && answer !== "skip" ? readRatings(item.images.length) : null;
  move("api/answer", {
    annotator: state.annotator, item: item.key, answer, ranks: answer === "ranks" ? ranks : null, ratings: rated,
    seconds: (performance.now() - state.shown) / 1000,
  });
}

function readRatings(count) {
  const found = Array.from({ length: count }, (_, place) => state.ratings[place] || {});
  return found.some((each) => Object.keys(each).length) ? found : null;
}

function show(question) {
  Object.assign(state, { question, tiers: [], ratings: {}, tie: false, shown: performance.now() });
  const { done, left, seconds_left: seconds } = question;
  $("login").hidden = true;
  $("work").hidden = question.item === null;
  $("end").hidden = question.item !== null;
  $("bar").value = done + left ? done / (done + left) : 1;
  const minutes = seconds === null ? "" : `, about ${Math.max(1, Math.round(seconds / 60))} min`;
  $("status").textContent = `${state.annotator}: ${done} done, ${left} left${minutes}`;
  if (question.item === null) return showResults(question.results || {});
  document.body.className = question.mode;
  $("prompt").textContent = question.item.prompt;
  const compare = question.mode === "compare";
  $("help").textContent = compare ? "Which image is better for the prompt?"
    : "Order the images from best to worst: press their buttons in that order, or drag them.";
  $("keys").textContent = compare ? "Keys: ← left, → right, ↓ tie, S skip, B both bad, U undo."
    : "Keys: 1 to 9 place an image, = ties the next one with the last, Backspace takes back, Enter sends, S skip, B all "
      + "bad, U undo.";
  if (question.ratings) $("help").textContent += " Ratings are from 1 (worst) to 7 (best).";
  $("tray").replaceChildren(...question.item.images.map((image) => card(image.place)));
  draw();
}

function showResults(results) {
  $("results").replaceChildren();
  $("later").hidden = Object.keys(results).length > 0;
  for (const [name, value] of Object.entries(results)) {
    $("results").append(make("dt", { textContent: name }), make("dd", { textContent: value }));
  }
}

function number(place) {
  return state.question.item.images.findIndex((image) => image.place === place) + 1;
}

function picture(place) {
  const { item } = state.question;
  const alt = `image ${number(place)} of ${item.images.length} for: ${item.prompt}`;
  const image = make("img", { src: `image/${item.key}/${place}`, alt, draggable: false });
  const button = make("button", { className: "picture", type: "button", title: "enlarge" }, image);
  button.addEventListener("click", () => enlarge(image));
  return button;
}

function grip(figure, place, textContent) {
  const button = make("button", { className: "grip", type: "button", textContent, title: "drag" });
  button.setAttribute("aria-label", `drag image ${number(place)}`);
  button.addEventListener("pointerdown", (event) => drag(event, figure, place));
  return button;
}

// An image of the question. It stays where it is, so that nothing moves while images are placed.
function card(place) {
  const figure = make("figure", { className: "card" }, picture(place));
  figure.dataset.place = place;
  if (state.question.mode === "rank") {
    const put = make("button", { className: "put", type: "button" });
    put.addEventListener("click", () => { if (rankOf(place)) take(place); else add(place); });
    figure.append(make("span", { className: "number", textContent: number(place) }), make("span", { className: "badge" }),
      make("div", { className: "row" }, grip(figure, place, "⠿ drag"), put));
  }
  if (state.question.ratings) figure.append(rating(place));
  return figure;
}

// A placed image in the ranking.
function thumbnail(place) {
  const remove = make("button", { type: "button", textContent: "×", title: "remove" });
  remove.setAttribute("aria-label", `remove image ${number(place)} from the ranking`);
  remove.addEventListener("click", () => take(place));
  const figure = make("figure", { className: "thumbnail" }, picture(place),
    make("span", { className: "number", textContent: number(place) }));
  figure.append(make("div", { className: "row" }, grip(figure, place, "⠿"), remove));
  return figure;
}

function rating(place) {
  const rows = make("div", { className: "ratings" });
  for (const aspect of ASPECTS) {
    const choice = make("select", {}, make("option", { value: "", textContent: "–" }));
    choice.setAttribute("aria-label", `${aspect} of image ${number(place)}, 1 (worst) to 7 (best)`);
    for (let value = 1; value <= 7; value++) choice.append(make("option", { value, textContent: value }));
    choice.addEventListener("change", () => {
      const given = state.ratings[place] = state.ratings[place] || {};
      if (choice.value) given[aspect] = Number(choice.value); else delete given[aspect];
    });
    rows.append(make("label", {}, make("span", { textContent: aspect }), choice));
  }
  return rows;
}

// Rank of a placed image, 1 is best; 0 if it is not placed.
function rankOf(place) {
  let rank = 1;
  for (const tier of state.tiers) {
    if (tier.includes(place)) return rank;
    rank += tier.length;
  }
  return 0;
}

function draw() {
  const { item, mode } = state.question;
  for (const figure of mode === "rank" ? $("tray").children : []) {
    const place = Number(figure.dataset.place);
    const rank = rankOf(place);
    figure.classList.toggle("placed", rank > 0);
    figure.querySelector(".badge").textContent = rank ? `rank ${rank}` : "";
    const put = figure.querySelector(".put");
    put.textContent = rank ? "remove" : "place";
    put.setAttribute("aria-label", rank ? `remove image ${number(place)}` : `place image ${number(place)} next`);
  }
  $("ranking").hidden = $("ranking-title").hidden = mode === "compare";
  const gap = (index) => { const li = make("li", { className: "gap" }); li.dataset.gap = index; return li; };
  const rows = [gap(0)];
  state.tiers.forEach((tier, index) => {
    const title = `rank ${rankOf(tier[0])}${tier.length > 1 ? ", tied" : ""}`;
    const images = make("div", { className: "tied" }, ...tier.map(thumbnail));
    const li = make("li", { className: "tier" }, make("span", { className: "title", textContent: title }), images);
    li.dataset.tier = index;
    rows.push(li, gap(index + 1));
  });
  $("ranking").replaceChildren(...rows);
  drawActions(state.tiers.flat().length === item.images.length);
}

function drawActions(complete) {
  const { mode, item } = state.question;
  const button = (id, textContent, act, options = {}) => {
    const made = make("button", { id, type: "button", textContent, ...options });
    // The second click of a double click would answer the next question, whose button is in the same place.
    made.addEventListener("click", (event) => { if (event.detail < 2) act(); });
    return made;
  };
  const places = item.images.map((image) => image.place);
  const choices = mode === "compare"
    ? [button("left", "← Left", () => choose([[places[0]], [places[1]]]), { className: "main" }),
       button("tie", "Tie", () => choose([places])),
       button("right", "Right →", () => choose([[places[1]], [places[0]]]), { className: "main" })]
    : [button("send", "Send", () => send("ranks"), { className: "main", disabled: !complete }),
       button("tie", "= Tie next", toggleTie, {
         className: state.tie ? "main" : "", ariaPressed: `${state.tie}`, disabled: !state.tiers.length || complete })];
  $("actions").replaceChildren(...choices, button("skip", "Skip", () => send("skip")),
    button("bad", mode === "compare" ? "Both bad" : "All bad", () => send("all bad")), button("undo", "Undo", undo));
}

function choose(tiers) { state.tiers = tiers; send("ranks"); }
function toggleTie() { state.tie = state.tiers.length > 0 && !state.tie; draw(); }

function remove(place) {
  state.tiers = state.tiers.map((tier) => tier.filter((other) => other !== place)).filter((tier) => tier.length);
}

function add(place) {
  remove(place);
  if (state.tie && state.tiers.length) state.tiers.at(-1).push(place); else state.tiers.push([place]);
  state.tie = false;
  draw();
}

function take(place) { remove(place); state.tie = false; draw(); }

function drop(place, target) {
  // The target's own index may change when the image leaves its tier, so it is marked first.
  const marked = target.dataset.tier === undefined ? null : state.tiers[Number(target.dataset.tier)];
  const before = target.dataset.gap === undefined ? null : state.tiers[Number(target.dataset.gap)];
  if (marked && marked.length === 1 && marked[0] === place) return;
  state.tiers = state.tiers.map((tier) => { const i = tier.indexOf(place); if (i >= 0) tier.splice(i, 1); return tier; });
  if (marked) marked.push(place);
  else {
    const at = before ? state.tiers.indexOf(before) : state.tiers.length;
    state.tiers.splice(at, 0, [place]);
  }
  state.tiers = state.tiers.filter((tier) => tier.length);
  draw();
}

function drag(event, figure, place) {
  event.preventDefault();
  const ghost = make("img", { className: "dragged", src: figure.querySelector("img").src, alt: "" });
  document.body.append(ghost);
  let target = null;
  const follow = (moved) => {
    if (moved.pointerId !== event.pointerId) return; // another finger
    ghost.style.left = `${moved.clientX - 60}px`;
    ghost.style.top = `${moved.clientY - 60}px`;
    if (moved.clientY < EDGE) scrollBy(0, -SCROLL); else if (moved.clientY > innerHeight - EDGE) scrollBy(0, SCROLL);
    const below = document.elementFromPoint(moved.clientX, moved.clientY);
    if (target) target.classList.remove("target");
    target = below && below.closest("[data-tier], [data-gap], #tray");
    if (target && target.id !== "tray") target.classList.add("target");
  };
  const end = (ended) => {
    if (ended.pointerId !== event.pointerId) return;
    removeEventListener("pointermove", follow);
    removeEventListener("pointerup", end);
    removeEventListener("pointercancel", end);
    ghost.remove();
    if (target) target.classList.remove("target");
    if (!target || ended.type === "pointercancel") return;
    if (target.id === "tray") take(place); else drop(place, target);
  };
  follow(event);
  addEventListener("pointermove", follow);
  addEventListener("pointerup", end);
  addEventListener("pointercancel", end);
}

function enlarge(image) {
  $("large-image").src = image.src;
  $("large-image").alt = image.alt;
  $("large").showModal();
}

function key(event) {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || $("work").hidden || $("large").open) return;
  if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
  const press = (id) => { const button = $(id); if (button && !button.disabled) { event.preventDefault(); button.click(); } };
  const { mode, item } = state.question;
  const letter = event.key.toLowerCase();
  const common = { s: "skip", b: "bad", u: "undo" };
  if (common[letter]) return press(common[letter]);
  if (mode === "compare") return press({ arrowleft: "left", arrowright: "right", arrowdown: "tie" }[letter] || "");
  if (letter === "=") return press("tie");
  if (letter === "enter" && event.target.tagName !== "BUTTON") return press("send");
  if (letter === "backspace" && state.tiers.length) return take(state.tiers.at(-1).at(-1));
  const image = /^[1-9]$/.test(letter) ? item.images[Number(letter) - 1] : null;
  if (image) add(image.place);
}

$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  state.annotator = $("name").value.trim();
  sessionStorage.setItem("annotator", state.annotator);
  ask();
});
$("close").addEventListener("click", () => $("large").close());
$("large").addEventListener("click", () => $("large").close());
$("end-undo").addEventListener("click", undo);
addEventListener("keydown", key);
// A button that was clicked would take the next Enter, which is to send the ranking.
addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button && event.detail) button.blur();
}, true);
state.annotator = sessionStorage.getItem("annotator") || "";
$("name").value = state.annotator;
$("login").hidden = false;
if (state.annotator) ask(); else $("name").focus();
