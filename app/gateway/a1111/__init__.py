"""The API of AUTOMATIC1111's stable-diffusion-webui, on top of Cynosure's own."""
