# SPDX-License-Identifier: Apache-2.0
"""The bundles, and their workflows as the command line makes them."""

from __future__ import annotations

from pathlib import Path

from monai.bundle import ConfigWorkflow

REPOSITORY = Path(__file__).parents[1]
BUNDLES = sorted((REPOSITORY / "bundles").iterdir())


OVERLAYS = ("evaluate", "multi_gpu_train")


def config_files(bundle: Path, config: str) -> list[str]:
    """The config, behind the one that it changes."""
    names = ["train", config] if config in OVERLAYS else [config]
    return [str(bundle / "configs" / f"{name}.yaml") for name in names]


def workflow(bundle: Path, config: str, kind: str, **overrides) -> ConfigWorkflow:
    """A bundle's workflow as ``python -m monai.bundle run`` makes it, initialised."""
    made = ConfigWorkflow(
        config_file=config_files(bundle, config),
        meta_file=str(bundle / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type=kind,
        bundle_root=str(bundle),
        **overrides,
    )
    made.initialize()
    return made
