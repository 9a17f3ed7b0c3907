# SPDX-License-Identifier: Apache-2.0
"""What the method costs and saves, measured on the machine at hand: ``python -m monai_dvpt.benchmark --help``."""
