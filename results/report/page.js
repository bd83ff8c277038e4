"use strict";
// Sorts a table by the header that is clicked (nulls last), and hides the rows that a filter's words do not all occur in.
document.querySelectorAll("table.sortable").forEach((table) => {
  const body = table.tBodies[0];
  const headers = Array.from(table.tHead.rows[0].cells);
  headers.forEach((header, index) => {
    const numeric = header.classList.contains("number");
    header.querySelector("button").addEventListener("click", () => {
      const up = header.getAttribute("aria-sort") !== "ascending";
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (row) => row.cells[index].dataset.v;
      const rows = Array.from(body.rows);
      rows.sort((a, b) => {
        const x = key(a), y = key(b);
        if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
        const order = numeric ? Number(x) - Number(y) : x.localeCompare(y, undefined, { numeric: true });
        return up ? order : -order;
      });
      body.append(...rows);
    });
  });
});
document.querySelectorAll("input[data-for]").forEach((input) => {
  const rows = Array.from(document.getElementById(input.dataset.for).tBodies[0].rows);
  const told = input.closest(".filter").querySelector("output");
  const whole = told.textContent;
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row) => {
      const text = row.textContent.toLowerCase();
      const keep = words.every((word) => text.includes(word));
      row.hidden = !keep;
      shown += keep;
    });
    told.textContent = words.length ? `${shown} of ${rows.length} rows` : whole;
  });
});
