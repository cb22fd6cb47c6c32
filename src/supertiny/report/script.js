(() => {
  "use strict";
  const { titles, rows } = JSON.parse(document.getElementById("data").textContent);
  const names = Object.keys(titles);
  const part = (id) => document.getElementById(id);
  const [by, fn, q, split, list, more, found] = ["by", "fn", "q", "split", "list", "more", "found"].map(part);
  const AT_ONCE = 20;
  let shown = AT_ONCE;

  // Texts are only ever set as text, never as markup.
  const make = (tag, kind, text) => {
    const node = document.createElement(tag);
    if (kind) node.className = kind;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const option = (select, value, text) => {
    const node = make("option", "", text);
    node.value = value;
    select.append(node);
  };
  option(by, "", "anyone");
  names.forEach((name) => option(by, name, titles[name]));
  by.value = ["artifact", "student"].find((name) => names.includes(name)) || "";
  option(fn, "", "all");
  [...new Set(rows.map((row) => row.fn))].sort().forEach((name) => option(fn, name, name));

  const plain = (value) => JSON.stringify(value);
  const asText = (call) =>
    `${call.name}(${Object.entries(call.arguments).map(([key, value]) => `${key}=${plain(value)}`).join(", ")})`;
  rows.forEach((row) => {
    const said = Object.values(row.answers).flatMap((answer) => (answer.calls || []).map(asText));
    row.all = [row.text, row.id, ...row.gold.map(asText), ...said].join("\n").toLocaleLowerCase();
    row.differ = new Set(Object.values(row.answers).map((answer) => answer.exact)).size > 1;
  });

  const fits = (row) =>
    (!by.value || !row.answers[by.value].exact) &&
    (!fn.value || row.fn === fn.value) &&
    (!split.checked || row.differ) &&
    row.all.includes(q.value.trim().toLocaleLowerCase());

  // A call as code; what differs from the right call is marked.
  const written = (call, gold) => {
    const code = make("code");
    const right = gold && gold.find((one) => one.name === call.name);
    const put = (text, differs) => code.append(differs ? make("mark", "", text) : text);
    put(call.name, gold && !right);
    put("(");
    Object.entries(call.arguments).forEach(([key, value], place) => {
      if (place) put(", ");
      put(`${key}=${plain(value)}`, right && plain(right.arguments[key]) !== plain(value));
    });
    put(")");
    const lacking = right ? Object.keys(right.arguments).filter((key) => !(key in call.arguments)) : [];
    if (lacking.length) {
      put(" ");
      put(`lacks ${lacking.join(", ")}`, true);
    }
    return code;
  };
  const calls = (cell, listed, gold) => {
    if (!listed || !listed.length) cell.append(gold && gold.length ? make("mark", "", "no call") : make("em", "", "no call"));
    (listed || []).forEach((call, place) => {
      if (place) cell.append(make("br"));
      cell.append(written(call, gold));
    });
  };
  const line = (body, name, sign, fill) => {
    const row = make("tr", name ? `m-${name}` : "");
    const head = make("th");
    head.scope = "row";
    if (name) head.append(make("i", "chip"));
    head.append(name ? titles[name] : "right answer");
    const mark = make("td", `sign ${sign === "✓" ? "yes" : "no"}`, sign);
    if (sign) mark.setAttribute("aria-label", sign === "✓" ? "right" : "wrong");
    const cell = make("td");
    cell.dir = "auto";
    fill(cell);
    row.append(head, mark, cell);
    body.append(row);
  };
  const drawn = (row) => {
    const box = make("article", "case");
    if (row.before) box.append(make("p", "before", row.before.join("\n")));
    const head = make("h4", "", row.text);
    head.dir = "auto";
    const body = make("tbody");
    line(body, "", "", (cell) => calls(cell, row.gold));
    names.forEach((name) => {
      const answer = row.answers[name];
      line(body, name, answer.exact ? "✓" : "✗", (cell) => {
        if (answer.exact) cell.className = "right";
        calls(cell, answer.calls, answer.exact ? undefined : row.gold);
        if (answer.exact) return;
        const words = !(answer.calls || []).length && (answer.raw || answer.text);
        if (words) cell.append(make("small", "", `wrote: ${words.slice(0, 400)}`));
        if (answer.reason) cell.append(make("small", "", `verifier: ${answer.reason}`));
        if (answer.confidence !== undefined) cell.append(make("small", "", `confidence ${answer.confidence.toFixed(2)}`));
      });
    });
    const table = make("table");
    table.append(body);
    box.append(head, table);
    return box;
  };
  const draw = () => {
    const kept = rows.filter(fits);
    list.replaceChildren(...kept.slice(0, shown).map(drawn));
    found.textContent = kept.length === 1 ? "1 request" : `${kept.length} requests`;
    more.hidden = kept.length <= shown;
  };
  const again = () => {
    shown = AT_ONCE;
    draw();
  };
  [by, fn, split].forEach((control) => control.addEventListener("change", again));
  q.addEventListener("input", again);
  document.querySelector(".filters").addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", () => {
    shown += AT_ONCE;
    draw();
  });
  draw();
})();
