"use strict";

function sortBy(header) {
  const table = header.closest("table");
  const column = [...header.parentNode.children].indexOf(header);
  const isDescending = header.getAttribute("aria-sort") === "ascending";
  for (const other of header.parentNode.children) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", isDescending ? "descending" : "ascending");
  const value = (row) => row.children[column].dataset.value ?? row.children[column].textContent;
  const compare = (first, second) => {
    const [a, b] = [value(first), value(second)];
    if (a === "" || b === "") return (a === "") - (b === ""); // rows without a value stand last, either way
    const order = header.dataset.kind === "number" ? a - b : a.localeCompare(b);
    return isDescending ? -order : order;
  };
  const body = table.tBodies[0];
  body.append(...[...body.rows].sort(compare));
}

function showMolecule(card) {
  const blocks = JSON.parse(document.getElementById("positions").textContent);
  for (const other of document.querySelectorAll(".molecule")) other.classList.toggle("chosen", other === card);
  viewer.removeAllModels();
  viewer.addModel(blocks[card.dataset.index], "sdf");
  viewer.setStyle({}, { stick: { radius: 0.13 }, sphere: { scale: 0.24 } });
  viewer.zoomTo();
  viewer.render();
  document.getElementById("shown").textContent = card.title;
}

for (const header of document.querySelectorAll("th")) header.addEventListener("click", () => sortBy(header));

let viewer = null;
const place = document.getElementById("viewer");
if (place) {
  try {
    viewer = $3Dmol.createViewer(place, { backgroundColor: "white" });
  } catch {
    viewer = null; // no WebGL
  }
  const cards = viewer ? [...document.querySelectorAll(".molecule[data-index]")] : [];
  if (!viewer) document.getElementById("shown").textContent = "This browser shows nothing in space: it has no WebGL.";
  for (const card of cards) card.addEventListener("click", () => showMolecule(card));
  if (cards.length) showMolecule(cards[0]);
}
