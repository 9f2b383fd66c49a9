// Tables with class "long" sort by the column whose head is clicked; a second click turns the order round.
document.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll("table.long")) {
    const body = table.tBodies[0];
    table.querySelectorAll("thead th").forEach((head, column) => {
      head.style.cursor = "pointer";
      head.title = "sort by this column";
      head.addEventListener("click", () => {
        const order = head.ariaSort === "ascending" ? "descending" : "ascending";
        for (const other of table.querySelectorAll("thead th")) other.ariaSort = null;
        head.ariaSort = order;
        const text = (row) => row.cells[column].textContent;
        const compare = new Intl.Collator("en", { numeric: true }).compare;
        const rows = [...body.rows].sort((a, b) => compare(text(a), text(b)));
        body.append(...(order === "ascending" ? rows : rows.reverse()));
      });
    });
  }
});
