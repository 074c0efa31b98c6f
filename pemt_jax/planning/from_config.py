"""A `Job` from the arguments of `pemt_jax.train`, as its gin files give them."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping

from pemt_jax import tasks
from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.config import PemtConfig, T5Config
from pemt_jax.interop.base import open_base
from pemt_jax.library import expert as expert_library
from pemt_jax.model.methods import get_method
from pemt_jax.planning.job import PROMPT, Job, pemt_of
from pemt_jax.runs.build_model import prompt_tokens
from pemt_jax.runs.task_run import per_task
from pemt_jax.tasks.vocabulary import DEFAULT_VOCABULARY


def job_of_training(
    train: Callable, given: Mapping[str, object], t5: T5Config | None = None
) -> Job:
    """Return what `train(**given)` would run; nothing but headers and cards is read.

    Args:
      train: the function, for its defaults.
      given: its arguments as configured.
      t5: a shape instead of that of the base, which then need not be there.

    Raises:
      UsageError, PemtError: the base is not there, or an argument is wrong.
    """
    bound = inspect.signature(train).bind(**given)
    bound.apply_defaults()
    run = bound.arguments
    method, assumed = get_method(run["method"]), []
    if t5 is None:
        base = run["initial_checkpoint_path"]
        t5 = run["t5"] if base is None else open_base(base)[0]
    if t5 is None:
        raise UsageError(
            "There is neither a base nor a T5 configuration, expected "
            "INITIAL_CHECKPOINT_PATH or --shape."
        )
    choices = {
        "dropout_rate": "dropout_rate",
        "broadcast_dropout": "broadcast_dropout",
        "dtype": "dtype",
        "remat_policy": "remat_policy",
        "embedding_rows": "vocab_size",
    }
    t5 = dataclasses.replace(
        t5, **{field: run[name] for name, field in choices.items() if run[name] is not None}
    )
    prompt = _prompt_length(run, assumed) if method.prompt else 0
    experts, options = {}, run["options"] or PemtConfig()
    for name in run["experts"] if method.experts else ():
        try:
            found = expert_library.load_expert(run["library"], name)
            experts[name] = len(found.prompt)
            options = dataclasses.replace(options, expert_rank=max(options.expert_rank, found.rank))
        except PemtError:
            experts[name] = PROMPT
            assumed.append(
                f"expert {name!r}, which the library has not, of rank {options.expert_rank}"
            )
    lengths, names = run["task_feature_lengths"], _names(run)
    if len(names) > 1:
        assumed.append(
            f"one of the {len(names)} tasks on the chips, which update in turn: "
            "trainables and optimizer are held once for each"
        )
    return Job(
        t5,
        pemt_of(method.name, t5, options, prompt, experts),
        method.name,
        run["optimizer"],
        batch_size=run["batch_size"],
        inputs=lengths["inputs"],
        targets=lengths["targets"],
        frozen_dtype=run["frozen_dtype"],
        prng=run["prng"],
        train_steps=sum(per_task("TRAIN_STEPS", run["train_steps"], len(names))),
        decode_batch_size=run["eval_batch_size"],
        decode_length=run["max_decode_length"] or lengths["targets"],
        assumed=tuple(assumed),
    )


def _names(run: Mapping) -> list[str]:
    """The tasks of a run, one as well as many."""
    names = run["mixture_or_task_name"]
    return [names] if isinstance(names, str) else list(names)


def _prompt_length(run: Mapping, assumed: list[str]) -> int:
    """Tokens of the longest prompt, to which a job of many tasks pads the others."""
    names = _names(run)
    texts = per_task("PROMPT_TEXT", run["prompt_text"], len(names))
    try:
        prompts = [text or tasks.description(name) for name, text in zip(names, texts, strict=True)]
        return max(len(prompt_tokens(DEFAULT_VOCABULARY, text)) for text in prompts)
    except (PemtError, OSError):
        assumed.append(f"a prompt of {PROMPT} tokens")
        return PROMPT
