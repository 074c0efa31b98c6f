"""A `Job` from the configuration of a training run."""

import dataclasses

from pemt_jax import tasks
from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.config import PemtConfig, T5Config
from pemt_jax.data.token_cache import check_task
from pemt_jax.interop.base import open_base
from pemt_jax.library.expert import bank_options, default_library, load_expert
from pemt_jax.model.methods import get_method
from pemt_jax.model.prompts import prompt_tokens
from pemt_jax.planning.job import PROMPT, Job, pemt_of
from pemt_jax.run_config import TrainConfig, per_task
from pemt_jax.tasks.vocabulary import DEFAULT_VOCABULARY


def job_of_training(config: TrainConfig, t5: T5Config | None = None) -> Job:
    """Return what `train(config)` would run; nothing but headers and cards is read.

    A base that is a name on the hub is downloaded, as `train` would.

    Args:
      config: of the run.
      t5: a shape instead of that of the base, which then need not be there.

    Raises:
      UsageError, PemtError: the base is not there, or an argument is wrong.
    """
    for name in config.tasks:
        check_task(name)
    model, data, loop = config.model, config.data, config.loop
    method, assumed = get_method(model.method), []
    if t5 is None:
        base = model.initial_checkpoint_path
        t5 = model.t5 if base is None else open_base(base)[0]
    if t5 is None:
        raise UsageError(
            "There is neither a base nor a T5 configuration, expected INITIAL_CHECKPOINT_PATH or "
            "--shape."
        )
    t5 = model.shape(t5)
    prompt = _prompt_length(config, assumed) if method.prompt else 0
    experts, options = {}, model.options or PemtConfig()
    library = config.experts.library or default_library()
    found = []
    for name in config.experts.experts if method.experts else ():
        try:
            found.append(load_expert(library, name))
            experts[name] = len(found[-1].prompt)
        except PemtError:
            experts[name] = PROMPT
            assumed.append(
                f"expert {name!r}, which the library has not, of rank {options.expert_rank}"
            )
    if found:
        bank = bank_options(found)
        chosen = {field: bank[field] for field in ("expert_linears", "expert_rank")}
        options = dataclasses.replace(options, **chosen)
    lengths, count = data.task_feature_lengths, len(config.tasks)
    if count > 1:
        assumed.append(
            f"one of the {count} tasks on the chips, which update in turn: trainables and "
            "optimizer are held once for each"
        )
    return Job(
        t5,
        pemt_of(method.name, t5, options, prompt, experts),
        method.name,
        config.optimizer,
        batch_size=data.batch_size,
        inputs=lengths["inputs"],
        targets=lengths["targets"],
        frozen_dtype=model.frozen_dtype,
        prng=loop.prng,
        train_steps=sum(per_task("TRAIN_STEPS", loop.train_steps, count)),
        eval_batch_size=data.eval_batch_size,
        decode_length=model.max_decode_length or lengths["targets"],
        assumed=tuple(assumed),
    )


def _prompt_length(config: TrainConfig, assumed: list[str]) -> int:
    """Tokens of the longest prompt, to which a job of many tasks pads the others."""
    names = config.tasks
    texts = per_task("PROMPT_TEXT", config.model.prompt_text, len(names))
    try:
        prompts = [text or tasks.description(name) for name, text in zip(names, texts, strict=True)]
        return max(len(prompt_tokens(DEFAULT_VOCABULARY, text)) for text in prompts)
    except (PemtError, OSError):
        assumed.append(f"a prompt of {PROMPT} tokens")
        return PROMPT
