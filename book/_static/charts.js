// Where a figure has a chart to explore, the chart takes its place on a screen; on paper, and without scripts, it stays.
// Vega, which draws them, is fetched from beside this file by pages that have charts.
const vega = new URL("vega.js", document.currentScript.src);

async function draw(place) {
  const chart = JSON.parse(place.querySelector("script").textContent);
  await vegaEmbed(place.appendChild(document.createElement("div")), chart, { actions: false, renderer: "svg" });
  place.hidden = false;
  const figures = [...place.closest("div.cell_output").querySelectorAll("img")];
  const before = figures.filter((image) => image.compareDocumentPosition(place) & Node.DOCUMENT_POSITION_FOLLOWING);
  before.at(-1)?.classList.add("printed");
}

document.addEventListener("DOMContentLoaded", () => {
  const places = document.querySelectorAll("div.chart");
  if (!places.length) return;
  const script = document.createElement("script");
  script.src = vega;
  script.addEventListener("load", () => places.forEach(draw));
  document.head.append(script);
});
