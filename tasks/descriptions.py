"""The text of each task's prompt: one sentence in our own words about what the task asks."""

import contextlib

import seqio
import tensorflow as tf

from pemt_jax.common.errors import UsageError, nearest
from pemt_jax.common.user_input.code import user_code

_DESCRIPTIONS = {
    "vader_movies": "Decide whether a sentence from a film review is negative or positive.",
    "vader_tweets": "Decide whether a short message from social media is negative or positive.",
    "vader_nyt": "Decide whether a sentence from a newspaper editorial is negative or positive.",
    "vader_amazon": "Decide whether a sentence from a product review is negative or positive.",
    "vader_domain": "Say whether a text is from a film review, a tweet or a newspaper.",
    "vader_sources": "Decide what a sentence says or from which kind of text it comes.",
}


def register_description(task_name: str, text: str) -> None:
    """Give a task its prompt text."""
    _DESCRIPTIONS[task_name] = text


def of_task(task: seqio.Task, split: str) -> contextlib.AbstractContextManager[None]:
    """Context in which a task's source and preprocessors run: a failure names the user's line."""
    what = f"Reading the split {split!r} of task {task.name!r}"
    return user_code(what, theirs=(tf.errors.OpError,))


def unknown_task(name: str) -> UsageError:
    """The error for a name that is neither a task's nor a mixture's."""
    known = [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
    return UsageError(
        f"There is no task or mixture {name!r}{nearest(name, known)}, expected a registered one; "
        "a gin file registers those of a module by `import MODULE`."
    )


def description(task_name: str) -> str:
    """The prompt text of a task or mixture; UsageError when it has none or does not exist."""
    if task_name not in _DESCRIPTIONS:
        if task_name not in {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}:
            raise unknown_task(task_name)
        raise UsageError(
            f"The task {task_name!r} has no description to make a prompt from, expected "
            f"PROMPT_TEXT or a registered one{nearest(task_name, _DESCRIPTIONS)}."
        )
    return _DESCRIPTIONS[task_name]
