"use strict";
// Draws what the page's data hold: every filter centred, scaled by its largest tap, one colour map.
const $ = (id) => document.getElementById(id);
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const as = (Type, text) => new Type(bytes(text).buffer);
const make = (tag, props = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), props);
  node.append(...children);
  return node;
};
const { atlas: ATLAS, colours: COLOURS } = JSON.parse($("data").textContent);
const percent = (x, digits = 0) => (x == null ? "–" : (100 * x).toFixed(digits) + "%");

// Blue (negative) – white (0) – red (positive).
const STOPS = [[5,48,97],[33,102,172],[67,147,195],[146,197,222],[209,229,240],[247,247,247],
  [253,219,199],[244,165,130],[214,96,77],[178,24,43],[103,0,31]];
const MAP = Array.from({ length: 255 }, (_, i) => {
  const at = (i / 254) * (STOPS.length - 1), lo = Math.min(Math.floor(at), STOPS.length - 2), f = at - lo;
  return "rgb(" + STOPS[lo].map((c, j) => Math.round(c + f * (STOPS[lo + 1][j] - c))).join(",") + ")";
});
const colourOf = (kind) => COLOURS[kind] || "#999";
const themed = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// Width and height of a tap: square, but a single row or column is at least 8 pixels thick.
function tapOf([ky, kx], side, least) {
  const px = Math.max(least, Math.floor(side / Math.max(ky, kx)));
  return [kx === 1 ? Math.max(px, 8) : px, ky === 1 ? Math.max(px, 8) : px];
}
function drawFilter(ctx, taps, offset, [ky, kx], x, y, [wide, high]) {
  for (let r = 0; r < ky; r++)
    for (let c = 0; c < kx; c++) {
      ctx.fillStyle = MAP[taps[offset + r * kx + c] + 127];
      ctx.fillRect(x + c * wide, y + r * high, wide, high);
    }
}
function canvasOf(width, height, label) {
  const ratio = Math.max(1, Math.round(window.devicePixelRatio || 1));
  const canvas = make("canvas", { width: width * ratio, height: height * ratio });
  canvas.style.width = width + "px"; canvas.style.height = height + "px";
  if (label) { canvas.setAttribute("role", "img"); canvas.setAttribute("aria-label", label); }
  const ctx = canvas.getContext("2d");
  ctx.scale(ratio, ratio);
  return [canvas, ctx];
}
function single(taps, k, side, label, offset = 0) {
  const tap = tapOf(k, side, 1);
  const [canvas, ctx] = canvasOf(tap[0] * k[1] + 2, tap[1] * k[0] + 2, label);
  framed(ctx, taps, offset, k, 0, 0, tap);
  return canvas;
}
function framed(ctx, taps, offset, k, x, y, tap) {
  ctx.fillStyle = "#c4c8d0";
  ctx.fillRect(x, y, tap[0] * k[1] + 2, tap[1] * k[0] + 2);
  drawFilter(ctx, taps, offset, k, x + 1, y + 1, tap);
}

// Unpack the layers; `owner` finds the layer of a filter by its number on the page.
let total = 0;
for (const layer of ATLAS.layers) {
  layer.w = as(Int8Array, layer.w); layer.n = layer.w.length / (layer.k[0] * layer.k[1]);
  for (const key of ["pattern", "classified", "far"]) layer[key] = bytes(layer[key]);
  layer.channel = as(Uint16Array, layer.channel);
  layer.norm = as(Float32Array, layer.norm); layer.mean = as(Float32Array, layer.mean);
  layer.first = total; total += layer.n;
  for (const key of Object.values(layer.keys)) { key.serves = bytes(key.serves); key.r2 = bytes(key.r2); }
  layer.patterns = layer.size < 0 ? [] : ATLAS.sizes[layer.size].patterns;
}
// The page's address keeps the choice, as in "#size=5×5&pattern=smoothing".
const address = (choice) => "#" + new URLSearchParams(Object.entries(choice).filter(([, value]) => value));
const owner = (i) => ATLAS.layers.find((layer) => i < layer.first + layer.n);

// Gallery of patterns.
function card(size, pattern) {
  const k = size.k, box = make("article", { className: "card" });
  box.style.setProperty("--kind", colourOf(pattern.kind));
  const all = { href: address({ size: k.join("×"), pattern: pattern.label }), title: "show all filters of this pattern" };
  box.append(make("h4", {}, make("a", all, pattern.label), make("span", { title: "share of all filters of this size" }, percent(pattern.share, 1))));
  const named = pattern.name !== "unnamed";
  const value = (x) => Number(x).toFixed(2);
  const parameters = ", σ " + value(pattern.sigma) + (pattern.second == null ? "" : " and " + value(pattern.second));
  box.append(make("div", { className: "pair" },
    make("figure", {}, single(as(Int8Array, pattern.prototype), k, 84, "prototype of " + pattern.label), make("figcaption", {}, "prototype")),
    make("figure", {}, single(as(Int8Array, pattern.form), k, 84, "idealised form"), make("figcaption", {}, named ? "idealised" : "nearest: too far")),
    make("div", { className: "meta" }, make("b", {}, pattern.similarity.toFixed(2)), " similar", make("br"), pattern.filters.toLocaleString("en") + " filters", make("br"), "code " + pattern.code)),
    make("div", { className: "meta" }, (named ? "" : "nearest: ") + pattern.formula + parameters));
  box.append(...members(pattern.members, k, "random members of " + pattern.label));
  return box;
}
// Filters of the page by their numbers, in rows as wide as a card.
function members(numbers, k, label) {
  if (!numbers.length) return [];
  const tap = tapOf(k, 27, 2), step = [tap[0] * k[1] + 7, tap[1] * k[0] + 7], perRow = Math.max(1, Math.floor(250 / step[0]));
  const [canvas, ctx] = canvasOf(Math.min(perRow, numbers.length) * step[0], Math.ceil(numbers.length / perRow) * step[1], label);
  numbers.forEach((i, n) => {
    const layer = owner(i);
    framed(ctx, layer.w, (i - layer.first) * k[0] * k[1], k, (n % perRow) * step[0], Math.floor(n / perRow) * step[1], tap);
  });
  canvas.className = "members";
  return [canvas];
}
// Keys: the key, how many filters it serves, and those that it explains best.
function keyCard(size, name, key) {
  const box = make("article", { className: "card" });
  const all = { href: address({ size: size.k.join("×"), key: name + ": " + key.label }), title: "show all filters that it serves" };
  box.append(make("h4", {}, make("a", all, key.label), make("span", { title: "share of filters that it serves" }, percent(key.share, 1))));
  box.append(make("div", { className: "pair" },
    make("figure", {}, single(as(Int8Array, key.key), size.k, 84, key.label), make("figcaption", {}, "key")),
    make("div", { className: "meta" }, "explains ", make("b", {}, key.r2 == null ? "–" : percent(key.r2)), " of the variance of the filters that it serves, of either sign")));
  box.append(...members(key.members, size.k, "filters that " + key.label + " explains best"));
  return box;
}
ATLAS.sizes.forEach((size, s) => {
  const sorted = [...size.patterns].sort((a, b) => b.share - a.share);
  const often = sorted.filter((p) => p.share >= 0.005), rare = sorted.filter((p) => p.share < 0.005);
  $("gallery-" + s).append(...often.map((p) => card(size, p)));
  if (rare.length) {
    const more = make("details", {}, make("summary", {}, rare.length + " patterns with fewer than 0.5% of the filters each"));
    more.addEventListener("toggle", () => more.children.length > 1 || more.append(make("div", { className: "gallery" }, ...rare.map((p) => card(size, p)))), { once: true });
    $("gallery-" + s).after(more);
  }
  strip(size, $("strip-" + s));
  for (const name in size.keys)
    $("keys-" + name + "-" + s).append(...[...size.keys[name]].sort((a, b) => b.share - a.share).map((key) => keyCard(size, name, key)));
  if (size.models) models(size, s);
});

// Idealised receptive fields: learned filter beside model, best and worst of each kind; what is left.
function models(size, s) {
  const k = size.k, d = k[0] * k[1];
  $("models-" + s).append(...size.models.examples.filter((e) => e.r2.length).map((e) => {
    const learned = as(Int8Array, e.filters), drawn = as(Int8Array, e.models), box = make("article", { className: "card" });
    box.style.setProperty("--kind", colourOf(e.kind === "centre" ? "on-centre" : e.kind));
    box.append(make("h4", {}, e.kind, make("span", {}, e.which)));
    const tap = tapOf(k, 44, 3), step = Math.max(tap[0] * k[1], 44) + 7, high = tap[1] * k[0] + 6;
    const [canvas, ctx] = canvasOf(e.r2.length * step, 2 * high + 14, e.which + " explained filters of kind " + e.kind);
    e.r2.forEach((r2, i) => {
      framed(ctx, learned, i * d, k, i * step, 0, tap);
      framed(ctx, drawn, i * d, k, i * step, high, tap);
      ctx.fillStyle = "#7a808a"; ctx.font = "11px system-ui"; ctx.fillText("r² " + r2.toFixed(2), i * step, 2 * high + 10);
    });
    hover(canvas, (mx, my) => {
      const i = Math.floor(mx / step), below = my > high;
      return i >= e.r2.length ? null : [below ? drawn : learned, i * d, k, [below ? "model" : "learned filter", e.families[i], "σ " + e.sigmas[i].filter((x) => x != null).join(" and "), "r² " + e.r2[i].toFixed(2)]];
    });
    box.append(canvas);
    return box;
  }));
  const left = as(Int8Array, size.models.left), names = ["mean", "component 1", "component 2", "component 3", "component 4"];
  $("left-" + s).append(...names.filter((_, i) => (i + 1) * d <= left.length).map((name, i) => make("figure", {}, single(left, k, 84, "left over: " + name, i * d), make("figcaption", {}, name))));
}

// The code as a strip: decoded filters in order, how many filters use each, which pattern it is.
function strip(size, box) {
  const taps = as(Int8Array, size.strip), k = size.k, n = size.stripUsage.length;
  const tap = tapOf(k, 30, 2), step = tap[0] * k[1] + 6, bars = 64;
  const perRow = Math.max(1, Math.min(n, Math.floor((box.clientWidth || 1180) / step))), rows = Math.ceil(n / perRow);
  const high = bars + tap[1] * k[0] + 20, most = Math.max(...size.stripUsage);
  const [canvas, ctx] = canvasOf(perRow * step, rows * high, "decoded filters along the one-dimensional code");
  for (let i = 0; i < n; i++) {
    const x = (i % perRow) * step, y = Math.floor(i / perRow) * high;
    const pattern = size.patterns[size.stripPattern[i]], h = Math.round((bars - 14) * Math.sqrt(size.stripUsage[i] / most));
    ctx.fillStyle = pattern ? colourOf(pattern.kind) : themed("--blank");
    ctx.fillRect(x, y + bars - 4 - h, step - 4, h);
    framed(ctx, taps, i * k[0] * k[1], k, x, y + bars, tap);
    if (i % perRow === 0) { ctx.fillStyle = "#7a808a"; ctx.font = "11px system-ui"; ctx.fillText("code " + size.stripCode[i].toFixed(2), x, y + 10); }
  }
  box.replaceChildren(canvas);
  hover(canvas, (mx, my) => {
    const column = Math.floor(mx / step), i = Math.floor(my / high) * perRow + column;
    if (column >= perRow || i >= n) return null;
    const pattern = size.patterns[size.stripPattern[i]];
    return [taps, i * k[0] * k[1], k, ["code " + size.stripCode[i].toFixed(3), pattern ? pattern.label : "used by no filter", size.stripUsage[i].toLocaleString("en") + " filters"]];
  });
}

// One tip for everything that can be pointed at.
function hover(canvas, find) {
  const show = (event) => {
    const box = canvas.getBoundingClientRect(), tip = $("tip");
    const found = find(event.clientX - box.left, event.clientY - box.top);
    if (!found) { tip.style.display = "none"; return; }
    const [taps, offset, k, lines] = found;
    tip.replaceChildren(single(taps, k, 98, "", offset), make("div", {}, ...lines.flatMap((line, i) => [i ? make("br") : "", i ? line : make("b", {}, line)])));
    tip.style.display = "flex";
    const w = tip.offsetWidth, h = tip.offsetHeight;
    tip.style.left = Math.max(6, Math.min(event.clientX + 16, innerWidth - w - 8)) + "px";
    tip.style.top = (event.clientY + 18 + h > innerHeight ? Math.max(6, event.clientY - h - 14) : event.clientY + 18) + "px";
  };
  canvas.addEventListener("pointermove", show);
  canvas.addEventListener("pointerdown", show);
  canvas.addEventListener("pointerleave", () => ($("tip").style.display = "none"));
}

// The browser of all filters: canvases drawn when they come into view.
const NOTHING = { model: "", size: "", layer: "", pattern: "", key: "", kind: "", search: "" };
let chosen = { ...NOTHING };
const keyOf = (layer, name, i) => {
  const number = layer.keys[name].serves[i];
  return number === 255 || layer.size < 0 ? null : ATLAS.sizes[layer.size].keys[name][number];
};
// Does a word of the search fit a filter? Tests of one layer, so that its name is compared once.
function fits(word, layer) {
  const channel = /^(?:channel:)?(\d+)$/.exec(word), name = (layer.model + " " + layer.name).toLowerCase();
  if (channel && (word !== channel[1] || !name.split(/[^a-z0-9]+/).includes(word))) return (i) => layer.channel[i] === +channel[1];
  if (channel || name.includes(word)) return () => true;
  const patterns = layer.patterns.map((p) => (p.label + " " + p.kind).toLowerCase().includes(word));
  return (i) => layer.classified[i] && patterns[layer.pattern[i]];
}
// The filters of a layer that the choice leaves, as their places in the layer.
function left(layer) {
  if ((chosen.model && layer.model !== chosen.model) || (chosen.size && layer.k.join("×") !== chosen.size) || (chosen.layer && layer.name !== chosen.layer)) return [];
  const tests = chosen.search.toLowerCase().split(/\s+/).filter(Boolean).map((word) => fits(word, layer));
  const [set, ...label] = chosen.key.split(": ");
  if (chosen.pattern) tests.push((i) => layer.classified[i] && layer.patterns[layer.pattern[i]]?.label === chosen.pattern);
  if (chosen.key) tests.push((i) => layer.keys[set] && keyOf(layer, set, i)?.label === label.join(": "));
  return Array.from({ length: layer.n }, (_, i) => i).filter((i) => tests.every((test) => test(i)));
}
const eye = new IntersectionObserver((seen) => seen.forEach((entry) => entry.isIntersecting && paint(entry.target)), { rootMargin: "400px" });
const geometry = (k, count, width) => {
  const tap = tapOf(k, 30, 2), cell = [tap[0] * k[1] + 6, tap[1] * k[0] + 6];
  const columns = Math.max(1, Math.min(count, Math.floor(width / cell[0])));
  return { tap, cell, columns, rows: Math.ceil(count / columns) };
};
function paint(box) {
  const { layer, filters } = box, width = box.clientWidth, key = width + chosen.kind;
  if (!width || box.painted === key) return;
  box.painted = key;
  const { tap, cell, columns, rows } = geometry(layer.k, filters.length, width), blank = themed("--blank");
  const [canvas, ctx] = canvasOf(columns * cell[0], rows * cell[1], filters.length + " filters of " + layer.name);
  filters.forEach((i, place) => {
    const x = (place % columns) * cell[0], y = Math.floor(place / columns) * cell[1];
    const pattern = layer.patterns[layer.pattern[i]], on = layer.classified[i] === 1;
    ctx.globalAlpha = chosen.kind && !(chosen.kind === "not classified" ? !on : on && pattern && pattern.kind === chosen.kind) ? 0.13 : 1;
    ctx.fillStyle = on && pattern ? colourOf(pattern.kind) : blank;
    ctx.fillRect(x, y, cell[0] - 2, cell[1] - 2);
    drawFilter(ctx, layer.w, i * layer.k[0] * layer.k[1], layer.k, x + 2, y + 2, tap);
  });
  box.replaceChildren(canvas);
  hover(canvas, (mx, my) => {
    const column = Math.floor(mx / cell[0]), i = filters[Math.floor(my / cell[1]) * columns + column];
    return column >= columns || i == null ? null : [layer.w, i * layer.k[0] * layer.k[1], layer.k, facts(layer, i)];
  });
}
function facts(layer, i) {
  const pattern = layer.patterns[layer.pattern[i]];
  return [
    pattern ? pattern.label + (layer.classified[i] ? "" : " (nearest; not classified)") : "no pattern",
    pattern ? "dissimilarity " + (layer.far[i] / 100).toFixed(2) : "",
    ...Object.keys(layer.keys).map((name) => keyOf(layer, name, i) && `${name} key: ${keyOf(layer, name, i).label} (r² ${(layer.keys[name].r2[i] / 100).toFixed(2)})`),
    layer.model, layer.name + ", channel " + layer.channel[i],
    "norm " + layer.norm[i].toPrecision(3) + ", mean " + layer.mean[i].toPrecision(3)].filter(Boolean);
}
function browse() {
  const found = ATLAS.layers.map((layer) => [layer, left(layer)]).filter(([, filters]) => filters.length);
  let model = "", count = 0;
  eye.disconnect();
  $("browser").replaceChildren(...found.flatMap(([layer, filters]) => {
    const box = make("div", { layer, filters }), g = geometry(layer.k, filters.length, $("browser").clientWidth || 1000);
    box.style.minHeight = g.rows * g.cell[1] + "px";
    count += filters.length;
    const told = ` ${filters.length < layer.n ? filters.length + " of " : ""}${layer.n} filters of ${layer.k.join("×")}` + (layer.stride ? `, stride ${layer.stride.join("×")}` : "") + `, depth ${layer.depth.toFixed(2)}` +
      (layer.coverage == null ? "" : `; classified ${percent(layer.coverage)} (strictest null: ${percent(layer.chance)})`);
    const only = { href: address({ model: layer.model, layer: layer.name }), title: "show this layer only" };
    const section = make("section", { className: "layer" }, make("h4", {}, make("a", only, layer.name), make("span", {}, told)), box);
    eye.observe(box);
    if (layer.model === model) return [section];
    model = layer.model;
    return [make("h3", {}, model), section];
  }));
  const plural = (n, what) => n.toLocaleString("en") + " " + what + (n === 1 ? "" : "s");
  $("found").replaceChildren(plural(count, "filter") + " in " + plural(found.length, "layer") + ". ");
  if (address(chosen) !== "#") $("found").append(make("a", { href: address(chosen) }, "Link to this choice"), " ", make("a", { href: "#all", onclick: () => choose({}) }, "Show all"));
}

// Controls: what they say is the choice, and so is the address.
const boxes = {};
function choose(choice) {
  chosen = { ...NOTHING, ...choice };
  if (!chips.some((chip) => chip.kind === chosen.kind)) chosen.kind = "";
  for (const name in boxes) {
    boxes[name].value = chosen[name];
    if (boxes[name].value !== chosen[name]) chosen[name] = boxes[name].value = "";
  }
  chips.forEach((chip) => chip.setAttribute("aria-pressed", String(chip.kind === chosen.kind)));
  browse();
}
function changed() {
  const hash = address(chosen);
  history.replaceState(null, "", hash === "#" ? "#all" : hash);
  browse();
}
function select(name, label, values) {
  const box = make("select", { onchange: () => { chosen[name] = box.value; changed(); } }, make("option", { value: "" }, label), ...values.map((v) => make("option", { value: v }, v)));
  box.setAttribute("aria-label", label);
  boxes[name] = box;
  return values.length > 1 ? [box] : [];
}
const distinct = (values) => [...new Set(values)];
const search = boxes.search = make("input", { type: "search", placeholder: "search: layer, pattern, channel", oninput: () => {
  clearTimeout(typing); typing = setTimeout(() => { chosen.search = search.value.trim(); changed(); }, 200);
} });
search.setAttribute("aria-label", "search");
const chips = [...Object.keys(COLOURS), "not classified"].map((kind) => {
  const chip = make("button", { type: "button", kind, onclick: () => {
    const pressed = chosen.kind !== kind;
    chips.forEach((c) => c.setAttribute("aria-pressed", String(c === chip && pressed)));
    chosen.kind = pressed ? kind : "";
    changed();
  } }, make("i"), kind);
  chip.firstChild.style.background = COLOURS[kind] || "var(--blank)";
  return chip;
});
let typing, resizing, width = innerWidth;
$("controls").append(search,
  ...select("model", "all models", distinct(ATLAS.layers.map((l) => l.model))),
  ...select("size", "all kernel sizes", distinct(ATLAS.layers.map((l) => l.k.join("×")))),
  ...select("layer", "all layers", distinct(ATLAS.layers.map((l) => l.name))),
  ...select("pattern", "all patterns", distinct(ATLAS.sizes.flatMap((s) => s.patterns.map((p) => p.label))).sort()),
  ...select("key", "all keys", distinct(ATLAS.sizes.flatMap((s) => Object.entries(s.keys).flatMap(([set, keys]) => keys.map((k) => set + ": " + k.label))))),
  ...chips);
function follow() {
  if (!location.hash.includes("=")) return false;
  const asked = new URLSearchParams(location.hash.slice(1));
  choose(Object.fromEntries(Object.keys(NOTHING).map((name) => [name, asked.get(name) || ""])));
  $("all").scrollIntoView({ behavior: "instant" });
  return true;
}
addEventListener("hashchange", follow);
if (!follow()) choose({});
function redraw() { ATLAS.sizes.forEach((size, s) => strip(size, $("strip-" + s))); browse(); }
addEventListener("resize", () => {
  if (width === innerWidth) return; // a phone's browser that hides its bar
  width = innerWidth; clearTimeout(resizing); resizing = setTimeout(redraw, 200);
});
matchMedia("screen and (prefers-color-scheme: dark)").addEventListener("change", redraw);
addEventListener("beforeprint", () => document.querySelectorAll("#browser .layer > div").forEach(paint));
