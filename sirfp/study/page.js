"use strict";
// Theme: the reader's choice, else the system's. Sorting: by a click on a heading, or #sort=KEY or #sort=-KEY.
const root = document.documentElement;
const wanted = new URLSearchParams(location.hash.slice(1));
const stored = () => { try { return localStorage.getItem("theme"); } catch { return null; } };
const theme = wanted.get("theme") || stored();
if (theme === "dark" || theme === "light") root.dataset.theme = theme;
document.getElementById("theme").addEventListener("click", () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  try { localStorage.setItem("theme", root.dataset.theme); } catch { /* a page from a file may not remember */ }
});
if (wanted.has("open")) document.querySelectorAll("details").forEach((part) => { part.open = true; });

const table = document.getElementById("results");
function sort(head, descending) {
  const body = table.tBodies[0], column = head.cellIndex, sign = descending ? -1 : 1;
  const number = head.classList.contains("number");
  const value = (row) => row.cells[column].dataset.value;
  const rows = [...body.rows].sort((a, b) => {
    const pinned = b.classList.contains("full") - a.classList.contains("full"); // dense networks stay at the top
    if (pinned) return pinned;
    const [x, y] = [value(a), value(b)];
    if (x === "" || y === "") return (x === "") - (y === ""); // what is not known comes last
    return sign * (number ? Number(x) - Number(y) : x.localeCompare(y));
  });
  body.append(...rows);
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", descending ? "descending" : "ascending");
}
if (table) {
  for (const head of table.tHead.rows[0].cells) {
    head.firstChild.addEventListener("click", () => {
      const first = head.classList.contains("number") ? "descending" : "ascending";
      const now = head.getAttribute("aria-sort");
      sort(head, (now ? (now === "ascending" ? "descending" : "ascending") : first) === "descending");
    });
  }
  const key = wanted.get("sort") || "";
  const head = [...table.tHead.rows[0].cells].find((cell) => cell.dataset.key === (key.startsWith("-") ? key.slice(1) : key));
  if (head) sort(head, key.startsWith("-"));
}
