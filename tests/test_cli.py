"""The command line from the outside: what it prints, what it leaves on disk, how it fails."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from amplify.cli import cli, main


@pytest.fixture
def amplify(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):  # type: ignore[no-untyped-def]
    """Call the command line in an empty folder: exit status, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["amplify", *arguments])
        status = 0
        try:
            main()
        except SystemExit as done:
            status = int(done.code or 0)
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return call


RUN = ("run", "support_tickets", "--model", "scripted:say=The answer is billing.", "--limit", "6", "--out", "r")


def test_help_names_every_command(amplify) -> None:  # type: ignore[no-untyped-def]
    status, out, _ = amplify("--help")
    assert status == 0
    for command in ("run", "apply", "explain", "proxy", "attribute", "heads", "generate", "report", "models", "list"):
        assert f"\n  {command} " in out


def test_every_option_of_every_command_says_what_it_is() -> None:
    def walk(command: click.Command) -> list[str]:
        if isinstance(command, click.Group):
            return [line for one in command.commands.values() for line in walk(one)]
        options = [o for o in command.params if isinstance(o, click.Option)]
        bare = [f"{command.name} {option.opts[0]}" for option in options if not option.help]
        return bare if command.help else [*bare, str(command.name)]

    assert walk(cli) == []


def test_run_report_and_apply(amplify, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    status, out, err = amplify(*RUN, "--methods", "zero_shot,few_shot", "--seeds", "0,1", "--set", "few_shot.shots=2")
    assert status == 0, err
    assert "few_shot[shots=2]" in out
    assert Path("r/report.html").is_file()
    assert len(Path("r/records.jsonl").read_text().splitlines()) == 6 + 2 * 6
    Path("r/report.html").unlink()
    again, shown, _ = amplify("report", "r")
    assert again == 0
    assert shown == out  # rendered from the records alone
    assert Path("r/report.html").is_file()

    program = next(Path("r/programs").glob("*zero_shot*.json"))
    Path("new.csv").write_text("message\nmy money is gone\n")
    status, out, err = amplify(
        "apply", str(program), "--input", "new.csv", "--text", "message", "-m", RUN[3], "--out", "a.csv"
    )
    assert status == 0, err
    assert Path("a.csv").read_text().splitlines()[0] == "message,answer,rationale,score"


def test_a_suite_file_holds_the_options_and_the_command_line_wins(amplify) -> None:  # type: ignore[no-untyped-def]
    Path("suite.yaml").write_text(
        f"task: support_tickets\nmodel: '{RUN[3]}'\nmethods: [zero_shot]\nseeds: [0]\nlimit: 3\nout: s\n"
    )
    assert amplify("run", "--config", "suite.yaml", "--limit", "2")[0] == 0
    assert len(Path("s/records.jsonl").read_text().splitlines()) == 2


def test_a_dry_run_writes_nothing(amplify, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    status, out, _ = amplify(*RUN, "--methods", "zero_shot,few_shot", "--dry-run")
    assert status == 0
    assert "prompt tok" in out
    assert not Path("r").exists()


def listed(amplify, what: str) -> dict[str, str]:  # type: ignore[no-untyped-def]
    """What `amplify list` says of each name."""
    status, out, err = amplify("list", what)
    assert (status, err) == (0, "")
    return {name: said.strip() for name, _, said in (line.partition(" ") for line in out.splitlines())}


def test_methods_and_explainers_are_listed_with_what_they_are(amplify) -> None:  # type: ignore[no-untyped-def]
    from amplify.attribution import METHODS as EXPLAINERS
    from amplify.methods import METHODS

    methods = listed(amplify, "methods")
    assert list(methods) == list(METHODS)
    assert methods["zero_shot"] == "baseline The instruction and the question alone."
    assert {said.split()[0] for said in methods.values()} == {"method", "baseline", "control"}
    assert all(len(said.split()) > 1 for said in methods.values())
    explainers = listed(amplify, "explainers")
    assert list(explainers) == list(EXPLAINERS)
    assert [name for name, said in explainers.items() if said.endswith("unsigned")] == [
        name for name, explainer in EXPLAINERS.items() if not explainer.signed
    ]


def test_one_of_them_is_described_with_its_options(amplify) -> None:  # type: ignore[no-untyped-def]
    status, out, _ = amplify("list", "methods", "few_shot")
    assert status == 0
    assert out.startswith("Labelled examples of the training split")
    assert "\nrole: baseline\n" in out
    assert "\n  few_shot.shots=8\n" in out
    assert amplify("list", "metrics", "accuracy")[1] == "share of right labels; an unparsed answer is wrong\n"
    assert amplify("list", "models", "scripted")[1] == "Answers by a rule, for trying things out.\n"
    status, _, err = amplify("list", "methods", "few_shott")
    assert status == 2
    assert "Did you mean 'few_shot'?" in err
    assert "takes no NAME" in amplify("list", "proxies", "x")[2]


def test_tasks_and_models_are_listed_with_what_is_here(amplify, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    from amplify.hub import ALIASES

    monkeypatch.delenv("AMPLIFY_DATA", raising=False)
    monkeypatch.setenv("AMPLIFY_HOME", str(tmp_path / "home"))
    tasks = listed(amplify, "tasks")
    assert tasks["support_tickets"].startswith("ready")
    assert tasks["hotpotqa"].startswith("no data")
    models = listed(amplify, "models")
    assert list(models) == [*(f"{kind}:…" for kind in ("transformers", "vllm", "openai", "scripted", "ray")), *ALIASES]
    assert all(models[alias].startswith("not pulled") for alias in ALIASES)


def test_proxies_are_listed_with_their_training_and_accuracy(amplify, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    from amplify.proxies.training import FORMAT

    monkeypatch.setenv("AMPLIFY_HOME", str(tmp_path / "home"))
    assert listed(amplify, "proxies") == {"no": "proxies yet"}
    card = {
        "format": FORMAT, "kind": "encoder", "task": "reviews", "labels": ["good", "bad"], "columns": [0, 1],
        "trained": True, "identity": "x", "body": {}, "template": "", "instruction": "", "input_name": "Review",
        "task_fingerprint": "",
        "training": {"epochs": 4, "seed": 1, "lora": True}, "validation": {"accuracy": 0.9289340101522843},
    }  # fmt: skip
    for name, one in {"a": card, "b": {**card, "validation": {}}, "c": {**card, "kind": "odd"}}.items():
        folder = tmp_path / "home" / "proxies" / name
        folder.mkdir(parents=True)
        (folder / "amplify_proxy.json").write_text(json.dumps(one))
    found = listed(amplify, "proxies")
    root = tmp_path / "home" / "proxies"
    assert found[str(root / "a")] == "reviews, 4 epochs, seed 1, LoRA, accuracy 92.9 %"
    assert found[str(root / "b")] == "reviews, 4 epochs, seed 1, LoRA"
    assert 'is broken (kind is "odd"' in found[str(root / "c")]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("rum",), "Did you mean 'run'?"),
        (("run", "support_tickts", "-m", RUN[3], "-M", "zero_shot"), "Did you mean 'support_tickets'?"),
        (("run", "support_tickets", "-m", RUN[3], "-M", "zero_shott"), "Did you mean 'zero_shot'?"),
        (("run", "support_tickets", "-m", "transformer:x", "-M", "zero_shot"), "Did you mean 'transformers'?"),
        (
            ("run", "support_tickets", "-m", RUN[3], "-M", "few_shot", "--set", "few_shot.shot=3"),
            "Did you mean 'shots'?",
        ),
        (("run", "support_tickets", "-m", RUN[3], "-M", "few_shot", "--set", "shots"), "KEY=VALUE"),
        (("run", "support_tickets", "-m", RUN[3], "-M", "few_shot", "--set", "few_shot.shots=["), "cannot be read"),
        (("run", "support_tickets", "-m", RUN[3], "-M", "zero_shot", "--seeds", "a"), "whole numbers"),
        (("run", "support_tickets", "-M", "zero_shot"), "--model is missing"),
        (("run", "-m", RUN[3], "-M", "zero_shot"), "TASK is missing"),
        (("report", "."), "run.json"),
        (("run", "support_tickets", "-m", RUN[3], "-M", "zero_shot", "--set", "zero_shot.mode=score"), "or --mode"),
        (
            ("apply", __file__, "--input", __file__, "--text", "x", "-m", RUN[3], "--out", "nowhere/a.csv"),
            "cannot write nowhere/a.csv",
        ),
        (
            ("run", "support_tickets", "-m", RUN[3], "-M", "zero_shot", "-B", "max_contxt=9"),
            "Did you mean 'max_context'?",
        ),
        (("run", "support_tickets", "-m", RUN[3], "-M", "zero_shot", "--data", "nowhere"), "'nowhere' does not exist"),
        # told before an engine that takes a minute would start
        (("run", "support_tickets", "-m", "vllm:nothing", "-M", "zero_shott"), "Did you mean 'zero_shot'?"),
        (
            ("run", "support_tickets", "-m", "vllm:nothing", "-M", "zero_shot", "--baseline", "x"),
            "unknown baseline 'x'",
        ),
    ],
)
def test_bad_input_is_one_line_and_status_2(amplify, arguments: tuple[str, ...], says: str) -> None:  # type: ignore[no-untyped-def]
    status, _, err = amplify(*arguments)
    assert status == 2
    assert says in err
    assert "Traceback" not in err


def test_a_suite_with_an_unknown_key_is_refused(amplify) -> None:  # type: ignore[no-untyped-def]
    Path("suite.yaml").write_text("taks: support_tickets\n")
    status, _, err = amplify("run", "--config", "suite.yaml")
    assert status == 2
    assert "Did you mean 'task'?" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("a.md", "empty.md"), "empty.md is empty"),
        (("a.md", "latin.md"), "latin.md is not UTF-8"),
        (("a.md", "b.md", "--html", "missing/why.html"), "cannot write missing/why.html"),
        (("a.md", "b.md", "--json", "."), "is a directory"),
    ],
)
def test_attribute_names_the_file_that_is_wrong(amplify, arguments: tuple[str, ...], says: str) -> None:  # type: ignore[no-untyped-def]
    for name, text in {"a.md": b"Paris.", "b.md": b"Rome.", "empty.md": b" \n", "latin.md": b"caf\xe9"}.items():
        Path(name).write_bytes(text)
    status, out, err = amplify("attribute", "-q", "Where?", "-m", "scripted:say=Paris", "-d", *arguments)
    assert status == 2
    assert not out
    assert says in err
    assert "Traceback" not in err


def test_attribute_reads_documents_without_their_byte_order_mark(amplify) -> None:  # type: ignore[no-untyped-def]
    Path("a.md").write_bytes(b"\xef\xbb\xbfParis.")
    Path("b.md").write_bytes(b"Rome.")
    documents = ("-d", "a.md", "b.md", "--json", "out.json")
    status, _, err = amplify("attribute", "-q", "Where?", "-m", "scripted:say=Paris", "--value", "votes", *documents)
    assert status == 0, err
    assert json.loads(Path("out.json").read_text())["documents"]["sources"] == [[0, 0, 6], [1, 0, 5]]


def test_attribute_offers_what_the_library_has(amplify) -> None:  # type: ignore[no-untyped-def]
    from amplify.shapley.estimators import ESTIMATORS
    from amplify.sources.engines import ENGINES

    told = "".join(amplify("attribute", "--help")[1].split())
    for names in (ENGINES, tuple(ESTIMATORS)):
        assert f"[auto|{'|'.join(names)}]" in told


def test_runs_in_the_default_folder_never_meet(amplify) -> None:  # type: ignore[no-untyped-def]
    """Another task, other methods or another limit is another folder; the same command goes on with its own."""
    base = ("--model", "scripted:say=The answer is billing.", "--seeds", "0")
    commands = [
        ("run", "support_tickets", *base, "--limit", "6", "--methods", "zero_shot"),
        ("run", "support_tickets", *base, "--limit", "6", "--methods", "zero_shot,few_shot"),
        ("run", "support_tickets", *base, "--limit", "5", "--methods", "zero_shot"),
    ]
    for count, command in enumerate(commands, start=1):
        for _ in range(2):
            status, _out, err = amplify(*command)
            assert status == 0, err
            assert len(list(Path("runs").iterdir())) == count
    assert all(folder.name.startswith("support_tickets-") for folder in Path("runs").iterdir())


@pytest.mark.parametrize("name", ["...csv", "..csv", b"caf\xe9.csv", "a b;c.csv"])
def test_odd_names_of_tasks_stay_inside_runs(amplify, tmp_path: Path, name: str | bytes) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / (os.fsdecode(name) if isinstance(name, bytes) else name)
    path.write_text("text,label\n" + "".join(f"item {i} of it,{'ab'[i % 2]}\n" for i in range(60)))
    command = ("run", path.name, "--text", "text", "--label", "label", "--model", "scripted:say=a", "--limit", "4")
    status, _out, err = amplify(*command, "--methods", "zero_shot")
    assert status == 0, err
    assert {p.name for p in tmp_path.iterdir()} == {path.name, "runs"}
    [folder] = Path("runs").iterdir()
    assert (folder / "run.json").is_file()
    assert amplify("report", str(folder))[0] == 0


def test_a_stop_says_that_the_command_resumes_only_where_it_does(amplify, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    from amplify.models.scripted import ScriptedModel

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ScriptedModel, "generate", stop)
    Path("d.txt").write_text("Tea is hot.")
    Path("e.txt").write_text("Tea is green.")
    attribute = ("attribute", "-q", "What?", "-d", "d.txt", "-d", "e.txt", "-m", "scripted:echo", "--value", "votes")
    for command, says in (
        ((*RUN, "--methods", "zero_shot"), "stopped; the same command resumes"),
        ((*attribute, "--cache", "c.jsonl"), "stopped; the same command resumes"),
        (attribute, "stopped"),
        (("generate", "hello", "-m", "scripted:echo"), "stopped"),
    ):
        status, _, err = amplify(*command)
        assert (status, err.strip().splitlines()[-1]) == (130, says)


def test_what_cannot_be_written_is_one_line(amplify, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert amplify(*RUN, "--methods", "zero_shot")[0] == 0
    Path("r/report.html").unlink()
    Path("r/report.html").mkdir()
    status, _out, err = amplify("report", "r")
    assert (status, err.count("\n")) == (2, 1)
    assert "cannot write r/report.html: Is a directory" in err
    assert not list(Path("r").glob("*.tmp"))


def test_the_shell_completes_commands_options_and_values() -> None:
    from click.shell_completion import BashComplete

    def completed(given: list[str], begun: str) -> list[str]:
        complete = BashComplete(cli, {}, "amplify", "_AMPLIFY_COMPLETE")
        return [item.value for item in complete.get_completions(given, begun)]

    assert completed([], "ru") == ["run"]
    assert completed(["run"], "--lim") == ["--limit"]
    assert completed(["attribute", "--value"], "") == ["logprob", "votes"]
    assert {"support_tickets", "hotpotqa"} <= set(completed(["tune"], ""))
    assert completed(["run"], "support") == ["support_tickets"]
    assert completed(["run", "support_tickets", "--methods"], "zero_shot,few_shot_k") == ["zero_shot,few_shot_knn"]
    assert completed(["tune", "support_tickets", "--model"], "transformers:s") == ["transformers:smollm2-135m"]
    assert completed(["models", "pull"], "min") == ["minilm"]
    assert completed(["tune", "support_tickets", "--metric"], "exact_m") == ["exact_match"]


BASH = """
eval "$(_AMPLIFY_COMPLETE=bash_source amplify)"
COMP_WORDS=({line}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_amplify_completion amplify
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
FISH = "_AMPLIFY_COMPLETE=fish_source amplify | source; complete --do-complete '{line}'"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("amplify tune support_", "support_tickets"),
        ("amplify run support_tickets --methods few_shot_k", "few_shot_knn"),
        ("amplify attribute --val", "--value"),
    ],
)
@pytest.mark.parametrize(("shell", "script"), [("bash", BASH), ("fish", FISH)])
def test_a_real_shell_completes(shell: str, script: str, line: str, told: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not here")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [shell, "-c", script.format(line=line)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": path}, check=True)
    assert told in done.stdout.split(), done.stdout + done.stderr
