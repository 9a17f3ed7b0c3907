# SPDX-License-Identifier: Apache-2.0
"""Values of a header that may be shown: those that the standard defines. Others could be the name of a patient."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection
from itertools import count
from typing import Any

__all__ = ["IMAGE_TYPES", "MODALITIES", "PHOTOMETRIC", "VOI_FUNCTIONS", "number_text", "term", "uid_text"]

MODALITIES = frozenset(
    "ANN AR ASMT AU BDUS BI BMD CR CT CTPROTOCOL DG DMS DOC DX EEG ECG EMG EOG EPS ES FID GM HC HD IO IOL IVOCT IVUS "
    "KER KO LEN LS M3D MG MR NM OAM OCT OP OPM OPT OPTBSV OPTENF OPV OSS OT PA PLAN POS PR PT PX REG RESP RF RG RTDOSE "
    "RTIMAGE RTINTENT RTPLAN RTRAD RTRECORD RTSEGANN RTSTRUCT RWV SC SEG SM SMR SR SRF STAIN TEXTUREMAP TG US VA XA "
    "XAPROTOCOL XC AS CD CF CP CS DD DF DM DS EC FA FS LP MA MS OPR ST TR VF".split()
)
"""Defined terms of Modality (PS3.3 C.7.3.1.1.1), with those that are retired."""
PHOTOMETRIC = frozenset(
    "MONOCHROME1 MONOCHROME2 PALETTE_COLOR RGB HSV ARGB CMYK YBR_FULL YBR_FULL_422 YBR_PARTIAL_422 YBR_PARTIAL_420 "
    "YBR_ICT YBR_RCT XYB".split()
) | {"PALETTE COLOR"}
"""Defined terms of PhotometricInterpretation (PS3.3 C.7.6.3.1.2), with those that are retired."""
VOI_FUNCTIONS = frozenset({"LINEAR", "LINEAR_EXACT", "SIGMOID"})
"""Defined terms of VOILUTFunction (PS3.3 C.11.2.1.3)."""
IMAGE_TYPES = frozenset(
    "ORIGINAL DERIVED MIXED PRIMARY SECONDARY NONE OTHER "
    "AXIAL LOCALIZER CT_SOL_SPI REFERENCE ATTENUATION ANGIO CARDIAC CARDIAC_GATED CARDIAC_CASCORE CARDIAC_CTA DYNAMIC "
    "FLUOROSCOPY PERFUSION STATIC VOLUME SPIRAL STATIONARY STEPPED WHOLE_BODY "
    "DIFFUSION FLOW_ENCODED FUNCTIONAL METABOLITE_MAP PHASE_CONTRAST PROTON_DENSITY SPECTROSCOPY STRESS T1 T2 T2_STAR "
    "TAGGING TIME_OF_FLIGHT VELOCITY PHASE MAGNITUDE REAL IMAGINARY "
    "ADDITION DIVISION FILTERED MAXIMUM MEAN MEDIAN MINIMUM MULTIPLICATION RESAMPLED STD_DEVIATION SUBTRACTION "
    "ENERGY_PROP_WT MATERIAL_FRAC VIRTUAL_MONOENERGETIC MONOENERGETIC EFF_ATOMIC_NUM ELECTRON_DENSITY "
    "ADC DIFFUSION_ANISO DIFFUSION_ATTNTD DIFFUSION_ISO FIELD_MAP FAT_FRACTION FAT WATER WATER_FRACTION IN_PHASE "
    "OUT_PHASE OPP_PHASE FLOW_MAP FLIP_ANGLE_MAP B0_MAP B1_MAP T1_MAP T2_MAP T2_STAR_MAP R1_MAP R2_MAP R2_STAR_MAP "
    "PERFUSION_MAP CBF CBV MTT TTP NEI_ENHANCEMENT TEMPERATURE VELOCITY_MAP MODULUS_SUBTRACT ASL "
    "MPR PHASE_MAP PROJECTION MOSAIC BOTTOM SINGLE LEFT RIGHT MULTIPLANE BIPLANE DUAL GATED TOMO RECON EMISSION "
    "TRANSMISSION STATIC_TOMO DOSE PORTAL DRR SIMULATOR".split()
) | {
    *("DENSITY MAP", "DIFFUSION MAP", "IMAGE ADDITION", "MODULUS SUBTRACT", "PHASE MAP", "PHASE SUBTRACT"),
    *("PROJECTION IMAGE", "T1 MAP", "T2 MAP", "VELOCITY MAP", "WHOLE BODY", "GATED TOMO", "RECON TOMO", "SINGLE A"),
    *("RECON GATED TOMO", "SINGLE B", "BIPLANE A", "BIPLANE B"),
}
"""
Terms of ImageType and FrameType of CT, MR, PET, NM and X-ray (PS3.3 C.7.6.1.1.2, C.8.2.1, C.8.3.1, C.8.13, C.8.15,
C.8.16), and MOSAIC, which marks many slices in one picture.
"""
_numbers: defaultdict[str, int] = defaultdict(count(1).__next__)


def term(text: str, defined: Collection[str]) -> str:
    """
    Args:
        text: of a header.
        defined: terms of the standard, in upper case.

    Returns:
        the text if it is one of the terms, or empty; else a substitute that differs between texts and does not reveal
        them.
    """
    known = not text or text.upper() in defined
    return text if known else f"a value that the standard does not define ({_numbers[text]})"


def uid_text(value: Any) -> str:
    """A UID, or words that it is none."""
    return str(value) if re.fullmatch(r"[\d.]{1,64}", str(value or "")) else "what is no UID"


def number_text(value: Any) -> str:
    """The numbers of a value for an error, at most six of 20 characters; words in place of what is no number."""
    single = isinstance(value, (str, bytes, int, float)) or value is None or not hasattr(value, "__iter__")
    return ", ".join(
        str(each)[:20] if each is None or re.fullmatch(r"[-+\d.eE ]*|nan|-?inf", str(each)) else "what is no number"
        for each in ([value] if single else list(value)[:6])
    )
