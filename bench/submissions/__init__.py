"""Submitted defenses: from a template to records that anyone can verify. Nothing here imports torch at import."""
