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
  if (!source || !tables.length) return;

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

  function enhance(table) {
    const exported = {
      columns: ":visible:not(.spark)",
      format: {
        body: (_, row, column, node) => plain(node.dataset.export ?? node.textContent.trim().replace(/\s+/g, " ")),
        header: (title, index, node) => nameOf(node, title),
      },
      // one header line, also where the table has two
      customizeData: (data) => {
        data.headerStructure = [data.header.map((title) => ({ title }))];
      },
    };
    const fixed = [...table.tHead.querySelectorAll("[data-orderable=false]")];
    const wrapper = table.parentElement;
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
    // What a narrow window has no room for starts hidden; the Columns button brings it back.
    grid.columns().every(function () {
      if (window.innerWidth < Number(this.header().dataset.from || 0)) this.visible(false);
    });
    for (const header of fixed) header.classList.add("unsortable");
  }

  tables.forEach(enhance);
})();
