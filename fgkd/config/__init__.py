"""Options: typed specs, the config of each command, and their flat form on disk."""

from fgkd.config.commands import (
    CacheLogitsConfig,
    EvaluateConfig,
    ExportConfig,
    InspectConfig,
    PredictConfig,
    TrainStudentConfig,
    TrainTeacherConfig,
)
from fgkd.config.effects import of_call, refuse_unused
from fgkd.config.kwargs import format_kwargs, parse_kwargs
from fgkd.config.schema import build, check, diff, leaves, replaced, to_dict
from fgkd.config.specs import (
    ArchitectureSpec,
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
    "ArchitectureSpec",
    "CacheLogitsConfig",
    "CacheSpec",
    "CaptureSpec",
    "DataSpec",
    "EvaluateConfig",
    "ExportConfig",
    "InspectConfig",
    "LossSpec",
    "ModelSpec",
    "OptimSpec",
    "PredictConfig",
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
    "format_kwargs",
    "leaves",
    "of_call",
    "parse_kwargs",
    "refuse_unused",
    "replaced",
    "to_dict",
]
