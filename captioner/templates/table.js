"use strict";
// All captions stand in the page, compressed. This finds, sorts and shows some of them at a time.
(async () => {
  const PAGE = 25;
  const by = (id) => document.getElementById(id);
  const form = by("finder"), body = by("found"), said = by("counted");
  const bytes = Uint8Array.from(atob(by("packed").textContent.trim()), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const data = JSON.parse(await new Response(stream).text());
  const textOf = (row) => (data.caption[row] < 0 ? null : data.texts[data.caption[row]]);
  const errorOf = (row) => (data.error[row] < 0 ? null : data.reasons[data.error[row]]);
  const wordsOf = (row) => (data.caption[row] < 0 ? null : data.words[data.caption[row]]);
  const lower = data.texts.map((text) => text.toLowerCase());
  const ids = data.id.map((id) => id.toLowerCase());
  const empty = [...data.id.keys()];
  let rows = empty, page = 0;

  const between = (value, low, high) =>
    (low === "" || (value !== null && value >= low)) && (high === "" || (value !== null && value <= high));

  function find() {
    const wanted = form.elements.q.value.trim().toLowerCase();
    const parts = wanted ? wanted.split(/\s+/) : [];
    // Words are looked for once in each distinct caption, however many images it stands on.
    const hits = parts.map((part) => lower.map((text) => text.includes(part)));
    const matches = (row) =>
      parts.every((part, n) => ids[row].includes(part) || (data.caption[row] >= 0 && hits[n][data.caption[row]]));
    const { state, low, high, shortest, longest, order } = form.elements;
    const score = (value) => (value === "" ? "" : Math.round(100 * Number(value)));
    const lowest = score(low.value), highest = score(high.value);
    rows = empty.filter(
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
    page = 0;
    show();
  }

  function cell(row, tag, text, name, label) {
    const made = document.createElement(tag);
    made.textContent = text;  // never as HTML: captions and names are anybody's
    if (name) made.className = name;
    if (tag === "th") made.scope = "row";
    if (label) made.dataset.label = label;
    row.append(made);
  }

  function show() {
    const pages = Math.max(1, Math.ceil(rows.length / PAGE));
    page = Math.min(Math.max(0, page), pages - 1);
    const number = (value) => (value === null ? "" : (value / 100).toFixed(2));
    body.replaceChildren(
      ...rows.slice(page * PAGE, (page + 1) * PAGE).map((row) => {
        const made = document.createElement("tr");
        cell(made, "th", textOf(row) ?? errorOf(row) ?? "", textOf(row) === null ? "text failed" : "text");
        cell(made, "td", number(data.bleu_4[row]), "", "BLEU-4");
        cell(made, "td", number(data.cider[row]), "", "CIDEr-D");
        cell(made, "td", number(data.confidence[row]), "", "confidence");
        cell(made, "td", wordsOf(row) ?? "", "", "words");
        cell(made, "td", data.id[row], "text id");
        return made;
      }),
    );
    said.textContent = `${rows.length.toLocaleString("en")} found; page ${(page + 1).toLocaleString("en")} of ${pages.toLocaleString("en")}`;
    by("before").disabled = page === 0;
    by("after").disabled = page === pages - 1;
  }

  let waiting;
  form.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(find, 120);  // not at every key
  });
  form.addEventListener("submit", (event) => { event.preventDefault(); find(); });
  form.addEventListener("reset", () => setTimeout(find));
  by("before").addEventListener("click", () => { page -= 1; show(); });
  by("after").addEventListener("click", () => { page += 1; show(); });
  form.hidden = false;
  find();
})().catch((error) => {
  document.getElementById("counted").textContent = `The table cannot be shown: ${error}`;
});
