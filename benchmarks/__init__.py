# SPDX-License-Identifier: Apache-2.0
"""What the method costs and saves, measured on the machine at hand: ``python -m benchmarks --help``, in a checkout."""
