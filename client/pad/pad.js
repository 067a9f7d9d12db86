// The page: strokes or a picture go to POST /v1/recognize, the answer comes back as MathML.
import { Sheet } from "/ink.js";

const PAUSE = 220; // ms after the last stroke before it is sent
const MORE_PAUSE = 500; // ms after an answer before other readings are asked for
const HEALTH_PAUSE = 20_000; // ms between two questions how the server is
const BEAM = 5;
const STRUCTURE = new Set(["{", "}", "^", "_"]);
const byId = (id) => document.getElementById(id);

const sheet = new Sheet(byId("ink"), byId("heat"), changed);
let timer = 0;
let asking = null; // AbortController of what is under way
let answer = null; // the document that is shown
let attention = null; // { box, maps } of the answer, or a promise of it

function changed() {
  byId("undo").disabled = sheet.history.length < 2;
  byId("clear").disabled = sheet.isEmpty;
  byId("hint").hidden = !sheet.isEmpty || sheet.isWriting;
  const { strokes, picture } = sheet.state;
  byId("ink").setAttribute("aria-label", picture ? "A picture" :
    strokes.length ? `Ink, ${strokes.length} stroke${strokes.length > 1 ? "s" : ""}` :
    "Nothing is written yet");
  clearTimeout(timer);
  asking?.abort();
  asking = null;
  attention = null;
  if (sheet.isEmpty) return forget();
  byId("formula").classList.add("old");
  if (!sheet.isWriting) timer = setTimeout(recognise, PAUSE);
}

function body() {
  const { strokes, picture } = sheet.state;
  if (picture) return { body: picture.blob };
  const rounded = strokes.map((stroke) => stroke.map((point) => point.map((v) => Math.round(v * 10) / 10)));
  return { body: JSON.stringify({ strokes: rounded }), headers: { "Content-Type": "application/json" } };
}

async function ask(query, signal) {
  let response, document;
  try {
    response = await fetch(`/v1/recognize${query}`, { method: "POST", signal, ...body() });
    document = await response.json();
  } catch (error) {
    if (signal.aborted) throw error;
    throw new Error("The pad itself does not answer. Start it again with hmer-client pad.");
  }
  if (response.ok) return document;
  throw new Error(document.error?.message ?? `The pad answered with status ${response.status}.`);
}

async function recognise() {
  const own = (asking = new AbortController());
  byId("state").textContent = "Recognising…";
  try {
    const found = await ask("", own.signal);
    if (own.signal.aborted) return;
    show(found);
    byId("state").textContent = "";
    timer = setTimeout(() => others(own), MORE_PAUSE);
  } catch (error) {
    if (own.signal.aborted) return;
    forget();
    byId("problem-text").textContent = error.message;
    byId("problem").hidden = false;
    health();
  }
}

async function others(own) {
  try {
    const found = await ask(`?beam=${BEAM}&n_best=${BEAM}`, own.signal);
    if (own.signal.aborted) return;
    const readings = [found, ...found.alternatives].filter((one) => one.latex !== answer.latex);
    list([answer, ...readings.slice(0, BEAM - 1)]);
  } catch {
    // Not every bundle has beams: the answer stands without other readings.
  }
}

function forget() {
  answer = null;
  byId("formula").replaceChildren();
  byId("formula").classList.remove("old");
  byId("found").hidden = byId("others").hidden = byId("problem").hidden = true;
  byId("state").textContent = "";
}

function show(found) {
  answer = found;
  byId("problem").hidden = byId("others").hidden = true;
  byId("found").hidden = false;
  reading(found);
  const known = found.confidence !== null;
  const share = Math.round(100 * (known ? found.confidence : found.score));
  byId("sure-text").textContent = known ? `Confidence ${share} %` : `Probability ${share} %`;
  byId("meter").value = known ? found.confidence : found.score;
  byId("tokens").replaceChildren(...found.tokens.map(token));
}

function reading(found) {
  byId("formula").classList.remove("old");
  byId("formula").replaceChildren(maths(found));
  byId("latex").value = found.latex;
  byId("sure").hidden = byId("tokens-part").hidden = found !== answer;
  sheet.show(null);
}

function maths(found) {
  if (found.mathml) {
    const parsed = new DOMParser().parseFromString(found.mathml, "application/xml").documentElement;
    if (parsed.localName === "math") {
      const node = document.importNode(parsed, true);
      node.setAttribute("aria-label", found.latex);
      return node;
    }
  }
  const code = document.createElement("code");
  code.textContent = found.latex || "(no formula)";
  return code;
}

function token(text, index) {
  const button = document.createElement("button");
  button.textContent = text;
  button.classList.toggle("structure", STRUCTURE.has(text));
  button.setAttribute("aria-pressed", "false");
  const lit = (on) => (on ? look(button, index) : unlook(button));
  button.addEventListener("pointerenter", () => lit(true));
  button.addEventListener("pointerleave", () => lit(false));
  button.addEventListener("focus", () => lit(true));
  button.addEventListener("blur", () => lit(false));
  button.addEventListener("click", () => lit(true));
  const item = document.createElement("li");
  item.append(button);
  return item;
}

async function look(button, index) {
  for (const other of document.querySelectorAll("#tokens .lit")) unlook(other);
  button.classList.add("lit");
  button.setAttribute("aria-pressed", "true");
  if (!asking) return;
  const own = asking;
  const maps = (attention ??= ask("?attention=true", own.signal).then((found) => found.attention));
  try {
    const known = await maps;
    if (button.classList.contains("lit") && known?.maps[index]) {
      sheet.show({ rows: known.maps[index], box: known.box });
    }
  } catch (error) {
    if (own.signal.aborted) return;
    if (attention === maps) attention = null; // the next look asks again
    byId("state").textContent = error.message;
  }
}

function unlook(button) {
  button.classList.remove("lit");
  button.setAttribute("aria-pressed", "false");
  sheet.show(null);
}

function list(readings) {
  byId("others").hidden = readings.length < 2;
  byId("choices").replaceChildren(...readings.map((found, index) => {
    const label = document.createElement("label");
    const choice = document.createElement("input");
    Object.assign(choice, { type: "radio", name: "reading", checked: index === 0 });
    choice.addEventListener("change", () => reading(found));
    const score = document.createElement("span");
    score.className = "score";
    score.textContent = found.score < 0.005 ? "< 1 %" : `${Math.round(100 * found.score)} %`;
    label.append(choice, maths(found), score);
    return label;
  }));
}

async function take(file) {
  if (!file) return;
  if (/\.(inkml|json)$/i.test(file.name ?? "") || !/^image\//.test(file.type)) return lay(file, null);
  try {
    lay(file, await createImageBitmap(file, { imageOrientation: "from-image" }));
  } catch {
    lay(file, null); // TIFF, say: the recogniser reads more than browsers do
  }
}

function lay(blob, bitmap) {
  sheet.place(bitmap ? { blob, bitmap, width: bitmap.width, height: bitmap.height } : sign(blob));
}

/** A stand-in for what the browser cannot draw: its name. */
function sign(blob) {
  const canvas = new OffscreenCanvas(420, 120);
  const pen = canvas.getContext("2d");
  Object.assign(pen, { font: "18px system-ui", textAlign: "center", fillStyle: "gray" });
  pen.fillText(blob.name ?? "A picture", 210, 60, 400);
  return { blob, bitmap: canvas, width: 420, height: 120, isSign: true };
}

async function copy() {
  const field = byId("latex");
  let done = true;
  try {
    await navigator.clipboard.writeText(field.value);
  } catch {
    field.select();
    done = document.execCommand("copy");
  }
  byId("state").textContent = done ? "Copied." : "The browser lets no page copy here. The text is selected: copy it by hand.";
}

byId("undo").addEventListener("click", () => sheet.undo());
byId("clear").addEventListener("click", () => sheet.clear());
byId("again").addEventListener("click", () => changed());
byId("copy").addEventListener("click", copy);
byId("open").addEventListener("click", () => byId("file").click());
byId("file").addEventListener("change", (event) => {
  take(event.target.files[0]);
  event.target.value = "";
});
document.addEventListener("paste", (event) => {
  const [file] = event.clipboardData.files;
  if (file) { event.preventDefault(); take(file); }
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  byId("sheet").classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) byId("sheet").classList.remove("over"); // it left the page
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  byId("sheet").classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file) take(file);
  else byId("state").textContent = "This is no file. Drop a picture, InkML or JSON strokes here.";
});
document.addEventListener("keydown", (event) => {
  if ((event.ctrlKey || event.metaKey) && !event.shiftKey && event.key.toLowerCase() === "z") {
    event.preventDefault();
    sheet.undo();
  } else if (event.key === "Escape") {
    sheet.clear();
  }
});

async function health() {
  try {
    const { ready, detail } = await (await fetch("/v1/health")).json();
    byId("server").textContent = detail;
    byId("server").classList.toggle("down", !ready);
  } catch {
    byId("server").textContent = "The pad itself does not answer.";
    byId("server").classList.add("down");
  }
}
changed();
health();
setInterval(() => document.hidden || health(), HEALTH_PAUSE);
