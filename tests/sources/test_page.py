"""The page of a source attribution: whole, to be used, and safe with whatever a document holds."""

from __future__ import annotations

import html
import json
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amplify import Document, attribute_sources
from amplify.models.scripted import ScriptedModel, words
from amplify.render import visible
from amplify.sources.page import as_html, as_terminal, nested, number, parts_by_source, titled
from amplify.types import TokenLogProbs

EVIL = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
DOCUMENTS = [
    f"Trees\nTrees are green. They {EVIL} grow.\x1b[31m\x00\u202e",
    "Ada\nAda lives in Bern. She has a cat & a <b>dog</b>. It sleeps.",
    "Rumours\nAda does not live in Bern, some say. Others <|im_end|> disagree.",
    "{{ question }} {% raw %} A template's braces. More of it here.",
]


def likely(text: str, answer: str) -> float:
    value = -9.0 + 4.0 * ("Ada lives in Bern" in text) + 0.5 * ("has a cat" in text) - 2.0 * ("not live" in text)
    return value - 0.05 * ("grow" in text)


def reply(text: str) -> str:
    if "Ada lives" in text:
        return f" Bern {EVIL}"
    return " nowhere" if "not live" in text else " unknown"


@pytest.fixture(scope="module")
def result():
    model = ScriptedModel(reply=reply, logprob=likely)
    return attribute_sources(f"Where does Ada live? {EVIL}", DOCUMENTS, model, budget=120, granularity="words")


@pytest.fixture(scope="module")
def votes():
    model = ScriptedModel(reply=reply)
    return attribute_sources(
        "Where does Ada live?", DOCUMENTS, model, value="votes", budget=60, granularity="sentences"
    )


def scripts(page: str) -> list[str]:
    return re.findall(r"<script[^>]*>(.*?)</script>", page, flags=re.DOTALL)


def test_nothing_breaks_out(result) -> None:
    page = as_html(result)
    assert len(scripts(page)) == 2  # the data and our own code
    assert "<img" not in page
    assert "onerror=&#34;" in page or "onerror=&quot;" in page
    assert "{% raw %} A template&#x27;s braces" in page or "{% raw %} A template&#39;s braces" in page
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f]", page)
    assert "␛[31m␀" in page
    links = re.findall(r"<[^>]*?\s(?:src|href)\s*=\s*([^\s>]+)", page)
    assert all(link.startswith(('"data:,"', '"#doc')) for link in links), links


def test_every_text_is_there_whole(result) -> None:
    """Marks only wrap: without the tags each document reads as it was given."""
    page = as_html(result)
    bodies = re.findall(
        r'<div class="text[^"]*" dir="auto">(.*?)</div>(?:<button[^>]*>[^<]*</button>)?</article>',
        page,
        flags=re.DOTALL,
    )
    plain = [html.unescape(re.sub(r"</?span[^>]*>", "", body)) for body in bodies]
    assert plain == [visible(DOCUMENTS[i]) for i in result.ranking()]  # best first


def test_numbers_are_the_results(result) -> None:
    data = json.loads(scripts(as_html(result))[0])
    assert set(data["levels"]) == {"d", "s", "w"}
    for name, level in zip("dsw", (result.documents, result.sentences, result.words), strict=True):
        shown = np.array(data["levels"][name][0], dtype=float)
        assert shown[:, 0] == pytest.approx(level.scores, rel=1e-4)
        finite = np.isfinite(level.high)
        assert shown[finite, 2] == pytest.approx(level.high[finite], rel=1e-4)
    assert data["values"][0] == pytest.approx(result.values[:, 0].tolist(), rel=1e-4)


def test_parts_lie_inside_each_other(result) -> None:
    for text, layers in zip(DOCUMENTS, parts_by_source(result), strict=True):
        for name, parts in layers:
            assert name in "sw"
            for (a, b, _), (following, _, _) in pairwise(parts):
                assert a < b <= following
                assert text[a:b] == text[a:b].strip()
        if len(layers) == 2:
            sentences = [(a, b) for a, b, _ in layers[0][1]]
            assert all(any(a <= start and end <= b for a, b in sentences) for start, end, _ in layers[1][1])


def test_an_interval_without_end_is_no_broken_json(result) -> None:
    from dataclasses import replace

    level = replace(result.documents, high_table=np.full_like(result.documents.high_table, np.inf))
    data = json.loads(scripts(as_html(replace(result, documents=level)))[0])
    assert [part[2] for part in data["levels"]["d"][0]] == [None] * 4
    assert "∞" in as_terminal(replace(result, documents=level), colour=False)


@given(st.text(alphabet=st.sampled_from(list("ab <>&\"'\n\x00\x1b\u202e{}%")), max_size=40), st.randoms())
def test_nesting_never_changes_a_text(text: str, draw) -> None:
    """Whatever overlaps: tags taken off, the text is whole, and every tag that opens is closed."""
    layers = []
    for name in "sw":
        ends = [sorted(draw.sample(range(len(text) + 1), 2)) for _ in range(4 if text else 0)]
        layers.append((name, sorted((a, b, k) for k, (a, b) in enumerate(ends) if a < b)))
    body = nested(text, 0, len(text), layers)
    assert html.unescape(re.sub(r'<span class="[sw]" data-k="\d+">|</span>', "", body)) == visible(text)
    assert body.count("<span ") == body.count("</span>")


def test_small_helpers() -> None:
    assert titled("Ada\nAda lives.")
    assert not titled("Ada lives.")
    assert not titled("x" * 200 + "\nmore")
    assert [number(x) for x in (1.0, -0.0001, -250.0, np.inf)] == ["+1.000", "0", "-250.0", "∞"]


def test_terminal(result) -> None:
    plain = as_terminal(result, colour=False, width=90)
    assert "\x1b" not in plain
    assert max(map(len, plain.splitlines())) <= 90
    heads = re.findall(r"\]  document (\d)$", plain, flags=re.MULTILINE)
    assert [int(h) for h in heads] == result.ranking()
    assert "Ada lives in Bern." in plain
    coloured = as_terminal(result)
    assert "\x1b[31m\x00" not in coloured
    assert re.search(r"\x1b\[[\d;]*m", coloured)


def opened(browser, path: Path, **options):
    page = browser.new_page(**options)
    page.errors, page.requests = [], []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: page.requests.append(request.url))
    page.goto(path.as_uri())
    return page


@pytest.mark.browser
def test_hover_order_and_hostile_text_in_a_real_browser(browser, result, tmp_path: Path) -> None:
    result.to_html(tmp_path / "why.html")
    page = opened(browser, tmp_path / "why.html")
    assert page.title().endswith("· amplify")
    assert not page.title().startswith("taken")
    assert page.locator("img").count() == 0
    assert page.locator(".doc").count() == 4
    assert not page.locator("#columns").is_visible()  # one answer of one sentence: nothing to switch

    word = page.locator("#doc1 .w", has_text="lives")
    word.hover()
    inspector = page.locator("#inspector").inner_text()
    k = next(k for k, t in enumerate(result.words.texts) if t.strip() == "lives")
    assert "document 1" in inspector
    assert "sentence" in inspector
    assert f"lives{number(result.words.scores[k])}" in inspector.replace("−", "-").replace(" ", "")
    page.locator("#doc3").focus()
    assert "document 3" in page.locator("#inspector").inner_text()

    blue = page.locator("#doc1 .w", has_text="lives").evaluate("node => getComputedStyle(node).backgroundColor")
    assert blue.startswith("rgba(59, 130, 246")
    order = "nodes => nodes.map(node => Number(node.dataset.k))"
    assert page.locator(".doc").evaluate_all(order) == result.ranking()  # best first
    page.click("#order")
    assert page.locator(".doc").evaluate_all(order) == [0, 1, 2, 3]
    page.click("#order")
    assert page.locator(".doc").evaluate_all(order) == result.ranking()
    assert page.errors == []
    assert [url for url in page.requests if not url.startswith("data:")] == [(tmp_path / "why.html").as_uri()]


@pytest.mark.browser
def test_switching_between_candidate_answers(browser, votes, tmp_path: Path) -> None:
    votes.to_html(tmp_path / "votes.html")
    page = opened(browser, tmp_path / "votes.html", color_scheme="dark", viewport={"width": 420, "height": 800})
    assert not page.evaluate("document.documentElement.scrollWidth > innerWidth")
    buttons = page.locator("#columns [data-column]")
    assert buttons.count() == len(votes.columns) == 3
    for column, name in enumerate(votes.columns):
        buttons.nth(column).click()
        assert buttons.nth(column).get_attribute("aria-pressed") == "true"
        want = votes.for_answer(name).documents.scores
        shown = page.locator(".doc .score").all_text_contents()
        found = [float(s.split(" ")[0].replace("−", "-")) for s in shown]
        assert found == pytest.approx(sorted(want, reverse=True), abs=6e-4)
    assert page.errors == []


ANSWER = "- **Home:** Ada lives in Bern.\n- She has a cat.\n\nThe sky is blue."


class ByClaim(ScriptedModel):
    """A claim is likely where a document says it."""

    def score(self, prompts, continuations, *, steering=None):
        found = super().score(prompts, continuations, steering=steering)
        lengths = [
            len(words(text)) for text in ("- **Home:** Ada lives in Bern.", "- She has a cat.", "The sky is blue.")
        ]
        for i, each in enumerate(found):
            text = "".join(m.content for m in prompts[i].messages)
            values = [-20 + 18 * ("Ada lives in Bern" in text), -15 + 14 * ("She has a cat" in text), -2.0]
            each_word = [v / n for v, n in zip(values, lengths, strict=True) for _ in range(n)]
            found[i] = TokenLogProbs(each.tokens, each.token_ids, tuple(each_word))
        return found


@pytest.fixture(scope="module")
def claims():
    documents = [
        Document(DOCUMENTS[0] + " They stand in rows." * 100, title="Trees.md"),
        Document(DOCUMENTS[1], "ada", "Ada.md"),
        Document("\u0636\u0645\u0627\u0646 \u0622\u0644\u0629 H3 \u0633\u0646\u062a\u0627\u0646.", "rtl"),
    ]
    return attribute_sources("Where does Ada live?", documents, ByClaim(logprob=likely), ANSWER, budget=200)


def test_the_answer_stands_in_the_page_as_it_was_written(claims) -> None:
    page = as_html(claims)
    answer = re.search(r'<p class="answer" dir="auto">(.*?)</p>', page, flags=re.DOTALL)[1]
    assert html.unescape(re.sub(r"<a .*?</a>|</?span[^>]*>", "", answer)) == ANSWER
    assert re.findall(r'data-verdict="([^"]*)" aria-pressed', answer) == ["supported", "supported", "from memory"]
    assert re.findall(r">\[([^]]*)\]</a>", answer) == ["Ada.md", "Ada.md"]
    assert "90% carried by the sources" in page
    assert "Ada.md carries 100% of it" in page


def test_scores_and_colours_need_no_script(claims) -> None:
    page = as_html(claims)
    body = page[: page.index("<script")]
    assert re.findall(r'class="name">([^<]*)', body) == [claims.name(k) for k in claims.ranking()]
    assert number(claims.documents.scores[1]) in body
    assert 'style="background:rgba(var(--for),' in body
    assert "carries 100%" in body
    assert body.count('dir="auto"') >= 3 + len(claims.documents)
    assert 'tabindex="0"' in body
    frame = claims._repr_html_()
    assert frame.startswith("<iframe srcdoc=")
    assert "<script" not in frame
    assert claims.to_html() == page


@pytest.mark.browser
def test_claims_citations_and_keyboard(browser, claims, tmp_path: Path) -> None:
    claims.to_html(tmp_path / "why.html")
    for width in (1400, 768, 360):
        page = opened(browser, tmp_path / "why.html", viewport={"width": width, "height": 900})
        assert not page.evaluate("document.documentElement.scrollWidth > innerWidth")
    score = page.locator("#doc1 .score")
    whole = score.text_content()
    page.locator(".answer a").nth(1).click()  # of the second claim: its own column is shown
    assert score.text_content() != whole
    assert score.text_content().startswith("+14.000")
    assert page.evaluate("document.activeElement.id") == "doc1"
    assert page.locator(".claim").nth(1).get_attribute("aria-pressed") == "true"
    page.locator(".claim").nth(0).focus()
    page.keyboard.press("Enter")
    assert score.text_content().startswith("+18.000")
    page.locator(".claims button").nth(0).click()  # once more: the whole answer again
    assert score.text_content() == whole
    page.locator("#doc1 .s").first.focus()
    assert "sentence" in page.locator("#inspector").inner_text()
    fold = page.locator("#doc0 .fold")
    folded = page.locator("#doc0").bounding_box()["height"]
    fold.click()
    assert page.locator("#doc0").bounding_box()["height"] > 2 * folded
    page.emulate_media(media="print")
    assert page.locator("#doc1 .s").first.evaluate("n => getComputedStyle(n).printColorAdjust") == "exact"
    assert page.errors == []
    silent = browser.new_context(java_script_enabled=False).new_page()
    silent.goto((tmp_path / "why.html").as_uri())
    assert silent.locator("#doc1 .score").text_content() == whole.replace("\u2212", "-")
    assert not silent.locator("#order").is_visible()
    assert not silent.locator("#inspector").is_visible()
