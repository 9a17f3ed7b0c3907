# SPDX-License-Identifier: Apache-2.0
from .each_channel import EachChannel, EachChanneld
from .fit_size import FitSize, FitSized
from .fundus import BenGraham, BenGrahamd, CropToDisc, CropToDiscd
from .grades import GradeLogits, GradeLogitsd
from .group_labels import GroupLabels, GroupLabelsd
from .label_sets import LabelSetsd
from .load_image_2d import LoadImage2D, LoadImage2Dd
from .load_volume import LoadVolume, LoadVolumed
from .prediction_sets import PredictionSetsd
from .predictive_entropy import PredictiveEntropy, PredictiveEntropyd
from .spacing_of_keys import SpacingOfKeysd
from .volume_grade import VolumeGrade, VolumeGraded, volume_thresholds_ml

__all__ = [
    "BenGraham",
    "BenGrahamd",
    "CropToDisc",
    "CropToDiscd",
    "EachChannel",
    "EachChanneld",
    "FitSize",
    "FitSized",
    "GradeLogits",
    "GradeLogitsd",
    "GroupLabels",
    "GroupLabelsd",
    "LabelSetsd",
    "LoadImage2D",
    "LoadImage2Dd",
    "LoadVolume",
    "LoadVolumed",
    "PredictionSetsd",
    "PredictiveEntropy",
    "PredictiveEntropyd",
    "SpacingOfKeysd",
    "VolumeGrade",
    "VolumeGraded",
    "volume_thresholds_ml",
]
