"""What is registered by hand, by a plugin, by a broken plugin; and what errors say."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import amplify
from amplify import registry
from amplify.errors import InputError, UnknownNameError
from amplify.methods import METHODS, Amplify, FewShot, Pasta, Preset, make

PLUGIN = '''
import sys
import amplify
from amplify.methods import FewShot

print("plugin imported", file=sys.stderr)


@amplify.register("method", "my_shots")
class MyShots(FewShot):
    """Shots of mine."""
'''


@pytest.fixture
def registered():
    """Names that a test registers by hand are gone afterwards."""
    names: list[tuple[str, str]] = []
    yield lambda kind, name: names.append((kind, name))
    for kind, name in names:
        registry.table(kind).remove(name)


def install(folder: Path, package: str, code: str) -> None:
    """A package as pip leaves it in a site-packages folder."""
    (folder / f"{package}.py").write_text(code)
    info = folder / f"{package}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[amplify.plugins]\nit = {package}\n")


def python(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run code with a folder of packages before all others."""
    before = f"import sys; sys.path.insert(0, {str(folder)!r})\n"
    return subprocess.run([sys.executable, "-c", before + code], capture_output=True, text=True, check=False)


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return python(folder, f"sys.argv = ['amplify', *{arguments!r}]\nfrom amplify.cli import main; main()")


def test_a_method_of_ones_own_is_known_by_its_name(registered) -> None:
    registered("method", "mine")

    @amplify.register("method", "mine")
    @dataclass(frozen=True)
    class Mine(FewShot):
        """My own."""

        extra: int = 3

    assert METHODS["mine"].cls is Mine
    assert list(METHODS)[-1] == "mine"
    made = make("mine", extra="5", shots=2)
    assert (made.name, made.label, made.role) == ("mine", "mine[shots=2,extra=5]", "method")
    assert make("few_shot").name == FewShot().name == "few_shot"
    assert METHODS.package("mine") == METHODS.package("few_shot") == ""


def test_options_of_ones_own_have_the_types_that_they_say(registered) -> None:
    registered("method", "mine")

    @amplify.register("method", "mine")
    @dataclass(frozen=True)
    class Mine(FewShot):
        """Some options."""

        most: int | None = None
        share: float | None = 0.5
        words: tuple[str, ...] = ()

    made = make("mine", most="3", share="none", words=["a"])
    assert (made.most, made.share, made.words) == (3, None, ["a"])  # type: ignore[attr-defined]
    assert make("mine", most=None).label == "mine"
    with pytest.raises(InputError, match=r"mine\.most is an int, not 'many'"):
        make("mine", most="many")


def test_registering_the_same_again_replaces_it_and_anothers_name_is_refused(registered) -> None:
    registered("method", "mine")
    for doc in ("first", "second"):  # a notebook's cell that runs twice
        again = type("Mine", (FewShot,), {"__doc__": doc, "__module__": "notebook"})
        amplify.register("method", "mine", again)
    assert METHODS["mine"].description == "second"
    with pytest.raises(InputError, match=r"'mine' is registered already, by notebook\.Mine"):
        amplify.register("method", "mine")(type("Other", (FewShot,), {}))
    with pytest.raises(InputError, match=r"'few_shot' is registered already, by amplify\.methods\.base\.Preset"):
        amplify.register("method", "few_shot")(type("Other", (FewShot,), {}))


def test_what_cannot_be_registered() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'method'"):
        amplify.register("metod", "x")
    with pytest.raises(InputError, match="without blanks"):
        amplify.register("method", "a b")
    with pytest.raises(InputError, match="extends amplify"):
        amplify.register("method", "x")(print)
    with pytest.raises(InputError, match="its name is 'y'"):
        amplify.register("method", "x")(type("X", (FewShot,), {"name": "y"}))
    assert "x" not in METHODS


def test_a_plugin_is_imported_when_it_is_needed_and_once(tmp_path: Path) -> None:
    install(tmp_path, "shiny", PLUGIN)
    built_in = "from amplify.methods import METHODS, make; print(make('few_shot').label, 'few_shot' in METHODS)"
    done = python(tmp_path, built_in)
    assert (done.stdout, done.stderr) == ("few_shot True\n", "")
    done = python(tmp_path, f"{built_in}; print(make('my_shots', shots=2).label, 'nothing' in METHODS)")
    assert (done.stdout, done.stderr) == ("few_shot True\nmy_shots[shots=2] False\n", "plugin imported\n")
    done = command(tmp_path, "list", "methods")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1].split(maxsplit=1) == ["my_shots", "method   Shots of mine.  [shiny 1.2]"]


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        (PLUGIN + "\n1 / 0\n", "ZeroDivisionError: division by zero"),
        (PLUGIN.replace("my_shots", "few_shot"), "InputError: the method 'few_shot' is registered already"),
    ],
)
def test_a_broken_plugin_is_one_clear_error_and_spoils_nothing(tmp_path: Path, code: str, told: str) -> None:
    install(tmp_path, "shiny", PLUGIN)
    install(tmp_path, "dull", code.replace("MyShots", "Other"))
    done = command(tmp_path, "list", "methods")
    assert done.returncode == 0
    assert "my_shots " in done.stdout
    assert f"amplify: The plugin dull of the package dull 1.2 cannot be loaded ({told}" in done.stderr
    assert "Traceback" not in done.stderr
    done = command(tmp_path, "run", "support_tickets", "-m", "scripted:say=x", "-M", "my_shotss")
    assert done.returncode == 2
    assert "Did you mean 'my_shots'?" in done.stderr
    assert "of the package dull 1.2 cannot be loaded" in done.stderr


def test_what_a_broken_plugin_registered_before_it_broke_is_gone(tmp_path: Path) -> None:
    install(tmp_path, "dull", PLUGIN + "\n1 / 0\n")
    done = python(tmp_path, "from amplify.methods import METHODS; print('my_shots' in METHODS)")
    assert done.stdout == "False\n"


def test_a_variant_has_its_own_name_role_and_options(registered) -> None:
    registered("method", "two_longest")
    variant = Preset(
        FewShot, "Two.", "control", fixed={"selection": "balanced"}, defaults={"shots": 2}, without=("mark", "emphasis")
    )
    amplify.register("method", "two_longest", variant)
    amplify.register("method", "two_longest", variant)  # a notebook's cell that runs twice
    made = make("two_longest", prefill=False)
    assert (made.label, made.role, made.shots) == ("two_longest[prefill=false]", "control", 2)
    assert make("two_longest", shots=8).label == "two_longest[shots=8]"
    assert dataclasses.replace(made, shots=3).label == "two_longest[prefill=false,shots=3]"
    assert "selection" not in METHODS["two_longest"].options
    assert METHODS["two_longest"].description.startswith("Two.\n\nAttributes:\n    shots: how many.")
    for option in ("selection", "mark"):
        with pytest.raises(UnknownNameError, match=f"unknown two_longest option '{option}'"):
            make("two_longest", **{option: "random"})
    with pytest.raises(UnknownNameError, match="Did you mean 'shots'"):
        amplify.register("method", "x", Preset(FewShot, fixed={"shot": 2}))


def test_an_object_of_a_class_is_the_variant_that_its_options_say() -> None:
    drawn = Amplify(rationales="random", shots=4)
    assert (drawn.label, drawn.role) == ("amplify_random_words[shots=4]", "control")
    assert drawn == make("amplify_random_words", shots=4)
    assert (Pasta().seeded, Pasta(random_heads=True).seeded) == (False, True)
