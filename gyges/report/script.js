"use strict";
// A click on a head sorts by that column, a second one the other way round. Numbers by value; what is missing comes last.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach((each) => each.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const body = table.tBodies[0];
    const key = (row) => row.cells[column].dataset.sort;
    const numbers = [...body.rows].every((row) => key(row) === "" || !Number.isNaN(Number(key(row))));
    const order = (a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const found = numbers ? (Number(x) > Number(y)) - (Number(x) < Number(y)) : x.localeCompare(y);
      return up ? found : -found;
    };
    body.append(...[...body.rows].sort(order));
  }));
}
