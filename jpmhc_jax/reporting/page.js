// The page is complete without this script. It adds: sorting, filters, a copy button, links that open what they lead to.
(() => {
  const {all} = JPMHC;

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

  // Filters: over the cards of a gallery (verdict and task), or over the rows of a table (any cell). Of a gallery's cards
  // that match, the first few are shown until a reader asks for all.
  const filter = (root, items, matches) => {
    const form = root.querySelector('form');
    const output = form.querySelector('output');
    const limit = Number(root.dataset.shown ?? Infinity);
    const apply = () => {
      const words = form.querySelector('.find').value.trim().toLowerCase();
      const verdict = form.querySelector('input[type=radio]:checked')?.value ?? 'all';
      const most = form.querySelector('.every')?.checked ? Infinity : limit;
      const hits = items.filter(item => matches(item, words, verdict));
      const shown = new Set(hits.slice(0, most));
      for (const item of items) item.hidden = !shown.has(item);
      output.textContent = shown.size < items.length ? `${shown.size} of ${items.length} shown` : '';
    };
    root.classList.add('live');
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
      await navigator.clipboard.writeText(button.parentElement.querySelector('code').textContent.trim());
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
