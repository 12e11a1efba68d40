"""Chat templates of model folders: what transformers makes of them, and no more work than a template may do."""

from pathlib import Path

import pytest
from jinja2 import TemplateError

from amplify.errors import InputError, PromptFormatError
from amplify.models import chat
from amplify.models.chat_template import filled, switched
from amplify.types import Prompt

PLAIN = [{"role": "user", "content": "Hi <b> 'é'\n"}]
TALK = [
    {"role": "system", "content": " Be brief. "},
    *PLAIN,
    {"role": "assistant", "content": "<think>a</think>b"},
    *PLAIN,
]

# what templates in use are made of
TEMPLATES = {
    "turns": "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m.content | trim + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "tokens": "{{ bos_token }}{{- eos_token if eos_token is defined }}{{ unknown }}{{ unknown is none }}[{{ tools }}]",
    "namespace": "{%- set ns = namespace(system='', n=0) -%}\n{%- for m in messages %}\n  {%- if m.role == 'system' %}"
    "{% set ns.system = m.content %}{% continue %}{% endif %}\n  {%- if loop.index0 > 5 %}{% break %}{% endif %}\n"
    "  {%- set ns.n = ns.n + 1 %}[{{ ns.n }}/{{ loop.length }}] {{ m.content.split('</think>')[-1].lstrip('\\n') }}\n"
    "{%- endfor %}{{ ns.system[1:] }}{{ messages[-1:] | length }}{{ messages[::-1][0].role }}",
    "refuses": "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('No system message') }}{% endif %}"
    "{{ m.content }}{% endfor %}",
    "json": "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}{{ {'a': [1, 2.5, none]} | tojson }}",
    "macro": "{% macro turn(m, deep=1) %}{{ m.role | upper }}: {{ m.content }}{% if deep %}{{ turn(m, 0) }}{% endif %}"
    "{% endmacro %}{% for m in messages %}{{ turn(m) }}{% endfor %}",
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{% set a = 1 %}{{ m.content }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}{{ a }}",
    "filters": "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join('|') }}"
    "{{ messages | rejectattr('role', 'equalto', 'user') | list | length }}{{ 'a\nb' | indent(2) }}"
    "{{ '%s-%d' | format('a', 3) }}{{ 'a' * 3 }}{{ [1] + [2] }}{{ 7 // 2 }}{{ 'x' in 'xy' }}{{ (1, 2) | last }}"
    "{{ 'a' ~ 1 ~ none }}{{ messages[0].items() | list }}{{ messages[0].get('x', 'no') }}{{ 'b' | safe }}",
    "switch": "{{ messages[0].content }}{{ '' if enable_thinking is false else '<think>' }}",
    "out of reach": "[{{ raise_exception.__globals__ }}{{ strftime_now.__code__ }}]",
    "date": "{{ strftime_now('%Y') | length }}",
    "strings": "{{ messages[0]['content'] is string }}{{ 'A b'.lower().replace('b', 'c').title() }}"
    "{{ 'x'.startswith('x') }}"
    "{{ 'a-b'.split('-')[1] }}{{ ' z '.strip() }}{{ 'abc'.find('c') }}{{ 'a'.join(['1', '2']) }}{{ 'é' == 'e' }}",
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tiny_lm: Path):  # type: ignore[no-untyped-def]
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_lm)


def outcome(function):  # type: ignore[no-untyped-def]
    try:
        return function()
    except TemplateError as error:
        return f"refused: {error}"


@pytest.mark.parametrize("switches", [{}, {"enable_thinking": False}])
@pytest.mark.parametrize("talk", [PLAIN, TALK], ids=["plain", "talk"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_gives_what_transformers_makes_of_it(name, talk, switches, tokenizer) -> None:  # type: ignore[no-untyped-def]
    tokenizer.chat_template = TEMPLATES[name]
    theirs = outcome(
        lambda: tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True, **switches)
    )
    try:
        assert outcome(lambda: filled(switched(tokenizer, switches), talk)) == theirs
    finally:
        tokenizer.amplify_switches = {}
    assert theirs
    assert (name == "refuses" and talk is TALK) == theirs.startswith("refused")


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}x" + "{% endfor %}" * 3,
        "{{ 'x' * 1000000000 }}",
        "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
        "{{ 'x' | center(1000000000) }}",
        "{{ messages | tojson(indent=1000000000) }}",
        "{{ messages | batch(1000000000, 'x') | list }}",
        "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ '%1000000000d' | format(1) }}",
        "{{ strftime_now('%1000000000Y') }}",
        "{{ strftime_now('%c' * 5000) }}",
        "{% generation %}{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}"
        "{% endgeneration %}",
        "{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ raise_exception.__globals__.x }}",
    ],
)  # fmt: skip
def test_a_hostile_template_is_one_error(source: str, tokenizer) -> None:  # type: ignore[no-untyped-def]
    tokenizer.chat_template = source
    with pytest.raises((InputError, PromptFormatError)) as told:
        chat.render(Prompt(messages=({"role": "user", "content": "Hi"},)), tokenizer)  # type: ignore[arg-type]
    assert "chat template" in str(told.value)


def test_a_tokenizer_with_code_of_its_own_is_asked() -> None:
    class Own:
        def apply_chat_template(self, turns, **options):  # type: ignore[no-untyped-def]
            return f"{turns[0]['content']} {sorted(options)}"

    said = filled(switched(Own(), {"enable_thinking": False}), PLAIN[:1])  # type: ignore[arg-type]
    assert said.endswith("['add_generation_prompt', 'enable_thinking', 'tokenize']")


def test_mistakes_in_a_template_are_no_tracebacks(tokenizer) -> None:  # type: ignore[no-untyped-def]
    for source in ("{{ 1 / 0 }}", "{{ messages + 1 }}", "{{ 1e999 }}", "{{ messages[9].role }}", "{{ ("):
        tokenizer.chat_template = source
        with pytest.raises(TemplateError):
            filled(tokenizer, PLAIN)
