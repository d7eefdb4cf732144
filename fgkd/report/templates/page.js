// Tables sort by the column whose heading is pressed; unknown values stay last.
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const sort = (head, column) => {
    const numeric = head.classList.contains("num");
    const now = head.getAttribute("aria-sort");
    const first = numeric ? "descending" : "ascending";
    const other = numeric ? "ascending" : "descending";
    const order = now === first ? other : first;
    const sign = order === "ascending" ? 1 : -1;
    const keyed = [...body.rows].map((row) => [row.cells[column].dataset.key, row]);
    keyed.sort(([a], [b]) => {
      if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
      return sign * (numeric ? a - b : a.localeCompare(b));
    });
    for (const each of heads) each.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", order);
    body.append(...keyed.map(([, row]) => row));
  };
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => sort(head, column));
  });
}

// A press on an image shows it as large as the window allows, over what its card says when the
// mouse rests on it; Escape or a press closes it.
const dialog = document.querySelector("dialog");
const shown = dialog.querySelector("div");
const details = dialog.querySelector("p");
for (const button of document.querySelectorAll("button.zoom")) {
  button.addEventListener("click", () => {
    const picture = button.querySelector("picture").cloneNode(true);
    shown.replaceChildren(picture);
    details.textContent = button.closest("figure").title;
    dialog.showModal();
  });
}
dialog.addEventListener("click", () => dialog.close());

// A command is copied by its button; where a browser forbids it, it is selected instead.
for (const button of document.querySelectorAll("button.copy")) {
  button.addEventListener("click", async () => {
    const line = button.parentElement.querySelector("pre");
    try {
      await navigator.clipboard.writeText(line.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(line);
      button.textContent = document.execCommand("copy") ? "Copied" : "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
}
