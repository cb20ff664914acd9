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

function imagePart() {
  const picker = element("input", { type: "file", accept: "image/*", hidden: true });
  const drop = element("label", { id: "drop", textContent: "Drop a picture here, or click to choose one" });
  const use = (file) => {
    drop.replaceChildren(element("img", { src: URL.createObjectURL(file), alt: "your picture" }), picker);
    predict(file, file.type || "application/octet-stream");
  };
  drop.append(picker);
  picker.onchange = () => picker.files[0] && use(picker.files[0]);
  drop.ondragover = (event) => { event.preventDefault(); drop.classList.add("over"); };
  drop.ondragleave = () => drop.classList.remove("over");
  drop.ondrop = (event) => { event.preventDefault(); drop.classList.remove("over"); if (event.dataTransfer.files[0]) use(event.dataTransfer.files[0]); };
  ask.append(drop, samples(async (reply) => use(await reply.blob())));
}

function field(column) {
  if (column.type === "categorical") return element("select", { name: column.name }, new Option("(missing)", ""), ...column.categories.map((c) => new Option(c, c)));
  if (column.type === "boolean") return element("select", { name: column.name }, new Option("(missing)", ""), new Option("true", "true"), new Option("false", "false"));
  return element("input", { name: column.name, type: "number", step: "any", placeholder: String(column.fill) });
}

function tablePart() {
  const form = element("form", {}, ...about.input.columns.map((column) => element("label", { textContent: column.name }, field(column))), element("button", { className: "go", textContent: "Predict" }));
  const read = (column) => {
    const text = form.elements.namedItem(column.name).value;
    if (text === "") return null;
    return column.type === "numeric" ? Number(text) : column.type === "boolean" ? text === "true" : text;
  };
  form.onsubmit = (event) => {
    event.preventDefault();
    predict(JSON.stringify({ row: Object.fromEntries(about.input.columns.map((c) => [c.name, read(c)])) }), "application/json");
  };
  const fill = async (reply) => {
    const row = await reply.json();
    for (const column of about.input.columns) form.elements.namedItem(column.name).value = row[column.name] ?? "";
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

({ image: imagePart, table: tablePart, tensor: tensorPart, text: textPart })[about.input.type]();
