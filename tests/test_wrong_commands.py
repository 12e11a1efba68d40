"""Every command run wrongly, ten ways and more: one line that says what is wrong, where, and what to do."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from amplify.cli import cli, main

S = "-m scripted:first_option"
RUN = f"run support_tickets {S} -M zero_shot"
APPLY = f"apply broken.json --input rows.csv --text message {S} --out o.csv"
ATTRIBUTE = f"attribute -q Where? {S} -d a.txt -d b.txt"
PROJECTIONS = f"projections {S} --out keys.yaml"
HEADS = f"heads support_tickets {S} --out heads.yaml"
WHY = f"explain-prompt support_tickets {S} --out why"
NOWHERE = "http://127.0.0.1:9/v1"

WRONG = f"""
run => TASK is missing
run support_tickts {S} -M zero_shot => Did you mean 'support_tickets'?
run support_tickets -M zero_shot => --model is missing
run support_tickets {S} => --methods is missing
run support_tickets {S} -M zero_shott => Did you mean 'zero_shot'?
run support_tickets {S} -M zero_shot --also rationale => Did you mean 'rationales'?
run support_tickets {S} -M zero_shot --also rationales => use score mode
run support_tickets -m scripted -M zero_shot => a model is written KIND:MODEL
run support_tickets -m transfomers:x -M zero_shot => Did you mean 'transformers'?
run support_tickets -m transformers:smollm3 -M zero_shot => Did you mean 'smollm2-135m'?
{RUN} --limit 0 => '--limit': 0
{RUN} --seeds one => 'one'
{RUN} --seeds=-1 => each from 0
{RUN} --seeds=-1 --dry-run => each from 0
{RUN} --seeds=, --dry-run => at least one seed
{RUN} --set zero_shot.shots=3 => unknown zero_shot option 'shots'
{RUN} --set shots => --set takes KEY=VALUE, e.g. --set amplify.k=3
{RUN} --mode guess => 'guess' is not one of 'generate', 'score'
{RUN} --limt 3 => '--limit'
{RUN} --metric acuracy => Did you mean 'accuracy'?
{RUN} --baseline few_shot => unknown baseline 'few_shot'
{RUN} --data nowhere => 'nowhere'
{RUN} extra => (extra)
{RUN} --cache rows.csv => rows.csv is a file: a cache is a folder
{RUN} --cache rows.csv/x => cannot write rows.csv/x: Not a directory
run support_tickets -m ray:0×scripted:echo -M zero_shot => workers are written ray:N×KIND:MODEL
run support_tickets {S} -M few_shot --set few_shot.shots=two => few_shot.shots is an int, not 'two'
run support_tickets {S} -M stacked => stacked pools label scores: use score mode
run rows.csv {S} -M zero_shot => there are: message, label
run rows.csv {S} -M zero_shot --text massage --label label => no column 'massage'
run empty.csv {S} -M zero_shot --text message --label label => empty.csv has no rows
run hotpotqa {S} -M zero_shot => AMPLIFY_DATA
run --config bad.yaml => bad.yaml is not readable YAML
run --config odd.yaml => Did you mean 'task'?
run --config nothing.yaml => 'nothing.yaml' does not exist
report => FOLDER
report nowhere => 'nowhere' does not exist
report folder => folder is no run folder
report rows.csv => 'rows.csv' is a file
report folder folder => (folder)
report folder --out x => --out
report --json => --json
report '' => FOLDER
report folder/run.json => does not exist
report folder -h folder -x => -x
apply => PROGRAM
apply p.json => 'p.json' does not exist
apply broken.json => --input
apply broken.json --input rows.csv {S} --out o.csv => --text
apply broken.json --input rows.csv --text message {S} => --out
{APPLY} => broken.json is not a saved program
{APPLY} --batch-size 0 => '--batch-size': 0
{APPLY} --batch 3 => '--batch-size'
apply rows.csv --input rows.csv --text message {S} --out o.csv => rows.csv is not a saved program
apply broken.json --input rows.csv --text message {S} --out no/o.csv => cannot write no/o.csv
apply broken.json --input nothing.csv --text message {S} --out o.csv => 'nothing.csv' does not exist
explain => --model
explain text => --model
explain text -m nowhere => 'nowhere' is neither a proxy folder nor a model
explain text {S} --target x => What works with it
explain text {S} --method shap => unknown explainer 'shap'
explain text {S} --methods lime,shap => unknown explainer 'shap'
explain text {S} --method lime --methods lime => either --method or --methods
explain text {S} --budget 0 => '--budget': 0
explain text {S} --masking cut => 'cut' is not one of
explain text --input rows.csv {S} => either a TEXT or an --input
explain --input rows.csv {S} => --text is missing
explain --input rows.csv --text massage {S} --target a => no column 'massage'
explain text {S} --top 9 --target x => the text has 1 word:
attribute => --question
attribute -q Where? {S} => --documents
attribute -q Where? {S} -d nothing.txt => 'nothing.txt' does not exist
attribute -q Where? -d a.txt => --model is missing
attribute -q Where? {S} -d blank.txt -d a.txt => blank.txt is empty
attribute -q Where? {S} -d latin.txt -d a.txt => latin.txt is not UTF-8
{ATTRIBUTE} --value vote => 'vote' is not one of
{ATTRIBUTE} --budget 1 => '--budget': 1
{ATTRIBUTE} --estimator shap => 'shap' is not one of
{ATTRIBUTE} --json no/x.json => cannot write no/x.json
{ATTRIBUTE} --granularity letters => 'letters' is not one of
attribute -q Where? {S} -d a.txt -d a.txt => Give two or more documents
{ATTRIBUTE} --cache rows.csv => rows.csv is a file: a cache is a folder
attribute --input log.jsonl {S} --out log.jsonl => 'log.jsonl' is a file
attribute --input log.jsonl -q Where? {S} => --input has its own questions
explain-prompt => TASK
{WHY} => give either --program
{WHY} --method zero_shott => Did you mean 'zero_shot'?
{WHY} --method zero_shot --program broken.json => give either --program
{WHY} --program nothing.json => 'nothing.json' does not exist
{WHY} --program broken.json => broken.json
{WHY} --method zero_shot --budget 1 => '--budget': 1
{WHY} --method zero_shot --items 3 => '--items': 3
{WHY} --method zero_shot --estimator lime => 'lime' is not one of
explain-prompt support_tickts {S} --method zero_shot --out why => Did you mean 'support_tickets'?
explain-prompt support_tickets {S} --method zero_shot => --out
explain-prompt support_tickets --method zero_shot --out why => --model is missing
{WHY} --method zero_shot extra => (extra)
{WHY} --method few_shot[shots=4 => NAME or NAME[OPTION=VALUE,...]
{WHY} --method proxy_alone => only prompts with fixed shots have parts
importance => LOG
importance nothing.jsonl {S} => 'nothing.jsonl' does not exist
importance log.jsonl => --model is missing
importance log.jsonl -m scripted => a model is written KIND:MODEL
importance blank.txt {S} => blank.txt is empty
importance rows.csv {S} => line 1 of rows.csv is not JSON
importance log.jsonl {S} --k 0 => '--k': 0
importance log.jsonl {S} --held-out 2 => held_out is a share between 0 and 1
importance log.jsonl {S} --by banzhaf => 'banzhaf' is not one of
importance log.jsonl {S} --json no/x.json => cannot write no/x.json
importance log.jsonl {S} --budget 1 => '--budget': 1
importance log.jsonl {S} extra => (extra)
importance odd.jsonl {S} => odd.jsonl, row 1 has no 'documents'
importance messages.jsonl {S} => messages.jsonl, row 1 has no 'question'
generate => PROMPT
generate hello => --model is missing
generate hello {S} --steering nothing => unknown steering profile 'nothing'
generate hello {S} --alpha 0.1 => name a head profile too
generate hello {S} --max-tokens 0 => '--max-tokens': 0
generate '**hello' {S} => unbalanced **
generate hello {S} --steering smollm2-135m => nothing is emphasised
generate '**hello**' {S} --steering smollm2-135m => cannot steer attention. Use
generate '**hello**' {S} --steering bad.yaml => bad.yaml is not a readable steering profile
generate hello {S} --mark= => a mark is
generate hello -m openai:m => openai:MODEL@URL
generate hello -m openai:m@{NOWHERE} -B retries=0 => is it running?
generate hello {S} -B max_contxt=3 => Did you mean 'max_context'?
generate hello {S} -B dtype => --model-option takes KEY=VALUE, e.g. --model-option dtype=float32
heads => TASKS
heads support_tickets => --out
heads support_tickets {S} => --out
heads support_tickets {S} --out heads.txt => --out names a .yaml file
{HEADS} => Use a transformers: model
{HEADS} --exhaustive --vectors => in two ways
{HEADS} --samples 0 => '--samples': 0
{HEADS} --vectors --most 0 => '--most': 0
{HEADS} --vectors => Use a transformers: model
{HEADS} --combine sum => 'sum' is not one of
{HEADS} --alpha 0 => alpha is a factor
{HEADS} --alpha x => 'x' is not a valid float
heads support_ticket {S} --out heads.yaml => Did you mean 'support_tickets'?
projections {S} => --out
projections --out keys.yaml => --model is missing
projections {S} --out keys.txt => --out names a .yaml file
projections {S} --out keys.yaml => looks inside the model
{PROJECTIONS} --layers -1 => '--layers': -1
{PROJECTIONS} --mass 1 => '--mass': 1.0
{PROJECTIONS} --mass x => 'x' is not a valid float
{PROJECTIONS} --least -1 => '--least': -1.0
{PROJECTIONS} --samples 0 => '--samples': 0
{PROJECTIONS} --positive-gain big => 'big' is not a valid float
{PROJECTIONS} --sampels 3 => --samples
heads support_tickets support_tickets {S} --out heads.yaml => named twice
models pul => Did you mean 'pull'?
models push x => unknown command 'push'
models --pull x => --pull
models pull => NAMES
models pull smollm => Did you mean 'smollm2-135m'?
models pull folder => folder is not a model folder
models pull rows.csv => rows.csv is a file
models pull org/nothing => org/nothing is not in the hub's cache
models pull smollm2-135m@main => Did you mean 'smollm2-135m'?
models pull ./nothing => no model folder
list => KIND
list thing => 'thing' is not one of
list methods amplfy => Did you mean 'amplify'?
list tasks support_tickets => takes no NAME
list proxies x => takes no NAME
list methods few_shot extra => (extra)
list estimators exat => Did you mean 'exact'?
list metrics f2 => unknown metric 'f2'
list steering_modes past => Did you mean 'pasta'?
list --all => --all
proxy => TASK
proxy support_tickets => --out
proxy support_ticket --out p => Did you mean 'support_tickets'?
proxy rows.csv --out p => there are: message, label
proxy support_tickets --out rows.csv => 'rows.csv' is a file
proxy support_tickets --out p --epochs -1 => '--epochs': -1
proxy support_tickets --out p --body nothing => nothing is not in the hub's cache
proxy support_tickets --out p --seed x => 'x' is not a valid integer
proxy nq_open --out p => AMPLIFY_DATA
proxy support_tickets --out p --device cuda => --device
tune => TASK
tune support_tickets {S} --out t => --budget
tune support_tickets {S} --budget 1m => --out
tune support_tickets --budget 1m --out t => --model is missing
tune support_ticket {S} --budget 1m --out t => Did you mean 'support_tickets'?
tune support_tickets {S} --budget soon --out t => soon
tune support_tickets {S} --budget tokens=2X --out t => 'tokens=2X'
tune support_tickets {S} --budget 20m,10m --out t => once, not twice as in '20m,10m'
tune support_tickets {S} --budget 0m --out t => above 0, not 0 minutes
tune support_tickets {S} --budget 1m --out t --candidates few_shot[shot=2] => Did you mean 'shots'?
tune support_tickets {S} --budget 1m --out t --candidates few_shot+bath => Did you mean 'batch'?
tune support_tickets {S} --budget 1m --out rows.csv => 'rows.csv' is a file
tune support_tickets {S} --budget 1m --out t --candidates zero_shott => Did you mean 'zero_shot'?
tune support_tickets {S} --budget 1m --out t --mode guess => 'guess' is not one of
tune support_tickets {S} --budget 1m --out t --metric acuracy => Did you mean 'accuracy'?
tune support_tickets {S} --budget 1m --out t --seed x => 'x' is not a valid integer
serve => --model is missing
serve -m scripted => a model is written KIND:MODEL
serve -m transfomers:x => Did you mean 'transformers'?
serve {S} --port 70000 => '--port': 70000
serve {S} --port http => 'http' is not a valid integer
serve {S} --running 0 => running
serve {S} --waiting -1 => waiting
serve {S} --seconds 0 => seconds
serve {S} --budget 0 => budget
serve {S} --body x => 'x' is not a valid integer
serve {S} extra => (extra)
serve {S} --host nowhere.invalid => cannot listen on nowhere.invalid:8100
serve {S} --hots localhost => '--host'
doctor x => (x)
doctor --server => --server
doctor --servers {NOWHERE} => '--server'
doctor --jsn => '--json'
doctr => Did you mean 'doctor'?
runn => Did you mean 'run'?
--verison => '--version'
-x => -x
"""
CASES = [tuple(line.split(" => ")) for line in WRONG.strip().splitlines()]

Call = Callable[[str], tuple[int, str, str]]


@pytest.fixture
def amplify(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AMPLIFY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("AMPLIFY_DATA", raising=False)
    files = {
        "rows.csv": b"message,label\nhello,a\nbye,b\n", "empty.csv": b"", "a.txt": b"Paris.", "b.txt": b"Rome.",
        "blank.txt": b" \n", "latin.txt": b"caf\xe9", "bad.yaml": b"task: [\n", "odd.yaml": b"tusk: x\n",
        "broken.json": b"{", "log.jsonl": b'{"question": "Q?", "documents": ["a", "b"], "answers": "a"}\n' * 4,
        "odd.jsonl": b'{"question": "Q?", "document": ["a"]}\n', "messages.jsonl": b'{"messages": "hi"}\n',
    }  # fmt: skip
    for name, content in files.items():
        Path(name).write_bytes(content)
    Path("folder").mkdir()

    def call(line: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["amplify", *shlex.split(line)])
        with pytest.raises(SystemExit) as done:
            main()
        printed = capsys.readouterr()
        return int(done.value.code or 0), printed.out, printed.err

    return call


@pytest.mark.parametrize(("line", "says"), CASES, ids=[line for line, _ in CASES])
def test_a_wrong_command_is_answered_by_one_line(amplify: Call, line: str, says: str) -> None:
    before = {path: path.read_bytes() for path in Path().iterdir() if path.is_file()}
    status, out, err = amplify(line)
    assert (status, out) == (2, "")
    assert err.startswith("amplify: ")
    assert err.count("\n") == 1
    assert says in err
    assert {path: path.read_bytes() for path in Path().iterdir() if path.is_file()} == before


def test_every_command_is_run_wrongly_ten_ways() -> None:
    for name in cli.commands:
        lines = [line for line, _ in CASES if line.split()[0] == name]
        assert len(lines) >= (4 if name == "doctor" else 10), name


def test_a_server_that_does_not_answer_is_told_by_the_status(amplify: Call) -> None:
    status, out, err = amplify(f"doctor --server {NOWHERE} --server nothing")
    assert (status, err) == (1, "")
    told = [line for line in out.splitlines() if line.startswith("server")]
    assert "no connection" in told[0]
    assert "cannot be" in told[1] or "connection" in told[1]


def test_a_log_of_which_no_line_is_explained_is_an_error(amplify: Call) -> None:
    status, out, err = amplify(f"attribute --input odd.jsonl {S} --out why")
    assert (status, out) == (2, "")
    told = err.splitlines()
    assert told[0].startswith("line 1 was skipped: it is no conversation")
    assert told[-1] == "amplify: no line of odd.jsonl was explained, for the reasons above"


def test_amplify_alone_says_its_verbs_with_an_example_each(amplify: Call) -> None:
    status, out, _ = amplify("")
    assert status == 0
    for verb in ("attribute", "steer", "evaluate", "amplify doctor"):
        assert verb in out
    examples = [
        line.split()[1] for line in out.splitlines() if line.strip().startswith("amplify ") and line[:2] == "  "
    ]
    assert {"attribute", "generate", "run", "models", "doctor"} <= set(examples)
