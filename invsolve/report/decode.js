// Data blocks back to numbers: base64, inflate, undo the prediction. encode.py is the other side.

const HELD = 24;
const held = new Map();

function bytesOf(text) {
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return bytes;
}

async function inflate(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('deflate'));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// Each code was predicted by the median of left, above and left + above - between; 0 is not a number.
function unfold(bytes, rows, columns, low, step) {
  const count = rows * columns, planes = bytes.length / count;
  const codes = new Int32Array(count), values = new Float32Array(count);
  for (let i = 0, r = 0; r < rows; r++) {
    for (let c = 0; c < columns; c++, i++) {
      let folded = bytes[i];
      for (let p = 1; p < planes; p++) folded |= bytes[p * count + i] << (8 * p);
      const left = c ? codes[i - 1] : 0, above = r ? codes[i - columns] : 0;
      const between = c && r ? codes[i - columns - 1] : 0;
      const small = Math.min(left, above), large = Math.max(left, above);
      const predicted = Math.min(Math.max(left + above - between, small), large);
      codes[i] = predicted + (folded & 1 ? -((folded + 1) >> 1) : folded >> 1);
      values[i] = codes[i] ? low + (codes[i] - 1) * step : NaN;
    }
  }
  return values;
}

// The values of a layer, averaged over the larger pixels of another.
function averaged(layer, other) {
  const times = other.factor / layer.factor;
  if (times === 1) return layer.values;
  const sums = new Float64Array(other.values.length), counts = new Uint16Array(other.values.length);
  for (let i = 0, r = 0; r < layer.rows; r++) {
    const row = other.rows > 1 ? Math.floor(r / times) * other.columns : 0;
    for (let c = 0; c < layer.columns; c++, i++) {
      const at = row + Math.floor(c / times);
      sums[at] += layer.values[i];
      counts[at]++;
    }
  }
  return Float32Array.from(sums, (sum, i) => sum / counts[i]);
}

async function decode(number) {
  const text = document.getElementById(`frame-${number}`).textContent;
  const end = text.indexOf('\n');
  const frame = JSON.parse(text.slice(0, end));
  const bytes = bytesOf(text.slice(end + 1).trim());
  const layers = {};
  let start = 0;
  for (const [name, rows, columns, factor, low, step, length] of frame.layers) {
    const plain = await inflate(bytes.subarray(start, start + length));
    layers[name] = { rows, columns, factor, values: unfold(plain, rows, columns, low, step) };
    start += length;
  }
  const { mean, truth } = layers;
  if (truth) {
    const same = averaged(mean, truth);
    layers.error = { ...truth, values: same.map((v, i) => v - truth.values[i]) };
  }
  return { ...frame, layers };
}

// A decoded frame; the last few are kept.
function load(number) {
  let found = held.get(number);
  if (!found) found = decode(number);
  held.delete(number);
  held.set(number, found);
  if (held.size > HELD) held.delete(held.keys().next().value);
  return found;
}

// The value of a layer at a pixel of the full picture.
function valueAt(layer, row, column) {
  const f = layer.factor;
  const r = Math.min(layer.rows > 1 ? Math.floor(row / f) : 0, layer.rows - 1);
  return layer.values[r * layer.columns + Math.min(Math.floor(column / f), layer.columns - 1)];
}
