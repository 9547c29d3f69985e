// The page of `dhead-trt view`. Plain DOM; everything comes from the server that sent this file.
"use strict";

const $ = (id) => document.getElementById(id);
const STAGES = [["read", "Read"], ["letterbox", "Letterbox"], ["engine", "Engine"], ["post", "Decode + NMS"], ["detect", "Detect"]];
const OPTIONS = ["conf", "iou", "max_det"];
const SVG = "http://www.w3.org/2000/svg";

let model = null;       // what /api/model says
let file = null;        // the image: a File or Blob
let size = null;        // its width and height in pixels, as shown
let answer = null;      // the last result, a Detections object as JSON, with the options it was asked with
let runs = [];          // times of this image's runs
let shown = [];         // the rows drawn: [index in answer, detection]
let lit = null;         // highlighted row, or null
let zoom = null;        // screen pixels per image pixel; null: fit
let selected = new Set();
let busy = false;       // one request at a time; what changes meanwhile is asked for after it
let again = false;
let timer = 0;
let serial = 0;         // of the image, so that a late answer cannot reach the next one

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function drawn(tag, attributes) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

const dot = (colour) => {
  const node = element("i", { class: "dot" });
  node.style.background = colour;
  return node;
};

// ---- talking to the server ----------------------------------------------------------------------------------------

class Refused extends Error {
  constructor(parts) { super(parts.problem); this.parts = parts; }
}

async function ask(path, body) {
  let response;
  try {
    response = await fetch(path, body ? { method: "POST", body, headers: { "Content-Type": "application/octet-stream" } } : {});
  } catch {
    throw new Refused({ problem: "The server does not answer", expected: "dhead-trt view, running", fix: "Start it again and reload the page" });
  }
  if (response.ok) return response;
  let parts = null;
  try { parts = (await response.json()).error; } catch { /* not ours */ }
  throw new Refused(parts || { problem: `The server answered ${response.status}` });
}

function options() {
  const chosen = {};
  for (const name of OPTIONS) chosen[name] = Number($(name + "-n").value);
  return chosen;
}

async function detect(repeat = 1) {
  if (!file || !selected.size) return;
  if (busy) { again = true; return; }
  const asked = options(), image = serial, classes = [...selected];
  const query = new URLSearchParams({ ...asked, repeat });
  if (classes.length < model.classes.length) query.set("classes", classes.join(","));
  if (file.size > model.max_upload) {
    const mib = (n) => `${+(n / 2 ** 20).toPrecision(4)} MiB`;
    return fail({ problem: "The file is too large", received: mib(file.size), expected: `at most ${mib(model.max_upload)}`,
      fix: "Choose a smaller image, or start the page with a higher --max-upload" });
  }
  setBusy(true, repeat);
  try {
    const data = await (await ask(`api/detect?${query}`, file)).json();
    if (image !== serial) return;
    answer = { ...data.result, asked, classes: new Set(classes) };
    runs = [...runs, ...data.runs].slice(-200);
    const [height, width] = data.result.image_size;
    size = { width, height };
    fail(null);
    await showPicture();
  } catch (e) {
    if (image !== serial) return;
    if (!(e instanceof Refused)) throw e;
    answer = null;
    fail(e.parts);
  } finally {
    setBusy(false);
    render();
    if (again || image !== serial) { again = false; detect(); }
  }
}

function setBusy(on, repeat = 1) {
  busy = on;
  $("busy").hidden = !on;
  $("stage").setAttribute("aria-busy", String(on));
  $("measure").disabled = on || !answer;
  $("measure").textContent = on && repeat > 1 ? "Measuring…" : "Measure 20 runs";
}

function soon() {
  render(); // what can be known without the server, at once
  clearTimeout(timer);
  timer = setTimeout(() => { timer = 0; detect(); }, 90);
}

function fail(parts) {
  $("error").hidden = !parts;
  if (!parts) return;
  $("problem").textContent = parts.problem;
  const rows = [["Received", parts.received], ["Expected", parts.expected], ["What to do", parts.fix]].filter(([, text]) => text);
  $("explain").replaceChildren(...rows.flatMap(([name, text]) => [element("dt", {}, name), element("dd", {}, text)]));
}

// ---- the image ----------------------------------------------------------------------------------------------------

function take(blob, name) {
  if (!blob) return;
  file = blob;
  serial += 1;
  answer = null; size = null; runs = []; lit = null; zoom = null;
  $("filename").textContent = name || "pasted image";
  $("filename").title = name || "";
  if ($("picture").src) URL.revokeObjectURL($("picture").src);
  $("picture").removeAttribute("src");
  $("scroll").hidden = true;
  render();
  if (!selected.size) selectAll(true);
  detect();
}

async function showPicture() {
  const picture = $("picture"), image = serial;
  if (picture.getAttribute("src")) return;
  const put = async (blob) => {
    const url = URL.createObjectURL(blob);
    picture.src = url;
    await picture.decode();
  };
  try {
    await put(file);
  } catch {
    try {
      const blob = await (await ask("api/preview", file)).blob();
      if (image === serial) await put(blob);
    } catch (e) {
      if (image === serial && e instanceof Refused) fail(e.parts);
    }
  }
}

function layout() {
  if (!size || $("scroll").hidden) return 1;
  const space = $("scroll"), style = getComputedStyle(space);
  const inside = space.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
  let tall = space.clientHeight - parseFloat(style.paddingTop) - parseFloat(style.paddingBottom);
  if (matchMedia("(max-width: 860px)").matches) tall = window.innerHeight * 0.74;
  // small images are enlarged, by whole steps; nothing is shown larger than 8 times
  let scale = zoom ?? Math.min(inside / size.width, tall / size.height, 8);
  if (zoom === null && scale > 1) scale = Math.max(1, Math.floor(scale * 2) / 2);
  const frame = $("frame");
  frame.style.width = `${size.width * scale}px`;
  frame.style.height = `${size.height * scale}px`;
  frame.classList.toggle("pixels", scale >= 3);
  return scale;
}

// ---- boxes --------------------------------------------------------------------------------------------------------

const overlap = (a, b) => Math.max(0, Math.min(a[2], b[2]) - Math.max(a[0], b[0])) * Math.max(0, Math.min(a[3], b[3]) - Math.max(a[1], b[1]));

// Where a label hides least: other labels are worst, then other boxes, then its own. As dhead_trt.draw does it.
function place(box, w, h, width, height, boxes, labels) {
  const [x1, y1, x2, y2] = box;
  const corners = [[x1 - 1, y1 - h], [x2 - w, y1 - h], [x2, y1], [x1 - w, y1], [x1, y2], [x2 - w, y2], [x2 - w, y1], [x1, y1]];
  let best = null, least = Infinity;
  for (const [cx, cy] of corners) {
    const x = Math.max(0, Math.min(cx, width - w)), y = Math.max(0, Math.min(cy, height - h));
    const area = [x, y, x + w, y + h];
    let hidden = overlap(area, box);
    for (const other of labels) hidden += 8 * overlap(area, other);
    for (const other of boxes) if (other !== box) hidden += 2 * overlap(area, other);
    if (hidden < least - 1e-6) { least = hidden; best = area; }
  }
  return best;
}

function dark(colour) {
  const part = (i) => parseInt(colour.slice(i, i + 2), 16);
  return 0.299 * part(1) + 0.587 * part(3) + 0.114 * part(5) < 150;
}

const pen = document.createElement("canvas").getContext("2d");

function widthOf(text, points) {
  pen.font = `600 ${points}px system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif`;
  return pen.measureText(text).width;
}

function drawBoxes(scale) {
  const overlay = $("overlay");
  const width = size.width * scale, height = size.height * scale;
  overlay.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const boxes = shown.map(([, d]) => d.xyxy.map((v) => v * scale));
  const points = width < 480 ? 9 : 10.5; // of the labels
  const placed = [], tags = drawn("g", { class: "tags" }), rects = drawn("g", {});
  shown.forEach(([index, d], row) => {
    const colour = model.classes[d.class_id].colour, [x1, y1, x2, y2] = boxes[row];
    const text = `${d.name} ${d.confidence.toFixed(2)}`;
    const box = drawn("rect", { class: "box", x: x1, y: y1, width: Math.max(x2 - x1, 1), height: Math.max(y2 - y1, 1), rx: 1.5, fill: colour, stroke: colour, "data-index": index });
    const title = drawn("title", {});
    title.textContent = text;
    box.append(title);
    const group = drawn("g", { "data-row": row });
    group.append(box);
    group.addEventListener("pointerenter", () => highlight(row, true));
    group.addEventListener("pointerleave", () => highlight(null));
    rects.prepend(group); // the surest on top
    if (!$("labels").checked || row >= 400) return;
    const w = Math.ceil(widthOf(text, points)) + 7, h = Math.round(points * 1.34);
    const area = place(boxes[row], w, h, width, height, boxes, placed);
    placed.push(area);
    const tag = drawn("g", { "data-row": row });
    tag.append(drawn("rect", { x: area[0], y: area[1], width: w, height: h, rx: 2.5, fill: colour }));
    const words = drawn("text", { x: area[0] + 3.5, y: area[1] + points, "font-size": points, fill: dark(colour) ? "#fff" : "#000" });
    words.textContent = text;
    tag.append(words);
    tags.prepend(tag);
  });
  overlay.replaceChildren(rects, tags);
}

function highlight(row, scroll = false) {
  lit = row;
  const overlay = $("overlay");
  overlay.classList.toggle("some-lit", row !== null);
  for (const group of overlay.querySelectorAll("[data-row]")) group.classList.toggle("lit", Number(group.dataset.row) === row);
  $("found").querySelectorAll("tbody tr").forEach((tr, i) => {
    tr.classList.toggle("lit", i === row);
    if (i === row && scroll && !matchMedia("(max-width: 860px)").matches) tr.scrollIntoView({ block: "nearest" });
  });
}

// ---- the panel ----------------------------------------------------------------------------------------------------

const median = (values) => {
  const sorted = [...values].sort((a, b) => a - b), half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
};
const ms = (value) => (value < 9.95 ? value.toFixed(2) : value.toFixed(1));

function showTimes() {
  const place = $("latency");
  if (!runs.length) return place.replaceChildren(element("p", { class: "quiet" }, file ? "Nothing measured." : "No image yet."));
  const last = runs[runs.length - 1];
  const stages = STAGES.filter(([name]) => name in last);
  const total = (run) => stages.reduce((sum, [name]) => sum + run[name], 0);
  const middle = Object.fromEntries(stages.map(([name]) => [name, median(runs.map((r) => r[name]))]));
  const whole = stages.reduce((sum, [name]) => sum + middle[name], 0) || 1;
  const bar = element("div", { class: "stack", role: "img", "aria-label": stages.map(([name, title]) => `${title} ${ms(middle[name])} ms`).join(", ") });
  for (const [name, title] of stages) {
    const part = element("i", { class: name, title: `${title}: ${ms(middle[name])} ms` });
    part.style.width = `${(100 * middle[name]) / whole}%`;
    bar.append(part);
  }
  const row = (kind, head, one, half) => element("tr", kind ? { class: kind } : {}, element("th", { scope: "row" }, ...head), element("td", {}, ms(one)), element("td", {}, ms(half)));
  const rows = stages.map(([name, title]) => row("", [element("i", { class: `dot ${name}` }), title], last[name], middle[name]));
  rows.push(row("sum", ["Total"], total(last), median(runs.map(total))));
  const count = `p50 of ${runs.length}`;
  const head = element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "Milliseconds"), element("th", { scope: "col" }, "last run"), element("th", { scope: "col" }, count)));
  place.replaceChildren(bar, element("table", { class: "times" }, head, element("tbody", {}, ...rows)));
}

function showClasses() {
  const counts = new Map();
  for (const [, d] of shown) counts.set(d.class_id, (counts.get(d.class_id) || 0) + 1);
  const wanted = $("search").value.trim().toLowerCase();
  for (const chip of $("classes").children) {
    const id = Number(chip.dataset.id), number = counts.get(id) || 0;
    chip.setAttribute("aria-pressed", String(selected.has(id)));
    chip.querySelector("b").textContent = number || "";
    chip.hidden = wanted !== "" && !model.classes[id].name.toLowerCase().includes(wanted);
    chip.style.order = number ? "0" : "1";
  }
}

function showTable() {
  const place = $("found");
  $("save").disabled = !answer;
  $("count").textContent = answer ? String(shown.length) : "";
  if (!answer) return place.replaceChildren(element("p", { class: "quiet" }, file ? (busy ? "Detecting…" : "No result.") : "No image yet."));
  if (!shown.length) {
    const why = selected.size ? "Nothing found above this confidence." : "No class is selected.";
    return place.replaceChildren(element("p", { class: "quiet" }, why));
  }
  const columns = ["Class", "Score", "x1", "y1", "x2", "y2"];
  const head = element("thead", {}, element("tr", {}, ...columns.map((c) => element("th", { scope: "col" }, c))));
  const body = element("tbody");
  shown.forEach(([index, d], row) => {
    const tr = element("tr", { tabindex: row ? -1 : 0, "data-index": index },
      element("td", { title: d.name }, dot(model.classes[d.class_id].colour), d.name), element("td", {}, d.confidence.toFixed(3)),
      ...d.xyxy.map((v) => element("td", {}, v.toFixed(1))));
    tr.addEventListener("pointerenter", () => highlight(row));
    tr.addEventListener("pointerleave", () => highlight(null));
    tr.addEventListener("focus", () => highlight(row));
    tr.addEventListener("blur", () => highlight(null));
    body.append(tr);
  });
  const had = place.contains(document.activeElement) && document.activeElement.dataset.index;
  place.replaceChildren(element("table", {}, head, body));
  if (had) (body.querySelector(`[data-index="${had}"]`) || body.firstChild).focus();
}

function filtered() {
  if (!answer) return [];
  const { conf, max_det } = options();
  // Greedy NMS goes by falling score, so a higher threshold keeps the first rows of the same answer.
  return answer.detections.map((d, i) => [i, d]).filter(([, d]) => d.confidence > conf && selected.has(d.class_id)).slice(0, max_det);
}

function render() {
  $("empty").hidden = Boolean(file && (busy || size));
  $("tools").hidden = !file;
  $("scroll").hidden = !file || !size || !$("picture").getAttribute("src");
  $("measure").disabled = busy || !answer;
  shown = filtered();
  if (size) drawBoxes(layout());
  showTable();
  showTimes();
  showClasses();
  if (lit !== null) highlight(lit < shown.length ? lit : null);
}

// ---- controls -----------------------------------------------------------------------------------------------------

function setOption(name, value) {
  $(name).value = value;
  $(name + "-n").value = value;
}

function wireOptions() {
  for (const name of OPTIONS) {
    $(name).addEventListener("input", () => { $(name + "-n").value = $(name).value; soon(); });
    $(name + "-n").addEventListener("input", () => {
      if (!$(name + "-n").checkValidity() || $(name + "-n").value === "") return;
      $(name).value = $(name + "-n").value;
      soon();
    });
    $(name + "-n").addEventListener("change", () => {
      if ($(name + "-n").checkValidity() && $(name + "-n").value !== "") return;
      $(name + "-n").value = $(name).value;
    });
  }
  $("reset").addEventListener("click", () => { OPTIONS.forEach((n) => setOption(n, model.defaults[n])); selectAll(true); soon(); });
}

function selectAll(on) {
  selected = new Set(on ? model.classes.keys() : []);
}

function wireClasses() {
  $("search").hidden = model.classes.length <= 16;
  $("search").addEventListener("input", showClasses);
  $("classes").replaceChildren(...model.classes.map((c, id) => {
    const chip = element("button", { type: "button", class: "chip", "data-id": id, "aria-pressed": "true" }, dot(c.colour), c.name, element("b"));
    chip.addEventListener("click", () => { if (!selected.delete(id)) selected.add(id); soon(); });
    return chip;
  }));
  $("all").addEventListener("click", () => { selectAll(true); soon(); });
  $("none").addEventListener("click", () => { selectAll(false); soon(); });
}

function wireImage() {
  const choose = () => $("file").click();
  $("choose").addEventListener("click", choose);
  $("choose2").addEventListener("click", choose);
  $("file").addEventListener("change", () => {
    const [picked] = $("file").files;
    if (picked) take(picked, picked.name);
    $("file").value = "";
  });
  let depth = 0;
  const cover = (on) => { $("drop").hidden = !on; if (!on) depth = 0; };
  const carries = (e) => [...(e.dataTransfer?.types || [])].includes("Files");
  addEventListener("dragenter", (e) => { if (carries(e)) { e.preventDefault(); depth += 1; cover(true); } });
  addEventListener("dragleave", (e) => { if (carries(e) && --depth <= 0) cover(false); });
  addEventListener("dragover", (e) => { if (carries(e)) { e.preventDefault(); e.dataTransfer.dropEffect = "copy"; } });
  addEventListener("drop", (e) => {
    cover(false);
    const [dropped] = e.dataTransfer?.files || [];
    if (!dropped) return;
    e.preventDefault();
    take(dropped, dropped.name);
  });
  addEventListener("paste", (e) => {
    const item = [...(e.clipboardData?.items || [])].find((i) => i.kind === "file");
    const pasted = item?.getAsFile();
    if (pasted) { e.preventDefault(); take(pasted, pasted.name); }
  });
}

function wireZoom() {
  const by = (factor) => { zoom = Math.max(0.05, Math.min(16, layout() * factor)); render(); };
  $("zoomin").addEventListener("click", () => by(1.25));
  $("zoomout").addEventListener("click", () => by(0.8));
  $("fit").addEventListener("click", () => { zoom = null; render(); });
  $("scroll").addEventListener("wheel", (e) => {
    if (!e.ctrlKey) return;
    e.preventDefault();
    by(Math.exp(-e.deltaY / 300));
  }, { passive: false });
  $("labels").addEventListener("change", render);
  new ResizeObserver(() => { if (size) drawBoxes(layout()); }).observe($("stage"));
}

function wireResults() {
  $("measure").addEventListener("click", () => detect(20));
  $("save").addEventListener("click", () => {
    const { asked, classes, ...result } = answer;
    const link = element("a", { download: `${($("filename").textContent || "image").replace(/\.[^.]*$/, "")}.json` });
    const json = JSON.stringify({ ...result, detections: shown.map(([, d]) => d) }, null, 1);
    link.href = URL.createObjectURL(new Blob([json], { type: "application/json" }));
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
  $("found").addEventListener("keydown", (e) => {
    const row = e.target.closest("tbody tr");
    const next = { ArrowDown: row?.nextElementSibling, ArrowUp: row?.previousElementSibling, Home: row?.parentNode.firstChild, End: row?.parentNode.lastChild }[e.key];
    if (e.key === "Escape" && row) row.blur();
    if (!next) return;
    e.preventDefault();
    row.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
}

async function start() {
  try {
    model = await (await ask("api/model")).json();
  } catch (e) {
    return fail(e.parts || { problem: String(e) });
  }
  const [height, width] = model.image_size;
  const names = { openvino: "OpenVINO", tensorrt: "TensorRT", tensorrt_rtx: "TensorRT for RTX" };
  const facts = [model.plan, names[model.backend] || model.backend, model.precision, model.device, `${width} × ${height}`, `${model.classes.length} ${model.classes.length === 1 ? "class" : "classes"}`];
  $("facts").replaceChildren(...facts.map((text) => element("li", { title: text }, text)));
  document.title = `${model.plan} – dhead_trt view`;
  for (const name of OPTIONS) setOption(name, model.defaults[name]);
  selectAll(true);
  wireOptions(); wireClasses(); wireImage(); wireZoom(); wireResults();
  render();
  document.body.dataset.ready = "yes";
}

start();
