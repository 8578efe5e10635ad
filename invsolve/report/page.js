// The page: what is chosen, the controls, and drawing again when something changes.

const meta = JSON.parse(document.getElementById('meta').textContent);
const $ = (id) => document.getElementById(id);
const size = meta.size, count = meta.items.length, signal = size[0] === 1;
const unit = meta.unit ? ` ${meta.unit}` : '';

// Level and width of the usual windows, in Hounsfield units.
const HOUNSFIELD = {
  'Soft tissue': [40, 400], Lung: [-600, 1500], Bone: [400, 1800], Mediastinum: [50, 350], Brain: [40, 80], Liver: [60, 160],
};
const middle = ([low, high]) => [(low + high) / 2, high - low];
const PRESETS = {
  Automatic: middle(meta.window.auto),
  'Full range': middle(meta.window.full),
  ...(meta.unit === 'HU' ? HOUNSFIELD : {}),
};

// As many decimals as the rounding leaves.
const decimals = Math.min(Math.max(Math.ceil(-Math.log10(meta.step)), 0), 6);
function format(value) {
  if (value === undefined || value === null || value !== value) return '–';
  if (value !== 0 && Math.abs(value) < 1e-4) return value.toExponential(2).replace(/-/g, MINUS);
  const text = value.toFixed(decimals);
  return (Number(text) === 0 ? text.replace('-', '') : text).replace('-', MINUS);
}

const [level, width] = PRESETS.Automatic;
const view = {
  frame: 0, level, width, spread: meta.spread, sample: 0, zoom: 1, format, hover: null,
  // Which lines the profiles show; the baseline may be far off, and is asked for.
  lines: { mean: true, band: true, truth: true, sample: true, linear: false },
  point: [size[0] >> 1, size[1] >> 1], centre: [size[0] / 2, size[1] / 2],
};
let frame = null;
let panels = [];

const grey = () => [view.level - view.width / 2, view.level + view.width / 2];
const errors = () => [0, view.spread];

function makePanels(layers) {
  const found = [{ name: 'mean', title: meta.samples > 1 ? `Mean of ${meta.samples} samples` : 'Reconstruction', kind: 'grey', range: grey }];
  if (layers.std) found.push({ name: 'std', title: 'Standard deviation', kind: 'heat', range: errors });
  if (meta.sampleFrames.length) found.push({ name: 'sample', title: 'Sample', kind: 'grey', range: grey });
  if (layers.truth) {
    found.push({ name: 'truth', title: 'Truth', kind: 'grey', range: grey });
    found.push({ name: 'error', title: '|Mean − truth|', kind: 'heat', range: errors, absolute: true });
  }
  if (layers.linear) found.push({ name: 'linear', title: 'Linear baseline', kind: 'grey', range: grey });
  if (layers.residual) {
    found.push({
      name: 'residual', title: `Data − A(mean)${frame.residual.relative ? ', in noise σ' : ''}`, fixed: true,
      kind: frame.residual.signed ? 'signed' : 'heat',
      range: () => [frame.residual.signed ? -frame.residual.reach : 0, frame.residual.reach],
    });
  }
  for (const panel of found) {
    panel.linked = !panel.fixed;
    panel.unit = panel.linked ? unit : '';
    makePanel($('pictures'), panel);
    if (panel.linked) listen(panel, view, size, { pick, hover, window: drag, move });
  }
  // One row, or two of about equal length; a few pictures do not grow beyond reason.
  const columns = found.length <= 4 ? found.length : Math.ceil(found.length / 2);
  $('pictures').style.setProperty('--columns', Math.max(columns, 3));
  return found;
}

function sampleButtons(panel) {
  const step = (by, text, label) => {
    const button = document.createElement('button');
    button.type = 'button';
    button.textContent = text;
    button.id = by > 0 ? 'sample-next' : 'sample-previous';
    button.setAttribute('aria-label', label);
    button.addEventListener('click', () => turn(by));
    return button;
  };
  panel.number = document.createElement('span');
  panel.label.append(' ', step(-1, '‹', 'previous sample'), panel.number, step(1, '›', 'next sample'));
}

function samplesHere() {
  return Object.keys(frame.layers).filter((name) => name.startsWith('sample-'));
}

function turn(by) {
  const names = samplesHere();
  if (!names.length) return;
  view.sample = (Math.min(view.sample, names.length - 1) + by + names.length) % names.length;
  draw();
}

function layerOf(panel) {
  if (panel.name !== 'sample') return frame.layers[panel.name];
  const names = samplesHere();
  view.sample = Math.min(view.sample, Math.max(names.length - 1, 0));
  if (panel.number) panel.number.textContent = names.length ? `${view.sample + 1} of ${names.length}` : '–';
  return frame.layers[names[view.sample]];
}

function nearestSample() {
  const near = meta.sampleFrames.reduce((a, b) => (Math.abs(b - view.frame) < Math.abs(a - view.frame) ? b : a));
  return `samples are kept at slice ${near + 1}`;
}

function drawPictures() {
  for (const panel of panels) paint(panel, layerOf(panel), view, size, panel.name === 'sample' ? nearestSample() : '');
  $('zoom').textContent = `${view.zoom}×`;
  readout();
}

// Values under the pointer, or at the chosen point.
function readout() {
  const [row, column] = view.hover || view.point;
  for (const panel of panels) {
    const layer = panel.linked ? layerOf(panel) : null;
    const value = layer ? valueAt(layer, row, column) : NaN;
    panel.value.textContent = layer ? format(panel.absolute ? Math.abs(value) : value) + unit : '';
  }
  const place = signal ? `position ${column}` : `row ${row}, column ${column}`;
  const { mean, std, truth } = frame.layers;
  const known = std ? ` ± ${format(1.96 * valueAt(std, row, column))}` : '';
  const against = truth ? `, truth ${format(valueAt(truth, row, column))}` : '';
  $('here').textContent = `${place}: ${format(valueAt(mean, row, column))}${known}${against}${unit}`;
}

// One row (axis 1) or column (axis 0) of a layer, pixel by pixel of the full picture.
function line(layer, axis) {
  if (!layer) return null;
  return Array.from({ length: size[axis] }, (_, k) => (axis ? valueAt(layer, view.point[0], k) : valueAt(layer, k, view.point[1])));
}

function drawProfile(host, axis) {
  const { mean, std, truth, linear } = frame.layers;
  const x = Array.from({ length: size[axis] }, (_, k) => k);
  const centre = line(mean, axis), deviation = line(std, axis);
  const low = deviation && centre.map((v, i) => v - 1.96 * deviation[i]);
  const high = deviation && centre.map((v, i) => v + 1.96 * deviation[i]);
  const lines = [
    { kind: 'linear', x, y: line(linear, axis) }, { kind: 'sample', x, y: line(frame.layers[samplesHere()[view.sample]], axis) },
    { kind: 'truth', x, y: line(truth, axis) }, { kind: 'mean', x, y: centre },
  ].filter(({ kind, y }) => y && view.lines[kind]);
  const bands = deviation && view.lines.band ? [{ x, low, high }] : [];
  const range = reach([...lines.map(({ y }) => y), ...bands.flatMap((band) => [band.low, band.high])]);
  chart(host, {
    x: [0, size[axis] - 1], y: range, lines, bands, marks: [view.point[axis]],
    height: signal ? 300 : 190, xLabel: signal ? 'position' : axis ? 'column' : 'row', yLabel: meta.unit, label: 'profile',
    pick: (at) => pick(axis ? [view.point[0], Math.round(at)] : [Math.round(at), view.point[1]]),
  });
}

function drawProfiles() {
  $('row-title').textContent = signal ? '' : `Along row ${view.point[0]}`;
  $('column-title').textContent = `Along column ${view.point[1]}`;
  drawProfile($('row-chart'), 1);
  if (!signal) drawProfile($('column-chart'), 0);
  const { std, truth, linear } = frame.layers;
  const entries = [['mean', meta.samples > 1 ? 'mean' : 'reconstruction'], ['band', 'mean ± 1.96 standard deviations', std], ['truth', 'truth', truth],
    ['sample', `sample ${view.sample + 1}`, samplesHere().length], ['linear', 'linear baseline', linear]];
  $('legend').replaceChildren(...entries.filter((e) => e.length < 3 || e[2]).map(([kind, text]) => {
    const entry = document.createElement('button');
    entry.type = 'button';
    entry.className = kind;
    entry.textContent = text;
    entry.setAttribute('aria-pressed', view.lines[kind]);
    entry.addEventListener('click', () => { view.lines[kind] = !view.lines[kind]; drawProfiles(); });
    return entry;
  }));
}

const NAMES = { psnr: 'PSNR, dB', ssim: 'SSIM', nrmse: 'NRMSE', coverage_50: 'truth in 50 % interval', coverage_90: 'truth in 90 % interval',
  deviation: `standard deviation, root mean square${meta.unit ? `, ${meta.unit}` : ''}` };

function drawQuality() {
  const { names, rows, linear } = meta.metrics, chosen = $('quantity').value;
  names.forEach((name, k) => {
    const value = rows[view.frame][k];
    $(`now-${name}`).textContent = value === null ? '–' : value.toFixed(name === 'psnr' ? 2 : 3).replace('-', MINUS);
  });
  if (count < 2 || !chosen) return;
  $('by-slice').hidden = false;
  const k = names.indexOf(chosen), x = meta.items.map((_, i) => i + 1), pick1 = (row) => row[k] ?? NaN;
  const lines = [{ kind: 'mean', x, y: k < 0 ? meta.deviations : rows.map(pick1) }];
  if (k >= 0 && linear.length && linear[0][k] !== null) lines.unshift({ kind: 'linear', x, y: linear.map(pick1) });
  const nominal = { coverage_50: 0.5, coverage_90: 0.9 }[names[k]];
  chart($('by-slice-chart'), {
    x: [1, count], y: reach([...lines.map((l) => l.y), nominal ? [nominal] : []]), lines, marks: [view.frame + 1],
    levels: nominal ? [nominal] : [], xLabel: 'slice', height: 170, label: 'quality by slice', pick: (at) => show(Math.round(at) - 1),
  });
}

function drawCoverage() {
  const { levels, all, rows } = meta.coverage;
  if (!all.length) return;
  $('coverage').hidden = false;
  const x = [0, ...levels, 1], closed = (y) => [0, ...y, 1], at = [0, 0.25, 0.5, 0.75, 1];
  const lines = [{ kind: 'guide', x: [0, 1], y: [0, 1] }, { kind: 'all', x, y: closed(all) }];
  if (count > 1) lines.splice(1, 0, { kind: 'this', x, y: closed(rows[view.frame]) });
  chart($('coverage-chart'), {
    square: true, x: [0, 1], y: [0, 1], xTicks: at, yTicks: at, lines, xLabel: 'stated', yLabel: 'found', label: 'coverage',
  });
}

function drawAgreement() {
  const y = meta.discrepancy.map((v) => v ?? NaN), around = meta.discrepancySpread.map((v) => 3 * v);
  if (y.some(Number.isFinite)) {
    $('by-item').hidden = false;
    const x = y.map((_, i) => i + 1);
    const [low, high] = [around.map((s) => 1 - s), around.map((s) => 1 + s)];
    chart($('by-item-chart'), {
      x: [1 - 0.02 * count, count * 1.02], y: reach([y, low, high]), bands: [{ x, low, high }], levels: [1], height: 170,
      // Dots of hundreds of slices would run together.
      ...(count > 300 ? { lines: [{ kind: 'mean', x, y }] } : { dots: { x, y } }),
      xTicks: count < 2 ? [1] : undefined, marks: count > 1 ? [view.frame + 1] : [], xLabel: 'slice', label: 'residual by slice',
      pick: (at) => show(Math.round(at) - 1),
    });
  }
  const steps = frame.steps;
  $('by-step').hidden = !steps || steps.step.length < 2;
  if ($('by-step').hidden) return;
  const some = (list) => list.filter((v) => v > 0);
  const least = Math.min(...some(steps.low)), most = Math.max(...some(steps.high));
  chart($('by-step-chart'), {
    x: [steps.step[0], steps.step.at(-1)], y: [Math.min(least, 0.9) * 0.9, Math.max(most, 1.1) * 1.1], log: true, height: 170, levels: [1],
    lines: [{ kind: 'mean', x: steps.step, y: steps.mean.map((v) => (v > 0 ? v : NaN)) }],
    bands: [{ x: steps.step, low: steps.low.map((v) => Math.max(v, least)), high: steps.high }], xLabel: 'step', label: 'residual by step',
  });
}

function draw() {
  drawPictures();
  drawProfiles();
}

function drawAll() {
  draw();
  drawQuality();
  drawCoverage();
  drawAgreement();
  const inner = meta.depth > 1 ? `, slice ${meta.slices[view.frame]}` : '';
  $('which').textContent = `${view.frame + 1} of ${count} · item ${meta.items[view.frame]}${inner}`;
}

async function show(number) {
  view.frame = Math.min(Math.max(number, 0), count - 1);
  const asked = view.frame;
  $('slice').value = asked;
  let found;
  try {
    found = await load(asked);
  } catch (error) {
    trouble(`Slice ${asked + 1} cannot be shown: the file is damaged. Write the page again.`);
    return;
  }
  // A later slice may have been asked for meanwhile.
  if (asked !== view.frame) return;
  frame = found;
  if (!panels.length) begin();
  drawAll();
  document.body.dataset.shown = asked;
  for (const near of [asked + 1, asked - 1]) if (near >= 0 && near < count) load(near).catch(() => {});
}

function trouble(text) {
  $('trouble').textContent = text;
  $('trouble').hidden = false;
}

function pick(at) {
  view.point = at;
  draw();
}

function hover(at) {
  view.hover = at;
  readout();
}

function move(rows, columns) {
  const part = seen(view, size);
  view.centre = [part.row + part.rows / 2 + rows, part.column + part.columns / 2 + columns];
  drawPictures();
}

const ZOOMS = [1, 2, 3, 4, 6, 8, 12];

function zoom(by) {
  const at = Math.min(Math.max(ZOOMS.indexOf(view.zoom) + by, 0), ZOOMS.length - 1);
  if (view.zoom === 1) view.centre = [view.point[0] + 0.5, view.point[1] + 0.5];
  view.zoom = ZOOMS[at];
  drawPictures();
}

const [fullLow, fullHigh] = meta.window.full;

function setWindow(level, width, preset) {
  view.level = level;
  view.width = Math.max(width, meta.step);
  // As many digits as a thousandth of the full range needs.
  const digits = Math.min(Math.max(Math.ceil(3 - Math.log10(fullHigh - fullLow)), 0), 20);
  $('level').value = view.level;
  $('width').value = view.width;
  $('level-number').value = +view.level.toFixed(digits);
  $('width-number').value = +view.width.toFixed(digits);
  $('preset').value = preset || '';
  if (frame) drawPictures();
}

function setSpread(top) {
  view.spread = Math.min(Math.max(top, meta.step), fullHigh - fullLow);
  $('spread').value = view.spread;
  $('spread-number').value = +view.spread.toPrecision(3);
  if (frame) drawPictures();
}

function drag(panel, x, y) {
  if (panel.range === errors) setSpread(view.spread * Math.exp(y * 2 - x));
  else setWindow(view.level + y * view.width, view.width * Math.exp(x));
}

function windowControls() {
  for (const name of ['', ...Object.keys(PRESETS)]) {
    const option = document.createElement('option');
    option.value = name;
    option.textContent = name || 'Own';
    option.hidden = !name;
    $('preset').append(option);
  }
  const span = fullHigh - fullLow;
  Object.assign($('level'), { min: fullLow, max: fullHigh });
  Object.assign($('width'), { min: 0, max: span });
  Object.assign($('spread'), { min: 0, max: Math.min(4 * meta.spread, span) });
  const number = (event, then) => { const v = event.target.valueAsNumber; if (Number.isFinite(v)) then(v); };
  $('preset').addEventListener('change', (e) => { if (e.target.value) setWindow(...PRESETS[e.target.value], e.target.value); });
  for (const id of ['level', 'level-number']) {
    $(id).addEventListener(id === 'level' ? 'input' : 'change', (e) => number(e, (v) => setWindow(v, view.width)));
  }
  for (const id of ['width', 'width-number']) {
    $(id).addEventListener(id === 'width' ? 'input' : 'change', (e) => number(e, (v) => setWindow(view.level, v)));
  }
  for (const id of ['spread', 'spread-number']) {
    $(id).addEventListener(id === 'spread' ? 'input' : 'change', (e) => number(e, setSpread));
  }
  setWindow(...PRESETS.Automatic, 'Automatic');
  setSpread(meta.spread);
}

function keys(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches('input[type=number], select') || (event.target.matches('input[type=range]') && event.target.id !== 'slice')) return;
  const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageUp: -10, PageDown: 10, Home: -count, End: count };
  const other = { '+': () => zoom(1), '=': () => zoom(1), '-': () => zoom(-1), 0: () => zoom(-ZOOMS.length), s: () => turn(1), S: () => turn(-1) };
  // A single slice leaves the keys to scrolling.
  if (event.key in steps && count > 1) show(view.frame + steps[event.key]);
  else if (event.key in other && !signal) other[event.key]();
  else return;
  event.preventDefault();
}

function begin() {
  panels = makePanels(frame.layers);
  const sample = panels.find((panel) => panel.name === 'sample');
  if (sample) sampleButtons(sample);
  $('spread-label').hidden = !panels.some((panel) => panel.range === errors);
  const again = new ResizeObserver(() => requestAnimationFrame(drawAll));
  again.observe(document.querySelector('main'));
}

function start() {
  if (signal) document.body.classList.add('plain');
  $('slices').hidden = count < 2;
  $('column-figure').hidden = signal;
  $('controls').hidden = signal && count < 2;
  Object.assign($('slice'), { max: count - 1 });
  for (const name of [...meta.metrics.names, ...(meta.deviations.length ? ['deviation'] : [])]) {
    const option = document.createElement('option');
    option.value = name;
    option.textContent = NAMES[name] || name;
    $('quantity').append(option);
  }
  windowControls();
  $('slice').addEventListener('input', (e) => show(+e.target.value));
  $('previous').addEventListener('click', () => show(view.frame - 1));
  $('next').addEventListener('click', () => show(view.frame + 1));
  $('in').addEventListener('click', () => zoom(1));
  $('out').addEventListener('click', () => zoom(-1));
  $('quantity').addEventListener('change', drawQuality);
  document.addEventListener('keydown', keys);
  window.addEventListener('beforeprint', () => frame && drawAll());
  if (typeof DecompressionStream === 'undefined') {
    trouble('This browser is too old to show the pictures: take Chrome or Edge 92, Firefox 113, Safari 16.4, or newer.');
    return;
  }
  show(count >> 1);
}

start();
