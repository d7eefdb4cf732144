"""Options that have an effect only where other options have some values."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from fgkd.config.commands import CacheLogitsConfig, TrainStudentConfig, TrainTeacherConfig
from fgkd.config.schema import build, leaves
from fgkd.errors import UnusedOption
from fgkd.files import is_url

Values = Mapping[str, Any]  # of all options of a command, by name


@dataclass(frozen=True)
class Rule:
    """When some options have an effect.

    reason: why they have none where that does not hold. needs: an option, and a value of it with
    which they have one.
    """

    options: tuple[str, ...]
    holds: Callable[[Values], bool]
    reason: str
    needs: tuple[str, Any] | None = None


TRAINING = (
    Rule(
        ("pretrained",),
        lambda v: not (v["pretrained"] and v["initial_checkpoint"]),
        "with initial_checkpoint, whose weights replace them",
    ),
    Rule(("min_lr",), lambda v: v["sched"] != "constant", "on a constant rate"),
    Rule(("warmup_lr",), lambda v: v["warmup_epochs"] != 0, "without warmup"),
    Rule(
        ("decay_epochs", "decay_rate"),
        lambda v: v["sched"] == "step",
        "on another schedule than step",
        ("sched", "step"),
    ),
    Rule(
        ("layer_decay_style",),
        lambda v: v["layer_decay"] is not None,
        "without layer_decay",
        ("layer_decay", 0.75),
    ),
    Rule(
        ("clip_mode",),
        lambda v: v["clip_grad"] is not None,
        "without clip_grad",
        ("clip_grad", 1.0),
    ),
    Rule(
        ("model_ema_samples",), lambda v: v["model_ema"], "without model_ema", ("model_ema", True)
    ),
    Rule(("amp_dtype",), lambda v: v["amp"], "without amp", ("amp", True)),
)
STUDENT = (
    Rule(
        ("kd_loss", "temperature", "logit_standardization", "distill_loss_weight"),
        lambda v: v["distillation"] != "none",
        "on labels alone (distillation none)",
    ),
    Rule(
        ("kd_loss", "temperature", "logit_standardization"),
        lambda v: v["distill_loss_weight"] > 0,
        "where distill_loss_weight is 0",
    ),
    Rule(
        ("temperature", "logit_standardization"),
        lambda v: v["kd_loss"] != "hard",
        "on the loss hard, which takes the teacher's class",
    ),
    Rule(("smoothing",), lambda v: v["task_loss_weight"] > 0, "where task_loss_weight is 0"),
    Rule(
        ("dtype", "teacher_model", "teacher_model_kwargs", "class_map"),
        lambda v: v["teacher"] and v["distillation"] != "none",
        "without a live teacher to distil from",
    ),
    Rule(("order", "shard_buffer"), lambda v: v["cache"], "without a cache"),
    Rule(
        ("order",),
        lambda v: v["order"] == "shard" or not is_url(v["cache"] or ""),
        "on a cache behind a URL, which is read shard by shard",
        ("order", "shard"),
    ),
    Rule(
        ("shard_buffer",),
        lambda v: v["order"] == "shard" or is_url(v["cache"] or ""),
        "where samples are read in any order",
        ("order", "shard"),
    ),
    Rule(
        ("shard_size",),
        lambda v: not v["cache"] or (v["dry_run"] and v["data"]),  # before it is written
        "on a cache, which has blocks of its own",
    ),
)
CACHE = (
    Rule(
        ("top_k", "temperatures"),
        lambda v: v["encoding"] in ("topk", "topk8") or v["dry_run"],  # which tells of all
        "on another encoding than topk and topk8",
        ("encoding", "topk8"),
    ),
)
RULES: dict[type, tuple[Rule, ...]] = {
    TrainTeacherConfig: TRAINING,
    TrainStudentConfig: TRAINING + STUDENT,
    CacheLogitsConfig: CACHE,
}


def refuse_unused(options: object, given: Collection[str]) -> None:
    """Raise UnusedOption for an option that was given and has no effect with the others.

    given: names; those of a file are not, for it may be that of another run, such as a student's
    for its baseline.
    """
    values = {name: leaf.of(options) for name, leaf in leaves(type(options)).items()}
    for rule in RULES.get(type(options), ()):
        for name in rule.options:
            if name in given and not rule.holds(values):
                raise UnusedOption(
                    f"{name} has no effect {rule.reason}",
                    option=name,
                    value=values[name],
                    reason=rule.reason,
                    needs=rule.needs,
                )


def of_call(cls: type[Any], given: Mapping[str, Any], where: str) -> Any:
    """The config of a function's keyword arguments.

    Raises: as `build`; UnusedOption for an argument that has no effect with the others, unless it
    is the default: `function(**options)` may name them all.
    """
    found, known = build(cls, given, where), leaves(cls)
    changed = [name for name in given if known[name].of(found) != known[name].field.default]
    refuse_unused(found, changed)
    return found
