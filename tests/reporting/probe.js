// Works the controls of the page in the frame and writes what they did into #probe, as JSON.
const frame = document.querySelector('iframe');
const answer = out => {
  const probe = document.createElement('pre');
  probe.id = 'probe'; probe.textContent = JSON.stringify({...out, errors: frame.contentWindow.errors});
  document.body.append(probe);
};
frame.addEventListener('load', async () => {
  const doc = frame.contentDocument, view = frame.contentWindow, out = {};
  const all = (s, root = doc) => [...root.querySelectorAll(s)];
  const input = node => node.dispatchEvent(new Event('input', {bubbles: true}));
  const press = (node, key) => node.dispatchEvent(new KeyboardEvent('keydown', {key}));
  out.overflow = doc.documentElement.scrollWidth - doc.documentElement.clientWidth;
  out.height = doc.documentElement.scrollHeight;
  const boxes = '.tiles > div, .facts, .verdict, .chart, figcaption, .legend, .about, .constants, summary, .card, h1, h2, h3';
  out.cut = all(boxes)
    .filter(node => node.scrollWidth > node.clientWidth + 1).map(node => node.textContent.slice(0, 80));
  out.outside = all('.plot > svg text').filter(node => {
    const box = node.getBBox();
    return box.width && (box.x < 0 || box.x + box.width > 400 || box.y < 0 || box.y + box.height > 240);
  }).map(node => node.textContent);
  const words = doc.createTreeWalker(doc.body, NodeFilter.SHOW_TEXT);
  out.broken = [];
  while (words.nextNode()) {
    const node = words.currentNode;
    if (node.parentElement.closest('pre, .command, script, style, svg')) continue;
    for (const word of node.data.matchAll(/[\p{L}\d_]+/gu)) {
      const range = doc.createRange();
      range.setStart(node, word.index); range.setEnd(node, word.index + word[0].length);
      if (new Set([...range.getClientRects()].map(box => Math.round(box.top))).size > 1) out.broken.push(word[0]);
    }
  }
  // The script draws by the rules that the charts were drawn by.
  const drawn = figure => [
    ...all('.axes text', figure).map(text => text.textContent),
    ...all('.curve path', figure).flatMap(path => path.getAttribute('d').split(/[ML ]/)),
  ];
  const same = (a, b) => a.length === b.length && a.every((x, i) => x === b[i] || Math.abs(x - b[i]) < 0.11);  // of 400
  const figures = all('figure.chart:has(.plot)');
  const before = figures.map(drawn);
  figures.forEach(figure => { press(figure.querySelector('.plot'), 'End'); });
  const changed = figures.filter((figure, i) => !same(drawn(figure), before[i]));
  out.changed = changed.map(figure => figure.querySelector('figcaption').textContent);
  const figure = figures.find(f => f.querySelector('.legend'));
  const plot = figure.querySelector('.plot');
  out.tip = plot.querySelector('.tip').textContent;
  press(plot, '+');
  const marks = () => all('.axes text', plot).map(t => t.textContent).join();
  out.zoomed = [marks(), figure.querySelector('.reset').hidden];
  press(plot, '0');
  out.whole = [same(drawn(figure), before[figures.indexOf(figure)]), figure.querySelector('.reset').hidden];
  press(plot, 'Escape');
  out.cleared = plot.querySelector('.tip').textContent;
  const blobs = [];
  view.URL.createObjectURL = blob => { blobs.push(blob); return 'blob:x'; };
  view.HTMLAnchorElement.prototype.click = () => {};
  const tool = name => all('.tools button', figure).find(b => b.textContent === name);
  tool('SVG').click(); tool('CSV').click();
  [out.svg, out.csv] = await Promise.all(blobs.map(blob => blob.text()));
  const switches = all('.legend button', figure);
  switches[0].click();
  out.hidden = all('.curve', figure).map(c => c.style.display);
  switches[0].click();
  tool('log').click();
  out.log = [marks(), tool('log').getAttribute('aria-pressed')];
  const gallery = doc.querySelector('.gallery');
  if (gallery) {
    const shown = () => all('.card', gallery).filter(c => !c.hidden).length;
    out.first = shown();
    const every = gallery.querySelector('.every');
    if (every) { every.checked = true; input(gallery.querySelector('form')); }
    out.every = shown();
    gallery.querySelector('input[value=solved]').checked = true; input(gallery.querySelector('form'));
    out.solved = shown();
    gallery.querySelector('input[value=all]').checked = true;
    gallery.querySelector('.find').value = gallery.querySelector('.card').dataset.task;
    input(gallery.querySelector('form'));
    out.found = shown();
  }
  const box = doc.querySelector('.filterable');
  if (box) {
    const column = [...box.querySelectorAll('thead th')].findIndex(th => th.textContent.startsWith('best'));
    const head = box.querySelectorAll('thead th')[column];
    const order = () => [...box.querySelectorAll('tbody tr')].map(r => r.cells[0].textContent);
    head.querySelector('button').click(); out.ascending = order(); out.sort = head.getAttribute('aria-sort');
    head.querySelector('button').click(); out.descending = order();
    box.querySelector('.find').value = 'sinkhorn complete'; input(box.querySelector('form'));
    out.filtered = [...box.querySelectorAll('tbody tr')].filter(r => !r.hidden).map(r => r.cells[0].textContent);
  }
  answer(out);
});
