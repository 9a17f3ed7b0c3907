# SPDX-License-Identifier: Apache-2.0
import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def read_version() -> str:
    text = (ROOT / "monai_dvpt" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if match is None:
        raise RuntimeError('monai_dvpt/__init__.py must hold a line __version__ = "…".')
    return match.group(1)


extras = {
    "quickstart": ["nilearn>=0.10"],
    "dicom": ["highdicom>=0.22"],
    "excel": ["openpyxl>=3.1"],
    "onnx": ["onnx", "onnxruntime", "onnxscript"],
    "test": [
        "DicomRTTool>=6",
        "dcm2niix",
        "dcmqi",
        "highdicom>=0.22",
        "jsonschema",
        "nbclient>=0.10",
        "nbformat>=5.9",
        "nilearn>=0.10",
        "onnx",
        "onnxruntime",
        "onnxscript",
        "openpyxl>=3.1",
        "pandas",
        "parameterized",
        "peft",
        "pylibjpeg[openjpeg]>=2.0",
        "pytest>=8",
        "pytest-xdist>=3.6",
        "scikit-image",
        "scikit-learn>=1.9",
        "transformers>=4.40",
    ],
    "hub": ["huggingface_hub"],
    "lint": ["mypy==2.4.1", "ruff==0.17.6", "types-PyYAML", "types-tqdm"],
    "docs": ["furo", "highdicom>=0.22", "ipykernel", "myst-nb>=1.3", "nbclient>=0.10", "pandas", "sphinx>=8"],
}
extras["all"] = sorted({requirement for group in extras.values() for requirement in group})
# A browser for the tests of the report; its licence, GPL-3.0, is that of PyQt.
extras["browser"] = ["PyQt6-WebEngine>=6.7"]
# For a virtual environment of its own: MONAI Label 0.8.5 needs pydicom 2 and numpy 1.
extras["monailabel"] = ["dcmqi", "highdicom>=0.22", "monailabel==0.8.5", "pydicom<3"]

setup(
    name="monai_dvpt",
    version=read_version(),
    description="Dynamic visual prompt tuning (DVPT) of frozen transformers for MONAI",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Intended Audience :: Healthcare Industry",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Medical Science Apps.",
    ],
    packages=find_packages(include=["monai_dvpt", "monai_dvpt.*"]),
    package_data={
        "monai_dvpt": ["weights/*.safetensors", "weights/*.md"],
        "monai_dvpt.apps.new_bundle.write": ["templates/*/*"],
        "monai_dvpt.apps.report": ["templates/*"],
    },
    python_requires=">=3.10",
    # Nothing here may require torchvision: a mismatched build of it replaces the installed torch.
    install_requires=[
        "einops>=0.8",
        "filelock>=3.15",
        "fire>=0.7",
        "itk>=5.4",
        "jinja2>=3.1",
        "matplotlib>=3.9",
        "monai>=1.6.1,<1.7",
        "nibabel>=5.3",
        "numpy>=1.26,<3",
        "pillow>=10.4",
        "pydicom>=2.4.4",
        "python-gdcm>=3.0.22",  # lossless JPEG, JPEG 2000 and JPEG-LS in DICOM
        "pytorch-ignite>=0.5",
        "pyyaml>=6.0.2",
        "safetensors>=0.5",
        "scipy>=1.15",  # permutation_test with rng
        "SimpleITK>=2.4",
        "tensorboard>=2.17",
        "torch>=2.8,<2.14",  # 2.13 is the newest version tested
        "tqdm>=4.66",
        "typing_extensions>=4.12",
    ],
    extras_require=extras,
)
