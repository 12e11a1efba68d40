from pathlib import Path

import pytest

from amplify import resources, templates
from amplify.errors import InputError, UnknownNameError
from amplify.templates import Template


def test_unknown_name_suggests_the_nearest_and_lists_the_rest() -> None:
    with pytest.raises(UnknownNameError, match=r"Did you mean 'key_words'\?.*paper"):
        templates.load("rationale", "key_word")
    with pytest.raises(UnknownNameError):
        templates.load("rationale", "../../pyproject")


def test_missing_variable_is_named_and_the_others_listed() -> None:
    with pytest.raises(InputError, match=r"'labl' is undefined.*label, text"):
        Template("mine", "{{ labl }}").render({"label": "x", "text": "y"})
    with pytest.raises(InputError, match="no attribute 'colour'"):
        Template("mine", "{{ fields.colour }}").render({"fields": {}})


@pytest.mark.parametrize(
    "source",
    [
        "{{ a",
        "{% if %}",
        "{{ x + 1 }}",
        "{{ a | nofilter }}",
        "{{ 1 if x | nofilter }}",
        "{{ 1 if x is notest }}",
        "{{ 1e999 }}",
    ],
)
def test_mistakes_name_the_template(source: str) -> None:
    with pytest.raises(InputError, match="'mine'"):
        Template("mine", source).render({"x": "text", "a": "b"})


def test_templates_are_sandboxed() -> None:
    for source in ("{{ ''.__class__.__mro__ }}", "{{ words.append('x') }}", "{% for i in range(10**9) %}{% endfor %}"):
        with pytest.raises(InputError, match="'evil'"):
            Template("evil", source).render({"words": ["a"]})


def test_own_file(tmp_path: Path) -> None:
    own = tmp_path / "own.jinja"
    own.write_text("Why: {{ words | join('+') }}\n")
    assert templates.load("rationale", str(own)).render({"words": ["a", "b"]}) == "Why: a+b"
    own.write_text("Why: {{ words | join('+') }}\n", encoding="utf-8-sig")
    assert templates.load("rationale", str(own)).render({"words": ["a", "b"]}) == "Why: a+b"
    with pytest.raises(InputError, match="cannot be read"):
        templates.load("rationale", str(tmp_path / "none.jinja"))


def test_cut_where_a_variable_goes() -> None:
    template = Template("t", "{% if why %}{{ why }} {% endif %}The answer is {{ label }}.")
    assert template.before("label", {"why": "", "label": ""}) == "The answer is "
    assert template.after("label", {"why": "", "label": ""}) == "."
    assert not template.writes("other", {"why": "", "label": ""})


def test_hash_follows_the_source() -> None:
    assert Template("a", "x").sha256 == Template("b", "x").sha256 != Template("a", "y").sha256


def test_every_shipped_template_compiles_and_is_described() -> None:
    folder = resources.content("prompts")
    readme = (folder / "README.md").read_text()
    for path in folder.glob("*.jinja"):
        assert f"`{path.name}`" in readme, f"{path.name} is missing in prompts/README.md"
        source = path.read_text()
        assert not source.startswith("\n")
        told = ""
        try:
            Template(path.name, source).render({})
        except InputError as error:
            told = str(error)
        assert not told or "The variables there are" in told  # it compiles, and asks for one
