"""Plan: does a run fit a TPU slice, and how long does it take at least?

    python -m pemt_jax.plan --topology=v5e:4x4 --shape=11B --method=pemt_target --batch_size=128
    python -m pemt_jax.plan --topology=v4:2x2x2 --gin_file=runs/stage2.gin --gin.MODEL_DIR=...

The real steps of training and evaluation are compiled for the slice by the TPU's own compiler,
which needs no TPU, and no parameter is made. With gin files it is the run that `pemt_jax.train`
would make of them (--shape then stands for the base), without them one of a T5 of --shape. Exit
code 0 when it fits, 3 when it does not (with --search: when nothing does), 2 for wrong use.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence

import jax

from pemt_jax.cli import command, plan_flags
from pemt_jax.common.writing.output import check_output, output
from pemt_jax.planning import report
from pemt_jax.planning.job import Job, job_of_shape
from pemt_jax.planning.layout import Layout
from pemt_jax.planning.shapes import shape_named
from pemt_jax.planning.topology import open_topology
from pemt_jax.run_config import MeshConfig, TrainConfig

DOES_NOT_FIT = 3


def plan(argv: Sequence[str]) -> int:
    """Make, print and write the plan; return the exit code."""
    jax.config.update("jax_platforms", "cpu")  # an attached TPU stays free
    options, rest = plan_flags.parse(argv, __doc__ or "")
    if options.json:
        check_output("--json", options.json)
    t5 = shape_named(options.shape) if options.shape else None
    mesh = MeshConfig()
    if rest:
        from pemt_jax.planning.from_config import job_of_training  # brings TensorFlow
        from pemt_jax.train import train

        config = TrainConfig.of(**command.arguments_of(train, rest))
        config = config.replace(method=options.method) if options.method else config
        job, mesh = job_of_training(config, t5), config.mesh
    else:
        assert t5 is not None  # plan_flags wants a shape or gin files
        job = job_of_shape(t5, options.method or "pemt_target")
    fields = {field.name for field in dataclasses.fields(Job)} - {"method"}
    choices = {k: v for k, v in vars(options).items() if v is not None}
    given = {field.name for field in dataclasses.fields(MeshConfig)} & choices.keys()
    mesh = dataclasses.replace(mesh, **{name: choices[name] for name in given})
    of_t5 = ("dtype", "remat_policy", "scan_layers", "broadcast_dropout")
    shape = {name: choices[name] for name in of_t5 if name in choices}
    job = dataclasses.replace(
        job,
        t5=dataclasses.replace(job.t5, **shape),
        **{k: v for k, v in choices.items() if k in fields},
    )
    if options.compile_time:
        jax.config.update("jax_enable_compilation_cache", False)
    topology = open_topology(options.topology)
    if options.search:
        made = report.make_search(job, topology, options.compile, not options.no_evaluation)
        print(report.render_search(made, options.compile_time))
    else:
        layout = Layout.over(
            topology.devices, mesh.model_parallel, mesh.expert_parallel, mesh.fully_sharded
        )
        made = report.make_plan(job, topology, layout, not options.no_evaluation)
        print(report.render(made, options.compile_time))
    if options.json:
        with output("--json", options.json) as file:
            file.write(json.dumps(made, indent=1) + "\n")
    return 0 if made["fits"] else DOES_NOT_FIT


if __name__ == "__main__":
    sys.exit(command.exit_code_of(lambda: plan(sys.argv[1:])))
