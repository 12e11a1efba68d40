"""Where sentences begin and end, in the scripts and layouts in which models and documents are written."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amplify.text import sentences

LONG = "a line that an editor has broken at about eighty characters because it was too"
CASES = {
    "a line break ends a sentence": "Paris\n|Paris is in France. |It is big.",
    "titles and initials": 'Dr. Smith met J. R. Ewing in the U.S. Navy. |"Why?" he asked. |Nobody knew! |Mr. X.',
    "what may end a sentence": "He left the U.S. |The shop of Foo Inc. |It closed at 5 p.m. |They ate etc. |But why?",
    "abbreviations": "As Li et al. (2020) say, approx. 30 came, cf. Li, i.e. Tom. |See Fig. 3, Eq. (2), vol. II, p. 7.",
    "abbreviations of dates": "On Nov. 5 it fell. |In Nov. |On Sept. 11 too.",
    "an answer that is no abbreviation": "No. |It is not. |See no. 5 and No. 6.",
    "German": "Das gilt z. B. für Nr. 5, d. h. immer, vgl. Abb. 3. |Am 3. Oktober 1990, ca. 12 Uhr, u. a. Berlin. |Ja.",
    "a German ordinal at the end": "Er wurde 3. |Sie wurde 5. |Gut.",
    "Spanish": "La Sra. Ruiz vio la pág. 7. |¿Qué? |¡No!",
    "numbers": "It costs 3.5 euros. |Version 2.1.3 is out. |In 1999. |Then v2.",
    "lists": "1. Two years.\n|2. Five years.\n|3. Ten. |Or more.",
    "lists of letters": "a. First one. |Really.\n|b. Second.\n|IV. Fourth.\n|(2) Fifth.\n|- Yes. |No.\n|**7.** Last.",
    "nested lists": "2.1. One.\n|  2.1.1. Deeper.\n|    * Starred. |Good.",
    "a mark on its own line": "1.\nTwo years.\n|2.\nFive.",
    "citations behind the stop": "OK.[1] |Next one.[2][3] |And so on [4]. |Last. [5]",
    "other citations": "One.[1, 2–4] |Two. [Document 3] |Three.【4†source】 |Four.[^5] |Five.¹² |Six.",
    "a bracket is no citation": "One. |[See below.] |Two.",
    "quotes": "He said 'Go!' |She said “Stay.” |«Oui.» |(Both.) |**Bold.** |_Thin._ |End",
    "a quotation goes on": '"Why?" he asked. |"No!" said she.',
    "ellipsis and several marks": "Wait... |What?! |Really… |Yes",
    "Chinese and Japanese": "他来了。|真的吗？|「二年です。」|五年。|終わり",
    "a Japanese quotation goes on": "「はい。」と言った。|次。",
    "Hindi": "यह दो साल है। |वह पाँच है।|ठीक॥",
    "Arabic and Urdu": "ما هذا؟ |هذا كتاب. |یہ ہے۔ |ہاں",
    "Armenian, Ethiopic, Khmer": "Սա է։ |ይህ ነው። |នេះ។ |x",
    "a wrapped line": f"{LONG}\nlong for it. |Next.",
    "a wrapped line at a title": f"{LONG} Dr.\nSmith said. |Next.",
    "a short line": "apples\n|pears\n|plums",
    "a long line before a list": f"{LONG}\n|a. First\n|- second",
    "code": "Run this:\n|```python\nprint('a. B'). C\n\nx = 1\n```\n|Then stop. |Go.",
    "code in tildes": "~~~\na. B\n```\nc. D\n~~~\n|Next.",
    "code that is cut off": "So:\n|```\na. B\nc. D",
    "code within a line": "Use ```a.b()``` now. |Next.",
    "rules": "One.\n\n---\n\n|Two.\n***\n",
    "nothing before": "\n\n***\n One. |Two.",
    "Windows": "One.\r\n|Two.\r\n",
    "one": "x",
    "a mark alone": "5.",
}
CASES["tables"] = "| a. B | c |\n|---|---|\n¦| 1. X | 2 |\n¦| 3 | 4 |\n"
CASES["an emoji"] = "👍\n|Fine. |👍"


@pytest.mark.parametrize("case", CASES)
def test_sentences(case: str) -> None:
    cut = "¦" if "¦" in CASES[case] else "|"
    text = CASES[case].replace(cut, "")
    assert [text[a:b] for a, b in sentences(text)] == CASES[case].split(cut)


@given(st.text(alphabet="Ab. !?\n\"'ÉU1[]|`-。」と،؟#*", max_size=60), st.integers(0, 5))
def test_no_character_is_lost_and_a_part_is_cut_as_if_alone(text: str, start: int) -> None:
    start = min(start, len(text))
    cut = sentences(text, start)
    assert cut == [(a + start, b + start) for a, b in sentences(text[start:])]
    assert (cut[0][0], cut[-1][1]) == (start, len(text))
    assert all(a[1] == b[0] for a, b in pairwise(cut))
    assert all(a < b for a, b in cut) or start == len(text)
