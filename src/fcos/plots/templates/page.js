// What is added where scripts run; without this the page shows all pictures at the suggested threshold.
"use strict";
for (const element of document.querySelectorAll(".scripted")) element.classList.remove("scripted");

const slider = document.querySelector("#threshold");
const gallery = slider ? [...document.querySelectorAll(".examples > .example")] : [];
const boxes = gallery.flatMap((example) => [...example.querySelectorAll(".box")]);

function showAbove(threshold) {
  slider.nextElementSibling.value = threshold.toFixed(2);
  for (const box of boxes) {
    if (box.dataset.score) box.style.display = Number(box.dataset.score) >= threshold ? "" : "none";
    else if (box.dataset.found) box.classList.toggle("missed", Number(box.dataset.found) < threshold);
  }
  tally();
}

// Counts what is to be seen now.
function tally() {
  let right = 0, wrong = 0, missed = 0;
  for (const example of gallery) {
    if (example.hidden) continue;
    for (const box of example.querySelectorAll(".box")) {
      if (box.dataset.score) {
        if (box.style.display === "none") continue;
        if (box.classList.contains("wrong")) wrong++;
        else if (!box.classList.contains("ignored")) right++;
      } else if (box.classList.contains("missed")) missed++;
    }
  }
  document.querySelector("#tally").textContent = `${right} right, ${wrong} wrong, ${missed} missed`;
}

// Leaves the pictures of one kind; none: all of them.
function choose(tag, words) {
  for (const example of gallery) {
    example.hidden = Boolean(tag) && !example.dataset.tags.split(" ").includes(tag);
  }
  const shown = gallery.filter((example) => !example.hidden).length;
  document.querySelector("#chosen").textContent = tag ? `${words} (${shown} picture${shown === 1 ? "" : "s"} here)` : "";
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
      if (link.tagName === "A") document.querySelector("#pictures").scrollIntoView();
    });
  }
  // A link to a picture that is hidden shows all again.
  window.addEventListener("hashchange", () => {
    const target = document.getElementById(location.hash.slice(1));
    if (target && target.hidden) {
      choose("", "");
      target.scrollIntoView();
    }
  });
  choose("", "");
}

// Paper shows what is folded.
window.addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
