"""Converts single files of weights, as Civitai and ComfyUI hold them, to packs."""
