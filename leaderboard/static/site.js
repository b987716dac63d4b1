// Turns the tables marked data-enhance into sortable, searchable ones. Without this file every page is complete.
"use strict";

// A fading edge says that a table goes on to the right.
for (const scroller of document.querySelectorAll(".scroller")) {
  const mark = () => {
    scroller.classList.toggle("more", scroller.scrollLeft + scroller.clientWidth < scroller.scrollWidth - 2);
  };
  scroller.addEventListener("scroll", mark, { passive: true });
  new ResizeObserver(mark).observe(scroller);
}

(async () => {
  const source = window.purifybenchDataTables;
  const tables = document.querySelectorAll("table[data-enhance]");
  if (!source || !tables.length) return window.purifybenchArrived();

  // Browsers refuse to import an ES module from file://, but not from a Blob.
  const address = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  let DataTable;
  try {
    ({ default: DataTable } = await import(address));
  } finally {
    URL.revokeObjectURL(address);
  }

  const nameOf = (header, fallback) => (header && header.dataset.name) || fallback;
  // A text that starts like a formula is never one in a spreadsheet; a number may start with a minus.
  const plain = (text) => (/^[=+@\t\r]|^-(?![\d.])/.test(text) ? `'${text}` : text);

  // Filters, sort, search and columns of one table: taken from the address, and written to it whenever they change.
  function keepView(grid, form, isRoomy) {
    const asked = window.purifybenchView.read();
    const headers = grid.columns().header().toArray();
    const names = headers.map((header) => header.dataset.name);
    const facets = form ? [...form.querySelectorAll("select")] : [];
    const count = form && form.querySelector("[data-rows]");

    for (const select of facets) select.value = asked.get(select.name) || "";
    for (const select of facets) if (select.selectedIndex < 0) select.value = "";
    grid.search.fixed("facets", (_text, _data, index) => {
      const row = grid.row(index).node();
      return facets.every((select) => !select.value || row.dataset[select.name] === select.value);
    });
    if (asked.get("search")) grid.search(asked.get("search"));
    for (const [word, isShown] of [["hide", false], ["show", true]]) {
      for (const name of (asked.get(word) || "").split(",")) {
        if (names.includes(name) && name !== "defense") grid.column(names.indexOf(name)).visible(isShown);
      }
    }
    const [column, direction] = (asked.get("sort") || "").split(":");
    if (names.includes(column)) grid.order([names.indexOf(column), direction === "asc" ? "asc" : "desc"]);
    if ([...asked].length) grid.draw(); // a long table takes a while to lay out: not for nothing

    const changed = (isShown) =>
      names.filter((_, k) => grid.column(k).visible() === isShown && isRoomy(headers[k]) !== isShown).join(",");
    const tell = () => {
      const [order] = grid.order();
      const parameters = {
        sort: order && order[1] ? `${names[order[0]]}:${order[1]}` : "",
        search: grid.search(),
        hide: changed(false),
        show: changed(true),
      };
      for (const select of facets) parameters[select.name] = select.value;
      window.purifybenchView.write(parameters);
      if (count) count.textContent = `${grid.rows({ search: "applied" }).count()} of ${grid.rows().count()} rows`;
    };
    grid.on("order search column-visibility draw", tell);
    tell();
    if (!form) return;
    form.hidden = false;
    form.addEventListener("change", () => grid.draw());
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", () => window.setTimeout(() => grid.search("").draw()));
  }

  function enhance(table) {
    const exported = {
      columns: ":visible:not(.spark)",
      format: {
        body: (_, row, column, node) => plain(node.dataset.export ?? node.dataset.order ?? node.textContent.trim().replace(/\s+/g, " ")),
        header: (title, index, node) => nameOf(node, title),
      },
      // one header line, also where the table has two
      customizeData: (data) => {
        data.headerStructure = [data.header.map((title) => ({ title }))];
      },
    };
    const fixed = [...table.tHead.querySelectorAll("[data-orderable=false]")];
    const wrapper = table.parentElement;
    // What a narrow window has no room for starts hidden; the Columns button brings it back.
    const isRoomy = (header) => window.innerWidth >= Number(header.dataset.from || 0);
    for (const header of table.tHead.querySelectorAll("th")) header.classList.toggle("cramped", !isRoomy(header));
    const grid = new DataTable(table, {
      paging: false,
      info: false,
      order: [],
      autoWidth: false,
      layout: { topStart: "search", topEnd: "buttons", bottomStart: null, bottomEnd: null },
      language: { search: "Search", searchPlaceholder: table.dataset.search || "", zeroRecords: "No row matches." },
      columnDefs: [
        { targets: [0, 1], orderSequence: ["asc", "desc", ""] },
        { targets: "_all", orderSequence: ["desc", "asc", ""] },
        { targets: "cramped", visible: false },
      ],
      buttons: [
        {
          extend: "colvis",
          text: "Columns",
          columns: ":not(.who)",
          columnText: (dt, index, title) => nameOf(dt.column(index).header(), title),
        },
        { extend: "csvHtml5", text: "CSV", filename: table.dataset.file, footer: false, exportOptions: exported },
      ],
    });
    // The scroller should hold the table alone, so that search and buttons stay in view.
    const box = grid.table().container();
    wrapper.before(box);
    box.append(wrapper);
    wrapper.append(table);
    box.classList.add("enhanced");
    if ("view" in table.dataset) keepView(grid, table.closest("section").querySelector(".filters"), isRoomy);
    for (const header of fixed) header.classList.add("unsortable");
  }

  tables.forEach(enhance);
  window.purifybenchArrived();
})();
