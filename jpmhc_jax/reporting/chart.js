'use strict';
// Charts are complete without this script. It adds: a cursor, zoom, the other scale, lines to hide, SVG and CSV.
// scales.py and charts.py draw a chart first; `Plot.draw` draws it again by the same rules when a reader changes its view.
const JPMHC = (() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const svg = (name, attributes, ...children) => {
    const node = document.createElementNS('http://www.w3.org/2000/svg', name);
    for (const [key, value] of Object.entries(attributes)) if (value !== '' && value != null) node.setAttribute(key, value);
    node.append(...children);
    return node;
  };
  const button = (words, hint, act) => {
    const node = document.createElement('button');
    Object.assign(node, {type: 'button', textContent: words, title: hint});
    node.addEventListener('click', act);
    return node;
  };
  const colour = line => `--c:var(--line-${line.colour})`;
  const slug = words => words.toLowerCase().replace(/[^a-z0-9@]+/g, '-').replace(/^-|-$/g, '') || 'chart';

  const scale = (low, high, start, end, log) => {
    const at = log ? Math.log10 : value => value;
    return value => Math.round((start + (at(value) - at(low)) / (at(high) - at(low)) * (end - start)) * 10) / 10;
  };
  const niceTicks = (low, high, target = 5) => {
    const raw = (high - low) / target;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = power * [1, 2, 5, 10].reduce((best, m) => (Math.abs(m * power - raw) < Math.abs(best * power - raw) ? m : best));
    const first = Math.ceil(low / step - 1e-9);
    const count = Math.max(0, Math.floor(high / step + 1e-9) - first + 1);
    return Array.from({length: count}, (_, i) => Number(((first + i) * step).toPrecision(12)));
  };
  const ticks = (low, high, log, whole) => {
    const counted = niceTicks(low, high).filter(Number.isInteger);
    if (!log) return whole && counted.length ? counted : niceTicks(low, high);
    const [from, to] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
    const step = Math.max(1, Math.floor((to - from + 1) / 6));
    const decades = Array.from({length: Math.floor((to - from) / step) + 1}, (_, i) => Number(`1e${from + i * step}`));
    const inside = decades.filter(value => low <= value && value <= high);
    return inside.length >= 2 ? inside : niceTicks(low, high).filter(value => value > 0);
  };
  const label = value => {
    const size = Math.abs(value);
    for (const [limit, unit, suffix] of [[1e12, 1e12, 'T'], [1e9, 1e9, 'G'], [1e6, 1e6, 'M'], [1e4, 1e3, 'k']]) {
      if (limit <= size && size < 1e15) return `${Number((value / unit).toPrecision(6))}${suffix}`;
    }
    const digits = Number(size.toPrecision(6));
    const short = size && size < 1e-4 ? digits.toExponential() : String(digits);
    return (value < 0 ? '−' : '') + short.replace('e+', 'e');
  };
  const yRange = (values, log) => {
    const [low, high] = [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))];
    if (log) return [low * 0.9, high * 1.1];
    if (high - low <= 1e-9 * Math.max(Math.abs(low), Math.abs(high), 1e-300)) {
      const room = Math.abs(high) / 10 || 1;
      return [low ? low - room : 0, high + room];
    }
    const room = (high - low) * 0.05;
    return [low >= 0 && low - room < 0 ? 0 : low - room, high + room];
  };

  class Plot {
    constructor(figure, number) {
      Object.assign(this, {figure, number, at: -1, hidden: new Set(), view: null});
      this.plot = figure.querySelector('.plot');
      this.drawing = this.plot.querySelector('svg');
      this.cursor = this.plot.querySelector('.cursor');
      this.tip = this.plot.querySelector('.tip');
      this.listen();
      this.addTools();
      all('.legend li', figure).forEach((item, i) => this.addSwitch(item, i));
    }

    // The numbers are parsed when a reader first touches the chart.
    get data() {
      if (!this.numbers) {
        this.numbers = JSON.parse(this.plot.querySelector('script').textContent);
        this.log = this.numbers.logY;
        const xs = this.numbers.lines.flatMap(line => line.x);
        const [low, high] = [xs.reduce((a, b) => Math.min(a, b)), xs.reduce((a, b) => Math.max(a, b))];
        this.whole = high > low ? [low, high] : this.numbers.logX ? [low / 2, high * 2] : [low - 0.5, high + 0.5];
        if (this.numbers.dots) this.whole = [low - 0.5, high + 0.5];
        this.view = this.whole;
        this.xs = [...new Set(xs)].sort((a, b) => a - b);
        const id = `clip-${this.number}`;
        const [left, top, right, bottom] = this.numbers.box;
        const room = svg('rect', {x: left - 3, y: top - 3, width: right - left + 6, height: bottom - top + 6});
        this.drawing.prepend(svg('defs', {}, svg('clipPath', {id}, room)));
        all('.curve', this.drawing).forEach(curve => curve.setAttribute('clip-path', `url(#${id})`));
        this.draw();
      }
      return this.numbers;
    }

    drawable(value) { return value != null && (!this.log || value > 0); }

    draw() {
      const {lines, percent, logX} = this.data;
      const [left, top, right, bottom] = this.data.box;
      const inside = x => this.view[0] <= x && x <= this.view[1];
      const shown = lines.filter((_, i) => !this.hidden.has(i));
      const seen = shown.flatMap(line => line.y.filter((y, i) => inside(line.x[i]) && this.drawable(y)));
      const least = seen.reduce((a, b) => Math.min(a, b), Infinity);
      const bands = shown.flatMap(line => [line.low, line.high].filter(Boolean).flatMap(band =>
        band.filter((y, i) => inside(line.x[i]) && this.drawable(y)).map(y => (this.log ? Math.max(y, least / 10) : y))));
      if (seen.length) {
        const [low, high] = yRange([...seen, ...bands], this.log);
        this.range = [low, percent && Math.max(...seen) <= 1 ? Math.min(high, 1) : high];
      }
      if (!this.range) return;
      this.x = scale(...this.view, left, right, logX);
      this.y = scale(...this.range, bottom, top, this.log);
      this.drawAxes();
      all('.curve', this.drawing).forEach((curve, i) => {
        curve.style.display = this.hidden.has(i) ? 'none' : '';
        this.drawCurve(curve, lines[i]);
      });
      this.figure.querySelector('.reset').hidden = this.view === this.whole;
    }

    drawAxes() {
      const {percent, unit, whole, logX, x} = this.data;
      const [left, top, right, bottom] = this.data.box;
      const parts = [];
      for (const value of ticks(...this.range, this.log, false)) {
        const y = this.y(value);
        parts.push(svg('line', {x1: left, x2: right, y1: y, y2: y, class: 'rule'}));
        parts.push(svg('text', {x: left - 6, y: y + 4, 'text-anchor': 'end'}, label(percent ? 100 * value : value)));
      }
      for (const value of ticks(...this.view, logX, whole)) {
        parts.push(svg('text', {x: this.x(value), y: bottom + 16, 'text-anchor': 'middle'}, label(value)));
      }
      const above = [unit, this.log ? 'log scale' : ''].filter(Boolean).join(' · ');
      if (above) parts.push(svg('text', {x: 4, y: 11, class: 'axis'}, above));
      parts.push(svg('text', {x: right, y: bottom + 31, 'text-anchor': 'end', class: 'axis'}, logX ? `${x} · log scale` : x));
      parts.push(svg('line', {x1: left, x2: right, y1: bottom, y2: bottom, class: 'base'}));
      this.drawing.querySelector('.axes').replaceChildren(...parts);
    }

    drawCurve(curve, line) {
      const path = values => {
        let [d, pen] = ['', 'M'];
        values.forEach((y, i) => {
          if (this.drawable(y)) d += `${pen}${this.x(line.x[i])} ${this.y(y)}`;
          pen = this.drawable(y) ? 'L' : 'M';
        });
        return d;
      };
      const dashes = {'stroke-dasharray': line.dash};
      const parts = [curve.querySelector('title')];
      if (line.low) {
        const keep = line.x.map((_, i) => i).filter(i => this.drawable(line.high[i]) && line.low[i] != null);
        const at = (i, y) => `${this.x(line.x[i])} ${this.y(Math.max(y, this.range[0]))}`;
        const corners = [...keep.map(i => at(i, line.high[i])), ...keep.reverse().map(i => at(i, line.low[i]))];
        parts.push(svg('path', {d: corners.length ? `M${corners.join('L')}Z` : '', class: 'band'}));
      }
      if (!this.data.dots) parts.push(svg('path', {d: path(line.y), class: line.mean ? 'raw' : 'line', ...dashes}));
      if (line.mean) parts.push(svg('path', {d: path(line.mean), class: 'line', ...dashes}));
      const dots = line.y.map((y, i) => [line.x[i], y]).filter(([x, y]) => this.drawable(y) && this.view[0] <= x && x <= this.view[1]);
      const r = this.data.dots ? 3.5 : 2.4;
      if (this.data.dots || dots.length <= 16) parts.push(...dots.map(([x, y]) => svg('circle', {cx: this.x(x), cy: this.y(y), r})));
      curve.replaceChildren(...parts);
    }

    // Cursor: the nearest recorded point of every line that is shown.
    show(position) {
      const {lines, percent} = this.data;
      const [, top, , bottom] = this.data.box;
      const hits = lines.flatMap((line, i) => {
        if (this.hidden.has(i)) return [];
        const best = line.x.reduce((near, x, k) => (this.drawable(line.y[k]) &&
          (near < 0 || Math.abs(this.x(x) - position) < Math.abs(this.x(line.x[near]) - position)) ? k : near), -1);
        return best >= 0 && Math.abs(this.x(line.x[best]) - position) < 12 ? [[line, best]] : [];
      });
      if (!hits.length) return;
      const value = y => (percent ? `${(100 * y).toFixed(2)} %` : Number(y.toPrecision(4)));
      this.cursor.replaceChildren(svg('line', {x1: position, x2: position, y1: top, y2: bottom}));
      const head = document.createElement('span');
      head.textContent = hits[0][0].x[hits[0][1]].toLocaleString('en').replaceAll(',', '\u202f');
      const rows = hits.slice(0, 14).map(([line, k]) => {
        this.cursor.append(svg('circle', {cx: this.x(line.x[k]), cy: this.y(line.y[k]), r: 3.2, style: colour(line)}));
        const row = document.createElement('span');
        const dot = document.createElement('b');
        dot.setAttribute('style', colour(line));
        row.append(dot, `${line.label}: ${value(line.y[k])}${line.mean?.[k] != null ? `, mean ${value(line.mean[k])}` : ''}`);
        return row;
      });
      this.tip.replaceChildren(head, ...rows);
      this.tip.style.left = position < 200 ? `${position / 4 + 4}%` : '';
      this.tip.style.right = position < 200 ? '' : `${(400 - position) / 4 + 4}%`;
    }

    visible() { return this.xs.filter(x => this.view[0] <= x && x <= this.view[1]); }

    move(step) {
      this.data;
      const xs = this.visible();
      if (!xs.length) return;
      const from = this.at < 0 && step < 0 ? xs.length : this.at;
      this.at = Math.max(0, Math.min(xs.length - 1, from + step));
      this.show(this.x(xs[this.at]));
    }

    clear() {
      this.at = -1;
      this.cursor.replaceChildren();
      this.tip.replaceChildren();
    }

    // Zoom: to what lies between two places on the drawing, or by a factor about the cursor.
    invert(position) {
      const [left, , right] = this.data.box;
      const share = Math.max(0, Math.min(1, (position - left) / (right - left)));
      const [low, high] = this.data.logX ? this.view.map(Math.log10) : this.view;
      const value = low + share * (high - low);
      return this.data.logX ? 10 ** value : value;
    }

    zoom(low, high) {
      const inner = [Math.max(low, this.whole[0]), Math.min(high, this.whole[1])];
      this.view = inner[0] <= this.whole[0] && inner[1] >= this.whole[1] ? this.whole : inner;
      this.clear();
      this.draw();
    }

    zoomBy(factor) {
      const [left, , right] = this.data.box;
      const xs = this.visible();
      const middle = this.at >= 0 ? this.x(xs[this.at]) : (left + right) / 2;
      const reach = (right - left) / 2 * factor;
      const spread = factor > 1 ? (this.view[1] - this.view[0]) * (factor - 1) / 2 : 0;
      if (factor > 1) this.zoom(this.view[0] - spread, this.view[1] + spread);
      else this.zoom(this.invert(middle - reach), this.invert(middle + reach));
    }

    reset() { this.data; this.zoom(-Infinity, Infinity); }

    listen() {
      const place = event => {
        const box = this.drawing.getBoundingClientRect();
        return (event.clientX - box.left) / box.width * 400;
      };
      let start = null;
      this.drawing.addEventListener('pointerdown', event => { this.data; start = event.button === 0 ? place(event) : null; });
      this.drawing.addEventListener('pointermove', event => {
        const [, top, , bottom] = this.data.box;
        const position = place(event);
        if (start !== null && Math.abs(position - start) > 6) {
          this.tip.replaceChildren();
          const box = {x: Math.min(start, position), width: Math.abs(position - start), y: top, height: bottom - top};
          this.cursor.replaceChildren(svg('rect', {...box, class: 'stretch'}));
          return;
        }
        const xs = this.visible();
        this.at = xs.reduce((near, x, k) => (near < 0 || Math.abs(this.x(x) - position) < Math.abs(this.x(xs[near]) - position) ? k : near), -1);
        if (this.at >= 0) this.show(this.x(xs[this.at]));
      });
      this.drawing.addEventListener('pointerup', event => {
        const ends = start === null ? [] : [start, place(event)].sort((a, b) => a - b);
        start = null;
        if (ends[1] - ends[0] > 6) this.zoom(this.invert(ends[0]), this.invert(ends[1]));
      });
      this.drawing.addEventListener('dblclick', () => this.reset());
      this.plot.addEventListener('pointerleave', () => { start = null; this.clear(); });
      this.plot.addEventListener('blur', () => this.clear());
      this.plot.addEventListener('keydown', event => {
        const steps = {ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -1e9, End: 1e9};
        if (event.key in steps) { this.move(steps[event.key]); event.preventDefault(); }
        if (event.key === '+') this.zoomBy(0.5);
        if (event.key === '-') this.zoomBy(2);
        if (event.key === '0') this.reset();
        if (event.key === 'Escape') this.clear();
      });
    }

    addTools() {
      const tools = document.createElement('div');
      tools.className = 'tools';
      const reset = button('whole', 'Show the whole axis again (double click, or 0)', () => this.reset());
      reset.className = 'reset';
      reset.hidden = true;
      const log = button('log', 'Switch the y axis between linear and logarithmic', () => {
        this.data;
        this.log = !this.log;
        log.setAttribute('aria-pressed', this.log);
        this.clear();
        this.draw();
      });
      log.setAttribute('aria-pressed', this.plot.dataset.log === 'true');
      const name = suffix => `${slug(this.data.title)}.${suffix}`;
      tools.append(
        reset, log,
        button('SVG', 'Download this picture', () => save(name('svg'), 'image/svg+xml', this.picture())),
        button('CSV', 'Download the points that are drawn', () => save(name('csv'), 'text/csv', this.csv())),
      );
      this.plot.after(tools);
    }

    addSwitch(item, i) {
      const node = button('', 'Hide or show this line; a double click shows it alone', () => {
        this.hidden.has(i) ? this.hidden.delete(i) : this.hidden.add(i);
        this.update();
      });
      node.append(...item.childNodes);
      node.addEventListener('dblclick', () => {
        const others = this.data.lines.map((_, k) => k).filter(k => k !== i);
        const alone = others.every(k => this.hidden.has(k));
        this.hidden = new Set(alone ? [] : others);
        this.update();
      });
      node.setAttribute('aria-pressed', 'true');
      item.replaceChildren(node);
    }

    update() {
      all('.legend button', this.figure).forEach((node, i) => node.setAttribute('aria-pressed', !this.hidden.has(i)));
      this.data;
      this.clear();
      this.draw();
    }

    // The drawing with title and legend as a file of its own: every colour is written into it.
    picture() {
      const {title, lines} = this.data;
      const copy = this.drawing.cloneNode(true);
      const looks = ['fill', 'stroke', 'stroke-width', 'stroke-dasharray', 'stroke-linejoin', 'stroke-linecap', 'opacity', 'font-size', 'display'];
      const originals = all('*', this.drawing);
      all('*', copy).forEach((node, i) => {
        const style = getComputedStyle(originals[i]);
        node.removeAttribute('class');
        node.removeAttribute('style');
        if (node.closest('defs') || node.tagName === 'title') return;
        for (const look of looks) node.setAttribute(look, style.getPropertyValue(look));
      });
      const [ink, quiet] = [this.figure, this.figure.querySelector('.axes text')].map(node => getComputedStyle(node));
      const shown = all('.curve', this.drawing).map((curve, i) => [curve, lines[i]]).filter((_, i) => !this.hidden.has(i));
      const rows = lines.length < 2 ? [] : shown.map(([curve, line], k) => {
        const stroke = {stroke: getComputedStyle(curve.querySelector('.line, circle')).getPropertyValue(this.data.dots ? 'fill' : 'stroke'), 'stroke-width': 1.8, 'stroke-dasharray': line.dash};
        return svg('g', {}, svg('line', {x1: 46, x2: 68, y1: 274 + 16 * k, y2: 274 + 16 * k, ...stroke}),
          svg('text', {x: 74, y: 278 + 16 * k, 'font-size': 11, fill: quiet.fill}, line.label));
      });
      const height = 264 + 16 * rows.length + (rows.length ? 8 : 0);
      const paper = svg('rect', {width: 400, height, fill: ink.backgroundColor});
      const head = svg('text', {x: 4, y: 18, 'font-size': 13, 'font-weight': 600, fill: ink.color}, title);
      const body = svg('g', {transform: 'translate(0 24)'}, ...copy.childNodes);
      const size = {viewBox: `0 0 400 ${height}`, width: 800, height: 2 * height, 'font-family': 'system-ui, Helvetica, Arial, sans-serif'};
      return new XMLSerializer().serializeToString(svg('svg', size, paper, head, body, ...rows));
    }

    csv() {
      const {lines, x} = this.data;
      const quoted = words => (/[",\n]/.test(words) ? `"${words.replaceAll('"', '""')}"` : words);
      const columns = lines.map(line => new Map(line.x.map((at, i) => [at, line.y[i] ?? ''])));
      const rows = this.xs.map(at => [at, ...columns.map(column => column.get(at) ?? '')].join(','));
      return [[x, ...lines.map(line => line.label)].map(quoted).join(','), ...rows, ''].join('\n');
    }
  }

  const save = (name, type, content) => {
    const link = document.createElement('a');
    link.href = URL.createObjectURL(new Blob([content], {type}));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };

  return {all, plots: all('figure.chart:has(.plot)').map((figure, number) => new Plot(figure, number))};
})();
