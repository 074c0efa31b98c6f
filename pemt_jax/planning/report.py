"""The plan of a run: one JSON-able record, and the same for people."""

import dataclasses

from pemt_jax.parallel import partitioning
from pemt_jax.planning import compiling
from pemt_jax.planning.arithmetic import estimate
from pemt_jax.planning.chips import GIB, Chip
from pemt_jax.planning.collectives import sent_bytes
from pemt_jax.planning.job import Job
from pemt_jax.planning.layout import Layout
from pemt_jax.planning.search import Sizing, search
from pemt_jax.planning.topology import MISSING, Topology


def make_plan(job: Job, topology: Topology, layout: Layout, decode: bool) -> dict:
    """Compile a job's steps for a mesh on a slice and return all that is known of them.

    Args:
      job: the run.
      topology: the slice.
      layout: of the run on the slice.
      decode: compile the decode step too.

    Raises:
      UsageError: the layout has not the slice's size, or the batch is empty.
    """
    mesh, chip = layout.mesh(topology.devices), topology.chip
    partitioning.check_batch_size(job.batch_size)
    sizes = Sizing(job)(layout)
    arithmetic = estimate(job, sizes, chip, layout)
    plan = {
        "topology": topology.name,
        "chips": len(topology.devices),
        "hbm_per_chip": chip.hbm,
        "layout": dataclasses.asdict(layout),
        "method": job.method,
        "batch_size": job.batch_size,
        "inputs": job.inputs,
        "targets": job.targets,
        "dtype": job.t5.dtype,
        "frozen_dtype": job.frozen_dtype,
        "remat_policy": job.t5.remat_policy,
        "assumed": list(job.assumed),
        "parameters": {"trainable": sizes.trainable, "frozen": sizes.frozen},
        "arithmetic": {
            "memory": arithmetic.memory | {"total": arithmetic.total},
            "flops": arithmetic.flops,
            "seconds": arithmetic.seconds,
        },
        "compiler": "TPU" if topology.real_compiler else "CPU",
        "train_step": compiling.compile_step(
            *compiling.lower_train_step(job, mesh, layout.fully_sharded)
        ),
    }
    if not topology.real_compiler:
        plan["missing"] = MISSING
    if decode:
        plan["decode_step"] = compiling.compile_step(
            *compiling.lower_decode_step(job, mesh, layout.fully_sharded)
        )
    steps = [plan[name] for name in ("train_step", "decode_step") if name in plan]
    if topology.real_compiler:
        plan["fits"] = all(
            "memory" in step and step["memory"]["total"] <= chip.hbm for step in steps
        )
    else:
        plan["fits"] = arithmetic.total <= chip.hbm
    plan["bound"] = lower_bound(plan["train_step"], arithmetic.seconds, chip)
    plan["bound"]["run_seconds"] = plan["bound"]["step_seconds"] * job.train_steps
    return plan


def lower_bound(step: dict, by_arithmetic: float, chip: Chip) -> dict:
    """The least seconds of a step: the slowest of compute, memory and messages, at their peaks."""
    if "memory" not in step:
        return {"step_seconds": by_arithmetic, "limited_by": "arithmetic"}
    parts = {
        "compute": step["flops"] / chip.peak,
        "memory": step["bytes"] / chip.bandwidth,
        "messages": sent_bytes(step["collectives"]) / chip.ici,
    }
    limit = max(parts, key=parts.__getitem__)
    return {"step_seconds": parts[limit], "limited_by": limit, **parts}


def make_search(job: Job, topology: Topology, compiled: int, decode: bool) -> dict:
    """Return the ways to run a job that fit by arithmetic, best first, and plans of the best."""
    found = search(job, topology.chip, len(topology.devices))
    plans = [make_plan(best.job, topology, best.layout, decode) for best in found[:compiled]]
    fits = any(plan["fits"] for plan in plans) if plans else bool(found)
    return {
        "topology": topology.name,
        "ways": [way.describe() for way in found],
        "plans": plans,
        "fits": fits,
    }


def render_search(made: dict, most: int = 20) -> str:
    """The ways in a table, then the compiled plans."""
    lines = [f"{made['topology']}: {len(made['ways'])} ways fit by arithmetic, best first"]
    if made["ways"]:
        lines.append("rows/s  batch  dtype     remat    GiB a chip  layout")
    for way in made["ways"][:most]:
        lines.append(
            f"{way['rows_per_second_at_most']:6.0f}  {way['batch_size']:5d}  "
            f"{way['dtype']:8}  {way['remat_policy']:7}  "
            f"{way['bytes_by_arithmetic'] / GIB:10.2f}  {Layout(**way['layout']).describe()}"
        )
    return "\n".join(lines + [render(plan) for plan in made["plans"]])


def render(plan: dict) -> str:
    """The plan in lines for people."""
    layout, params, bound = Layout(**plan["layout"]), plan["parameters"], plan["bound"]
    lines = [
        f"{plan['topology']}: {plan['chips']} chips, mesh {layout.describe()}; "
        f"{plan['method']}, {plan['batch_size']} rows of {plan['inputs']}/"
        f"{plan['targets']} tokens, {plan['dtype']}, frozen {plan['frozen_dtype']}, "
        f"remat {plan['remat_policy']}",
        f"parameters: {params['trainable']:,} trainable, {params['frozen']:,} frozen",
    ]
    if plan["assumed"]:
        lines.append(f"assumed: {', '.join(plan['assumed'])}")
    if "missing" in plan:
        lines.append(f"missing: {plan['missing']}")
    hbm = plan["hbm_per_chip"]
    for name in ("train_step", "decode_step"):
        if name in plan:
            lines += [
                f"{name.replace('_', ' ')}, by the {plan['compiler']} compiler:",
                *_step_lines(plan[name], hbm),
            ]
    arithmetic = plan["arithmetic"]
    lines += [
        f"train step, by arithmetic: {_gib(arithmetic['memory']['total'])} of {_gib(hbm)}, "
        f"{arithmetic['flops'] / 1e12:.2f} TFLOP a chip",
        f"a step takes at least {bound['step_seconds'] * 1e3:.1f} ms (limited by "
        f"{bound['limited_by']}), the run {bound['run_seconds'] / 3600:.2f} h",
        f"fits: {'yes' if plan['fits'] else 'no'}",
    ]
    return "\n".join(lines)


def _step_lines(step: dict, hbm: float) -> list[str]:
    if "memory" not in step:
        return [
            f"  does not fit: the compiler wants {_gib(step['out_of_memory'])}, "
            f"a chip has {_gib(hbm)}; arguments "
            + ", ".join(f"{kind} {_gib(n)}" for kind, n in step["arguments"].items())
        ]
    memory = step["memory"]
    lines = [
        f"  memory a chip: {_gib(memory['total'])} of {_gib(hbm)}: "
        + ", ".join(f"{kind} {_gib(size)}" for kind, size in memory.items() if kind != "total"),
        f"  {step['flops'] / 1e12:.3f} TFLOP and {step['bytes'] / 1e9:.2f} GB accessed a chip",
    ]
    for kind, row in sorted(step["collectives"].items()):
        lines.append(
            f"  {kind}: {row['count']}, {row['bytes'] / 1e6:.3f} MB, "
            f"the largest {row['largest'] / 1e6:.3f} MB"
        )
    return lines if step["collectives"] else [*lines, "  no collectives"]


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"
