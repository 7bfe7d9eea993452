"""The page of the server in a real browser, with real models behind a real socket."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from bert.checkpoint import Checkpoint, write_model
from bert.families.bert import FAMILY
from bert.model.config import BertConfig
from bert.tasks.task import load_task
from bert.text.tokenizer import Tokenizer

pytest.importorskip("fastapi")
playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
expect = playwright.expect
PATIENCE = 30_000  # ms; a machine may be busy
expect.set_options(timeout=PATIENCE)

KEY = "open-sesame"
IMAGE = "<img src=x onerror=hacked=1>"
SCRIPT = "<script>hacked=1<" + "/script>"
ARABIC = "جيد"
# name of the folder: task, labels, texts in a row
MODELS: dict[str, tuple[str, list[str], int]] = {
    "films": ("classification", ["good", "bad", IMAGE, ARABIC, "体育"], 1),
    "pairs": ("classification", ["same", "other"], 2),
    "topics": ("multilabel", [SCRIPT, "b", *(f"label {n}" for n in range(12))], 1),
    "stars": ("regression", ["score"], 1),
    "names": ("tagging", ["O", f"B-{IMAGE}", f"I-{IMAGE}", "B-LOC", "I-LOC"], 1),
    "questions": ("question_answering", [], 2),
    "choices": ("multiple_choice", [], 4),
    "vectors": ("embedding", [], 1),
    "words": ("fill_mask", [], 1),
    "<b>bold & 'quoted'": ("few_shot", ["yes", "no"], 1),
}
# Characters that are two in UTF-16, that join, that run from the right, that mean something to
# a shell, to Python or to a browser.
AWKWARD = (
    '🙂 the bird\'s "nest" 👩‍👩‍👧 \\n $HOME `id` 今天天气很好 مرحبا \u202e%s <b>x</b>\n'
    "river 🏔️ falls"
)

# What no page of ours may do, and how a test learns of it.
WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation",
  (event) => window.violations.push(event.violatedDirective + " " + event.blockedURI));
"""


def find_browser(chromium: Any) -> str | None:
    """A Chromium that is there: of the system, or the one that playwright installed."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    for path in (*map(shutil.which, names), chromium.executable_path):
        if path and Path(path).exists():
            return str(path)
    return None


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as tools:
        path = find_browser(tools.chromium)
        if path is None:
            pytest.skip(
                "there is no Chromium: apt-get install chromium, or playwright install chromium"
            )
        browser = tools.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def models(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One model for each task, of weights so large that answers differ."""
    folder = tmp_path_factory.mktemp("models")
    config = BertConfig(tokenizer.vocab_size, 32, 2, 2, 64, 64, initializer_range=0.3)
    for seed, (name, (task, labels, texts)) in enumerate(MODELS.items()):
        torch.manual_seed(seed)
        kind = load_task(task).kind
        model = FAMILY.build(kind, config, max(len(labels), 1))
        facts = {"task": task, "texts_per_row": texts}
        checkpoint = Checkpoint(model, kind, FAMILY, labels, tokenizer, facts)
        write_model(folder / name, checkpoint)
    return [folder / name for name in MODELS]


@contextmanager
def serving(models: Sequence[Path], **variables: str) -> Iterator[tuple[Any, str]]:
    """``bert serve`` as a process, and its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bert", "serve", *map(str, models), "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **variables},
    )
    assert process.stderr is not None
    try:
        found = None
        while found is None and (line := process.stderr.readline()):
            found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found is not None
        yield process, found.group()
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.fixture(scope="module")
def server(browser: Any, models: list[Path]) -> Iterator[str]:
    with serving(models) as (_, address):
        yield address


class Visit:
    """The page as somebody sees it, and what went wrong behind it."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.address = address
        self.context = browser.new_context(**{"locale": "en-GB", **options})
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.page.add_init_script(WATCH)
        self.troubles: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(address)

    def _heard(self, message: Any) -> None:
        # An answer that is an error is reported by the browser itself.
        if message.type in ("error", "warning") and "the server responded" not in message.text:
            self.troubles.append(message.text)

    def choose(self, model: str, way: str | None = None) -> None:
        self.page.get_by_label("Model", exact=True).select_option(label=model)
        if way is not None:
            self.page.get_by_text(way, exact=True).click()

    def fill(self, **texts: str) -> None:
        for name, text in texts.items():
            self.page.locator(f"#{name}").fill(text)

    def send(self) -> Any:
        """Ask, and wait for the answer, which comes as JSON too."""
        self.page.keyboard.press("Control+Enter")
        raw = self.page.locator("#answer details pre")
        raw.wait_for(state="attached")
        return json.loads(raw.text_content())

    def bars(self) -> list[tuple[str, str]]:
        """What the bars are called and what stands beside them."""
        rows = self.page.locator(".bars li").all()
        inner = [row.locator("span").all_text_contents() for row in rows]
        return [(name, value) for name, value in inner]

    def headline(self) -> str:
        return str(self.page.locator(".headline").text_content())

    def marks(self) -> list[str]:
        """The marked places, without their types."""
        found = self.page.locator("mark").evaluate_all(
            "marks => marks.map((mark) => mark.firstChild.textContent)"
        )
        return [str(text) for text in found]

    def post(self, route: str, body: dict[str, Any]) -> Any:
        """What the server says to the same request of another client."""
        answer = httpx.post(f"{self.address}{route}", json=body, timeout=30, trust_env=False)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def check(self) -> None:
        assert self.troubles == []
        assert self.page.evaluate("window.violations") == []
        assert self.page.evaluate("typeof hacked") == "undefined"
        assert self.page.locator("img, b, main script").count() == 0
        assert all(url.startswith(self.address) for url in self.asked if url[:5] != "data:")


@contextmanager
def visiting(browser: Any, address: str, **options: Any) -> Iterator[Visit]:
    visit = Visit(browser, address, **options)
    try:
        yield visit
        visit.check()
    finally:
        visit.context.close()


@pytest.fixture
def visit(browser: Any, server: str) -> Iterator[Visit]:
    with visiting(browser, server) as visit:
        yield visit


def percent(value: float) -> str:
    return "< 0.1%" if 0 < value < 0.0005 else f"{100 * value:.1f}%"


def near(shown: str, value: float) -> bool:
    """Whether a percentage is that of a value; halves are rounded differently."""
    return shown == percent(value) or abs(float(shown.strip("<% ")) - 100 * value) < 0.0501


# ---------------------------------------------------------------- every task


def test_labels_have_bars_as_long_as_their_probabilities(visit: Visit) -> None:
    visit.choose("films")
    visit.fill(text=AWKWARD)
    visit.send()
    (wanted,) = visit.post("/predict", {"model": "films", "texts": [AWKWARD]})["predictions"]
    assert visit.headline() == wanted["label"]
    ranked = sorted(wanted["probabilities"].items(), key=lambda item: -item[1])
    assert [name for name, _ in visit.bars()] == [name for name, _ in ranked]
    for (_, shown), (_, value) in zip(visit.bars(), ranked, strict=True):
        assert near(shown, value)
    widths = visit.page.locator(".bar").evaluate_all(
        "bars => bars.map((bar) => bar.offsetWidth / bar.parentElement.offsetWidth)"
    )
    assert widths == pytest.approx([value for _, value in ranked], abs=0.01)


def test_pairs_scores_and_many_labels(visit: Visit) -> None:
    visit.choose("pairs")
    visit.fill(first="a bird", second="a cold wind")
    visit.send()
    rows = {"model": "pairs", "pairs": [["a bird", "a cold wind"]]}
    assert visit.headline() == visit.post("/predict", rows)["predictions"][0]["label"]

    visit.choose("stars")
    visit.fill(text="a bird")
    visit.send()
    (wanted,) = visit.post("/predict", {"model": "stars", "texts": ["a bird"]})["predictions"]
    assert visit.headline() == f"Score: {wanted['score']:,.3f}"

    visit.choose("topics")
    answer = visit.send()  # the text stayed
    (wanted,) = visit.post("/predict", {"model": "topics", "texts": ["a bird"]})["predictions"]
    assert answer["predictions"][0]["labels"] == wanted["labels"]
    assert visit.headline() == (", ".join(wanted["labels"]) or "No label applies.")
    assert len(visit.bars()) == 10
    expect(visit.page.get_by_text("and 4 more")).to_be_visible()

    visit.choose("<b>bold & 'quoted'")
    visit.send()
    assert visit.headline() in ("yes", "no")


@pytest.mark.parametrize(
    "text",
    [
        "🙂🙂 the bird sings 🏔️ near the river",
        "今天🙂天气很好。我们去公园",
        "مرحبا bird 🙂 river",
        AWKWARD,
    ],
    ids=["emoji", "chinese", "arabic", "awkward"],
)
def test_entities_are_marked_where_they_stand(visit: Visit, text: str) -> None:
    visit.choose("names")
    visit.fill(text=text)
    visit.send()
    answer = visit.post("/predict", {"model": "names", "texts": [text]})
    found = answer["predictions"][0]["entities"]
    assert found
    assert visit.marks() == [each["text"] for each in found]
    assert visit.marks() == [text[each["start"] : each["end"]] for each in found]
    types = visit.page.locator("mark .type").all_text_contents()
    assert types == [each["type"] for each in found]
    without = visit.page.locator(".text").evaluate(
        "text => { const copy = text.cloneNode(true);"
        "copy.querySelectorAll('.type').forEach((type) => type.remove());"
        "return copy.textContent; }"
    )
    assert without == text


def test_the_answer_is_marked_in_its_context(visit: Visit) -> None:
    context = "🙂 A bird sings 🏔️ near the river. 今天天气很好。"
    visit.choose("questions")
    visit.fill(question="Where does it sing?", context=context)
    visit.send()
    body = {"model": "questions", "pairs": [["Where does it sing?", context]]}
    (wanted,) = visit.post("/predict", body)["predictions"]
    assert wanted["answer"] == context[wanted["start"] : wanted["end"]]
    assert visit.headline() == wanted["answer"]
    assert visit.marks() == [wanted["answer"]]
    assert visit.page.locator(".text").text_content() == context
    names = [name for name, _ in visit.bars()]
    assert {each["answer"] for each in wanted["candidates"]} | {"no answer"} == set(names)


def test_one_of_several_choices(visit: Visit) -> None:
    visit.choose("choices")
    visit.fill(choiceQuestion="Which?", choices="a bird\n\n  a stone 🙂\nthe river\n")
    visit.send()
    row = ["", "Which?", "a bird", "a stone 🙂", "the river"]
    (wanted,) = visit.post("/predict", {"model": "choices", "rows": [row]})["predictions"]
    assert visit.headline() == wanted["text"]
    shown = dict(visit.bars())
    for choice, value in zip(row[2:], wanted["probabilities"], strict=True):
        assert near(shown[choice], value)


def test_texts_are_ranked_and_compared(visit: Visit) -> None:
    texts = ["a cold wind", IMAGE, "the small bird 🙂", "今天天气很好"]
    visit.choose("vectors", "Nearest texts")
    visit.fill(query="the bird", texts="\n".join(texts))
    visit.send()
    body = {"model": "vectors", "query": "the bird", "texts": texts}
    wanted = visit.post("/rerank", body)["results"]
    assert [name for name, _ in visit.bars()] == [texts[each["index"]] for each in wanted]
    assert [value for _, value in visit.bars()] == [f"{each['score']:.3f}" for each in wanted]

    visit.choose("vectors", "Similarity")
    visit.fill(first="the bird", second="a stone")
    visit.send()
    pairs = {"model": "vectors", "pairs": [["the bird", "a stone"]]}
    (score,) = visit.post("/similarity", pairs)["scores"]
    assert visit.headline() == f"Similarity: {score:.3f}"


def test_masks_are_filled(visit: Visit) -> None:
    visit.choose("words")
    visit.fill(masked="the [MASK] sings 🙂")
    answer = visit.send()
    best = answer["predictions"][0]["masks"][0][0]
    assert visit.headline() == f"the {best['token']} sings 🙂"
    assert visit.bars()[0][0] == best["token"]
    assert near(visit.bars()[0][1], best["probability"])

    visit.fill(masked="[MASK] and [MASK]")
    visit.page.keyboard.press("Control+Enter")
    expect(visit.page.get_by_role("heading", name="Mask 2")).to_be_visible()
    assert len(visit.bars()) == 2 * len(answer["predictions"][0]["masks"][0])


def test_tokens_are_shown(visit: Visit) -> None:
    visit.choose("words", "Tokens")
    visit.fill(text="the bird 今天")
    visit.send()
    body = {"model": "words", "texts": ["the bird 今天"]}
    (wanted,) = visit.post("/tokenize", body)["tokens"]
    shown = visit.page.locator(".tokens li span:first-child").all_text_contents()
    assert shown == [token["text"] or "∅" for token in wanted]
    assert visit.headline() == f"{len(wanted)} tokens"


# ---------------------------------------------------------------- what a reader must be told


def test_long_texts_are_told_in_plain_words(visit: Visit) -> None:
    visit.choose("films")
    visit.fill(text="the bird sings " * 60)
    windows = visit.send()["predictions"][0]["windows"]
    assert windows > 1
    expect(visit.page.get_by_text(f"It was read whole, in {windows} overlap")).to_be_visible()
    expect(visit.page.get_by_text("was not read")).to_have_count(0)

    visit.choose("questions")
    visit.fill(question="which bird " * 60, context="the bird sings")
    assert visit.send()["predictions"][0]["truncated"]
    expect(visit.page.get_by_text("A part of what you typed was not read")).to_be_visible()


def test_mistakes_are_answered_in_plain_words(visit: Visit) -> None:
    page = visit.page
    visit.choose("words")
    page.get_by_role("button", name="Ask the model").click()
    expect(page.locator("#answer")).to_contain_text("Nothing is typed yet: Text with a mask.")
    expect(page.locator("#masked")).to_be_focused()

    visit.fill(masked="no mask")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".wrong")).to_contain_text("[MASK]")

    visit.choose("choices")
    visit.fill(choices="only one")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".wrong")).to_contain_text("Two choices are needed")

    visit.choose("films")
    page.locator("#text").evaluate(
        "area => { area.value = 'half \\ud83d'; area.dispatchEvent(new Event('input')); }"
    )
    page.locator("#text").press("Control+Enter")
    expect(page.locator(".wrong")).to_contain_text("surrogate")


def answering(status: int, body: str) -> Callable[[Any], None]:
    """What answers in place of the server."""

    def fulfil(route: Any) -> None:
        route.fulfill(status=status, body=body)

    return fulfil


def test_a_busy_server_and_a_strange_one(visit: Visit) -> None:
    page = visit.page
    visit.choose("films")
    visit.fill(text="a bird")
    error = {"error": {"message": "full", "type": "queue_full"}}
    page.route(
        "**/predict",
        lambda route: route.fulfill(status=429, headers={"Retry-After": "7"}, json=error),
    )
    page.keyboard.press("Control+Enter")
    expect(page.locator(".wrong")).to_have_text("The server has too much to do. Try again in 7 s.")
    # What is told changes each time, so that it is not taken for the answer before.
    for status, body in ((200, "[1, 2"), (502, "<html>bad gateway"), (200, '{"predictions": []}')):
        page.unroute("**/predict")
        page.route("**/predict", answering(status, body))
        page.keyboard.press("Control+Enter")
        told = f"The server gave an answer that this page cannot read ({status})."
        expect(page.locator(".wrong")).to_have_text(told)
    page.unroute("**/predict")
    visit.send()  # and it goes on


def test_an_answer_to_something_else_is_not_shown(visit: Visit) -> None:
    page = visit.page
    visit.choose("films")
    visit.fill(text="a bird")
    held: list[Any] = []
    page.route("**/predict", lambda route: held.append(route))
    page.keyboard.press("Control+Enter")
    expect(page.get_by_text("Running…")).to_be_visible()
    visit.choose("topics")
    expect(page.locator("#answer")).to_be_empty()
    page.unroute("**/predict")
    assert len(visit.send()["predictions"][0]["probabilities"]) == 14
    assert len(held) == 1


def test_a_key_is_asked_for_and_a_server_may_go(browser: Any, models: list[Path]) -> None:
    with (
        serving(models[:1], BERT_API_KEY=KEY) as (process, address),
        visiting(browser, address) as visit,
    ):
        page = visit.page
        expect(page.get_by_label("Key", exact=True)).to_be_focused()
        expect(page.locator("#form")).to_be_hidden()
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        expect(page.locator(".wrong")).to_have_text("The server does not take this key.")
        page.get_by_label("Key", exact=True).fill(KEY)
        page.keyboard.press("Enter")
        expect(page.locator("#text")).to_be_focused()
        page.keyboard.type("a bird")
        visit.send()
        calls = page.locator("#calls").text_content()
        assert "$BERT_API_KEY" in calls
        assert KEY not in page.content()
        assert page.evaluate("localStorage.length + sessionStorage.length") == 0
        assert page.evaluate("document.cookie") == ""
        for run in (run_curl, run_python):
            assert run(page, BERT_API_KEY=KEY)[0]["label"] == visit.headline()

        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)
        page.keyboard.press("Control+Enter")
        told = "The server does not answer. Is it still running?"
        expect(page.locator(".wrong")).to_have_text(told)
        # The browser's own report of the failed connection is no error of the page.
        visit.troubles = [text for text in visit.troubles if "ERR_CONNECTION" not in text]


# ---------------------------------------------------------------- the calls beside it


def run_curl(page: Any, **variables: str) -> Any:
    command = page.locator("#curl").text_content()
    done = subprocess.run(
        ["sh", "-c", command.replace("curl ", "curl --silent --show-error --noproxy '*' ", 1)],
        capture_output=True,
        check=True,
        env={**os.environ, **variables},
    )
    (answer,) = [
        value for name, value in json.loads(done.stdout).items() if name not in ("model", "usage")
    ]
    return answer


def run_python(page: Any, **variables: str) -> Any:
    code = page.locator("#python").text_content()
    done = subprocess.run(
        [sys.executable, "-I", "-X", "utf8", "-c", code],
        capture_output=True,
        check=True,
        env={**os.environ, "no_proxy": "*", **variables},
    )
    return ast.literal_eval(done.stdout.decode())


CALLS: dict[str, tuple[str, str | None, dict[str, str]]] = {
    "texts": ("films", None, {"text": AWKWARD}),
    "pairs": ("questions", None, {"question": AWKWARD, "context": AWKWARD}),
    "rows": ("choices", None, {"situation": AWKWARD, "choices": 'it\'s\n🙂 "b"'}),
    "query": ("vectors", "Nearest texts", {"query": AWKWARD, "texts": AWKWARD}),
    "similarity": ("vectors", "Similarity", {"first": AWKWARD, "second": "$(id)"}),
    "mask": ("words", None, {"masked": "[MASK] " + AWKWARD}),
    "tokens": ("<b>bold & 'quoted'", "Tokens", {"text": AWKWARD}),
}


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl: apt-get install curl")
@pytest.mark.parametrize("case", CALLS)
def test_the_calls_do_what_the_page_did(visit: Visit, case: str) -> None:
    model, way, texts = CALLS[case]
    visit.choose(model, way)
    visit.fill(**texts)
    answer = visit.send()
    (wanted,) = [value for name, value in answer.items() if name != "model"]
    for run in (run_curl, run_python):
        assert_alike(run(visit.page), wanted)


def assert_alike(one: Any, other: Any) -> None:
    """The same answer, its numbers to within rounding."""
    if isinstance(other, float):
        assert one == pytest.approx(other, abs=1e-5)
    elif isinstance(other, dict):
        assert one.keys() == other.keys()
        for name, value in other.items():
            assert_alike(one[name], value)
    elif isinstance(other, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_alike(a, b)
    else:
        assert one == other


def test_the_calls_show_what_would_turn_the_text_around(visit: Visit) -> None:
    visit.choose("films")
    visit.fill(text="a\u202eb\u2066c\u2028d")
    for name in ("curl", "python"):
        shown = visit.page.locator(f"#{name}").text_content()
        assert "a\\u202eb\\u2066c\\u2028d" in shown


def test_calls_are_copied(browser: Any, server: str) -> None:
    allowed = ["clipboard-read", "clipboard-write"]
    with visiting(browser, server, permissions=allowed) as visit:
        visit.choose("films")
        visit.fill(text=AWKWARD)
        for name, call in (("curl", "curl"), ("Python", "python")):
            visit.page.get_by_role("button", name=f"Copy the {name} call").click()
            expect(visit.page.locator("#copied")).to_have_text("Copied.")
            copied = visit.page.evaluate("navigator.clipboard.readText()")
            assert copied == visit.page.locator(f"#{call}").text_content()
            visit.page.evaluate("document.querySelector('#copied').textContent = ''")


def test_calls_are_copied_where_browsers_allow_less(browser: Any, server: str) -> None:
    with visiting(browser, server) as visit:
        page = visit.page
        # As over plain HTTP from another machine.
        page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
        visit.choose("films")
        visit.fill(text="a bird")
        page.get_by_role("button", name="Copy the curl call").click()
        expect(page.locator("#copied")).to_have_text("Copied.")
        wanted = page.locator("#curl").text_content()
        visit.fill(text="")
        page.locator("#text").press("Control+V")
        assert page.locator("#text").input_value() == wanted


# ---------------------------------------------------------------- for everyone

FOCUSED = """() => {
  const element = document.activeElement;
  const shown = element.type === "radio" ? element.nextElementSibling : element;
  const style = getComputedStyle(shown);
  return {
    id: element.id || element.value || element.textContent,
    ring: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2,
  };
}"""


def test_the_keyboard_is_enough(visit: Visit) -> None:
    page, press = visit.page, visit.page.keyboard.press
    expect(page.locator("#text")).to_be_focused()  # of the first model
    press("Shift+Tab")  # what to do
    press("Shift+Tab")
    expect(page.locator("#model")).to_be_focused()
    page.keyboard.type("vectors")
    expect(page.locator("#query")).to_be_visible()
    press("Tab")
    assert page.evaluate(FOCUSED) == {"id": "nearest", "ring": True}
    press("ArrowRight")
    assert page.evaluate(FOCUSED) == {"id": "similarity", "ring": True}
    press("ArrowLeft")
    press("Tab")
    expect(page.locator("#query")).to_be_focused()
    page.keyboard.type("the bird")
    press("Tab")
    page.keyboard.type("a bird")
    press("Enter")
    page.keyboard.type("a stone")
    press("Tab")
    press("Enter")  # the button
    expect(page.locator(".bars li")).to_have_count(2)
    order = []
    for _ in range(7):
        press("Tab")
        order.append(page.evaluate(FOCUSED))
    assert [each["id"] for each in order[:6]] == [
        "example",
        "The answer as JSON",
        "Copy",
        "curl",
        "Copy",
        "python",
    ]
    assert all(each["ring"] for each in order[:6])

    page.locator("#query").focus()
    asked = len(visit.asked)
    page.locator("#query").dispatch_event(
        "keydown", {"key": "Enter", "ctrlKey": True, "isComposing": True}
    )
    assert len(visit.asked) == asked  # that Enter chose a word of an input method


def test_everything_has_a_name(visit: Visit) -> None:
    names = """() => [...document.querySelectorAll("textarea, select, input, button, pre")]
      .filter((each) => each.checkVisibility())
      .filter((each) => !each.labels?.length && !each.textContent.trim()
        && !each.ariaLabel && !each.getAttribute("aria-labelledby"))
      .map((each) => each.outerHTML)"""
    for model in MODELS:
        visit.choose(model)
        assert visit.page.evaluate(names) == []
    expect(visit.page.locator("#answer")).to_have_attribute("aria-live", "polite")


WIDE = """() => {
  const wide = [...document.querySelectorAll("body *")]
    .filter((each) => each.getBoundingClientRect().right > innerWidth + 1)
    .map((each) => each.outerHTML.slice(0, 80));
  return [document.documentElement.scrollWidth <= innerWidth, wide];
}"""
LONG = "bird" * 100
PHONE_TEXTS = {
    "films": {"text": LONG},
    "names": {"text": LONG + AWKWARD},
    "questions": {"question": LONG, "context": LONG},
    "choices": {"choices": f"{LONG}\n{LONG}"},
    "vectors": {"query": LONG, "texts": LONG},
    "words": {"masked": f"[MASK] {LONG}"},
}


@pytest.mark.parametrize("locale", ["en-GB", "zh-CN"])
def test_nothing_is_wider_than_a_phone(browser: Any, server: str, locale: str) -> None:
    phone = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
    with visiting(browser, server, locale=locale, **phone) as visit:
        for model, texts in PHONE_TEXTS.items():
            visit.page.locator("#model").select_option(label=model)
            visit.fill(**texts)
            visit.send()
            visit.page.locator("summary").click()
            assert visit.page.evaluate(WIDE) == [True, []], model
        sizes = visit.page.locator("button:visible").evaluate_all(
            "all => all.map((each) => each.getBoundingClientRect().height)"
        )
        assert min(sizes) >= 24  # a finger hits it


CONTRAST = """() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = numbers(colour).map((value) => value / 255)
      .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const colour = getComputedStyle(each).backgroundColor;
      if (numbers(colour)[3] !== 0) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const low = [];
  while (walk.nextNode()) {
    const element = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || !element.checkVisibility()) continue;
    const pair = [light(getComputedStyle(element).color), light(behind(element))];
    const ratio = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
    if (ratio < 4.5) low.push([element.className, walk.currentNode.data.slice(0, 30), ratio]);
  }
  return low;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_word_can_be_read_in_light_and_dark(browser: Any, server: str, scheme: str) -> None:
    with visiting(browser, server, color_scheme=scheme) as visit:
        background = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (int(re.findall(r"\d+", background)[0]) > 128) == (scheme == "light")
        visit.choose("names")
        visit.fill(text="the bird sings near the river and the old stone stands")
        visit.send()
        assert visit.marks()
        assert visit.page.evaluate(CONTRAST) == []
        visit.choose("words")
        visit.page.get_by_role("button", name="Ask the model").click()
        assert visit.page.locator(".wrong").count() == 1
        assert visit.page.evaluate(CONTRAST) == []


def test_the_page_speaks_chinese_too(browser: Any, server: str) -> None:
    with visiting(browser, server, locale="zh-CN") as visit:
        page = visit.page
        expect(page.get_by_role("button", name="交给模型")).to_be_visible()
        assert page.evaluate("document.documentElement.lang") == "zh"
        words = """(say) => {
          const flat = (value, path) => typeof value === "object"
            ? Object.entries(value).flatMap(([name, each]) => flat(each, `${path}.${name}`))
            : [path];
          return flat(say === "zh" ? chinese : english, "");
        }"""
        assert page.evaluate(words, "zh") == page.evaluate(words, "en")
        page.locator("#model").select_option(label="names")
        page.get_by_role("button", name="例子").click()
        visit.send()
        marks = visit.marks()
        page.get_by_role("button", name="English").click()
        expect(page.get_by_role("button", name="Ask the model")).to_be_visible()
        assert visit.marks() == marks  # the answer stays
        assert page.locator("#text").input_value().startswith("周五")
        assert page.evaluate("document.documentElement.lang") == "en"


def test_examples_of_every_way_get_an_answer(visit: Visit) -> None:
    for model in MODELS:
        visit.choose(model)
        for radio in visit.page.locator(".way").all() or [None]:
            if radio is not None and visit.page.locator("#ways").is_visible():
                radio.click()
            visit.page.get_by_role("button", name="Example").click()
            visit.send()


# ---------------------------------------------------------------- hostile data


def test_labels_types_and_names_are_text(visit: Visit) -> None:
    texts = {"films": IMAGE, "topics": SCRIPT, "names": f"the bird {IMAGE} sings {SCRIPT}"}
    for model, text in texts.items():
        visit.choose(model)
        visit.fill(text=text)
        visit.send()
        visit.page.locator("summary").click()
    assert any(IMAGE in kind for kind in visit.page.locator("mark .type").all_text_contents())
    options = visit.page.locator("#model option").all_text_contents()
    assert options == list(MODELS)
    visit.page.wait_for_timeout(100)  # an image that is not there would fail by now


def test_the_page_is_closed_to_scripts_of_others(visit: Visit) -> None:
    ran = visit.page.evaluate(
        "() => { const script = document.createElement('script');"
        "script.textContent = 'window.hacked = 1'; document.body.append(script);"
        "script.remove(); return typeof window.hacked; }"
    )
    assert ran == "undefined"
    blocked = visit.page.evaluate("window.violations")
    assert any(each.startswith("script-src") for each in blocked)
    source = httpx.get(f"{visit.address}/page.js", trust_env=False).text
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert word not in source
    visit.page.evaluate("window.violations.length = 0")
    visit.troubles.clear()
