"""What a user's code raises is one sentence: their file, the line, the exception."""

import sys
import textwrap

import pytest

from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.common.user_input.code import defined_at, import_module, named, user_code


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module of a user's and return its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    names = []

    def write(text):
        names.append(f"users_{len(names)}")
        (tmp_path / f"{names[-1]}.py").write_text(textwrap.dedent(text))
        return names[-1]

    yield write
    for name in names:
        sys.modules.pop(name, None)


FAULTS = {
    "syntax": ("x = 1\ndef f(:\n", "line 2: SyntaxError: invalid syntax"),
    "exception": ("\n\n1 / 0\n", "line 3: ZeroDivisionError: division by zero"),
    "other module": ("import no_such_thing\n", "line 1: ModuleNotFoundError: No module named"),
    "other name": ("from json import nosuch\n", "line 1: ImportError: cannot import name"),
    "in a library": ("import json\n\njson.loads('{')\n", "line 3: JSONDecodeError: Expecting"),
    "nothing said": ("raise ValueError\n", "line 1: ValueError."),
    "two lines": ("raise ValueError('first\\nsecond')\n", "line 1: ValueError: first."),
}


@pytest.mark.parametrize("text, found", FAULTS.values(), ids=FAULTS)
def test_a_module_that_fails_is_named_with_its_line(module, text, found):
    name = module(text)
    with pytest.raises(UsageError) as caught:
        import_module(name)
    sentence = str(caught.value)
    assert (
        sentence.startswith(f"The import of {name} failed at ") and f"{name}.py {found}" in sentence
    )
    assert caught.value.__cause__ is not None  # its stack is behind the sentence


DATASETS = {
    "description=None": "Found Dataset.description None, expected a text",
    "description=' '": "Dataset.description is empty",
    "name='a b/c'": "Found Dataset.name 'a b/c', expected letters",
    "name=None": "Found Dataset.name None, expected a text",
    "target='label'": "Found Dataset.target 'label', expected Label or Number or Option or Answers",
    "data=None": "Found Dataset.data None, expected a text or a dictionary",
    "data={'train': None}": "Found Dataset.data",
    "inputs=3": "Found Dataset.inputs 3, expected a text",
    "splits='own'": "Found Dataset.splits 'own', expected Own or Halves or HeldOut",
    "metric=None": "Found Dataset.metric None, expected a function",
    "clean='strip'": "Found Dataset.clean 'strip', expected a function or None",
    "target=Label('bad')": "Found Label.words 'bad', expected a list of texts",
    "target=Label(())": "Label has no words, expected one per class",
}


@pytest.mark.parametrize("change, found", DATASETS.items(), ids=DATASETS)
def test_a_dataset_that_is_none_is_named_with_the_users_line(module, change, found):
    name = module(
        f"""
        from pemt_jax.tasks import metrics, registry
        from pemt_jax.tasks.targets import Label
        given = dict(name="x", data="a/b:1.0.0", inputs="{{text}}", target=Label(("a", "b")),
                     metric=metrics.accuracy, description="Say it.")
        registry.Dataset(**(given | dict({change})))
        """
    )
    with pytest.raises(UsageError) as caught:
        import_module(name)
    assert f"{name}.py line" in str(caught.value) and found in str(caught.value)


@pytest.mark.parametrize(
    "given, found",
    [
        ("./my_tasks.py", "expected the name of a module, 'my_tasks'"),
        ("my_tasks.py", "expected the name of a module, 'my_tasks'"),
        ("tasks/mine.py", "expected the name of a module, 'tasks.mine'"),
        (".x", "expected the name of a module, 'x'"),
        ("a b", "Found 'a b' to import, expected the name of a module."),
        ("", "Found '' to import, expected the name of a module."),
        ("user_0", "There is no module 'user_0', .*nearest: 'users_0'"),
        ("users_0.inner", "There is no module 'users_0.inner'|is not a package"),
    ],
)
def test_what_is_no_module_is_refused_with_the_nearest(module, given, found):
    module("x = 1\n")
    with pytest.raises(UsageError, match=found):
        import_module(given)


def fails():
    raise KeyError("oh")


def test_the_place_of_a_function_that_is_never_reached_is_where_it_is_defined():
    with pytest.raises(PemtError, match=r"The metric failed at .*test_user_code.py line \d+: Type"):
        with user_code("The metric", fails):
            len(3)  # stands for a call with other arguments, which fails in the caller
    assert defined_at(len) == "" and "test_user_code.py line" in defined_at(fails)


def test_our_own_faults_pass_where_only_the_users_are_asked_for():
    import json

    def own():
        json.loads("{")  # no line of a user's between

    with pytest.raises(PemtError, match="x failed at .*test_user_code.py line"):
        with user_code("x", theirs=()):
            own()
    with pytest.raises(PemtError, match="^as it is$"), user_code("x"):
        raise PemtError("as it is")


def test_an_exception_in_a_graph_of_tensorflow_is_that_inside():
    text = 'in user code:\n\n    File "/home/me/x.py", line 3, in f\n\n    ValueError: oh.\n'
    assert named(RuntimeError(text)) == "ValueError: oh"
    assert (
        named(ValueError("{{function_node __x}} bad 0\n\t [[{{node Y}}]]")) == "ValueError: bad 0"
    )
