"""Reports: the numbers, the page that holds them, and hostile data in it."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace
from html.parser import HTMLParser
from typing import ClassVar

import evaluation_fakes as fakes
import numpy as np
import pytest
from evaluation_fakes import Fake, Plain, make_task, methods, reply

from amplify.errors import UnknownNameError
from amplify.evaluation import evaluate, load_report, statistics
from amplify.evaluation.tables import short_hashes
from amplify.models.scripted import ScriptedModel
from amplify.types import Answer, Attribution, Demonstration, Rationale

EVIL = (
    "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
    " &amp; '\" \x00\x1b \u2028"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    with ScriptedModel("fake", reply=reply) as model:
        report = evaluate(make_task(40), model, [*methods(), Fake(skill=0.3)], out=folder, seeds=(0, 1, 2))
    return folder, report


def scores(folder, method):
    table = {}
    for line in (folder / "records.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["method"] == method:
            table.setdefault(record["seed"], []).append(record["score"])
    return np.array(list(table.values()))


def test_comparisons_are_what_the_statistics_say(run):
    folder, report = run
    assert [(c.method, c.baseline) for c in report.comparisons] == [
        ("fake", "plain"),
        ("fake[skill=0.9]", "plain"),
        ("fake[skill=0.3]", "plain"),
    ]
    plain = scores(folder, "plain")
    p_values = []
    for c in report.comparisons:
        own = scores(folder, c.method)
        d = own.mean(axis=0) - plain[0]
        assert c.difference == pytest.approx(d.mean())
        assert (c.better, c.worse) == ((d > 1e-9).sum(), (d < -1e-9).sum())
        assert c.p == pytest.approx(statistics.sign_flip(d).p)
        p_values.append(c.p)
    assert [c.p_holm for c in report.comparisons] == pytest.approx(statistics.holm(p_values))
    assert report.comparisons[1].significant


def test_one_seed_uses_wilson_and_mcnemar():
    with ScriptedModel("fake", reply=reply) as model:
        report = evaluate(make_task(), model, [Plain(), Fake()], seeds=(5,))
    assert {row.interval for row in report.rows} == {"wilson"}
    assert report.comparisons[0].test == "exact McNemar"
    assert report.comparisons[0].interval == "Bonett-Price"
    assert report.row("fake").spread is None


def test_text_and_markdown_hold_the_table(run):
    _, report = run
    for text in (str(report), report.to_markdown().replace("\\", "")):
        for row in report.rows:
            assert row.method in text
            assert f"{100 * row.score:.1f} %" in text
            assert f"{100 * row.low:.1f} – {100 * row.high:.1f}" in text
        assert "chance 50.0 %, most frequent label 50.0 %" in text
        assert "3 declared comparisons" in text
    assert max(map(len, str(report).split("\n\n")[1].splitlines())) <= 120
    assert "\x1b" not in str(report)
    with pytest.raises(UnknownNameError, match=r"Did you mean 'plain'"):
        report.row("plane")


def test_options_in_common_stand_once_in_the_header(tmp_path):
    made = [Fake(skill=0.9, asks=3), Fake(skill=0.3, asks=3), Plain(asks=3)]
    with ScriptedModel("fake", reply=reply) as model:
        report = evaluate(make_task(8), model, made, out=tmp_path, seeds=(0,))
    labels = ["fake[skill=0.9,asks=3]", "fake[skill=0.3,asks=3]", "plain[asks=3]"]
    assert [m.label for m in made] == [row.method for row in report.rows] == labels
    assert {record["method"] for record in report.records} == set(labels)
    page = report.to_html()
    browsing = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])
    assert browsing["methods"] == ["fake[skill=0.9]", "fake[skill=0.3]", "plain"]
    assert all(len(answers) == 3 for answers in browsing["answers"])
    for shown in (str(report), report.to_markdown().replace("\\", ""), page):
        assert "asks=3 in every method that has them" in shown
        assert shown.count("asks=3") == 1
        assert "fake[skill=0.9]" in shown


def test_names_break_where_words_end_and_hashes_are_cut():
    with ScriptedModel("fake", reply=reply) as model:
        report = evaluate(make_task(6), model, [Scoring(skill=0.5, shots=1, mode="score")])
    assert report.rows[0].method == "scoring[skill=0.5,shots=1]"
    assert "scoring[skill=0.5,<wbr>shots=1]" in report.to_html()
    digest = "0123456789ab" * 5
    assert short_hashes(f"file @ sha256:{digest} 123") == "file @ sha256:0123456789ab 123"


def test_numbers_as_json(run):
    data = json.loads(json.dumps(run[1].to_dict(), allow_nan=False))
    assert data["rows"][0]["method"] == "plain"
    assert data["comparisons"][0]["p_holm"] == run[1].comparisons[0].p_holm


def test_the_report_comes_from_the_folder_alone(run, tmp_path):
    folder, report = run
    again = load_report(folder)
    assert again.rows == report.rows
    assert again.to_html() == (folder / "report.html").read_text(encoding="utf-8")
    assert again.to_markdown(tmp_path / "x.md") == (tmp_path / "x.md").read_text(encoding="utf-8")


def test_macro_f1_is_shown_beside_the_accuracy_of_items():
    from sklearn.metrics import f1_score

    with ScriptedModel("fake", reply=reply) as model:
        report = evaluate(make_task(metric="macro_f1"), model, [Plain()])
    expected = f1_score(
        [r["gold"] for r in report.records],
        [r["answer"] or "none" for r in report.records],
        average="macro",
        labels=["good", "bad"],
        zero_division=0,
    )
    assert report.row("plain").metrics["macro_f1"] == pytest.approx(expected)
    assert "accuracy" in str(report)


@dataclass(frozen=True)
class Scoring(Plain):
    """Gives every label a log-probability; the item's number decides how close the two best are."""

    name: ClassVar[str] = "scoring"

    def fit(self, task, model, seed):
        return ScoringProgram("skill=1")


class ScoringProgram(fakes.FakeProgram):
    kind: ClassVar[str] = "scoring"

    def answer(self, examples, model):
        gaps = [0.0005 if example.id.endswith("0") else 0.5 for example in examples]
        return [Answer("good", scores={"good": -1.0, "bad": -1.0 - gap}) for gap in gaps]


class PerTokenProgram(fakes.FakeProgram):
    """Compares by the mean of ten tokens: gaps of 0.0005 and 0.005 in log-probability."""

    kind: ClassVar[str] = "per_token"

    def answer(self, examples, model):
        gaps = [0.0005 if example.id.endswith("0") else 0.005 for example in examples]
        found = [{"good": -1.0, "bad": -1.0 - gap} for gap in gaps]
        return [Answer("good", scores={k: v / 10 for k, v in one.items()}, logprobs=one) for one in found]


@dataclass(frozen=True)
class PerToken(Scoring):
    name: ClassVar[str] = "per_token"

    def fit(self, task, model, seed):
        return PerTokenProgram("skill=1")


def test_near_ties_of_means_are_those_of_the_log_probabilities():
    report = evaluate(make_task(), ScriptedModel("echo"), [PerToken(mode="score")])
    assert report.row("per_token").near_ties == 3


def test_near_ties_are_counted():
    report = evaluate(make_task(), ScriptedModel("echo"), [Scoring(mode="score")])
    assert report.row("scoring").near_ties == 3
    for text in (str(report), report.to_html(), report.to_markdown()):
        assert "3 of 30 answers are near-ties" in text


class Page(HTMLParser):
    """Collects tags, and the text inside the data element."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.data, self._inside = [], [], "", False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append(tag)
        self._inside = given.get("id") == "data"
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "action")]

    def handle_endtag(self, tag):
        self._inside = False

    def handle_data(self, data):
        if self._inside:
            self.data += data


def test_the_page_asks_for_nothing(run):
    text = run[1].to_html()
    page = Page(text)
    assert page.addresses == ["data:,"]
    assert "http" not in re.sub(r'http-equiv="Content|httpx', "", text)
    assert "url(" not in text
    assert "@import" not in text
    assert text.count("<svg") == 2


@dataclass(frozen=True)
class Evil(Fake):
    """Everything that comes from outside is hostile."""

    name: ClassVar[str] = "evil"
    word: str = "<b>"

    def fit(self, task, model, seed):
        text = f"{EVIL} nice"
        at = len(EVIL) + 1
        why = Attribution(text, ("nice",), ((at, at + 4),), (0.7,), "good", method="grad<i>", model="m&m")
        shot = Demonstration(
            replace(task.train[0], text=text), Rationale(f"because {EVIL} nice", ("nice",), "x", why), foil=EVIL
        )
        return EvilProgram("skill=1.0", (asdict(shot),))


class EvilProgram(fakes.FakeProgram):
    kind: ClassVar[str] = "evil"

    def answer(self, examples, model):
        return [Answer(EVIL, text=EVIL + "\ud800", prompt=self.prompt(e)) for e in examples]


@pytest.fixture(scope="module")
def evil(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evil")
    task = make_task(3)
    test = tuple(replace(e, text=f"{i} {EVIL}") for i, e in enumerate(task.test))
    task = make_task(3, test=test, name=EVIL, source=EVIL)
    return folder, evaluate(task, ScriptedModel("fake", reply=reply), [Evil(), Evil(word=EVIL)], out=folder)


def test_hostile_data_stays_data(evil, run):
    folder, report = evil
    text = (folder / "report.html").read_text(encoding="utf-8")
    page, plain = Page(text), Page(run[1].to_html())
    assert page.tags.count("script") == plain.tags.count("script") == 2
    assert "img" not in page.tags
    assert "i" not in page.tags
    assert not re.search(r"[\x00-\x08\x0b-\x1f\ud800-\udfff]", text)
    data = json.loads(page.data)
    assert data["items"][0]["text"].startswith("0 </script><script>")
    assert "␀␛" in data["items"][0]["text"].replace(" ", "")
    assert report.row("evil").score == 0
    assert "\x1b" not in str(report)
    assert "<script>" not in report.to_markdown()


def test_shots_have_their_words_marked(evil):
    text = (evil[0] / "report.html").read_text(encoding="utf-8")
    marks = re.findall(r"<mark [^>]*>([^<]*)</mark>", text)
    assert set(marks) == {"nice"}
    assert 'title="+0.700"' in text
    assert "grad&lt;i&gt; · m&amp;m" in text


def opened(browser, folder, **options):
    page = browser.new_page(**options)
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
    page.requests = []
    page.on("request", lambda request: page.requests.append(request.url))
    page.goto((folder / "report.html").as_uri())
    return page


@pytest.mark.browser
def test_filters_in_a_real_browser(browser, run):
    folder, report = run
    page = opened(browser, folder)
    records = report.records
    shown = page.locator("#shown")
    assert shown.text_content() == "40 of 40 items"
    assert page.locator("article").count() == 25
    page.click("#more")
    assert page.locator("article").count() == 40

    fake = next(i for i, row in enumerate(report.rows) if row.method == "fake")
    page.select_option("#method", str(fake))
    page.select_option("#outcome", label="wrong")
    wrong = {r["id"] for r in records if r["method"] == "fake" and r["parsed"] and r["score"] == 0}
    assert shown.text_content() == f"{len(wrong)} of 40 items"
    assert page.locator("article .who").first.text_content() == "fake"
    assert set(page.locator("article .who").all_text_contents()) == {"fake"}

    page.select_option("#outcome", label="unparsed")
    page.select_option("#method", "")
    unparsed = {r["id"] for r in records if not r["parsed"]}
    assert wrong
    assert 0 < len(unparsed) < 40
    assert shown.text_content() == f"{len(unparsed)} of 40 items"

    page.select_option("#outcome", "")
    page.fill("#search", "item 17 LOVELY")
    assert shown.text_content() == "1 of 40 items"
    chip = page.locator("article .chip").first
    chip.click()
    assert page.locator("article pre").first.text_content().endswith(records[17]["text"])
    chip.click()
    assert page.locator("article pre").count() == 0

    page.fill("#search", "")
    page.select_option("#gold", "bad")
    assert shown.text_content() == "20 of 40 items"
    assert page.errors == []
    assert [url for url in page.requests if not url.startswith("data:")] == [(folder / "report.html").as_uri()]


@pytest.mark.browser
def test_dark_and_light(browser, run):
    page = opened(browser, run[0], color_scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    page.click("#theme")
    light = page.evaluate(ground)
    assert sum(map(int, re.findall(r"\d+", dark))) < 150
    assert sum(map(int, re.findall(r"\d+", light))) > 700
    assert not page.evaluate("document.documentElement.scrollWidth > innerWidth")


@pytest.mark.browser
def test_hostile_data_in_a_real_browser(browser, evil):
    page = opened(browser, evil[0])
    assert "taken" not in page.evaluate("document.title").split("</script>")[0]
    assert page.title().endswith("· amplify")
    assert page.locator("img").count() == 0
    assert page.locator("article").count() == 3
    page.locator("article .chip").first.click()
    assert "</script><script>" in page.locator("article pre").first.text_content()
    assert page.errors == []


@pytest.mark.browser
def test_a_narrow_screen_scrolls_plots_and_tables_inside_themselves(browser, run):
    page = opened(browser, run[0], viewport={"width": 390, "height": 800})
    assert not page.evaluate("document.documentElement.scrollWidth > innerWidth")
    assert page.evaluate("document.querySelector('svg text').getBoundingClientRect().height") >= 9  # pixels: readable


def lines_report(zero: str, few: str, labels: tuple[str, ...] = fakes.LABELS, limit: int = 30):
    """zero_shot writes one thing, few_shot (its prompt has shots) another; "{gold}" is the right label."""

    def say(text):
        gold = labels[int(text.rsplit("item ", 1)[1].split()[0]) % 2]
        shots = "train item" in text or "validation item" in text
        return (few if shots else zero).format(gold=gold)

    task = make_task(limit, labels=labels) if labels == fakes.LABELS else recased(limit, labels)
    with ScriptedModel("lines", reply=say) as model:
        return evaluate(task, model, ["zero_shot", "few_shot"], seeds=(0,), options={"few_shot.shots": 2})


def recased(n, labels):
    task = make_task(n)
    names = dict(zip(fakes.LABELS, labels, strict=True))
    pools = {
        split: tuple(replace(e, label=names[e.label]) for e in getattr(task, split))
        for split in ("train", "validation", "test")
    }
    return replace(task, labels=labels, **pools)


@pytest.mark.parametrize("zero", ["：{gold}", "{gold}。", " 「{gold}」，因为是这样。"])
def test_other_scripts_punctuation_makes_no_difference_between_methods(zero):
    report = lines_report(zero, " {gold}.", labels=("正面", "负面"))
    assert [row.score for row in report.rows] == [1.0, 1.0]
    assert report.comparisons[0].difference == 0
    assert "none is significant" in str(report)


def test_a_gain_that_is_all_of_reading_is_not_claimed():
    report = lines_report("\x1b[31mI would call it {gold} rather", " {gold}.")
    [c] = report.comparisons
    assert (c.method, c.difference, c.significant) == ("few_shot[shots=2]", 1.0, True)
    assert c.unparsed == (0.0, 1.0)
    assert (c.both_read.n, c.both_read.difference) == (0, None)
    assert c.uneven
    assert not c.claimed
    told = (
        "none shows by itself that a method helps or harms. few_shot[shots=2] is 100.0 points above zero_shot, but "
        "0.0 % of its answers and 100.0 % of the other's could not be read: there is no item that both read, so this "
        "says nothing of who is right more often."
    )
    wrote = "100.0 % unparsed, such as “␛[31mI would call it good rather”, “␛[31mI would call it bad rather”"
    for text in (str(report), report.to_markdown().replace("\\", ""), report.to_html()):
        assert told in text.replace("&#39;", "'")
        assert wrote in text
        assert "\x1b" not in text


def test_the_items_that_both_read_are_compared_by_themselves():
    def say(text):
        i = int(text.rsplit("item ", 1)[1].split()[0])
        gold, other = fakes.LABELS if i % 2 == 0 else fakes.LABELS[::-1]
        shots = "train item" in text or "validation item" in text
        if shots or i >= 20:
            return f" {gold}."
        return "who knows" if i < 8 else f" {other}."

    with ScriptedModel("lines", reply=say) as model:
        report = evaluate(make_task(30), model, ["zero_shot", "few_shot"], seeds=(0,))
    [c] = report.comparisons
    assert (c.n, c.difference, c.unparsed) == (30, pytest.approx(2 / 3), (0.0, pytest.approx(8 / 30)))
    difference, interval, test = statistics.compare([[1.0] * 22], [[0.0] * 12 + [1.0] * 10])
    assert asdict(c.both_read) == {
        "n": 22, "difference": difference, "low": interval.low, "high": interval.high, "p": test.p,
    }  # fmt: skip
    assert c.claimed
    assert "few_shot is 66.7 points above zero_shot (+54.5 over the 22 items that both read)." in str(report)
    for text in (str(report), report.to_markdown(), report.to_html()):
        assert "items both read" in text
        assert "22 of 30" in text


def test_labels_that_differ_in_case_alone_are_named():
    report = lines_report(" {gold}.", " {gold}.", labels=("Good", "good"))
    assert "'Good' and 'good' differ in letter case alone and count as different labels" in str(report)
    assert "differ in letter case" not in str(lines_report(" {gold}.", " {gold}."))
