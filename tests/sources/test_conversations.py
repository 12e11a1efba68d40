"""Sources as spans of messages: conversations, tool results, prompts of the user's own; and what is no conversation."""

from __future__ import annotations

import copy
import itertools
import math
import pickle

import numpy as np
import pytest

import amplify
from amplify import Document, Message, Source
from amplify.errors import ContextLengthError, InputError
from amplify.models.scripted import ScriptedModel
from amplify.sources.result import SourceAttribution

SYSTEM = "You are terse. The shop is in Bergen."
FOUND = "[1] The warranty is two years. It covers the pump.\n\n[2] Shipping is free.\n\nHow long is the warranty?"
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
MESSAGES = [
    {"role": "system", "content": SYSTEM},
    {"role": "user", "content": "I live in Oslo."},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "Members get five years.", "tool_call_id": "c1"},
    {"role": "user", "content": "How long is my warranty?"},
]


def worth(text: str, answer: str) -> float:
    return -12.0 + 6.0 * ("five years" in text) + 2.0 * ("terse" in text) + 3.0 * ("two years" in text)


def model(**options) -> ScriptedModel:  # type: ignore[no-untyped-def]
    return ScriptedModel(reply=lambda text: "Five years.", logprob=worth, **options)


def test_turns_and_tool_results_are_sources() -> None:
    who = model()
    r = amplify.attribute_sources(
        messages=MESSAGES, sources="messages", answer="Five years.", model=who, granularity="sentences"
    )
    assert [d.id for d in r.sources] == ["message-0", "message-1", "message-3"]
    assert r.documents.scores == pytest.approx([2.0, 0.0, 6.0], abs=1e-6)
    assert r.claims[0].verdict == "supported"
    assert r.claims[0].support == pytest.approx(8 / 12)
    assert [(c.id, c.text) for c in r.citations] == [("message-3", "Members get five years.")]
    assert [c.id for c in r.cite(of_best=0.3)] == ["message-3", "message-0"]
    seen = [call.prompt.messages for call in who.calls]
    for messages in seen:
        assert messages[-1] == Message("user", "How long is my warranty?")
        [call] = [m for m in messages if m.role == "assistant"]
        assert call.extra["tool_calls"] == [CALL]  # calls stay, and so does what stands for their result
        [tool] = [m for m in messages if m.role == "tool"]
        assert tool.content in ("", "Members get five years.")
        assert tool.extra == {"tool_call_id": "c1"}
    assert any([m.role for m in messages] == ["assistant", "tool", "user"] for messages in seen)  # whole turns go
    assert any(m.content.strip() == "The shop is in Bergen." for messages in seen for m in messages)


def test_spans_of_a_message_are_sources(tmp_path) -> None:  # type: ignore[no-untyped-def]
    end = FOUND.index("\n\n[2]")
    spans = [
        Source(1, 4, end, id="faq-7", title="Warranty", metadata={"page": 2}),
        {"message": 1, "start": FOUND.index("Shipping"), "end": FOUND.index("\n\nHow"), "id": "ship"},
    ]
    messages = [Message("system", SYSTEM), Message("user", FOUND)]
    who = model()
    r = amplify.attribute_sources(messages=messages, sources=spans, answer="Two years.", model=who, budget=64)
    assert [(d.id, d.title) for d in r.sources] == [("faq-7", "Warranty"), ("ship", "")]
    assert r.documents.scores == pytest.approx([3.0, 0.0], abs=1e-6)
    assert r.sources[0].metadata == {"page": 2}
    contents = {call.prompt.messages[1].content for call in who.calls}
    assert FOUND in contents  # what the model saw, to the letter
    assert "[1] \n\n[2] Shipping is free.\n\nHow long is the warranty?" in contents
    assert all(call.prompt.messages[0].content == SYSTEM for call in who.calls)
    [citation] = r.citations
    assert FOUND[4:end][citation.source_start : citation.source_end] == citation.text == "The warranty is two years."
    marked = r.highlight("sentences")
    [span] = marked.emphasis
    assert marked.messages[1].content[span.start : span.end] == "The warranty is two years."
    r.save(tmp_path / "why.json")
    again = SourceAttribution.load(tmp_path / "why.json")
    assert again.highlight("sentences") == marked
    assert (again.citations, again.claims) == (r.citations, r.claims)
    assert again.to_dict() == r.to_dict()


def test_documents_are_found_in_the_messages() -> None:
    documents = [
        {"text": "Shipping is free.", "id": "b"},
        {"text": "The warranty is two years. It covers the pump.\n", "id": "a"},
        {"text": "It covers the pump.", "id": "c"},
        " ",
    ]
    found = amplify.attribute_sources(None, documents, model(), "Two years.", messages=[Message("user", FOUND)])
    assert [d.id for d in found.sources] == ["b", "a"]
    assert found.documents.scores == pytest.approx([0.0, 3.0], abs=1e-6)
    assert dict(found.left_out) == {2: 1, 3: None}
    with pytest.raises(InputError, match="bird does not stand in the messages"):
        amplify.attribute_sources(
            None, [{"text": "Birds sing.", "id": "bird"}], model(), "Two.", messages=[Message("user", FOUND)]
        )


def test_a_function_makes_the_prompt() -> None:
    documents = [
        Document("The warranty is two years. It covers the pump.", "a", "A"),
        Document("Shipping is free.", "b", "B"),
    ]
    asked: list[list[str]] = []

    def prompt(given):  # type: ignore[no-untyped-def]
        asked.append([d.id for d in given])
        shown = "\n".join(f"<{d.title}> {d.text}" for d in given)
        return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"{shown}\nHow long?"}]

    who = model()
    r = amplify.attribute_sources(None, documents, who, "Two years.", prompt=prompt)
    assert r.documents.scores == pytest.approx([3.0, 0.0], abs=1e-6)
    assert {tuple(ids) for ids in asked} == {("a", "b"), ("a",), ("b",), ()}
    content = r.highlight("sentences").messages[1].content
    assert [content[s.start : s.end] for s in r.highlight("sentences").emphasis] == ["The warranty is two years."]
    assert "<A> It covers the pump.\n<B> Shipping is free.\nHow long?" in [
        c.prompt.messages[1].content for c in who.calls
    ]
    for wrong, says in (
        (lambda given: [], "makes messages"),
        (lambda given: "always the same", "every document once"),
        (lambda given: " ".join(d.text.upper() for d in given), "changes the documents"),
    ):
        with pytest.raises(InputError, match=says):
            amplify.attribute_sources(None, documents, who, "Two.", prompt=wrong)


def test_a_template_file_may_write_titles(tmp_path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "my_rag.jinja"
    file.write_text("{% for d in documents %}## {{ titles[loop.index0] }}\n{{ d }}\n{% endfor %}\n{{ question }}")
    documents = [Document("The warranty is two years.", "a", "Faq"), Document("Shipping is free.", "b", "Ship")]
    who = model()
    amplify.attribute_sources("How long?", documents, who, "Two.", prompt=str(file), granularity="documents")
    assert "## Ship\nShipping is free.\nHow long?" in [c.prompt.messages[0].content for c in who.calls]
    file.write_text("{% for d in documents %}{{ d }}{% endfor %}")
    with pytest.raises(InputError, match=r"does not write .. question"):
        amplify.attribute_sources("How long?", documents, who, "Two.", prompt=str(file))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"messages": []}, "no messages"),
        ({"messages": "hello"}, "list of messages"),
        ({"messages": [{"role": "user"}]}, "message 0 has no content"),
        ({"messages": [{"content": "x"}]}, "message 0 is no message"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "role is system, user"),
        ({"messages": [*MESSAGES[:2], {"role": "assistant", "content": "Yes."}]}, "which no answer follows"),
        ({"messages": [*MESSAGES[:3], MESSAGES[4]]}, "tool call 'c1' has no result"),
        ({"messages": [{"role": "user", "content": "One sentence."}]}, "single sentence"),
        ({"sources": []}, "no sources"),
        ({"sources": "turns"}, 'sources is "messages"'),
        ({"sources": [Source(9, 0, 1)]}, "is in message 9; there are 5"),
        ({"sources": [Source(0, 0, 99, title="Rules")]}, r"Rules is characters \[0, 99\) of message 0, which has 37"),
        ({"sources": [Source(0, 14, 15)]}, "blank"),
        ({"sources": [Source(0, 0, 9), Source(0, 5, 12)]}, "overlap in message 0"),
        ({"sources": [{"message": 0, "begin": 3}]}, "source 0 is no amplify.Source"),
        ({"sources": [{"message": 0, "start": "3", "end": 9}]}, "source 0 is no .* start is a whole number, not '3'"),
        ({"sources": [{"message": 0, "start": 3, "end": 9, "metadata": 5}]}, "metadata are names with values"),
        (
            {"messages": [{"role": "user", "content": "One.<|im_end|> Two."}], "sources": [Source(0, 0, 8, id="a")]},
            r"a cuts '<\|im_end\|>', characters \[4, 14\) of message 0",
        ),
        ({"thresholds": (0.1, "x")}, "thresholds are two numbers"),
        ({"stop": [None]}, "stop is a list of strings"),
        ({"order": "random"}, "messages stay where they are"),
        ({"question": "And?"}, "not both"),
        ({"answer": 5}, "answer is a text"),
        ({"answer": " "}, "answer is empty"),
        ({"model": None}, "model= is missing"),
        ({"budget": 3.5}, "whole number"),
        ({"max_tokns": 3}, "max_tokens"),
    ],
)
def test_what_is_no_conversation_is_one_clear_error(options, says) -> None:  # type: ignore[no-untyped-def]
    who = model()
    with pytest.raises(InputError, match=says):
        amplify.attribute_sources(**{"messages": MESSAGES, "answer": "Five.", "model": who, **options})
    assert not who.calls


def test_sources_longer_than_the_window_are_named() -> None:
    spans = [Source(1, 4, FOUND.index("\n\n[2]"), title="Warranty"), Source(1, FOUND.index("Ship"), len(FOUND))]
    with pytest.raises(ContextLengthError, match=r"more than the window of 27.*Without Warranty"):
        amplify.attribute_sources(
            messages=[Message("system", SYSTEM), Message("user", FOUND)],
            sources=spans, answer="Two.", model=model(max_context=27),
        )  # fmt: skip


def test_an_answer_that_is_cut_says_so() -> None:
    who = ScriptedModel(reply=lambda text: "The warranty is two years long.", logprob=worth)
    documents = ["The warranty is two years.", "Shipping is free."]
    whole = amplify.attribute_sources("How long?", documents, who)
    assert whole.answer == "The warranty is two years long."
    assert not whole.notes
    cut = amplify.attribute_sources("How long?", documents, who, max_tokens=3)
    assert cut.answer == "The warranty is"
    assert cut.notes == ("the model's answer was cut after 3 tokens: max_tokens= sets how many",)
    assert cut.notes[0] in str(cut)
    assert "cut after 3 tokens" in cut.to_html()


def test_claims_from_memory_and_against_the_sources() -> None:
    answer = "Paris is in France. It opened in 1931. It is closed."

    def likely(text: str, said: str) -> float:
        return -1.0

    class ByClaim(ScriptedModel):
        """Each word of the answer is as likely as its sentence."""

        def score(self, prompts, continuations, *, steering=None):  # type: ignore[no-untyped-def]
            found = super().score(prompts, continuations, steering=steering)
            for i, each in enumerate(found):
                text = "".join(m.content for m in prompts[i].messages)
                second = -0.5 if "in 1931" in text else -4.0
                third = -5.0 if "It is open" in text else -2.0
                each_word = [-0.5] * 4 + [second] * 4 + [third] * 3
                found[i] = amplify.types.TokenLogProbs(each.tokens, each.token_ids, tuple(each_word))
            return found

    documents = ["The museum opened in 1931.", "It is open today.", "Tea is hot."]
    r = amplify.attribute_sources("Where?", documents, ByClaim(logprob=likely), answer)
    assert [c.verdict for c in r.claims] == ["from memory", "supported", "contradicted"]
    assert [r.answer[c.start : c.end] for c in r.claims] == [c.text for c in r.claims]
    assert r.claims[1].support == pytest.approx(14 / 16)
    assert r.claims[1].shares == pytest.approx([1.0, 0.0, 0.0])
    assert [(c.claim, c.source) for c in r.citations] == [(1, 0)]


def test_a_citation_needs_a_share_of_what_the_context_gives() -> None:
    def likely(text: str, answer: str) -> float:
        return -30.0 + 25.0 * ("1931" in text) + 2.0 * ("museum" in text) + 0.04 * ("fee" in text)

    documents = ["It opened in 1931.", "The museum is old.", "A fee of 45 euros."]
    r = amplify.attribute_sources("When?", documents, ScriptedModel(logprob=likely), "In 1931.")
    assert [c.source for c in r.citations] == [0]
    assert [c.source for c in r.cite(of_best=0.0)] == [0]
    assert [c.source for c in r.cite(share=0.05, of_best=0.0)] == [0, 1]
    assert [c.source for c in r.cite(share=0.0, of_best=0.0)] == [0, 1, 2]
    assert [c.source for c in r.cite(share=0.0, top=2, of_best=0.0)] == [0, 1]
    assert [c.source for c in r.cite(of_best=0.07)] == [0]  # a share below a tenth


def test_a_citation_needs_half_of_what_the_best_source_gives() -> None:
    def likely(text: str, answer: str) -> float:
        return -30.0 + 10.0 * ("1931" in text) + 5.0 * ("opened" in text) + 4.0 * ("museum" in text)

    documents = ["It was in 1931.", "It opened then.", "The museum is old."]
    r = amplify.attribute_sources("When?", documents, ScriptedModel(logprob=likely), "In 1931.")
    assert [c.source for c in r.citations] == [0, 1]
    assert [c.source for c in r.cite(of_best=0.3)] == [0, 1, 2]


@pytest.mark.parametrize(
    "answer", ["保証は二年です。登録すると五年に延びます🎉。", "ضمان سنتان. خمس سنوات!", "Zwei Jahre. Fünf Jahre 🎉!"]
)
def test_sentences_of_any_script_have_their_own_tokens(tiny_lm, answer) -> None:  # type: ignore[no-untyped-def]
    """Bytes are not characters: the sentences' values are those of their own tokens, in every coalition."""
    documents = ["保証期間は二年です。", "登録すると保証は五年に延びます。", "送料は千円です。"]
    with amplify.load_model(f"transformers:{tiny_lm}", dtype="float32") as who:
        r = amplify.attribute_sources("保証期間は？", documents, who, answer, granularity="documents", budget=8)
        tokenizer = who.tokenizer
        first_end = r.spans[1][0]  # blanks belong to the sentence before them
        table = {}
        for held in itertools.product([False, True], repeat=3):
            shown = [d for d, h in zip(documents, held, strict=True) if h]
            prompt = asked_with(r, shown)
            [found] = who.score([prompt], [answer])
            first = 0.0
            for k, logprob in enumerate(found.logprobs):
                ids = tokenizer(answer, add_special_tokens=False)["input_ids"][: k + 1]
                said = len(tokenizer.decode(ids).rstrip("\ufffd"))
                whole_before = said < first_end or (said == first_end and "\ufffd" not in tokenizer.decode(ids)[-1:])
                first += logprob if whole_before else 0.0
            table[held] = (first, found.total - first)
    for column in (0, 1):
        exact = np.zeros(3)
        for i in range(3):
            for held in itertools.product([False, True], repeat=3):
                if not held[i]:
                    size = sum(held)
                    weight = 1 / (3 * math.comb(2, size))
                    with_ = tuple(h or j == i for j, h in enumerate(held))
                    exact[i] += weight * (table[with_][column] - table[held][column])
        assert r.documents.table[:, column + 1] == pytest.approx(exact, abs=1e-3)


def asked_with(r: SourceAttribution, documents: list[str]) -> amplify.Prompt:
    from amplify import templates
    from amplify.sources.frames import asking

    context = asking(r.question, documents, templates.load("sources", "default"))
    return context.prompt(context.everything())


def test_where_tokens_end_is_told_from_what_they_say() -> None:
    from amplify.sources.games import token_ends

    text = "保証🎉。ok"
    pieces = ["\ufffd", "\ufffd", "\ufffd", "証", "\ufffd", "\ufffd", "\ufffd", "\ufffd", "。", "ok"]
    assert token_ends(pieces, text) == [0, 1, 1, 2, 2, 2, 3, 3, 4, 6]
    assert token_ends(["Two", " years.", " Five"], "Two years. Five") == [3, 10, 15]
    assert token_ends([": Two", " years."], "Two years.") == [3, 10]
    assert token_ends([], "") == []


def test_the_best_source_of_each_claim_is_opened_first() -> None:
    """Three documents carry the first claim, one the second: it is opened before the second best of the first."""
    answer = "It is two years long. It is free."

    class ByClaim(ScriptedModel):
        """Each claim is as likely as its documents make it."""

        def score(self, prompts, continuations, *, steering=None):  # type: ignore[no-untyped-def]
            found = super().score(prompts, continuations, steering=steering)
            for i, each in enumerate(found):
                text = "".join(m.content for m in prompts[i].messages)
                first = -30.0 + 12 * ("alpha" in text) + 9 * ("beta" in text) + 8 * ("gamma" in text)
                second = -8.0 + 6 * ("delta" in text)
                each_word = [first / 5] * 5 + [second / 3] * 3
                found[i] = amplify.types.TokenLogProbs(each.tokens, each.token_ids, tuple(each_word))
            return found

    documents = [
        f"{word} says. Nothing more here. And nothing." for word in ("alpha", "beta", "gamma", "delta", "other")
    ]
    who = ByClaim(logprob=lambda text, said: -1.0)
    r = amplify.attribute_sources("How?", documents, who, answer, budget=40, granularity="sentences")
    assert r.sentences is not None
    assert {0, 3} <= {s.document for s in r.sentences.sources}
    assert 4 not in {s.document for s in r.sentences.sources}
    assert [(c.source, c.text) for c in r.citations if c.claim == 1] == [(3, "delta says.")]


def test_highlighting_marks_what_carries_most() -> None:
    """A finer level that saw little of the budget does not win: its one sure word is not what the documents carry."""
    from dataclasses import replace

    from amplify.sources.context import Part
    from amplify.sources.result import level

    documents = ["alpha beta gamma. Nothing.", "delta epsilon zeta. Nothing."]

    def likely(text: str, answer: str) -> float:
        return -20.0 + 9.0 * ("alpha beta gamma" in text) + 8.0 * ("delta epsilon zeta" in text)

    r = amplify.attribute_sources("What?", documents, ScriptedModel(logprob=likely), "It.", granularity="sentences")

    def marked(low: float, high: float) -> list[str]:
        """With one sure word of a score between the two."""
        table = np.array([[(low + high) / 2], [0.0]])
        words = level([Part(0, 0, 6), Part(0, 6, 11)], r.originals, table, table - 0.1, table + 0.1)
        prompt = replace(r, words=words).highlight()
        return [prompt.messages[0].content[s.start : s.end] for s in prompt.emphasis]

    assert marked(0.4, 0.6) == ["alpha beta gamma.", "delta epsilon zeta."]
    assert marked(8.9, 9.1) == ["alpha"]  # which carries at least half of it


def test_every_option_has_a_keyword() -> None:
    from dataclasses import fields

    from amplify.sources.options import Named, Options

    assert {f.name for f in fields(Options)} - {"budget", "relative"} == set(Named.__annotations__)


def test_a_tool_result_belongs_to_a_call() -> None:
    stray = {"role": "tool", "content": "Members get five years.", "tool_call_id": "c9"}
    with pytest.raises(InputError, match="tool result 'c9' belongs to no call"):
        amplify.attribute_sources(messages=[*MESSAGES[:4], stray, MESSAGES[4]], answer="x", model=model())


def test_an_empty_span_is_told_as_such() -> None:
    with pytest.raises(InputError, match=r"source 0 is empty: characters \[3, 3\) of message 1"):
        amplify.attribute_sources(messages=MESSAGES, sources=[Source(1, 3, 3)], answer="x", model=model())


def test_a_document_that_stands_twice_is_told() -> None:
    text = "Members get five years."
    messages = [{"role": "user", "content": f"{text} {text} Shipping is free. How long?"}]
    r = amplify.attribute_sources(
        messages=messages, documents=[text, "Shipping is free."], answer="Five years.", model=model()
    )
    [note] = r.notes
    assert note.startswith("document 0 stands in the messages 2 times: judged is the first place")


def test_results_compare_by_what_they_hold() -> None:
    r, other = (
        amplify.attribute_sources(messages=MESSAGES, answer=answer, model=model()) for answer in ("Five years.", "No.")
    )
    assert pickle.loads(pickle.dumps(r)) == r == copy.deepcopy(r)
    assert r != other
    assert r.documents == copy.deepcopy(r.documents)
    assert r.documents != r.sentences
    assert r != "Five years."


@pytest.mark.parametrize("wrong", [{"top": 0}, {"share": -0.1}, {"of_best": 1.5}, {"share": float("nan")}])
def test_citations_by_a_rule_that_makes_no_sense(wrong) -> None:  # type: ignore[no-untyped-def]
    r = amplify.attribute_sources(messages=MESSAGES, answer="Five years.", model=model())
    with pytest.raises(InputError):
        r.cite(**wrong)
