// A click on the head of a column sorts its table by it, a second one the other way round; numbers as numbers.
// A number stays on one line with its exponent.
document.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll("table.docutils")) {
    for (const cell of table.querySelectorAll("td"))
      if (/^[-\d.]+(e[-+]?\d+)?$/.test(cell.innerText.trim())) cell.classList.add("number");
    const body = table.tBodies[0];
    const heads = table.tHead ? [...table.tHead.rows[0].cells] : [];
    if (!body || body.rows.length < 3) continue;
    heads.forEach((head, column) => {
      let up = false;
      head.classList.add("sortable");
      head.addEventListener("click", () => {
        up = !up;
        const key = (row) => row.cells[column]?.innerText.trim() ?? "";
        const order = (a, b) => {
          const [x, y] = [parseFloat(key(a)), parseFloat(key(b))];
          return isNaN(x) || isNaN(y) ? key(a).localeCompare(key(b)) : x - y;
        };
        const rows = [...body.rows].sort((a, b) => (up ? order(a, b) : order(b, a)));
        body.append(...rows);
      });
    });
  }
});
