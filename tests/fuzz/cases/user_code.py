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
# A module that fails when it is imported: (text, words of the sentence).
MODULES = {
    "a syntax error": ("def f(:\n", "my_tasks.py line 1", "SyntaxError"),
    "an indentation error": ("  x = 1\n y = 2\n", "my_tasks.py", "Indentation"),
    "no UTF-8": (b"x = '\xe7'\n", "my_tasks"),
    "a NUL": (b"x = 1\0\n", "my_tasks"),
    "empty": ("", "mine"),
    "an exception": ("raise ValueError('of mine')\n", "my_tasks.py line 1", "of mine"),
    "an exception of two lines": ("raise ValueError('of\\nmine')\n", "my_tasks.py line 1"),
    "an exception without a text": ("raise KeyError\n", "my_tasks.py line 1", "KeyError"),
    "an own BaseException": ("class E(BaseException): pass\nraise E('x')\n", "my_tasks.py"),
    "an exception whose text fails": (
        "class E(Exception):\n    def __str__(self): raise ValueError('x')\nraise E()\n", "my_tasks.py"),
    "sys.exit(0)": ("import sys\nsys.exit(0)\n", "my_tasks.py line 2", "sys.exit(0)"),
    "sys.exit(3)": ("import sys\nsys.exit(3)\n", "my_tasks.py line 2"),
    "sys.exit of a text": ("import sys\nsys.exit('bye')\n", "my_tasks.py line 2"),
    "exit()": ("raise SystemExit\n", "my_tasks.py line 1"),
    "endless recursion": ("def f(): f()\nf()\n", "my_tasks.py line", "RecursionError"),
    "a missing module": ("import no_such_thing\n", "no_such_thing"),
    "a missing name": ("from pemt_jax import no_such_name\n", "no_such_name"),
    "a name that is not defined": ("register(x)\n", "my_tasks.py line 1", "NameError"),
    "an assertion": ("assert False, 'never'\n", "my_tasks.py line 1", "never"),
    "an interrupt of its own": ("raise KeyboardInterrupt\n", ""),
    "a file that is missing": ("open('nowhere.txt')\n", "nowhere.txt"),
}  # fmt: skip
DECLARED = {  # what is no task
    "no name": "pemt.task('', {'train': ROWS, 'validation': ROWS}, inputs='{text}', labels=('a',), description='x')",
    "a name with spaces": "pemt.task('a b', {'train': ROWS, 'validation': ROWS}, inputs='{text}', labels=('a',), description='x')",
    "a name that is a number": "pemt.task(3, {'train': ROWS, 'validation': ROWS}, inputs='{text}', labels=('a',), description='x')",
    "a name that is taken": "pemt.task('pemt_cb', {'train': ROWS, 'validation': ROWS}, inputs='{text}', labels=('a',), description='x')",
    "data that is None": "pemt.task('mine', None, inputs='{text}', labels=('a',), description='x')",
    "data that is a list": "pemt.task('mine', ROWS, inputs='{text}', labels=('a',), description='x')",
    "data that is empty": "pemt.task('mine', {}, inputs='{text}', labels=('a',), description='x')",
    "no validation": "pemt.task('mine', {'train': ROWS}, inputs='{text}', labels=('a',), description='x')",
    "a split of nobody": "pemt.task('mine', {'train': ROWS, 'validation': ROWS, 'tset': ROWS}, inputs='{text}', labels=('a',), description='x')",
    "no rows": "pemt.task('mine', {'train': [], 'validation': ROWS}, inputs='{text}', labels=('a',), description='x')",
    "rows that are numbers": "pemt.task('mine', {'train': [1], 'validation': ROWS}, inputs='{text}', labels=('a',), description='x')",
    "rows that are None": "pemt.task('mine', {'train': None, 'validation': ROWS}, inputs='{text}', labels=('a',), description='x')",
    "rows of sets": "pemt.task('mine', {'train': [{'text': {1}}], 'validation': ROWS}, inputs='{text}', labels=('a',), description='x')",
    "rows of NaN": "pemt.task('mine', {'train': [{'text': float('nan')}], 'validation': ROWS}, inputs='{text}', labels=('a',), description='x')",
    "no labels": "pemt.task('mine', {'train': ROWS, 'validation': ROWS}, inputs='{text}', labels=(), description='x')",
    "labels in one text": "pemt.task('mine', {'train': ROWS, 'validation': ROWS}, inputs='{text}', labels='good', description='x')",
    "labels of numbers": "pemt.task('mine', {'train': ROWS, 'validation': ROWS}, inputs='{text}', labels=(1, 2), description='x')",
    "labels that are None": "pemt.task('mine', {'train': ROWS, 'validation': ROWS}, inputs='{text}', labels=None, description='x')",
    "a template of nothing": "pemt.task('mine', {'train': ROWS, 'validation': ROWS}, inputs='', labels=('a',), description='x')",
    "an open brace": "pemt.task('mine', {'train': ROWS, 'validation': ROWS}, inputs='{text', labels=('a',), description='x')",
    "empty braces": "pemt.task('mine', {'train': ROWS, 'validation': ROWS}, inputs='{}', labels=('a',), description='x')",
    "code in braces": "pemt.task('mine', {'train': ROWS, 'validation': ROWS}, inputs='{text.__class__}', labels=('a',), description='x')",
    "a template that is None": "pemt.task('mine', {'train': ROWS, 'validation': ROWS}, inputs=None, labels=('a',), description='x')",
    "no description": "pemt.task('mine', {'train': ROWS, 'validation': ROWS}, inputs='{text}', labels=('a',), description='')",
    "a description of None": "pemt.task('mine', {'train': ROWS, 'validation': ROWS}, inputs='{text}', labels=('a',), description=None)",
    "a metric that is a text": "pemt.task('mine', {'train': ROWS, 'validation': ROWS}, inputs='{text}', labels=('a',), description='x', metric='accuracy')",
    "splits that are a text": "pemt.task('mine', {'train': ROWS, 'validation': ROWS}, inputs='{text}', labels=('a',), description='x', splits='halves')",
    "an argument of nobody": "pemt.task('mine', {'train': ROWS}, inputs='{text}', labels=('a',), descripton='x')",
    "a Dataset without arguments": "register(Dataset())",
    "a Dataset of None": "register(None)",
    "a Dataset with a string target": "register(Dataset(name='mine', data='glue/cola:2.0.0', inputs='{text}', target='label', description='x', metric=metrics.accuracy))",
    "a Dataset with data=None": "register(Dataset(name='mine', data=None, inputs='{text}', target=targets.Number(), description='x', metric=metrics.accuracy))",
    "a Dataset of an unknown TFDS name": "register(Dataset(name='mine', data='no/such:1.0.0', inputs='{text}', target=targets.Number(), description='x', metric=metrics.accuracy))",
    "a Dataset without a version": "register(Dataset(name='mine', data='glue/cola', inputs='{text}', target=targets.Number(), description='x', metric=metrics.accuracy))",
}  # fmt: skip
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
    "returns no average": "return {'accuracy': 1.0}",
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


CASES = [
    *(module(f"a module with {name}", text, *says) for name, (text, *says) in MODULES.items()),
    *(
        module(f"declared with {name}", f"{HEAD}{ROWS}{text}\n", "my_tasks.py line")
        for name, text in DECLARED.items()
    ),
    *(
        trained(f"a metric that {name}",
                f"{HEAD}{ROWS}def metric(targets, predictions):\n    {body}\n" + TASK % ", metric=metric",
                "metric|my_tasks.py")
        for name, body in METRICS.items()
    ),
    trained("a metric of other arguments",
            f"{HEAD}{ROWS}def metric(t, p):\n    return {{'average': 1.0}}\n" + TASK % ", metric=metric",
            "my_tasks.py"),
    trained("a metric of no arguments",
            f"{HEAD}{ROWS}def metric():\n    return {{'average': 1.0}}\n" + TASK % ", metric=metric",
            "my_tasks.py"),
    trained("a gin file that imports what fails", "raise ValueError('of mine')\n", "my_tasks.py line 1",
            may=()),
    trained("a gin file that imports what exits", "import sys\nsys.exit(0)\n", "my_tasks.py line 2",
            may=()),
    trained("a good task is accepted", HEAD + ROWS + TASK % "", code=0),
    *(
        module(f"{command}: a module that fails", "raise ValueError('of mine')\n", "my_tasks.py line 1",
               command=command)
        for command in ("tasks --import my_tasks list", "tasks --import my_tasks prepare mine",
                        "report $TARGET --to page.html --import my_tasks")
    ),
    module("a module named as one of Python's", "raise ValueError('of mine')\n", "my_tasks.py",
           command="tasks --import os --import my_tasks list"),
]  # fmt: skip
