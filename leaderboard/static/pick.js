// Two defenses to compare: a form that leads to the page of the first, and there the row of the second.
// Without this file the same pages are reached by their links.
"use strict";

for (const form of document.querySelectorAll("form.pick")) {
  form.hidden = false;
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const { first, second } = Object.fromEntries(new FormData(form));
    window.location.href = `${form.dataset.folder}${first}.html?against=${encodeURIComponent(second)}`;
  });
}

const asked = new URLSearchParams(window.location.search).get("against");
const rows = [...document.querySelectorAll("[data-against]")].filter((row) => row.dataset.against === asked);
for (const row of rows) row.classList.add("asked");
if (rows.length) window.addEventListener("load", () => rows[0].scrollIntoView({ block: "center" }));
