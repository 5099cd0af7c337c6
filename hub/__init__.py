"""From a run to the Hugging Face Hub, and from there to anyone: grown networks as safetensors."""
