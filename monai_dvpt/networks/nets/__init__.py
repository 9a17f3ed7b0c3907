# SPDX-License-Identifier: Apache-2.0
from .dvpt_sam_classifier import DVPTSAMClassifier
from .dvpt_sam_segmenter import DVPTSAMSegmenter
from .dvpt_swin_classifier import DVPTSwinClassifier
from .dvpt_swin_unetr import DVPTSwinUNETR
from .dvpt_tiny_vit_segmenter import DVPTTinyViTSegmenter
from .dvpt_unetr import DVPTUNETR
from .dvpt_vit import DVPTViT
from .dvpt_vit_segmenter import DVPTViTSegmenter

__all__ = [
    "DVPTSAMClassifier",
    "DVPTSAMSegmenter",
    "DVPTSwinClassifier",
    "DVPTSwinUNETR",
    "DVPTTinyViTSegmenter",
    "DVPTUNETR",
    "DVPTViT",
    "DVPTViTSegmenter",
]
