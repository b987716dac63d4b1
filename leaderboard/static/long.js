// Of a long table only the first rows are laid out until it can be sorted; the others follow when the browser has time.
// Runs before the page is drawn. Without scripts all rows are there at once.
"use strict";

document.documentElement.classList.add("arriving");
window.purifybenchArrived = () => {
  const show = () => document.documentElement.classList.remove("arriving");
  if (window.requestIdleCallback) window.requestIdleCallback(show, { timeout: 1000 });
  else window.setTimeout(show, 100);
};
window.addEventListener("load", () => window.setTimeout(window.purifybenchArrived, 3000)); // whatever became of site.js
