// The filters, and figures that a click enlarges. Without a script the page is all there.
"use strict";
const filters = document.getElementById("filters");
const [area, verdict] = filters.querySelectorAll("select");
const items = document.querySelectorAll("[data-area]");

function filter() {
  let claims = 0;
  for (const item of items) {
    const asked = !verdict.value || item.dataset.verdicts.split(" ").includes(verdict.value);
    item.hidden = !asked || (area.value !== "" && item.dataset.area !== area.value);
    if (!item.hidden && item.matches(".claims tr")) claims += 1;
  }
  filters.querySelector("output").value = claims === 1 ? "1 claim" : `${claims} claims`;
}
filters.addEventListener("change", filter);
filters.hidden = false;
filter(); // A browser that goes back keeps what was chosen.

const dialog = document.querySelector("dialog");
for (const link of document.querySelectorAll(".enlarge"))
  link.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    dialog.replaceChildren(link.firstElementChild.cloneNode());
    dialog.showModal();
  });
dialog.addEventListener("click", () => dialog.close());
dialog.addEventListener("close", () => dialog.replaceChildren());
