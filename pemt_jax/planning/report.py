"""The plan of a run: one JSON-able record, and the same for people."""

import dataclasses
import time

from pemt_jax.parallel import partitioning
from pemt_jax.planning import compiling
from pemt_jax.planning.arithmetic import estimate
from pemt_jax.planning.chips import GIB, Chip
from pemt_jax.planning.collectives import sent_bytes
from pemt_jax.planning.host import host_memory
from pemt_jax.planning.job import Job
from pemt_jax.planning.layout import Layout
from pemt_jax.planning.search import Sizing, search
from pemt_jax.planning.topology import MISSING, Topology

STEPS = {
    "train_step": compiling.lower_train_step,
    "eval_step": compiling.lower_eval_step,
    "decode_step": compiling.lower_decode_step,
}


def make_plan(job: Job, topology: Topology, layout: Layout, evaluation: bool) -> dict:
    """Compile a job's steps for a mesh on a slice and return all that is known of them.

    Args:
      job: the run.
      topology: the slice.
      layout: of the run on the slice.
      evaluation: compile the steps of evaluation too, losses and decoding; else their memory is
        that of the arithmetic.

    Raises:
      UsageError: the layout has not the slice's size, or the batch is empty.
    """
    mesh, chip = layout.mesh(topology.devices), topology.chip
    partitioning.check_batch_size(job.batch_size)
    sizing = Sizing(job)
    sizes = sizing(layout)
    arithmetic = estimate(job, sizes, chip, layout)
    plan = {
        "topology": topology.name,
        "chips": len(topology.devices),
        "hbm_per_chip": chip.hbm,
        "layout": dataclasses.asdict(layout),
        "method": job.method,
        "batch_size": job.batch_size,
        "eval_batch_size": job.eval_batch_size,
        "inputs": job.inputs,
        "targets": job.targets,
        "dtype": job.t5.dtype,
        "frozen_dtype": job.frozen_dtype,
        "remat_policy": job.t5.remat_policy,
        "scan_layers": job.t5.scan_layers,
        "assumed": list(job.assumed),
        "parameters": {"trainable": sizes.trainable, "frozen": sizes.frozen},
        "arithmetic": {
            "memory": arithmetic.memory | {"total": arithmetic.train},
            "evaluation": arithmetic.evaluation | {"total": sum(arithmetic.evaluation.values())},
            "flops": arithmetic.flops,
            "seconds": arithmetic.seconds,
        },
        "compiler": "TPU" if topology.real_compiler else "CPU",
        "host": host_memory(job, sizing.parameters, layout),
    }
    if not topology.real_compiler:
        plan["missing"] = MISSING
    optimizer = {"optimizer": arithmetic.memory["optimizer"]}
    for name in STEPS if evaluation else ("train_step",):
        start = time.time()
        lowered, arguments = STEPS[name](job, mesh, layout.fully_sharded)
        seconds = round(time.time() - start, 1)
        held = None if "optimizer" in arguments else optimizer
        plan[name] = compiling.compile_step(lowered, arguments, held)
        plan[name]["seconds_to_lower"] = seconds
    plan["peak"] = peak(plan, topology.real_compiler)
    plan["fits"] = plan["peak"]["bytes"] <= chip.hbm
    plan["bound"] = lower_bound(plan["train_step"], arithmetic.seconds, chip)
    plan["bound"]["run_seconds"] = plan["bound"]["step_seconds"] * job.train_steps
    return plan


def peak(plan: dict, compiled: bool) -> dict:
    """The step that takes most memory of a chip, and its bytes: compiled, or by arithmetic."""
    found = {
        "train step, by arithmetic": plan["arithmetic"]["memory"]["total"],
        "evaluation, by arithmetic": plan["arithmetic"]["evaluation"]["total"],
    }
    if compiled:
        found = {
            name.replace("_", " "): plan[name].get("out_of_memory") or plan[name]["memory"]["total"]
            for name in STEPS
            if name in plan
        } | ({} if "eval_step" in plan else {k: v for k, v in found.items() if "eval" in k})
    most = max(found, key=found.__getitem__)
    return {"step": most, "bytes": found[most]}


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


def make_search(job: Job, topology: Topology, compiled: int, evaluation: bool) -> dict:
    """Return the ways to run a job that fit by arithmetic, best first, and plans of the best."""
    found = search(job, topology.chip, len(topology.devices))
    plans = [make_plan(best.job, topology, best.layout, evaluation) for best in found[:compiled]]
    fits = any(plan["fits"] for plan in plans) if plans else bool(found)
    return {
        "topology": topology.name,
        "ways": [way.describe(topology.chip) for way in found],
        "plans": plans,
        "fits": fits,
    }


def render_search(made: dict, compile_time: bool = False, most: int = 20) -> str:
    """The ways in a table, then the compiled plans."""
    lines = [f"{made['topology']}: {len(made['ways'])} ways fit by arithmetic, best first"]
    if made["ways"]:
        lines.append("rows/s  batch  dtype     remat    GiB a chip  layout")
    for way in made["ways"][:most]:
        lines.append(
            f"{way['rows_per_second_at_most']:6.0f}  {way['batch_size']:5d}  "
            f"{way['dtype']:8}  {way['remat_policy']:7}  "
            f"{way['bytes_by_arithmetic'] / GIB:10.2f}  {Layout(**way['layout']).describe()}"
            + "  (compile: it is close)"
            * way["compile"]
        )
    return "\n".join(lines + [render(plan, compile_time) for plan in made["plans"]])


def render(plan: dict, compile_time: bool = False) -> str:
    """The plan in lines for people, with the time to lower and compile if it is asked for."""
    layout, params, bound = Layout(**plan["layout"]), plan["parameters"], plan["bound"]
    lines = [
        f"{plan['topology']}: {plan['chips']} chips, mesh {layout.describe()}; "
        f"{plan['method']}, {plan['batch_size']} rows of {plan['inputs']}/"
        f"{plan['targets']} tokens, {plan['dtype']}, frozen {plan['frozen_dtype']}, "
        f"remat {plan['remat_policy']}" + ", scanned layers" * plan["scan_layers"],
        f"parameters: {params['trainable']:,} trainable, {params['frozen']:,} frozen",
    ]
    if plan["assumed"]:
        lines.append(f"assumed: {', '.join(plan['assumed'])}")
    if "missing" in plan:
        lines.append(f"missing: {plan['missing']}")
    hbm = plan["hbm_per_chip"]
    for name in STEPS:
        if name not in plan:
            continue
        step, rows = plan[name], plan["batch_size" if name == "train_step" else "eval_batch_size"]
        lines += [
            f"{name.replace('_', ' ')} of {rows} rows, by the {plan['compiler']} compiler:",
            *_step_lines(step, hbm),
        ]
        if compile_time:
            lines.append(
                f"  {step['seconds_to_lower']:.1f} s to lower, {step['seconds']:.1f} s to compile"
            )
    arithmetic, host = plan["arithmetic"], plan["host"]
    lines += [
        f"by arithmetic: train step {_gib(arithmetic['memory']['total'])}, evaluation "
        f"{_gib(arithmetic['evaluation']['total'])} of {_gib(hbm)}, "
        f"{arithmetic['flops'] / 1e12:.2f} TFLOP a chip",
        f"peak memory a chip: {_gib(plan['peak']['bytes'])} of {_gib(hbm)} "
        f"({plan['peak']['step']})",
        f"memory of a host at the start: {_gib(sum(host.values()))}: "
        + ", ".join(f"{kind} {_gib(size)}" for kind, size in host.items()),
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
