"use strict";
// The table of rankings: filters in the address, rows from DATA, which the page has loaded.
(() => {
  const PARTS = DATA.parts, COLUMNS = DATA.columns;
  const at = Object.fromEntries(COLUMNS.map((name, i) => [name, i]));
  for (const row of DATA.rows) while (row.length < COLUMNS.length) row.push(null);
  const form = document.getElementById("filter"), output = document.getElementById("rankings");
  const across = document.getElementById("across"), said = document.getElementById("said");
  const SHOWN = 40;  // tables, and machines
  const LONGEST = 30;  // times the best time, at which bars end

  const element = (name, text, attributes = {}) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  };
  const scaled = (value, steps) => {
    if (value === null || value === undefined) return "–";
    const [scale, unit] = steps.find(([size]) => Math.abs(value) >= size) || steps[steps.length - 1];
    return `${Number((value / scale).toPrecision(3))} ${unit}`;
  };
  const seconds = (value) => scaled(value, [[1, "s"], [1e-3, "ms"], [1e-6, "µs"]]);
  const bytes = (value) => scaled(value, [[1e9, "GB"], [1e6, "MB"], [1e3, "kB"], [1, "B"]]);
  const joules = (value) => scaled(value, [[1, "J"], [1e-3, "mJ"]]);
  const share = (value, row) => (value === null ? "–" : `${(100 * value).toFixed(2)} %`
    + (row[at.labelled] === null ? "" : ` of ${row[at.labelled]} events`));
  const percent = (value) => (value === null ? "–" : `${Number((100 * value).toPrecision(2))} %`);
  const error = (value) => (value === null ? "–" : value.toExponential(1));

  // Filters: one select per part of a question, filled with the values that occur.
  const choices = (name) => {
    const i = PARTS.indexOf(name);
    const values = [...new Set(DATA.questions.map((parts) => parts[i]))];
    return values.sort((a, b) => (typeof a === "number" ? a - b : String(a).localeCompare(b)));
  };
  for (const name of PARTS) {
    const select = form.elements[name];
    select.append(element("option", "all", { value: "" }));
    for (const value of choices(name)) select.append(element("option", value, { value }));
  }
  DATA.machines.forEach(([id, name]) =>
    form.elements.machine.append(element("option", name, { value: id })));
  DATA.engines.forEach((name) =>
    form.elements.reference.append(element("option", name, { value: name })));

  const fields = [...form.elements].filter((field) => field.name);
  // Empty values are part of an address where a field is not empty initially: "all" of a size.
  const state = () => Object.fromEntries(fields.map((field) => [field.name, field.value])
    .filter(([name, value]) => value !== "" || form.elements[name].dataset.initial));
  const restore = () => {
    const wanted = new URLSearchParams(location.hash.slice(1));
    for (const field of fields) {
      const value = wanted.get(field.name);
      const options = field.options && [...field.options].map((option) => option.value);
      const initial = field.dataset.initial || "";
      const usual = options && !options.includes(initial) ? options[0] : initial;
      field.value = value !== null && (!options || options.includes(value)) ? value : usual;
    }
    // Initial values that fit nothing, on a machine with other questions, are not kept.
    if (!groups().size)
      for (const name of PARTS) if (!wanted.has(name)) form.elements[name].value = "";
  };

  const better = (one, other) => {
    const pairs = [["seconds", 1], ["memory", 1], ["accuracy", -1]]
      .filter(([name]) => one[at[name]] !== null && other[at[name]] !== null)
      .filter(([name]) => name !== "accuracy" || one[at.labelled] === other[at.labelled])
      .map(([name, sign]) => [sign * one[at[name]], sign * other[at[name]]]);
    return pairs.every(([a, b]) => a <= b) && pairs.some(([a, b]) => a < b);
  };

  const named = (row) => DATA.engines[row[at.engine]].toLowerCase()
    .includes(form.elements.search.value.trim().toLowerCase());

  // All engines of a question make its ranks and its frontier; the rows of the named ones are shown.
  const described = (question) => PARTS.map((name, i) => {
    const word = DATA.questions[question][i];
    return name === "size" ? `${word} px` : name === "batch" ? `batch ${word}` : word;
  }).join(", ");

  const ranking = (question, rows) => {
    const timed = rows.filter((row) => row[at.seconds] !== null)
      .sort((a, b) => a[at.seconds] - b[at.seconds]);
    const failed = rows.filter((row) => row[at.seconds] === null);
    const section = element("section");
    section.append(element("h3", described(question)));
    const scroll = element("div", undefined, { class: "scroll", tabindex: "0" });
    const table = element("table"), head = element("tr");
    // Columns that only some results have are left out where none has.
    const optional = [["accuracy", "accuracy", share], ["energy", "energy per event", joules],
      ["throttled", "GPU throttled", percent], ["stolen", "taken by the host", percent]]
      .filter(([name]) => rows.some((row) => row[at[name]] !== null));
    for (const [title, kind] of [["engine"], ["time", "n"], ["", "length"], ["slower", "n"],
      ["quartiles", "n"], ["memory", "n"], ["error", "n"], ...optional.map(([, title]) => [title, "n"]), ["from"]])
      head.append(title ? element("th", title, { class: kind || "", scope: "col" })
        : element("td", undefined, { class: kind }));
    table.append(element("thead"), element("tbody"));
    table.tHead.append(head);
    const longest = timed.length
      ? Math.min(timed[timed.length - 1][at.seconds], LONGEST * timed[0][at.seconds]) : 1;
    for (const row of [...timed, ...failed].filter(named)) {
      const line = table.tBodies[0].insertRow();
      const name = DATA.engines[row[at.engine]];
      const cell = line.insertCell();
      cell.className = "engine";
      cell.append(element("a", name, { href: DATA.enginePages[row[at.engine]] }));
      const ok = row[at.seconds] !== null;
      const front = ok && !timed.some((other) => better(other, row));
      if (front) cell.append(element("span", " ◆", { title: "on the frontier", class: "good" }));
      const number = (text, kind = "n") => { line.insertCell().className = kind;
        line.cells[line.cells.length - 1].textContent = text; };
      number(ok ? seconds(row[at.seconds]) : DATA.outcomes[row[at.outcome]], ok ? "n" : "n bad");
      const track = line.insertCell();
      track.className = "length";
      if (ok) track.append(element("i", undefined,
        { class: row[at.seconds] > longest ? "cut" : "", style:
          `width:${Math.min(100, Math.max(1, 100 * row[at.seconds] / longest)).toFixed(1)}%` }));
      number(ok && row !== timed[0]
        ? `${Number((row[at.seconds] / timed[0][at.seconds]).toPrecision(3))}×` : "–");
      number(ok ? `${seconds(row[at.low])} – ${seconds(row[at.high])}` : "–");
      number(bytes(row[at.memory]));
      number(error(row[at.error]));
      for (const [name, , format] of optional) number(format(row[at[name]], row));
      const source = DATA.submissions[row[at.submission]][0];
      line.insertCell().append(element("a", source, { href: `submissions/${source}.html` }));
    }
    scroll.append(table);
    section.append(scroll);
    return section;
  };

  const ratios = (question, reference) => {
    // Within one machine only: time of an engine divided by that of the reference there.
    const machines = new Map();
    for (const row of DATA.rows) {
      if (row[at.question] !== question || row[at.seconds] === null) continue;
      if (!machines.has(row[at.machine])) machines.set(row[at.machine], new Map());
      const own = machines.get(row[at.machine]), best = own.get(row[at.engine]);
      if (best === undefined || row[at.seconds] < best) own.set(row[at.engine], row[at.seconds]);
    }
    const base = DATA.engines.indexOf(reference);
    const usable = [...machines].filter(([, own]) => own.has(base) && own.size > 1);
    if (!usable.length) return null;
    const engines = [...new Set(usable.flatMap(([, own]) => [...own.keys()]))].sort(
      (a, b) => DATA.engines[a].localeCompare(DATA.engines[b]));
    const table = element("table"), head = element("tr");
    head.append(element("th", "machine", { scope: "col" }));
    for (const engine of engines)
      head.append(element("th", DATA.engines[engine], { class: "n", scope: "col" }));
    table.append(element("thead"), element("tbody"));
    table.tHead.append(head);
    if (usable.length > SHOWN)
      table.createCaption().textContent = `${usable.length} machines, of which ${SHOWN} are shown`;
    for (const [machine, own] of usable.slice(0, SHOWN)) {
      const line = table.tBodies[0].insertRow();
      const [id, name] = DATA.machines[machine];
      line.insertCell().append(element("a", name, { href: `machines/${id}.html` }));
      for (const engine of engines) {
        const cell = line.insertCell();
        cell.className = "n";
        cell.textContent = own.has(engine)
          ? `${Number((own.get(engine) / own.get(base)).toPrecision(3))}×` : "–";
      }
    }
    return table;
  };

  // The rows of each question that fits the filters, if a named engine is among them.
  const groups = () => {
    const wanted = state(), found = new Map();
    const machine = DATA.machines.findIndex(([id]) => id === wanted.machine);
    const fits = DATA.questions.map((parts) => PARTS.every((name, i) =>
      !wanted[name] || String(parts[i]) === wanted[name]));
    for (const row of DATA.rows) {
      if (row[at.machine] !== machine || !fits[row[at.question]]) continue;
      if (DATA.outcomes[row[at.outcome]] === "unavailable") continue;
      if (!found.has(row[at.question])) found.set(row[at.question], []);
      found.get(row[at.question]).push(row);
    }
    return new Map([...found].filter(([, rows]) => rows.some(named)));
  };

  const draw = () => {
    const found = groups(), machine = form.elements.machine.selectedOptions[0];
    const order = [...found.keys()].sort((a, b) => {
      const one = DATA.questions[a], other = DATA.questions[b];
      for (let i = 0; i < PARTS.length; i++) {
        if (one[i] === other[i]) continue;
        const named = [one[i], other[i]].map((value) => String(value).startsWith("network "));
        if (named[0] !== named[1]) return named[0] ? 1 : -1;  // the study's network first
        return one[i] < other[i] ? -1 : 1;
      }
      return 0;
    });
    output.replaceChildren(...order.slice(0, SHOWN).map((q) => ranking(q, found.get(q))));
    const more = order.length > SHOWN ? `, of which ${SHOWN} are shown: narrow the filters` : "";
    said.textContent = order.length
      ? `${order.length} question${order.length > 1 ? "s" : ""} with results on ${machine.text}${more}.`
      : `No result on ${machine ? machine.text : "any machine"} fits these filters: widen them.`;
    const table = order.length ? ratios(order[0], form.elements.reference.value) : null;
    across.replaceChildren(table || element("p",
      "No other machine has this question with the reference engine and another one.",
      { class: "soft" }));
    document.getElementById("compared").textContent = order.length
      ? described(order[0]) : "";
  };

  const changed = () => {
    const text = new URLSearchParams(state()).toString();
    history.replaceState(null, "", text ? `#${text}` : location.pathname);
    draw();
  };
  for (const kind of ["input", "change"]) form.addEventListener(kind, changed);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(() => {
    history.replaceState(null, "", location.pathname);
    restore();
    draw();
  }));
  addEventListener("hashchange", () => { restore(); draw(); });
  restore();
  draw();
})();
