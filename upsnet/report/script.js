"use strict";
// Sorting: a header's button orders the rows by the cells' data-value (numbers) or text, and says so in aria-sort.
for (const table of document.querySelectorAll("table.sortable")) {
  const headers = [...table.tHead.rows[0].cells];
  const valueOf = (row, column) => {
    const cell = row.cells[column];
    return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent.trim().toLowerCase();
  };
  headers.forEach((header, column) => {
    const button = header.querySelector("button");
    if (!button) return;
    button.addEventListener("click", () => {
      const rows = [...table.tBodies[0].rows];
      const isNumber = rows.length > 0 && "value" in rows[0].cells[column].dataset;
      const now = header.getAttribute("aria-sort");
      const descending = now === "none" ? isNumber : now === "ascending";
      for (const other of headers) if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
      header.setAttribute("aria-sort", descending ? "descending" : "ascending");
      rows.sort((a, b) => {
        const [x, y] = [valueOf(a, column), valueOf(b, column)];
        return (x < y ? -1 : x > y ? 1 : 0) * (descending ? -1 : 1);
      });
      table.tBodies[0].append(...rows);
    });
  });
}
// Filtering: one form for each table, named by its data-for.
for (const form of document.querySelectorAll("form.filters")) {
  const rows = [...document.getElementById(form.dataset.for).tBodies[0].rows];
  const search = form.querySelector("[name=search]");
  const kind = form.querySelector("[name=kind]");
  const seen = form.querySelector("[name=seen]");
  const apply = () => {
    const text = search.value.trim().toLowerCase();
    let count = 0;
    for (const row of rows) {
      row.hidden = !row.cells[0].textContent.toLowerCase().includes(text) ||
        (kind.value !== "all" && row.dataset.kind !== kind.value) || (seen.checked && row.dataset.seen === "0");
      count += !row.hidden;
    }
    form.querySelector("output").textContent = `${count} of ${rows.length} classes`;
  };
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  apply();
}
// Enlarging: the arrow keys go through the pictures of one image, which then lie exactly on one another.
const viewer = document.getElementById("viewer");
let shown = [], position = 0;
const show = (index) => {
  position = (index + shown.length) % shown.length;
  const picture = shown[position].querySelector("img");
  const image = document.getElementById("viewer-image");
  image.src = picture.src;
  image.alt = picture.alt;
  document.getElementById("viewer-caption").textContent = picture.alt;
};
for (const panel of document.querySelectorAll(".panel")) {
  panel.addEventListener("click", () => {
    shown = [...panel.closest(".panels").querySelectorAll(".panel")];
    show(shown.indexOf(panel));
    viewer.showModal();
  });
}
viewer.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button && button.dataset.step) show(position + Number(button.dataset.step));
  else if (event.target === viewer || (button && "close" in button.dataset)) viewer.close();
});
viewer.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft" || event.key === "ArrowRight") show(position + (event.key === "ArrowLeft" ? -1 : 1));
});
