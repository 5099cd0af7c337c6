"""Grown networks to and from the Hugging Face Hub."""
