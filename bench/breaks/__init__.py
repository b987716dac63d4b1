"""Breaks: adversarial images that anyone made against an entry, scored again here. Nothing imports torch at import."""
