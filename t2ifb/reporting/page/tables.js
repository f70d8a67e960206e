// A click on a heading sorts the table: numbers by value, texts alphabetically, empty cells last.
function sortBy(table, column, ascending) {
  const keyOf = (row) => {
    const cell = row.cells[column];
    return cell.dataset.sort ?? cell.textContent.trim();
  };
  const rows = [...table.tBodies[0].rows].map((row) => ({ row, key: keyOf(row) }));
  const numbers = rows.every(({ key }) => ["", "–", "nan"].includes(key) || !Number.isNaN(Number(key)));
  const empty = ({ key }) => key === "" || key === "–" || key === "nan";
  rows.sort((a, b) => {
    if (empty(a) || empty(b)) return empty(a) - empty(b);
    const order = numbers ? Number(a.key) - Number(b.key) : a.key.localeCompare(b.key, undefined, { numeric: true });
    return ascending ? order : -order;
  });
  table.tBodies[0].append(...rows.map(({ row }) => row));
}

function startTables() {
  for (const table of all("table.sortable")) {
    const headings = all("thead th", table);
    headings.forEach((heading, column) => {
      one("button", heading).addEventListener("click", () => {
        const ascending = heading.getAttribute("aria-sort") === "descending" || (heading.getAttribute("aria-sort") === "none" && !heading.classList.contains("number"));
        for (const other of headings) other.setAttribute("aria-sort", "none");
        heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
        sortBy(table, column, ascending);
      });
    });
  }
}
