// Light, dark, or as the system has it: a button in the header, remembered by the browser. Runs before the page is
// drawn, so that no page flashes in the other theme. Without this file the system decides.
"use strict";

{
  const themes = ["system", "light", "dark"];
  const stored = () => {
    try {
      return window.localStorage.getItem("theme");
    } catch {
      return null; // the browser keeps nothing for this page
    }
  };
  const wear = (theme) => {
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
  };
  let theme = themes.includes(stored()) ? stored() : "system";
  wear(theme);

  document.addEventListener("DOMContentLoaded", () => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "theme";
    const say = () => { button.textContent = `Theme: ${theme}`; };
    say();
    button.addEventListener("click", () => {
      theme = themes[(themes.indexOf(theme) + 1) % themes.length];
      wear(theme);
      say();
      try {
        window.localStorage.setItem("theme", theme);
      } catch {
        // it lasts until the next page
      }
    });
    document.querySelector("header.top .bounds").append(button);
  });
}
