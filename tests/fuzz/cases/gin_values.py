"""Values of gin: macros and arguments of `train`, `evaluate` and `predict` that cannot be meant."""

from case import Case, case, copy, train

WHOLE = ("abc", "None", "1.5", "True", "(1,2)", "[3]", "{'a':1}", "-1", "'5'", "1e3", "-9999999999")
NO_NUMBER = ("abc", "True", "(0.1,)", "{'a':1}", "nan", "1e400", "-1e-3")
NO_TEXT = ("3", "2.5", "True", "{'a':1}", "['a']")

# (macro or argument, values): each value is refused by a sentence with the name, shortened to
# what it is called there.
REFUSED = {
    "TRAIN_STEPS": (*WHOLE, "nan", "10**9"),
    "BATCH_SIZE": (*WHOLE, "0", "1000000000", "99999999999999999999"),
    "SEED": ("abc", "None", "1.5", "True", "(1,)", "-1", str(2**63), str(2**70), "1" * 5000),
    "train.eval_every": ("abc", "0", "-1", "1.5", "True", "(5,)"),
    "train.eval_batch_size": ("abc", "0", "-4", "None", "2.0", "1000000000"),
    "train.save_every": ("abc", "0", "-1", "1.5", "True"),
    "train.log_every": ("abc", "0", "-1", "None", "1.5"),
    "PATIENCE": ("abc", "0", "-1", "1.5", "(1,)"),
    "PROFILE_STEPS": ("abc", "0", "-1", "1.5"),
    "LEARNING_RATE": (*NO_NUMBER, "None", "-0.01", "[1]", "inf"),
    "optimizers.make_optimizer.clip_norm": ("-1", "0", "abc", "True", "(1,)"),
    "optimizers.make_optimizer.weight_decay": ("-1", "abc", "None", "(1,)"),
    "optimizers.make_optimizer.b1": ("1", "-0.1", "abc", "2", "None"),
    "optimizers.make_optimizer.b2": ("1", "-0.1", "abc", "2"),
    "optimizers.make_optimizer.eps": ("-1", "abc", "None"),
    "optimizers.make_optimizer.name": ("adam", "3", "None", "['adamw']", "''"),
    "METHOD": (*NO_TEXT, "None", "pemt_targt", "''", "'PEMT_SOURCE'"),
    "MODEL_DIR": (*NO_TEXT, "None", "''", "'  '"),
    "INITIAL_CHECKPOINT_PATH": (*NO_TEXT, "None", "''", "'  '"),
    "MIXTURE_OR_TASK_NAME": ("3", "None", "tiny_mod", "''", "()", "{'a':1}", "(3,)",
        "('tiny_mood','tiny_mood')"),
    "LIBRARY": ("3", "''", "['a']", "True"),
    "EXPERT_NAME": ("3", "['a']", "a/b", "..", ".hidden", "'a b/../c'", "True", "''"),
    "INITIAL_EXPERT": ("3", "nobody", "../x", "['a']"),
    "EXPERTS": ("3", "nobody", "(3,)", "('nobody',)", "('../x',)"),
    "PROMPT_TEXT": ("3", "''", "'  '", "['a','b']", "{'a':1}", "True"),
    "DROPOUT_RATE": (*NO_NUMBER, "1", "1.5", "-0.1"),
    "DTYPE": ("float23", "int8", "3", "['float32']", "''"),
    "FROZEN_DTYPE": ("float23", "None", "3", "float16x"),
    "BASE_DTYPE": ("float23", "None", "3", "''"),
    "REMAT_POLICY": ("everything", "3", "''"),
    "SCAN_LAYERS": ("3", "abc", "'False'"),
    "BROADCAST_DROPOUT": ("3", "abc"),
    "EMBEDDING_ROWS": ("0", "-1", "abc", "1.5", "1000000000", "10"),
    "MAX_DECODE_LENGTH": ("0", "-1", "abc", "1.5", "1000000000"),
    "PRNG": ("threefly", "3", "None", "''"),
    "TASK_LOOP": ("loop", "3", "None"),
    "MODEL_PARALLEL": ("0", "-1", "abc", "None", "1.5", "3", "1000000000"),
    "EXPERT_PARALLEL": ("0", "-1", "abc", "2", "1000000000"),
    "FULLY_SHARDED": ("3", "abc", "None", "'yes'"),
    "train.buckets": ("(-3,)", "(0,)", "('16',)", "(1.5,)", "'16'", "((16,),)", "((16,4,2),)",
        "{'a':1}", "-1", "0", "True", "((16,-1),)", "(None,)"),
    "train.task_feature_lengths": ("3", "{}", "{'inputs':16}", "[16,4]",
        "{'inputs':-1,'targets':4}", "{'inputs':'16','targets':4}", "{'inputs':16.5,'targets':4}",
            "{'inputs':0,'targets':4}", "{'inputs':[16],'targets':4}",
                "{'inputs':16,'targets':4,'extra':3}", "None"),
    "config.PemtConfig.expert_rank": ("-1", "abc", "1.5", "None", "1000000000", "'q:0'",
        "'nowhere:4'", "'q:-1'", "'q:x'", "'q'", "True", "['q:4']"),
    "config.PemtConfig.adapter_dim": ("-1", "abc", "1.5", "None", "1000000000", "True"),
    "train.options": ("3", "abc", "{'expert_rank':4}", "@config.PemtConfig"),
    "train.optimizer": ("adamw", "3", "None", "@config.PemtConfig()"),
    "train.t5": ("3", "abc", "@config.PemtConfig()"),
}  # fmt: skip
# Arguments of commands on a finished run.
FINISHED = {
    "BATCH_SIZE": ("0", "-1", "abc", "1.5", "None", "1000000000"),
    "VOCABULARY": ("no/where", "3", "''"),
    "BUCKETS": ("(-3,)", "('a',)", "abc"),
    "MODEL_PARALLEL": ("0", "abc", "7"),
    "LIBRARY": ("''", "3", "nowhere"),
}
OF_EVALUATE = {
    "SPLIT": ("tset", "3", "''", "None", "['test']"),
    "MIXTURE_OR_TASK_NAME": ("tiny_mod", "3", "''"),
}
OF_PREDICT = {
    "NUM_BEAMS": ("0", "-1", "abc", "1.5", "1000000000", "None"),
    "MAX_DECODE_LENGTH": ("0", "-1", "abc", "1000000000"),
    "INPUT_FILE": ("3", "''", "nowhere.txt", "['a']"),
    "OUTPUT_FILE": ("3", "''", "['a']", "True"),
}


def _training(name: str, value: str) -> Case:
    macros = {name: value}
    if name == "EXPERTS":
        macros |= {"METHOD": "pemt_target"}
    if name == "INITIAL_EXPERT":
        macros |= {"METHOD": "lora"}
    if name.endswith("adapter_dim"):
        macros |= {"METHOD": "adapter"}
    short = name.rsplit(".", 1)[-1]
    shown = value if len(value) < 60 else f"{value[:20]}..."
    says = f"{short}|{short.rpartition('_')[2]}|{value.strip('()[],')}"
    return train(f"{name}={shown}", says, macros=macros, quick=short in ("SEED", "DTYPE"))


def _finished(command: str, arguments: dict) -> list[Case]:
    return [
        case(
            f"{command} {name}={value}",
            (command, "--gin.MODEL_DIR=run", f"--gin.{name}={value}"),
            f"{name}|{name.rpartition('_')[2]}|{value}",
            files={"run": copy("$TARGET", without=("checkpoints",))},
            stdin=b"mood: a good film\n",
        )
        for name, values in arguments.items()
        for value in values
    ]


# What is as large as one likes and takes nothing more.
ACCEPTED = {"train.buckets": "(1000000000,)", "TRAIN_STEPS": "0"}
CASES = [
    *(
        train(
            f"{name}={value} is accepted",
            code=0,
            may=("*",),
            macros={"TRAIN_STEPS": 1, name: value},
        )
        for name, value in ACCEPTED.items()
    ),
    *(_training(name, value) for name, values in REFUSED.items() for value in values),
    *_finished("evaluate", FINISHED | OF_EVALUATE),
    *_finished("predict", FINISHED | OF_PREDICT),
]
