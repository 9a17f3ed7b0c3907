# SPDX-License-Identifier: Apache-2.0
"""What ``monailabel start_server --app`` looks for in the folder of an app."""

from monai_dvpt.apps.monailabel.app import DVPTApp

__all__ = ["DVPTApp"]
