"""Broken promises, planted: the judge must find each, and nothing else in it.

The name of a case is how the fault begins that must be found; "" for none.
"""

from case import Case

SENTENCE = "import sys; sys.stderr.write('error: Found 3 of them, expected 4.\\n'); "
END = "; import os; sys.stderr.flush(); sys.stdout.flush(); os._exit(2)"


def planted(name: str, before: str = "pass", sentence: str = SENTENCE, end: str = END, **more):
    return Case(name, ("-c", f"{sentence}{before}{end}"), quick=True, **more)


def says(text: str) -> str:
    return f"import sys; sys.stderr.write({text!r}); "


CASES = [
    planted("", says=("3", "expected")),
    planted("exit code 1", end=END.replace("(2)", "(1)")),
    planted("exit code 0", end=END.replace("(2)", "(0)")),
    planted("exit code -11", "import os; os.kill(os.getpid(), 11)", files={"kept": "text"}),
    planted("traceback", "raise ValueError('x')", end=""),
    planted("0 lines", sentence="import sys; "),
    planted("2 lines", sentence=SENTENCE * 2),
    planted("no sentence", sentence=says("usage: pemt-jax COMMAND and so on.\n")),
    planted("no full stop", sentence=says("error: Found 3 of them, expected 4\n")),
    planted("ends with two", sentence=says("error: Found 3 of them, expected 4..\n")),
    planted("550 characters", sentence=says("error: " + "x" * 542 + ".\n")),
    planted("control", sentence=says("error: Found \x07 and more, expected 4.\n")),
    planted("internal: <class", sentence=says("error: Found <class 'int'>, expected 4.\n")),
    planted("names as nearest", sentence=says("error: No 'a', expected b (nearest: 'a').\n")),
    planted("untrue: 'Found'", never=("Found",)),
    planted("does not say '5'", says=("5",)),
    planted("stdout", "print('half of a table')"),
    planted("files: created out.txt", "open('out.txt', 'w').close()"),
    planted("files: changed kept", "open('kept', 'a').write('x')", files={"kept": "text"}),
    planted("files: removed kept", "import os; os.remove('kept')", files={"kept": "text"}),
    planted(
        "files: changed link",
        "import os; os.remove('link'); open('link', 'w')",
        files={"link": lambda path, places: path.symlink_to("kept"), "kept": "text"},
    ),
    planted("files: left half", "import tempfile; tempfile.mkstemp(prefix='half')"),
    planted("executed", "import os, pathlib; pathlib.Path('$CANARY').touch()"),
    planted("hangs", "import time; time.sleep(120)", seconds=1),
    planted("memory", "x = b'x' * 2**29; import time; time.sleep(0.5)", gib=0.3),
    planted(
        "noise",
        sentence=says("I0000 port.cc: oneDNN is on\n"),
        end=END.replace("(2)", "(0)"),
        code=0,
    ),
    planted(" ", "open('run', 'w').close()", may=("run",)),
]
