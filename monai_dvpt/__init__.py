# SPDX-License-Identifier: Apache-2.0
"""Dynamic visual prompt tuning of pretrained transformers for medical images, as MONAI components."""

__version__ = "0.1.0"
