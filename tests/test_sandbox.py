"""Templates that loop, grow or reach for Python end in one error; templates that write prompts are not disturbed."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from amplify import sandbox
from amplify.errors import InputError
from amplify.templates import Template

GROWING = "{%% set ns = namespace(x=%s) %%}{%% for i in range(60) %%}{%% set ns.x = %s %%}{%% endfor %%}{{ ns.x }}"
LONG = "{% set x = 'a' * 10**6 %}"
HOSTILE = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "a loop's test": "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
    "a filter in a loop": "{% for i in range(99999) %}{{ range(99999) | map('string') | join | length }}{% endfor %}",
    "a text times": "{{ 'a' * 10**10 }}",
    "a list times": "{{ [1] * 10**10 }}",
    "a power": "{{ 2 ** (10 ** 10) }}",
    "squares": GROWING % ("3", "ns.x * ns.x"),
    "joined to itself": GROWING % ("'a'", "ns.x ~ ns.x"),
    "added to itself": GROWING % ("'a'", "ns.x + ns.x"),
    "a list in itself": GROWING % ("[1]", "[ns.x, ns.x]"),
    "written into itself": "{% set x = 'a' %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 40,
    "equal lists": GROWING % ("[[1], [1]]", "[[ns.x[0], ns.x[0]], [ns.x[1], ns.x[1]]]") + "{{ ns.x[0] == ns.x[1] }}",
    "wide numbers": "{{ '%1000000000d' | format(1) }}",
    "width by argument": "{{ '%*d' % (10**9, 1) }}",
    "format": "{{ '{:>1000000000}'.format(1) }}",
    "ljust": "{{ 'a'.ljust(10**10) }}",
    "expandtabs": "{{ '\t'.expandtabs(10**10) }}",
    "bytes": "{{ (1).to_bytes(10**10) }}",
    "round": "{{ 5 | round(-10**9) }}",
    "indent": "{{ range(9999) | join('\n') | indent(10**6) }}",
    "tojson": "{{ [1, 2] | tojson(indent=10**9) }}",
    "replace": LONG + "{{ x | replace('a', x) }}",
    "the method replace": LONG + "{{ x.replace('a', x) }}",
    "join": LONG + "{{ range(99999) | join(x) }}",
    "the method join": LONG + "{{ x.join('a' * 99999) }}",
    "searches": LONG + "{% for i in range(99999) %}{{ 'b' in x }}{% endfor %}",
    "slices": LONG + "{% for i in range(99999) %}{% set y = x[1:] %}{% endfor %}",
    "sums of lists": "{{ ([[1]] * 100000) | sum(start=[]) }}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "a macro without end": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a loop without end": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "constants": "{% for i in range(99999) %}" + "a" * 99999 + "{% endfor %}",
    "nested brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "nested loops": "{% for a in [1] %}" * 200 + "{% endfor %}" * 200,
    "a large source": "a" * 10**6,
    "globals": "{{ cycler.__init__.__globals__.os.getcwd() }}",
}


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_template_is_one_error(source: str) -> None:
    with pytest.raises(InputError, match="template 'theirs'"):
        Template("theirs", source).render({"text": "a"})


def test_threads_have_units_of_their_own() -> None:
    # two of these in one stock of units would be too much
    half = Template("mine", "{% for i in range(" + str(sandbox.UNITS // 40) + ") %}" + "a" * 150 + "{% endfor %}")
    with ThreadPoolExecutor(4) as pool:
        assert len({len(text) for text in pool.map(lambda _: half.render({}), range(4))}) == 1


@pytest.mark.parametrize(
    ("source", "variables", "written"),
    [
        ("{% for d in documents %}[{{ loop.index }}] {{ d }}{{ ', ' if not loop.last }}{% endfor %}",
         {"documents": ["a", "b"]}, "[1] a, [2] b"),
        ("{{ (100 * share) | round | int }} % {{ words | map('upper') | join('+') }}",
         {"share": 0.256, "words": ["a", "b"]}, "26 % A+B"),
        ("{{ a ~ ' ' ~ b }} {{ 1 < b <= 3 }} {{ a in ['x', 'y'] }} {{ '%.2f' | format(b) }} {{ '%s' % a }}",
         {"a": "x", "b": 2}, "x 2 True True 2.00 x"),
        ("{{ ', '.join(words) }} {{ words[0][1:] }} {{ 'abc'.replace('b', '-') }} {{ [1, 2] | sum }}",
         {"words": ["one", "two"]}, "one, two ne a-c 3"),
        ("{% macro tag(n) %}<{{ n }}>{% endmacro %}{{ tag('x') }}{{ fields.get('a', 'none') }} {{ fields.b }}",
         {"fields": {"b": None}}, "<x>none None"),
        ("{% set ns = namespace(n=0) %}{% for k, v in fields.items() if v %}{% set ns.n = ns.n + v %}{% endfor %}"
         "{{ ns.n }} {{ x is defined }} {{ n is divisibleby 2 }}", {"fields": {"a": 1, "b": 0, "c": 4}, "n": 4},
         "5 False True"),
    ],
)  # fmt: skip
def test_what_prompts_need_works(source: str, variables: dict[str, Any], written: str) -> None:
    assert Template("mine", source).render(variables) == written


def test_long_contexts_are_no_bomb() -> None:
    documents = ["word " * 2000] * 1000
    shown = Template("mine", "{% for d in documents %}{{ d }}\n\n{% endfor %}").render({"documents": documents})
    assert len(shown) > 10_000_000


def test_a_filter_that_is_not_there_lists_those_that_are() -> None:
    with pytest.raises(InputError, match=r"No filter named 'center'.*trim"):
        Template("mine", "{{ 'a' | center(10) }}").render({})
