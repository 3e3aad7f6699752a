// Added by JavaScript; without it the page shows all images at the suggested threshold.
"use strict";
for (const element of document.querySelectorAll(".scripted")) element.classList.remove("scripted");

const slider = document.querySelector("#threshold");
const gallery = slider ? [...document.querySelectorAll(".examples > .example")] : [];
const FEW = 12;
const more = document.querySelector("#more");
const boxes = gallery.flatMap((example) => [...example.querySelectorAll(".box")]);

function showAbove(threshold) {
  slider.nextElementSibling.value = threshold.toFixed(3);
  for (const box of boxes) {
    if (box.dataset.score) box.style.display = Number(box.dataset.score) >= threshold ? "" : "none";
    else if (box.dataset.found) box.classList.toggle("missed", Number(box.dataset.found) < threshold);
  }
  tally();
}

// Counts over all images of the chosen kind, hidden ones too.
let wanted = gallery;
function tally() {
  let right = 0, wrong = 0, missed = 0;
  for (const example of wanted) {
    for (const box of example.querySelectorAll(".box")) {
      if (box.dataset.score) {
        if (box.style.display === "none") continue;
        if (box.classList.contains("wrong")) wrong++;
        else if (!box.classList.contains("ignored")) right++;
      } else if (box.classList.contains("missed")) missed++;
    }
  }
  document.querySelector("#tally").textContent = `${right} correct, ${wrong} wrong, ${missed} missed in ${wanted.length} image${wanted.length === 1 ? "" : "s"}`;
}

// Show the images of one kind, or of all: the first FEW of them, unless `everything`.
function choose(tag, words, everything = false) {
  wanted = gallery.filter((example) => !tag || example.dataset.tags.split(" ").includes(tag));
  const shown = new Set(everything ? wanted : wanted.slice(0, FEW));
  for (const example of gallery) example.hidden = !shown.has(example);
  document.querySelector("#chosen").textContent =
    tag ? `${words} (${wanted.length} image${wanted.length === 1 ? "" : "s"} here)` : "";
  more.hidden = shown.size === wanted.length;
  more.textContent = `show all ${wanted.length} images`;
  more.onclick = () => choose(tag, words, true);
  for (const button of document.querySelectorAll(".choices button")) {
    button.setAttribute("aria-pressed", String(button.dataset.tag === (tag || "all")));
  }
  tally();
}

if (slider) {
  slider.addEventListener("input", () => showAbove(Number(slider.value)));
  for (const link of document.querySelectorAll("[data-tag]")) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      const tag = link.dataset.tag === "all" ? "" : link.dataset.tag;
      choose(tag, link.dataset.words);
      if (link.tagName === "A") document.querySelector("#images").scrollIntoView();
    });
  }
  // A link to a hidden image shows all again.
  window.addEventListener("hashchange", () => {
    const target = document.getElementById(location.hash.slice(1));
    if (target && target.hidden) {
      choose("", "", true);
      target.scrollIntoView();
    }
  });
  choose("", "");
}

// Tooltips without delay; the browser's own are slow, and touch screens have none.
const tip = document.createElement("div");
tip.id = "tip";
tip.hidden = true;
document.body.append(tip);

// The tooltip of an element; moved out of <title>, so that the browser does not show it too.
function tooltipOf(element) {
  const title = element.querySelector(":scope > title");
  if (title) {
    element.dataset.tip = title.textContent;
    element.setAttribute("aria-label", title.textContent);
    title.remove();
  }
  return element.dataset.tip;
}

// A point of a curve need not be hit exactly: the nearest one is used.
function nearestDot(chart, x, y) {
  let best = null;
  let least = 40; // pixels
  for (const circle of chart.querySelectorAll(".near")) {
    const place = circle.getBoundingClientRect();
    const distance = Math.hypot((place.left + place.right) / 2 - x, (place.top + place.bottom) / 2 - y);
    if (distance < least) [best, least] = [circle, distance];
  }
  return best;
}

// Of nested boxes, the smallest.
function underPointer({ target, clientX, clientY }) {
  const chart = target.closest?.("svg:has(.near)");
  if (chart) return nearestDot(chart, clientX, clientY);
  const groups = document.elementsFromPoint(clientX, clientY).map((one) => one.closest("g:has(> title), g[data-tip]"));
  const area = (group) => {
    const { width, height } = group.querySelector("rect").getBoundingClientRect();
    return width * height;
  };
  return groups.filter((group) => group?.querySelector("rect")).sort((a, b) => area(a) - area(b))[0];
}

let hovered = null;
function showTooltip(event) {
  const found = underPointer(event);
  if (found !== hovered) hovered?.classList.remove("hovered");
  hovered = found;
  tip.hidden = !hovered;
  if (!hovered) return;
  hovered.classList.add("hovered");
  tip.textContent = tooltipOf(hovered);
  const below = event.clientY + 16;
  const fits = below + tip.offsetHeight < innerHeight;
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 4))}px`;
  tip.style.top = `${fits ? below : event.clientY - tip.offsetHeight - 8}px`;
}
document.addEventListener("pointermove", showTooltip);
document.addEventListener("pointerdown", showTooltip);
document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });

// Expand folded sections for printing.
window.addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
