"""Loading into torch; needs the extra ``tierstore[torch]``. See ``tierstore.serving.torch``."""

from tierstore.serving.torch import Loaded, iter_weights, load_model, state_dict

__all__ = ["Loaded", "iter_weights", "load_model", "state_dict"]
