"use strict";
// Each image is sent to /predict once, which returns all detections down to the server's minimum score; slider
// and class buttons filter them without another request.

const at = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

let about = null; // the response of /about
const hiddenLabels = new Set();
const images = []; // {name, url, answer, totalMs, button}
let current = null;
let stream = null; // of the webcam, while it runs

async function start() {
  at("address").textContent = location.origin;
  about = await (await fetch("about")).json();
  at("model").textContent = about.model;
  document.title = `fcos: ${about.model}`;
  at("threshold").value = about.threshold;
  if (about.class_names.length > 1) at("classes").append(allButton());
  about.class_names.forEach((name, label) => at("classes").append(classButton(name, label)));
  for (let number = 0; number < about.num_examples; number++) at("examples").append(exampleButton(number));
  at("examples-part").hidden = about.num_examples === 0;
  show();
}

function newButton(content, press) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(content);
  button.addEventListener("click", press);
  return button;
}

function imageButton(url, name, loading, press) {
  const image = document.createElement("img");
  Object.assign(image, { loading, alt: name, src: url });
  const button = newButton(image, press);
  button.title = name;
  return button;
}

function classButton(name, label) {
  const button = newButton(name, () => {
    if (!hiddenLabels.delete(label)) hiddenLabels.add(label);
    show();
  });
  button.dataset.label = label;
  button.style.setProperty("--class", about.class_colors[label]);
  return button;
}

// Hides all classes, so that a few of many can be chosen; if any is hidden, shows all again.
function allButton() {
  return newButton("all", () => {
    if (hiddenLabels.size) hiddenLabels.clear();
    else about.class_names.forEach((_, label) => hiddenLabels.add(label));
    show();
  });
}

function exampleButton(number) {
  const url = `examples/${number}`;
  return imageButton(url, `example ${number + 1}`, "lazy", async () => {
    const file = await (await fetch(url)).blob();
    await add([new File([file], `example-${number + 1}`, { type: file.type })]);
  });
}

// From a file to a response

async function ask(file) {
  const startedAt = performance.now();
  const response = await fetch("predict", { method: "POST", body: file });
  if (!response.ok) throw new Error(await reason(response));
  return { answer: await response.json(), totalMs: performance.now() - startedAt };
}

async function reason(response) {
  try {
    const { detail } = await response.json();
    return typeof detail === "string" ? detail : JSON.stringify(detail);
  } catch {
    return `the server returned ${response.status}`;
  }
}

async function add(files) {
  await started;
  stopWebcam();
  say("");
  at("stage").classList.add("busy");
  for (const file of files) {
    try {
      if (file.size > about.max_bytes) throw new Error(`the file is larger than ${about.max_bytes / 2 ** 20} MB`);
      const image = { name: file.name || "pasted", url: URL.createObjectURL(file), ...(await ask(file)) };
      image.button = imageButton(image.url, image.name, "eager", () => choose(image));
      images.push(image);
      at("strip").append(image.button);
      await choose(image);
    } catch (error) {
      say(`${file.name || "image"}: ${error.message}`);
    }
  }
  at("stage").classList.remove("busy");
}

async function choose(image) {
  stopWebcam();
  current = image;
  at("image").src = image.url;
  at("image").alt = image.name;
  for (const each of images) each.button.setAttribute("aria-pressed", String(each === image));
  show();
}

// Display

function visible(answer) {
  const threshold = Number(at("threshold").value);
  return answer.detections.filter((found) => found.score >= threshold && !hiddenLabels.has(found.label));
}

function show() {
  at("threshold-value").value = Number(at("threshold").value).toFixed(2);
  for (const button of at("classes").children) {
    const { label } = button.dataset;
    const shown = label === undefined ? hiddenLabels.size === 0 : !hiddenLabels.has(Number(label));
    button.setAttribute("aria-pressed", String(shown));
  }
  at("hint").hidden = current !== null || stream !== null;
  at("frame").hidden = current === null;
  for (const id of ["save-image", "save-json"]) at(id).disabled = current === null;
  const boxes = at("boxes");
  boxes.replaceChildren();
  if (current === null) return;

  const { answer, totalMs, name } = current;
  const found = visible(answer);
  boxes.setAttribute("viewBox", `0 0 ${answer.width} ${answer.height}`);
  // Small boxes last, so that one inside another can be pointed at.
  const area = ({ box_xyxy: [x1, y1, x2, y2] }) => (x2 - x1) * (y2 - y1);
  const sorted = [...found].sort((a, b) => area(b) - area(a));
  boxes.append(...sorted.map(rectangle), ...sorted.map(label));
  at("facts").textContent =
    `${name}: ${found.length} of ${answer.detections.length} detections shown, ${answer.width} x ${answer.height} pixels, ` +
    `${answer.elapsed_ms.toFixed(0)} ms to predict, ${totalMs.toFixed(0)} ms in total`;
}

function rectangle(found) {
  const [x1, y1, x2, y2] = found.box_xyxy;
  const rect = document.createElementNS(SVG, "rect");
  const sides = { x: x1, y: y1, width: x2 - x1, height: y2 - y1, stroke: about.class_colors[found.label] };
  for (const [key, value] of Object.entries(sides)) rect.setAttribute(key, value);
  const words = [
    `${found.class_name} ${found.score.toFixed(2)}`,
    `${(x2 - x1).toFixed(0)} x ${(y2 - y1).toFixed(0)} pixels at ${x1.toFixed(0)}, ${y1.toFixed(0)}`,
  ];
  if (found.level) words.push(`level ${found.level}, point ${found.point_xy.map(Math.round).join(", ")}`);
  rect.setAttribute("tabindex", "0");
  rect.setAttribute("aria-label", words.join("; "));
  rect.addEventListener("pointermove", (event) => tell(words, event.clientX, event.clientY));
  rect.addEventListener("focus", () => tell(words, rect.getBoundingClientRect().left, rect.getBoundingClientRect().top));
  for (const kind of ["pointerleave", "blur"]) rect.addEventListener(kind, () => (at("tip").hidden = true));
  return rect;
}

// The class above its box, at the same size on the screen for any image size.
function label(found) {
  const { width, height } = current.answer;
  const size = (12 * width) / (at("image").clientWidth || width);
  const [x1, y1, x2] = found.box_xyxy;
  const isRight = x1 > 0.8 * width; // it would run out of the image
  const text = document.createElementNS(SVG, "text");
  const color = about.class_colors[found.label];
  const places = { x: isRight ? x2 : x1, y: y1 > 1.2 * size ? y1 - size / 4 : Math.min(y1 + size, height) };
  const looks = { fill: isLight(color) ? "#000" : "#fff", stroke: color, "text-anchor": isRight ? "end" : "start" };
  for (const [key, value] of Object.entries({ ...places, ...looks, "font-size": size })) text.setAttribute(key, value);
  text.textContent = `${found.class_name} ${found.score.toFixed(2)}`;
  return text;
}

function tell(words, clientX, clientY) {
  const tip = at("tip");
  const frame = at("frame").getBoundingClientRect();
  tip.replaceChildren(...words.flatMap((line) => [line, document.createElement("br")]).slice(0, -1));
  tip.hidden = false;
  tip.style.left = `${Math.max(0, Math.min(clientX - frame.left + 12, frame.width - tip.offsetWidth))}px`;
  tip.style.top = `${Math.min(clientY - frame.top + 12, frame.height)}px`;
}

function say(text) {
  at("message").textContent = text;
}

// Saving

function drawn() {
  const { answer } = current;
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [answer.width, answer.height];
  const context = canvas.getContext("2d");
  context.drawImage(at("image"), 0, 0, answer.width, answer.height);
  const line = Math.max(1, Math.round(Math.min(answer.width, answer.height) / 250));
  const size = Math.max(11, Math.round(Math.min(answer.width, answer.height) / 40));
  context.lineWidth = line;
  context.font = `${size}px sans-serif`;
  context.textBaseline = "top";
  for (const found of visible(answer).reverse()) {
    const [x1, y1, x2, y2] = found.box_xyxy;
    const color = about.class_colors[found.label];
    context.strokeStyle = context.fillStyle = color;
    context.strokeRect(x1, y1, x2 - x1, y2 - y1);
    const text = `${found.class_name} ${found.score.toFixed(2)}`;
    const top = Math.max(0, y1 - size - 3);
    context.fillRect(x1, top, context.measureText(text).width + 6, size + 3);
    context.fillStyle = isLight(color) ? "#000" : "#fff";
    context.fillText(text, x1 + 3, top + 2);
  }
  return canvas;
}

function isLight(color) {
  const [red, green, blue] = [1, 3, 5].map((place) => parseInt(color.slice(place, place + 2), 16));
  return 0.299 * red + 0.587 * green + 0.114 * blue > 150;
}

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

const stem = () => current.name.replace(/\.[^.]*$/, "");

// Webcam: one frame after the other, as fast as the responses arrive

async function startWebcam() {
  await started;
  say("");
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1280 } } });
  } catch (error) {
    say(`no webcam: ${error.message}`);
    return;
  }
  at("webcam").setAttribute("aria-pressed", "true");
  const camera = at("camera");
  camera.srcObject = stream;
  await camera.play();
  const canvas = document.createElement("canvas");
  let url = null;
  while (stream) {
    [canvas.width, canvas.height] = [camera.videoWidth, camera.videoHeight];
    canvas.getContext("2d").drawImage(camera, 0, 0);
    const frame = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.9));
    try {
      const got = await ask(frame);
      if (!stream) break;
      const old = url;
      url = URL.createObjectURL(frame);
      current = { name: "webcam", url, ...got };
      at("image").src = url;
      await at("image").decode();
      show();
      if (old) URL.revokeObjectURL(old);
    } catch (error) {
      say(error.message);
      stopWebcam();
    }
  }
}

function stopWebcam() {
  if (!stream) return;
  for (const track of stream.getTracks()) track.stop();
  stream = null;
  at("webcam").setAttribute("aria-pressed", "false");
}

at("threshold").addEventListener("input", show);
at("image").addEventListener("load", show); // its size on the screen is known: labels follow it
window.addEventListener("resize", show);
at("pick").addEventListener("change", async (event) => {
  await add([...event.target.files]);
  event.target.value = "";
});
at("webcam").addEventListener("click", () => (stream ? stopWebcam() : startWebcam()));
at("save-image").addEventListener("click", () => drawn().toBlob((blob) => save(blob, `${stem()}-detections.png`)));
at("save-json").addEventListener("click", () => {
  const content = { ...current.answer, name: current.name, detections: visible(current.answer) };
  save(new Blob([JSON.stringify(content, null, 2)], { type: "application/json" }), `${stem()}-detections.json`);
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  at("stage").classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (event.relatedTarget === null) at("stage").classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  at("stage").classList.remove("over");
  add([...event.dataTransfer.files]);
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) add([...event.clipboardData.files]);
});
const started = start();
