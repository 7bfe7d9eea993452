// The page: sends the text to POST predict and shows the answer.
// Labels, tokens, texts and the name of the model come from other people's files:
// they reach the page through textContent only.
"use strict";

const english = {
  text: "Text",
  first: "First text",
  second: "Second text",
  predict: "Predict",
  keys: "or Ctrl+Enter",
  same: "The same call",
  classification: "Text classification",
  pairs: "Classification of text pairs",
  fill_mask: "Fill in the masked word",
  facts: (task, labels, tokens) =>
    [task, labels ? `${labels} labels` : "", `reads up to ${tokens} tokens`],
  hint: "Put the mask token of the model, [MASK] for most, in place of a word.",
  sample: "Your text",
  maskSample: "Paris is the [MASK] of France.",
  running: "Running…",
  empty: "Type a text first.",
  truncated: (tokens) => `The text is longer than ${tokens} tokens: the model read only part of it.`,
  more: (count) => `and ${count} more`,
  gap: (number) => `Mask ${number}`,
  noMask: "There is no mask token in this text.",
  gone: "The server does not answer. Is it still running?",
  strange: (status) => `The server gave an answer that this page cannot read (${status}).`,
};
const chinese = {
  text: "文本",
  first: "第一段文本",
  second: "第二段文本",
  predict: "预测",
  keys: "或按 Ctrl+Enter",
  same: "用命令行或代码做同样的调用",
  classification: "文本分类",
  pairs: "文本对分类",
  fill_mask: "填补被遮盖的词",
  facts: (task, labels, tokens) =>
    [task, labels ? `${labels} 个标签` : "", `最多读取 ${tokens} 个词元`],
  hint: "在要猜的词的位置写上模型的遮盖词元，多数模型是 [MASK]。",
  sample: "你的文本",
  maskSample: "北京是中国的[MASK]都。",
  running: "正在计算…",
  empty: "请先输入文本。",
  truncated: (tokens) => `文本超过 ${tokens} 个词元：模型只读了其中一部分。`,
  more: (count) => `另有 ${count} 个`,
  gap: (number) => `第 ${number} 个遮盖处`,
  noMask: "文本中没有遮盖词元。",
  gone: "服务器没有应答。它还在运行吗？",
  strange: (status) => `服务器的应答无法识别（${status}）。`,
};
const inChinese = navigator.language.toLowerCase().startsWith("zh");
const say = inChinese ? chinese : english;
const shown = 10;

const get = (id) => document.getElementById(id);
const first = get("first");
const second = get("second");
const button = document.querySelector("button");
const address = new URL("predict", location.href).href;
let info = { name: "", task: "classification", labels: [], max_length: 0, texts_per_row: 1 };
let busy = false;

function make(tag, className, text) {
  const element = document.createElement(tag);
  element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function percent(value) {
  const format = new Intl.NumberFormat(inChinese ? "zh" : "en", {
    style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1,
  });
  return value > 0 && value < 0.0005 ? `< ${format.format(0.001)}` : format.format(value);
}

// pairs: [[label, probability], ...] -> the likeliest ones as labelled bars
function bars(pairs) {
  const list = make("ol", "bars");
  const sorted = [...pairs].sort((one, other) => other[1] - one[1]);
  for (const [label, value] of sorted.slice(0, shown)) {
    const item = make("li", "");
    const name = make("span", "label", label || "∅");
    name.dir = "auto";
    const track = make("div", "track");
    const bar = make("div", "bar");
    bar.style.width = `${100 * value}%`;
    track.append(bar);
    item.append(name, make("span", "value", percent(value)), track);
    list.append(item);
  }
  const rest = sorted.length - shown;
  return rest > 0 ? [list, make("p", "note", say.more(rest))] : [list];
}

function show(...elements) {
  get("answer").replaceChildren(...elements);
}

function headline(text) {
  const element = make("p", "headline", text || "∅");
  element.dir = "auto";
  return element;
}

// A text with places marked: [{start, end, type}, ...], counted in characters as Python counts.
function marked(text, places) {
  const characters = [...text];
  const element = make("p", "text", "");
  element.dir = "auto";
  let done = 0;
  for (const place of [...places].sort((one, other) => one.start - other.start)) {
    element.append(characters.slice(done, place.start).join(""));
    const mark = make("mark", "", characters.slice(place.start, place.end).join(""));
    if (place.type) mark.append(make("sub", "", place.type));
    element.append(mark);
    done = place.end;
  }
  element.append(characters.slice(done).join(""));
  return element;
}

function showPrediction(prediction) {
  const parts = [];
  if (info.task === "fill_mask") {
    if (prediction.text !== undefined) parts.push(headline(prediction.text));
    prediction.masks.forEach((tokens, index) => {
      if (prediction.masks.length > 1) parts.push(make("h3", "", say.gap(index + 1)));
      parts.push(...bars(tokens.map((each) => [each.token, each.probability])));
    });
    if (prediction.masks.length === 0) parts.push(make("p", "note", say.noMask));
  } else if (Array.isArray(prediction.entities)) {
    parts.push(marked(prediction.text ?? first.value, prediction.entities));
    const found = prediction.entities.map((each) => [`${each.text} · ${each.type}`, each.score]);
    parts.push(...bars(found));
  } else if (prediction.answer !== undefined) {
    parts.push(headline(prediction.answer));
    if (prediction.start !== null) {
      parts.push(marked(second.value, [{ ...prediction, type: "" }]));
    }
  } else if (prediction.probabilities && !Array.isArray(prediction.probabilities)) {
    parts.push(headline(prediction.label ?? prediction.labels.join(", ")));
    parts.push(...bars(Object.entries(prediction.probabilities)));
  } else if (prediction.score !== undefined) {
    parts.push(headline(String(Number(prediction.score.toPrecision(4)))));
  } else {
    parts.push(make("pre", "", JSON.stringify(prediction, null, 1)));
  }
  if (prediction.truncated) parts.push(make("p", "note", say.truncated(info.max_length)));
  show(...parts);
}

function row() {
  return info.texts_per_row === 2 ? [first.value, second.value] : first.value;
}

// In both samples the JSON is also valid in the language around it: Python reads every
// escape that JSON.stringify writes, and the shell is given it between single quotes.
function showCalls() {
  const sample = info.task === "fill_mask" ? say.maskSample : say.sample;
  const texts = [row()].map((each) =>
    Array.isArray(each) ? each.map((text) => text || sample) : each || sample);
  const body = JSON.stringify({ texts });
  const quoted = `'${body.replaceAll("'", "'\\''")}'`;
  get("curl").textContent =
    `curl ${address} \\\n  -H 'Content-Type: application/json' \\\n  -d ${quoted}`;
  get("python").textContent = [
    "import json, urllib.request",
    "",
    `texts = ${JSON.stringify(texts)}`,
    "request = urllib.request.Request(",
    `    "${address}",`,
    '    json.dumps({"texts": texts}).encode(),',
    '    {"Content-Type": "application/json"},',
    ")",
    "with urllib.request.urlopen(request) as answer:",
    '    print(json.load(answer)["predictions"])',
  ].join("\n");
}

async function send() {
  if (busy) return;
  const texts = [row()];
  if (texts.flat().some((text) => text.trim() === "")) {
    show(make("p", "wrong", say.empty));
    return;
  }
  busy = true;
  button.setAttribute("aria-disabled", "true");
  // A quick answer should not make the page flicker.
  const wait = setTimeout(() => show(make("p", "note", say.running)), 150);
  let response = null;
  try {
    response = await fetch(address, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ texts }),
    });
    const answer = await response.json();
    clearTimeout(wait);
    if (response.ok) showPrediction(answer.predictions[0]);
    else showError(answer.error);
  } catch {
    clearTimeout(wait);
    show(make("p", "wrong", response === null ? say.gone : say.strange(response.status)));
  } finally {
    busy = false;
    button.removeAttribute("aria-disabled");
  }
}

function showError(error) {
  const parts = [make("p", "wrong", error.message)];
  if (error.fix) parts.push(make("p", "note", error.fix));
  show(...parts);
}

async function start() {
  document.documentElement.lang = inChinese ? "zh" : "en";
  for (const element of document.querySelectorAll("[data-say]")) {
    element.textContent = say[element.dataset.say];
  }
  try {
    const response = await fetch("info");
    if (!response.ok) throw new Error(response.status);
    info = await response.json();
  } catch {
    show(make("p", "wrong", say.gone));
  }
  const pairs = info.texts_per_row === 2;
  const task = pairs ? say.pairs : say[info.task] ?? info.task;
  document.title = info.name || "bert";
  get("name").textContent = info.name || "bert";
  get("facts").textContent =
    say.facts(task, info.labels.length, info.max_length).filter(Boolean).join(" · ");
  if (pairs) {
    get("second-field").hidden = false;
    document.querySelector("label[for=first]").textContent = say.first;
  }
  if (info.task === "fill_mask") {
    get("hint").textContent = say.hint;
    get("hint").hidden = false;
  }
  showCalls();
}

get("form").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
get("form").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
get("form").addEventListener("input", showCalls);
start();
