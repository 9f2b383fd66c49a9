// Figures much wider than high get the class "wide": a narrow screen does not shrink them until nothing can be read.
addEventListener("load", () => {
  for (const image of document.querySelectorAll("div.cell_output img")) {
    image.classList.toggle("wide", image.naturalWidth > 2 * image.naturalHeight);
  }
});
