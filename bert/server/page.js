// The page: sends texts to the routes of the server and shows what comes back.
// Labels, tokens, texts and names of models come from other people's files:
// they reach the page through textContent only.
"use strict";

// ------------------------------------------------------------------ the words of the page

const english = {
  other: "中文",
  otherTitle: "本页改用中文",
  key: "Key",
  keyHint: "The server asks for one. It stays in this page and is forgotten when you leave.",
  keyButton: "Use this key",
  keyWrong: "The server does not take this key.",
  model: "Model",
  ways: "What to do",
  send: "Ask the model",
  example: "Example",
  keys: "or Ctrl/⌘ + Enter",
  same: "The same call",
  copy: "Copy",
  copyWhat: (what) => `Copy the ${what} call`,
  copied: "Copied.",
  notCopied: "The browser does not allow it: select the text and copy it.",
  tasks: {
    classification: "text classification",
    few_shot: "text classification from few examples",
    multilabel: "several labels at once",
    regression: "a score",
    tagging: "named entities",
    question_answering: "answers that stand in a text",
    multiple_choice: "one of several choices",
    embedding: "vectors of texts",
    fill_mask: "hidden words",
  },
  labels: (count) => (count === 1 ? "1 label" : `${count} labels`),
  tokens: (count) => `reads ${count} tokens at once`,
  way: {
    predict: "Answer",
    fill: "Fill the mask",
    nearest: "Nearest texts",
    similarity: "Similarity",
    tokens: "Tokens",
  },
  field: {
    text: "Text",
    masked: "Text with a mask",
    first: "First text",
    second: "Second text",
    question: "Question",
    context: "Text that holds the answer",
    situation: "Situation (may be empty)",
    choiceQuestion: "Question (may be empty)",
    choices: "Choices, one a line",
    query: "What you look for",
    texts: "Texts, one a line",
  },
  hint: {
    masked: "Write the mask token of the model in place of a word: [MASK] for most, <mask> for some.",
  },
  examples: {
    text: "The food was good, but we waited an hour for it.",
    tagging: "On Friday Maria Keller flew from Oslo to New York to meet people from Siemens.",
    masked: "Paris is the [MASK] of France.",
    first: "A man plays the guitar.",
    second: "Somebody makes music.",
    question: "When does the last boat leave?",
    context: "Boats to the island leave every hour from eight. The last one goes at half past six.",
    situation: "Anna was tired after the long walk.",
    choiceQuestion: "What does she do?",
    choices: "She sits down.\nShe runs on.\nShe is a bridge.",
    query: "How do I get my money back?",
    texts: "Returns and refunds\nOpening hours\nOur shop is closed on Sundays.\nWe pay the price back within 14 days.",
  },
  running: "Running…",
  empty: (name) => `Nothing is typed yet: ${name}.`,
  fewChoices: "Two choices are needed, each on a line of its own.",
  windows: (windows, tokens) =>
    `The text is longer than the ${tokens} tokens that the model reads at once. It was read whole, in ${windows} overlapping parts.`,
  unread: "A part of what you typed was not read: it is too long for the model.",
  more: (count) => `and ${count} more`,
  gap: (number) => `Mask ${number}`,
  noEntities: "The model finds no entity in this text.",
  noLabels: "No label applies.",
  noAnswer: "The text does not answer this question.",
  noAnswerRow: "no answer",
  score: (value) => `Score: ${value}`,
  similar: (value) => `Similarity: ${value}`,
  similarNote: "1 means the same, 0 unrelated.",
  likeness: "likeness",
  counted: (count) => (count === 1 ? "1 token" : `${count} tokens`),
  raw: "The answer as JSON",
  gone: "The server does not answer. Is it still running?",
  strange: (status) => `The server gave an answer that this page cannot read (${status}).`,
  busy: (seconds) => `The server has too much to do. Try again in ${seconds} s.`,
  noModels: "This server has no model.",
};
const chinese = {
  other: "English",
  otherTitle: "Show this page in English",
  key: "密钥",
  keyHint: "服务器要求密钥。它只留在本页，离开即忘。",
  keyButton: "使用此密钥",
  keyWrong: "服务器不接受这个密钥。",
  model: "模型",
  ways: "做什么",
  send: "交给模型",
  example: "例子",
  keys: "或按 Ctrl/⌘ + Enter",
  same: "同样的调用",
  copy: "复制",
  copyWhat: (what) => `复制 ${what} 调用`,
  copied: "已复制。",
  notCopied: "浏览器不允许：请选中文字后复制。",
  tasks: {
    classification: "文本分类",
    few_shot: "少样本文本分类",
    multilabel: "多标签分类",
    regression: "打分",
    tagging: "实体识别",
    question_answering: "在文中找答案",
    multiple_choice: "选择题",
    embedding: "文本向量",
    fill_mask: "填补被遮盖的词",
  },
  labels: (count) => `${count} 个标签`,
  tokens: (count) => `一次读 ${count} 个词元`,
  way: {
    predict: "回答",
    fill: "填词",
    nearest: "最近的文本",
    similarity: "相似度",
    tokens: "词元",
  },
  field: {
    text: "文本",
    masked: "带遮盖的文本",
    first: "第一段文本",
    second: "第二段文本",
    question: "问题",
    context: "含有答案的文本",
    situation: "情境（可不填）",
    choiceQuestion: "问题（可不填）",
    choices: "选项，每行一个",
    query: "要找什么",
    texts: "文本，每行一段",
  },
  hint: { masked: "在要猜的词的位置写上模型的遮盖词元：多数是 [MASK]，有的是 <mask>。" },
  examples: {
    text: "菜很好吃，但是等了一个小时。",
    tagging: "周五，王小梅从上海飞往纽约，去见西门子公司的人。",
    masked: "北京是中国的[MASK]都。",
    first: "一个男人在弹吉他。",
    second: "有人在演奏音乐。",
    question: "最后一班船几点开？",
    context: "去岛上的船从八点起每小时一班，最后一班六点半开。",
    situation: "走了很久，安娜累了。",
    choiceQuestion: "她会做什么？",
    choices: "她坐下来。\n她继续跑。\n她是一座桥。",
    query: "怎样退款？",
    texts: "退货与退款\n营业时间\n本店周日休息。\n十四天内退还货款。",
  },
  running: "正在计算…",
  empty: (name) => `还没有输入：${name}。`,
  fewChoices: "至少要两个选项，每行一个。",
  windows: (windows, tokens) =>
    `文本超过模型一次能读的 ${tokens} 个词元，已分成 ${windows} 个相互重叠的部分全部读完。`,
  unread: "输入太长，有一部分模型没有读到。",
  more: (count) => `另有 ${count} 个`,
  gap: (number) => `第 ${number} 个遮盖处`,
  noEntities: "模型在这段文本中没有找到实体。",
  noLabels: "没有适用的标签。",
  noAnswer: "文本没有回答这个问题。",
  noAnswerRow: "没有答案",
  score: (value) => `分数：${value}`,
  similar: (value) => `相似度：${value}`,
  similarNote: "1 表示相同，0 表示无关。",
  likeness: "相似度",
  counted: (count) => `${count} 个词元`,
  raw: "JSON 应答",
  gone: "服务器没有应答。它还在运行吗？",
  strange: (status) => `服务器的应答无法识别（${status}）。`,
  busy: (seconds) => `服务器太忙，请在 ${seconds} 秒后再试。`,
  noModels: "这个服务器没有模型。",
};
let inChinese = navigator.language.toLowerCase().startsWith("zh");
let say = inChinese ? chinese : english;

// ------------------------------------------------------------------ what can be asked

// Each way: the fields to type into, the body to send, and what is shown of the answer.
// `typed` holds what stood in the fields when it was sent, `model` what the server says of it.
const lines = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);
const ways = {
  predict: {
    route: "/predict",
    fields: (model) => fieldsOf[model.task]?.(model) ?? plainFields(model),
    body(model, typed) {
      if (model.task === "multiple_choice") {
        return { rows: [[typed.situation, typed.choiceQuestion, ...lines(typed.choices)]] };
      }
      if (model.task === "question_answering") return { pairs: [[typed.question, typed.context]] };
      if (model.texts_per_row === 2) return { pairs: [[typed.first, typed.second]] };
      return { texts: [typed[plainFields(model)[0]]] };
    },
    result: "predictions",
    show: (answer, typed, model) => showPrediction(answer.predictions[0], typed, model),
  },
  fill: {
    route: "/fill-mask",
    fields: () => ["masked"],
    body: (model, typed) => ({ texts: [typed.masked] }),
    result: "predictions",
    show: (answer, typed, model) => showPrediction(answer.predictions[0], typed, model),
  },
  nearest: {
    route: "/rerank",
    fields: () => ["query", "texts"],
    body: (model, typed) => ({ query: typed.query, texts: lines(typed.texts) }),
    result: "results",
    show(answer, typed) {
      const texts = lines(typed.texts);
      return [bars(answer.results.map((each) => [texts[each.index], each.score]), number)];
    },
  },
  similarity: {
    route: "/similarity",
    fields: () => ["first", "second"],
    body: (model, typed) => ({ pairs: [[typed.first, typed.second]] }),
    result: "scores",
    show: (answer, typed, model) => [
      headline(say.similar(number(answer.scores[0]))),
      ...(model.task === "embedding"
        ? [bars([[say.likeness, answer.scores[0]]], number), make("p", "note", say.similarNote)]
        : []),
    ],
  },
  tokens: {
    route: "/tokenize",
    fields: () => ["text"],
    body: (model, typed) => ({ texts: [typed.text] }),
    result: "tokens",
    show: (answer) => showTokens(answer.tokens[0]),
  },
};
const fieldsOf = {
  multiple_choice: () => ["situation", "choiceQuestion", "choices"],
  question_answering: () => ["question", "context"],
};
const mayBeEmpty = new Set(["situation", "choiceQuestion"]);
const tall = { text: 4, masked: 3, context: 7, choices: 4, texts: 7, first: 3, second: 3 };

function plainFields(model) {
  return model.texts_per_row === 2 ? ["first", "second"] : ["text"];
}

function waysOf(model) {
  const has = (way) => model.routes.includes(ways[way].route);
  const own = { fill_mask: [], embedding: [] }[model.task] ?? ["predict"];
  return [...own, ...["fill", "nearest", "similarity", "tokens"].filter(has)];
}

// ------------------------------------------------------------------ making parts of the page

const get = (id) => document.getElementById(id);

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

// Text of someone else, which may run from right to left.
function foreign(tag, className, text) {
  const element = make(tag, className, text === "" ? "∅" : text);
  element.dir = "auto";
  return element;
}

function percent(value) {
  const format = new Intl.NumberFormat(inChinese ? "zh" : "en", {
    style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1,
  });
  return value > 0 && value < 0.0005 ? `< ${format.format(0.001)}` : format.format(value);
}

function number(value) {
  return new Intl.NumberFormat(inChinese ? "zh" : "en", {
    minimumFractionDigits: 3, maximumFractionDigits: 3,
  }).format(value);
}

// pairs: [[name, value], ...] -> bars of the greatest ones.
const shown = 10;
function bars(pairs, format = percent) {
  const box = make("div", "");
  const list = make("ol", "bars");
  const sorted = [...pairs].sort((one, other) => other[1] - one[1]);
  const whole = Math.max(1, sorted[0]?.[1] ?? 1); // scores may go beyond 1
  for (const [name, value] of sorted.slice(0, shown)) {
    const item = make("li", "");
    const track = make("div", "track");
    const bar = make("div", "bar");
    bar.style.width = `${100 * Math.max(0, value / whole)}%`;
    track.append(bar);
    item.append(foreign("span", "label", name), make("span", "value", format(value)), track);
    list.append(item);
  }
  box.append(list);
  if (sorted.length > shown) box.append(make("p", "note", say.more(sorted.length - shown)));
  return box;
}

function headline(text) {
  return foreign("p", "headline", text);
}

// A text with places marked: [{start, end, type}, ...]. The server counts characters as Python
// does, by code points; a string here counts an emoji as two.
function marked(text, places, colours = []) {
  const characters = [...text];
  const element = foreign("p", "text");
  let done = 0;
  for (const place of [...places].sort((one, other) => one.start - other.start)) {
    if (place.start < done) continue;
    element.append(characters.slice(done, place.start).join(""));
    const mark = make("mark", "", characters.slice(place.start, place.end).join(""));
    if (place.type !== undefined) {
      mark.append(foreign("span", "type", place.type));
      mark.classList.add(`colour-${Math.max(0, colours.indexOf(place.type)) % 6}`);
    }
    element.append(mark);
    done = place.end;
  }
  element.append(characters.slice(done).join(""));
  return element;
}

function showPrediction(prediction, typed, model) {
  const parts = [];
  if (Array.isArray(prediction.masks)) {
    prediction.masks.forEach((tokens, index) => {
      if (prediction.masks.length > 1) parts.push(make("h3", "", say.gap(index + 1)));
      else parts.push(headline(typed.masked.replace(/\[MASK\]|<mask>/, () => tokens[0].token)));
      parts.push(bars(tokens.map((each) => [each.token, each.probability])));
    });
  } else if (Array.isArray(prediction.entities)) {
    const found = prediction.entities;
    const types = [...new Set(model.labels.map((label) => label.replace(/^[BI]-/, "")))]
      .filter((type) => type !== "O");
    if (found.length === 0) parts.push(make("p", "headline", say.noEntities));
    parts.push(marked(typed.text, found, types));
    parts.push(bars(found.map((each) => [`${each.text} · ${each.type}`, each.score])));
  } else if (prediction.answer !== undefined) {
    const found = Number.isInteger(prediction.start);
    parts.push(found ? headline(prediction.answer) : make("p", "headline", say.noAnswer));
    const places = found ? [{ start: prediction.start, end: prediction.end }] : [];
    parts.push(marked(typed.context, places));
    const others = (prediction.candidates ?? []).map((each) => [each.answer, each.score]);
    if (Number.isFinite(prediction.no_answer_probability)) {
      others.push([say.noAnswerRow, prediction.no_answer_probability]);
    }
    parts.push(bars(others));
  } else if (Array.isArray(prediction.probabilities)) {
    const choices = lines(typed.choices);
    parts.push(headline(choices[prediction.choice]));
    parts.push(bars(prediction.probabilities.map((value, index) => [choices[index], value])));
  } else if (prediction.probabilities) {
    const names = prediction.labels ?? [prediction.label];
    parts.push(names.length ? headline(names.join(", ")) : make("p", "headline", say.noLabels));
    parts.push(bars(Object.entries(prediction.probabilities)));
  } else if (Number.isFinite(prediction.score)) {
    parts.push(headline(say.score(number(prediction.score))));
  }
  if (prediction.windows > 1) {
    parts.push(make("p", "note", say.windows(prediction.windows, model.max_length)));
  }
  if (prediction.truncated) parts.push(make("p", "note warning", say.unread));
  return parts;
}

function showTokens(tokens) {
  const list = make("ol", "tokens");
  for (const token of tokens) {
    const item = make("li", "");
    item.append(foreign("span", "", token.text), make("span", "number", token.id));
    list.append(item);
  }
  return [make("p", "headline", say.counted(tokens.length)), list];
}

// ------------------------------------------------------------------ asking

let models = [];
let key = "";
let wantsKey = false;
let way = "predict";
let running = null; // of the request that is under way
let paint = () => []; // what stands in the answer, in the language of the page
const typed = {}; // by the name of a field
const form = get("form");
const button = form.querySelector("button[type=submit]");

const model = () => models[get("model").selectedIndex];
const address = (route) => new URL(route.slice(1), location.href).href;

function show(parts) {
  paint = parts;
  const answer = get("answer");
  answer.replaceChildren(...parts());
  if (answer.firstChild) answer.scrollIntoView({ block: "nearest" });
}

function problem(words, fix) {
  show(() => {
    const parts = [foreign("p", "wrong", words())];
    if (fix) parts.push(foreign("p", "note", fix));
    return parts;
  });
}

// The answer, or null where there is none; then the reader was told why.
async function ask(route, body, signal) {
  const headers = {};
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body) headers["Content-Type"] = "application/json";
  const options = { headers, signal, method: body ? "POST" : "GET", cache: "no-store" };
  if (body) options.body = JSON.stringify(body);
  let response;
  try {
    response = await fetch(address(route), options);
  } catch (error) {
    if (error.name !== "AbortError") problem(() => say.gone);
    return null;
  }
  let content;
  try {
    content = await response.json();
  } catch (error) {
    if (error.name !== "AbortError") problem(() => say.strange(response.status));
    return null;
  }
  if (response.ok) return content;
  if (response.status === 401) {
    const tried = key !== "";
    askForKey();
    problem(() => (tried ? say.keyWrong : say.keyHint));
  } else if (response.status === 429) {
    problem(() => say.busy(response.headers.get("Retry-After") ?? 1));
  } else if (typeof content?.error?.message === "string") {
    problem(() => content.error.message, content.error.fix);
  } else {
    problem(() => say.strange(response.status));
  }
  return null;
}

function askForKey() {
  wantsKey = true;
  get("key-form").hidden = false;
  get("key").focus();
  showCalls();
}

function missing() {
  const fields = ways[way].fields(model());
  const empty = fields.find((name) => !mayBeEmpty.has(name) && !(typed[name] ?? "").trim());
  if (empty) return [empty, () => say.empty(say.field[empty])];
  if (fields.includes("choices") && lines(typed.choices).length < 2) {
    return ["choices", () => say.fewChoices];
  }
  return null;
}

function body(values) {
  const request = ways[way].body(model(), values);
  return models.length > 1 ? { model: model().id, ...request } : request;
}

async function send() {
  if (running) return;
  const gap = missing();
  if (gap) {
    get(gap[0]).focus();
    problem(gap[1]);
    return;
  }
  const asked = Object.fromEntries(
    ways[way].fields(model()).map((name) => [name, typed[name] ?? ""]));
  const used = ways[way];
  const whose = model();
  const mine = new AbortController();
  running = mine;
  button.setAttribute("aria-disabled", "true");
  // A quick answer should not make the page flicker.
  const wait = setTimeout(() => show(() => [make("p", "note", say.running)]), 150);
  const answer = await ask(used.route, body(asked), mine.signal);
  clearTimeout(wait);
  if (running !== mine) return; // something else was chosen meanwhile
  settle();
  if (answer === null) return;
  try {
    show(() => [...used.show(answer, asked, whose), raw(answer)]);
  } catch {
    problem(() => say.strange(200));
  }
}

function settle() {
  running = null;
  button.removeAttribute("aria-disabled");
}

function raw(answer) {
  const details = make("details", "");
  const code = make("pre", "", JSON.stringify(answer, null, 1));
  code.dir = "ltr";
  code.tabIndex = 0;
  details.append(make("summary", "", say.raw), code);
  return details;
}

// JSON that is also valid in Python, which reads every escape used here, and that shows what it
// holds: characters that turn the direction of the text around them are written as escapes.
function literal(value) {
  const turning = /[\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/g;
  return JSON.stringify(value, null, 1)
    // On one line; a line cannot end inside a string.
    .replace(/([[{])\n */g, "$1").replace(/\n *([\]}])/g, "$1").replace(/\n */g, " ")
    .replace(turning, (letter) => `\\u${letter.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

function showCalls() {
  get("calls").hidden = models.length === 0;
  if (models.length === 0) return;
  const fields = ways[way].fields(model());
  const begun = fields.some((name) => typed[name]?.trim());
  const sample = Object.fromEntries(fields.map((name) => {
    const left = !typed[name]?.trim() && !(begun && mayBeEmpty.has(name));
    return [name, left ? exampleOf(name) : typed[name] ?? ""];
  }));
  const request = literal(body(sample));
  const where = address(ways[way].route);
  get("curl").textContent = [
    `curl ${where} \\`,
    ...(wantsKey ? ['  -H "Authorization: Bearer $BERT_API_KEY" \\'] : []),
    "  -H 'Content-Type: application/json' \\",
    `  -d '${request.replaceAll("'", "'\\''")}'`,
  ].join("\n");
  get("python").textContent = [
    wantsKey ? "import json, os, urllib.request" : "import json, urllib.request",
    "",
    `body = ${request}`,
    "request = urllib.request.Request(",
    `    "${where}",`,
    "    json.dumps(body).encode(),",
    '    {"Content-Type": "application/json"},',
    ")",
    ...(wantsKey
      ? ['request.add_header("Authorization", "Bearer " + os.environ["BERT_API_KEY"])']
      : []),
    "with urllib.request.urlopen(request) as answer:",
    `    print(json.load(answer)["${ways[way].result}"])`,
  ].join("\n");
}

// ------------------------------------------------------------------ what is chosen

function exampleOf(name) {
  if (name === "text" && model().task === "tagging") return say.examples.tagging;
  return say.examples[name];
}

function showFields() {
  get("fields").replaceChildren(...ways[way].fields(model()).map((name) => {
    const field = make("div", "field");
    const label = make("label", "", say.field[name]);
    label.htmlFor = name;
    const area = make("textarea");
    area.id = name;
    area.dir = "auto";
    area.rows = tall[name] ?? 2;
    area.spellcheck = false;
    area.value = typed[name] ?? "";
    area.addEventListener("input", () => {
      typed[name] = area.value;
      showCalls();
    });
    field.append(label, area);
    if (say.hint[name]) {
      const hint = make("p", "note", say.hint[name]);
      hint.id = `${name}-hint`;
      area.setAttribute("aria-describedby", hint.id);
      field.append(hint);
    }
    return field;
  }));
}

function showWays() {
  const offered = waysOf(model());
  if (!offered.includes(way)) way = offered[0];
  get("ways").hidden = offered.length < 2;
  get("ways").replaceChildren(get("ways").firstElementChild, ...offered.map((name) => {
    const label = make("label", "way");
    const radio = make("input");
    radio.type = "radio";
    radio.name = "way";
    radio.value = name;
    radio.checked = name === way;
    radio.addEventListener("change", () => {
      way = name;
      forget();
      showFields();
      showCalls();
    });
    label.append(radio, make("span", "", say.way[name]));
    return label;
  }));
}

function showModel() {
  const { task, labels, max_length, precision } = model();
  get("facts").textContent = [
    say.tasks[task] ?? task,
    labels?.length ? say.labels(labels.length) : "",
    max_length ? say.tokens(max_length) : "",
    precision ?? "",
  ].filter(Boolean).join(" · ");
  showWays();
  showFields();
  showCalls();
}

// An answer to something else must not stand beside what is chosen now.
function forget() {
  running?.abort();
  settle();
  show(() => []);
}

function speak() {
  say = inChinese ? chinese : english;
  document.documentElement.lang = inChinese ? "zh" : "en";
  for (const element of document.querySelectorAll("[data-say]")) {
    element.textContent = say[element.dataset.say];
  }
  for (const copy of document.querySelectorAll(".copy")) {
    copy.textContent = say.copy;
    copy.setAttribute("aria-label", say.copyWhat(get(`${copy.dataset.copies}-title`).textContent));
  }
  const language = get("language");
  language.textContent = say.other;
  language.lang = inChinese ? "en" : "zh";
  language.title = say.otherTitle;
  if (models.length) showModel();
  show(paint);
}

async function start() {
  const answer = await ask("/v1/models");
  if (answer === null) return;
  if (!Array.isArray(answer.data) || answer.data.length === 0) {
    problem(() => say.noModels);
    return;
  }
  models = answer.data;
  get("model").replaceChildren(...models.map((each) => make("option", "", each.id)));
  form.hidden = false;
  document.title = models.length === 1 ? `${models[0].id} · bert` : "bert";
  show(() => []);
  showModel();
  get("fields").querySelector("textarea").focus();
}

async function copy(name) {
  const from = get(name);
  let done = true;
  try {
    await navigator.clipboard.writeText(from.textContent);
  } catch { // not over plain HTTP from another machine
    getSelection().selectAllChildren(from);
    done = document.execCommand("copy");
  }
  get("copied").textContent = done ? say.copied : say.notCopied;
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
document.addEventListener("keydown", (event) => {
  const meant = event.key === "Enter" && (event.ctrlKey || event.metaKey) && !event.isComposing;
  if (meant && models.length > 0 && event.target !== get("key")) {
    event.preventDefault();
    send();
  }
});
get("model").addEventListener("change", () => {
  forget();
  showModel();
});
get("example").addEventListener("click", () => {
  for (const name of ways[way].fields(model())) typed[name] = exampleOf(name);
  showFields();
  showCalls();
  get("fields").querySelector("textarea").focus();
});
get("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = get("key").value.trim();
  if (models.length === 0) start();
  else forget();
});
for (const each of document.querySelectorAll(".copy")) {
  each.addEventListener("click", () => copy(each.dataset.copies));
}
get("language").addEventListener("click", () => {
  inChinese = !inChinese;
  get("copied").textContent = "";
  speak();
});
speak();
start();
