# SPDX-License-Identifier: Apache-2.0
from .adapter_saver import AdapterSaver
from .case_writer import CaseWriter, label_volumes_ml, plot_overlay
from .confusion_matrix import ConfusionMatrixWriter
from .epoch_log import EpochLog
from .grade_writer import GradeTable, GradeWriter, plot_grades
from .mask_writer import MaskWriter, plot_outlines
from .prompt_attention_writer import PromptAttentionWriter
from .resumable_checkpoint import ResumableCheckpoint
from .temperature_calibration import TemperatureCalibration, calibrated_temperature
from .tensorboard_log import TensorBoardLog
from .training_report import TrainingReport, peak_memory_mib
from .training_routine import TrainingRoutine

__all__ = [
    "AdapterSaver",
    "CaseWriter",
    "ConfusionMatrixWriter",
    "EpochLog",
    "GradeTable",
    "GradeWriter",
    "MaskWriter",
    "PromptAttentionWriter",
    "ResumableCheckpoint",
    "TemperatureCalibration",
    "TensorBoardLog",
    "TrainingReport",
    "TrainingRoutine",
    "calibrated_temperature",
    "label_volumes_ml",
    "peak_memory_mib",
    "plot_grades",
    "plot_outlines",
    "plot_overlay",
]
