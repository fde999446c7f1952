'use strict';
// The page is complete without this script. It adds: a cursor on charts, sorting, filters, a copy button, links that open.
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const svg = (name, attributes) => {
    const node = document.createElementNS('http://www.w3.org/2000/svg', name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    return node;
  };

  // Charts: pointer or arrow keys move a cursor to the nearest recorded point; the box names every line's value there.
  for (const plot of all('.plot')) {
    let data = null;
    let at = -1;
    const drawing = plot.querySelector('svg');
    const cursor = plot.querySelector('.cursor');
    const tip = plot.querySelector('.tip');
    const load = () => {
      if (data) return;
      data = JSON.parse(plot.querySelector('script').textContent);
      data.xs = [...new Set(data.lines.flatMap(line => line.points.map(point => point[0])))].sort((a, b) => a - b);
    };
    const nearest = (points, x) => points.reduce((best, p) => (!best || Math.abs(p[0] - x) < Math.abs(best[0] - x) ? p : best), null);
    const show = x => {
      const hits = data.lines.map(line => [line, nearest(line.points, x)]).filter(([, p]) => p && Math.abs(p[0] - x) < 12);
      if (!hits.length) return;
      cursor.replaceChildren(svg('line', {x1: x, x2: x, y1: data.top, y2: data.bottom}));
      const head = document.createElement('span');
      head.textContent = hits[0][1][2].toLocaleString('en').replaceAll(',', '\u202f');
      const rows = hits.slice(0, 14).map(([line, p]) => {
        cursor.append(svg('circle', {cx: p[0], cy: p[1], r: 3.2, style: `--c:var(--line-${line.colour})`}));
        const row = document.createElement('span');
        const dot = document.createElement('b');
        dot.style.setProperty('--c', `var(--line-${line.colour})`);
        row.append(dot, `${line.label}: ${data.percent ? (100 * p[3]).toFixed(2) + ' %' : +p[3].toPrecision(4)}`);
        return row;
      });
      tip.replaceChildren(head, ...rows);
      tip.style.left = x < 200 ? `${x / 4 + 4}%` : '';
      tip.style.right = x < 200 ? '' : `${(400 - x) / 4 + 4}%`;
    };
    const move = step => {
      load();
      const from = at < 0 && step < 0 ? data.xs.length : at;
      at = Math.max(0, Math.min(data.xs.length - 1, from + step));
      show(data.xs[at]);
    };
    const clear = () => { at = -1; cursor.replaceChildren(); tip.replaceChildren(); };
    drawing.addEventListener('pointermove', event => {
      load();
      const box = drawing.getBoundingClientRect();
      const x = (event.clientX - box.left) / box.width * 400;
      const found = nearest(data.xs.map(v => [v]), x);
      if (found) { at = data.xs.indexOf(found[0]); show(found[0]); }
    });
    plot.addEventListener('pointerleave', clear);
    plot.addEventListener('blur', clear);
    plot.addEventListener('keydown', event => {
      const steps = {ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -1e9, End: 1e9};
      if (event.key in steps) { move(steps[event.key]); event.preventDefault(); }
      if (event.key === 'Escape') clear();
    });
  }

  // Tables: a button in every column head sorts; numbers by value, missing ones last.
  for (const table of all('table.sortable')) {
    const body = table.tBodies[0];
    all('thead th', table).forEach((head, column) => {
      const button = document.createElement('button');
      button.type = 'button';
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener('click', () => {
        const up = head.getAttribute('aria-sort') !== 'ascending';
        all('thead th', table).forEach(other => other.removeAttribute('aria-sort'));
        head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
        const key = row => {
          const cell = row.cells[column];
          const exact = cell.dataset.value ?? (cell.classList.contains('missing') ? '' : cell.textContent);
          return exact === '' || exact === 'nan' || isNaN(exact) ? exact : Number(exact);
        };
        const rank = value => (value === '' || value === 'nan' ? 2 : typeof value === 'string' ? 1 : 0);
        const order = (a, b) => {
          const [x, y] = [key(a), key(b)];
          if (rank(x) !== rank(y)) return rank(x) - rank(y);
          return (up ? 1 : -1) * (typeof x === 'number' ? x - y : x.localeCompare(y, 'en', {numeric: true}));
        };
        body.append(...[...body.rows].sort(order));
      });
    });
  }

  // Filters: over the cards of a gallery (verdict and task), or over the rows of a table (any cell).
  const filter = (root, items, matches) => {
    const form = root.querySelector('form');
    const output = form.querySelector('output');
    const apply = () => {
      const words = form.querySelector('.find').value.trim().toLowerCase();
      const verdict = form.querySelector('input[type=radio]:checked')?.value ?? 'all';
      const shown = items.filter(item => { item.hidden = !matches(item, words, verdict); return !item.hidden; });
      output.textContent = shown.length < items.length ? `${shown.length} of ${items.length} shown` : '';
    };
    form.addEventListener('input', apply);
    form.addEventListener('submit', event => event.preventDefault());
    apply();
  };
  for (const gallery of all('.gallery')) {
    filter(gallery, all('.card', gallery), (card, words, verdict) =>
      (verdict === 'all' || card.dataset.solved === verdict) && (card.dataset.task ?? '').toLowerCase().includes(words));
  }
  for (const box of all('.filterable')) {
    filter(box, all('tbody tr', box), (row, words) => words.split(/\s+/).every(word => row.textContent.toLowerCase().includes(word)));
  }

  for (const button of all('.copy')) {
    if (!navigator.clipboard) continue;
    button.hidden = false;
    button.addEventListener('click', async () => {
      await navigator.clipboard.writeText(button.parentElement.querySelector('code').textContent);
      button.textContent = 'Copied';
      setTimeout(() => { button.textContent = 'Copy'; }, 1500);
    });
  }

  // A link to a run opens the folded part it points into.
  const reveal = () => {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    for (let node = target; node; node = node.parentElement) if (node.tagName === 'DETAILS') node.open = true;
    if (target) target.scrollIntoView();
  };
  addEventListener('hashchange', reveal);
  reveal();
})();
