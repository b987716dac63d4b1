// The view of a board lives in the address: ?sort=..., ?search=..., one parameter a filter, hidden and shown columns.
// A link to the page with its address shows the same view again. Used by site.js.
"use strict";

window.purifybenchView = {
  // What the address asks for. Unknown names are ignored by those who read them.
  read() {
    return new URLSearchParams(window.location.search);
  },

  // Put the parameters that differ from the page's own state into the address, without a new entry in the history.
  write(parameters) {
    const said = new URLSearchParams();
    for (const [name, value] of Object.entries(parameters)) if (value) said.set(name, value);
    const query = said.toString();
    window.history.replaceState(null, "", `${window.location.pathname}${query && `?${query}`}${window.location.hash}`);
  },
};
