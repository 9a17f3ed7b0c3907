# SPDX-License-Identifier: Apache-2.0
"""How the list of a bundle names its images, which stay in the folder of data."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from monai_dvpt.data.channels import is_volume_list
from monai_dvpt.data.folders import walk_files

from .model import Case

__all__ = ["ListedImages"]


class ListedImages:
    """
    Paths of images below a folder of data.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = os.path.abspath(root)
        self._files = cache(lambda folder: sorted(os.path.abspath(path) for path in walk_files(Path(folder))))

    def path_of(self, case: Case) -> str | list[str]:
        """
        The path of a file, of the folder that holds a DICOM series and nothing else, or the list of the files of a
        series, or of the channels in their order.
        """
        if isinstance(case.image, str):
            return os.path.relpath(os.path.abspath(case.image), self.root)
        if is_volume_list(case.image):
            return [os.path.relpath(os.path.abspath(path), self.root) for path in case.image]
        files = sorted(map(os.path.abspath, case.image))
        folder = os.path.commonpath(list(map(os.path.dirname, files)))
        if folder != self.root and self._files(folder) == files:
            return os.path.relpath(folder, self.root)
        return [os.path.relpath(path, self.root) for path in files]
