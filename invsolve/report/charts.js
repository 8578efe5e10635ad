// Line charts as SVG.

const SVG = 'http://www.w3.org/2000/svg';

function element(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function ticks(low, high, wanted) {
  const rough = (high - low) / wanted, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough * 0.999);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) found.push(k * step);
  return found;
}

function logTicks(low, high) {
  const found = [], narrow = Math.log10(high / low) < 2;
  for (let p = Math.floor(Math.log10(low)); 10 ** p <= high; p++) {
    for (const m of narrow ? [1, 2, 5] : [1]) {
      const v = m * 10 ** p;
      if (v >= low * 0.999 && v <= high * 1.001) found.push(v);
    }
  }
  return found;
}

const MINUS = '−';

function plain(value) {
  if (value === 0) return '0';
  const size = Math.abs(value);
  const text = size >= 1e5 || size < 1e-3 ? value.toExponential(1) : String(+value.toPrecision(4));
  return text.replace('-', MINUS).replace('e+', 'e');
}

// Draw into a host. given: { x: [low, high], y: [low, high], log, height, square, xLabel, yLabel, yTicks, lines: [{kind, x, y}],
// bands: [{x, low, high}], dots: {x, y}, marks: [x], levels: [y], pick(x) }.
function chart(host, given) {
  const width = given.square ? Math.min(host.clientWidth || 400, 340) : host.clientWidth || 400;
  const height = given.square ? width * 0.86 : given.height || 190;
  const left = 54, right = 10, top = given.yLabel ? 20 : 8, bottom = 34;
  let [y0, y1] = given.y, [x0, x1] = given.x;
  if (!(y1 > y0)) { y0 -= 0.5; y1 += 0.5; }
  if (!(x1 > x0)) { x0 -= 0.5; x1 += 0.5; }
  const bend = given.log ? Math.log10 : (v) => v;
  const px = (x) => left + ((x - x0) / (x1 - x0)) * (width - left - right);
  const py = (y) => height - bottom - ((bend(y) - bend(y0)) / (bend(y1) - bend(y0))) * (height - top - bottom);
  const svg = element('svg', { viewBox: `0 0 ${width} ${height}`, height, role: 'img', 'aria-label': given.label || '' });
  if (given.square) svg.style.width = `${width}px`;
  const add = (name, attributes, text) => svg.append(element(name, attributes, text));
  for (const y of given.yTicks || (given.log ? logTicks(y0, y1) : ticks(y0, y1, Math.max(2, height / 45)))) {
    add('line', { class: 'axis', x1: left, x2: width - right, y1: py(y), y2: py(y) });
    add('text', { x: left - 7, y: py(y) + 4, 'text-anchor': 'end' }, plain(y));
  }
  for (const x of given.xTicks || ticks(x0, x1, width / 90)) {
    if (!given.xTicks && !Number.isInteger(x)) continue;
    add('text', { x: px(x), y: height - bottom + 16, 'text-anchor': 'middle' }, plain(x));
  }
  add('text', { x: width - right, y: height - 2, 'text-anchor': 'end' }, given.xLabel || '');
  if (given.yLabel) add('text', { x: left - 7, y: 9, 'text-anchor': 'end' }, given.yLabel);
  const path = (xs, ys) => {
    let text = '', pen = false;
    for (let i = 0; i < xs.length; i++) {
      if (!Number.isFinite(ys[i])) { pen = false; continue; }
      text += `${pen ? 'L' : 'M'}${px(xs[i]).toFixed(1)} ${py(ys[i]).toFixed(1)}`;
      pen = true;
    }
    return text;
  };
  for (const { x, low, high } of given.bands || []) {
    const there = x.map((_, i) => i).filter((i) => Number.isFinite(low[i]) && Number.isFinite(high[i]));
    if (there.length < 2) continue;
    const upper = path(there.map((i) => x[i]), there.map((i) => high[i]));
    const back = path(there.map((i) => x[i]).reverse(), there.map((i) => low[i]).reverse());
    add('path', { class: 'band', d: `${upper}L${back.slice(1)}Z` });
  }
  for (const y of given.levels || []) add('line', { class: 'guide', x1: left, x2: width - right, y1: py(y), y2: py(y) });
  for (const { kind, x, y } of given.lines || []) add('path', { class: `line ${kind}`, d: path(x, y) });
  if (given.dots) {
    given.dots.x.forEach((x, i) => {
      if (Number.isFinite(given.dots.y[i])) add('circle', { class: 'dot', cx: px(x), cy: py(given.dots.y[i]), r: 2.5 });
    });
  }
  for (const x of given.marks || []) add('line', { class: 'mark', x1: px(x), x2: px(x), y1: top, y2: height - bottom });
  if (given.pick) {
    svg.style.cursor = 'pointer';
    svg.addEventListener('click', (event) => {
      const box = svg.getBoundingClientRect();
      const x = x0 + (((event.clientX - box.left) * width / box.width - left) / (width - left - right)) * (x1 - x0);
      given.pick(Math.min(Math.max(x, x0), x1));
    });
  }
  host.replaceChildren(svg);
}

// The range of all finite numbers in some lists, a little widened; within given bounds.
function reach(lists, least = Infinity, most = -Infinity) {
  let low = least, high = most;
  for (const list of lists) {
    for (const v of list) {
      if (Number.isFinite(v)) { low = Math.min(low, v); high = Math.max(high, v); }
    }
  }
  if (low > high) return [0, 1];
  const edge = (high - low) * 0.04 || Math.abs(high) * 0.05 || 0.5;
  return [low - edge, high + edge];
}
