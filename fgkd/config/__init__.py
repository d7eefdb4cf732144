"""Options: typed specs, the config of each command, and their flat form on disk."""

from fgkd.config.commands import (
    CacheLogitsConfig,
    EvaluateConfig,
    InspectConfig,
    TrainStudentConfig,
    TrainTeacherConfig,
)
from fgkd.config.schema import build, check, diff, leaves, replaced, to_dict
from fgkd.config.specs import (
    CacheSpec,
    CaptureSpec,
    DataSpec,
    LossSpec,
    ModelSpec,
    OptimSpec,
    RunSpec,
    SourceSpec,
    TargetSpec,
    TaskLossSpec,
    TeacherSpec,
    ViewSpec,
)

__all__ = [
    "CacheLogitsConfig",
    "CacheSpec",
    "CaptureSpec",
    "DataSpec",
    "EvaluateConfig",
    "InspectConfig",
    "LossSpec",
    "ModelSpec",
    "OptimSpec",
    "RunSpec",
    "SourceSpec",
    "TargetSpec",
    "TaskLossSpec",
    "TeacherSpec",
    "TrainStudentConfig",
    "TrainTeacherConfig",
    "ViewSpec",
    "build",
    "check",
    "diff",
    "leaves",
    "replaced",
    "to_dict",
]
