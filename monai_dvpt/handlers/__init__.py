# SPDX-License-Identifier: Apache-2.0
from .adapter_saver import AdapterSaver
from .calibration_writer import CalibrationWriter, plot_reliability
from .case_pictures import GradePictures, SegmentationPictures
from .case_writer import CaseWriter, label_volumes_ml, plot_overlay
from .conformal_calibration import ConformalCalibration, calibrated_sets
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
    "CalibrationWriter",
    "CaseWriter",
    "ConformalCalibration",
    "ConfusionMatrixWriter",
    "EpochLog",
    "GradePictures",
    "GradeTable",
    "GradeWriter",
    "MaskWriter",
    "PromptAttentionWriter",
    "ResumableCheckpoint",
    "SegmentationPictures",
    "TemperatureCalibration",
    "TensorBoardLog",
    "TrainingReport",
    "TrainingRoutine",
    "calibrated_sets",
    "calibrated_temperature",
    "label_volumes_ml",
    "peak_memory_mib",
    "plot_grades",
    "plot_outlines",
    "plot_overlay",
    "plot_reliability",
]
