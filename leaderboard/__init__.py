"""The static site of PurifyBench: a pure function of records. Nothing here imports torch."""
