"""Compile the tiny stage-2 step for 8 virtual devices and print what its plan says (a process)."""

import json
import sys

import jax

jax.config.update("jax_num_cpu_devices", 8)

from tiny_model import SOURCE, T5, TARGET  # noqa: E402

from pemt_jax import optimizers  # noqa: E402
from pemt_jax.parallel import partitioning  # noqa: E402
from pemt_jax.planning import compiling  # noqa: E402
from pemt_jax.planning.collectives import find_collectives  # noqa: E402
from pemt_jax.planning.job import Job  # noqa: E402

found = {}
for method, pemt in (("pemt_target", TARGET), ("pemt_source", SOURCE)):
    job = Job(
        T5,
        pemt,
        method,
        optimizers.make_optimizer(),
        batch_size=8,
        inputs=6,
        targets=4,
        eval_batch_size=8,
        decode_length=4,
    )
    mesh = partitioning.make_mesh(devices=jax.devices())
    lowered, arguments = compiling.lower_train_step(job, mesh)
    compiled = lowered.compile()
    trainable, frozen, _ = job.parameters()
    found[method] = {
        "collectives": [[c.kind, c.bytes, c.shapes] for c in find_collectives(compiled.as_text())],
        "trainable": {path: x.shape for path, x in trainable.items()},
        "frozen": {path: x.shape for path, x in frozen.items()},
        "arguments": arguments,
        "argument_bytes": compiled.memory_analysis().argument_size_in_bytes,
    }
json.dump(found, sys.stdout)
