"""Drop-in for safetensors that reads ``tierstore://`` URLs as well.

See ``tierstore.serving.safetensors``, where all of this is defined.

>>> import tierstore.safetensors
>>> tierstore.safetensors.install()  # every library that uses safetensors reads from the store
>>> tierstore.safetensors.uninstall()
"""

from tierstore.serving.safetensors import install, load_file, safe_open, uninstall

__all__ = ["install", "load_file", "safe_open", "uninstall"]
