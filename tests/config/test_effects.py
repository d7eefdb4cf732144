"""Options without effect: each rule refuses what is given, and says with what it is of use."""

from __future__ import annotations

from typing import Any

import pytest

from fgkd import config
from fgkd.config import CacheLogitsConfig, TrainStudentConfig, TrainTeacherConfig, effects
from fgkd.errors import UnusedOption

URL = "s3://bucket/cache"
TRAINING: list[tuple[str, dict[str, Any]]] = [  # an option, and others with which it has no effect
    ("pretrained", {"pretrained": True, "initial_checkpoint": "a.pth"}),
    ("min_lr", {"sched": "constant"}),
    ("warmup_lr", {"warmup_epochs": 0.0}),
    ("decay_epochs", {}),
    ("decay_rate", {"sched": "cosine"}),
    ("layer_decay_style", {}),
    ("clip_mode", {}),
    ("model_ema_samples", {}),
    ("amp_dtype", {}),
]
STUDENT: list[tuple[str, dict[str, Any]]] = [
    *((name, {"distillation": "none"}) for name in effects.STUDENT[0].options),
    *((name, {"distill_loss_weight": 0.0}) for name in effects.STUDENT[1].options),
    ("temperature", {"kd_loss": "hard"}),
    ("logit_standardization", {"kd_loss": "hard"}),
    ("smoothing", {"task_loss_weight": 0.0}),
    ("dtype", {"cache": "c"}),
    ("teacher_model", {}),
    ("teacher_model_kwargs", {}),
    ("class_map", {"teacher": ("t",), "distillation": "none"}),
    ("order", {"teacher": ("t",)}),
    ("shard_buffer", {}),
    ("order", {"cache": URL}),
    ("shard_buffer", {"cache": "c"}),
    ("shard_size", {"cache": "c"}),
]
CACHE: list[tuple[str, dict[str, Any]]] = [
    ("top_k", {}),
    ("temperatures", {"encoding": "int8"}),
]
CASES = [
    *((TrainTeacherConfig, *case) for case in TRAINING),
    *((TrainStudentConfig, *case) for case in TRAINING + STUDENT),
    *((CacheLogitsConfig, *case) for case in CACHE),
]


@pytest.mark.parametrize(("cls", "option", "others"), CASES)
def test_an_option_that_is_given_is_refused_where_it_has_no_effect(
    cls: type, option: str, others: dict[str, Any]
) -> None:
    """At its default, too: who gives it expects an effect. One of a file is not refused."""
    found = config.build(cls, others, "here")
    with pytest.raises(UnusedOption) as error:
        config.refuse_unused(found, [*others, option])
    assert (error.value.option, error.value.value) == (option, config.leaves(cls)[option].of(found))
    config.refuse_unused(found, [name for name in others if name != option])
    if error.value.needs:
        name, value = error.value.needs
        config.refuse_unused(config.replaced(found, **{name: value}), [*others, option, name])


def test_a_function_may_be_given_all_options_at_their_defaults() -> None:
    """As `train_teacher(**options)` of a configuration library does; others must have an effect."""
    everything = config.to_dict(TrainTeacherConfig())
    assert config.of_call(TrainTeacherConfig, everything, "here") == TrainTeacherConfig()
    with pytest.raises(UnusedOption) as error:
        config.of_call(TrainTeacherConfig, everything | {"amp_dtype": "float16"}, "here")
    assert (error.value.option, error.value.needs) == ("amp_dtype", ("amp", True))


def test_each_option_of_each_rule_is_tried() -> None:
    for cls, rules in effects.RULES.items():
        for rule in rules:
            for option in rule.options:
                tried = [others for one, name, others in CASES if (one, name) == (cls, option)]
                values = [config.to_dict(config.build(cls, others, "here")) for others in tried]
                assert not all(map(rule.holds, values)), (cls, option, rule.reason)


@pytest.mark.parametrize(
    ("cls", "given"),
    [
        (TrainTeacherConfig, {"sched": "step", "decay_rate": 0.5, "min_lr": 1e-5}),
        (TrainStudentConfig, {"cache": "c", "temperature": 2.0, "kd_loss": "dist"}),
        (TrainStudentConfig, {"teacher": ("t",), "dtype": "float64", "shard_size": 9}),
        (TrainStudentConfig, {"cache": URL, "shard_buffer": 2}),
        (TrainStudentConfig, {"cache": "c", "order": "shard", "shard_buffer": 2}),
        (TrainStudentConfig, {"cache": "c", "data": "icons", "dry_run": True, "shard_size": 9}),
        (CacheLogitsConfig, {"encoding": "int8", "dry_run": True, "top_k": 5}),
        (CacheLogitsConfig, {"encoding": "topk", "temperatures": (1.0, 3.0)}),
    ],
)
def test_an_option_that_has_an_effect_is_taken(cls: type, given: dict[str, Any]) -> None:
    assert config.of_call(cls, given, "here") == config.build(cls, given, "here")
