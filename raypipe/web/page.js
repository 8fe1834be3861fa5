// Draws every chart of the page's data and lets the page's controls set their signals.
const page = JSON.parse(document.getElementById("data").textContent);
const sets = Object.fromEntries(Object.entries(page.sets).map(([name, set]) => [
  name, set.rows.map((row) => Object.fromEntries(set.columns.map((column, i) => [column, row[i]]))),
]));
const controls = [...document.querySelectorAll("#controls select")];
let views = [];

async function draw() {
  const drawn = [];
  for (const [id, source] of Object.entries(page.charts)) {
    const spec = structuredClone(source);
    const box = document.getElementById(id);
    const room = box.clientWidth - (spec.usermeta?.beside ?? 0);
    const most = Math.max(1, Math.min(4, Math.floor((room - 30) / (spec.spec.width + 20))));
    spec.columns = Math.ceil(spec.columns / Math.ceil(spec.columns / most)); // rows of like length
    if (id !== "calign-pairs") {
      spec.spec.width = Math.min(600, Math.floor((room - 60) / spec.columns) - 20);
      spec.spec.height = Math.max(120, Math.min(260, 0.55 * spec.spec.width));
    }
    if (box.clientWidth < 600) spec.config.legend.columns = 1;
    for (const p of spec.params) p.value = values()[p.name] ?? p.value;
    spec.datasets = { [spec.data.name]: sets[spec.data.name] };
    const actions = { export: true, source: false, compiled: false, editor: false };
    const options = { mode: "vega-lite", renderer: "svg", ast: true, actions };
    const { view } = await vegaEmbed(box, spec, options);
    drawn.push(view);
  }
  views = drawn;
  document.body.dataset.drawn = views.length;
}

const values = () => Object.fromEntries(controls.map((c) => [c.name, JSON.parse(c.value)]));
for (const control of controls) {
  control.addEventListener("change", () => {
    for (const view of views) view.signal(control.name, JSON.parse(control.value)).runAsync();
  });
}
let width = innerWidth;
let timer;
addEventListener("resize", () => {
  if (innerWidth === width) return;
  width = innerWidth;
  clearTimeout(timer);
  timer = setTimeout(draw, 200);
});
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((d) => { d.open = true; }));
draw();
