"""The methods that a sweep compares, one row each: a new method is a new row here.

A row says how `python -m pemt_jax.train` is called for one target run. Everything else, the task,
its shots, the seed, the base, the steps and the learning rate, is the table's.
"""

import dataclasses
from collections.abc import Mapping

NONE, MIX, START = "none", "mix", "start"
SEARCHED = "lorahub"
RATE = ("rate",)


@dataclasses.dataclass(frozen=True)
class SweepMethod:
    """A way to adapt to a target task.

    Attributes:
      name, title: in tables and on the page.
      bindings: flags of the training command, {"METHOD": "lora"}.
      files: its gin files; none for the table's. What they need, base, lengths and batch size, the
        table's `base` and `bindings` give.
      experts: what it does with an expert set: NONE, MIX (EXPERTS) or START (INITIAL_EXPERT, whose
        prompt it starts with as well).
      library: "own", the set's experts, or those that are made of them, see libraries.DERIVED;
        SEARCHED, one for each of the target's draws.
      choose: what is chosen on validation, of "rate" and "expert": one expert of the set.
      rate_factor: of the table's rates, for methods that need others, such as prompts alone.
      trained: False for what is not trained on the target: one update at rate 0, one seed, and the
        same for any number of shots.
      searched: that what is not trained was found on the target's training examples, see
        searching.py: a run for every seed and number of shots all the same.
      paper: where it is from.
      published: its name in the tables of sweeping/pages/published.json.
    """

    name: str
    title: str
    bindings: Mapping[str, object]
    files: tuple[str, ...] = ()
    experts: str = NONE
    library: str = "own"
    choose: tuple[str, ...] = RATE
    rate_factor: float = 1.0
    trained: bool = True
    searched: bool = False
    paper: str = ""
    published: str = ""

    @property
    def has_draws(self) -> bool:
        """Whether it depends on the examples that are drawn of the target."""
        return self.trained or self.searched


PEMT, LORA = {"METHOD": "pemt_target"}, {"METHOD": "lora"}
PEMT_PAPER, LORA_PAPER = "arXiv 2402.15082", "arXiv 2106.09685"


def _rival(name: str, title: str, *, file: str | None = None, **fields) -> SweepMethod:
    """A method of configs/methods, whose file has its name."""
    return SweepMethod(name, title, {}, (f"methods/{file or name}.gin",), **fields)


METHODS = {
    method.name: method
    for method in (
        SweepMethod(
            "pemt",
            "PEMT: gate over the experts, target adapter",
            PEMT,
            experts=MIX,
            paper=PEMT_PAPER,
            published="PEMT",
        ),
        SweepMethod(
            "adapter",
            "the same adapter, prompt and norms without experts",
            {"METHOD": "adapter"},
            paper="arXiv 1902.00751, here with a prompt",
            published="Adapter",
        ),
        SweepMethod(
            "full",
            "full fine-tuning",
            {"METHOD": "full"},
            paper="arXiv 1910.10683",
            published="Fine-tuning",
        ),
        SweepMethod(
            "lora", "LoRA and prompt on the target alone", LORA, paper=LORA_PAPER, published="LoRA"
        ),
        SweepMethod(
            "pooled",
            "LoRA on the pooled sources, then on the target",
            LORA,
            experts=START,
            library="pooled",
            paper=LORA_PAPER,
        ),
        SweepMethod(
            "random",
            "PEMT over random experts of the same norms",
            PEMT,
            experts=MIX,
            library="random",
            paper="control, arXiv 2602.12323",
        ),
        SweepMethod(
            "null_expert",
            "PEMT over the experts and one that adds nothing",
            PEMT,
            experts=MIX,
            library="null",
            paper=f"ablation, {PEMT_PAPER}",
        ),
        SweepMethod(
            "one_expert",
            "PEMT over one expert, chosen on validation",
            PEMT,
            experts=MIX,
            choose=("expert", "rate"),
            paper=PEMT_PAPER,
        ),
        SweepMethod(
            "single",
            "the best single expert as it is, chosen on validation",
            LORA,
            experts=START,
            choose=("expert",),
            trained=False,
            paper="control",
        ),
        SweepMethod(
            "uniform",
            "all experts at equal weights as they are",
            PEMT,
            experts=MIX,
            choose=(),
            trained=False,
            paper="control",
        ),
        *(
            SweepMethod(
                name,
                f"{title} merge of the experts as it is",
                LORA,
                experts=START,
                library=name,
                choose=(),
                trained=False,
                paper=paper,
            )
            for name, title, paper in (
                ("linear", "linear", "control"),
                ("svd", "SVD", "control"),
                ("ties", "TIES", "arXiv 2306.01708"),
                ("dare", "DARE", "arXiv 2311.03099"),
            )
        ),
        SweepMethod(
            "lorahub",
            "LoraHub: weights of the experts, found without gradients",
            LORA,
            experts=START,
            library=SEARCHED,
            choose=(),
            trained=False,
            searched=True,
            paper="arXiv 2307.13269",
        ),
        _rival(
            "bitfit",
            "a bias per sublayer's output",
            rate_factor=10,
            paper="arXiv 2106.10199",
            published="BitFit",
        ),
        _rival("ia3", "(IA)3", rate_factor=10, paper="arXiv 2205.05638"),
        _rival("norms", "layer norms", rate_factor=10, paper="control"),
        _rival(
            "prompt_tuning",
            "prompt tuning",
            rate_factor=100,
            paper="arXiv 2104.08691",
            published="Prompt tuning",
        ),
        _rival(
            "spot",
            "SPoT: the prompt of one expert, chosen on validation",
            experts=START,
            choose=("expert", "rate"),
            rate_factor=100,
            paper="arXiv 2110.07904",
            published="SPoT",
        ),
        _rival(
            "mpt",
            "MPT from the pooled prompt",
            experts=START,
            library="pooled",
            rate_factor=100,
            paper="arXiv 2303.02861",
            published="MPT",
        ),
        _rival(
            "attempt",
            "ATTEMPT over the experts' prompts",
            experts=MIX,
            rate_factor=100,
            paper="arXiv 2205.11961",
            published="ATTEMPT",
        ),
        _rival(
            "token_gate",
            "a gate per token, after AdapterFusion",
            experts=MIX,
            paper="arXiv 2005.00247",
        ),
        _rival(
            "arrow",
            "Arrow routing; prompt and norms trained",
            experts=MIX,
            paper="arXiv 2405.11157",
        ),
        _rival(
            "ties_trained",
            "a TIES merge, trained further",
            file="from_expert",
            experts=START,
            library="ties",
            paper="arXiv 2306.01708",
        ),
        *(
            SweepMethod(
                name,
                f"PEMT with gate temperature {temperature}",
                PEMT | {"PemtConfig.gate_temperature": temperature},
                experts=MIX,
                paper=f"ablation, {PEMT_PAPER}",
            )
            for name, temperature in (("sharp_gate", 0.25), ("flat_gate", 4.0))
        ),
        *(
            _rival(name, title, experts=MIX, paper=f"ablation, {PEMT_PAPER}")
            for name, title in (
                ("no_prompt_mixing", "PEMT without mixing prompts"),
                ("no_experts", "PEMT without experts in the layers"),
                ("no_adapter", "PEMT without the target adapter"),
                ("no_sparsity", "PEMT without the sparsity loss"),
                ("uniform_gate", "PEMT with equal weights"),
                ("constant_gate", "PEMT with weights that read no input"),
                ("shared_gate", "PEMT with one gate per stack"),
                ("top1_gate", "PEMT with the best expert only"),
            )
        ),
    )
}
