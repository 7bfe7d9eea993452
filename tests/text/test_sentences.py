from __future__ import annotations

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bert.text.sentences import sentences

# Each text is written with | where it is cut.
EXAMPLES = [
    # plain English
    "It works.| The next one works too.",
    "Really?| Yes!| Good.",
    "He left.| 20 people stayed.",
    "He left.| (Nobody saw it.)| She stayed.",
    'He asked "Why?" and left.| She said "Because."| He nodded.',
    '"I came.| I saw."| She laughed.',
    "‘It is late.’| “Not yet.”| So they went on.",
    "No split before a lower-case word. like this one",
    "Why not?! | Who knows.",
    "[It rained.]| {It snowed.}| Then the sun came out.",
    # abbreviations
    "Mr. Smith met Mrs. Jones and Dr. Who.| Prof. Moriarty fled.",
    "Use a tool, e.g. Python, i.e. C. Nobody minds.",
    "See Fig. 2 and No. 5 on pp. 3 to 7.| He said no.| They agreed.",
    "The U.S. Army and the U.K. Parliament met.",
    "He lives in the U.S.| He works there.",
    "J. R. R. Tolkien and George W. Bush met J. A. Smith.",
    "It opens at 9 a.m. Monday and closes at 5 p.m.| The rest is silence.",
    "Apples, pears, etc. (all fresh) were sold.| Plums, etc.| They were good.",
    "Acme Inc. Chief John Doe resigned.| Acme Co. Ltd. Chairman Roe did not.",
    "It is vitamin C.| It helps.",
    "C. Lewis, P. Lee and V. Woolf wrote it.| See p. 5 or op. 27.",
    "Smith et al. (2019) disagree.| Brown v. Board is famous.",
    "On Jan. 5 it snowed in St. Louis.",
    # numbers and labels
    "Pi is 3.14 and e is 2.71.| Version 1.2.3 is out.",
    "1. First do this.| 2. Then do that.",
    "A. The first choice.| B. The second one.",
    "Visit www.example.com or mail a.b@example.org.| Thanks.",
    # ellipsis
    "Well... maybe not.| Perhaps…| Yes.",
    "... And so it began.| The end...",
    "wait . . . what ?| he asked .",
    # tokenised
    "it works .| the next one does not .| why ?| nobody knows .",
    '" It works . "| The next one said : " Good . "',
    "( It works . )| The next .| 3.5 people agree .",
    # Chinese
    "今天天气很好。|我们去公园吧！|你去吗？",
    "他说：“你好。”|然后走了。",
    '他说："我来了。|我看见了。"|她走了。|"好！"|他笑了。',
    "「真的吗？」|她问。|（没有人回答。）|『好！』",
    "我……|我不知道。|等等...|你说什么？！|真的！！！",
    "一是价格；|二是质量；|三是服务。",
    "《书》很好。|【注】见下。|  前面有空格。",
    "他走了！| 她没走。|\u3000\u3000第二段。",
    "你好吗?|我很好!|他走了.|她也走了.",
    "等一下……，我还没说完。",
    # mixed
    "我用Python 3.11。|It works.| 然后 Dr. Smith 来了。|OK?|好的",
    "It works.| 他很高兴。|He said 你好!| 再见.| Bye",
    "价格是3.14元。|网址是www.example.com。",
    # nothing to cut
    "no end mark at all",
    "。。。",
    "...",
]


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples(example: str) -> None:
    expected = [piece.strip() for piece in example.split("|")]
    assert sentences(example.replace("|", "")) == expected


def test_line_ends_always_end_a_sentence() -> None:
    assert sentences("a title\nThe text\r\n\n \t\n第一\u2028第二\n") == [
        "a title",
        "The text",
        "第一",
        "第二",
    ]


@pytest.mark.parametrize("text", ["", " ", "\n\n", "\u3000 \t"])
def test_nothing_gives_nothing(text: str) -> None:
    assert sentences(text) == []


fragments = [
    "Mr",
    "The",
    "a",
    "J",
    "U.S",
    "我们",
    "..",
    "  ",
    *".…!?。；！，,3好\"'”“」（）() \n\t\u3000",
]
pieces = st.lists(st.sampled_from(fragments), max_size=40).map("".join)


@given(st.one_of(pieces, st.text()))
@example('"。" 。"')
def test_nothing_is_lost(text: str) -> None:
    found = sentences(text)
    assert "".join("".join(found).split()) == "".join(text.split())
    assert all(sentence == sentence.strip() != "" for sentence in found)


@given(pieces)
def test_a_sentence_is_on_one_line(text: str) -> None:
    assert all("\n" not in sentence for sentence in sentences(text))


@pytest.mark.parametrize(
    "unit",
    [".", " ", "。", ". ", "a. ", '."', '。"', "） ", '" ', ".) ", "J.", "A", "…", "'", "(", "\n"],
)
def test_a_long_line_of_anything_takes_linear_time(unit: str) -> None:
    text = unit * (250_000 // len(unit)) + "x"
    started = time.process_time()
    sentences("好." + text)
    assert time.process_time() - started < 2.0  # a twentieth of it is usual


@pytest.mark.parametrize("unit", [".", " "])
def test_a_megabyte_of_dots_or_spaces(unit: str) -> None:
    text = unit * 2**20
    started = time.process_time()
    assert sentences("a" + text + "b") == ["a" + text + "b"]
    assert time.process_time() - started < 1.0
