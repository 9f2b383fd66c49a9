// Below every table of results is a link to it as CSV; cells that span others are repeated in each.
function csvOf(table) {
  const lines = [...table.rows].map(() => []);
  [...table.rows].forEach((row, top) => {
    let left = 0;
    for (const cell of row.cells) {
      while (lines[top][left] !== undefined) left += 1; // a cell of a row above reaches down to here
      for (let down = 0; down < cell.rowSpan; down += 1) {
        for (let right = 0; right < cell.colSpan; right += 1) lines[top + down][left + right] = cell.textContent.trim().replaceAll("\u00a0", " ");
      }
    }
  });
  const quoted = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  return lines.map((cells) => cells.map(quoted).join(",") + "\n").join("");
}

document.addEventListener("DOMContentLoaded", () => {
  const page = location.pathname.split("/").pop().replace(".html", "");
  const results = document.querySelectorAll("div.cell_output table, div.output table, table:has(> caption)");
  [...results].filter((table) => !table.closest(".filtered")).forEach((table, number) => {
    const link = document.createElement("a");
    link.className = "csv";
    link.textContent = "CSV";
    link.title = "this table as a file";
    link.download = `${page}-${number + 1}.csv`;
    link.href = `data:text/csv;charset=utf-8,${encodeURIComponent(csvOf(table))}`;
    (table.closest(".scrolls") ?? table).after(link);
  });
});
