"""The defenses that PurifyBench brings along, one paper a file, registered by the same entry points as anyone's."""
