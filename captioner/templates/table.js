"use strict";
// All captions stand in the page, compressed, and the pictures of some. This finds and sorts them,
// and shows a page of the table and of the gallery at a time.
(async () => {
  const by = (id) => document.getElementById(id);
  const form = by("finder");
  const bytes = Uint8Array.from(atob(by("packed").textContent.trim()), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const data = JSON.parse(await new Response(stream).text());
  const textOf = (row) => (data.caption[row] < 0 ? null : data.texts[data.caption[row]]);
  const errorOf = (row) => (data.error[row] < 0 ? null : data.reasons[data.error[row]]);
  const wordsOf = (row) => (data.caption[row] < 0 ? null : data.words[data.caption[row]]);
  // An accent may be a character of its own, as in file names of macOS.
  const plain = (text) => text.normalize("NFC").toLowerCase();
  const lower = data.texts.map(plain);
  const reasons = data.reasons.map(plain);
  const ids = data.id.map(plain);
  const all = [...data.id.keys()];
  const cards = new Map(data.gallery.map((row, place) => [row, by("cards").children[place]]));
  const showCards = pager("cards", 12, (row) => cards.get(row));
  const showTable = pager("found", 25, line);

  const between = (value, low, high) =>
    (low === "" || (value !== null && value >= low)) && (high === "" || (value !== null && value <= high));

  function find() {
    const wanted = plain(form.elements.q.value.trim());
    const parts = wanted ? wanted.split(/\s+/) : [];
    // Words are looked for once in each distinct caption, however many images it stands on.
    const hits = parts.map((part) => lower.map((text) => text.includes(part)));
    const whys = parts.map((part) => reasons.map((text) => text.includes(part)));
    const matches = (row) =>
      parts.every((part, n) => ids[row].includes(part) || hits[n][data.caption[row]] || whys[n][data.error[row]]);
    const { state, low, high, shortest, longest, order } = form.elements;
    const score = (value) => (value === "" ? "" : Math.round(100 * Number(value)));
    const lowest = score(low.value), highest = score(high.value);
    const rows = all.filter(
      (row) =>
        matches(row) &&
        (state.value === "all" || (state.value === "failed") === (data.error[row] >= 0)) &&
        between(data[form.dataset.score][row], lowest, highest) &&
        between(wordsOf(row), shortest.value === "" ? "" : Number(shortest.value), longest.value === "" ? "" : Number(longest.value)),
    );
    const [key, way] = order.value.split(" ");
    if (key !== "id") {
      const value = key === "words" ? wordsOf : (row) => data[key][row];
      const sign = way === "down" ? -1 : 1;
      rows.sort((a, b) => {
        const x = value(a), y = value(b);
        if (x === null || y === null) return (x === null) - (y === null);  // what has none comes last
        return sign * (x - y) || a - b;
      });
    }
    showCards(rows.filter((row) => cards.has(row)));
    showTable(rows);
  }

  // Shows rows in the list of this id, so many at a time, each as what `made` makes of it.
  function pager(id, size, made) {
    const list = by(id), bar = by(`${id}-pager`);
    const [before, after] = bar.querySelectorAll("button"), said = bar.querySelector("[role=status]");
    const number = (value) => value.toLocaleString("en");
    let rows = [], page = 0;

    function show() {
      const last = Math.max(0, Math.ceil(rows.length / size) - 1);
      const focused = document.activeElement;
      list.replaceChildren(...rows.slice(page * size, (page + 1) * size).map(made));
      said.textContent = `${said.dataset.what} found: ${number(rows.length)}; page ${number(page + 1)} of ${number(last + 1)}`;
      before.disabled = page === 0;
      after.disabled = page === last;
      // A button that is disabled loses the focus, and the keyboard its place in the page.
      if (focused === before && before.disabled) after.focus();
      if (focused === after && after.disabled) before.focus();
    }

    function turn(step) {
      page += step;
      show();
      const shown = bar.previousElementSibling;
      if (shown.getBoundingClientRect().top < 0) shown.scrollIntoView();
    }

    before.addEventListener("click", () => turn(-1));
    after.addEventListener("click", () => turn(1));
    return (found) => {
      rows = found;
      page = 0;
      show();
      bar.hidden = false;
    };
  }

  function cell(row, tag, text, name, label) {
    const made = document.createElement(tag);
    made.textContent = text;  // never as HTML: captions and names are anybody's
    if (name) made.className = name;
    if (tag === "th") made.scope = "row";
    if (label) made.dataset.label = label;
    row.append(made);
  }

  function line(row) {
    const made = document.createElement("tr");
    const score = (value) => (value === null ? "" : (value / 100).toFixed(2));
    cell(made, "th", textOf(row) ?? errorOf(row) ?? "", textOf(row) === null ? "text failed" : "text");
    cell(made, "td", score(data.bleu_4[row]), "", "BLEU-4");
    cell(made, "td", score(data.cider[row]), "", "CIDEr-D");
    cell(made, "td", score(data.confidence[row]), "", "confidence");
    cell(made, "td", wordsOf(row) ?? "", "", "words");
    cell(made, "td", data.id[row], "text id");
    return made;
  }

  let waiting;
  form.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(find, 120);  // not at every key
  });
  form.addEventListener("submit", (event) => { event.preventDefault(); find(); });
  form.addEventListener("reset", () => setTimeout(find));
  form.hidden = false;
  find();
})().catch((error) => {
  const broken = document.getElementById("broken");
  broken.textContent = `Captions cannot be searched: ${error}`;
  broken.hidden = false;
});
