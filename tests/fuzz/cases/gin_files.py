"""gin files and flags of gin: syntax, names, macros, includes, scopes, imports, encodings."""

from case import Case, fifo, link, mode, train

FIRST = "include '$GIN'\n"


def in_file(name: str, text: object, *says: str, code: int = 2, macros=None, more=None, **options):
    """A gin file on top of the tiny system's."""
    files = {"own.gin": text, **(more or {})}
    made = train(name, *says, code=code, macros=macros, files=files, **options)
    return _with(made, "own.gin")


def _with(made: Case, *names: str) -> Case:
    """The same case with these gin files in place of the tiny system's."""
    flags = (f"--gin_file={name}" for name in names)
    return Case(**vars(made) | {"argv": ("train", *flags, *made.argv[2:])})


def deep(levels: int) -> str:
    return "[" * levels + "]" * levels


TEXTS = {
    # name: (text after the include, words of the sentence)
    "a word alone": ("nonsense\n", "own.gin"),
    "an open bracket": ("SEED = (1,\n", "own.gin"),
    "an open text": ("SEED = 'abc\n", "own.gin"),
    "a value on no name": ("= 3\n", "own.gin"),
    "no value": ("SEED =\n", "own.gin"),
    "two values": ("SEED = 1 2\n", "own.gin"),
    "a Python expression": ("SEED = 1 + 2\n", "own.gin"),
    "a call": ("SEED = __import__('os').system('touch $CANARY')\n", "own.gin"),
    "a lambda": ("train.seed = lambda: 3\n", "own.gin"),
    "a name as a value": ("SEED = abc\n", "abc"),
    "a tab and a NUL": ("SEED\t=\0 3\n", "own.gin"),
    "nested 1,000 deep": (f"SEED = {deep(1000)}\n", ""),
    "nested 100,000 deep": (f"SEED = {deep(100_000)}\n", "deep"),
    "a line of a million characters": (f"SEED = '{'x' * 10**6}'\n", "SEED"),
    "an unknown macro": ("TRIAN_STEPS = 5\n", "TRIAN_STEPS"),
    "an unknown function": ("trian.seed = 5\n", "trian"),
    "an unknown argument": ("train.sede = 5\n", "sede"),
    "an unknown reference": ("train.optimizer = @optimizers.make_optimiser()\n", "make_optimiser"),
    "a macro of itself": ("SEED = %SEED\n", "SEED"),
    "a cycle of two": ("A = %B\nB = %A\ntrain.seed = %A\n", "A"),
    "a cycle of three": ("A = %B\nB = [%C]\nC = {'a': %A}\ntrain.seed = %A\n", "A"),
    "an undefined macro": ("train.seed = %NOWHERE\n", "NOWHERE"),
    "a function that calls itself": ("config.PemtConfig.expert_rank = @config.PemtConfig()\n", ""),
    "a scope of nobody": ("somewhere/train.seed = 3\n", "somewhere"),
    "a missing include": ("include 'nowhere.gin'\n", "nowhere.gin"),
    "an include of itself": ("include 'own.gin'\n", "own.gin"),
    "an include of a folder": ("include 'folder'\n", "folder"),
    "an include of an empty name": ("include ''\n", ""),
    "an include of nothing": ("include\n", "own.gin"),
    "a missing module": ("import no_such_module\n", "no_such_module"),
    "a module with a dash": ("import my-tasks\n", "own.gin"),
    "a module of a package that lacks it": ("from pemt_jax import nothing_here\n", "nothing_here"),
    "an import from nowhere": ("from nowhere import thing\n", "nowhere"),
    "a star": ("from pemt_jax import *\n", "own.gin"),
    "a required macro left out": ("SEED = %gin.REQUIRED\ntrain.seed = %SEED\n", "SEED"),
    "an environment variable": ("train.seed = $HOME\n", ""),
    "a value for a class": ("config.PemtConfig = 3\n", "PemtConfig"),
    "another dtype of a dictionary": ("train.task_feature_lengths = {1: 2}\n",
        "TASK_FEATURE_LENGTHS"),
    "a set": ("train.buckets = {1, 2}\n", "own.gin"),
    "a complex number": ("SEED = 3j\n", "SEED"),
    "bytes": ("PRNG = b'rbg'\n", "PRNG"),
    "an f-string": ("PRNG = f'rbg'\n", "own.gin"),
    "a very long integer": (f"SEED = {'9' * 5000}\n", "own.gin line 2"),
    "an octal of old": ("SEED = 007\n", "own.gin"),
    "a bidirectional mark in a name": ("SE\u202eED = 3\n", ""),
    "a lone surrogate": ("PROMPT_TEXT = '\\ud800'\n", "PROMPT_TEXT"),
    "a NUL in a text": ("PROMPT_TEXT = 'a\\0b'\nSEED = -1\n", "SEED"),
}  # fmt: skip
FILES = {
    "latin-1": ("SEED = 3  # fa\xe7ade\n".encode("latin-1"), "UTF-8"),
    "UTF-16": ("SEED = 3\n".encode("utf-16"), "UTF-16"),
    "UTF-32": ("SEED = 3\n".encode("utf-32"), ""),
    "zeros": (bytes(4096), ""),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "UTF-8"),
    "a pipe": (fifo, "own.gin"),
    "a link to nothing": (link("nothing"), "own.gin"),
    "a link to itself": (link("own.gin"), "own.gin"),
    "no permission": (mode(0, "SEED = 3\n"), "own.gin"),
}
FLAGS = {
    "no value": ("--gin.SEED",),
    "an empty value": ("--gin.SEED=",),
    "no name": ("--gin.=3",),
    "only spaces": ("--gin.  = 3",),
    "a name with spaces": ("--gin.TRAIN STEPS=3",),
    "a name with a bracket": ("--gin.SEED[0]=3",),
    "two equals": ("--gin.SEED==3",),
    "a scope": ("--gin.a/train.seed=3",),
    "a reference to nothing": ("--gin.SEED=@nothing",),
    "a macro of nothing": ("--gin.SEED=%NOTHING",),
    "its own macro": ("--gin.BATCH_SIZE=%BATCH_SIZE",),
    "two lines": ("--gin.SEED=3\nimport os",),
    "an import": ("--gin.import os=3",),
    "an include": ("--gin.include 'x'=3",),
    "a flag of nobody": ("--sede=3",),
    "a word": ("seed",),
    "an option in short": ("--gin_fil=x",),
    "a number of processes": ("--process_count=many",),
    "a process without others": ("--process_index=1",),
    "processes without an address": ("--process_count=2", "--process_index=0"),
    "a negative count": ("--process_count=-2", "--process_index=0"),
    "an index beyond": ("--coordinator_address=localhost:1", "--process_count=2",
        "--process_index=5"),
    "a log level": ("--log=loud",),
    "a search path of nothing": ("--gin_search_paths=", "--gin.SEED=-1"),
    "a second gin file of nothing": ("--gin_file=",),
    "a gin file with a scheme": ("--gin_file=s3x://b/x.gin",),
    "a gin file that is a folder": ("--gin_file=folder",),
    "300 characters": (f"--gin_file={'x' * 300}.gin",),
    "a gin file of half a surrogate": ("--gin_file=x\udc80.gin",),
    "a value of half a surrogate": ("--gin.MIXTURE_OR_TASK_NAME=x\udc80",),
    "a value of 100,000 characters": (f"--gin.MIXTURE_OR_TASK_NAME={'x' * 100_000}",),
}  # fmt: skip

CASES = [
    *(
        in_file(name, FIRST + text, *says, more={"folder/": ""})
        for name, (text, *says) in TEXTS.items()
    ),
    *(
        in_file(f"encoded as {name}", content, *says, code=(1, 2))
        for name, (content, *says) in FILES.items()
    ),
    *(
        Case(**vars(made) | {"name": f"flag: {name}", "argv": (*made.argv, *flags)})
        for name, flags in FLAGS.items()
        for made in [train("", files={"folder/": ""})]
    ),
    in_file(
        "a byte-order mark is accepted",
        "\ufeff" + FIRST + "SEED = 3\n",
        code=0,
        macros={"TRAIN_STEPS": 1},
        may=("run*", "library*"),
    ),
    in_file(
        "a chain of includes that ends at its first",
        "include 'b.gin'\n",
        "own.gin",
        more={"b.gin": "include 'c.gin'\n", "c.gin": "include 'own.gin'\n"},
    ),
    in_file("an include in a loop of links", "include 'b.gin'\n", more={"b.gin": link("b.gin")}),
    _with(train("no gin file at all", "own.gin"), "own.gin"),
]
