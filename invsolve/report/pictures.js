// Pictures on canvases: colours, window, zoom, the chosen point, and what the pointer does.

function colours(stops) {
  const table = new Uint32Array(256), view = new DataView(table.buffer);
  for (let i = 0; i < 256; i++) {
    const at = (i / 255) * (stops.length - 1), k = Math.min(Math.floor(at), stops.length - 2);
    for (let part = 0; part < 3; part++) {
      view.setUint8(4 * i + part, Math.round(stops[k][part] + (at - k) * (stops[k + 1][part] - stops[k][part])));
    }
    view.setUint8(4 * i + 3, 255);
  }
  return table;
}

const TABLES = {
  grey: colours([[0, 0, 0], [255, 255, 255]]),
  heat: colours([[0, 0, 4], [59, 15, 112], [183, 55, 121], [252, 137, 97], [252, 253, 191]]),
  signed: colours([[90, 180, 255], [16, 18, 22], [255, 161, 74]]),
};

// A panel: { name, title, kind, linked, range() } and its elements. linked ones share point, zoom and window.
function makePanel(host, panel) {
  const figure = document.createElement('figure');
  figure.className = panel.linked ? '' : 'fixed';
  figure.dataset.name = panel.name;
  const caption = document.createElement('figcaption');
  panel.label = document.createElement('span');
  panel.label.className = 'name';
  panel.label.textContent = panel.title;
  panel.label.title = panel.title;
  panel.value = document.createElement('output');
  panel.value.className = 'value';
  caption.append(panel.label, panel.value);
  panel.canvas = document.createElement('canvas');
  panel.canvas.setAttribute('role', 'img');
  panel.canvas.setAttribute('aria-label', panel.title);
  const scale = document.createElement('div');
  scale.className = `scale ${panel.kind}`;
  panel.low = document.createElement('span');
  panel.high = document.createElement('span');
  scale.append(panel.low, document.createElement('i'), panel.high);
  figure.append(caption, panel.canvas, scale);
  host.append(figure);
  panel.figure = figure;
  panel.buffer = document.createElement('canvas');
  return panel;
}

// Part of the full picture that is seen: { row, column, rows, columns }.
function seen(view, size) {
  const rows = size[0] / view.zoom, columns = size[1] / view.zoom;
  return {
    row: Math.min(Math.max(view.centre[0] - rows / 2, 0), size[0] - rows),
    column: Math.min(Math.max(view.centre[1] - columns / 2, 0), size[1] - columns),
    rows,
    columns,
  };
}

// A number with as many digits as a span needs.
function rounded(value, span) {
  const digits = Math.max(Math.ceil(2 - Math.log10(span)), 0);
  return digits > 6 ? plain(value) : value.toFixed(digits).replace(/^-(?=0\.?0*$)/, '').replace('-', MINUS);
}

// Values through window and colours into the panel's buffer, then the part that is seen onto its canvas.
function paint(panel, layer, view, size, blank) {
  const canvas = panel.canvas, shape = panel.linked ? size : layer ? [layer.rows, layer.columns] : [1, 1];
  canvas.style.aspectRatio = `${shape[1]} / ${shape[0]}`;
  const ratio = window.devicePixelRatio || 1;
  const width = Math.max(Math.round(canvas.clientWidth * ratio), 1);
  const height = Math.max(Math.round((width * shape[0]) / shape[1]), 1);
  if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
  const pen = canvas.getContext('2d');
  pen.clearRect(0, 0, width, height);
  const [low, high] = panel.range();
  panel.low.textContent = rounded(low, high - low);
  panel.high.textContent = rounded(high, high - low) + panel.unit;
  if (!layer) {
    pen.fillStyle = '#a9afb6';
    pen.font = `${13 * ratio}px system-ui, sans-serif`;
    pen.textAlign = 'center';
    pen.fillText(blank || '', width / 2, height / 2);
    return;
  }
  const { rows, columns, values, factor } = layer, table = TABLES[panel.kind];
  const image = new ImageData(columns, rows), pixels = new Uint32Array(image.data.buffer);
  const gain = 255 / (high - low || 1);
  for (let i = 0; i < values.length; i++) {
    const v = panel.absolute ? Math.abs(values[i]) : values[i];
    // What is not a number stays transparent.
    if (v === v) pixels[i] = table[Math.min(Math.max(Math.round((v - low) * gain), 0), 255)];
  }
  panel.buffer.width = columns;
  panel.buffer.height = rows;
  panel.buffer.getContext('2d').putImageData(image, 0, 0);
  pen.imageSmoothingEnabled = false;
  if (!panel.linked) {
    pen.drawImage(panel.buffer, 0, 0, width, height);
    return;
  }
  const part = seen(view, size), down = rows > 1 || factor === 1 ? factor : 1;
  pen.drawImage(panel.buffer, part.column / factor, part.row / down, part.columns / factor, part.rows / down, 0, 0, width, height);
  cross(pen, view, part, width, height, ratio);
}

// The chosen point: lines along its row and column with a gap around it.
function cross(pen, view, part, width, height, ratio) {
  const x = ((view.point[1] + 0.5 - part.column) / part.columns) * width;
  const y = ((view.point[0] + 0.5 - part.row) / part.rows) * height;
  const gap = 9 * ratio;
  pen.strokeStyle = 'rgba(255, 190, 90, .75)';
  pen.lineWidth = ratio;
  pen.beginPath();
  for (const [a, b] of [[0, x - gap], [x + gap, width]]) { pen.moveTo(a, y); pen.lineTo(b, y); }
  for (const [a, b] of [[0, y - gap], [y + gap, height]]) { pen.moveTo(x, a); pen.lineTo(x, b); }
  pen.stroke();
}

// Pointer on a linked panel: hover reads, click picks, drag changes the window, shift and drag moves.
function listen(panel, view, size, on) {
  const canvas = panel.canvas;
  let from = null;
  const pixel = (event) => {
    const box = canvas.getBoundingClientRect(), part = seen(view, size);
    const row = Math.floor(part.row + ((event.clientY - box.top) / box.height) * part.rows);
    const column = Math.floor(part.column + ((event.clientX - box.left) / box.width) * part.columns);
    return [Math.min(Math.max(row, 0), size[0] - 1), Math.min(Math.max(column, 0), size[1] - 1)];
  };
  canvas.addEventListener('pointerdown', (event) => {
    if (event.button !== 0) return;
    from = { x: event.clientX, y: event.clientY, dragged: false };
    if (event.pointerType !== 'touch') canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener('pointermove', (event) => {
    if (from && event.pointerType !== 'touch') {
      const dx = event.clientX - from.x, dy = event.clientY - from.y;
      if (from.dragged || Math.abs(dx) + Math.abs(dy) > 4) {
        from = { x: event.clientX, y: event.clientY, dragged: true };
        const box = canvas.getBoundingClientRect(), part = seen(view, size);
        if (event.shiftKey) on.move((-dy / box.height) * part.rows, (-dx / box.width) * part.columns);
        else on.window(panel, dx / 300, dy / 300);
        return;
      }
    }
    on.hover(pixel(event));
  });
  canvas.addEventListener('pointerup', (event) => {
    if (from && !from.dragged) on.pick(pixel(event));
    from = null;
  });
  canvas.addEventListener('pointercancel', () => { from = null; });
  canvas.addEventListener('pointerleave', () => on.hover(null));
}
