"""A main whose one argument is a configuration, callable by the names of its fields.

    @configured(TrainConfig)
    def train(config: TrainConfig, config_text=None): ...

    train(config)                                # from Python
    train(model_dir="runs/x", train_steps=3)     # the same, by name
    --gin.train.train.train_steps=3              # gin sees the fields as the arguments of `train`

A command also gives the main `config_text`, which returns the text of gin's configuration.
"""

import contextlib
import contextvars
import inspect
from collections.abc import Callable, Iterator

from pemt_jax.common.flat_config import Flat, Part

_text: contextvars.ContextVar[Callable[[], str] | None] = contextvars.ContextVar(
    "config_text", default=None
)


def configured(config_class: type[Flat]) -> Callable[[Callable], Callable]:
    """Return the decorator for a main that takes a `config_class`."""

    def decorate(main: Callable) -> Callable:
        takes_text = "config_text" in inspect.signature(main).parameters

        def call(config: Flat | None = None, **values: object):
            more = {"config_text": _text.get()} if takes_text and _text.get() else {}
            return main(config_class.of(**values) if config is None else config, **more)

        parameters = config_class.parameters()
        call.__name__ = call.__qualname__ = main.__name__
        call.__module__ = main.__module__
        call.__doc__ = "\n\n".join([inspect.getdoc(main) or "", *documentation(config_class)])
        call.__annotations__ = {name: p.annotation for name, p in parameters.items()}
        call.__signature__ = inspect.Signature(list(parameters.values()))
        return call

    return decorate


def documentation(config_class: type[Flat]) -> Iterator[str]:
    """What a configuration and its parts say of their fields."""
    for part in (config_class, *config_class.parts().values()):
        text = inspect.getdoc(part) or ""
        head, _, attributes = text.partition("Attributes:\n")
        if attributes:
            title = head.strip().splitlines()[0] if issubclass(part, Part) else "Arguments"
            yield f"{title.rstrip('.;')}:\n{attributes.rstrip()}"


@contextlib.contextmanager
def text_of_configuration(text: Callable[[], str]) -> Iterator[None]:
    """Context in which a main that is called is given this `config_text`."""
    token = _text.set(text)
    try:
        yield
    finally:
        _text.reset(token)
