"""Weights into torch; needs the extra ``tierstore[torch]``. See ``tierstore.serving.torch``."""

from tierstore.serving.torch import Loaded, load_model, state_dict

__all__ = ["Loaded", "load_model", "state_dict"]
