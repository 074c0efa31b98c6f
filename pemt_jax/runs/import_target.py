"""A target of the authors' code as a finished run of ours, to evaluate and predict with.

Their `adapter.pt` and `task_embedding.pt` lack the gates and the layer norms that stage 2 trains as
well. What is there is imported all the same, the rest being as training starts (a uniform gate, the
base's norms); the card names what is missing, for it is not the model that they trained. A whole
state dict lacks nothing, and its frozen part must be the base and the experts that are given.
"""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.common.storage import check_free
from pemt_jax.config import PemtConfig
from pemt_jax.interop.base import open_base
from pemt_jax.interop.import_expert import Request, open_vocabulary
from pemt_jax.interop.reference import check_backbone, from_reference, load_reference
from pemt_jax.library.expert import PROMPT
from pemt_jax.model.methods import GATE, NORMS
from pemt_jax.model.prompts import prompt_tokens
from pemt_jax.run_config import TrainConfig
from pemt_jax.runs.build_model import build_model
from pemt_jax.runs.publish import publish

LENGTHS = {"inputs": 256, "targets": 128}  # of the authors' runs
IN_NO_SMALL_FILE = re.compile(f"(?:{GATE})|(?:{NORMS})")


def import_target(request: Request, model_dir: Path, experts: Sequence[str]) -> tuple[str, ...]:
    """Write MODEL_DIR/artefact from the authors' files and return the parameters that they lack.

    Args:
      request: `name` is not used; `prompt` is the text whose tokens the prompt's rows were.
      model_dir: a new folder.
      experts: names in the library, in the order of their load_lora_path.

    Raises:
      UsageError: something is missing or in the way. PemtError: the files hold something else, are
        damaged, or do not fit the base, the experts or the text.
    """
    check_free(model_dir)
    for flag, value in (
        ("--base", request.base),
        ("--prompt", request.prompt),
        ("--task", request.task),
        ("--experts", experts),
    ):
        if not value:
            raise UsageError(
                f"A target of the authors' code needs {flag}, for none of their files says it."
            )
    assert request.base and request.prompt and request.task
    source, tensors = str(request.path), load_reference(request.path, stage=2)
    vocabulary = open_vocabulary(request.base, request.vocabulary)
    # They cut the embedding to the vocabulary's size.
    rows = len(tensors["shared.weight"]) if "shared.weight" in tensors else vocabulary.vocab_size
    t5 = dataclasses.replace(open_base(request.base)[0], vocab_size=rows)
    params = from_reference(t5, tensors, source)
    widths = {
        array.shape[1]
        for path, array in params.items()
        if path.endswith("/mlp/adapter/down/kernel")
    }
    if len(widths) != 1 or PROMPT not in params:
        raise PemtError(
            f"{source} lacks task_shared or adapters of one width, expected the target "
            "prompt and the target adapters of stage 2."
        )
    tokens = len(prompt_tokens(vocabulary, request.prompt))
    if len(params[PROMPT]) != tokens:
        raise PemtError(
            f"The prompt {request.prompt!r} has {tokens} tokens, expected the "
            f"{len(params[PROMPT])} that the prompt in {source} has rows."
        )
    config = TrainConfig.of(
        model_dir=str(model_dir),
        mixture_or_task_name=request.task,
        task_feature_lengths=LENGTHS,
        batch_size=1,
        train_steps=0,
        method="pemt_target",
        initial_checkpoint_path=request.base,
        prompt_text=request.prompt,
        options=PemtConfig(adapter_dim=widths.pop()),
        library=str(request.library),
        experts=experts,
    ).as_reference()
    config = config.replace(embedding_rows=rows)
    built = build_model(config.model, vocabulary, config.experts)
    trainable, frozen = built.split()
    for path, array in params.items():
        if path not in built.params or array.shape != built.params[path].shape:
            raise PemtError(
                f"{source} has {path} of shape {list(array.shape)}, which does not fit "
                "the base and the experts given."
            )
    check_backbone(
        {path: array for path, array in params.items() if path in frozen}, frozen, source
    )
    missing = tuple(sorted(trainable.keys() - params.keys()))
    of_whole = [path for path in trainable if IN_NO_SMALL_FILE.fullmatch(path)]
    if lost := [p for p in missing if p not in of_whole or len(missing) < len(of_whole)]:
        raise PemtError(f"{source} lacks {lost[0]}, expected the whole target.")
    trained = {path: params[path] for path in trainable if path in params}
    notes = {"imported": "the authors' code", "missing": list(missing)}
    publish(config, trained, built, {}, notes)
    return missing
