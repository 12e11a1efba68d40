"""Steering specs, emphasis marks and the mapping from characters to tokens."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import amplify
from amplify import Span, Steering, parse_emphasis
from amplify.errors import DataError, InputError, UnknownNameError
from amplify.steering.formula import TokenSpan, dynamic_weights, key_log_weights, token_spans


def config(layers: int = 4, heads: int = 8, kind: str = "llama") -> SimpleNamespace:
    own = SimpleNamespace(model_type=kind, num_hidden_layers=layers, num_attention_heads=heads)
    own.get_text_config = lambda decoder: own
    return own


def test_round_trip_through_json_and_yaml(tmp_path):
    s = Steering(heads={7: [1], 3: [5, 0]}, alpha=0.1, phase="decode", model={"layers": 4}, provenance={"n": 3})
    assert s.heads == {3: (0, 5), 7: (1,)}
    assert Steering.from_json(s.to_json()) == s
    s.save(tmp_path / "mine.yaml")
    back = Steering.load(tmp_path / "mine.yaml")
    assert back == s
    assert back.model == {"layers": 4}
    assert back.provenance == {"n": 3}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"heads": {3: [0]}, "alpha": 0}, "alpha"),
        ({"heads": {3: [0]}, "alpha": 1.5}, "alpha"),
        ({"heads": {3: [0]}, "alpha": float("nan")}, "alpha"),
        ({"heads": {3: [0]}, "alpha": "0.1"}, "alpha"),
        ({"heads": {3: [0]}, "alpha": 1e-310}, "alpha"),
        ({"mode": "instaboost", "bonus": 1000}, "bonus is a number from"),
        ({"mode": "instaboost", "bonus": -1000}, "bonus is a number from"),
        ({"mode": "instaboost", "bonus": 10**400}, "bonus is a number from"),
        ({"heads": {-1: [0]}}, "layer"),
        ({"heads": {"x": [0]}}, "layer"),
        ({"heads": {3: []}}, "list of different heads"),
        ({"heads": {3: [1, 1]}}, "list of different heads"),
        ({"heads": {3: [True]}}, "list of different heads"),
        ({"heads": {}}, "heads maps layers"),
        ({}, "pasta steers chosen heads"),
        ({"heads": {3: [0]}, "mode": "pastaa"}, "Did you mean 'pasta'"),
        ({"heads": {3: [0]}, "phase": "never"}, "unknown steering phase"),
        ({"mode": "spotlight", "exempt_generated": True}, "no meaning"),
        ({"mode": "target_mass", "target": 1.0}, "target"),
    ],
)
def test_bad_values_are_refused(options, says):
    with pytest.raises(InputError, match=says):
        Steering(**options)


@pytest.mark.parametrize("weight", [0, -1, float("inf"), float("nan"), 1e-310])
def test_weights_that_no_float_holds_are_refused(weight):
    with pytest.raises(InputError, match="weight is a factor"):
        Span(0, 1, weight=weight)


def test_unknown_keys_and_profiles(tmp_path):
    with pytest.raises(UnknownNameError, match="alpha"):
        Steering.from_dict({"heads": {1: [0]}, "alhpa": 0.1})
    with pytest.raises(UnknownNameError, match="unknown steering profile"):
        Steering.load("no_such_profile")
    (tmp_path / "other.yaml").write_text("format: 99\nheads: {1: [0]}\n")
    with pytest.raises(DataError, match="format"):
        Steering.load(tmp_path / "other.yaml")


def test_check_names_what_is_unknown_or_differs():
    s = Steering(heads={3: [0, 5]})
    assert s.check(config()) == {3: (0, 5)}
    with pytest.raises(InputError, match=r"layer 3; this model has layers 0 to 2"):
        s.check(config(layers=3))
    with pytest.raises(InputError, match=r"head 5 of layer 3, which has 0 to 3"):
        s.check(config(heads=4))
    with pytest.raises(InputError, match="model_type 'llama' against 'phi'"):
        replace(s, model={"model_type": "llama"}).check(config(kind="phi"))
    with pytest.raises(InputError, match="sha256 'a' against 'b'"):
        replace(s, model={"sha256": "a"}).check(config(), {"sha256": "b"})
    assert Steering(mode="instaboost").check(config(2, 3)) == {0: (0, 1, 2), 1: (0, 1, 2)}
    hybrid = config(4, 8)
    hybrid.layer_types = ["linear_attention", "full_attention"] * 2
    assert s.check(hybrid) == {3: (0, 5)}
    with pytest.raises(InputError, match="linear_attention"):
        Steering(heads={2: [0]}).check(hybrid)
    assert list(Steering(mode="instaboost").check(hybrid)) == [1, 3]
    moved = replace(s, model={"sha256": "a", "name": "here"})
    assert moved.check(config(), {"sha256": "a", "name": "there"}) == {3: (0, 5)}


def test_marks_become_spans_and_vanish():
    p = parse_emphasis("the **Africa** of <em weight=3>old</em> 2\\**3 \\<em>", raw=True)
    assert p.text == "the Africa of old 2**3 <em>"
    assert [(p.text[s.start : s.end], s.weight) for s in p.emphasis] == [("Africa", None), ("old", 3.0)]
    chat = amplify.parse_emphasis("Hello. **Answer in JSON only.**", prefix="{")
    assert chat.messages[0].content == "Hello. Answer in JSON only."
    assert chat.emphasis == (Span(7, 27, None, 0),)
    assert chat.prefix == "{"
    turns = parse_emphasis([{"role": "system", "content": "Be **brief**."}, {"role": "user", "content": "Hi"}])
    assert turns.emphasis == (Span(3, 8, None, 0),)
    assert parse_emphasis("a == b", mark="==" + "=").messages[0].content == "a == b"


@pytest.mark.parametrize(
    "text",
    ["a **b", "**a** **", "a </em>", "<em>a", "a **** b", "<em></em>", "<em weight=x>a</em>", "<em weight=0>a</em>",
     "<em wieght=2>a</em>"],
)  # fmt: skip
def test_malformed_marks_are_errors(text):
    with pytest.raises(InputError):
        parse_emphasis(text, raw=True)


@given(st.lists(st.tuples(st.text("ab \n", min_size=1), st.booleans()), min_size=1))
def test_marks_round_trip(parts):
    marked = "".join(f"**{t}**" if on else f"<em weight=2>{t}</em>" for t, on in parts)
    p = parse_emphasis(marked, raw=True)
    assert p.text == "".join(t for t, _ in parts)
    assert [(p.text[s.start : s.end], s.weight) for s in p.emphasis] == [(t, None if on else 2.0) for t, on in parts]


def test_a_token_is_inside_if_it_shares_a_character():
    s = Steering(heads={0: [0]}, alpha=0.5)
    offsets = [(0, 0), (0, 3), (3, 10), (10, 12)]
    assert token_spans(offsets, [Span(2, 4)], s) == (TokenSpan(1, 3, 2.0),)
    assert token_spans(offsets, [Span(3, 10)], s) == (TokenSpan(2, 3, 2.0),)
    assert token_spans(offsets, [Span(0, 3, 5.0), Span(10, 11)], s) == (TokenSpan(1, 2, 5.0), TokenSpan(3, 4, 2.0))
    assert token_spans(offsets, [Span(0, 5), Span(2, 9, 2.0)], s) == (TokenSpan(1, 3, 2.0),)  # agreeing overlap
    with pytest.raises(InputError, match="overlapping spans must agree"):
        token_spans(offsets, [Span(0, 4), Span(3, 5, 7.0)], s)
    with pytest.raises(InputError, match="share a token"):
        token_spans(offsets, [Span(3, 5), Span(6, 9, 7.0)], s)
    with pytest.raises(InputError, match="no token"):
        token_spans(offsets, [Span(20, 22)], s)
    with pytest.raises(InputError, match="gives one"):
        token_spans(offsets, [Span(0, 2, 3.0)], Steering(mode="spotlight"))


def test_key_log_weights_follow_the_options():
    s = Steering(heads={0: [0]}, alpha=0.5)
    spans = (TokenSpan(2, 4, 2.0), TokenSpan(5, 6, 0.25))
    two, low = np.log(2), np.log(0.25)
    assert key_log_weights(spans, 6, 8, s) == pytest.approx([0, 0, two, two, 0, low, 0, 0])
    spared = key_log_weights(spans, 6, 8, replace(s, keep_attention_sink=True, exempt_generated=True))
    assert spared == pytest.approx([two, 0, two, two, 0, low, two, two])
    assert key_log_weights((), 2, 3, replace(s, keep_attention_sink=True, exempt_generated=True)) == [0, 0, 0]
    only_down = (TokenSpan(1, 2, 0.25),)
    assert key_log_weights(only_down, 2, 3, replace(s, exempt_generated=True)) == pytest.approx([0, low, 0])


@pytest.mark.parametrize("spare", [False, True])
@given(
    masses=st.tuples(st.floats(1e-4, 1), st.floats(1e-4, 1), st.floats(1e-4, 1)), target=st.floats(0.05, 0.95)
)  # fmt: skip
def test_dynamic_weights_reach_their_mass(spare, masses, target):
    psi, sink, rest = np.array(masses) / sum(masses)
    for mode in ("spotlight", "target_mass"):
        steering = Steering(mode=mode, target=target, keep_attention_sink=spare)
        w, u = dynamic_weights(np.array([psi]), np.array([sink]), np.array([rest]), steering)
        if spare:
            total = w * psi + u * sink + rest
            assert u * sink / total == pytest.approx(sink)
            share, new = psi / (1 - sink), w * psi / (w * psi + rest)
        else:
            assert u == pytest.approx(1)
            share, new = psi, w * psi / (w * psi + sink + rest)
        if mode == "target_mass":
            assert new == pytest.approx(target)
        elif share >= target:
            assert new == pytest.approx(share)
        else:
            assert new == pytest.approx(target / (1 - share + target))


def test_rows_without_a_span_stay_as_they_are():
    s = Steering(mode="target_mass", keep_attention_sink=True)
    w, u = dynamic_weights(np.array([0.0, 1.0]), np.array([0.5, 0.0]), np.array([0.5, 0.0]), s)
    assert np.array_equal(w, [1, 1])
    assert np.array_equal(u, [1, 1])
