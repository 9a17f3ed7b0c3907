# SPDX-License-Identifier: Apache-2.0
"""Words in the names of folders and files that say what they hold: images or masks, and of which part."""

from __future__ import annotations

from monai_dvpt.data.gradelist import PART_OF

__all__ = ["IMAGE_WORDS", "MASK_WORDS", "PARTS", "VOLUME_WORDS"]

_ANY_MASK = frozenset(
    "mask masks label labels seg segs segmentation segmentations annotation annotations gt groundtruth truth "
    "manual".split()
)
_ANY_IMAGE = frozenset("image images img imgs scan scans data".split())
MASK_WORDS = {
    2: _ANY_MASK | frozenset("annot manuals contour contours lesionmask".split()),
    3: _ANY_MASK | frozenset("labelmap labelmaps lbl roi rois ground".split()),
}
"""Of masks and label maps, for pictures (2) and volumes (3): a picture named "roi" is often a crop, and a volume named
"contour" one of a label of that name."""
IMAGE_WORDS = _ANY_IMAGE | frozenset("picture pictures input inputs photo photos".split())
"""Of images of any kind."""
VOLUME_WORDS = _ANY_IMAGE | frozenset(
    "volume volumes vol dicom dcm series study nifti nii nrrd mha raw orig original".split()
)
"""Of volumes."""
PARTS = {**PART_OF, "tr": "training", "va": "validation", "calib": "calibration", "testing": "test", "ts": "test"}
"""Part of the cases in a folder of this name."""
