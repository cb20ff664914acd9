"use strict";
const about = JSON.parse(document.getElementById("about").textContent);
const ask = document.getElementById("ask"), answer = document.getElementById("answer");

function element(tag, attributes = {}, ...children) {
  const made = Object.assign(document.createElement(tag), attributes);
  made.append(...children);
  return made;
}

async function predict(body, type) {
  const started = performance.now();
  try {
    const reply = await fetch("/predict", { method: "POST", body, headers: { "Content-Type": type } });
    const content = await reply.json();
    if (!reply.ok) throw new Error(content.error);
    show(content.predictions, performance.now() - started);
  } catch (problem) {
    answer.replaceChildren(element("p", { className: "error", textContent: problem.message }));
  }
}

function show(predictions, milliseconds) {
  const parts = predictions.flatMap((one) => {
    if (!("probabilities" in one)) return [element("p", { className: "label", textContent: one.value })];
    const sorted = Object.entries(one.probabilities).sort((a, b) => b[1] - a[1]).slice(0, 12);
    return [element("p", { className: "label", textContent: one.label }), ...sorted.map(bar)];
  });
  answer.replaceChildren(...parts, element("p", { className: "quiet", textContent: milliseconds.toFixed(1) + " ms" }));
}

function bar([name, share]) {
  const fill = element("div", { className: "fill" });
  fill.style.width = (100 * share).toFixed(2) + "%";
  return element("div", { className: "row" }, element("b", { textContent: name, title: name }),
    element("div", { className: "track" }, fill), element("span", { textContent: (100 * share).toFixed(1) + " %" }));
}

function samples(use) {
  const row = element("div", { className: "samples" });
  for (let number = 0; number < about.samples; number++) {
    const button = element("button", { className: "sample", type: "button", title: "example " + (number + 1) });
    if (about.input.type === "image") button.append(element("img", { src: "/samples/" + number, alt: "example " + (number + 1) }));
    else button.textContent = "example " + (number + 1);
    button.onclick = async () => use(await fetch("/samples/" + number));
    row.append(button);
  }
  return row;
}

function dropZone(use) {
  const picker = element("input", { type: "file", accept: "image/*", hidden: true });
  const drop = element("label", { id: "drop", textContent: "Drop a picture here, or click to choose one" });
  const take = (file) => {
    drop.replaceChildren(element("img", { src: URL.createObjectURL(file), alt: "your picture" }), picker);
    use(file);
  };
  drop.append(picker);
  picker.onchange = () => picker.files[0] && take(picker.files[0]);
  drop.ondragover = (event) => { event.preventDefault(); drop.classList.add("over"); };
  drop.ondragleave = () => drop.classList.remove("over");
  drop.ondrop = (event) => { event.preventDefault(); drop.classList.remove("over"); if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]); };
  return [drop, take];
}

function imagePart() {
  const [drop, take] = dropZone((file) => predict(file, file.type || "application/octet-stream"));
  ask.append(drop, samples(async (reply) => take(await reply.blob())));
}

function field(column) {
  if (column.type === "categorical") return element("select", { name: column.name }, new Option("(missing)", ""), ...column.categories.map((c) => new Option(c, c)));
  if (column.type === "boolean") return element("select", { name: column.name }, new Option("(missing)", ""), new Option("true", "true"), new Option("false", "false"));
  return element("input", { name: column.name, type: "number", step: "any", placeholder: String(column.fill) });
}

function labelled(column) {
  return element("label", { textContent: column.name }, field(column));
}

function value(form, column) {
  const text = form.elements.namedItem(column.name).value;
  if (text === "") return null;
  return column.type === "numeric" ? Number(text) : column.type === "boolean" ? text === "true" : text;
}

function tablePart() {
  const columns = about.input.columns;
  const form = element("form", {}, ...columns.map(labelled), element("button", { className: "go", textContent: "Predict" }));
  form.onsubmit = (event) => {
    event.preventDefault();
    predict(JSON.stringify({ row: Object.fromEntries(columns.map((c) => [c.name, value(form, c)])) }), "application/json");
  };
  const fill = async (reply) => {
    const row = await reply.json();
    for (const column of columns) form.elements.namedItem(column.name).value = row[column.name] ?? "";
    form.requestSubmit();
  };
  ask.append(samples(fill), form);
}

function base64(file) {
  return new Promise((done, fail) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => fail(reader.error);
    reader.readAsDataURL(file);
  });
}

function mixedPart() {
  const { image, text, table, image_column: photo, text_column: words } = about.input;
  const columns = table ? table.columns : [], form = element("form", {}), area = element("textarea", { placeholder: words });
  let picture = Promise.resolve("");
  const [drop, take] = dropZone((file) => { picture = base64(file); });
  if (image) form.append(drop);
  if (text) form.append(element("label", { textContent: words }, area));
  form.append(...columns.map(labelled), element("button", { className: "go", textContent: "Predict" }));
  form.onsubmit = async (event) => {
    event.preventDefault();
    const row = Object.fromEntries(columns.map((c) => [c.name, value(form, c)]));
    if (image) row[photo] = await picture;
    if (text) row[words] = area.value;
    predict(JSON.stringify({ row }), "application/json");
  };
  const fill = async (reply) => {
    const row = await reply.json();
    if (image) take(new Blob([Uint8Array.from(atob(row[photo]), (c) => c.charCodeAt(0))]));
    if (text) area.value = row[words];
    for (const column of columns) form.elements.namedItem(column.name).value = row[column.name] ?? "";
    form.requestSubmit();
  };
  ask.append(samples(fill), form);
}

function tensorPart() {
  const area = element("textarea", { placeholder: "numbers of shape " + JSON.stringify(about.input.shape) });
  const form = element("form", {}, area, element("button", { className: "go", textContent: "Predict" }));
  form.onsubmit = (event) => { event.preventDefault(); predict('{"row":' + area.value + "}", "application/json"); };
  ask.append(samples(async (reply) => { area.value = await reply.text(); form.requestSubmit(); }), form);
}

function textPart() {
  const area = element("textarea", { placeholder: "a text" });
  const form = element("form", {}, area, element("button", { className: "go", textContent: "Predict" }));
  form.onsubmit = (event) => { event.preventDefault(); predict(area.value, "text/plain"); };
  ask.append(samples(async (reply) => { area.value = (await reply.json()).text; form.requestSubmit(); }), form);
}

({ image: imagePart, table: tablePart, tensor: tensorPart, text: textPart, mixed: mixedPart })[about.input.type]();
