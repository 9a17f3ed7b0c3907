# SPDX-License-Identifier: Apache-2.0
from .adapter_saver import AdapterSaver
from .case_writer import CaseWriter, label_volumes_ml, plot_overlay
from .epoch_log import EpochLog
from .prompt_attention_writer import PromptAttentionWriter
from .resumable_checkpoint import ResumableCheckpoint
from .training_report import TrainingReport, peak_memory_mib

__all__ = [
    "AdapterSaver",
    "CaseWriter",
    "EpochLog",
    "PromptAttentionWriter",
    "ResumableCheckpoint",
    "TrainingReport",
    "label_volumes_ml",
    "peak_memory_mib",
    "plot_overlay",
]
