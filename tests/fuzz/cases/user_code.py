"""Modules of a user's: what they declare, and what their functions do when they are called."""

from case import Case, case, train

HEAD = "import pemt_jax as pemt\nfrom pemt_jax.tasks import Dataset, metrics, register, targets\n"
ROWS = "ROWS = [{'text': f'film {i}', 'label': ('good', 'bad')[i % 2]} for i in range(12)]\n"
TASK = (
    "pemt.task('mine', {'train': ROWS, 'validation': ROWS}, inputs='t: {text}', "
    "labels=('bad', 'good'), description='Say what it is.'%s)\n"
)
OWN = "include '$GIN'\nimport my_tasks\n"
SHOW = "tasks --import my_tasks show mine"
FAILS = "raise ValueError('of mine')\n"
# A module that fails when it is imported: (text, words of the sentence).
MODULES = {
    "a syntax error": ("def f(:\n", "my_tasks.py line 1", "SyntaxError"),
    "an indentation error": ("  x = 1\n y = 2\n", "my_tasks.py", "Indentation"),
    "no UTF-8": (b"x = '\xe7'\n", "my_tasks"),
    "a NUL": (b"x = 1\0\n", "my_tasks"),
    "empty": ("", "mine"),
    "an exception": (FAILS, "my_tasks.py line 1", "of mine"),
    "an exception of two lines": ("raise ValueError('of\\nmine')\n", "my_tasks.py line 1"),
    "an exception without a text": ("raise KeyError\n", "my_tasks.py line 1", "KeyError"),
    "an own BaseException": ("class E(BaseException): pass\nraise E('x')\n", "my_tasks.py"),
    "an exception whose text fails": (
        "class E(Exception):\n    def __str__(self): raise ValueError('x')\nraise E()\n",
            "my_tasks.py"),
    "sys.exit(0)": ("import sys\nsys.exit(0)\n", "my_tasks.py line 2", "sys.exit(0)"),
    "sys.exit(3)": ("import sys\nsys.exit(3)\n", "my_tasks.py line 2"),
    "sys.exit of a text": ("import sys\nsys.exit('bye')\n", "my_tasks.py line 2"),
    "exit()": ("raise SystemExit\n", "my_tasks.py line 1"),
    "endless recursion": ("def f(): f()\nf()\n", "my_tasks.py line", "RecursionError"),
    "a missing module": ("import no_such_thing\n", "no_such_thing"),
    "a missing name": ("from pemt_jax import no_such_name\n", "no_such_name"),
    "a name that is not defined": ("register(x)\n", "my_tasks.py line 1", "NameError"),
    "an assertion": ("assert False, 'never'\n", "my_tasks.py line 1", "never"),
    "a file that is missing": ("open('nowhere.txt')\n", "nowhere.txt"),
}  # fmt: skip
GOOD = {
    "name": "'mine'",
    "data": "{'train': ROWS, 'validation': ROWS}",
    "inputs": "'{text}'",
    "labels": "('bad', 'good')",
    "description": "'x'",
}
DATASET = {
    "name": "'mine'",
    "data": "'glue/cola:2.0.0'",
    "inputs": "'{text}'",
    "target": "targets.Number()",
    "metric": "metrics.accuracy",
    "description": "'x'",
}


def declared(**changes: str) -> str:
    """A call of pemt.task with other arguments than good ones."""
    return f"pemt.task({', '.join(f'{name}={value}' for name, value in (GOOD | changes).items())})"


def dataset(**changes: str) -> str:
    """The same of register(Dataset(...))."""
    arguments = ", ".join(f"{name}={value}" for name, value in (DATASET | changes).items())
    return f"register(Dataset({arguments}))"


DECLARED = {  # what is no task
    "no name": declared(name="''"),
    "a name with spaces": declared(name="'a b'"),
    "a name that is a number": declared(name="3"),
    "a name that is taken": declared(name="'pemt_cb'"),
    "data that is None": declared(data="None"),
    "data that is a list": declared(data="ROWS"),
    "data that is empty": declared(data="{}"),
    "no validation": declared(data="{'train': ROWS}"),
    "a split of nobody": declared(data="{'train': ROWS, 'validation': ROWS, 'tset': ROWS}"),
    "no rows": declared(data="{'train': [], 'validation': ROWS}"),
    "rows that are numbers": declared(data="{'train': [1], 'validation': ROWS}"),
    "rows that are None": declared(data="{'train': None, 'validation': ROWS}"),
    "rows of sets": declared(data="{'train': [{'text': {1}}], 'validation': ROWS}"),
    "rows of NaN": declared(data="{'train': [{'text': float('nan')}], 'validation': ROWS}"),
    "no labels": declared(labels="()"),
    "labels in one text": declared(labels="'good'"),
    "labels of numbers": declared(labels="(1, 2)"),
    "labels that are None": declared(labels="None"),
    "a template of nothing": declared(inputs="''"),
    "an open brace": declared(inputs="'{text'"),
    "empty braces": declared(inputs="'{}'"),
    "a template that is None": declared(inputs="None"),
    "no description": declared(description="''"),
    "a description of None": declared(description="None"),
    "a metric that is a text": declared(metric="'accuracy'"),
    "splits that are a text": declared(splits="'halves'"),
    "an argument of nobody": declared(descripton="'x'"),
    "a Dataset without arguments": "register(Dataset())",
    "a Dataset of None": "register(None)",
    "a Dataset with a string target": dataset(target="'label'"),
    "a Dataset with data=None": dataset(data="None"),
    "a Dataset without a version": dataset(data="'glue/cola'"),
}
METRICS = {  # bodies of a metric
    "raises": "raise ValueError('of mine')",
    "returns None": "return None",
    "returns a number": "return 0.5",
    "returns a text": "return 'good'",
    "returns a list": "return [1]",
    "returns nothing in it": "return {}",
    "returns a text in it": "return {'average': 'x'}",
    "returns None in it": "return {'average': None}",
    "returns a key that is no text": "return {3: 1.0}",
    "returns an array": "import numpy; return {'average': numpy.ones(3)}",
    "exits": "import sys; sys.exit(0)",
    "divides by zero": "return {'average': 1 / 0}",
    "recurses": "return metric(targets, predictions)",
}


def module(name: str, text: object, *says: str, code=(1, 2), command: str = SHOW) -> Case:
    return case(name, command, *says, code=code, files={"my_tasks.py": text})


def trained(name: str, text: str, *says: str, code=(1, 2), may=("run*", "library*")) -> Case:
    """A task of a module, trained for a step and evaluated."""
    macros = {"MIXTURE_OR_TASK_NAME": "mine", "TRAIN_STEPS": 1}
    made = train(name, *says, code=code, macros=macros, files={
        "my_tasks.py": text, "own.gin": OWN}, may=may)  # fmt: skip
    return Case(**vars(made) | {"argv": ("train", "--gin_file=own.gin", *made.argv[2:])})


def measured(metric: str) -> str:
    """A module with a task that has this metric."""
    return f"{HEAD}{ROWS}{metric}{TASK % ', metric=metric'}"


CASES = [
    *(module(f"a module with {name}", text, *says) for name, (text, *says) in MODULES.items()),
    *(
        module(f"declared with {name}", f"{HEAD}{ROWS}{text}\n", "my_tasks.py line")
        for name, text in DECLARED.items()
    ),
    *(
        trained(f"a metric that {name}",
                measured(f"def metric(targets, predictions):\n    {body}\n"),
                "metric|my_tasks.py")
        for name, body in METRICS.items()
    ),
    trained("a metric of other arguments",
            measured("def metric(t, p):\n    return {'average': 1.0}\n"),
            "my_tasks.py"),
    trained("a metric of no arguments",
            measured("def metric():\n    return {'average': 1.0}\n"),
            "my_tasks.py"),
    trained("a gin file that imports what fails", FAILS, "my_tasks.py line 1",
            may=()),
    trained("a gin file that imports what exits", "import sys\nsys.exit(0)\n", "my_tasks.py line 2",
            may=()),
    module("a Dataset of an unknown TFDS name", HEAD + dataset(data="'no/such:1.0.0'"), "no/such"),
    module("a template with code in its braces",
           HEAD + ROWS + declared(inputs="'{text.__class__}'"), "text.__class__"),
    trained("a metric without an average is accepted",
            measured("def metric(targets, predictions):\n    return {'accuracy': 1.0}\n"), code=0),
    trained("a metric that is NaN is left out of the card",
            measured("def metric(targets, predictions):\n    return {'average': float('nan')}\n"),
            code=0),
    trained("a good task is accepted", HEAD + ROWS + TASK % "", code=0),
    *(
        module(f"{command}: a module that fails", FAILS, "my_tasks.py line 1",
               command=command)
        for command in ("tasks --import my_tasks list", "tasks --import my_tasks prepare mine",
                        "report $TARGET --to page.html --import my_tasks")
    ),
    module("a module named as one of Python's", "raise ValueError('of mine')\n", "my_tasks.py",
           command="tasks --import os --import my_tasks list"),
]  # fmt: skip
