// Tables with class "long" sort by the column whose head is clicked, or pressed by Enter or the space bar; once more
// turns the order round. A table in a "filtered" frame has all its rows as JSON beside it, and shows the first of those
// that hold every word of the filter.
const collator = new Intl.Collator("en", { numeric: true });

function filterOf(frame, body) {
  const all = JSON.parse(frame.querySelector("script").textContent);
  const [input, count] = [frame.querySelector("input"), frame.querySelector("output")];
  const most = Number(frame.dataset.rows);
  let found = all;
  const show = () => {
    body.replaceChildren(
      ...found.slice(0, most).map((values) => {
        const row = document.createElement("tr");
        for (const value of values) row.insertCell().textContent = value;
        return row;
      }),
    );
    count.textContent = `${Math.min(most, found.length)} of ${found.length} shown`;
  };
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    found = all.filter((values) => words.every((word) => values.some((value) => `${value}`.toLowerCase().includes(word))));
    show();
  });
  show();
  return (column, sign) => {
    for (const rows of new Set([all, found])) rows.sort((a, b) => sign * collator.compare(a[column], b[column]));
    show();
  };
}

function sorterOf(body) {
  return (column, sign) => {
    const text = (row) => row.cells[column].textContent;
    body.append(...[...body.rows].sort((a, b) => sign * collator.compare(text(a), text(b))));
  };
}

document.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll("table.long")) {
    const frame = table.closest(".filtered");
    const sort = frame ? filterOf(frame, table.tBodies[0]) : sorterOf(table.tBodies[0]);
    const heads = [...table.querySelectorAll("thead th")];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.append(...head.childNodes);
      button.title = "sort by this column";
      head.append(button);
      button.addEventListener("click", () => {
        const order = head.ariaSort === "ascending" ? "descending" : "ascending";
        for (const other of heads) other.ariaSort = null;
        head.ariaSort = order;
        sort(column, order === "ascending" ? 1 : -1);
      });
    });
  }
});
